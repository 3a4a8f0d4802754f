"""Damage at a start: what is set aside and what replaces it, also if the start is cut off."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from random import Random

import pytest

from raftha.config import MIB
from raftha.entry import LOG_START, EntryKind, HardState, make_entry
from raftha.errors import Corrupt
from raftha.storage.directory.datadir import DataDirectory
from raftha.storage.directory.healing import OpenNode, open_or_heal
from raftha.storage.directory.node_files import DirectoryNodeFiles
from raftha.storage.log.disk import RealDisk
from raftha.storage.state.checkpoint import CheckpointStore
from raftha.storage.state.lmdb_file import CLEAN
from raftha.storage.state.state import State
from tests.support.rot import rot
from tests.unit.test_snapshot import make_log

LAST = 40
APPLIED = 25


class CutOff(Exception):
    """The machine stops."""


class Breakable(DirectoryNodeFiles):
    """Stops after so many steps."""

    left = 1 << 30

    def step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise CutOff

    def record_loss(self, parts: Collection[str], found: Corrupt) -> None:
        self.step()
        super().record_loss(parts, found)
        self.step()

    def set_aside(self, part: str) -> None:
        self.step()
        super().set_aside(part)
        self.step()

    def record_replaced(self) -> None:
        self.step()
        super().record_replaced()
        self.step()


class Directory:
    """A node's directory, with a log of `LAST` entries and a state as of `APPLIED`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reported: list[tuple[str, ...]] = []
        self.has_others = True
        self.left = 1 << 30
        open_node = self.open()
        log = make_log(LAST)
        open_node.wal.append(HardState(7, 3, APPLIED), log)
        for entry in log[:APPLIED]:
            open_node.state.apply(entry)
        frozen = open_node.state.freeze()
        self.node_files.store.write(frozen.items, frozen.meta)
        self.close()

    def open(self) -> OpenNode:
        self.data = DataDirectory(self.path, "cluster", 1)
        self.node_files = Breakable(
            self.data,
            RealDisk(),
            16 * MIB,
            None,
            lambda membership: self.has_others,
            lambda parts, found: self.reported.append(tuple(sorted(parts))),
        )
        self.node_files.left = self.left
        try:
            return open_or_heal(self.node_files)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.node_files.close()
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


def test_a_corrupt_log_restarts_behind_the_state_and_the_node_heals(
    directory: Directory,
) -> None:
    directory.damage_log()
    open_node = directory.open()
    assert directory.data.healing_generation == 1
    assert (open_node.wal.base, open_node.wal.last_index) == (
        make_log(LAST)[APPLIED - 1].position,
        APPLIED,
    )
    assert open_node.wal.hard_state == HardState(open_node.wal.base.term, 0, APPLIED), "no vote"
    assert (open_node.state.applied, open_node.entries) == (open_node.wal.base, [])
    assert directory.reported == [("log",)]
    assert directory.quarantined() == ["wal"]
    directory.close()
    directory.open()
    assert directory.data.healing_generation == 1, "it heals on, but has lost nothing more"
    directory.close()


def test_a_damaged_state_is_rebuilt_from_a_whole_log(directory: Directory) -> None:
    directory.damage_state()
    open_node = directory.open()
    assert directory.data.healing_generation == 0
    assert open_node.wal.hard_state == HardState(7, 3, APPLIED), "term and vote stay"
    assert (open_node.state.applied, len(open_node.entries)) == (LOG_START, LAST)
    assert directory.quarantined() == ["state"]
    directory.close()


def test_a_damaged_state_whose_log_begins_later_takes_the_log_with_it(
    directory: Directory,
) -> None:
    open_node = directory.open()
    open_node.wal.reset(open_node.wal.read(30, 1)[0].position)
    directory.close()
    directory.damage_state()
    open_node = directory.open()
    assert (directory.data.healing_generation, open_node.wal.base, open_node.state.applied) == (
        1,
        LOG_START,
        LOG_START,
    )
    assert directory.quarantined() == ["state", "wal"]
    directory.close()


@pytest.mark.parametrize("content", [b"", b"{}", b"another program's"])
def test_a_damaged_list_of_skips_is_no_damage_to_log_and_state(
    directory: Directory, content: bytes
) -> None:
    open_node = directory.open()
    open_node.wal.reset(open_node.wal.read(APPLIED, 1)[0].position)
    directory.close()
    (directory.path / "skips").write_bytes(content)
    for _ in range(2):
        with pytest.raises(Corrupt, match=r"skips.*copy the file from a node that has one"):
            directory.open()
        directory.close()
    (directory.path / "skips").unlink()
    open_node = directory.open()
    assert (directory.quarantined(), directory.data.healing_generation) == ([], 0)
    assert open_node.state.applied.index == APPLIED
    directory.close()


