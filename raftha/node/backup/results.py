"""The records of the catalog as callers get them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from raftha.node.backup_work import BackupProgress
from raftha.recovery import RecoveryPoint, RecoveryPointKind, RecoveryResult, RecoveryState
from raftha.storage.state.catalog import (
    COMPLETED,
    FAILED,
    MISSING,
    RETIRED,
    RUNNING,
    BackupRecord,
    Catalog,
    Point,
)
from raftha.storage.state.recoveries import RESTORED, RecoveryRecord
from raftha.types import BackupMode, BackupResult, BackupState


def result_of(record: BackupRecord, progress: BackupProgress | None) -> BackupResult:
    """A record of the catalog, for callers. `progress` is that of the backup that runs."""
    error = record.error
    if record.state != RUNNING or progress is None:
        progress = BackupProgress(BackupState.PREPARING, 0, 0)
    state, done_bytes, total_bytes = progress
    if record.state in (COMPLETED, RETIRED):
        state = BackupState.COMPLETED
    elif record.state in (FAILED, MISSING):
        state = BackupState.FAILED
        error = error or "no destination has it any more"
    ended_us = record.ended_us or record.began_us
    destinations = {name: "ok" for name in record.destinations if state is BackupState.COMPLETED}
    for each in record.errors:
        name, _, why = each.partition(": ")
        destinations.setdefault(name, why)
    return BackupResult(
        id=record.id,
        label=record.label,
        mode=BackupMode(record.mode),
        state=state,
        parent=record.parent or None,
        base=record.base if record.parent else None,
        node_id=record.node,
        index=record.position_index,
        sequence=record.position_sequence,
        time_us=record.position_us or record.began_us,
        keys=record.keys,
        size_bytes=record.size_bytes,
        size_compressed=record.size_compressed,
        duration_ms=(ended_us - record.began_us) / 1000,
        digest=record.digest,
        destinations=destinations,
        error=error,
        reason=record.reason,
        verify_level=record.verify_level,
        pins=tuple(name for name, _ in record.pins),
        is_retired=record.state == RETIRED,
        lineage=record.lineage,
        done_bytes=done_bytes,
        total_bytes=total_bytes,
    )


def recovery_of(record: RecoveryRecord) -> RecoveryResult:
    """A recovery, for callers."""
    ended_us = record.ended_us or record.began_us
    return RecoveryResult(
        id=record.id,
        state=RecoveryState(record.state),
        to_sequence=record.to_sequence,
        time_us=record.to_us,
        request=record.reason,
        sequence=record.sequence,
        undone=record.undone if record.state == RESTORED else 0,
        digest=record.digest,
        duration_ms=(ended_us - record.began_us) / 1000,
        error=record.error,
    )


class _Row(NamedTuple):
    """A moment, as the catalog has it."""

    index: int  # type: ignore[assignment]  # shadows tuple.index, which is never called
    kind: RecoveryPointKind
    sequence: int
    time_us: int
    name: str = ""


def points_of(catalog: Catalog, lineage: str) -> tuple[RecoveryPoint, ...]:
    """The moments that the catalog knows, in the order of the log; backups only of this lineage."""
    kinds = RecoveryPointKind
    backups = [r for r in catalog.records() if r.lineage == lineage and catalog.is_whole(r.id)]
    rows = [
        *(_Row(r.position_index, kinds.BACKUP, r.position_sequence, r.position_us, r.label)
          for r in backups),
        *(_Row(p.index, kinds.CHECKPOINT, p.sequence, p.time_us) for p in catalog.points()),
        *(_Row(m.index, kinds.MARK, m.sequence, m.time_us, m.name) for m in catalog.marks()),
        *(_Row(r.index - 1, kinds.RECOVERY, r.sequence - 1, r.ended_us - 1)
          for r in catalog.recoveries.records() if r.state == RESTORED),
    ]  # fmt: skip
    sizes = [
        (r.position_index, sum(link.size_compressed for link in catalog.chain(r.id)))
        for r in backups
    ]
    # Only commands change the contents: they are the same at all entries of one sequence.
    compared = {point.sequence: point for point in catalog.points() if point.voters}
    compared |= {point.sequence: point for point in catalog.points() if point.is_consistent}
    return tuple(_point_of(row, compared.get(row.sequence), sizes) for row in sorted(rows))


def _point_of(row: _Row, compared: Point | None, sizes: Sequence[tuple[int, int]]) -> RecoveryPoint:
    _, size_bytes = max((each for each in sizes if each[0] <= row.index), default=(0, 0))
    return RecoveryPoint(
        kind=row.kind,
        sequence=row.sequence,
        time_us=row.time_us,
        index=row.index,
        name=row.name,
        size_bytes=size_bytes,
        is_consistent=compared is not None and compared.is_consistent,
        agreed=0 if compared is None else compared.agreed,
        voters=0 if compared is None else compared.voters,
        digest="" if compared is None else compared.digest.hex(),
    )
