"""Reads the log back: finds its files, its entries and its end, or that it is damaged.

Theory of operation. `recover` only reads. It opens every live segment, checks that they follow each
other without a gap, then walks all writes and rebuilds what `Wal` keeps in memory: where each entry
is, the position after the last one, the hard state. It raises Corrupt where acknowledged bytes
differ from what was written, and finds the cut where the last write never became whole. `wal.py`
explains why the two can be told apart. Recovery follows the entries' hashes from the base to the
end, so it detects an entry of another log even if the checksum is right.
"""

from __future__ import annotations

import contextlib
import itertools
from array import array
from dataclasses import dataclass, field

from raftha.entry import LOG_START, Entry, HardState, LogPosition, follows
from raftha.errors import Corrupt
from raftha.storage.log.disk import Disk
from raftha.storage.log.segment import (
    HEADER_BYTES,
    PAGE_BYTES,
    WRITE_BYTES_MAX,
    Segment,
    Write,
    find_later_write,
    read_entry,
    read_header,
    scan,
)
from raftha.storage.log.spares import SUFFIX

NO_HARD_STATE = HardState(0, 0, 0)
LOCATION_SHIFT = 32  # A location is segment id << 32 | offset, so later records are larger.


@dataclass(slots=True)
class Log:
    """The log as read back; `locations[i]` is the place of entry `base.index + 1 + i`."""

    segments: list[Segment] = field(default_factory=list)
    base: LogPosition = LOG_START
    last: LogPosition = LOG_START
    hard_state: HardState = NO_HARD_STATE
    locations: array[int] = field(default_factory=lambda: array("Q"))
    last_write: Write | None = None


def segment_path(directory: str, segment_id: int) -> str:
    """Return the path of a live segment."""
    return f"{directory}/{segment_id:016x}{SUFFIX}"


def live_ids(directory: str, names: list[str]) -> list[int]:
    """Return the ids of the live segments among `names`, in order; Corrupt if one is missing."""
    ids = []
    for name in names:
        stem = name.removesuffix(SUFFIX)
        if len(stem) == 16 and stem != name and not set(stem) - set("0123456789abcdef"):
            ids.append(int(stem, 16))
    ids.sort()
    for previous, following in itertools.pairwise(ids):
        if following != previous + 1:
            raise Corrupt(segment_path(directory, previous + 1), 0, "the file is missing")
    return ids


def recover(disk: Disk, directory: str, ids: list[int]) -> Log:
    """Read the live segments `ids`, without changes on disk; on an error no file stays open."""
    log = Log()
    try:
        for segment_id in ids:
            log.segments.append(_open_segment(disk, directory, segment_id))
        for i, segment in enumerate(log.segments):
            following = log.segments[i + 1] if i + 1 < len(log.segments) else None
            _enter(disk, log, segment)
            limit = following.header.previous_end if following else segment.header.segment_bytes
            for write in scan(disk, segment, limit):
                _apply(disk, log, segment, write)
            if following:
                _check_junction(segment, following)
            else:
                _check_tail(disk, segment)
    except BaseException:
        close_all(disk, log.segments)
        raise
    held = log.last.index - log.base.index
    assert len(log.locations) == held, "each entry that the log holds has a place"
    return log


def cut_tail(disk: Disk, segment: Segment, last_write: Write) -> None:
    """Make the last write durable, and durably overwrite the rest of a torn one with zeros.

    The last whole write may be in the page cache only: the process may have died before its sync,
    or the sync failed, after which Linux marks the pages as clean. Writing the same bytes again
    makes the pages dirty, and a write torn between equal bytes loses nothing.
    """
    assert last_write.end == segment.end, "the log ends with its last whole write"
    data = disk.pread(segment.handle, last_write.end - last_write.offset, last_write.offset)
    zeros = min(segment.header.segment_bytes - segment.end, WRITE_BYTES_MAX + PAGE_BYTES)
    disk.pwrite(segment.handle, data + bytes(zeros), last_write.offset)
    disk.fdatasync(segment.handle)


def close_all(disk: Disk, segments: list[Segment]) -> None:
    """Close the segments' files; their content is synced already, so an error loses nothing."""
    for segment in segments:
        with contextlib.suppress(OSError):
            disk.close(segment.handle)


