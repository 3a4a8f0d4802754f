"""Builds the file of a state from pairs: fast, and not durable before it is finished.

Theory of operation. A restore fills a folder that nothing else uses, and that is removed after a
crash. So transactions are not synced one by one; `finish` syncs the whole file. The pairs of a full
backup come in order and are appended, which fills LMDB's pages and compares no keys. The map grows
as needed.

It is a `Store` too, so that a log can be replayed over it before it is finished. One thread writes;
another may read meanwhile, in short transactions, and sees all that was written before.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import lmdb

from raftha.config.limits import MIB
from raftha.errors import Corrupt, StorageFailed, StorageFull
from raftha.storage.files import sync_folder
from raftha.storage.state.blocks import BLOCK_BYTES, Block, encode_pairs
from raftha.storage.state.lmdb_file import META_KEY, error_code, seek_first, seek_last
from raftha.storage.state.records import pack_records, unpack_record
from raftha.storage.state.store import Hasher, StoreCensus, StoreDigest, StoreExport

Piece: TypeAlias = "Sequence[tuple[bytes, bytes | None]]"

TXN_BYTES = 32 * MIB
"""What a transaction has at most, about: the pages that it changes are held in memory."""
MAP_BYTES_MIN = 256 * MIB
SCAN_BYTES = MIB
"""A scan ends once it has this many bytes."""
EXPORT_PAIRS = 256


class StoreBuilder:
    """The file `data.mdb` in a folder, which `CheckpointStore` opens once it is finished."""

    def __init__(self, folder: Path, bytes_expected: int = 0) -> None:
        """Make the folder and the file, or go on with one that is finished; StorageFailed."""
        self._folder = folder
        with self._explained():
            folder.mkdir(mode=0o700, exist_ok=True)
            self._env = lmdb.open(
                str(folder),
                mode=0o600,
                map_size=max(MAP_BYTES_MIN, 2 * bytes_expected, 2 * _size_of(folder)),
                max_dbs=4,
                sync=False,
                metasync=False,
            )
            self._data = self._env.open_db(b"data")
            self._meta = self._env.open_db(b"meta")
        self._gate = threading.Lock()
        self._held_meta: bytes | None = None

    def append(self, pieces: Iterable[Piece]) -> None:
        """Add pairs behind all that are there, in order. StorageFull; StorageFailed."""
        for batch in _batches(pieces):
            self._put(batch, is_append=True)

    def change(self, pieces: Iterable[Piece]) -> None:
        """Put pairs, and delete the keys of those without a value. StorageFull; StorageFailed."""
        for batch in _batches(pieces):
            self._put(batch)

    def write(self, items: Iterable[tuple[bytes, bytes | None]], meta: bytes) -> None:
        """Put pairs, and have this meta; not atomic, and not durable."""
        self.change([list(items)])
        self._held_meta = meta

    def finish(self, meta: bytes) -> None:
        """Write the meta, and make everything durable."""
        self._try(lambda txn: txn.put(META_KEY, meta, db=self._meta))
        with self._explained():
            self._env.sync(True)
        self.close()
        sync_folder(self._folder)

    def close(self) -> None:
        """Close the file, as it is; idempotent."""
        self._env.close()

    # ---------------------------------------------------------------- reads

    def meta(self) -> bytes | None:
        """Return the meta that was given to `write`."""
        return self._held_meta

    def get(self, key: bytes) -> bytes | None:
        """Return the value of `key`, None if it doesn't exist."""
        with self._reading() as txn:
            record = txn.get(key)
        return None if record is None else self._unpack(key, record)

    def scan(
        self, start: bytes | None, end: bytes | None, *, limit: int, reverse: bool
    ) -> list[tuple[bytes, bytes]]:
        """Return pairs with keys in [start, end), in order: see `Store`."""
        found: list[tuple[bytes, bytes]] = []
        size = 0
        with self._reading() as txn, txn.cursor() as cursor:
            if not (seek_last(cursor, end) if reverse else seek_first(cursor, start)):
                return []
            for key, record in cursor.iterprev() if reverse else cursor.iternext():
                is_outside = (end is not None and key >= end) or (start or b"") > key
                if is_outside or len(found) == limit or size >= SCAN_BYTES:
                    break
                found.append((key, self._unpack(key, record)))
                size += len(record)
        return found

    def census(self, keys: Sequence[bytes]) -> StoreCensus:
        """Count all keys, and how many of `keys` are there: see `Store`."""
        with self._reading() as txn:
            present = sum(txn.get(key) is not None for key in keys)
            return StoreCensus(txn.id(), txn.stat(self._data)["entries"], present)

    def digest(
        self,
        *,
        begun: Callable[[], None] = lambda: None,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> StoreDigest | None:
        """Hash all pairs. Nothing is written meanwhile."""
        hasher = Hasher()
        begun()
        with self.export() as export:
            for block in export.blocks:
                hasher.add_encoded(block.raw, block.keys)
                if not is_wanted():
                    return None
        return hasher.finish()

    @contextmanager
    def export(self) -> Iterator[StoreExport]:
        """Read all pairs. Nothing is written meanwhile."""
        with self._reading() as txn, txn.cursor() as cursor:
            entries = txn.stat(self._data)["entries"]
            yield StoreExport(self._held_meta or b"", entries, self._blocks(cursor))

    def _blocks(self, cursor: lmdb.Cursor[bytes]) -> Iterator[Block]:
        steps = iter(cursor)
        while piece := list(islice(steps, EXPORT_PAIRS)):
            pairs = [(key, self._unpack(key, record)) for key, record in piece]
            yield Block(encode_pairs(pairs), len(pairs), pairs[0][0], pairs[-1][0])

    def corrupt(self, detail: str) -> Corrupt:
        """Return the error for damage in the file."""
        return Corrupt(self._folder / "data.mdb", 0, detail, hint="the disk is faulty")

    def _unpack(self, key: bytes, record: bytes) -> bytes:
        value = unpack_record(key, record)
        if value is None:
            raise self.corrupt(f"the value of key {key[:64].hex()} is damaged")
        return value

    @contextmanager
    def _reading(self) -> Iterator[lmdb.Transaction[bytes]]:
        """LMDB forbids a change of the map's size meanwhile."""
        with self._explained(), self._gate, self._env.begin(self._data) as txn:
            yield txn

    # ---------------------------------------------------------------- writes

    def _put(self, batch: Piece, *, is_append: bool = False) -> None:
        records = pack_records(batch)
        deleted = [key for key, value in batch if value is None]

        def put(txn: lmdb.Transaction[bytes]) -> None:
            for key in deleted:
                txn.delete(key)
            with txn.cursor() as cursor:
                _, added = cursor.putmulti(records, append=is_append)
            if is_append and added != len(records):
                raise StorageFailed(f"{self._folder}: keys are not in order")

        self._try(put)

    def _try(self, work: Callable[[lmdb.Transaction[bytes]], object]) -> None:
        """Do something in a transaction; again, with a larger map, if it is full."""
        with self._explained():
            while True:
                try:
                    with self._env.begin(self._data, write=True) as txn:
                        work(txn)
                    return
                except lmdb.MapFullError:
                    with self._gate:
                        self._env.set_mapsize(2 * self._env.info()["map_size"])

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (lmdb.Error, OSError) as error:
            code = error_code(error)
            if code in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull(f"{self._folder}: no space to restore a state") from error
            raise StorageFailed(f"{self._folder}: can't build a state: {error}") from error


def _batches(pieces: Iterable[Piece]) -> Iterator[list[tuple[bytes, bytes | None]]]:
    batch: list[tuple[bytes, bytes | None]] = []
    size = 0
    for piece in pieces:
        batch += piece
        # A piece is at most a block, or one large pair.
        size += len(piece[0][1] or b"") if len(piece) == 1 else BLOCK_BYTES
        if size >= TXN_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _size_of(folder: Path) -> int:
    path = folder / "data.mdb"
    return path.stat().st_size if path.exists() else 0
