"""A store in memory, for the simulator: what LMDB does, without a disk.

It passes the same contract tests as the real one. A write is whole or not at all, and durable when
it returns, so a crash finds the last completed one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import msgpack
from sortedcontainers import SortedDict

from raftha.errors import Corrupt, StorageError, StorageFull
from raftha.storage.state.blocks import Block, encode_pairs
from raftha.storage.state.checkpoint import EXPORT_PAIRS, SCAN_CHUNK_BYTES
from raftha.storage.state.store import (
    Hasher,
    ReadInterrupted,
    StoreCensus,
    StoreDigest,
    StoreExport,
)

ALIEN_KEY = b"\xffalien"
"""No command writes it, and no client asks for it."""


class DictStore:
    """A `Store`. The next write raises `fail_next` if that is set, and changes nothing; all raise
    StorageFull, and change nothing, while it `is_full`. One that `is_damaged` can't be opened.

    Reads of a value that `rot` has damaged raise Corrupt, until a write replaces it."""

    def __init__(self) -> None:
        self.is_damaged = False
        self.fail_next: StorageError | None = None
        self.is_full = False
        self._values: SortedDict[bytes, bytes] = SortedDict()
        self._meta: bytes | None = None
        self._rotten: set[bytes] = set()
        self._version = 0
        self._is_open = True

    def get(self, key: bytes) -> bytes | None:
        """Return the value of `key`, None if it isn't there."""
        assert self._is_open
        self._check(key)
        return self._values.get(key)

    def scan(
        self, start: bytes | None, end: bytes | None, *, limit: int, reverse: bool
    ) -> list[tuple[bytes, bytes]]:
        """Return pairs with keys in [start, end), in order."""
        assert self._is_open
        pairs: list[tuple[bytes, bytes]] = []
        size = 0
        keys = self._values.irange(start, end, inclusive=(True, False), reverse=reverse)
        for key in islice(keys, limit):
            self._check(key)
            pairs.append((key, self._values[key]))
            size += len(key) + len(self._values[key])
            if size >= SCAN_CHUNK_BYTES:
                break
        return pairs

    def census(self, keys: Sequence[bytes]) -> StoreCensus:
        """Count all keys, and how many of `keys` are there."""
        assert self._is_open
        present = sum(key in self._values for key in keys)
        return StoreCensus(self._version, len(self._values), present)

    def meta(self) -> bytes | None:
        """Return the meta of the last checkpoint, None if there was none yet."""
        assert self._is_open
        if self.is_damaged:
            raise self.corrupt("it is rotten")
        return self._meta

    def write(self, items: Iterable[tuple[bytes, bytes | None]], meta: bytes) -> None:
        """Write a checkpoint, all or nothing."""
        assert self._is_open
        assert not isinstance(items, Iterator), "items may be gone through more than once"
        staged = list(items)
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            raise error
        if self.is_full:
            raise StorageFull("no space for a checkpoint")
        for key, value in staged:
            self._rotten.discard(key)
            if value is None:
                self._values.pop(key, None)
            else:
                self._values[key] = value
        self._meta = meta
        self._version += 1

    def digest(
        self,
        *,
        begun: Callable[[], None] = lambda: None,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> StoreDigest | None:
        """Hash the whole contents as of the last checkpoint."""
        assert self._is_open
        begun()
        if not is_wanted():
            return None
        hasher = Hasher()
        for key, value in self._values.items():
            self._check(key)
            hasher.add(key, value)
        return hasher.finish()

    @contextmanager
    def export(self) -> Iterator[StoreExport]:
        """Read the whole contents as of the last checkpoint."""
        assert self._is_open
        pairs = list(self._values.items())
        yield StoreExport(self._meta or b"", len(pairs), self._blocks(pairs, set(self._rotten)))

    def _blocks(self, pairs: list[tuple[bytes, bytes]], rotten: set[bytes]) -> Iterator[Block]:
        for at in range(0, len(pairs), EXPORT_PAIRS):
            piece = pairs[at : at + EXPORT_PAIRS]
            for key, _ in piece:
                if key in rotten:
                    raise self.corrupt(f"the value of key {key.hex()} is damaged")
            if not self._is_open:
                raise ReadInterrupted("the store is closed")
            for pair in piece:
                yield Block(encode_pairs((pair,)), 1, pair[0], pair[0])

    def corrupt(self, detail: str) -> Corrupt:
        """Make the error that says what is wrong with this store."""
        return Corrupt("memory", 0, detail)

    def close(self) -> None:
        """Make this object unusable."""
        self._is_open = False

    def rot(self, key: bytes) -> None:
        """Damage the value of `key`, which is there."""
        assert key in self._values
        self._rotten.add(key)

    def alter(self) -> None:
        """Have a pair that no command has written."""
        self._values[ALIEN_KEY] = b"1"

    def restore(self) -> None:
        """Have that pair no more."""
        del self._values[ALIEN_KEY]

    @property
    def is_altered(self) -> bool:
        """Whether it has that pair."""
        return ALIEN_KEY in self._values

    def _check(self, key: bytes) -> None:
        if key in self._rotten:
            raise self.corrupt(f"the value of key {key.hex()} is damaged")

    def snapshot(self) -> bytes:
        """All of it, as bytes; Corrupt if a value is damaged."""
        assert self._is_open
        for key in self._rotten:
            self._check(key)
        snapshot: bytes = msgpack.packb([self._meta, list(self._values.items())])
        return snapshot

    @classmethod
    def from_snapshot(cls, snapshot: bytes) -> DictStore:
        """The store that `snapshot` was made of."""
        store = cls()
        store._meta, items = msgpack.unpackb(snapshot)
        store._values.update((key, value) for key, value in items)
        return store

    def crash(self) -> DictStore:
        """Return the store as a restart finds it; this object can't be used any more."""
        self.close()
        found = DictStore()
        found.is_damaged = self.is_damaged
        found._values, found._meta, found._version = self._values, self._meta, self._version
        found._rotten = self._rotten
        found.is_full = self.is_full
        return found
