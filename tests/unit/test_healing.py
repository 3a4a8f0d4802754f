"""Damage at a start: what is set aside and what takes its place, also if the start is cut off."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from random import Random

import pytest

from raftha.config import MIB
from raftha.entry import LOG_START, HardState
from raftha.errors import Corrupt
from raftha.storage.directory.datadir import DataDirectory
from raftha.storage.directory.healing import Whole, open_whole
from raftha.storage.directory.node_files import DirectoryVault
from raftha.storage.log.disk import RealDisk
from raftha.storage.state.checkpoint import CheckpointStore
from raftha.storage.state.state import State
from tests.unit.test_snapshot import make_log

LAST = 40
APPLIED = 25


class CutOff(Exception):
    """The machine stops."""


class Breakable(DirectoryVault):
    """Stops after so many steps."""

    left = 1 << 30

    def step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise CutOff

    def note_loss(self, parts: Collection[str], found: Corrupt) -> None:
        self.step()
        super().note_loss(parts, found)
        self.step()

    def set_aside(self, part: str) -> None:
        self.step()
        super().set_aside(part)
        self.step()

    def note_replaced(self) -> None:
        self.step()
        super().note_replaced()
        self.step()


class Directory:
    """A node's directory, with a log of `LAST` entries and a state as of `APPLIED`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.told: list[tuple[str, ...]] = []
        self.has_others = True
        self.left = 1 << 30
        whole = self.open()
        log = make_log(LAST)
        whole.wal.append(HardState(7, 3, APPLIED), log)
        for entry in log[:APPLIED]:
            whole.state.apply(entry)
        frozen = whole.state.freeze()
        self.vault.store.write(frozen.items, frozen.meta)
        self.close()

    def open(self) -> Whole:
        self.data = DataDirectory(self.path, "cluster", 1)
        self.vault = Breakable(
            self.data,
            RealDisk(),
            16 * MIB,
            None,
            lambda membership: self.has_others,
            lambda parts, found: self.told.append(tuple(sorted(parts))),
        )
        self.vault.left = self.left
        try:
            return open_whole(self.vault)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.vault.close()
        self.data.close()

    def damage_log(self) -> None:
        path = min((self.path / "wal").glob("0*.seg"))
        content = bytearray(path.read_bytes())
        content[4096 + 20] ^= 1
        path.write_bytes(content)

    def damage_state(self) -> None:
        with (self.path / "state" / "data.mdb").open("r+b") as file:
            file.write(Random(1).randbytes(2 * 4096))

    def quarantined(self) -> list[str]:
        return sorted(path.name.partition("-")[0] for path in self.path.glob("quarantine/*"))


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    return Directory(tmp_path / "node")


def test_a_corrupt_log_begins_anew_behind_the_state_and_the_node_heals(
    directory: Directory,
) -> None:
    directory.damage_log()
    whole = directory.open()
    assert directory.data.epoch == 1
    assert (whole.wal.base, whole.wal.last_index) == (make_log(LAST)[APPLIED - 1].position, APPLIED)
    assert whole.wal.hard_state == HardState(whole.wal.base.term, 0, APPLIED), "no vote"
    assert (whole.state.applied, whole.entries) == (whole.wal.base, [])
    assert directory.told == [("log",)]
    assert directory.quarantined() == ["wal"]
    directory.close()
    directory.open()
    assert directory.data.epoch == 1, "it heals on, but has lost nothing more"
    directory.close()


def test_a_damaged_state_is_built_anew_from_a_whole_log(directory: Directory) -> None:
    directory.damage_state()
    whole = directory.open()
    assert directory.data.epoch == 0
    assert whole.wal.hard_state == HardState(7, 3, APPLIED), "term and vote stay"
    assert (whole.state.applied, len(whole.entries)) == (LOG_START, LAST)
    assert directory.quarantined() == ["state"]
    directory.close()


def test_a_damaged_state_whose_log_begins_later_takes_the_log_with_it(
    directory: Directory,
) -> None:
    whole = directory.open()
    whole.wal.reset(whole.wal.read(30, 1)[0].position)
    directory.close()
    directory.damage_state()
    whole = directory.open()
    assert (directory.data.epoch, whole.wal.base, whole.state.applied) == (1, LOG_START, LOG_START)
    assert directory.quarantined() == ["state", "wal"]
    directory.close()


def test_each_loss_of_the_log_is_another_epoch(directory: Directory) -> None:
    for epoch in (1, 3):
        directory.damage_log()
        directory.open()
        assert directory.data.epoch == epoch
        directory.close()
    directory.open()
    directory.data.end_healing(4)
    directory.close()
    directory.damage_log()
    directory.open()
    assert directory.data.epoch == 5
    directory.close()


def test_who_is_alone_changes_nothing(directory: Directory) -> None:
    directory.has_others = False
    directory.damage_log()
    with pytest.raises(Corrupt, match="no other member has a copy"):
        directory.open()
    assert directory.quarantined() == []
    assert not directory.told
    directory.damage_state()
    with pytest.raises(Corrupt, match="no other member has a copy"):
        directory.open()
    assert directory.quarantined() == []


@pytest.mark.slow
@pytest.mark.parametrize("parts", [("log",), ("state",), ("log", "state")], ids="+".join)
@pytest.mark.parametrize("steps", range(9))
def test_a_start_that_is_cut_off_is_finished_by_the_next(
    directory: Directory, parts: tuple[str, ...], steps: int
) -> None:
    if "log" in parts:
        directory.damage_log()
    if "state" in parts:
        directory.damage_state()
    directory.left = steps
    try:
        directory.open()
        directory.close()
    except CutOff:
        pass
    directory.left = 1 << 30
    whole = directory.open()
    assert directory.data.lost == {}
    assert directory.data.is_healing == ("log" in parts)
    assert whole.wal.base.index == (APPLIED if parts == ("log",) else 0)
    assert whole.state.applied.index == (APPLIED if parts == ("log",) else 0)
    assert len(whole.entries) == (LAST if parts == ("state",) else 0)
    assert set(directory.quarantined()) == {"wal" if part == "log" else part for part in parts}
    directory.close()


def test_a_state_that_rots_while_the_log_is_replaced_is_replaced_too(directory: Directory) -> None:
    directory.damage_log()
    directory.left = 2
    with pytest.raises(CutOff):
        directory.open()
    directory.left = 1 << 30
    directory.damage_state()
    whole = directory.open()
    assert directory.data.is_healing
    assert (whole.wal.base, whole.state.applied) == (LOG_START, LOG_START)
    directory.close()


def test_damage_that_a_running_node_found_is_believed_at_the_next_start(
    directory: Directory,
) -> None:
    directory.open()
    directory.data.note_damage("a page is gone")
    directory.close()
    whole = directory.open()
    assert directory.quarantined() == ["state"]
    assert (directory.data.damage, whole.state.applied) == ("", LOG_START)
    directory.close()
    store = CheckpointStore(directory.path / "state")
    assert State(store).applied == LOG_START
    store.close()
