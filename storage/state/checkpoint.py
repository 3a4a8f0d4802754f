"""The durable state: LMDB, written whole checkpoints at a time.

Theory of operation. LMDB holds the state exactly as of one log position: a checkpoint's changes and
its meta are one transaction, synced before `write` returns, so a crash finds the old checkpoint or
the new one, never a mixture. Two named databases: `data`, and `meta` with the one key `checkpoint`.

Threads. The storage thread calls `write` and `digest`, which keep each other out; the node's thread
reads at any time, in short transactions, and any other may `get`. LMDB forbids changing the map's
size while a transaction of this process is open, so short reads hold the *gate* and growth takes
it: a read waits for a remapping at most, which takes microseconds. A `copy` is one long read;
checkpoints are written beside it, and only growth has to wait for its end. `MapFullError` stays in
here: the transaction is taken back, the map doubled, and the transaction made again.

Errors. A full disk is `StorageFull`: nothing was changed, try again when there is space. Any other
failure to write is `StorageFailed` and final. Damage is `Corrupt`. A damaged file can make reads
through the map kill the process, so a file that is too short is found out before LMDB sees it. The
files are made in a scratch folder and renamed, so that a crash can't leave half-made ones.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import lmdb
from lmdb.verify import VerifyError, verify

from raftha.config import KEY_BYTES_MAX, MIB
from raftha.errors import Corrupt, StorageError, StorageFailed, StorageFull

MAP_BYTES_MIN = 256 * MIB
SCAN_CHUNK_BYTES = MIB
COPY_BYTES = 128 * 1024
"""A chunk of a scan ends once it holds this much; so the gate is never held for long."""

FULL_BYTES = MIB
"""A disk with less free space than this is full."""

_META_KEY = b"checkpoint"
_LENGTH = struct.Struct("<I")
_DIGEST_PART_BYTES = 64 * 1024


class StoreDigest(NamedTuple):
    """BLAKE2b-256 over all pairs in key order, and how many there are."""

    hex: str
    keys: int


class StoreCensus(NamedTuple):
    """Version of the store, its number of keys, and how many of the keys asked for it has."""

    version: int
    entries: int
    present: int


class Store(Protocol):
    """What the state asks of what is durable; the simulator has one in memory."""

    def get(self, key: bytes) -> bytes | None:
        """Return the value of `key`, None if it isn't there."""
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
        """Write a checkpoint: `items` in key order, None for deleted keys, and `meta`; all or
        nothing.

        `items` may be gone through more than once. Durable on return. For the storage thread.
        """
        ...

    def digest(self) -> StoreDigest:
        """Hash the whole contents as of the last checkpoint. For the storage thread."""
        ...

    def corrupt(self, detail: str) -> Corrupt:
        """Make the error that says what is wrong with this store's files."""
        ...

    def close(self) -> None:
        """Let go of the files."""
        ...


