"""The spool: a node's own record of what each checkpoint changed, for incremental backups.

Theory of operation. Every checkpoint has in hand what changed since the one before. With a spool it
writes this to a file first, a *delta*, and only then to LMDB. So the deltas of the last hours lead
from an old position to the last checkpoint without a gap, and an incremental backup is their merge:
its cost goes by the changes, not by the size of the state. A delta that begins before the backup's
parent is as good as one that begins at it, because it sets the same keys to the same values. So any
node whose spool reaches back to the parent can take the next incremental backup.

The rules:

S1  A delta is durable before its checkpoint is: temporary file, sync, rename, sync of the folder.
S2  The deltas are a chain: each begins at the position, hash included, where the one before ends.
    The last one ends at the position of the last checkpoint. What isn't so is removed at the start.
    This covers a crash between delta and checkpoint, a state that came as a snapshot, a state that
    was healed, and files that a crash has brought back.
S3  The spool never fails a checkpoint. An error drops the whole spool, and the next backup that
    needs it is a full one, or is taken by another node.
S4  A full disk takes the space back first (`drop`). Then there is no new delta before the next
    checkpoint is done.
S5  A spool over its limits gives up its oldest deltas.

Many small deltas are merged into one, those that are cheapest to merge, so the number of files is
bounded, and keys that are written again and again take their space once.

A file is `<from index>-<to index>`, each 16 hex digits. It has records, each with a length (4
bytes, little endian), the CRC-32C of the rest (4 bytes) and the rest, compressed with zstd:

    first     msgpack: [1, from position, to position, number of pairs, size of the meta]
    second    the checkpoint's meta
    others    blocks of pairs, as in `pairs.py`, until the number of pairs is reached

Threads. The storage thread adds, any thread drops or reads. A reader holds its files open, so it
can go on when they are removed; after a `drop` it ends with SpoolLost.
"""

from __future__ import annotations

import contextlib
import logging
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import msgpack
import zstandard
from google_crc32c import value as crc32c

from raftha.config.limits import GIB, KIB, MIB
from raftha.entry import LogPosition
from raftha.errors import StorageError
from raftha.storage.backup.pairs import Piece, cut_blocks, decode_pairs, in_pieces, merge
from raftha.storage.log.disk import Disk
from raftha.storage.state.blocks import Pair

FORMAT = 1
FILES_MAX = 1024
"""Deltas in a spool; the oldest ones are given up."""
MERGE_ABOVE = 256
"""With more deltas than this, some are merged,"""
MERGED_AT_ONCE = 32
"""so many neighbours into one,"""
MERGED_BYTES_MAX = 64 * MIB
"""unless they are so large that the log would wait for it."""
BLOCK_BYTES = 64 * KIB
"""Small blocks, because a reader holds one for each delta."""
SYNC_BYTES = 512 * KIB
"""Bytes written between two syncs, so that the log's syncs don't wait for all of a delta."""
SPARE_BYTES = 256 * MIB
"""A disk with less free space than this is left to the log and the checkpoints."""
META_BYTES_MAX = GIB
LEVEL = 1
"""zstd's level: a checkpoint waits for it."""
_RECORD = struct.Struct("<II")
_TEMPORARY = "delta.tmp"

log = logging.getLogger(__name__)


class SpoolLost(StorageError):
    """The spool was dropped, or is damaged, while it was read; or doesn't reach back so far."""


class Delta(NamedTuple):
    """What changed between two checkpoints, in a file of `size` bytes."""

    start: LogPosition
    end: LogPosition
    keys: int
    size: int

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"{self.start.index:016x}-{self.end.index:016x}"


class SpoolReading(NamedTuple):
    """What changed after `start`, up to the checkpoint at `position`, whose meta is here too.

    It ends with the context of `Spool.reading`.
    """

    start: LogPosition
    position: LogPosition
    meta: bytes
    keys_max: int
    """How many pairs there are before the merge."""
    pieces: Iterator[Piece]


