"""The log, cut off at every disk operation of a fixed workload and of its recovery."""

from __future__ import annotations

import errno
from random import Random

import pytest

from raftha.entry import HardState
from raftha.errors import StorageError
from raftha.storage.log.wal import Wal
from tests.sim.disk import Crashed, SimulatedDisk
from tests.support.wal import LogModel, entries_after, opener, reopen_cut_off


def workload(wal: Wal, model: LogModel, rng: Random) -> None:
    """Appends small and large, superseding and not, rolls, compactions, spares."""
    for step in range(24):
        if step % 6 == 3:
            first = rng.randint(max(wal.base.index, len(model.entries) - 8), len(model.entries))
            first = max(first, model.compacted)
        else:
            first = len(model.entries)
        sizes = [rng.choice((0, 50, 700, 2500)) for _ in range(rng.randint(0, 4))]
        if step == 10:
            sizes = [2500] * 9
        entries = entries_after(model.position(first), step + 1, sizes)
        hard_state = HardState(step + 1, rng.randint(0, 3), 0) if step % 3 == 0 else None
        model.append(wal, hard_state, entries)
        if step % 8 == 7:
            model.compact(wal, max(model.compacted, len(model.entries) - 3))
        if step % 9 == 2:
            wal.prepare_spare()
    wal.close()


def run_cut_off(seed: int, cut: int, error: Exception, *, power: bool) -> bool:
    """Run the workload, cut off at operation `cut`; return True if it was reached.

    Recovery is cut off as well, at a random operation, before it may complete. The entries that it
    found must then survive a power cut, since Raft relies on them at once.
    """
    rng = Random(seed)
    disk = SimulatedDisk(Random(f"{seed} {cut}"))
    open_wal = opener(disk, seed=seed)
    model = LogModel()
    wal = open_wal()
    disk.fail_after(cut, error)
    try:
        workload(wal, model, rng)
    except (Crashed, StorageError):
        is_reached = True
    else:
        is_reached = False
    if power:
        disk.crash()
    wal = reopen_cut_off(disk, open_wal, Random(cut).randint(0, 20), power=power)
    model.check(wal)
    disk.crash()
    wal = open_wal()
    model.check(wal)
    model.append(wal, HardState(99, 1, 1), entries_after(wal.last, 99, [10, 3000, 10]))
    disk.crash()
    model.check(open_wal())
    return is_reached


ENDS: dict[str, tuple[Exception, bool]] = {
    "power cut": (Crashed(), True),
    "killed": (Crashed(), False),
    "I/O error": (OSError(errno.EIO, "failed"), False),
    "I/O error, then power cut": (OSError(errno.EIO, "failed"), True),
    "disk full": (OSError(errno.ENOSPC, "full"), False),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize(
    "seeds", [range(1), pytest.param(range(1, 13), marks=pytest.mark.slow)], ids=["one", "many"]
)
def test_nothing_acknowledged_is_lost_wherever_it_is_cut_off(
    seeds: range, part: int, end: str
) -> None:
    error, power = ENDS[end]
    for seed in seeds:
        cut = part
        while run_cut_off(seed, cut, error, power=power):
            cut += 4
        assert cut > 80
