"""A log that can be archived, without a node: entries in memory; the oldest may be gone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from raftha.entry import LOG_START, Entry, LogPosition
from raftha.errors import Compacted
from raftha.storage.backup import names
from raftha.storage.backup.archive import (
    ArchiveHooks,
    ArchiveOrder,
    ArchiveResult,
    DestinationArchive,
)
from raftha.storage.backup.archive_listing import read_listing
from raftha.storage.backup.archive_objects import Access
from raftha.storage.backup.crypto import DataKey, KeyRing
from raftha.storage.backup.destination import Destination
from raftha.storage.backup.names import SegmentName, parse_gap_name
from raftha.storage.backup.segments import read_segment
from tests.support.entries import Log, group

LINEAGE = "ab" * 16


class ArchivedLog:
    """The log of one member: `entries` from `first` on, each read of at most `read_max` of them."""

    def __init__(self, log: Log, read_max: int = 3) -> None:
        self.log = log
        self.first = 1
        self.read_max = read_max

    def read(self, index: int) -> tuple[LogPosition, Sequence[Entry]]:
        """As `raftha.storage.directory.replay.read_from`."""
        assert 0 < index <= self.log.last.index + 1
        if index < self.first:
            raise Compacted(index, self.first)
        previous = self.log.entries[index - 2].position if index > 1 else LOG_START
        return previous, self.log.entries[index - 1 : index - 1 + self.read_max]

    def write(self, count: int = 1, *, size: int = 10) -> None:
        """Append entries with a command each."""
        for _ in range(count):
            number = self.log.last.index + 1
            self.log.batch(group(1, number, [b"%d" % number * size]), time_us=1_000_000 + number)


class Archiving:
    """One member that archives its log into a destination."""

    def __init__(
        self,
        destination: Destination,
        log: ArchivedLog,
        *,
        others: Sequence[Destination] = (),
        key: DataKey | None = None,
    ) -> None:
        self.now = 1000.0
        self.log = log
        self.errors: list[str] = []
        access = Access(destination, key, KeyRing([key] if key else []))
        hooks = ArchiveHooks(log.read, lambda: self.now, others=lambda: others)
        self.archive = DestinationArchive(
            lambda: access, hooks, on_error=lambda error: self.errors.append(str(error))
        )

    def order(self, **fields: Any) -> ArchiveOrder:
        return ArchiveOrder(LINEAGE, self.log.log.last.index)._replace(**fields)

    def put(self, **fields: Any) -> ArchiveResult:
        return self.archive.put(self.order(**fields))

    def tidy(self, **fields: Any) -> ArchiveResult:
        return self.archive.tidy(self.order(**fields))


def segments(destination: Destination) -> list[SegmentName]:
    """The names of all segments, in order."""
    return sorted(
        read_listing(destination.list(names.log_folder(LINEAGE)), LINEAGE).sizes,
        key=lambda name: (name.level, name.first, name.last),
    )


def gaps(destination: Destination) -> list[tuple[int, int]]:
    """The recorded gaps."""
    found = (parse_gap_name(info.name) for info in destination.list(names.gaps_folder(LINEAGE)))
    return [(gap.first, gap.last) for gap in found]


def archived(destination: Destination, key: DataKey | None = None) -> dict[int, Entry]:
    """All entries that are in the archive, by index. Segments that overlap must be alike."""
    found: dict[int, Entry] = {}
    for entry in _entries(destination, KeyRing([key] if key else [])):
        assert found.setdefault(entry.index, entry) == entry, "segments that overlap are alike"
    return found


def _entries(destination: Destination, keys: KeyRing) -> Iterator[Entry]:
    for name in segments(destination):
        data = destination.get(names.segment_name(name), size_max=1 << 30)
        yield from read_segment(data, name, keys)
