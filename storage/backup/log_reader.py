"""Reads the log out of segments: each entry from any destination that has it, sound.

Theory of operation. A plan says which segments hold the entries (`Stretch`). Their objects are
fetched ahead, and taken apart in pieces, by workers if there are any. A segment that is missing or
damaged in one destination is read from the next. If none has it, the repository is listed again:
segments of level 0 are deleted once one of level 1 has their entries, and damage in one segment
doesn't matter if others hold the same entries. Entries are chained by hashes from the first one on,
so those that were taken from a segment before its damage was found are right.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from itertools import islice

from raftha.entry import ENTRY_BYTES_MAX, Entry
from raftha.errors import (
    ArchiveGap,
    BackupDamaged,
    KeyMissing,
    ObjectMissing,
    ObjectTooLarge,
    RepositoryError,
)
from raftha.storage.backup import names
from raftha.storage.backup.chain import Shelf, from_any
from raftha.storage.backup.destination import Destination
from raftha.storage.backup.names import SegmentName
from raftha.storage.backup.pool import Pool
from raftha.storage.backup.segments import MERGED_RAW_BYTES, iterate_segment, read_segment
from raftha.storage.backup.timeline import History, Stretch, Timeline

SEGMENT_BYTES_MAX = MERGED_RAW_BYTES + 2 * ENTRY_BYTES_MAX
"""No segment's object is larger."""
AHEAD = 3
"""Segments that are fetched ahead."""
PIECE_ENTRIES, PIECE_BYTES = 256, 1 << 20
"""Entries are handed over so many at a time, and fewer if they are large."""
PIECES_AHEAD = 4
_OTHERS_MAY_DO = (BackupDamaged, KeyMissing, ObjectMissing)


def read_stretch(shelf: Shelf, stretch: Stretch) -> list[Entry]:
    """Return the entries of a stretch. BackupDamaged; ObjectMissing; KeyMissing."""
    name = stretch.segment.name

    def read(destination: Destination) -> list[Entry]:
        return read_segment(_get(destination, stretch), name, shelf.keys)

    entries = from_any(shelf, read)
    return entries[stretch.first - name.first : stretch.last - name.first + 1]


def _get(destination: Destination, stretch: Stretch) -> bytes | memoryview:
    name = names.segment_name(stretch.segment.name)
    try:
        return destination.get(name, size_max=min(stretch.segment.size, SEGMENT_BYTES_MAX))
    except ObjectTooLarge as error:
        raise BackupDamaged(
            "it is too large", destination=destination.name, object_name=name
        ) from error


class LogReader:
    """Reads the entries of some stretches, one after the other."""

    def __init__(
        self,
        shelf: Shelf,
        history: History,
        stretches: Sequence[Stretch],
        *,
        relist: Callable[[], Timeline],
        pool: Callable[[str, int], Pool],
    ) -> None:
        """`relist` lists the repository again, `pool` makes workers."""
        self._shelf = shelf
        self._history = history
        self._waiting = deque(stretches)
        self._last = stretches[-1].last if stretches else 0
        self._next = stretches[0].first if stretches else 1
        self._relist = relist
        self._fetchers = pool("fetch", AHEAD)
        self._reader = pool("log", 1)
        self._coming: deque[tuple[Stretch, Future[bytes | memoryview]]] = deque()
        self._without: set[SegmentName] = set()

    def close(self) -> None:
        """End all workers."""
        self._reader.shutdown(cancel_futures=True)
        self._fetchers.shutdown(cancel_futures=True)

    def pieces(self) -> Iterator[list[Entry]]:
        """Yield all entries in order. The gravest error of any destination if one is missing."""
        entries = self._entries()
        coming = deque(self._reader.submit(_piece, entries) for _ in range(PIECES_AHEAD))
        while piece := coming.popleft().result():
            coming.append(self._reader.submit(_piece, entries))
            yield piece

    def _entries(self) -> Iterator[Entry]:
        while True:
            self._fetch_ahead()
            if not self._coming:
                return
            stretch, data = self._coming.popleft()
            try:
                yield from self._read(stretch, data)
            except _OTHERS_MAY_DO as error:
                self._go_around(stretch, error)

    def _fetch_ahead(self) -> None:
        while self._waiting and len(self._coming) < AHEAD:
            stretch = self._waiting.popleft()
            self._coming.append((stretch, self._fetchers.submit(self._fetch, stretch)))

    def _fetch(self, stretch: Stretch) -> bytes | memoryview:
        return from_any(self._shelf, lambda destination: _get(destination, stretch))

    def _read(self, stretch: Stretch, data: Future[bytes | memoryview]) -> Iterator[Entry]:
        try:
            yield from self._checked(stretch, data.result())
        except BackupDamaged as error:
            found: RepositoryError = error
        else:
            return
        for destination in self._shelf.destinations.values():
            try:
                yield from self._checked(stretch, _get(destination, stretch))
            except _OTHERS_MAY_DO:
                continue
            return
        raise found

    def _checked(self, stretch: Stretch, data: bytes | memoryview) -> Iterator[Entry]:
        """The entries of a segment that are still needed."""
        for entry in iterate_segment(data, stretch.segment.name, self._shelf.keys):
            if self._next <= entry.index <= stretch.last:
                self._next = entry.index + 1
                yield entry

    def _go_around(self, stretch: Stretch, error: RepositoryError) -> None:
        """Find other segments for the entries that are still needed; else raise the error."""
        self._without.add(stretch.segment.name)
        found: list[Stretch] = []
        try:
            for each in self._relist().walk(self._history, self._next, self._without):
                found.append(each._replace(last=min(each.last, self._last)))
                if each.last >= self._last:
                    break
        except ArchiveGap:
            raise error from None
        if not found or found[-1].last < self._last:
            raise error
        self._coming.clear()
        self._waiting = deque(found)


def _piece(entries: Iterator[Entry]) -> list[Entry]:
    piece: list[Entry] = []
    size = 0
    for entry in islice(entries, PIECE_ENTRIES):
        piece.append(entry)
        size += len(entry.data)
        if size >= PIECE_BYTES:
            break
    return piece
