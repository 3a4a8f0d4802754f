"""The bytes of one log segment: its header, its records, and the writes that records form.

Theory of operation. A segment is a file of fixed size: a header block, then *writes*, one after the
other, then the remains of the file's earlier use. `wal.py` explains why this is safe; this module
has the layout only. All numbers are little endian.

Header block, 4096 bytes:

    offset  size  field
         0     8  magic           "raftha" 00 "L"
         8     4  version         1
        12     4  kind            0 continues the previous segment, 1 begins the log again
        16     8  segment id      1, 2, 3 ... over the life of the log, never reused
        24     8  salt            random, new each time the file is used for a new segment
        32     8  segment bytes   the file's size
        40     8  first write end end of the write that was made together with this header
        48     8  previous salt   of segment id - 1; 0 in segment 1
        56     8  previous end    end of the log in segment id - 1; 0 in segment 1
        64    48  base            log position before this segment's first entry: index, term,
                                  time_us, last_sequence (8 each), hash (16)
       112    24  hard state      before the first write: term, vote, commit (8 each)
       136  3956  zero
      4092     4  CRC-32C         of bytes [0, 4092)

Record, starting at a multiple of 8:

    offset  size  field
         0     4  CRC-32C         of bytes [4, 16 + size), seeded: see `Header.seed`
         4     4  size            of the body
         8     4  kind            1 write, 2 hard state, 3 entry
        12     4  zero
        16     -  body, then zeros up to a multiple of 8

Bodies:

    write       8 salt of the segment (the marker to search for), 8 durable: everything before this
                offset of the segment was durable when the write was made, 4 bytes of the whole
                write including this record, 4 count of the records that follow in it
    hard state  8 term, 8 vote, 8 commit
    entry       `Entry.data`, unchanged

A write is a write record and the records it counts. `append` passes one write to the disk, padded
with zeros to a whole page, so that the kernel never reads a page in order to change a part of it.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from google_crc32c import extend

from raftha.entry import Entry, HardState, LogPosition, decode_entry
from raftha.errors import Corrupt, StorageError
from raftha.storage.log.disk import Disk

PAGE_BYTES = 4096
HEADER_BYTES = PAGE_BYTES
WRITE_BYTES_MAX = 16 * 1024 * 1024
WINDOW_BYTES = 4 * WRITE_BYTES_MAX  # How much a scan holds in memory at once.
VERSION = 1

_MAGIC = b"raftha\0L"
_HEADER = struct.Struct("<8sIIQQQQQQ QQQQ16s QQQ")
_CRC = struct.Struct("<I")
_RECORD = struct.Struct("<IIII")
_RECORD_CHECKED = struct.Struct("<III")
_WRITE = struct.Struct("<QQII")
_HARD_STATE = struct.Struct("<QQQ")
_SEED = struct.Struct("<QQ")
RECORD_HEADER_BYTES = _RECORD.size
WRITE_RECORD_BYTES = _RECORD.size + _WRITE.size
HARD_STATE_RECORD_BYTES = _RECORD.size + _HARD_STATE.size
assert _HEADER.size == 136 and RECORD_HEADER_BYTES == 16
assert WRITE_RECORD_BYTES == 40 and HARD_STATE_RECORD_BYTES == 40

_PADDING = tuple(bytes(count) for count in range(8))
_ZERO_PAGE = bytes(PAGE_BYTES)


class RecordKind(enum.IntEnum):
    """The kind of a record's body."""

    WRITE = 1
    HARD_STATE = 2
    ENTRY = 3


_KIND_WRITE, _KIND_HARD_STATE, _KIND_ENTRY = (int(kind) for kind in RecordKind)


class Header(NamedTuple):
    """The header of a segment; the module's docstring describes the fields."""

    segment_id: int
    salt: int
    segment_bytes: int
    first_write_end: int
    previous_salt: int
    previous_end: int
    base: LogPosition
    hard_state: HardState
    is_reset: bool = False
    """True if the log begins with this segment, and earlier segments are no part of it."""

    @property
    def seed(self) -> int:
        """The seed of this segment's CRCs; a record's seed is this XOR its offset.

        So a record of the file's earlier use, or one at another place, is never valid.
        """
        return int(extend(0, _SEED.pack(self.segment_id, self.salt)))


@dataclass(slots=True)
class Segment:
    """An open segment: its log ends at `end`, and `readers` threads are reading it."""

    path: str
    handle: int
    header: Header
    seed: int
    end: int
    readers: int = 0


