"""Segments: what the log has comes back as it is, and anything else is found."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from raftha.entry import ENTRY_BYTES_MAX, Entry, EntryKind, LogPosition, make_entry
from raftha.errors import BackupDamaged, KeyMissing
from raftha.storage.backup import segments
from raftha.storage.backup.crypto import NO_KEYS, DataKey, KeyRing
from raftha.storage.backup.frames import SEGMENT, write_whole
from raftha.storage.backup.names import SegmentName, segment_name
from raftha.storage.backup.segments import encode_segment, name_of, read_segment
from tests.support.entries import Log, group, opening

LINEAGE = "ab" * 16
KEY = DataKey("0f" * 16, bytes(32), 1)
KEYS = KeyRing([KEY])


def written(count: int = 6) -> list[Entry]:
    """A log of all kinds of entries."""
    log = Log()
    log.noop(time_us=7)
    log.batch(opening(), time_us=8)
    log.add(EntryKind.MEMBERSHIP, b"members")
    for number in range(1, count - 2):
        log.batch(group(1, number, [b"command %d" % number] * number), time_us=2_000_000 + number)
    return log.entries


def encoded(entries: Sequence[Entry], key: DataKey | None = None) -> tuple[SegmentName, bytes]:
    name = name_of(LINEAGE, 0, entries)
    return name, encode_segment(name, entries, key, 3, salt=bytes(16))


def forged(entries: Sequence[Entry], name: SegmentName) -> bytes:
    """The object that holds these entries under a name that need not fit."""
    raw = b"".join(len(entry.data).to_bytes(4, "little") + entry.data for entry in entries)
    return write_whole(raw, SEGMENT, segment_name(name), None, 3)


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
@pytest.mark.parametrize("first", [0, 3])
def test_what_is_written_is_read(key: DataKey | None, first: int) -> None:
    entries = written()[first:]
    name, data = encoded(entries, key)
    assert read_segment(data, name, KEYS if key else NO_KEYS) == entries
    assert name == (
        LINEAGE, 0, first + 1, 6, entries[-1].last_sequence, entries[-1].time_us
    )  # fmt: skip


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
def test_each_cut_is_found(key: DataKey | None) -> None:
    name, data = encoded(written(), key)
    for size in range(len(data)):
        with pytest.raises(BackupDamaged):
            read_segment(data[:size], name, KEYS if key else NO_KEYS)


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
def test_each_changed_bit_is_found(key: DataKey | None) -> None:
    name, data = encoded(written(4), key)
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises((BackupDamaged, KeyMissing)):
            read_segment(bytes(changed), name, KEYS if key else NO_KEYS)


@pytest.mark.parametrize("field", SegmentName._fields[1:])
def test_another_name_is_found(field: str) -> None:
    name, data = encoded(written())
    other = name._replace(**{field: getattr(name, field) + 1})
    with pytest.raises(BackupDamaged):
        read_segment(data, other, NO_KEYS)
    if field != "level":  # The reader doesn't rely on the seal for what the name says.
        with pytest.raises(BackupDamaged, match=r"begins|ends"):
            read_segment(forged(written(), other), other, NO_KEYS)


@pytest.mark.parametrize(
    "order", [[], [0, 1, 3], [0, 2, 1, 3], [0, 0, 1, 2, 3], [0, 1, 2, 3, 4]], ids=str
)
def test_entries_that_do_not_follow_each_other_are_found(order: list[int]) -> None:
    entries = written()
    name = name_of(LINEAGE, 0, entries[:4])
    with pytest.raises(BackupDamaged):
        read_segment(forged([entries[i] for i in order], name), name, NO_KEYS)


def test_an_entry_of_another_log_is_found() -> None:
    """Its index, sequence and time fit, and its own bytes are whole: only the hash tells."""
    entries = written()
    other = make_entry(entries[1].position, 1, entries[2].time_us, EntryKind.NOOP, b"other", 0)
    assert other[:4] == entries[2][:4]
    mixed = [*entries[:2], other, *entries[3:]]
    name = name_of(LINEAGE, 0, entries)
    with pytest.raises(BackupDamaged, match="does not follow"):
        read_segment(forged(mixed, name), name, NO_KEYS)


@pytest.mark.parametrize("field", [1, 2, 3], ids=["term", "time", "sequence"])
def test_entries_that_go_back_are_found(field: int) -> None:
    """A forger can chain hashes, but not make the order wrong."""
    before = [5, 5, 500, 50, bytes(16)]
    first = make_entry(LogPosition(*before), 5, 500, EntryKind.NOOP, b"", 0)  # type: ignore[arg-type]
    lower = list(first.position)
    lower[field] = 1
    second = make_entry(LogPosition(*lower), lower[1], 1, EntryKind.NOOP, b"", 0)  # type: ignore[arg-type]
    name = name_of(LINEAGE, 0, [first, second])
    with pytest.raises(BackupDamaged, match="goes back"):
        read_segment(forged([first, second], name), name, NO_KEYS)


def test_large_entries_take_several_frames() -> None:
    log = Log()
    log.batch(group(1, 1, [bytes(3 << 20)]))
    log.batch(group(1, 2, [b"x" * 1_000_003]))
    name, data = encoded(log.entries)
    assert read_segment(data, name, NO_KEYS) == log.entries


@pytest.mark.parametrize("size", [ENTRY_BYTES_MAX + 1, 0xFFFF_FFFF, 0, 55])
def test_an_impossible_length_is_found_before_its_bytes_are_read(size: int) -> None:
    entries = written()
    name = name_of(LINEAGE, 0, entries)
    raw = size.to_bytes(4, "little") + entries[0].data
    with pytest.raises(BackupDamaged, match=r"entry|entries"):
        read_segment(write_whole(raw, SEGMENT, segment_name(name), None, 1), name, NO_KEYS)


def test_a_segment_that_grows_beyond_its_limit_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(segments, "MERGED_RAW_BYTES", 1 << 20)
    log = Log()
    for number in range(1, 20):
        log.batch(group(1, number, [bytes(1 << 20)]))
    name, data = encoded(log.entries)
    assert len(data) < 1 << 20
    with pytest.raises(BackupDamaged, match="more than a segment may"):
        read_segment(data, name, NO_KEYS)
