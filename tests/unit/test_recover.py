"""What a survivor finds on its disk, and what a recovery writes there."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from raftha.config import MIB, HaConfig
from raftha.entry import LOG_START, Entry, EntryKind, HardState, LogPosition, make_entry
from raftha.errors import ConfigError, InvalidRequest
from raftha.manager import HaManager
from raftha.membership import Member, Membership
from raftha.runtime.quorum_recovery import finish_recovery, open_survivor
from raftha.storage.directory.datadir import DataDirectory
from raftha.storage.directory.healing import open_or_heal
from raftha.storage.directory.node_files import DirectoryNodeFiles
from raftha.storage.log.disk import RealDisk
from raftha.storage.log.wal import Wal
from raftha.storage.state.checkpoint import CheckpointStore
from raftha.testing.processes import reserve_port

pytestmark = pytest.mark.slow
MEMBERS = {node_id: f"127.0.0.1:{node_id}" for node_id in range(1, 6)}
FIRST = replace(Membership.first(MEMBERS), cluster_id="c" * 32, lineage="1" * 32)


def make_config(folder: Path, node_id: int = 1) -> HaConfig:
    return HaConfig(
        node_id=node_id,
        data_dir=folder,
        members=MEMBERS,
        wal_segment_bytes=16 * MIB,
        address="" if node_id in MEMBERS else f"127.0.0.1:{node_id}",
    )


def open_wal(config: HaConfig) -> Wal:
    path = str(Path(config.data_dir) / "wal")
    salt = random.Random(1).getrandbits
    return Wal.open(RealDisk(), path, segment_bytes=16 * MIB, salt=lambda: salt(64))


def make_node(config: HaConfig, *memberships: Membership) -> None:
    """A stopped node's directory: some no-ops of terms 1 and 2, then these memberships."""
    data = DataDirectory(Path(config.data_dir), config.cluster_name, config.node_id)
    data.join("c" * 32, heals=False)
    CheckpointStore(Path(config.data_dir) / "state").close()
    entries: list[Entry] = []

    def add(term: int, kind: EntryKind, payload: bytes) -> None:
        previous = entries[-1].position if entries else LOG_START
        entries.append(make_entry(previous, term, 1_000_000, kind, payload, 0))

    for term in (1, 1, 2):
        add(term, EntryKind.NOOP, b"")
    for membership in memberships:
        add(2, EntryKind.MEMBERSHIP, membership.encode())
    wal = open_wal(config)
    wal.append(HardState(4, 3, 2), entries)
    wal.close()
    data.close()


def last_of(config: HaConfig) -> tuple[HardState, LogPosition, Membership]:
    wal = open_wal(config)
    (entry,) = wal.read(wal.last_index, 1)
    found = wal.hard_state, wal.last, Membership.decode(bytes(entry.payload))
    wal.close()
    return found


