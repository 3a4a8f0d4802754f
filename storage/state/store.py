"""The durable part of the state, as an interface, and what its implementations share.

`checkpoint.py` has the real one, `tests/sim/store.py` that of the simulator.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from raftha.errors import Corrupt, StorageError
from raftha.storage.state.blocks import Block

_LENGTH = struct.Struct("<I")
_DIGEST_PART_BYTES = 64 * 1024


class StoreDigest(NamedTuple):
    """BLAKE2b-256 over all pairs in key order, and the number of pairs."""

    hex: str
    keys: int


class StoreCensus(NamedTuple):
    """Version of the store, its number of keys, and how many of the given keys it has."""

    version: int
    entries: int
    present: int


class StoreExport(NamedTuple):
    """The whole contents as of one checkpoint: its meta, and all pairs in small blocks."""

    meta: bytes
    entries: int
    blocks: Iterator[Block]


class ReadInterrupted(StorageError):
    """A long read could not be finished. Begin it again: nothing is wrong."""


class Store(Protocol):
    """The durable part of the state; the simulator has an implementation in memory."""

    def get(self, key: bytes) -> bytes | None:
        """Return the value of `key`, None if it doesn't exist. Corrupt, like all reads."""
        ...

    def scan(
        self, start: bytes | None, end: bytes | None, *, limit: int, reverse: bool
    ) -> list[tuple[bytes, bytes]]:
        """Return pairs with keys in [start, end), in order; an empty list if there are none.

        At most `limit`, and fewer when they are large: only an empty list means the end.
        """
        ...

    def census(self, keys: Sequence[bytes]) -> StoreCensus:
        """Count all keys, and how many of `keys` are there, as of one version of the store."""
        ...

    def meta(self) -> bytes | None:
        """Return the meta of the last checkpoint, None if there was none yet."""
        ...

    def write(self, items: Iterable[tuple[bytes, bytes | None]], meta: bytes) -> None:
        """Write a checkpoint atomically: `items` in key order, None for deleted keys, and `meta`.

        Durable on return. `items` may be iterated more than once. For the storage thread.
        """
        ...

    def digest(
        self, *, begun: Callable[[], None] = ..., is_wanted: Callable[[], bool] = ...
    ) -> StoreDigest | None:
        """Hash the whole contents as of the last checkpoint. For the storage thread.

        From the call of `begun` on, later checkpoints make no difference. None if the digest is no
        longer `is_wanted`, or can't be finished; then it can be tried again.
        """
        ...

    def export(self) -> AbstractContextManager[StoreExport]:
        """Read the whole contents as of the last checkpoint; later checkpoints go on beside it.

        Any thread; also from the blocks come Corrupt, and ReadInterrupted if it must begin again.
        """
        ...

    def corrupt(self, detail: str) -> Corrupt:
        """Return the error for damage in this store's files."""
        ...

    def close(self) -> None:
        """Close the files."""
        ...


class Hasher:
    """The digest of ordered pairs: keys and values, each after its length in 4 bytes."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=32)
        self._parts: list[bytes] = []
        self._size = 0
        self._keys = 0

    def add(self, key: bytes, value: bytes) -> None:
        """Add the next pair."""
        self._parts += (_LENGTH.pack(len(key)), key, _LENGTH.pack(len(value)), value)
        self._size += len(key) + len(value)
        self._keys += 1
        if self._size >= _DIGEST_PART_BYTES:
            self._flush()

    def add_encoded(self, raw: bytes, keys: int) -> None:
        """Add the next pairs, `keys` of them, as they are in a block of a backup."""
        self._flush()
        self._hash.update(raw)
        self._keys += keys

    def finish(self) -> StoreDigest:
        """Return the digest of all pairs."""
        self._flush()
        return StoreDigest(self._hash.hexdigest(), self._keys)

    def _flush(self) -> None:
        # Large pieces, because hashing one releases the GIL.
        self._hash.update(b"".join(self._parts))
        self._parts.clear()
        self._size = 0
