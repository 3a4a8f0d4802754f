"""The durable state: LMDB, written in whole checkpoints.

Theory of operation. LMDB holds the state exactly as of one log position: a checkpoint's changes and
its meta are one transaction, synced before `write` returns, so a crash leaves the old checkpoint or
the new one, never a mixture. There are two named databases: `data`, where each value has a record
with a checksum (`records.py`), and `meta` with the one key `checkpoint`.

Threads. The storage thread calls `write` and `digest`, which exclude each other. The node's thread
reads at any time, in short transactions, and any thread may `get`. LMDB forbids a change of the
map's size while a transaction of this process is open, so short reads hold the *gate*, and growth
takes it: a read waits at most for a remapping, which takes microseconds. A `copy`, a `digest` and
an `export` are long reads; checkpoints go on beside them, and growth ends them. An export, the
longest, has the map grow ahead. `MapFullError` never leaves this module: the transaction is rolled
back, the map doubled, and the transaction repeated.

Errors. A full disk is `StorageFull`: nothing has changed, and the write can be tried again. Damage
is `Corrupt`, also where LMDB finds it in a write. Any other failed write is `StorageFailed` and
final.

Damage. LMDB trusts its file: a damaged page can end the process, by an assert or a read outside of
the map. So a file that may be damaged is verified before LMDB maps it. `close` leaves a mark with
the file's size and time in the folder, and opening removes it. Without a mark that fits
the file, after a crash or a change by another program, `lmdb.verify` reads the whole file first: 2
seconds for a million keys. Damage to a cleanly closed file that keeps size and time is found by the
checksums, or by LMDB.

Size. LMDB uses free pages again, but never those that a read which is under way may need, and its
file never shrinks. So a long read stops pausing once the file has grown much since it began
(`is_copy_costly`). A file that is mostly free pages all the same is replaced by a compacted copy.

The files are made in a scratch folder and renamed, so a crash can't leave incomplete ones.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from operator import lt
from pathlib import Path

import lmdb
from google_crc32c import value as crc32c

from raftha.config.limits import KIB, MIB
from raftha.errors import Corrupt, StorageError, StorageFailed, StorageFull
from raftha.storage.files import sync_folder, unusable
from raftha.storage.state.blocks import Block, encode_pairs
from raftha.storage.state.lmdb_file import (
    COPY_BYTES,
    DAMAGE,
    META_KEY,
    SPARE_BYTES,
    UNCLEAR,
    StoreSizes,
    error_code,
    find_damage,
    leave_mark,
    seek_first,
    seek_last,
    take_mark,
    used_bytes,
    write_copy,
    written_bytes,
)
from raftha.storage.state.records import are_plain, encode_plain, pack_record, unpack_record
from raftha.storage.state.store import (
    Hasher,
    ReadInterrupted,
    StoreCensus,
    StoreDigest,
    StoreExport,
)

MAP_BYTES_MIN = 256 * MIB
"""The map's initial size for a small file."""
SCAN_CHUNK_BYTES = MIB
"""A chunk of a scan ends once it has this many bytes, so that the gate is never held for long."""
SCAN_PAIRS = 32
"""A scan reads at most so many pairs at a time, and looks at their size then."""
GROWTH_FACTOR = 0.5
"""A long read that has made the file grow by this part, and by more than `SPARE_BYTES`, hurries."""
COMPACT_EVERY_S = 600.0
"""A file is compacted at most once in this time."""
FULL_BYTES = MIB
"""A disk with less free space than this is full."""
NEARLY_FULL_BYTES = 1024 * MIB
"""Segments and the reserve, which are made and removed meanwhile, have fewer bytes than this."""

DIGEST_PAIRS, DIGEST_PAUSE_S = 256, 0.0002
"""A digest is made in pieces, between which other threads get the GIL."""

EXPORT_PAIRS, EXPORT_BYTES = 128, 64 * KIB
"""An export reads so many pairs at a time, and fewer if they are large."""
GROWTH_PAUSE_S = 0.1
"""An export that needs a larger map asks so often whether it is the only long read."""