class Hasher:
    """The digest of ordered pairs: keys and values, each behind its length as 4 bytes."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=32)
        self._parts: list[bytes] = []
        self._size = 0
        self._keys = 0

    def add(self, key: bytes, value: bytes) -> None:
        """Take in the next pair."""
        self._parts += (_LENGTH.pack(len(key)), key, _LENGTH.pack(len(value)), value)
        self._size += len(key) + len(value)
        self._keys += 1
        if self._size >= _DIGEST_PART_BYTES:
            self._flush()

    def finish(self) -> StoreDigest:
        """Return the digest of all pairs."""
        self._flush()
        return StoreDigest(self._hash.hexdigest(), self._keys)

    def _flush(self) -> None:
        # Large pieces, because hashing one gives other threads the GIL.
        self._hash.update(b"".join(self._parts))
        self._parts.clear()
        self._size = 0


class CheckpointStore:
    """The LMDB store in `folder`, made if missing; its map has at least `map_bytes_min`."""

    def __init__(self, folder: str | Path, *, map_bytes_min: int = MAP_BYTES_MIN) -> None:
        self._folder = Path(folder)
        self._path = self._folder / "data.mdb"
        self._gate = threading.Lock()
        self._writer = threading.Lock()
        self._copier = threading.Lock()
        self._is_growing = False
        self._failure = ""
        try:
            if not self._path.exists():
                self._create()
            size = self._path.stat().st_size
            self._env = self._open(self._folder, max(map_bytes_min, 2 * size))
        except OSError as error:
            raise StorageFailed(f"{self._folder}: {error.strerror}") from error
        try:
            self._check_length(size)
            with self._reading():
                self._data = self._env.open_db(b"data", create=False)
                self._meta = self._env.open_db(b"meta", create=False)
        except StorageError:
            self._env.close()
            raise

    @property
    def map_bytes(self) -> int:
        """The map's size now."""
        return self._env.info()["map_size"]

    def get(self, key: bytes) -> bytes | None:
        """Return the value of `key`, None if it isn't there; from any thread."""
        try:
            with self._gate, self._env.begin(self._data) as txn:
                return txn.get(key)
        except lmdb.Error as error:
            raise self._unreadable(error) from error

    def scan(
        self, start: bytes | None, end: bytes | None, *, limit: int, reverse: bool
    ) -> list[tuple[bytes, bytes]]:
        """Return pairs with keys in [start, end), in order: see `Store`."""
        with self._reading(), self._gate, self._env.begin(self._data) as txn:
            cursor = txn.cursor()
            if not (_seek_last(cursor, end) if reverse else _seek_first(cursor, start)):
                return []
            steps = cursor.iterprev() if reverse else cursor.iternext()
            return _take(steps, start, end, limit)

    def census(self, keys: Sequence[bytes]) -> StoreCensus:
        """Count all keys, and how many of `keys` are there: see `Store`."""
        with self._reading(), self._gate, self._env.begin(self._data) as txn:
            present = sum(txn.get(key) is not None for key in keys)
            return StoreCensus(txn.id(), txn.stat(self._data)["entries"], present)

    def meta(self) -> bytes | None:
        """Return the meta of the last checkpoint, None if there was none yet."""
        with self._reading(), self._gate, self._env.begin(self._meta) as txn:
            return txn.get(_META_KEY)

    def write(self, items: Iterable[tuple[bytes, bytes | None]], meta: bytes) -> None:
        """Write a checkpoint, durably, all or nothing: see `Store`.

        StorageFull: nothing was written, the same can be tried again. StorageFailed is final.
        """
        assert not isinstance(items, Iterator), "items may be gone through more than once"
        with self._writer:
            if self._failure:
                raise StorageFailed(self._failure)
            with self._writing():
                while not self._try_write(items, meta):
                    self._grow()

    def digest(self) -> StoreDigest:
        """Hash the whole contents as of the last checkpoint: see `Store`."""
        # A transaction this long can't hold the gate. It holds off writes instead, and so growth.
        hasher = Hasher()
        with self._writer, self._reading(), self._env.begin(self._data) as txn:
            for key, value in txn.cursor():
                hasher.add(key, value)
        return hasher.finish()

    def copy(self, take: Callable[[bytes], None]) -> None:
        """Hand a snapshot of the last checkpoint, an LMDB file, to `take`, piece by piece.

        One at a time, on any thread. It goes on as fast as `take` returns. StorageError if it isn't
        possible, or can't be finished since the map has to grow; what `take` raises ends it too.
        The store itself is none the worse for it.
        """
        with self._copier:
            reading, writing = os.pipe()
            failures: list[Exception] = []
            copying = threading.Thread(target=self._copy_into, args=(writing, failures))
            copying.start()
            try:
                with os.fdopen(reading, "rb", buffering=0) as pipe:
                    while piece := pipe.read(COPY_BYTES):
                        if self._is_growing:
                            raise StorageFailed("the map has to grow: the copy ends unfinished")
                        take(piece)
            finally:
                # If the pipe was closed before its end, the next write to it ends the copy.
                copying.join()
            if failures:
                raise failures[0]

    def _copy_into(self, writing: int, failures: list[Exception]) -> None:
        try:
            with self._reading():
                self._env.copyfd(writing, compact=True)
        except (OSError, StorageError) as error:
            failures.append(StorageFailed(f"{self._path}: can't be copied: {error}"))
        finally:
            os.close(writing)

    def corrupt(self, detail: str) -> Corrupt:
        """Make the error that says what is wrong with this store's files."""
        return Corrupt(self._path, 0, detail)

    def close(self) -> None:
        """Let go of the files, once no write, no digest and no copy is under way."""
        with self._writer, self._copier, self._gate:
            self._env.close()

    def _try_write(self, items: Iterable[tuple[bytes, bytes | None]], meta: bytes) -> bool:
        try:
            with self._env.begin(self._data, write=True) as txn:
                for key, value in items:
                    if value is None:
                        txn.delete(key)
                    else:
                        txn.put(key, value)
                txn.put(_META_KEY, meta, db=self._meta)
        except lmdb.MapFullError:
            return False
        return True

    def _grow(self) -> None:
        self._is_growing = True
        map_bytes = self.map_bytes
        try:
            with self._copier, self._gate:
                self._env.set_mapsize(2 * map_bytes)
            assert self.map_bytes > map_bytes, "the map grows"
        finally:
            self._is_growing = False

    def _create(self) -> None:
        if self._folder.exists() and any(self._folder.iterdir()):
            raise self.corrupt("the file is missing, though its folder isn't empty")
        scratch = self._folder.with_name(self._folder.name + ".new")
        scratch.mkdir(parents=True, exist_ok=True)
        for leftover in scratch.iterdir():
            leftover.unlink()
        env = self._open(scratch, MIB)
        env.open_db(b"data")
        env.open_db(b"meta")
        env.sync(True)
        env.close()
        _sync_folder(scratch)
        scratch.rename(self._folder)
        _sync_folder(self._folder.parent)

    def _open(self, folder: Path, map_bytes: int) -> lmdb.Environment:
        try:
            return lmdb.open(
                str(folder),
                map_size=map_bytes,
                subdir=True,
                max_dbs=4,
                max_spare_txns=2,
                sync=True,
                metasync=True,
                writemap=False,
            )
        except (lmdb.InvalidError, lmdb.VersionMismatchError, lmdb.CorruptedError) as error:
            raise self.corrupt(str(error)) from error
        except lmdb.Error as error:
            # A damaged file may look like a wrong setting. The verifier tells the two apart.
            damage = _find_damage(self._path)
            if damage:
                raise self.corrupt(f"{error}: {damage}") from error
            raise StorageFailed(f"{self._path}: {error}") from error

    def _check_length(self, size: int) -> None:
        """Raise Corrupt if the file is cut short: touching a page behind its end kills the process.

        Pages at the end that are free may never have been written, so a short file is only suspect,
        and the verifier, which reads the file without the map, has the last word.
        """
        page_bytes = self._env.stat()["psize"]
        if size >= (self._env.info()["last_pgno"] + 1) * page_bytes:
            return
        damage = _find_damage(self._path)
        if damage:
            raise self.corrupt(f"the file is cut short: {damage}")

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except lmdb.Error as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: lmdb.Error) -> StorageError:
        if isinstance(error, lmdb.CorruptedError | lmdb.PageNotFoundError | lmdb.NotFoundError):
            return self.corrupt(str(error))
        return StorageFailed(f"{self._path}: can't read: {error}")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (lmdb.Error, OSError) as error:
            code = error.code if isinstance(error, lmdb.Error) else error.errno
            if code in (errno.ENOSPC, errno.EDQUOT) or (code == errno.EIO and self._is_full()):
                raise StorageFull(f"{self._path}: no space for a checkpoint") from error
            self._failure = f"{self._path}: can't write: {error}"
            raise StorageFailed(self._failure) from error

    def _is_full(self) -> bool:
        # LMDB says EIO of a write that came out short, and mostly that means a full disk. To try
        # again is safe in either case: the next transaction writes all its pages anew.
        disk = os.statvfs(self._folder)
        return disk.f_bavail * disk.f_frsize < FULL_BYTES