class Write(NamedTuple):
    """One write as read back; `offsets` has the start of each record of `entries`."""

    offset: int
    end: int
    hard_state: HardState | None
    entries: list[Entry]
    offsets: list[int]


def encode_header(header: Header) -> bytes:
    """Return the header block."""
    fields = _HEADER.pack(
        _MAGIC, VERSION, header.is_reset, *header[:6], *header.base, *header.hard_state
    )
    assert header.first_write_end >= HEADER_BYTES, "writes stand behind the header"
    block = fields + bytes(HEADER_BYTES - _CRC.size - len(fields))
    return block + _CRC.pack(extend(0, block))


def read_header(disk: Disk, handle: int, path: str) -> Header:
    """Read and check a live segment's header, and the file's size against it; Corrupt if wrong."""
    block = disk.pread(handle, HEADER_BYTES, 0)
    if len(block) < HEADER_BYTES:
        raise Corrupt(path, len(block), "the file ends within its header")
    if extend(0, block[: -_CRC.size]) != _CRC.unpack_from(block, HEADER_BYTES - _CRC.size)[0]:
        raise Corrupt(path, 0, "the header's checksum is wrong")
    magic, version, kind, *fields = _HEADER.unpack_from(block)
    if magic != _MAGIC or version != VERSION:
        raise StorageError(
            f"{path} is a log of format {magic!r} {version}, not {_MAGIC!r} {VERSION}",
            hint="it was written by another version of raftha",
        )
    segment_id, salt, segment_bytes, first_write_end, previous_salt, previous_end = fields[:6]
    header = Header(
        segment_id=segment_id,
        salt=salt,
        segment_bytes=segment_bytes,
        first_write_end=first_write_end,
        previous_salt=previous_salt,
        previous_end=previous_end,
        base=LogPosition(*fields[6:11]),
        hard_state=HardState(*fields[11:]),
        is_reset=bool(kind),
    )
    size = disk.size(handle)
    if size != header.segment_bytes:
        raise Corrupt(path, size, f"the file must have {header.segment_bytes} bytes")
    return header


def record_bytes(body_bytes: int) -> int:
    """Return the size of a record with a body of `body_bytes`."""
    return RECORD_HEADER_BYTES + ((body_bytes + 7) & ~7)


def body_bytes(window: bytes) -> int:
    """Return the body size that the record at the start of `window` states."""
    return int.from_bytes(window[4:8], "little")


def write_bytes(hard_state: HardState | None, entries: Sequence[Entry]) -> int:
    """Return the size of a write without the zeros that fill its last page."""
    total = WRITE_RECORD_BYTES
    if hard_state is not None:
        total += HARD_STATE_RECORD_BYTES
    for entry in entries:
        total += RECORD_HEADER_BYTES + ((len(entry.data) + 7) & ~7)
    return total


def encode_write(
    header: Header, seed: int, offset: int, hard_state: HardState | None, entries: Sequence[Entry]
) -> tuple[bytes, list[int]]:
    """Return the bytes of a write for `offset`, and the offset of each entry's record."""
    count = len(entries) + (hard_state is not None)
    total = write_bytes(hard_state, entries)
    assert offset % 8 == 0, "records begin at a multiple of 8"
    assert offset + total <= header.segment_bytes, "a write fits into its segment"
    body = _WRITE.pack(header.salt, offset, total, count)
    parts = [_encode_record(seed ^ offset, _KIND_WRITE, body)]
    at = offset + WRITE_RECORD_BYTES
    if hard_state is not None:
        parts.append(_encode_record(seed ^ at, _KIND_HARD_STATE, _HARD_STATE.pack(*hard_state)))
        at += HARD_STATE_RECORD_BYTES
    offsets = []
    for entry in entries:
        data = entry.data
        size = len(data)
        checked = _RECORD_CHECKED.pack(size, _KIND_ENTRY, 0)
        crc = _CRC.pack(extend(extend(seed ^ at, checked), data))
        parts += (crc, checked, data, _PADDING[-size & 7])
        offsets.append(at)
        at += RECORD_HEADER_BYTES + ((size + 7) & ~7)
    assert at == offset + total, "a write has the size that it states"
    parts.append(_ZERO_PAGE[: -at % PAGE_BYTES])
    return b"".join(parts), offsets