SMALL_BYTES = 4096
"""Records up to this size are checked faster in one piece with their key."""

DAMAGED_HINT = "restart the node: it sets the state aside, and gets it from the log or the others"


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
        self._digester = threading.Lock()
        self._exporter = threading.Lock()
        self._is_growing = self._is_closing = False
        self._failure = ""
        self._is_damaged = self._is_closed = False
        self._versions_before = 0
        """Versions of the files before the last compaction, which begins to count again."""
        self._compact_at = 0.0
        self._read_from_bytes = 0
        try:
            if not self._path.exists():
                self._create()
            elif not take_mark(self._path) and not is_verified:
                self._verify()
            size = self._path.stat().st_size
            self._map_bytes_min = map_bytes_min
            shutil.rmtree(self._compacting, ignore_errors=True)
            self._env = self._open(self._folder, max(map_bytes_min, 2 * size))
        except OSError as error:
            raise unusable(error, self._folder) from error
        try:
            self._check_length(size)
            self._open_databases()
        except StorageError:
            self._env.close()
            raise

    def _open_databases(self) -> None:
        with self._reading():
            self._data = self._env.open_db(b"data", create=False)
            self._meta = self._env.open_db(b"meta", create=False)

    @property
    def _compacting(self) -> Path:
        """Where a compacted file is made."""
        return self._folder.with_name(self._folder.name + ".compact")

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
        if len(record) < SMALL_BYTES and not crc32c(key + record):
            return record[1:-4]  # As in `_unpack_all`.
        return self._unpack(key, record)

    def scan(
        self, start: bytes | None, end: bytes | None, *, limit: int, reverse: bool
    ) -> list[tuple[bytes, bytes]]:
        """Return pairs with keys in [start, end), in order: see `Store`."""
        with self._reading(), self._gate, self._env.begin(self._data) as txn:
            cursor = txn.cursor()
            if not (seek_last(cursor, end) if reverse else seek_first(cursor, start)):
                return []
            steps = cursor.iterprev() if reverse else cursor.iternext()
            return self._take(steps, start, end, limit)

    def census(self, keys: Sequence[bytes]) -> StoreCensus:
        """Count all keys, and how many of `keys` are there: see `Store`."""
        with self._reading(), self._gate, self._env.begin(self._data) as txn:
            present = sum(txn.get(key) is not None for key in keys)
            version = self._versions_before + txn.id()
            return StoreCensus(version, txn.stat(self._data)["entries"], present)

    def sizes(self) -> StoreSizes:
        """Return how large the file is, and how much of it is in use."""
        with self._reading(), self._gate, self._env.begin() as txn:
            used = used_bytes(self._env, txn, self._data, self._meta)
            return StoreSizes(self._path.stat().st_size, used)

    def meta(self) -> bytes | None:
        """Return the meta of the last checkpoint, None if there was none yet."""
        with self._reading(), self._gate, self._env.begin(self._meta) as txn:
            return txn.get(META_KEY)

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
                    if error_code(error) != errno.EIO or not is_unclear:
                        raise
                    # Perhaps a short write on a disk that was full for a moment: other work of
                    # the node has freed space since. A disk that has failed fails again.
                    self._write_or_grow(items, meta)

    def digest(
        self,
        *,
        begun: Callable[[], None] = lambda: None,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> StoreDigest | None:
        """Hash the whole contents as of the last checkpoint: see `Store`."""
        hasher = Hasher()
        previous = b""
        with self._digester, self._reading(), self._env.begin(self._data) as txn:
            began_bytes = written_bytes(self._env)
            begun()
            steps = iter(txn.cursor())
            while piece := list(islice(steps, DIGEST_PAIRS)):
                for key, value in self._unpack_all(piece, b"".join(chain.from_iterable(piece))):
                    if key <= previous:
                        raise self.corrupt(f"key {key[:64].hex()} is not at its place")
                    previous = key
                    hasher.add(key, value)
                if self._is_growing or not is_wanted():
                    return None
                if not self._is_costly(began_bytes):
                    time.sleep(DIGEST_PAUSE_S)
            entries = txn.stat(self._data)["entries"]
        digest = hasher.finish()
        if digest.keys != entries:
            raise self.corrupt(f"it should have {entries} keys and has {digest.keys}")
        return digest

    @contextmanager
    def export(self) -> Iterator[StoreExport]:
        """Read the whole contents as of the last checkpoint, while checkpoints go on: see `Store`.

        One at a time, on any thread.
        """
        self._grow_ahead()
        with self._exporter, self._reading(), self._env.begin(self._data) as txn:
            entries = txn.stat(self._data)["entries"]
            meta = txn.get(META_KEY, db=self._meta)
            yield StoreExport(meta or b"", entries, self._blocks(txn, entries))

    def _blocks(self, txn: lmdb.Transaction[bytes], entries: int) -> Iterator[Block]:
        steps, last, left, wanted = iter(txn.cursor()), b"", entries, 1
        while piece := list(islice(steps, wanted)):
            if self._is_growing or self._is_closing:
                raise ReadInterrupted("the state's file had to grow, or is being closed")
            joined = b"".join(chain.from_iterable(piece))
            wanted = max(1, min(EXPORT_PAIRS, EXPORT_BYTES * len(piece) // len(joined)))
            keys = [last, *[key for key, _ in piece]]
            if not all(map(lt, keys, islice(keys, 1, None))):
                raise self.corrupt(f"a key after {last[:64].hex()} is not at its place")
            last, left = keys[-1], left - len(piece)
            if len(joined) <= EXPORT_BYTES and are_plain(joined):
                yield Block(encode_plain(piece), len(piece), keys[1], last)
            else:
                for pair in self._unpack_all(piece, joined):
                    yield Block(encode_pairs((pair,)), 1, pair[0], pair[0])
        if left:
            raise self.corrupt(f"it should have {entries} keys and has {entries - left}")

    def _grow_ahead(self) -> None:
        """Double the map if it is over half full, once no other long read is under way."""
        while 2 * written_bytes(self._env) > self.map_bytes and not self._is_closing:
            with self._writer, contextlib.ExitStack() as held:
                if self._exclude_long_reads(held):
                    with self._gate:
                        self._env.set_mapsize(2 * self.map_bytes)
                    return
            time.sleep(GROWTH_PAUSE_S)

    def _exclude_long_reads(self, held: contextlib.ExitStack) -> bool:
        """Let none begin as long as `held` is open; False if one is under way."""
        for lock in (self._copier, self._digester, self._exporter):
            if not lock.acquire(blocking=False):
                return False
            held.callback(lock.release)
        return True

    def copy(self, take: Callable[[bytes], None]) -> None:
        """Pass a snapshot of the last checkpoint, an LMDB file, to `take`, piece by piece.

        One at a time, on any thread, as fast as `take` returns. The values are not checked.
        StorageFailed if the copy fails, or can't be finished because the map must grow; Corrupt if
        the file is damaged. An exception of `take` ends the copy too.
        """
        with self._copier:
            self._copy(take)

    @property
    def is_copy_costly(self) -> bool:
        """Whether the copy under way has made the file grow so much that it should be quick."""
        return self._is_costly(self._read_from_bytes)

    def _is_costly(self, began_bytes: int) -> bool:
        # Pages that are freed during a long read can't be used again until it ends.
        grown = written_bytes(self._env) - began_bytes
        return grown > max(GROWTH_FACTOR * began_bytes, SPARE_BYTES)

    def _copy(self, take: Callable[[bytes], None]) -> None:
        self._read_from_bytes = written_bytes(self._env)
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

    def compact_if_wasteful(self, now: float, is_wanted: Callable[[], bool]) -> bool:
        """Replace the file by one without its free pages, if that is worth it; True if done.

        For the storage thread. Checkpoints wait meanwhile, reads don't. A failure costs nothing but
        the attempt, unless the new file can't be opened: StorageFailed.
        """
        sizes = self.sizes()
        if now < self._compact_at or not sizes.is_wasteful or not self._has_room(sizes.used):
            return False
        self._compact_at = now + COMPACT_EVERY_S
        with self._writer, contextlib.ExitStack() as held:
            if not self._exclude_long_reads(held) or self._failure or self._is_closed:
                return False  # A long read under way would keep short ones waiting.
            try:
                write_copy(self._compacting, self._copy, is_wanted)
                self._check_copy()
            except (OSError, lmdb.Error, StorageFailed):
                shutil.rmtree(self._compacting, ignore_errors=True)
                return False
            with self._gate:
                self._swap()
            return True

    def _has_room(self, size: int) -> bool:
        return shutil.disk_usage(self._folder).free > 2 * size + SPARE_BYTES

    def _check_copy(self) -> None:
        """StorageFailed unless the compacted file has what this one has."""
        with self._open(self._compacting, self.map_bytes) as env:
            data, meta = env.open_db(b"data", create=False), env.open_db(b"meta", create=False)
            with env.begin() as txn:
                found = txn.stat(data)["entries"], txn.get(META_KEY, db=meta)
            env.sync(True)
        if found != (self.census(()).entries, self.meta()):
            raise StorageFailed(f"{self._compacting}: it has other contents")

    def _swap(self) -> None:
        """Put the compacted file into the place of this one; no transaction is open."""
        with self._env.begin() as txn:
            self._versions_before += txn.id() + 1
        self._env.close()
        try:
            (self._compacting / "data.mdb").rename(self._path)
            sync_folder(self._folder)
            shutil.rmtree(self._compacting, ignore_errors=True)
            size = max(self._map_bytes_min, 2 * self._path.stat().st_size)
            self._env = self._open(self._folder, size)
            self._open_databases()
        except (OSError, StorageError) as error:
            self._failure = f"{self._path}: can't be opened after compaction: {error}"
            raise StorageFailed(self._failure) from error

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
        self._is_closing = True
        with self._writer, self._copier, self._digester, self._exporter, self._gate:
            if self._is_closed:
                return
            self._is_closed = True
            self._env.close()
            if not self._failure and not self._is_damaged:
                # Without the mark the next opening takes longer; nothing else is lost.
                with contextlib.suppress(OSError):
                    leave_mark(self._path)

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
                txn.put(META_KEY, meta, db=self._meta)
        except lmdb.MapFullError:
            return False
        return True

    def _grow(self) -> None:
        self._is_growing = True
        map_bytes = self.map_bytes
        try:
            with self._copier, self._digester, self._exporter, self._gate:
                self._env.set_mapsize(2 * map_bytes)
            assert self.map_bytes > map_bytes, "the map grows"
        finally:
            self._is_growing = False

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
        sync_folder(scratch)
        scratch.rename(self._folder)
        sync_folder(self._folder.parent)

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
        if isinstance(error, DAMAGE):
            return self.corrupt(str(error))
        if isinstance(error, UNCLEAR):
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
        """Return the next pairs within the bounds; `steps` may go either way."""
        found: list[tuple[bytes, bytes]] = []
        size, wanted = 0, 1
        while size < SCAN_CHUNK_BYTES and limit > len(found):
            wanted = min(wanted, limit - len(found))
            piece = list(islice(steps, wanted))
            # A scan begins within its bounds, and leaves them at the end.
            while piece and (
                (end is not None and piece[-1][0] >= end)
                or (start is not None and piece[-1][0] < start)
            ):
                piece.pop()
            joined = b"".join(chain.from_iterable(piece))
            found += self._unpack_all(piece, joined)
            if len(piece) < wanted:
                break
            size += len(joined)
            # As many as should fit: values of 1 MiB come one at a time.
            wanted = min(SCAN_PAIRS, 1 + (SCAN_CHUNK_BYTES - size) * len(found) // size)
        return found

    def _unpack_all(
        self, pairs: list[tuple[bytes, bytes]], joined: bytes
    ) -> list[tuple[bytes, bytes]]:
        """Return keys with values for pairs of key and record, which are also `joined`.

        Corrupt if a record is damaged.
        """
        if are_plain(joined):
            return [(key, record[1:-4]) for key, record in pairs]
        return [(key, self._unpack(key, record)) for key, record in pairs]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (lmdb.Error, OSError) as error:
            code = error_code(error)
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
