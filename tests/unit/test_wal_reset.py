"""A reset of the log, cut off at every disk operation of the reset and of the recovery after it."""

from __future__ import annotations

from random import Random

import pytest

from raftha.entry import HardState, LogPosition
from raftha.errors import Compacted, StorageError
from raftha.storage.log.wal import Wal
from tests.sim.disk import Crashed, SimulatedDisk
from tests.support.wal import entries_after, opener, read_all, reopen_cut_off

AHEAD = LogPosition(1000, 7, 7000, 5000, b"h" * 16)


def fill(wal: Wal) -> None:
    """Some segments of log, the last entries superseded once, and a vote."""
    for term in range(1, 10):
        wal.append(HardState(term, 2, 0), entries_after(wal.last, term, [3000, 10, 3000]))


def snapshot(wal: Wal) -> tuple[LogPosition, LogPosition, HardState, int]:
    return wal.base, wal.last, wal.hard_state, len(read_all(wal))


def test_a_reset_log_begins_behind_the_position_and_keeps_term_and_vote() -> None:
    disk = SimulatedDisk(Random(1))
    open_wal = opener(disk)
    wal = open_wal()
    fill(wal)
    wal.reset(AHEAD)
    for _ in range(2):
        assert (wal.base, wal.last, wal.first_index) == (AHEAD, AHEAD, 1001)
        assert wal.hard_state == HardState(9, 2, 1000)
        assert wal.read(1001, 100) == []
        with pytest.raises(Compacted):
            wal.read(1000, 100)
        disk.crash()
        wal = open_wal()
    entries = entries_after(AHEAD, 9, [10, 9000, 9000])
    wal.append(None, entries)
    wal.close()
    assert read_all(open_wal()) == entries


def test_a_reset_may_go_back_to_before_the_end_of_the_log() -> None:
    """If the entry at the snapshot's position differs, all entries after it are void."""
    disk = SimulatedDisk(Random(1))
    open_wal = opener(disk)
    wal = open_wal()
    fill(wal)
    position = AHEAD._replace(index=5, term=20)
    wal.reset(position)
    assert wal.hard_state == HardState(20, 0, 5), "a vote belongs to its term"
    entries = entries_after(position, 20, [10, 9000, 9000])
    wal.append(None, entries)
    wal.compact(6)
    assert read_all(open_wal())[-2:] == entries[-2:]


def test_segments_from_before_a_reset_are_freed() -> None:
    disk = SimulatedDisk(Random(1))
    wal = opener(disk)()
    fill(wal)
    wal.reset(AHEAD)
    assert (
        sum(name.endswith(".seg") and "spare" not in name for name in disk.listdir("n1/wal")) == 1
    )
    assert wal.size_bytes < 4096


@pytest.mark.parametrize("power", [True, False], ids=["power cut", "killed"])
@pytest.mark.parametrize("target", [AHEAD, AHEAD._replace(index=5)], ids=["ahead", "back"])
def test_a_reset_has_happened_or_not_wherever_it_is_cut_off(
    target: LogPosition, power: bool
) -> None:
    outcomes = set()
    for cut in range(200):
        disk = SimulatedDisk(Random(f"{cut} {power}"))
        open_wal = opener(disk)
        wal = open_wal()
        fill(wal)
        before = snapshot(wal)
        after = (target, target, HardState(9, 2, max(0, target.index)), 0)
        disk.fail_after(cut, Crashed())
        try:
            wal.reset(target)
        except (Crashed, StorageError):
            is_reached = True
        else:
            is_reached = False
        if power:
            disk.crash()
        wal = reopen_cut_off(disk, open_wal, Random(cut).randint(0, 25), power=power)
        found = snapshot(wal)
        assert found in (before, after)
        if not is_reached:
            assert found == after
        outcomes.add(found)
        disk.crash()
        wal = open_wal()
        assert snapshot(wal) == found, "what was found once is found again"
        wal.append(HardState(30, 1, 0), entries_after(wal.last, 30, [10, 3000, 10]))
        disk.crash()
        assert open_wal().last == wal.last
        if not is_reached:
            break
    assert outcomes == {before, after}
    assert cut > 8


def test_index_within_keeps_at_most_so_many_bytes() -> None:
    wal = opener(SimulatedDisk(Random(1)))()
    fill(wal)
    size = wal.size_bytes
    assert wal.index_within(size) == 0
    index = wal.index_within(size // 2)
    wal.compact(index)
    assert wal.base.index == index > 0
    assert wal.size_bytes <= size // 2
    assert wal.index_within(0) < wal.last_index, "the segment that is written to stays"
