"""The spool: what each checkpoint changed, kept for incremental backups."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path
from random import Random

import pytest

from raftha.entry import LOG_START, LogPosition
from raftha.storage.backup import spool as spool_module
from raftha.storage.backup.spool import Spool, SpoolLost
from raftha.storage.log.disk import RealDisk
from raftha.storage.state.blocks import Pair
from tests.sim.disk import Crashed, SimulatedDisk

FOLDER = "/spool"
MIB = 1 << 20


def at(index: int) -> LogPosition:
    return LogPosition(index, 1, 1000 * index, 10 * index, index.to_bytes(16, "big"))


class Checkpoints:
    """A state with a spool: what a node does for each checkpoint, and what each left."""

    def __init__(self, disk: SimulatedDisk, bytes_max: int = MIB) -> None:
        self.disk = disk
        self.bytes_max = bytes_max
        self.states: dict[int, dict[bytes, bytes]] = {0: {}}
        self.durable = LOG_START
        self.spool = self.opened()

    def opened(self) -> Spool:
        return Spool(self.disk, FOLDER, self.bytes_max, self.durable)

    def checkpoint(self, index: int, changes: dict[bytes, bytes | None]) -> None:
        state = dict(self.states[self.durable.index])
        for key, value in changes.items():
            if value is None:
                state.pop(key, None)
            else:
                state[key] = value
        items: list[Pair] = sorted(changes.items())
        self.spool.add(at(index), b"meta %d" % index, items)
        self.states[index], self.durable = state, at(index)
        self.spool.commit(at(index))

    def restored(self, index: int) -> dict[bytes, bytes]:
        """The state at `index`, and what the spool says came after it."""
        with self.spool.reading(index) as reading:
            assert reading.start.index <= index
            assert reading.position == self.durable
            assert reading.meta == b"meta %d" % self.durable.index
            state = dict(self.states[index])
            for piece in reading.pieces:
                for key, value in piece:
                    if value is None:
                        state.pop(key, None)
                    else:
                        state[key] = value
            return state

    def check_all(self) -> None:
        """Whatever the spool reaches leads to the state of now."""
        reach = self.spool.reach.index
        now = self.states[self.durable.index]
        for index in self.states:
            if reach <= index < self.durable.index:
                assert self.restored(index) == now, (index, self.durable.index)


@pytest.fixture
def disk() -> SimulatedDisk:
    return SimulatedDisk(Random(1))


@pytest.fixture
def node(disk: SimulatedDisk) -> Checkpoints:
    node = Checkpoints(disk)
    node.checkpoint(5, {b"a": b"1", b"b": b"2"})
    node.checkpoint(9, {b"a": None, b"c": b"3"})
    node.checkpoint(12, {b"a": b"4", b"c": None})
    return node


def test_deltas_from_any_checkpoint_lead_to_the_last_one(node: Checkpoints) -> None:
    assert node.spool.reach == LOG_START
    node.check_all()


def test_a_delta_may_begin_before_the_position_that_is_asked_for(node: Checkpoints) -> None:
    node.states[7] = node.states[5]
    with node.spool.reading(7) as reading:
        assert reading.start == at(5)
        assert [pair for piece in reading.pieces for pair in piece] == [(b"a", b"4"), (b"c", None)]


def test_a_spool_that_does_not_reach_back_says_so(disk: SimulatedDisk) -> None:
    node = Checkpoints(disk)
    node.durable = at(3)
    node.states[3] = {}
    node.spool = node.opened()
    assert node.spool.reach == at(3)
    node.checkpoint(5, {b"a": b"1"})
    with pytest.raises(SpoolLost, match="begins at entry 3"), node.spool.reading(2):
        pass
    assert node.restored(3) == {b"a": b"1"}


def test_a_restart_finds_the_deltas_again(node: Checkpoints) -> None:
    node.spool = node.opened()
    assert node.spool.reach == LOG_START
    node.check_all()
    node.checkpoint(20, {b"d": b"5"})
    node.check_all()


def test_a_state_that_came_from_elsewhere_begins_a_new_spool(node: Checkpoints) -> None:
    node.durable = at(30)  # A snapshot was installed.
    node.spool = node.opened()
    assert node.spool.reach == at(30)
    assert node.disk.listdir(FOLDER) == []


def test_a_state_of_another_history_begins_a_new_spool(node: Checkpoints) -> None:
    node.durable = at(12)._replace(hash=bytes(16))
    node.spool = node.opened()
    assert node.spool.reach == node.durable
    assert node.disk.listdir(FOLDER) == []


def test_a_state_that_was_built_again_from_the_log_begins_a_new_spool(node: Checkpoints) -> None:
    node.durable = LOG_START
    node.spool = node.opened()
    assert node.spool.reach == LOG_START
    assert node.disk.listdir(FOLDER) == []


def test_a_delta_whose_checkpoint_never_was_is_removed(node: Checkpoints) -> None:
    node.spool.add(at(15), b"meta 15", [(b"x", b"9")])
    node.spool = node.opened()
    node.checkpoint(14, {b"y": b"8"})
    node.check_all()


def test_a_delta_is_durable_when_its_checkpoint_begins(node: Checkpoints) -> None:
    node.spool.add(at(15), b"meta 15", [(b"x", b"9")])
    left = node.disk.without_power()
    spool = Spool(left, FOLDER, MIB, at(15))
    assert spool.reach == LOG_START


def test_a_checkpoint_that_is_tried_again_has_one_delta(node: Checkpoints) -> None:
    node.spool.add(at(15), b"meta 15", [(b"x", b"9")])
    node.checkpoint(15, {b"x": b"9"})
    assert len(node.disk.listdir(FOLDER)) == 4
    node.check_all()


def test_a_large_delta_keeps_its_order_and_its_values(disk: SimulatedDisk) -> None:
    node = Checkpoints(disk, 64 * MIB)
    changes: dict[bytes, bytes | None] = {b"%07d" % i: b"v" * (i % 700) for i in range(3000)}
    changes[b"0000100x"] = bytes(4 * MIB)
    node.checkpoint(1, changes)
    node.checkpoint(2, {b"%07d" % i: None for i in range(0, 3000, 2)})
    node.check_all()


# --- Errors and full disks ------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["open", "fdatasync", "rename", "sync_dir"])
def test_an_error_drops_the_spool_and_not_the_checkpoint(node: Checkpoints, operation: str) -> None:
    def fault(name: str, path: str) -> None:
        if name == operation:
            raise OSError(errno.EIO, "broken")

    node.disk.fault = fault
    node.checkpoint(15, {b"x": b"9"})
    node.disk.fault = None
    assert node.spool.reach == at(15)
    node.checkpoint(16, {b"y": b"1"})
    node.check_all()
    node.spool = node.opened()
    assert node.spool.reach == at(15)
    node.check_all()


def test_files_that_can_not_be_removed_do_not_come_back(node: Checkpoints) -> None:
    def fault(name: str, path: str) -> None:
        if name == "unlink":
            raise OSError(errno.EIO, "broken")

    node.disk.fault = fault
    assert node.spool.drop()
    node.disk.fault = None
    node.checkpoint(15, {b"x": b"9"})
    node.checkpoint(16, {b"y": b"9"})
    node.spool = node.opened()
    assert node.spool.reach == at(15)
    node.check_all()


def test_a_full_disk_gets_the_space_back_until_the_next_checkpoint(node: Checkpoints) -> None:
    assert node.spool.size > 0
    assert node.spool.drop()
    assert node.spool.size == 0 == node.disk.used_bytes
    node.spool.add(at(15), b"meta 15", [(b"x", b"9")])
    assert node.disk.used_bytes == 0
    assert not node.spool.drop()
    node.durable, node.states[15] = at(15), {b"x": b"9"}
    node.spool.commit(at(15))
    node.checkpoint(16, {b"y": b"9"})
    assert node.spool.reach == at(15)
    node.check_all()


def test_a_disk_with_little_space_is_left_alone(disk: SimulatedDisk) -> None:
    spool = Spool(disk, FOLDER, MIB, LOG_START, free_bytes=lambda: 100 * MIB)
    spool.add(at(5), b"meta", [(b"a", b"1")])
    spool.commit(at(5))
    assert disk.listdir(FOLDER) == []
    assert spool.reach == at(5)


def test_a_spool_over_its_limit_gives_up_its_oldest_deltas(disk: SimulatedDisk) -> None:
    random = Random(2)
    node = Checkpoints(disk, 20_000)
    for index in range(1, 40):
        node.checkpoint(index, {b"k%d" % index: random.randbytes(1000)})
        assert node.spool.size <= 20_000
    assert 20 <= node.spool.reach.index <= 25
    node.check_all()


def test_a_delta_over_the_limit_leaves_an_empty_spool(disk: SimulatedDisk) -> None:
    node = Checkpoints(disk, 5000)
    node.checkpoint(1, {b"k": Random(3).randbytes(10_000)})
    assert node.spool.reach == at(1)
    assert disk.listdir(FOLDER) == []


def test_a_spool_of_no_bytes_writes_nothing(disk: SimulatedDisk) -> None:
    node = Checkpoints(disk, 0)
    node.checkpoint(1, {b"k": b"v"})
    assert disk.used_bytes == 0
    assert node.spool.reach == at(1)


def test_many_deltas_are_merged(disk: SimulatedDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "MERGE_ABOVE", 10)
    monkeypatch.setattr(spool_module, "MERGED_AT_ONCE", 4)
    node = Checkpoints(disk)
    for index in range(1, 60):
        changes = {b"k%d" % (index % 7): b"%d" % index if index % 5 else None}
        node.checkpoint(index, changes)
        assert len(disk.listdir(FOLDER)) <= 10
    assert node.spool.reach == LOG_START
    with node.spool.reading(0) as reading:
        assert len([pair for piece in reading.pieces for pair in piece]) == 7
    starts = {int(name[:16], 16) for name in disk.listdir(FOLDER)}
    for index in starts - {0}:
        assert node.restored(index) == node.states[59]
    node.check_all()


def test_deltas_too_large_to_merge_are_given_up_in_time(
    disk: SimulatedDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "MERGE_ABOVE", 5)
    monkeypatch.setattr(spool_module, "FILES_MAX", 8)
    monkeypatch.setattr(spool_module, "MERGED_AT_ONCE", 3)
    monkeypatch.setattr(spool_module, "MERGED_BYTES_MAX", 100)
    node = Checkpoints(disk)
    for index in range(1, 20):
        node.checkpoint(index, {b"k": b"%d" % index})
    assert node.spool.reach == at(11)
    node.check_all()


# --- Readers --------------------------------------------------------------------------------------


def test_a_reader_goes_on_while_checkpoints_are_added(node: Checkpoints) -> None:
    with node.spool.reading(0) as reading:
        node.checkpoint(20, {b"z": b"1"})
        pairs = [pair for piece in reading.pieces for pair in piece]
    assert pairs == [(b"a", b"4"), (b"b", b"2"), (b"c", None)]


def test_a_delta_is_not_read_before_its_checkpoint_is_done(node: Checkpoints) -> None:
    node.spool.add(at(15), b"meta 15", [(b"x", b"9")])
    with node.spool.reading(0) as reading:
        assert (reading.position, reading.meta) == (at(12), b"meta 12")
        assert all(key != b"x" for piece in reading.pieces for key, _ in piece)


def test_a_reader_ends_when_the_space_is_needed(node: Checkpoints) -> None:
    with node.spool.reading(0) as reading:
        node.spool.drop()
        with pytest.raises(SpoolLost, match="dropped"):
            list(reading.pieces)


def test_every_damaged_byte_of_a_delta_is_noticed(disk: SimulatedDisk) -> None:
    node = Checkpoints(disk)
    node.checkpoint(5, {b"a": b"1" * 50, b"b": None})
    path = f"{FOLDER}/{disk.listdir(FOLDER)[0]}"
    for offset in range(len(disk.contents(path))):
        disk.flip(path, offset, offset % 8)
        with pytest.raises(SpoolLost):
            node.restored(0)
        disk.flip(path, offset, offset % 8)
    whole = disk.contents(path)
    for size in range(len(whole)):
        disk.damage(path, whole[:size])
        with pytest.raises(SpoolLost):
            node.restored(0)
    disk.damage(path, whole)
    node.check_all()


def test_a_file_that_is_no_delta_is_removed_at_the_start(node: Checkpoints) -> None:
    for name, data in ((f"{1:016x}-{2:016x}", b"nonsense"), ("delta.tmp", b""), ("x", b"\0" * 99)):
        handle = node.disk.open(f"{FOLDER}/{name}", create=True)
        node.disk.pwrite(handle, data, 0)
        node.disk.close(handle)
    node.spool = node.opened()
    assert len(node.disk.listdir(FOLDER)) == 3
    node.check_all()


# --- Crashes --------------------------------------------------------------------------------------


def crash_after(disk: SimulatedDisk, operations: int) -> None:
    left = operations

    def fault(_name: str, _path: str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Crashed

    disk.fault = fault


def checkpoint_at_random(node: Checkpoints, random: Random) -> None:
    for _ in range(12):
        index = node.durable.index + random.randint(1, 3)
        keys = random.sample(b"abcdefgh", random.randint(1, 4))
        changes = {bytes((key,)): random.choice((None, random.randbytes(50))) for key in keys}
        node.checkpoint(index, changes)


@pytest.mark.slow
@pytest.mark.parametrize("has_power", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_a_crash_at_any_step_leaves_deltas_that_lead_to_the_state(
    seed: int, has_power: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "MERGE_ABOVE", 4)
    monkeypatch.setattr(spool_module, "MERGED_AT_ONCE", 3)
    for operations in range(seed, 90, 3):
        random = Random(1000 * seed + operations)
        disk = SimulatedDisk(random)
        node = Checkpoints(disk, 2500)

        crash_after(disk, operations)
        with contextlib.suppress(Crashed):
            checkpoint_at_random(node, random)
        disk.fault = None
        if not has_power:
            disk.crash()
        node.spool = node.opened()
        node.check_all()
        checkpoint_at_random(node, random)
        node.check_all()


def test_the_real_disk_does_the_same(tmp_path: Path) -> None:
    folder = str(tmp_path / "spool")
    spool = Spool(RealDisk(), folder, MIB, LOG_START)
    spool.add(at(1), b"one", [(b"a", b"1")])
    spool.commit(at(1))
    spool.add(at(2), b"two", [(b"a", None), (b"b", b"2")])
    spool.commit(at(2))
    spool = Spool(RealDisk(), folder, MIB, at(2))
    with spool.reading(0) as reading:
        assert (reading.start, reading.position, reading.meta) == (LOG_START, at(2), b"two")
        assert [list(piece) for piece in reading.pieces] == [[(b"a", None), (b"b", b"2")]]
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "spool").iterdir()} == {0o600}
