"""Reads single keys and ranges out of a backup, without restoring it.

Theory of operation. A key is looked for in the newest link of the chain first, then in the one
before: the first pair found counts, also one that says that the key was deleted. A manifest has the
first and last key of each object, and an object's index those of its blocks, so a link costs no
request if no object can have the key, and three small ones otherwise: header, index, block. What is
read is checked by its frames' seals. (The hash of a whole object would need all of it.)

A scan merges the links' blocks from its start on, and reads no further than its limit.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from raftha.storage.backup.chain import Shelf, from_any, load_chain
from raftha.storage.backup.destination import Destination
from raftha.storage.backup.frames import HEADER_BYTES, RUN, ObjectSeal
from raftha.storage.backup.manifest import Manifest, StoredManifest
from raftha.storage.backup.pairs import Piece, flat, merge, without_deleted
from raftha.storage.backup.repository import Repository
from raftha.storage.backup.runs import IndexEntry, ObjectFacts, decode_block, read_block, read_index
from raftha.storage.state.blocks import Pair

OBJECTS_MAX = 64
"""Objects whose indexes are kept in memory, up to 1 MiB each."""


class _OpenObject(NamedTuple):
    """What is needed of an object to read one of its blocks."""

    seal: ObjectSeal
    entries: list[IndexEntry]


class BackupReader:
    """The state that a backup restores, to read keys from; one thread at a time."""

    def __init__(self, repository: Repository, lineage: str, label: str) -> None:
        """Read the manifests of its chain. ChainBroken; ObjectMissing; BackupDamaged."""
        self._shelf = Shelf(repository.destinations, repository.id, repository.keys)
        self.links: list[StoredManifest] = load_chain(self._shelf, lineage, label)
        """The chain; the full backup comes first."""
        self._open: dict[str, _OpenObject] = {}

    def get(self, key: bytes) -> bytes | None:
        """Return the value of `key`, None if it doesn't exist."""
        for link in reversed(self.links):
            found = self._find(link.manifest, key)
            if found is not None:
                return found[1]
        return None

    def scan(self, start: bytes | None, end: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """Yield the pairs with keys in [start, end), in order; None means unbounded."""
        layers = [self._pieces(link.manifest, start or b"", end) for link in reversed(self.links)]
        for key, value in flat(without_deleted(merge(layers))):
            if end is not None and key >= end:
                return
            assert value is not None, "deleted keys are left out"
            if key >= (start or b""):
                yield key, value

    def _find(self, manifest: Manifest, key: bytes) -> Pair | None:
        for number, facts in enumerate(manifest.runs):
            if facts.keys and facts.first_key <= key <= facts.last_key:
                name = manifest.run_name(number)
                entries = self._opened(name, facts).entries
                place = _place(entries, key)
                if place is None:
                    return None
                block = self._block(name, facts, place)
                return next((pair for pair in block if pair[0] == key), None)
        return None

    def _pieces(self, manifest: Manifest, start: bytes, end: bytes | None) -> Iterator[Piece]:
        for number, facts in enumerate(manifest.runs):
            if not facts.keys or facts.last_key < start:
                continue
            if end is not None and facts.first_key >= end:
                return
            name = manifest.run_name(number)
            entries = self._opened(name, facts).entries
            first = _place(entries, start)
            for place, entry in enumerate(entries[:-1]):
                if entry.first_key is None or (first is not None and place < first):
                    continue
                if end is not None and entry.first_key >= end:
                    return
                yield self._block(name, facts, place)

    def _opened(self, name: str, facts: ObjectFacts) -> _OpenObject:
        if name not in self._open:
            if len(self._open) >= OBJECTS_MAX:
                self._open.clear()
            self._open[name] = from_any(self._shelf, lambda place: self._read(place, name, facts))
        return self._open[name]

    def _read(self, destination: Destination, name: str, facts: ObjectFacts) -> _OpenObject:
        header = destination.get_range(name, 0, HEADER_BYTES)
        seal = ObjectSeal.read(header, RUN, name, self._shelf.keys)
        tail = destination.get_range(name, facts.index_at, facts.size - facts.index_at)
        return _OpenObject(seal, read_index(seal, tail, facts))

    def _block(self, name: str, facts: ObjectFacts, place: int) -> list[Pair]:
        opened = self._opened(name, facts)
        entry, after = opened.entries[place : place + 2]

        def read(destination: Destination) -> list[Pair]:
            frames = destination.get_range(name, entry.offset, after.offset - entry.offset)
            return decode_block(read_block(opened.seal, frames, entry, after), name)

        return from_any(self._shelf, read)


def _place(entries: list[IndexEntry], key: bytes) -> int | None:
    """Return the place of the block that may have `key`; None if all begin behind it."""
    keys = [entry.first_key or b"" for entry in entries[:-1]]
    place = bisect_right(keys, key) - 1
    return None if place < 0 or entries[place].first_key is None else place
