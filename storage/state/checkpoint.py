"""The durable state: LMDB, written in whole checkpoints.

Theory of operation. LMDB holds the state exactly as of one log position: a checkpoint's changes and
its meta are one transaction, synced before `write` returns, so a crash leaves the old checkpoint or
the new one, never a mixture. There are two named databases: `data`, where each value has a record
with a checksum (`records.py`), and `meta` with the one key `checkpoint`.

Threads. The storage thread calls `write` and `digest`, which exclude each other. The node's thread
reads at any time, in short transactions, and any thread may `get`. LMDB forbids a change of the
map's size while a transaction of this process is open, so short reads hold the *gate*, and growth
takes it: a read waits at most for a remapping, which takes microseconds. A `copy` is one long read;
checkpoints go on beside it, and only growth waits for its end. `MapFullError` never leaves this
module: the transaction is rolled back, the map doubled, and the transaction repeated.

Errors. A full disk is `StorageFull`: nothing has changed, and the write can be tried again. Damage
is `Corrupt`, also where LMDB finds it in a write. Any other failed write is `StorageFailed` and
final.

Damage. LMDB trusts its file: a damaged page can end the process, by an assert or a read outside of
the map. So a file that may be damaged is verified before LMDB maps it. `close` leaves a mark with
the file's size and time in the folder (`CLEAN`), and opening removes it. Without a mark that fits
the file, after a crash or a change by another program, `lmdb.verify` reads the whole file first: 2
seconds for a million keys. Damage to a cleanly closed file that keeps size and time is found by the
checksums, or by LMDB.

The files are made in a scratch folder and renamed, so a crash can't leave incomplete ones.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

import lmdb
from google_crc32c import value as crc32c
from lmdb.verify import VerifyError, verify

from raftha.config import KEY_BYTES_MAX, MIB
from raftha.errors import Corrupt, StorageError, StorageFailed, StorageFull
from raftha.storage.state.records import SOUND, pack_record, unpack_record

MAP_BYTES_MIN = 256 * MIB
"""The map's initial size for a small file."""
SCAN_CHUNK_BYTES = MIB
"""A chunk of a scan ends once it has this many bytes, so that the gate is never held for long."""
COPY_BYTES = 128 * 1024
"""A copy is handed over in pieces of this size."""
FULL_BYTES = MIB
"""A disk with less free space than this is full."""
NEARLY_FULL_BYTES = 1024 * MIB
"""Segments and the reserve, which are made and removed meanwhile, have fewer bytes than this."""

SMALL_BYTES = 4096
"""Records up to this size are checked faster in one piece with their key."""

DAMAGED_HINT = "restart the node: it sets the state aside, and gets it from the log or the others"

CLEAN = "CLEAN"
"""The mark of a clean end: a file with size and time of the data file."""

_META_KEY = b"checkpoint"
_LENGTH = struct.Struct("<I")
_DIGEST_PART_BYTES = 64 * 1024
_DAMAGE = (
    lmdb.BadValsizeError,
    lmdb.CorruptedError,
    lmdb.CursorFullError,
    lmdb.IncompatibleError,
    lmdb.InvalidError,
    lmdb.KeyExistsError,
    lmdb.NotFoundError,
    lmdb.PageFullError,
    lmdb.PageNotFoundError,
    lmdb.VersionMismatchError,
)
"""What LMDB raises in a read or write of a damaged file; valid calls on a sound one never do."""
_UNCLEAR = (
    lmdb.BadDbiError,
    lmdb.BadTxnError,
    lmdb.InvalidParameterError,
    lmdb.PanicError,
    lmdb.TxnFullError,
)
"""What LMDB may raise of a damaged file, but also for other reasons."""


class StoreDigest(NamedTuple):
    """BLAKE2b-256 over all pairs in key order, and the number of pairs."""

    hex: str
    keys: int


class StoreCensus(NamedTuple):
    """Version of the store, its number of keys, and how many of the given keys it has."""

    version: int
    entries: int
    present: int


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

    def digest(self) -> StoreDigest:
        """Hash the whole contents as of the last checkpoint. For the storage thread."""
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

    def finish(self) -> StoreDigest:
        """Return the digest of all pairs."""
        self._flush()
        return StoreDigest(self._hash.hexdigest(), self._keys)

    def _flush(self) -> None:
        # Large pieces, because hashing one releases the GIL.
        self._hash.update(b"".join(self._parts))
        self._parts.clear()
        self._size = 0


