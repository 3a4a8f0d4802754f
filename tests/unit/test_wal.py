"""The log on disk: what it keeps, what it refuses, how it fails."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from raftha.config import MIB
from raftha.entry import LOG_START, HardState
from raftha.errors import Compacted, StorageError, StorageFailed, StorageFull
from raftha.storage.log.disk import RealDisk
from raftha.storage.log.spares import SparePacer
from raftha.storage.log.wal import Wal
from tests.sim.disk import Crashed, SimulatedDisk
from tests.support.wal import (
    FOLDER,
    SEGMENT_BYTES,
    entries_after,
    fill,
    opener,
    read_all,
    salts,
    segment_names,
    spare_names,
)


@pytest.fixture
def disk() -> SimulatedDisk:
    return SimulatedDisk(Random(1))


@pytest.fixture
def open_wal(disk: SimulatedDisk) -> Callable[[], Wal]:
    return opener(disk)


def test_an_empty_folder_is_an_empty_log(open_wal: Callable[[], Wal]) -> None:
    wal = open_wal()
    assert (wal.first_index, wal.last_index) == (1, 0)
    assert wal.base == wal.last == LOG_START
    assert wal.hard_state == HardState(0, 0, 0)
    assert wal.read(1, 1000) == []
    wal.append(None, [])


def test_appended_entries_survive_close_kill_and_crash(
    disk: SimulatedDisk, open_wal: Callable[[], Wal]
) -> None:
    wal = open_wal()
    entries = entries_after(LOG_START, 3, [0, 1, 7, 8, 9, 3000] * 20)
    wal.append(HardState(3, 2, 0), entries[:50])
    wal.append(None, entries[50:])
    wal.append(HardState(3, 2, 110), [])
    for end in (wal.close, lambda: None, disk.crash):
        end()
        wal = open_wal()
        assert read_all(wal) == entries
        assert wal.last == entries[-1].position
        assert wal.hard_state == HardState(3, 2, 110)
    assert len(segment_names(disk)) > 3


def test_the_real_disk_keeps_a_log_too(tmp_path: Path) -> None:
    open_wal = opener(RealDisk(), str(tmp_path / "deep" / "wal"))
    wal = open_wal()
    entries = fill(wal, 30)
    wal.compact(15)
    wal.prepare_spare()
    wal.close()
    wal = open_wal()
    assert 0 < wal.base.index <= 15
    assert read_all(wal) == entries[wal.base.index :]
    wal.close()


def test_a_later_entry_supersedes_all_from_its_index_on(
    disk: SimulatedDisk, open_wal: Callable[[], Wal]
) -> None:
    wal = open_wal()
    old = fill(wal, 5, size=10)
    new = entries_after(old[1].position, 2, [20])
    wal.append(HardState(2, 1, 0), new)
    assert read_all(wal) == [*old[:2], *new]
    disk.crash()
    wal = open_wal()
    assert read_all(wal) == [*old[:2], *new]
    assert wal.last == new[-1].position


def test_superseding_what_an_earlier_segment_holds_begins_a_new_segment(
    disk: SimulatedDisk, open_wal: Callable[[], Wal]
) -> None:
    wal = open_wal()
    old = fill(wal, 30)
    assert len(segment_names(disk)) == 3
    new = entries_after(old[4].position, 2, [20, 20])
    wal.append(None, new)
    assert len(segment_names(disk)) == 4
    assert read_all(wal) == old[:5] + new
    disk.crash()
    wal = open_wal()
    assert read_all(wal) == old[:5] + new
    wal.append(None, entries_after(LOG_START, 3, [1]))
    disk.crash()
    assert read_all(open_wal()) == entries_after(LOG_START, 3, [1])


def test_gaps_and_compacted_entries_are_refused(open_wal: Callable[[], Wal]) -> None:
    wal = open_wal()
    entries = fill(wal, 30)
    wal.compact(20)
    with pytest.raises(AssertionError):
        wal.append(None, entries_after(entries[-1].position, 1, [1, 1])[1:])
    with pytest.raises(AssertionError):
        wal.append(None, entries[:1])


def test_an_append_larger_than_a_segment_becomes_several_writes(
    disk: SimulatedDisk, open_wal: Callable[[], Wal]
) -> None:
    wal = open_wal()
    entries = entries_after(LOG_START, 1, [5000] * 20)
    wal.append(HardState(1, 1, 0), entries)
    disk.crash()
    wal = open_wal()
    assert read_all(wal) == entries
    assert wal.hard_state == HardState(1, 1, 0)


def test_the_largest_entry_fits_and_a_larger_one_is_refused(open_wal: Callable[[], Wal]) -> None:
    wal = open_wal()
    largest = wal.entry_bytes_max - 56
    wal.append(HardState(1, 1, 0), entries_after(LOG_START, 1, [largest]))
    with pytest.raises(AssertionError, match="fit"):
        wal.append(None, entries_after(wal.last, 1, [largest + 100]))
    assert len(wal.read(1, 1)) == 1


def test_read_returns_about_as_much_as_asked_and_at_least_one(
    open_wal: Callable[[], Wal],
) -> None:
    wal = open_wal()
    entries = fill(wal, 9)
    assert wal.read(4, 0) == wal.read(4, 1) == wal.read(4, 1500) == entries[3:4]
    assert wal.read(4, 2500) == entries[3:5]
    assert wal.read(4, 1 << 30) == entries[3:]
    assert wal.read(10, 1000) == []


def test_compact_frees_whole_segments_and_keeps_two_as_spares(
    disk: SimulatedDisk, open_wal: Callable[[], Wal]
) -> None:
    wal = open_wal()
    entries = fill(wal, 60)
    size = wal.size_bytes
    wal.compact(50)
    assert 30 < wal.base.index <= 50
    assert wal.base == entries[wal.base.index - 1].position
    assert read_all(wal) == entries[wal.base.index :]
    assert wal.size_bytes < size
    assert len(spare_names(disk)) == 2
    with pytest.raises(Compacted) as caught:
        wal.read(wal.base.index, 1000)
    assert caught.value.first_index == wal.first_index
    base = wal.base
    for _ in range(2):
        disk.crash()
        wal = open_wal()
        assert wal.base == base
        wal.compact(base.index)
        assert read_all(wal) == entries[base.index :]


def test_compact_never_frees_the_current_segment(open_wal: Callable[[], Wal]) -> None:
    wal = open_wal()
    fill(wal, 5)
    wal.compact(5)
    assert wal.base == LOG_START


def test_compact_keeps_what_a_superseded_tail_hides(
    disk: SimulatedDisk, open_wal: Callable[[], Wal]
) -> None:
    """Segment 1 holds entries 1.., segment 3 begins again at 6: base(2) says nothing about it."""
    wal = open_wal()
    old = fill(wal, 20)
    new = entries_after(old[4].position, 2, [1000] * 4)
    wal.append(None, new)
    wal.compact(4)
    assert wal.base == LOG_START
    wal.compact(5)
    assert wal.base == old[4].position
    assert read_all(wal) == new
    disk.crash()
    assert read_all(open_wal()) == new


def test_a_compaction_cut_short_between_branches_is_finished_by_recovery(
    disk: SimulatedDisk, open_wal: Callable[[], Wal]
) -> None:
    """Only segment 1 is gone: segment 2 begins after entry 13 of a branch that 3 supersedes."""
    wal = open_wal()
    old = fill(wal, 20)
    new = entries_after(old[4].position, 2, [1000] * 4)
    wal.append(None, new)
    disk.unlink(f"{FOLDER}/{1:016x}.seg")
    wal = open_wal()
    assert wal.base == old[4].position
    assert read_all(wal) == new
    wal.compact(5)
    assert read_all(wal) == new
    assert segment_names(disk) == [f"{3:016x}.seg"]


def test_a_spare_is_made_in_parts(disk: SimulatedDisk) -> None:
    salt = salts(1)
    wal = Wal.open(disk, FOLDER, segment_bytes=6 * MIB, salt=lambda: next(salt))
    made: list[float] = []

    def on_part(share: float) -> bool:
        made.append(share * 6)
        return share * 6 < 1

    wal.prepare_spare(on_part)
    assert made == [0, 0.5, 1, 5], "small ones, then large ones"
    wal.prepare_spare(on_part)
    assert len(made) == 4, "there is one already"
    assert 0 < wal.used < 0.01
    wal.append(None, entries_after(wal.last, 1, [MIB]))
    assert 1 / 6 < wal.used < 1 / 6 + 0.01


@pytest.mark.parametrize(
    ("filling", "is_paced"),
    [
        (0.0, [True, True, True]),  # Segments a second.
        (0.1, [True, True, True]),
        (9.0, [False, False, True]),  # The rest is needed soon, until little of it is left.
        (-1.0, [False, False, False]),  # The log has gone on to the next segment already.
    ],
)
def test_making_a_spare_leaves_the_disk_to_the_log_unless_needed_soon(
    filling: float, is_paced: list[bool]
) -> None:
    now, used, pauses = 0.0, 0.1, list[float]()

    def wait(pause_s: float) -> bool:
        nonlocal now
        now += pause_s
        pauses.append(pause_s)
        return False

    pacer = SparePacer(lambda: used, wait, lambda: now)
    assert pacer.on_part(0.0) and not pauses, "there was no part yet"
    seen = []
    for made in (0.25, 0.5, 0.75):
        now += 0.01
        used = 0.1 + filling * now
        seen.append(pacer.on_part(made))
        assert pauses == ([pytest.approx(0.03)] if seen[-1] else [])
        pauses.clear()
    assert seen == is_paced


def test_making_a_spare_hurries_when_the_log_waits_for_it() -> None:
    now = 0.0
    pacer = SparePacer(lambda: 0.1, lambda _: True, lambda: now)
    now = 0.01
    assert not pacer.on_part(0.25)


def test_spares_are_used_and_those_of_another_size_removed(disk: SimulatedDisk) -> None:
    wal = opener(disk)()
    wal.prepare_spare()
    wal.prepare_spare()
    assert spare_names(disk) == ["spare-2.seg"]
    fill(wal, 12)
    assert spare_names(disk) == []
    wal.prepare_spare()
    wal.close()
    salt = salts(2)
    disk.open(f"{FOLDER}/spare-9.tmp", create=True)
    wal = Wal.open(disk, FOLDER, segment_bytes=2 * SEGMENT_BYTES, salt=lambda: next(salt))
    assert spare_names(disk) == []
    fill(wal, 60)
    wal.compact(50)
    assert len(spare_names(disk)) == 1
    assert wal.last_index == 72


@pytest.mark.parametrize("size", [1000, 4096 - 40 - 16 - 56])
def test_records_of_a_files_earlier_life_stay_dead(
    disk: SimulatedDisk, open_wal: Callable[[], Wal], size: int
) -> None:
    """Segments are recycled many times, each with the same layout of records as before.

    Writes of the second size end with a page, so no zeros separate them from the old contents.
    """
    wal = open_wal()
    for _ in range(20):
        for _ in range(7):
            last = fill(wal, 1, size=size)[0].position
            wal.compact(wal.last_index)
            disk.crash()
            wal = open_wal()
            assert wal.last == last
        fill(wal, 7, size=size)
        wal.compact(wal.last_index)


def test_torn_writes_do_not_join() -> None:
    """Two appends of the same layout at the same place, both torn: no mixture is ever whole.

    Records stand on whole sectors here, so that each sector of either append is valid by itself.
    """
    torn = 0
    for seed in range(100):
        disk = SimulatedDisk(Random(seed))
        open_wal = opener(disk, seed=seed)
        wal = open_wal()
        base = fill(wal, 1, size=512 - 3 * 40 - 16 - 56)
        assert (wal.size_bytes + 40) % 512 == 0
        for term in (2, 3):
            entries = entries_after(base[0].position, term, [512 - 16 - 56] * 3)
            disk.fail_after(1, Crashed())
            with pytest.raises(Crashed):
                wal.append(None, entries)
            disk.crash()
            disk.fault = None
            wal = open_wal()
            assert read_all(wal) in (base, base + entries)
            if wal.last_index > 1:
                break
            torn += 1
    assert torn > 50


# Failures.


def test_a_failed_sync_is_final(disk: SimulatedDisk, open_wal: Callable[[], Wal]) -> None:
    wal = open_wal()
    entries = fill(wal, 3)
    disk.fail_after(1, OSError(errno.EIO, "failed"))
    with pytest.raises(StorageFailed, match="failed"):
        fill(wal, 1)
    calls: list[Callable[[], object]] = [
        lambda: wal.append(None, entries_after(wal.last, 1, [1])),
        lambda: wal.read(1, 1),
        lambda: wal.compact(1),
        wal.prepare_spare,
    ]
    for call in calls:
        with pytest.raises(StorageFailed, match="failed"):
            call()
    assert wal.last_index == 3
    wal.close()
    wal.close()
    disk.crash()
    assert read_all(open_wal())[:3] == entries


def test_entries_recovered_after_a_failed_sync_are_durable(
    disk: SimulatedDisk, open_wal: Callable[[], Wal]
) -> None:
    """The page cache shows the write, the disk lacks it, and a second sync would not help."""
    wal = open_wal()
    disk.fail_after(1, OSError(errno.EIO, "failed"))
    with pytest.raises(StorageFailed):
        fill(wal, 1)
    assert open_wal().last_index == 1
    disk.crash()
    assert open_wal().last_index == 1


def test_a_full_disk_refuses_and_goes_on_when_there_is_space(
    disk: SimulatedDisk, open_wal: Callable[[], Wal]
) -> None:
    wal = open_wal()
    disk.capacity_bytes = 2 * SEGMENT_BYTES - 1
    with pytest.raises(StorageFull):
        fill(wal, 20)
    held = wal.last_index
    assert 0 < held < 20
    with pytest.raises(StorageFull):
        fill(wal, 20)
    with pytest.raises(StorageFull):
        wal.prepare_spare()
    assert spare_names(disk) == []
    disk.capacity_bytes = None
    entries = read_all(wal) + fill(wal, 20)
    disk.crash()
    assert read_all(open_wal()) == entries


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
@pytest.mark.parametrize("has_spare", [False, True])
def test_without_a_descriptor_for_the_next_segment_writes_wait(
    disk: SimulatedDisk, open_wal: Callable[[], Wal], code: int, has_spare: bool
) -> None:
    """A host's clients may take all of them for a while: that is no failed disk."""
    wal = open_wal()
    if has_spare:
        wal.prepare_spare()
    spares = spare_names(disk)

    def refuse(operation: str, path: str) -> None:
        if operation == "open":
            raise OSError(code, os.strerror(code), path)

    disk.fault = refuse
    with pytest.raises(StorageFull, match="can't open"):
        fill(wal, 20)
    held = wal.last_index
    assert 0 < held < 20
    with pytest.raises(StorageFull, match="limit of open files"):
        fill(wal, 20)
    wal.compact(held)
    assert spare_names(disk) == spares, "a spare that was made stays"
    disk.fault = None
    entries = read_all(wal) + fill(wal, 20)
    disk.crash()
    assert read_all(open_wal()) == entries


