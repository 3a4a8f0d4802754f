"""A record of the catalog as callers get it."""

from __future__ import annotations

from raftha.node.backup_work import BackupProgress
from raftha.storage.state.catalog import (
    COMPLETED,
    FAILED,
    MISSING,
    RETIRED,
    RUNNING,
    BackupRecord,
)
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