def _open_segment(disk: Disk, directory: str, segment_id: int) -> Segment:
    path = segment_path(directory, segment_id)
    handle = disk.open(path)
    try:
        header = read_header(disk, handle, path)
    except BaseException:
        disk.close(handle)
        raise
    segment = Segment(path, handle, header, header.seed, HEADER_BYTES)
    if header.segment_id != segment_id:
        disk.close(handle)
        raise Corrupt(path, 16, f"the file is segment {header.segment_id}")
    return segment


def _enter(disk: Disk, log: Log, segment: Segment) -> None:
    """Set the log to its position when `segment` began."""
    header = segment.header
    is_first = segment is log.segments[0]
    if is_first or header.is_reset or header.base.index < log.base.index:
        # Second case: a reset began the log here. Third case: this segment's first entry supersedes
        # entries before the first segment that is left. In both, a crash interrupted the reset or
        # the compaction, and the log begins with this segment.
        log.base = log.last = header.base
        log.locations = array("Q")
        if is_first:
            log.hard_state = header.hard_state
    else:
        _truncate(disk, log, header.base.index, segment, 64)
    if log.last != header.base:
        raise Corrupt(segment.path, 64, f"the log before this segment ends with {log.last}")
    if log.hard_state != header.hard_state:
        raise Corrupt(segment.path, 112, f"the hard state before this segment is {log.hard_state}")


def _apply(disk: Disk, log: Log, segment: Segment, write: Write) -> None:
    segment.end = write.end
    log.last_write = write
    if write.hard_state is not None:
        log.hard_state = write.hard_state
    high = segment.header.segment_id << LOCATION_SHIFT
    for entry, offset in zip(write.entries, write.offsets, strict=True):
        if entry.index != log.last.index + 1:
            if entry.index <= segment.header.base.index:
                raise Corrupt(
                    segment.path, offset, f"entry {entry.index} precedes the segment's base"
                )
            _truncate(disk, log, entry.index - 1, segment, offset)
        if not follows(entry, log.last.hash):
            raise Corrupt(segment.path, offset, f"entry {entry.index} belongs to another log")
        if entry.term < log.last.term:
            raise Corrupt(segment.path, offset, f"entry {entry.index} is of term {entry.term}")
        log.locations.append(high | offset)
        log.last = entry.position


def _truncate(disk: Disk, log: Log, last_index: int, segment: Segment, offset: int) -> None:
    """Drop the entries after `last_index`, which `segment` supersedes at `offset`."""
    if last_index > log.last.index:
        raise Corrupt(segment.path, offset, f"entry {log.last.index + 1} is missing")
    if last_index == log.last.index:
        return
    is_base = last_index == log.base.index
    log.last = log.base if is_base else _entry_at(disk, log, last_index).position
    del log.locations[last_index - log.base.index :]


def _entry_at(disk: Disk, log: Log, index: int) -> Entry:
    location = log.locations[index - log.base.index - 1]
    segment = log.segments[(location >> LOCATION_SHIFT) - log.segments[0].header.segment_id]
    offset = location & 0xFFFFFFFF
    window = disk.pread(segment.handle, min(WRITE_BYTES_MAX, segment.end - offset), offset)
    entry = read_entry(segment, window, offset, offset)
    if entry is None or entry.index != index:
        raise Corrupt(segment.path, offset, f"entry {index} is not at its place")
    return entry


def _check_junction(segment: Segment, following: Segment) -> None:
    """Raise Corrupt unless `segment` ends where `following` says: all of it was durable (W3)."""
    expected = following.header
    if segment.header.salt != expected.previous_salt:
        raise Corrupt(following.path, 48, f"the segment doesn't follow {segment.path}")
    if segment.end != expected.previous_end:
        raise Corrupt(segment.path, segment.end, f"the log goes on to {expected.previous_end}")


def _check_tail(disk: Disk, segment: Segment) -> None:
    """Raise Corrupt if the end of the log is damage rather than a torn write."""
    durable = segment.header.first_write_end
    if segment.end < durable:
        raise Corrupt(segment.path, segment.end, f"the log was durable up to {durable}")
    later = find_later_write(disk, segment, segment.end)
    if later is not None:
        detail = f"the write at {later} proves that the log was durable beyond this byte"
        raise Corrupt(segment.path, segment.end, detail)