class Spool:
    """The spool in a folder on `disk`, of at most `bytes_max` bytes."""

    def __init__(
        self,
        disk: Disk,
        folder: str,
        bytes_max: int,
        position: LogPosition,
        *,
        free_bytes: Callable[[], int] = lambda: 1 << 62,
    ) -> None:
        """Take over what is in the folder and fits to a state at `position` (S2).

        `free_bytes` returns the free space of the disk.
        """
        self._disk = disk
        self._folder = folder
        self._bytes_max = bytes_max
        self._free_bytes = free_bytes
        self._lock = threading.Lock()
        self._deltas: list[Delta] = []
        self._position = position
        """That of the last checkpoint."""
        self._is_paused = False
        self._generation = 0
        """Counts drops: readers of an earlier one have lost their files."""
        try:
            disk.mkdir(folder)
            self._take_over()
        except (OSError, StorageError) as error:
            self._fail(error)

    @property
    def reach(self) -> LogPosition:
        """The oldest position that a delta to the last checkpoint can begin at."""
        with self._lock:
            return self._deltas[0].start if self._deltas else self._position

    @property
    def position(self) -> LogPosition:
        """The position of the last checkpoint."""
        return self._position

    @property
    def size(self) -> int:
        """Bytes in all files."""
        with self._lock:
            return _size_of(self._deltas)

    def add(self, position: LogPosition, meta: bytes, items: Iterable[Pair]) -> None:
        """Write what the checkpoint at `position` changes; it is about to be written (S1, S3)."""
        with self._lock:
            last = self._deltas[-1].end if self._deltas else self._position
            if self._is_paused or last == position or self._bytes_max <= 0:
                return
            generation = self._generation
        assert last == self._position, "a delta begins at the last checkpoint (S2)"
        if self._free_bytes() < SPARE_BYTES:
            self.drop()
            return
        try:
            blocks = cut_blocks(in_pieces(items), BLOCK_BYTES)
            delta = self._write(last, position, meta, ((b.raw, b.keys) for b in blocks))
        except (OSError, StorageError) as error:
            self._fail(error)
            return
        with self._lock:
            if generation == self._generation:
                self._deltas.append(delta)
                return
        self._remove(delta.name)  # The disk was found full meanwhile (S4).

    def commit(self, position: LogPosition) -> None:
        """The checkpoint at `position` is durable."""
        with self._lock:
            self._position = position
            self._is_paused = False
            is_chained = not self._deltas or self._deltas[-1].end == position
        if not is_chained:
            self.drop()  # A checkpoint without a delta would be a gap.
        try:
            self._tidy()
        except (OSError, StorageError) as error:
            self._fail(error)

    def drop(self) -> bool:
        """Free all space, until the next checkpoint is done (S4); True if there was any."""
        with self._lock:
            dropped, self._deltas = self._deltas, []
            self._is_paused = True
            self._generation += 1
        for delta in dropped:
            self._remove(delta.name)
        if dropped:
            log.warning("spool dropped folder=%s deltas=%d", self._folder, len(dropped))
        return bool(dropped)

    @contextlib.contextmanager
    def reading(self, index: int) -> Iterator[SpoolReading]:
        """Read what changed from entry `index` on, or from earlier on, up to the last checkpoint.

        SpoolLost if the spool doesn't reach back so far; also later, from the pieces.
        """
        with contextlib.ExitStack() as opened:
            with self._lock:
                position, generation = self._position, self._generation
                known = [delta for delta in self._deltas if delta.end.index <= position.index]
                wanted = [delta for delta in known if delta.end.index > index]
                start = wanted[0].start if wanted else position
                if start.index > index or not wanted:
                    raise SpoolLost(f"the spool begins at entry {start.index}, not at {index}")
                try:
                    files = [self._open(delta, opened) for delta in wanted]
                except OSError as error:
                    raise SpoolLost(f"{self._folder}: {error}") from error
            check = self._checker(generation)
            readers = [_Reader(self._disk, handle, delta, check) for delta, handle in files]
            meta = readers[-1].meta()
            pieces = merge([reader.pieces() for reader in reversed(readers)])
            keys_max = sum(delta.keys for delta in wanted)
            yield SpoolReading(start, position, meta, keys_max, pieces)

    def _checker(self, generation: int) -> Callable[[], None]:
        def check() -> None:
            if self._generation != generation:
                raise SpoolLost("the spool was dropped: the disk is full, or has failed")

        return check

    def _open(self, delta: Delta, opened: contextlib.ExitStack) -> tuple[Delta, int]:
        handle = self._disk.open(self._path(delta.name))
        opened.callback(self._disk.close, handle)
        return delta, handle

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}"

    def _take_over(self) -> None:
        found = []
        for name in self._disk.listdir(self._folder):
            delta = self._read_delta(name)
            if delta is None:
                self._disk.unlink(self._path(name))
            else:
                found.append(delta)
        expected = self._position
        for delta in sorted(found, key=lambda delta: delta.end.index, reverse=True):
            if delta.end == expected:
                self._deltas.insert(0, delta)
                expected = delta.start
            else:  # Its checkpoint never was, or there is a gap behind it.
                self._disk.unlink(self._path(delta.name))

    def _read_delta(self, name: str) -> Delta | None:
        handle = self._disk.open(self._path(name))
        try:
            size = self._disk.size(handle)
            head, _ = _read_record(self._disk, handle, 0)
            delta = _decode_head(head)._replace(size=size)
        except SpoolLost:
            return None
        finally:
            self._disk.close(handle)
        return delta if delta.name == name else None

    def _write(
        self,
        start: LogPosition,
        end: LogPosition,
        meta: bytes,
        blocks: Iterable[tuple[bytes, int]],
    ) -> Delta:
        """Write a delta's file, durably (S1)."""
        temporary = self._path(_TEMPORARY)
        handle = self._disk.open(temporary, create=True)
        try:
            writer = _Writer(self._disk, handle)
            keys = writer.write_all(start, end, meta, blocks)
        finally:
            self._disk.close(handle)
        delta = Delta(start, end, keys, writer.size)
        self._disk.rename(temporary, self._path(delta.name))
        try:
            self._disk.sync_dir(self._folder)
        except OSError:
            self._remove(delta.name)
            raise
        return delta

    def _tidy(self) -> None:
        """Keep to the limits of bytes (S5) and files."""
        with self._lock:
            given_up = []
            size = _size_of(self._deltas)
            while size > self._bytes_max or len(self._deltas) > FILES_MAX:
                given_up.append(self._deltas.pop(0))
                size -= given_up[-1].size
            deltas, generation = list(self._deltas), self._generation
        for delta in given_up:
            self._remove(delta.name)
        if len(deltas) > MERGE_ABOVE:
            # The newest one stays as it is.
            groups = [deltas[i : i + MERGED_AT_ONCE] for i in range(len(deltas) - MERGED_AT_ONCE)]
            cheapest = min(groups, key=_size_of)
            if _size_of(cheapest) <= MERGED_BYTES_MAX:
                self._merge(cheapest, generation)

    def _merge(self, group: list[Delta], generation: int) -> None:
        """Replace neighbours by one delta.

        Its file is durable before theirs are removed. A crash may leave both; then the start keeps
        either that or those, and removes what no longer fits.
        """
        with contextlib.ExitStack() as opened:
            files = [self._open(delta, opened) for delta in group]
            check = self._checker(generation)
            readers = [_Reader(self._disk, handle, delta, check) for delta, handle in files]
            meta = readers[-1].meta()
            pieces = merge([reader.pieces() for reader in reversed(readers)])
            blocks = ((block.raw, block.keys) for block in cut_blocks(pieces, BLOCK_BYTES))
            merged = self._write(group[0].start, group[-1].end, meta, blocks)
        with self._lock:
            if generation != self._generation:
                group = [merged]
            else:
                at = self._deltas.index(group[0])
                self._deltas[at : at + len(group)] = [merged]
        for delta in group:
            self._remove(delta.name)

    def _remove(self, name: str) -> None:
        # A file that stays no longer fits the chain, or still does: the next start decides.
        with contextlib.suppress(OSError):
            self._disk.unlink(self._path(name))

    def _fail(self, error: Exception) -> None:
        log.warning("spool failed folder=%s: %s", self._folder, error)
        self.drop()
        self._remove(_TEMPORARY)


