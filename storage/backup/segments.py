"""Segments: committed entries of the log as one object of a repository.

Theory of operation. A segment holds the entries from `first` to `last`, each as the bytes that the
log has (`Entry.data`) behind their length, 4 bytes little-endian. These bytes are cut into frames
of kind SEGMENT. A segment's name says what it holds (`SegmentName`), and its frames are bound to
that name.

Level 0 is what the archiver puts each second. A segment of level 1 replaces those of some minutes:
it has the same entries, byte by byte, so no time in it is a compaction's.

Entries are chained by hashes. A reader checks the chain within a segment; that the first entry
follows what the reader has before it, the reader checks with `raftha.entry.follows`. Two archivers
may cut the log at different places, so segments of one lineage overlap. Where they do, they hold
the same entries.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence

from raftha.entry import ENTRY_BYTES_MAX, Entry, decode_entry, follows
from raftha.errors import BackupDamaged
from raftha.storage.backup.crypto import DataKey, KeyRing
from raftha.storage.backup.frames import SEGMENT, FrameWriter, read_frames
from raftha.storage.backup.names import SegmentName, segment_name

SEGMENT_RAW_BYTES = 4 << 20
"""A segment of level 0 is put when it holds this much, if not earlier."""
MERGED_RAW_BYTES = 64 << 20
"""A segment of level 1 holds at most this much."""
_LENGTH = struct.Struct("<I")


def name_of(lineage: str, level: int, entries: Sequence[Entry]) -> SegmentName:
    """Return the name of the segment that holds these entries, at least one."""
    last = entries[-1]
    return SegmentName(
        lineage, level, entries[0].index, last.index, last.last_sequence, last.time_us
    )


def encode_segment(
    name: SegmentName,
    entries: Iterable[Entry],
    key: DataKey | None,
    level: int,
    *,
    salt: bytes | None = None,
) -> bytes:
    """Return the object that holds these entries; `level` is our level of compression, 0 to 9."""
    writer = FrameWriter(SEGMENT, segment_name(name), key, level, salt=salt)
    parts: list[bytes] = []
    at = name.first
    for entry in entries:
        assert entry.index == at <= name.last, "a segment holds what its name says"
        at += 1
        parts.append(writer.add(_LENGTH.pack(len(entry.data)) + entry.data))
    assert at == name.last + 1, "a segment holds all that its name says"
    parts.append(writer.finish())
    return b"".join(parts)


def read_segment(data: bytes | memoryview, name: SegmentName, keys: KeyRing) -> list[Entry]:
    """Return the entries of the segment that lies under this name. BackupDamaged; KeyMissing."""
    return list(iterate_segment(data, name, keys))


def iterate_segment(data: bytes | memoryview, name: SegmentName, keys: KeyRing) -> Iterator[Entry]:
    """Yield the entries of a segment, one after the other. BackupDamaged; KeyMissing.

    Memory is bounded by an entry and a frame, whatever the object claims. What the name says of the
    last entry is compared behind it, so take nothing as complete before the end.
    """
    object_name = segment_name(name)
    previous: Entry | None = None
    try:
        for raw in _cut(read_frames(data, SEGMENT, object_name, keys)):
            entry = decode_entry(raw)
            _check_next(previous, entry, name)
            yield entry
            previous = entry
        _check_last(previous, name)
    except ValueError as error:
        raise BackupDamaged(str(error), object_name=object_name) from error


def _cut(frames: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the bytes of each entry, out of frames that cut them anywhere."""
    buffer = b""
    offset = total = 0
    for raw in frames:
        total += len(raw)
        if total > MERGED_RAW_BYTES + ENTRY_BYTES_MAX + _LENGTH.size:
            raise ValueError("it holds more than a segment may")
        buffer = buffer[offset:] + raw
        offset = 0
        while (end := _end_of_entry(buffer, offset)) <= len(buffer):
            yield buffer[offset + _LENGTH.size : end]
            offset = end
    if offset != len(buffer):
        raise ValueError("it ends within an entry")


def _end_of_entry(buffer: bytes, offset: int) -> int:
    """Return where the entry at `offset` ends, or some place behind the buffer."""
    if len(buffer) - offset < _LENGTH.size:
        return len(buffer) + 1
    (size,) = _LENGTH.unpack_from(buffer, offset)
    if size > ENTRY_BYTES_MAX:
        raise ValueError(f"an entry of {size} bytes is more than a log holds")
    return offset + _LENGTH.size + int(size)


def _check_next(previous: Entry | None, entry: Entry, name: SegmentName) -> None:
    if previous is None:
        if entry.index != name.first:
            raise ValueError(f"it begins with entry {entry.index}")
        return
    if entry.index != previous.index + 1 or not follows(entry, previous.hash):
        raise ValueError(f"what stands behind entry {previous.index} does not follow it")
    if not _is_later(previous, entry):
        raise ValueError(f"entry {entry.index} goes back in term, time or sequence")


def _is_later(previous: Entry, entry: Entry) -> bool:
    return (
        entry.term >= previous.term
        and entry.time_us >= previous.time_us
        and entry.last_sequence >= previous.last_sequence
    )


def _check_last(last: Entry | None, name: SegmentName) -> None:
    if last is None:
        raise ValueError("it is empty")
    if (last.index, last.last_sequence, last.time_us) != name[3:]:
        raise ValueError(f"it ends with entry {last.index}, or another one of that index")
