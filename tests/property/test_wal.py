"""The log against a list, by a machine that appends, supersedes, compacts, crashes and damages."""

from __future__ import annotations

import contextlib
import errno
from random import Random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from raftha.entry import HardState
from raftha.errors import Compacted, Corrupt, StorageError
from raftha.storage.log.wal import Wal
from tests.sim.disk import Crashed, SimulatedDisk
from tests.support.wal import LogModel, entries_after, salts

SEGMENT_BYTES = 16 * 1024
FOLDER = "wal"
SIZES = st.lists(st.sampled_from((0, 1, 30, 500, 3000, 9000)), max_size=5)


class LogMachine(RuleBasedStateMachine):
    """One log, its model, and everything that may happen to them."""

    @initialize(seed=st.integers(0, 1 << 32))
    def begin(self, seed: int) -> None:
        self.rng = Random(seed)
        self.disk = SimulatedDisk(self.rng)
        self.salts = salts(seed)
        self.model = LogModel()
        self.term = 1
        self.committed = 0
        self.open()

    def open(self) -> None:
        self.disk.fault = None
        self.wal = Wal.open(
            self.disk, FOLDER, segment_bytes=SEGMENT_BYTES, salt=lambda: next(self.salts)
        )
        self.model.check(self.wal)

    @rule(sizes=SIZES, back=st.integers(0, 20), vote=st.none() | st.integers(0, 3))
    def append(self, sizes: list[int], back: int, vote: int | None) -> None:
        """Append after the last entry or, as from a new leader, in place of some entries."""
        hard_state = None
        if back or vote is not None:
            self.term += 1
            hard_state = HardState(self.term, vote or 0, self.committed)
        first = max(self.committed, len(self.model.entries) - back) + 1
        entries = entries_after(self.model.position(first - 1), self.term, sizes)
        self.model.append(self.wal, hard_state, entries)

    @rule(
        sizes=SIZES,
        back=st.integers(0, 3),
        operations=st.integers(0, 12),
        code=st.sampled_from((None, errno.EIO, errno.ENOSPC)),
        power=st.booleans(),
    )
    def append_cut_off(
        self, sizes: list[int], back: int, operations: int, code: int | None, power: bool
    ) -> None:
        """Append on a disk that stops, or fails once, at some operation; then start again."""
        self.disk.fail_after(operations, OSError(code, "failed") if code else Crashed())
        with contextlib.suppress(Crashed, StorageError):
            self.append(sizes, back, 1)
        if power:
            self.disk.crash()
        self.open()

    @rule(index=st.integers(0, 200), operations=st.integers(0, 12))
    def compact_cut_off(self, index: int, operations: int) -> None:
        """Lose power during a compaction."""
        self.disk.fail_after(operations, Crashed())
        with contextlib.suppress(Crashed):
            self.compact(index)
        self.disk.crash()
        self.open()

    @rule(index=st.integers(0, 200))
    def compact(self, index: int) -> None:
        self.committed = min(max(self.committed, index), len(self.model.entries))
        self.model.compact(self.wal, self.committed)

    @rule()
    def prepare_spare(self) -> None:
        self.wal.prepare_spare()

    @rule()
    def close_and_open(self) -> None:
        self.wal.close()
        self.open()

    @rule()
    def kill_and_open(self) -> None:
        self.open()

    @rule()
    def crash_and_open(self) -> None:
        self.disk.crash()
        self.open()

    @rule(back=st.integers(0, 30), bytes_max=st.integers(0, 40_000))
    def read(self, back: int, bytes_max: int) -> None:
        lo = max(1, len(self.model.entries) - back)
        if lo < self.wal.first_index:
            with pytest.raises(Compacted):
                self.wal.read(lo, bytes_max)
        else:
            got = self.wal.read(lo, bytes_max)
            assert got == self.model.entries[lo - 1 : lo - 1 + len(got)]
            assert sum(len(entry.data) for entry in got[1:]) <= bytes_max

    @rule(data=st.data())
    def flip_a_bit(self, data: st.DataObject) -> None:
        """Close, so that every byte is covered; damage one; open."""
        self.wal.close()
        names = sorted(name for name in self.disk.listdir(FOLDER) if name[0] == "0")
        path = f"{FOLDER}/{data.draw(st.sampled_from(names))}"
        offset = data.draw(st.integers(0, SEGMENT_BYTES - 1))
        bit = data.draw(st.integers(0, 7))
        self.disk.flip(path, offset, bit)
        with contextlib.suppress(Corrupt):  # If nothing is raised, the bit had no meaning.
            self.open()
        self.disk.flip(path, offset, bit)
        self.open()

    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        self.wal.close()
        names = sorted(name for name in self.disk.listdir(FOLDER) if name[0] == "0")
        path = f"{FOLDER}/{data.draw(st.sampled_from(names))}"
        whole = self.disk.contents(path)
        self.disk.damage(path, whole[: data.draw(st.integers(0, SEGMENT_BYTES - 1))])
        with pytest.raises(Corrupt):
            self.open()
        self.disk.damage(path, whole)
        self.open()

    @invariant()
    def nothing_is_lost_and_nothing_invented(self) -> None:
        self.model.check(self.wal)


@pytest.mark.parametrize("examples", [8, pytest.param(400, marks=pytest.mark.slow)])
def test_the_log_is_a_list_that_survives(examples: int) -> None:
    if examples > 8:
        examples = max(examples, settings().max_examples)
    run_state_machine_as_test(
        LogMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