class _Writer:
    """Writes the records of one delta."""

    def __init__(self, disk: Disk, handle: int) -> None:
        self._disk = disk
        self._handle = handle
        self._compress = zstandard.ZstdCompressor(level=LEVEL).compress
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self.size = 0

    def write_all(
        self,
        start: LogPosition,
        end: LogPosition,
        meta: bytes,
        blocks: Iterable[tuple[bytes, int]],
    ) -> int:
        """Write a delta, durably; return its number of pairs, which its head says last."""
        head_bytes = len(_encode_head(start, end, 0, len(meta)))
        self.size = head_bytes
        self._add(meta)
        keys = 0
        for raw, count in blocks:
            self._add(raw)
            keys += count
        self._flush()
        self._disk.pwrite(self._handle, _encode_head(start, end, keys, len(meta)), 0)
        self._disk.fdatasync(self._handle)
        return keys

    def _add(self, raw: bytes) -> None:
        packed = _pack_record(self._compress(raw))
        self._waiting.append(packed)
        self._waiting_bytes += len(packed)
        if self._waiting_bytes >= SYNC_BYTES:
            self._flush()
            self._disk.fdatasync(self._handle)

    def _flush(self) -> None:
        data = b"".join(self._waiting)
        self._disk.pwrite(self._handle, data, self.size)
        self.size += len(data)
        self._waiting, self._waiting_bytes = [], 0