def test_each_loss_of_the_log_is_another_generation(directory: Directory) -> None:
    for generation in (1, 3):
        directory.damage_log()
        directory.open()
        assert directory.data.healing_generation == generation
        directory.close()
    directory.open()
    directory.data.end_healing(4)
    directory.close()
    directory.damage_log()
    directory.open()
    assert directory.data.healing_generation == 5
    directory.close()


def test_a_node_without_other_voters_changes_nothing_on_disk(directory: Directory) -> None:
    directory.has_others = False
    directory.damage_log()
    with pytest.raises(Corrupt, match="no other member has a copy"):
        directory.open()
    assert directory.quarantined() == []
    assert not directory.reported
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
    open_node = directory.open()
    assert directory.data.lost == {}
    assert directory.data.is_healing == ("log" in parts)
    assert open_node.wal.base.index == (APPLIED if parts == ("log",) else 0)
    assert open_node.state.applied.index == (APPLIED if parts == ("log",) else 0)
    assert len(open_node.entries) == (LAST if parts == ("state",) else 0)
    assert set(directory.quarantined()) == {"wal" if part == "log" else part for part in parts}
    directory.close()


def test_a_state_that_rots_while_the_log_is_replaced_is_replaced_too(directory: Directory) -> None:
    directory.damage_log()
    directory.left = 2
    with pytest.raises(CutOff):
        directory.open()
    directory.left = 1 << 30
    directory.damage_state()
    open_node = directory.open()
    assert directory.data.is_healing
    assert (open_node.wal.base, open_node.state.applied) == (LOG_START, LOG_START)
    directory.close()


def test_a_state_that_a_crash_left_damaged_is_found_before_it_is_used(
    directory: Directory,
) -> None:
    """Pages have another's number, as after writes to wrong sectors: LMDB may end the process."""
    folder = directory.path / "state"
    (folder / CLEAN).unlink()
    content = (folder / "data.mdb").read_bytes()
    with (folder / "data.mdb").open("r+b") as file:
        for page in range(2, len(content) // 4096):
            if content[page * 4096 :].startswith(page.to_bytes(8, "little")):
                file.seek(page * 4096)
                file.write((page ^ 1).to_bytes(8, "little"))
    open_node = directory.open()
    assert directory.quarantined() == ["state"]
    assert (open_node.state.applied, len(open_node.entries)) == (LOG_START, LAST)
    directory.close()


def test_a_damaged_value_ends_the_node_and_the_next_start_heals_it(directory: Directory) -> None:
    open_node = directory.open()
    rot(directory.node_files.store, b"k7")
    with pytest.raises(Corrupt) as caught:
        open_node.state.get(b"k7")
    assert caught.value.path.is_relative_to(directory.path / "state")
    directory.data.record_damage(caught.value.detail)
    directory.close()
    open_node = directory.open()
    assert directory.quarantined() == ["state"]
    for entry in open_node.entries:
        open_node.state.apply(entry)
    assert open_node.state.get(b"k7") is not None
    directory.close()


def test_damage_that_a_running_node_found_is_believed_at_the_next_start(
    directory: Directory,
) -> None:
    directory.open()
    directory.data.record_damage("a page is gone")
    directory.close()
    open_node = directory.open()
    assert directory.quarantined() == ["state"]
    assert (directory.data.damage, open_node.state.applied) == ("", LOG_START)
    directory.close()
    store = CheckpointStore(directory.path / "state")
    assert State(store).applied == LOG_START
    store.close()


def with_restore(directory: Directory) -> None:
    """Have a log with an entry behind which the state has other pairs."""
    open_node = directory.open()
    last = open_node.wal.last
    restore = make_entry(last, 1, 0, EntryKind.RESTORE, b"", 1)
    open_node.wal.append(None, [restore])
    directory.close()


def test_a_state_that_the_log_cannot_rebuild_needs_others(directory: Directory) -> None:
    """The log goes back to its beginning, and has a RESTORE."""
    with_restore(directory)
    directory.has_others = False
    directory.damage_state()
    with pytest.raises(Corrupt, match="no other member has a copy"):
        directory.open()
    assert directory.quarantined() == []


def test_a_state_is_rebuilt_up_to_an_entry_that_restores(directory: Directory) -> None:
    """The node loses nothing by that: it has its log, and waits for the state of another member."""
    with_restore(directory)
    directory.damage_state()
    open_node = directory.open()
    assert directory.quarantined() == ["state"]
    assert not directory.data.is_healing
    assert open_node.state.applied == LOG_START
    assert open_node.entries[-1].kind == EntryKind.RESTORE
    directory.close()
