"""The log on disk: the damage that it notices."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from raftha.entry import LOG_START, Entry, HardState
from raftha.errors import Corrupt, StorageError
from raftha.storage.log.segment import HEADER_BYTES
from raftha.storage.log.wal import Wal
from tests.sim.disk import SimulatedDisk
from tests.support.wal import (
    FOLDER,
    SEGMENT_BYTES,
    entries_after,
    fill,
    opener,
    read_all,
    segment_names,
)


@pytest.fixture
def disk() -> SimulatedDisk:
    return SimulatedDisk(Random(1))


@pytest.fixture
def open_wal(disk: SimulatedDisk) -> Callable[[], Wal]:
    return opener(disk)


def damaged_reads(disk: SimulatedDisk, open_wal: Callable[[], Wal], entries: list[Entry]) -> bool:
    """True if the log reports damage; otherwise it must hold what was appended."""
    before = {name: disk.contents(f"{FOLDER}/{name}") for name in disk.listdir(FOLDER)}
    try:
        wal = open_wal()
    except Corrupt:
        after = {name: disk.contents(f"{FOLDER}/{name}") for name in disk.listdir(FOLDER)}
        assert before == after, "a damaged log is left as it is"
        return True
    assert read_all(wal) == entries
    assert wal.hard_state == HardState(1, 2, 3)
    return False


def small_log(open_wal: Callable[[], Wal]) -> tuple[Wal, list[Entry]]:
    wal = open_wal()
    wal.append(HardState(1, 2, 3), [])
    entries = fill(wal, 4, size=30)
    entries += fill(wal, 1, size=wal.entry_bytes_max - 100)
    return wal, entries + fill(wal, 3, size=30)


@pytest.mark.parametrize("every", [61, pytest.param(1, marks=pytest.mark.slow)])
def test_every_flipped_bit_of_acknowledged_data_is_noticed(
    disk: SimulatedDisk, open_wal: Callable[[], Wal], every: int
) -> None:
    wal, entries = small_log(open_wal)
    wal.close()
    first, second, third = (f"{FOLDER}/{name}" for name in segment_names(disk))
    ends = {first: 4096 + 40 + 80 + 4 * (40 + 16 + 88), second: 4096 + 200, third: 4096 + 3 * 144}
    bits = [
        (path, offset, bit)
        for path, end in ends.items()
        for offset in [*range(300), *range(4000, end)]
        for bit in range(8)
    ]
    unnoticed = 0
    for path, offset, bit in bits[::every]:
        disk.flip(path, offset, bit)
        unnoticed += not damaged_reads(disk, open_wal, entries)
        disk.flip(path, offset, bit)
    padding_bits = 8 * 8 * 2  # Payloads of 30 bytes end 2 bytes before a multiple of 8.
    assert unnoticed <= padding_bits / every + 1


def test_damage_to_the_last_write_is_noticed_after_a_close(
    disk: SimulatedDisk, open_wal: Callable[[], Wal]
) -> None:
    wal, entries = small_log(open_wal)
    end = 4096 + wal.size_bytes
    wal.close()
    path = f"{FOLDER}/{segment_names(disk)[-1]}"
    end = disk.contents(path).rindex(b"8/1/")
    disk.flip(path, end, 0)
    assert damaged_reads(disk, open_wal, entries)


def test_damage_to_the_last_write_without_a_close_is_a_torn_tail(
    disk: SimulatedDisk, open_wal: Callable[[], Wal]
) -> None:
    """Nothing on the disk can tell them apart. Raft's majority has the entry elsewhere."""
    _, entries = small_log(open_wal)
    path = f"{FOLDER}/{segment_names(disk)[-1]}"
    disk.flip(path, disk.contents(path).rindex(b"8/1/"), 0)
    assert read_all(open_wal()) == entries[:-1]


def test_a_segments_first_write_is_never_torn(
    disk: SimulatedDisk, open_wal: Callable[[], Wal]
) -> None:
    wal = open_wal()
    fill(wal, 2, size=wal.entry_bytes_max - 100)
    assert len(segment_names(disk)) == 2
    disk.flip(f"{FOLDER}/{2:016x}.seg", 4096 + 200, 5)
    with pytest.raises(Corrupt, match="durable up to") as caught:
        open_wal()
    assert caught.value.offset == 4096


def test_a_segment_ends_where_the_next_one_says(
    disk: SimulatedDisk, open_wal: Callable[[], Wal]
) -> None:
    """Its last write was durable too, so this is no torn tail."""
    wal = open_wal()
    fill(wal, 20)
    path = f"{FOLDER}/{1:016x}.seg"
    last = disk.contents(path).rindex(b"/1/")
    disk.flip(path, last, 0)
    with pytest.raises(Corrupt, match="the log goes on to") as caught:
        open_wal()
    assert last - 2000 < caught.value.offset < last