def test_a_spare_that_was_removed_by_hand_is_made_again(
    disk: SimulatedDisk, open_wal: Callable[[], Wal]
) -> None:
    wal = open_wal()
    wal.prepare_spare()
    (spare,) = spare_names(disk)
    disk.unlink(f"{FOLDER}/{spare}")
    entries = fill(wal, 20)
    disk.crash()
    assert read_all(open_wal()) == entries


def test_opening_on_a_full_disk_says_so(disk: SimulatedDisk, open_wal: Callable[[], Wal]) -> None:
    disk.capacity_bytes = 1000
    with pytest.raises(StorageFull):
        open_wal()
    disk.capacity_bytes = None
    assert open_wal().last_index == 0


def test_a_disk_that_refuses_to_be_read_fails_the_opening(
    disk: SimulatedDisk, open_wal: Callable[[], Wal]
) -> None:
    fill(open_wal(), 3)
    disk.fail_after(5, OSError(errno.EIO, "failed"))
    with pytest.raises(StorageFailed):
        open_wal()
    disk.fault = None
    assert open_wal().last_index == 3


def test_a_closed_log_refuses(open_wal: Callable[[], Wal]) -> None:
    wal = open_wal()
    fill(wal, 1)
    wal.close()
    wal.close()
    with pytest.raises(StorageFailed, match="closed"):
        wal.append(None, entries_after(wal.last, 1, [1]))
    with pytest.raises(StorageFailed, match="closed"):
        wal.read(1, 1)


