"""The write buffer: what was applied since the last checkpoint, in front of LMDB.

Theory of operation. A buffer maps a key to its newest value, or to None if the key was deleted. It
only grows: a key stays in it until the whole buffer is dropped after its checkpoint. A dict keeps
the order of insertion, so the keys added since the last scan are the dict's tail. Therefore a put
costs one dict store, and only scans pay for an ordered view, which is updated on demand; in pieces
(`sort_piece`) if the reader can wait. The node's thread owns a buffer. A frozen buffer no longer
changes, so the storage thread may read it (`SortedItems`) while the node's thread reads it too.

Reads lay newer layers over older ones (`overlay`): a transaction's writes over the buffer, over the
frozen buffer of a checkpoint under way, over LMDB.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import islice
from typing import TypeAlias

from sortedcontainers import SortedList

Pair: TypeAlias = "tuple[bytes, bytes | None]"

# Sorting holds the GIL from start to end, so big buffers are sorted in pieces of about a
# millisecond.
SORT_PIECE = 4096


class WriteBuffer:
    """Newest values by key, None for deleted keys; hot paths write to `values` directly."""

    __slots__ = ("_order", "_unsorted", "is_kept_sorted", "is_scanned", "values")

    def __init__(self, *, is_kept_sorted: bool = False) -> None:
        self.values: dict[bytes, bytes | None] = {}
        self._order: SortedList[bytes] = SortedList()
        self._unsorted: list[bytes] = []  # Keys not yet in the order.
        self.is_scanned = False
        self.is_kept_sorted = is_kept_sorted

    def iterate(self, start: bytes | None, end: bytes | None, *, reverse: bool) -> Iterator[Pair]:
        """Yield the pairs in [start, end), None meaning unbounded, deleted keys as (key, None)."""
        self.sort()
        self.is_scanned = self.is_kept_sorted = True
        values = self.values
        for key in self._order.irange(start, end, inclusive=(True, False), reverse=reverse):
            yield key, values[key]

    @property
    def missing(self) -> int:
        """The number of keys that the ordered view lacks."""
        return len(self.values) - len(self._order)

    def sort(self) -> None:
        """Bring the ordered view up to date."""
        if self.missing:
            self._take_new()
            self._order.update(self._unsorted)
            self._unsorted = []

    def sort_piece(self) -> None:
        """Add a piece to the ordered view: more keys than came since the last piece."""
        was_begun = bool(self._unsorted)
        new = self._take_new()
        size = SORT_PIECE + (new if was_begun else 0)
        self._order.update(self._unsorted[-size:])
        del self._unsorted[-size:]

    def keep_sorted(self) -> None:
        """Sort early if this buffer or the last one was scanned, so that no scan sorts for long."""
        if self.is_kept_sorted and self.missing > SORT_PIECE:
            self.sort()

    def _take_new(self) -> int:
        new = self.missing - len(self._unsorted)
        self._unsorted.extend(islice(reversed(self.values), new))
        return new


class SortedItems:
    """A frozen buffer's items in key order; can be iterated more than once, from one thread."""

    __slots__ = ("_order", "_values")

    def __init__(self, buffer: WriteBuffer) -> None:
        self._values = buffer.values
        self._order: list[bytes] | None = None

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Pair]:
        values = self._values
        if self._order is None:
            self._order = self._sort()
        for key in self._order:
            yield key, values[key]

    def pieces(self) -> Iterator[list[Pair]]:
        """Yield all items in pieces, each in key order. That takes much less than one order."""
        values = self._values
        for piece in self._sorted_pieces():
            yield [(key, values[key]) for key in piece]

    def _sorted_pieces(self) -> Iterator[list[bytes]]:
        keys = iter(self._values)
        while piece := sorted(islice(keys, SORT_PIECE)):
            yield piece

    def _sort(self) -> list[bytes]:
        pieces = list(self._sorted_pieces())
        if len(pieces) > 1:
            return list(heapq.merge(*pieces))
        return pieces[0] if pieces else []


def overlay(newer: Iterator[Pair], older: Iterator[Pair], *, reverse: bool) -> Iterator[Pair]:
    """Merge two ordered layers; where both have a key, the newer one's pair is yielded."""
    above, below = next(newer, None), next(older, None)
    while above is not None and below is not None:
        if above[0] == below[0]:
            yield above
            above, below = next(newer, None), next(older, None)
        elif (above[0] < below[0]) is not reverse:
            yield above
            above = next(newer, None)
        else:
            yield below
            below = next(older, None)
    if above is not None:
        yield above
        yield from newer
    if below is not None:
        yield below
        yield from older
