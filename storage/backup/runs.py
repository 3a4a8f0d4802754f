"""Runs: what a backup holds, as a sequence of objects.

Theory of operation. A run is a checkpoint's meta and ordered pairs: all pairs of a state (a full
run), or those that have changed since an earlier one (a delta run). It is cut into objects of at
most `OBJECT_BYTES` each, and an object into blocks (`state/blocks.py`). A block is one frame, or
several if one pair alone is larger than a frame. So one block can be read without the others.
Content of an object, frame by frame:

    blocks of the meta   up to 256 KiB of it each; only in the first objects of a run
    blocks of pairs      in the order of their keys
    index                msgpack: [[first key, frame number, offset] for each block]; the first key
                         of a block of the meta is nil. The last frame of the object ends it

The manifest says of each object where its index begins, and what its first and last key are
(`ObjectFacts`). So a key is found with three reads, of header, index and block (`lookup.py`).

Sealing (zstd, AES) is done by a pool's workers, a few blocks ahead; where an object ends does not
depend on how fast they are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from hashlib import sha256
from itertools import chain, pairwise
from typing import NamedTuple

import msgpack

from raftha.config.limits import VALUE_BYTES_MAX
from raftha.errors import BackupDamaged
from raftha.storage.backup.crypto import DataKey, KeyRing
from raftha.storage.backup.frames import (
    FRAME_RAW_MAX,
    HEADER_BYTES,
    RUN,
    ObjectSeal,
    frame_size,
    open_frame,
    seal_frame,
)
from raftha.storage.backup.pairs import Piece, decode_pairs
from raftha.storage.backup.pool import Pool
from raftha.storage.state.blocks import BLOCK_BYTES, Block, Pair

OBJECT_BYTES = 16 << 20
"""An object's size, at most."""
DELTA_OBJECT_BYTES = 8 << 20
"""Smaller objects for deltas, because a reader holds one of each run of a chain."""
AHEAD = 8
"""Blocks that are being sealed, or wait to be put into their object."""
OBJECT_RAW_BYTES = 128 << 20
"""What an object holds before compression, at most, so that its index stays small."""
SPARE_BYTES = 1 << 20
"""What an object's index and seals take, at most."""
INDEX_FRAMES_MAX = 4
BLOCK_FRAMES_MAX = (VALUE_BYTES_MAX + 2 * FRAME_RAW_MAX) // FRAME_RAW_MAX
META_BYTES_MAX = 256 << 20


class ObjectFacts(NamedTuple):
    """What a manifest says of an object of a run.

    `first_key` and `last_key` are empty if it has no pairs. `index_at` and `index_number`: the
    offset and the number of the first frame of its index.
    """

    size: int
    sha256: str
    raw_bytes: int
    keys: int
    first_key: bytes
    last_key: bytes
    index_at: int
    index_number: int


class RunObject(NamedTuple):
    """A finished object of a run."""

    name: str
    data: bytes
    facts: ObjectFacts


class IndexEntry(NamedTuple):
    """A block of an object: None as its first key marks a piece of the meta."""

    first_key: bytes | None
    number: int
    offset: int


def write_run(
    blocks: Iterable[Block],
    meta: bytes,
    name_of: Callable[[int], str],
    *,
    key: DataKey | None,
    level: int,
    pool: Pool,
    object_bytes: int = OBJECT_BYTES,
    on_block: Callable[[Block], None] = lambda block: None,
    salt: Callable[[], bytes | None] = lambda: None,
) -> Generator[RunObject, None, None]:
    """Yield the objects of a run, whose keys are in order.

    `name_of` names the objects by their numbers from 0 on; `level` is one of ours, from 0 to 9.
    `on_block` gets each block of pairs, in order.
    """
    writers = (
        _ObjectWriter(ObjectSeal.new(RUN, name_of(number), key, salt=salt()), level, pool)
        for number in range(1 << 30)
    )
    writer = next(writers)
    waiting: deque[_ObjectWriter] = deque()
    done: deque[Future[RunObject]] = deque()
    for block in chain(_meta_blocks(meta), blocks):
        if not writer.has_room(len(block.raw), object_bytes - SPARE_BYTES):
            writer.is_closed = True
            writer = next(writers)
        if block.keys:
            on_block(block)
        writer.add(block)
        waiting.append(writer)
        if len(waiting) > AHEAD:
            oldest = waiting.popleft()
            oldest.collect()
            if oldest.is_closed and not oldest.is_waiting:
                done.append(pool.submit(oldest.finish))
        while done and (done[0].done() or len(done) > 1):
            yield done.popleft().result()
    writer.is_closed = True
    for oldest in waiting:
        oldest.collect()
        if oldest.is_closed and not oldest.is_waiting:
            done.append(pool.submit(oldest.finish))
    for finished in done:
        yield finished.result()