def test_a_close_on_a_full_disk_leaves_out_the_seal(
    disk: SimulatedDisk, open_wal: Callable[[], Wal]
) -> None:
    wal = open_wal()
    wal.append(HardState(1, 1, 1), entries_after(LOG_START, 1, [wal.entry_bytes_max - 100]))
    disk.capacity_bytes = SEGMENT_BYTES
    wal.close()
    assert open_wal().last_index == 1
    disk.capacity_bytes = None
    open_wal().close()
    assert len(segment_names(disk)) == 2
    assert open_wal().last_index == 1


@pytest.mark.slow
def test_readers_go_on_while_segments_come_and_go(tmp_path: Path) -> None:
    wal = opener(RealDisk(), str(tmp_path))()
    is_done = threading.Event()
    problems: list[Exception] = []
    count = 0

    def read() -> None:
        nonlocal count
        try:
            while not is_done.is_set():
                lo = wal.first_index
                try:
                    entries = wal.read(lo, 20_000)
                except Compacted:
                    continue
                count += len(entries)
                assert [entry.index for entry in entries] == list(range(lo, lo + len(entries)))
        except (StorageError, OSError, AssertionError) as error:
            problems.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        fill(wal, 10, size=1200)
        wal.compact(wal.last_index - 5)
    is_done.set()
    for thread in threads:
        thread.join()
    wal.close()
    assert not problems
    assert count > 0