class _Reader:
    """Reads one delta, piece by piece."""

    def __init__(self, disk: Disk, handle: int, delta: Delta, check: Callable[[], None]) -> None:
        """`check` raises SpoolLost if the delta must not be read any more."""
        self._disk = disk
        self._handle = handle
        self._delta = delta
        self._check = check
        head, self._meta_at = _read_record(disk, handle, 0)
        if _decode_head(head)._replace(size=delta.size) != delta:
            raise SpoolLost(f"spool file {delta.name} is another one")

    def meta(self) -> bytes:
        """Return the checkpoint's meta."""
        packed, _ = _read_record(self._disk, self._handle, self._meta_at)
        return _decompress(packed, META_BYTES_MAX)

    def pieces(self) -> Iterator[Piece]:
        """Yield all pairs; SpoolLost where the file is damaged."""
        _, at = _read_record(self._disk, self._handle, self._meta_at)
        left = self._delta.keys
        previous = b""
        while left > 0:
            self._check()
            packed, at = _read_record(self._disk, self._handle, at)
            try:
                pairs = decode_pairs(_decompress(packed, 16 * MIB))
            except ValueError as error:
                raise SpoolLost(f"spool file {self._delta.name}: {error}") from error
            if not pairs or pairs[0][0] <= previous:
                raise SpoolLost(f"spool file {self._delta.name}: keys are not in order")
            previous = pairs[-1][0]
            left -= len(pairs)
            yield pairs


def _size_of(deltas: Iterable[Delta]) -> int:
    return sum(delta.size for delta in deltas)


def _pack_record(packed: bytes) -> bytes:
    return _RECORD.pack(len(packed), crc32c(packed)) + packed


def _read_record(disk: Disk, handle: int, at: int) -> tuple[bytes, int]:
    """Return the record at an offset, and where it ends; SpoolLost if it is damaged."""
    try:
        head = disk.pread(handle, _RECORD.size, at)
        if len(head) < _RECORD.size:
            raise SpoolLost("a spool file is cut off")
        size, checksum = _RECORD.unpack(head)
        size = min(size, max(0, disk.size(handle) - at))
        packed = disk.pread(handle, size, at + _RECORD.size)
    except OSError as error:
        raise SpoolLost(f"a spool file can't be read: {error}") from error
    if len(packed) != size or crc32c(packed) != checksum:
        raise SpoolLost("a spool file is damaged")
    return packed, at + _RECORD.size + size


def _decompress(packed: bytes, size_max: int) -> bytes:
    try:
        if zstandard.frame_content_size(packed) > size_max:
            raise SpoolLost("a spool file has a record that is too large")
        return zstandard.ZstdDecompressor().decompress(packed)
    except zstandard.ZstdError as error:
        raise SpoolLost(f"a spool file is damaged: {error}") from error


def _encode_head(start: LogPosition, end: LogPosition, keys: int, meta_bytes: int) -> bytes:
    """Return the first record; its size doesn't depend on the numbers."""
    fields = [*start[:4], *end[:4], keys, meta_bytes]
    numbers = b"".join(field.to_bytes(8, "little") for field in fields)
    packed: bytes = msgpack.packb([FORMAT, start.hash, end.hash, numbers])
    return _pack_record(packed)


def _decode_head(packed: bytes) -> Delta:
    try:
        found: Any = msgpack.unpackb(packed)
        version, start_hash, end_hash, numbers = found
        if version != FORMAT or len(numbers) != 80:
            raise SpoolLost(f"a spool file of format {version}")
        values = [int.from_bytes(numbers[i : i + 8], "little") for i in range(0, 80, 8)]
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise SpoolLost(f"not a spool file: {error}") from error
    a, b, c, d, e, f, g, h, keys, _ = values
    start, end = LogPosition(a, b, c, d, start_hash), LogPosition(e, f, g, h, end_hash)
    return Delta(start, end, keys, 0)
