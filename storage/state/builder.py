"""Builds the file of a state from ordered pairs: fast, and not durable before it is finished.

Theory of operation. A restore fills a folder that nothing else uses, and that is removed after a
crash. So transactions are not synced one by one; `finish` syncs the whole file. The pairs of a full
backup come in order and are appended, which fills LMDB's pages and compares no keys. The map grows
as needed.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import lmdb

from raftha.config.limits import MIB
from raftha.errors import StorageFailed, StorageFull
from raftha.storage.files import sync_folder
from raftha.storage.state.blocks import BLOCK_BYTES
from raftha.storage.state.lmdb_file import META_KEY, error_code
from raftha.storage.state.records import pack_record

Piece: TypeAlias = "Sequence[tuple[bytes, bytes | None]]"

TXN_BYTES = 32 * MIB
"""What a transaction has at most, about: the pages that it changes are held in memory."""
MAP_BYTES_MIN = 256 * MIB


class StoreBuilder:
    """The file `data.mdb` in a new folder, which `CheckpointStore` opens once it is finished."""

    def __init__(self, folder: Path, bytes_expected: int = 0) -> None:
        """Make the folder and the file; StorageFailed."""
        self._folder = folder
        with self._explained():
            folder.mkdir(mode=0o700)
            self._env = lmdb.open(
                str(folder),
                mode=0o600,
                map_size=max(MAP_BYTES_MIN, 2 * bytes_expected),
                max_dbs=4,
                sync=False,
                metasync=False,
            )
            self._data = self._env.open_db(b"data")
            self._meta = self._env.open_db(b"meta")

    def append(self, pieces: Iterable[Piece]) -> None:
        """Add pairs behind all that are there, in order. StorageFull; StorageFailed."""
        for batch in _batches(pieces):
            records = [(key, pack_record(key, value)) for key, value in batch if value is not None]
            self._write(records, ())

    def change(self, pieces: Iterable[Piece]) -> None:
        """Put pairs, and delete the keys of those without a value. StorageFull; StorageFailed."""
        for batch in _batches(pieces):
            self._write((), batch)

    def finish(self, meta: bytes) -> None:
        """Write the meta, and make everything durable."""
        self._write((), (), meta)
        with self._explained():
            self._env.sync(True)
        self.close()
        sync_folder(self._folder)

    def close(self) -> None:
        """Close the file, as it is; idempotent."""
        self._env.close()

    def _write(
        self, appended: Sequence[tuple[bytes, bytes]], changed: Piece, meta: bytes | None = None
    ) -> None:
        with self._explained():
            while True:
                try:
                    self._try_write(appended, changed, meta)
                except lmdb.MapFullError:
                    self._env.set_mapsize(2 * self._env.info()["map_size"])
                else:
                    return

    def _try_write(
        self, appended: Sequence[tuple[bytes, bytes]], changed: Piece, meta: bytes | None
    ) -> None:
        with self._env.begin(self._data, write=True) as txn:
            if appended:
                with txn.cursor() as cursor:
                    _, added = cursor.putmulti(appended, append=True)
                if added != len(appended):
                    raise StorageFailed(f"{self._folder}: keys are not in order")
            for key, value in changed:
                if value is None:
                    txn.delete(key)
                else:
                    txn.put(key, pack_record(key, value))
            if meta is not None:
                txn.put(META_KEY, meta, db=self._meta)

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