def _encode_record(seed: int, kind: int, body: bytes) -> bytes:
    checked = _RECORD_CHECKED.pack(len(body), kind, 0) + body
    return _CRC.pack(extend(seed, checked)) + checked + _PADDING[-len(body) & 7]


def read_entry(segment: Segment, window: bytes, start: int, at: int) -> Entry | None:
    """Return the entry whose record is at offset `at`; `window` is the file from `start` on.

    None if the window ends before the record does; Corrupt if the record is damaged.
    """
    i = at - start
    if i + RECORD_HEADER_BYTES > len(window):
        return None
    crc, size, kind, _zero = _RECORD.unpack_from(window, i)
    if at + record_bytes(size) > segment.end or kind != _KIND_ENTRY:
        raise Corrupt(segment.path, at, "the record is no entry")
    end = i + RECORD_HEADER_BYTES + size
    if end > len(window):
        return None
    if extend(segment.seed ^ at, window[i + 4 : end]) != crc:
        raise Corrupt(segment.path, at, "an entry's checksum is wrong")
    return _decode(segment, at, window[i + RECORD_HEADER_BYTES : end])


def _decode(segment: Segment, at: int, body: bytes) -> Entry:
    try:
        return decode_entry(body)
    except ValueError as error:
        raise Corrupt(segment.path, at, str(error)) from error


def scan(disk: Disk, segment: Segment, limit: int) -> Iterator[Write]:
    """Yield the writes from the header on, up to `limit` or to the first that isn't whole."""
    window, start = b"", 0
    at = HEADER_BYTES
    while at < limit:
        if at + min(WRITE_BYTES_MAX, limit - at) > start + len(window):
            window, start = disk.pread(segment.handle, min(WINDOW_BYTES, limit - at), at), at
        write = _parse_write(segment, window, start, at)
        if write is None:
            return
        yield write
        at = write.end


def _parse_write(segment: Segment, window: bytes, start: int, at: int) -> Write | None:
    """Return the write at offset `at`; None if one of its records is not valid."""
    first = _check_record(segment.seed, window, start, at)
    if first is None or first[0] != _KIND_WRITE or len(first[1]) != _WRITE.size:
        return None
    salt, _durable, total, count = _WRITE.unpack(first[1])
    end = at + total
    if salt != segment.header.salt or end > start + len(window):
        return None
    write = Write(at, end, None, [], [])
    at += WRITE_RECORD_BYTES
    for _ in range(count):
        record = _check_record(segment.seed, window, start, at)
        if record is None:
            return None
        kind, body = record
        if kind == _KIND_ENTRY:
            write.entries.append(_decode(segment, at, body))
            write.offsets.append(at)
        elif kind == _KIND_HARD_STATE and len(body) == _HARD_STATE.size:
            write = write._replace(hard_state=HardState(*_HARD_STATE.unpack(body)))
        else:
            raise Corrupt(segment.path, at, f"unknown record kind {kind} in a valid write")
        at += record_bytes(len(body))
    if at != end:
        raise Corrupt(segment.path, at, f"a write that must end at {end} ends here")
    return write


def _check_record(seed: int, window: bytes, start: int, at: int) -> tuple[int, bytes] | None:
    """Return kind and body of the record at offset `at`; None if it is not valid."""
    i = at - start
    if i + RECORD_HEADER_BYTES > len(window):
        return None
    crc, size, kind, _zero = _RECORD.unpack_from(window, i)
    end = i + RECORD_HEADER_BYTES + size
    if kind == 0 or end > len(window) or extend(seed ^ at, window[i + 4 : end]) != crc:
        return None
    return kind, window[i + RECORD_HEADER_BYTES : end]


def find_later_write(disk: Disk, segment: Segment, end: int) -> int | None:
    """Return the offset of a write record that proves the log durable past `end`, or None."""
    marker = segment.header.salt.to_bytes(8, "little")
    overlap = WRITE_RECORD_BYTES
    size = segment.header.segment_bytes
    for start in range(end, size, WINDOW_BYTES - overlap):
        window = disk.pread(segment.handle, min(WINDOW_BYTES, size - start), start)
        i = window.find(marker)
        while i >= 0:
            at = start + i - RECORD_HEADER_BYTES
            if at > end and at >= start and at % 8 == 0:
                record = _check_record(segment.seed, window, start, at)
                if record is not None and record[0] == _KIND_WRITE:
                    durable = _WRITE.unpack(record[1])[1]
                    if durable > end:
                        return at
            i = window.find(marker, i + 1)
    return None