class CheckpointStore:
    """The LMDB store in `folder`, made if missing; its map has at least `map_bytes_min`."""

    def __init__(
        self,
        folder: str | Path,
        *,
        map_bytes_min: int = MAP_BYTES_MIN,
        is_verified: bool = False,
    ) -> None:
        """Open the store, after verifying its file unless it was closed cleanly or `is_verified`.

        Corrupt if the file is damaged.
        """
        self._folder = Path(folder)
        self._path = self._folder / "data.mdb"
        self._gate = threading.Lock()
        self._writer = threading.Lock()
        self._copier = threading.Lock()
        self._is_growing = False
        self._failure = ""
        self._is_damaged = self._is_closed = False
        try:
            if not self._path.exists():
                self._create()
            elif not self._take_mark() and not is_verified:
                self._verify()
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
        """Return the value of `key`, None if it doesn't exist. Any thread."""
        try:
            with self._gate:
                txn = self._env.begin(self._data)
                try:
                    record = txn.get(key)
                finally:
                    txn.abort()
        except lmdb.Error as error:
            raise self._unreadable(error) from error
        if record is None:
            return None
        if len(record) < SMALL_BYTES and crc32c(key + record) == SOUND and not record[0]:
            return record[1:-4]  # As in `_take`.
        return self._unpack(key, record)

    def scan(
        self, start: bytes | None, end: bytes | None, *, limit: int, reverse: bool
    ) -> list[tuple[bytes, bytes]]:
        """Return pairs with keys in [start, end), in order: see `Store`."""
        with self._reading(), self._gate, self._env.begin(self._data) as txn:
            cursor = txn.cursor()
            if not (_seek_last(cursor, end) if reverse else _seek_first(cursor, start)):
                return []
            steps = cursor.iterprev() if reverse else cursor.iternext()
            return self._take(steps, start, end, limit)

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
                try:
                    self._write_or_grow(items, meta)
                except lmdb.Error as error:
                    is_unclear = FULL_BYTES <= self._free_bytes() < NEARLY_FULL_BYTES
                    if _code(error) != errno.EIO or not is_unclear:
                        raise
                    # Perhaps a short write on a disk that was full for a moment: other work of
                    # the node has freed space since. A disk that has failed fails again.
                    self._write_or_grow(items, meta)

    def digest(self) -> StoreDigest:
        """Hash the whole contents as of the last checkpoint: see `Store`."""
        # Too long to hold the gate. It excludes writes instead, and so growth.
        hasher = Hasher()
        previous = b""
        with self._writer, self._reading(), self._env.begin(self._data) as txn:
            for key, record in txn.cursor():
                if key <= previous:
                    raise self.corrupt(f"key {key[:64].hex()} is not at its place")
                previous = key
                hasher.add(key, self._unpack(key, record))
            entries = txn.stat(self._data)["entries"]
        digest = hasher.finish()
        if digest.keys != entries:
            raise self.corrupt(f"it should have {entries} keys and has {digest.keys}")
        return digest

    def copy(self, take: Callable[[bytes], None]) -> None:
        """Pass a snapshot of the last checkpoint, an LMDB file, to `take`, piece by piece.

        One at a time, on any thread, as fast as `take` returns. The values are not checked.
        StorageFailed if the copy fails, or can't be finished because the map must grow; Corrupt if
        the file is damaged. An exception of `take` ends the copy too.
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
                            raise StorageFailed("the copy is unfinished: the map must grow")
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
        except Corrupt as error:
            failures.append(error)
        except (OSError, StorageError) as error:
            failures.append(StorageFailed(f"{self._path}: can't be copied: {error}"))
        finally:
            os.close(writing)

    def corrupt(self, detail: str) -> Corrupt:
        """Return the error for damage in this store's file; the next opening will verify it."""
        self._is_damaged = True
        return Corrupt(self._path, 0, detail, hint=DAMAGED_HINT)

    def close(self) -> None:
        """Close the files, after any write, digest and copy; mark a sound file as clean."""
        with self._writer, self._copier, self._gate:
            if self._is_closed:
                return
            self._is_closed = True
            self._env.close()
            if not self._failure and not self._is_damaged:
                # Without the mark the next opening takes longer; nothing else is lost.
                with contextlib.suppress(OSError):
                    self._leave_mark()

    def _write_or_grow(self, items: Iterable[tuple[bytes, bytes | None]], meta: bytes) -> None:
        while not self._try_write(items, meta):
            self._grow()

    def _try_write(self, items: Iterable[tuple[bytes, bytes | None]], meta: bytes) -> bool:
        try:
            with self._env.begin(self._data, write=True) as txn:
                for key, value in items:
                    if value is None:
                        txn.delete(key)
                    else:
                        txn.put(key, pack_record(key, value))
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

    def _take_mark(self) -> bool:
        """Remove the mark of a clean end, durably; True if there was one and it fits the file."""
        path = self._folder / CLEAN
        if not path.exists():
            return False
        mark = path.read_bytes()
        path.unlink()
        _sync_folder(self._folder)
        return mark == _mark(self._path)

    def _leave_mark(self) -> None:
        (self._folder / CLEAN).touch(0o600)
        with (self._folder / CLEAN).open("wb") as file:
            file.write(_mark(self._path))
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(self._folder)

    def _verify(self) -> None:
        damage = find_damage(self._path)
        if damage:
            raise self.corrupt(damage)

    def _create(self) -> None:
        if self._folder.exists() and any(self._folder.iterdir()):
            raise self.corrupt("the file is missing, though its folder isn't empty")
        scratch = self._folder.with_name(self._folder.name + ".new")
        scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
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
                mode=0o600,
                map_size=map_bytes,
                subdir=True,
                max_dbs=4,
                max_spare_txns=2,
                sync=True,
                metasync=True,
                writemap=False,
            )
        except lmdb.Error as error:
            # A damaged file may look like a wrong setting. The verifier tells the two apart.
            damage = find_damage(self._path)
            if damage:
                raise self.corrupt(f"{error}: {damage}") from error
            raise StorageFailed(f"{self._path}: can't open: {error}") from error

    def _check_length(self, size: int) -> None:
        """Raise Corrupt if the file is cut short: touching a page behind its end ends the process.

        Free pages at the end may never have been written, so a short file is only suspect. The
        verifier, which reads the file without the map, decides.
        """
        page_bytes = self._env.stat()["psize"]
        if size >= (self._env.info()["last_pgno"] + 1) * page_bytes:
            return
        damage = find_damage(self._path)
        if damage:
            raise self.corrupt(f"the file is cut short: {damage}")

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except lmdb.Error as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: lmdb.Error) -> StorageError:
        return self._fault(error, "can't read")

    def _unpack(self, key: bytes, record: bytes) -> bytes:
        value = unpack_record(key, record)
        if value is None:
            raise self.corrupt(f"the value of key {key[:64].hex()} is damaged")
        return value

    def _fault(self, error: lmdb.Error | OSError, what: str) -> StorageError:
        """Return Corrupt if the file is damaged, else StorageFailed."""
        if isinstance(error, _DAMAGE):
            return self.corrupt(str(error))
        if isinstance(error, _UNCLEAR):
            # Damage may look like a wrong argument or a limit. The verifier tells the two apart.
            with contextlib.suppress(OSError):
                damage = find_damage(self._path)
                if damage:
                    return self.corrupt(f"{error}: {damage}")
        return StorageFailed(f"{self._path}: {what}: {error}")

    def _take(
        self,
        steps: Iterator[tuple[bytes, bytes]],
        start: bytes | None,
        end: bytes | None,
        limit: int,
    ) -> list[tuple[bytes, bytes]]:
        pairs: list[tuple[bytes, bytes]] = []
        size = 0
        for key, record in islice(steps, limit):
            if (end is not None and key >= end) or (start is not None and key < start):
                break
            # `unpack_record` without its calls. To join small bytes is faster than to extend a CRC.
            if crc32c(key + record) == SOUND and not record[0]:
                value = record[1:-4]
            else:
                value = self._unpack(key, record)
            pairs.append((key, value))
            size += len(key) + len(value)
            if size >= SCAN_CHUNK_BYTES:
                break
        return pairs

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (lmdb.Error, OSError) as error:
            code = _code(error)
            is_short = code == errno.EIO and self._free_bytes() < FULL_BYTES
            if code in (errno.ENOSPC, errno.EDQUOT) or is_short:
                raise StorageFull(f"{self._path}: no space for a checkpoint") from error
            fault = self._fault(error, "can't write")
            self._failure = str(fault)
            raise fault from error

    def _free_bytes(self) -> int:
        # LMDB reports a short write as EIO, and its usual cause is a full disk. A repetition is
        # safe in either case: the next transaction writes all its pages again.
        disk = os.statvfs(self._folder)
        return disk.f_bavail * disk.f_frsize


def _code(error: lmdb.Error | OSError) -> int:
    """The error number: negative if it is LMDB's own, 0 if there is none."""
    if isinstance(error, OSError):
        return error.errno or 0
    return getattr(error, "code", 0)


def find_damage(path: Path) -> str:
    """Return the first damage that the verifier finds, "" if none. Reads the whole file."""
    try:
        found: list[str] = verify(str(path))  # type: ignore[no-untyped-call]
    except VerifyError as error:
        return str(error)
    except (ValueError, IndexError, KeyError, OverflowError, struct.error) as error:
        return f"the verifier can't read it: {error!r}"
    return found[0] if found else ""


def _seek_first(cursor: lmdb.Cursor[bytes], start: bytes | None) -> bool:
    if not start:
        return cursor.first()
    # LMDB refuses keys over its limit. The only key at or after the cut bound but before the whole
    # bound is the cut bound itself.
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


def _mark(path: Path) -> bytes:
    """Return the content of the mark of a clean end, for a file as it is now."""
    found = path.stat()
    return b"%d %d\n" % (found.st_size, found.st_mtime_ns)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