def test_the_plan_says_how_far_the_log_goes_and_which_nodes_are_lost(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    make_node(config, FIRST.without(5))
    with open_survivor(config) as survivor:
        plan = survivor.plan()
    assert (plan.last_term, plan.last_index, plan.commit_index) == (2, 4, 2)
    assert (plan.term, plan.index) == (5, 5)
    assert plan.last_time == "1970-01-01T00:00:01+00:00"
    assert [member.node_id for member in plan.lost] == [2, 3, 4]
    assert plan.removed_before == (5,)


def test_a_recovery_leaves_one_voter_and_commits_all_there_is(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    make_node(config, FIRST.without(5))
    before = json.loads((tmp_path / "identity").read_text())
    with open_survivor(config) as survivor:
        survivor.recover(survivor.plan())
    hard_state, last, membership = last_of(config)
    assert hard_state == HardState(5, 1, 5)
    assert (last.term, last.index) == (5, 5)
    assert membership.voters == (1,)
    assert membership.removed == {2, 3, 4, 5}
    assert membership.cluster_id == FIRST.cluster_id
    assert membership.lineage not in ("", FIRST.lineage)
    after = json.loads((tmp_path / "identity").read_text())
    assert after["incarnation"] != before["incarnation"]
    assert membership.recorded(1) == after["incarnation"]


@pytest.mark.parametrize("heals", [False, True])
def test_a_recovery_that_is_cut_off_is_finished_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heals: bool
) -> None:
    """Else the node takes its directory for another one once there is a second voter."""
    config = make_config(tmp_path)
    make_node(config, FIRST)
    if heals:
        data = DataDirectory(tmp_path, config.cluster_name, 1)
        data._save(epoch=1)
        data.close()
    with monkeypatch.context() as patch:
        patch.setattr(DataDirectory, "renew_incarnation", cut_off)
        with open_survivor(config) as survivor, pytest.raises(KeyboardInterrupt):
            survivor.recover(survivor.plan())
    recorded = last_of(config)[2].recorded(1)
    with HaManager(config) as ha:
        ha.put(b"a", b"1")
    assert json.loads((tmp_path / "identity").read_text())["incarnation"] == recorded


def cut_off(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_start_finishes_no_recovery_that_there_was_not(tmp_path: Path) -> None:
    """The last voter but one removes itself while this one heals in a new directory."""
    config = make_config(tmp_path)
    alone = Membership({1: FIRST.members[1]._replace(incarnation=7)}, frozenset(), "c" * 32, "1")
    make_node(config, FIRST, alone)  # Known to be committed: only what is before.
    data = DataDirectory(tmp_path, config.cluster_name, 1)
    files = DirectoryNodeFiles(data, RealDisk(), 16 * MIB, None, lambda _: True, lambda *_: None)
    before = data.incarnation
    finish_recovery(data, open_or_heal(files))
    files.close()
    data.close()
    assert data.incarnation == before


def test_a_learner_may_be_all_that_is_left(tmp_path: Path) -> None:
    config = make_config(tmp_path, node_id=6)
    make_node(config, FIRST.with_learner(6, "127.0.0.1:6", "elsewhere", is_standby=True))
    with open_survivor(config) as survivor:
        plan = survivor.plan()
        assert not plan.was_voter
        survivor.recover(plan)
    member = last_of(config)[2].members[6]
    assert member._replace(incarnation=0) == Member("127.0.0.1:6", "elsewhere")


def test_a_removed_node_cannot_be_the_survivor(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    make_node(config, FIRST.without(1))
    with open_survivor(config) as survivor, pytest.raises(InvalidRequest, match="not a member"):
        survivor.plan()


@pytest.mark.parametrize(("answering", "is_quorum_there"), [(1, False), (2, True)])
def test_a_majority_that_answers_is_noticed(
    tmp_path: Path, answering: int, is_quorum_there: bool
) -> None:
    """Of five voters this one and two others are a majority."""
    ports = [reserve_port() for _ in range(4)]
    for port in ports[:answering]:
        port.listen()
    addresses = [f"127.0.0.1:{port.getsockname()[1]}" for port in ports]
    members = {1: MEMBERS[1], **dict(enumerate(addresses, start=2))}
    config = HaConfig(node_id=1, data_dir=tmp_path, members=members, wal_segment_bytes=16 * MIB)
    make_node(config, replace(FIRST, members=Membership.first(members).members))
    with open_survivor(config) as survivor:
        plan = survivor.plan()
    for port in ports:
        port.close()
    assert sum(member.answers for member in plan.lost) == answering
    assert plan.is_quorum_there == is_quorum_there


@pytest.mark.parametrize("has_joined", [False, True])
def test_a_node_that_has_nothing_of_a_cluster_cannot_become_one(
    tmp_path: Path, has_joined: bool
) -> None:
    """One that never ran beside the others, or was wiped and has joined again without any data."""
    config = make_config(tmp_path)
    data = DataDirectory(tmp_path, config.cluster_name, 1)
    if has_joined:
        data.join("c" * 32, heals=True)
    data.close()
    with pytest.raises(ConfigError, match="is empty"), open_survivor(config):
        pass
    wal = open_wal(config)
    assert wal.last == LOG_START
    wal.close()


def test_a_folder_of_no_node_is_left_as_it_is(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match="not the data directory"),
        open_survivor(make_config(tmp_path / "none")),
    ):
        pass
    assert not (tmp_path / "none").exists()
