"""Bugs to plant in the archive of the log. See `bugs.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raftha.entry import Entry
from raftha.errors import RepositoryUnavailable
from raftha.node.backup.archiving import Archiving
from raftha.node.backup.points import Points
from raftha.node.checkpoints import LogCut
from raftha.node.messages import ArchiveRow
from raftha.storage.backup.archive import ArchiveOrder, DestinationArchive, _Known
from raftha.storage.backup.archive_objects import ArchiveObjects
from raftha.storage.backup.names import SegmentName
from raftha.storage.log.wal import Wal
from tests.sim.planting import Bug, Patch


def uncommitted_entries_archived() -> list[Patch]:
    """The archiver reads its log to the end, committed or not."""
    order = Archiving._order

    def to_the_end(self: Archiving, *args: Any) -> ArchiveOrder:
        return order(self, *args)._replace(through=self._core.log.persisted)

    return [(Archiving, "_order", to_the_end)]


def archived_before_confirmed() -> list[Patch]:
    """The position moves with the put, whatever comes of it."""
    store = ArchiveObjects.store

    def hopeful(
        self: ArchiveObjects, level: int, entries: Sequence[Entry]
    ) -> tuple[SegmentName, int]:
        try:
            return store(self, level, entries)
        except RepositoryUnavailable:
            return archive_names(self.lineage, level, entries), 0

    return [(ArchiveObjects, "store", hopeful)]


def archive_names(lineage: str, level: int, entries: Sequence[Entry]) -> SegmentName:
    """As `segments.name_of`."""
    last = entries[-1]
    return SegmentName(
        lineage, level, entries[0].index, last.index, last.last_sequence, last.time_us
    )


def gap_without_a_record() -> list[Patch]:
    """What the log has lost is passed over."""

    def record(self: ArchiveObjects, first: int, last: int) -> None:
        return

    return [(ArchiveObjects, "record_gap", record)]


def any_object_taken_for_ours() -> list[Patch]:
    """An object that exists is taken for the segment that was to be put."""

    def compare(self: ArchiveObjects, name: SegmentName, last_hash: bytes) -> None:
        if name.level:
            return compare_before(self, name, last_hash)
        self._access.destination.get(archive_listing_name(name), size_max=1 << 30)
        return None

    compare_before = ArchiveObjects.compare
    return [(ArchiveObjects, "compare", compare)]


def archive_listing_name(name: SegmentName) -> str:
    """As `names.segment_name`."""
    lineage, level, *numbers = name
    return f"{lineage}/log/{level}/" + "-".join(f"{number:016x}" for number in numbers)


def level_1_not_read_back() -> list[Patch]:
    """Level 0 goes once level 1 is put."""
    compare = ArchiveObjects.compare

    def believe(self: ArchiveObjects, name: SegmentName, last_hash: bytes) -> None:
        if not name.level:
            compare(self, name, last_hash)

    return [(ArchiveObjects, "compare", believe)]


def level_0_deleted_at_once() -> list[Patch]:
    """What is put is deleted as soon as the archiver tidies up, merged or not."""
    deletable = DestinationArchive._deletable

    def careless(
        self: DestinationArchive, known: _Known, now: float, keep_from: int
    ) -> list[SegmentName]:
        return [*deletable(self, known, now, keep_from), *(s.name for s in known.waiting)]

    return [(DestinationArchive, "_deletable", careless)]


def log_kept_without_limit() -> list[Patch]:
    """A bucket that is away makes members keep all of their log."""

    def apply(self: LogCut, wal: Wal) -> None:
        for_members = max(self.index, wal.index_within(self.bytes_max))
        wal.compact(min(self.limit_index, for_members, self.archived_index))

    return [(LogCut, "apply", apply)]


def log_not_kept_for_the_archive() -> list[Patch]:
    """Members cut their log as if nothing were archived, and nothing is said of it."""
    return [
        (Archiving, "held_index", property(lambda self: None)),
        (ArchiveObjects, "record_gap", lambda self, first, last: None),
    ]


def age_by_a_clock_that_only_leaders_may_ask() -> list[Patch]:
    """Each member examines the clocks for the archive's age; a new leader relies on that (T1)."""
    rpo_ms = Archiving._rpo_ms

    def ask(self: Archiving, row: ArchiveRow) -> int:
        self._leading._log_clock.now_us()
        return rpo_ms(self, row)

    return [(Archiving, "_rpo_ms", ask)]


def point_noted_before_it_is_archived() -> list[Patch]:
    """A recovery point is noted as soon as the states were compared, and its log is nowhere yet."""
    init = Points.__init__

    def hasty(self: Points, *args: Any, **others: Any) -> None:
        init(self, *args, **{**others, "archived_index": lambda: None})

    return [(Points, "__init__", hasty)]


BUGS: tuple[Bug, ...] = (
    uncommitted_entries_archived,
    archived_before_confirmed,
    gap_without_a_record,
    any_object_taken_for_ours,
    level_1_not_read_back,
    level_0_deleted_at_once,
    log_kept_without_limit,
    log_not_kept_for_the_archive,
    age_by_a_clock_that_only_leaders_may_ask,
    point_noted_before_it_is_archived,
)