def _find_damage(path: Path) -> str:
    """What the verifier finds first, without the map; "" if nothing. Takes as long as reading."""
    try:
        found: list[str] = verify(str(path))  # type: ignore[no-untyped-call]
    except VerifyError as error:
        return str(error)
    return found[0] if found else ""


def _seek_first(cursor: lmdb.Cursor[bytes], start: bytes | None) -> bool:
    if not start:
        return cursor.first()
    # LMDB refuses keys over its limit. The only key at or after a cut bound that isn't at or after
    # the whole bound is the cut bound itself.
    if not cursor.set_range(start[:KEY_BYTES_MAX]):
        return False
    return cursor.key() >= start or cursor.next()


def _seek_last(cursor: lmdb.Cursor[bytes], end: bytes | None) -> bool:
    if end is None:
        return cursor.last()
    if not end:
        return False
    if not cursor.set_range(end[:KEY_BYTES_MAX]):
        return cursor.last()
    return cursor.key() < end or cursor.prev()


def _take(
    steps: Iterator[tuple[bytes, bytes]], start: bytes | None, end: bytes | None, limit: int
) -> list[tuple[bytes, bytes]]:
    pairs: list[tuple[bytes, bytes]] = []
    size = 0
    for key, value in steps:
        if (end is not None and key >= end) or (start is not None and key < start):
            break
        pairs.append((key, value))
        size += len(key) + len(value)
        if len(pairs) == limit or size >= SCAN_CHUNK_BYTES:
            break
    return pairs


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