@pytest.mark.parametrize("which", [0, 1, 2])
def test_every_truncated_file_is_noticed(
    disk: SimulatedDisk, open_wal: Callable[[], Wal], which: int
) -> None:
    _, entries = small_log(open_wal)
    path = f"{FOLDER}/{segment_names(disk)[which]}"
    whole = disk.contents(path)
    for size in [*range(0, SEGMENT_BYTES, 509), 4095, 4096, 4097, SEGMENT_BYTES - 1]:
        disk.damage(path, whole[:size])
        assert damaged_reads(disk, open_wal, entries)
    disk.damage(path, whole + b"x")
    assert damaged_reads(disk, open_wal, entries)


def test_zeroed_out_acknowledged_sectors_are_noticed(
    disk: SimulatedDisk, open_wal: Callable[[], Wal]
) -> None:
    wal = open_wal()
    entries = fill(wal, 6)
    wal.append(HardState(1, 2, 3), [])
    path = f"{FOLDER}/{1:016x}.seg"
    whole = disk.contents(path)
    for start in range(4096, 4096 + 6 * 1000, 512):
        disk.damage(path, whole[:start] + bytes(512) + whole[start + 512 :])
        assert damaged_reads(disk, open_wal, entries)


def test_a_missing_segment_in_the_middle_is_noticed(
    disk: SimulatedDisk, open_wal: Callable[[], Wal]
) -> None:
    wal = open_wal()
    fill(wal, 40)
    disk.unlink(f"{FOLDER}/{2:016x}.seg")
    with pytest.raises(Corrupt, match="missing"):
        open_wal()


def test_segments_in_each_others_place_are_noticed(
    disk: SimulatedDisk, open_wal: Callable[[], Wal]
) -> None:
    wal = open_wal()
    fill(wal, 40)
    second, third = (disk.contents(f"{FOLDER}/{i:016x}.seg") for i in (2, 3))
    disk.damage(f"{FOLDER}/{2:016x}.seg", third)
    disk.damage(f"{FOLDER}/{3:016x}.seg", second)
    with pytest.raises(Corrupt, match="the file is segment 3"):
        open_wal()


def test_a_segment_of_another_log_is_noticed(disk: SimulatedDisk) -> None:
    fill(opener(disk, "a", 1)(), 40)
    fill(opener(disk, "b", 2)(), 40)
    disk.damage(f"a/{2:016x}.seg", disk.contents(f"b/{2:016x}.seg"))
    with pytest.raises(Corrupt, match="doesn't follow"):
        opener(disk, "a", 3)()


def test_an_entry_of_another_log_is_noticed(
    disk: SimulatedDisk, open_wal: Callable[[], Wal]
) -> None:
    """The chain of hashes shows it; a checksum can't."""
    wal = open_wal()
    fill(wal, 2)
    wal.append(None, entries_after(entries_after(LOG_START, 7, [1, 1])[1].position, 7, [5]))
    with pytest.raises(Corrupt, match="another log"):
        open_wal()


def test_damage_under_a_running_log_is_noticed_by_read(
    disk: SimulatedDisk, open_wal: Callable[[], Wal]
) -> None:
    wal = open_wal()
    fill(wal, 5)
    path = f"{FOLDER}/{1:016x}.seg"
    disk.flip(path, disk.contents(path).index(b"3/1/"), 0)
    assert len(wal.read(1, 1)) == 1
    with pytest.raises(Corrupt, match="checksum"):
        wal.read(3, 1)


def test_a_log_of_another_format_is_no_damage(
    disk: SimulatedDisk, open_wal: Callable[[], Wal], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftha.storage.log.segment.VERSION", 2)
    open_wal()
    monkeypatch.undo()
    with pytest.raises(StorageError, match="format") as caught:
        open_wal()
    assert not isinstance(caught.value, Corrupt)


def test_a_seal_keeps_the_commit_index_of_an_idle_log(open_wal: Callable[[], Wal]) -> None:
    wal = open_wal()
    fill(wal, 3)
    before = wal.hard_state
    wal.seal(3)
    wal.seal(2)
    assert open_wal().hard_state == before._replace(commit=3)


def test_damage_to_the_last_write_is_noticed_once_the_log_is_sealed(
    disk: SimulatedDisk, open_wal: Callable[[], Wal]
) -> None:
    wal = open_wal()
    fill(wal, 3)
    end = wal.size_bytes
    wal.seal()
    assert wal.size_bytes > end
    (name,) = segment_names(disk)
    handle = disk.open(f"{FOLDER}/{name}")
    offset = HEADER_BYTES + end - 100
    disk.pwrite(handle, bytes(byte ^ 1 for byte in disk.pread(handle, 1, offset)), offset)
    disk.fdatasync(handle)
    with pytest.raises(Corrupt):
        open_wal()
