"""Finds a named moment in a repository: marks are in the catalog, so in backups and in the log.

Theory of operation. A backup's meta has the catalog as of its position, and the log behind it the
marks that were set later. The log is read as far as it goes without a gap.
"""

from __future__ import annotations

from contextlib import closing, suppress

from raftha.entry import Entry, EntryKind
from raftha.errors import ArchiveGap, TargetUnreachable
from raftha.storage.backup.chain import Shelf, read_backup
from raftha.storage.backup.log_reader import LogReader
from raftha.storage.backup.planner import Planner
from raftha.storage.backup.pool import serial_pool
from raftha.storage.backup.recovery import RecoveryPlan, Target
from raftha.storage.backup.repository import Repository
from raftha.storage.backup.runs import MetaParts
from raftha.storage.backup.timeline import Stretch, Timeline, read_timeline
from raftha.storage.state.catalog import Catalog, MarkNow, decode_change
from raftha.storage.state.meta import read_catalog
from raftha.storage.state.versions import VERSIONS, decode_admin

SHOWN_MAX = 20
"""Marks that an error names."""


def find_mark(
    repository: Repository, name: str, lineage: str = "", *, timeline: Timeline | None = None
) -> tuple[str, int]:
    """Return the lineage and the sequence of a mark. TargetUnreachable if there is none."""
    planner = Planner(repository, timeline or read_timeline(repository))
    history = planner.choose(Target(), lineage)
    catalog = _read_marks(repository, planner, planner.plan_base(history))
    marks = {mark.name: mark for mark in catalog.marks()}
    if name not in marks:
        shown = ", ".join(list(marks)[-SHOWN_MAX:]) or "there are none"
        raise TargetUnreachable(f"there is no mark {name!r:.80}", hint=f"marks: {shown}")
    return history[-1].lineage, marks[name].sequence


def _read_marks(repository: Repository, planner: Planner, base: RecoveryPlan) -> Catalog:
    shelf = Shelf(repository.destinations, repository.id, repository.keys)
    parts = MetaParts()
    next(iter(read_backup(shelf, base.backup, parts.add)), None)
    catalog = read_catalog(parts.join())
    stretches: list[Stretch] = []
    with suppress(ArchiveGap):
        stretches.extend(planner.timeline.walk(base.history, base.position.index + 1))
    reader = LogReader(
        shelf, base.history, stretches, relist=lambda: planner.timeline, pool=serial_pool
    )
    with closing(reader):
        for piece in reader.pieces():
            for entry in piece:
                _take(catalog, entry)
    return catalog


def _take(catalog: Catalog, entry: Entry) -> None:
    if entry.kind == EntryKind.ADMIN:
        what, fields = decode_admin(bytes(entry.payload))
        change = None if what == VERSIONS else decode_change(what, fields)
        if isinstance(change, MarkNow):
            catalog.apply(change, entry.position)