def _meta_blocks(meta: bytes) -> Iterator[Block]:
    assert len(meta) <= META_BYTES_MAX, "a checkpoint's meta keeps to its limit"
    for start in range(0, max(len(meta), 1), BLOCK_BYTES):
        yield Block(meta[start : start + BLOCK_BYTES], 0, b"", b"")


class _ObjectWriter:
    """One object that grows."""

    def __init__(self, seal: ObjectSeal, level: int, pool: Pool) -> None:
        self._seal = seal
        self._level = level
        self._pool = pool
        self._sealing: deque[tuple[Block, int, Future[bytes]]] = deque()
        self._sealing_bytes = 0
        self._parts = [seal.header]
        self._size = HEADER_BYTES
        self._index: list[IndexEntry] = []
        self._number = 0
        self._raw_bytes = self._keys = 0
        self._first_key = self._last_key = b""
        self.is_closed = False
        """No block follows."""

    @property
    def is_waiting(self) -> bool:
        """Whether a block of it is still being sealed."""
        return bool(self._sealing)

    def has_room(self, count: int, size_max: int) -> bool:
        """Whether a block of `count` bytes fits, even if nothing can be compressed."""
        size = self._size + self._sealing_bytes + count
        raw_bytes = self._raw_bytes + self._sealing_bytes + count
        return not self._number or (size <= size_max and raw_bytes <= OBJECT_RAW_BYTES)

    def add(self, block: Block) -> None:
        """Have the next block sealed."""
        future = self._pool.submit(_seal_block, self._seal, self._number, block.raw, self._level)
        self._sealing.append((block, self._number, future))
        self._sealing_bytes += len(block.raw)
        self._number += max(1, -(-len(block.raw) // FRAME_RAW_MAX))

    def collect(self) -> None:
        """Wait for the oldest block, and put it into the object."""
        block, number, future = self._sealing.popleft()
        frames = future.result()
        first_key = block.first_key if block.keys else None
        self._index.append(IndexEntry(first_key, number, self._size))
        self._parts.append(frames)
        self._size += len(frames)
        self._sealing_bytes -= len(block.raw)
        self._raw_bytes += len(block.raw)
        self._keys += block.keys
        self._first_key = self._first_key or block.first_key
        self._last_key = block.last_key

    def finish(self) -> RunObject:
        """Add the index; return the object."""
        packed: bytes = msgpack.packb(self._index)
        index = _seal_block(self._seal, self._number, packed, self._level, is_last=True)
        data = b"".join((*self._parts, index))
        facts = ObjectFacts(
            len(data),
            sha256(data).hexdigest(),
            self._raw_bytes,
            self._keys,
            self._first_key,
            self._last_key,
            self._size,
            self._number,
        )
        return RunObject(self._seal.object_name, data, facts)


def _seal_block(
    seal: ObjectSeal, number: int, raw: bytes, level: int, *, is_last: bool = False
) -> bytes:
    if len(raw) <= FRAME_RAW_MAX:
        return seal_frame(seal, number, raw, is_last=is_last, level=level)
    view = memoryview(raw)
    starts = range(0, len(raw), FRAME_RAW_MAX)
    return b"".join(
        seal_frame(
            seal,
            number + i,
            view[start : start + FRAME_RAW_MAX],
            is_last=is_last and start == starts[-1],
            level=level,
        )
        for i, start in enumerate(starts)
    )


class MetaParts:
    """Collects the meta of a run, within its limit."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, raw: bytes) -> None:
        """Take the next piece; BackupDamaged if it is too much."""
        self._size += len(raw)
        if self._size > META_BYTES_MAX:
            raise BackupDamaged("the meta of a backup is too large")
        self._parts.append(raw)

    def join(self) -> bytes:
        """Return the whole meta."""
        return b"".join(self._parts)


def check_object(data: bytes | memoryview, name: str, facts: ObjectFacts) -> None:
    """Raise BackupDamaged unless these are the bytes that the manifest means."""
    if len(data) != facts.size:
        raise BackupDamaged(f"it has {len(data)} bytes, not {facts.size}", object_name=name)
    if sha256(data).hexdigest() != facts.sha256:
        raise BackupDamaged("its bytes have another hash than its manifest says", object_name=name)


def read_run(
    objects: Iterable[tuple[str, bytes | memoryview, ObjectFacts]],
    keys: KeyRing,
    on_meta: Callable[[bytes], None] = lambda meta: None,
    on_block: Callable[[bytes, int], None] = lambda raw, keys: None,
    *,
    is_checked: bool = False,
    pool: Pool | None = None,
) -> Iterator[Piece]:
    """Yield all pairs of a run, given its objects in order. BackupDamaged; KeyMissing.

    `on_meta` gets the meta, piece by piece; `on_block` the bytes of each piece of pairs, and how
    many they are. `is_checked`: the objects are known to have their hashes. With a pool, blocks are
    opened ahead.
    """
    previous = b""
    for name, data, facts in objects:
        if not is_checked:
            check_object(data, name, facts)
        if facts.keys and facts.first_key <= previous:
            raise BackupDamaged("its keys follow none before it", object_name=name)
        yield from _read_object(memoryview(data), name, facts, keys, on_meta, on_block, pool)
        previous = facts.last_key or previous


def _read_object(
    data: memoryview,
    name: str,
    facts: ObjectFacts,
    keys: KeyRing,
    on_meta: Callable[[bytes], None],
    on_block: Callable[[bytes, int], None],
    pool: Pool | None,
) -> Iterator[Piece]:
    seal = ObjectSeal.read(data, RUN, name, keys)
    index = read_index(seal, data[facts.index_at :], facts)
    found_keys = found_bytes = 0
    last_key = b""
    for entry, raw in _read_blocks(seal, data, index, pool):
        found_bytes += len(raw)
        if entry.first_key is None:
            on_meta(raw)
            continue
        pairs = decode_block(raw, name)
        if pairs[0][0] != entry.first_key or pairs[0][0] <= last_key:
            raise BackupDamaged("a block is not the one of its index", object_name=name)
        if not found_keys and pairs[0][0] != facts.first_key:
            raise BackupDamaged("it begins with another key than is said", object_name=name)
        last_key = pairs[-1][0]
        found_keys += len(pairs)
        on_block(raw, len(pairs))
        yield pairs
    if (found_keys, found_bytes, last_key) != (facts.keys, facts.raw_bytes, facts.last_key):
        raise BackupDamaged("it has other content than its manifest says", object_name=name)


def _read_blocks(
    seal: ObjectSeal, data: memoryview, index: Sequence[IndexEntry], pool: Pool | None
) -> Iterator[tuple[IndexEntry, bytes]]:
    coming: deque[tuple[IndexEntry, Future[bytes]]] = deque()
    for entry, after in pairwise(index):
        frames = data[entry.offset : after.offset]
        if pool is None:
            yield entry, read_block(seal, frames, entry, after)
            continue
        coming.append((entry, pool.submit(read_block, seal, frames, entry, after)))
        if len(coming) > AHEAD:
            first, opening = coming.popleft()
            yield first, opening.result()
    for first, opening in coming:
        yield first, opening.result()


def read_block(
    seal: ObjectSeal, frames: bytes | memoryview, entry: IndexEntry, after: IndexEntry
) -> bytes:
    """Return a block, given its frames and its place in the index. BackupDamaged."""
    count = min(after.number - entry.number, BLOCK_FRAMES_MAX)
    return _join_frames(seal, frames, entry.number, count, is_end=False)


def decode_block(raw: bytes, name: str) -> list[Pair]:
    """Return the pairs of a block, at least one. BackupDamaged."""
    try:
        pairs = decode_pairs(raw)
    except ValueError as error:
        raise BackupDamaged(str(error), object_name=name) from error
    if not pairs:
        raise BackupDamaged("a block is empty", object_name=name)
    return pairs


def read_index(seal: ObjectSeal, tail: bytes | memoryview, facts: ObjectFacts) -> list[IndexEntry]:
    """Return the index of an object, given its bytes from `index_at` on. BackupDamaged.

    The last entry is none of a block: it stands for the index itself.
    """
    name, end = seal.object_name, IndexEntry(None, facts.index_number, facts.index_at)
    packed = _join_frames(seal, tail, facts.index_number, INDEX_FRAMES_MAX, is_end=True)
    try:
        found = msgpack.unpackb(packed, use_list=False)
        entries = [*(IndexEntry(*entry) for entry in found), end]
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise BackupDamaged(f"its index can't be read: {error}", object_name=name) from error
    is_one = len(entries) > 1 and all(map(_is_entry, entries))
    if not is_one or entries[0][1:] != (0, HEADER_BYTES):
        raise BackupDamaged("its index is wrong", object_name=name)
    for before, after in pairwise(entries):
        is_in_order = before.first_key is None or (
            after is end or (after.first_key is not None and before.first_key < after.first_key)
        )
        if before.number >= after.number or before.offset >= after.offset or not is_in_order:
            raise BackupDamaged("its index is not in order", object_name=name)
    return entries


def _join_frames(
    seal: ObjectSeal, frames: bytes | memoryview, number: int, count_max: int, *, is_end: bool
) -> bytes:
    """Return the content of frames in sequence, which end the object if `is_end`."""
    parts: list[bytes] = []
    view, is_last = memoryview(frames), False
    while view and not is_last and len(parts) < count_max:
        size = frame_size(view, seal.object_name)
        raw, is_last = open_frame(seal, number + len(parts), view[:size])
        parts.append(raw)
        view = view[size:]
    if view or is_last is not is_end or not parts:
        raise BackupDamaged("its frames are not where its index says", object_name=seal.object_name)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _is_entry(entry: IndexEntry) -> bool:
    first_key, number, offset = entry
    is_key = first_key is None or (type(first_key) is bytes and bool(first_key))
    return is_key and type(number) is int and type(offset) is int
