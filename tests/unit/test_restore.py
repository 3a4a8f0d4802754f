"""Restores: what stands in the new directory, what is refused, and what a crash leaves."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from raftha.config import HaConfig
from raftha.errors import (
    BackupDamaged,
    ChainBroken,
    ConfigError,
    InvalidRequest,
    KeyMissing,
    ObjectMissing,
    StorageFull,
)
from raftha.membership import Member
from raftha.runtime.quorum_recovery import open_stopped
from raftha.storage.backup import restore_plan
from raftha.storage.backup.chain import Shelf, load_chain
from raftha.storage.backup.crypto import NO_KEYS, DataKey, KeyRing, OperatorKey
from raftha.storage.backup.manifest import encode_manifest
from raftha.storage.backup.names import manifest_name
from raftha.storage.backup.pool import thread_pool
from raftha.storage.backup.replay import ReplayHooks
from raftha.storage.backup.restore import RestoreResult, run_restore
from raftha.storage.backup.restore_plan import (
    RestorePlan,
    RestoreTarget,
    highest_sequence,
    plan_restore,
)
from raftha.storage.backup.take import TakeResult
from raftha.storage.backup.timeline import SEQUENCE_STEP
from raftha.storage.backup.uploads import BackupCancelled
from raftha.storage.state.store import Hasher
from tests.support.backups import CLUSTER, LINEAGE, BackedUpNode, memory, repository_of
from tests.support.faulty_destination import Fault, FaultyDestination

MIB = 1 << 20
MEMBERS = {i: Member(f"127.0.0.1:{9000 + i}") for i in (1, 2, 3)}


class Backups:
    """A chain of two, and its repository."""

    def __init__(self, operator: OperatorKey | None = None) -> None:
        self.node = BackedUpNode()
        self.node.write({b"%04d" % i: b"%d" % i * 50 for i in range(2000)})
        self.node.write({b"big": bytes(3 * MIB)})
        self.destination = FaultyDestination(memory())
        self.repository = repository_of(self.destination, operator=operator)
        self.full = self.node.take(self.repository)
        self.full_state = dict(self.node.model)
        self.node.write({b"0001": None, b"0002": b"new", b"zz": b"1"})
        self.last = self.node.take(self.repository, "incremental", self.full)

    def plan(
        self, path: Path, result: TakeResult | None = None, node_id: int = 1, **changes: Any
    ) -> RestorePlan:
        target = RestoreTarget(
            data_dir=path,
            cluster_name="bank",
            node_id=node_id,
            own=MEMBERS[node_id],
            segment_bytes=16 * MIB,
            **changes,
        )
        label = (result or self.last).manifest.label
        return plan_restore(self.repository, LINEAGE, label, target)

    def restore(
        self, path: Path, result: TakeResult | None = None, node_id: int = 1, **changes: Any
    ) -> RestoreResult:
        plan = self.plan(path, result, node_id, **changes)
        return run_restore(plan, self.repository, ReplayHooks(pool=thread_pool))


@pytest.fixture(scope="module")
def backups() -> Backups:
    return Backups()


def config_of(path: Path, node_id: int = 1) -> HaConfig:
    addresses = {i: member.address for i, member in MEMBERS.items()}
    return HaConfig(node_id=node_id, data_dir=path, members=addresses, cluster_name="bank")


def digest_of(pairs: dict[bytes, bytes]) -> str:
    hasher = Hasher()
    for key, value in sorted(pairs.items()):
        hasher.add(key, value)
    return hasher.finish().hex


def pairs_in(path: Path, node_id: int = 1) -> dict[bytes, bytes]:
    with open_stopped(config_of(path, node_id)) as stopped:
        found = stopped.state.iterate(None, None, reverse=False)
        return {key: value for key, value in found if value is not None}


def test_a_restored_node_has_the_state_in_a_new_history(backups: Backups, tmp_path: Path) -> None:
    path = tmp_path / "data"
    plan = backups.plan(path)
    result = run_restore(plan, backups.repository)
    assert pairs_in(path) == backups.node.model
    assert result.digest == digest_of(backups.node.model)
    assert (result.keys, result.is_proven) == (len(backups.node.model), True)
    taken = backups.last.manifest.position
    with open_stopped(config_of(path)) as stopped:
        state, wal, membership = stopped.state, stopped.wal, stopped.log.membership
        assert state.applied == wal.base == plan.beginning
        assert state.membership == membership.encode()
        assert state.applied[:3] == taken[:3]
        assert state.applied.hash != taken.hash
        assert state.applied.last_sequence == 2 * SEQUENCE_STEP
        assert wal.last_index == taken.index + 1
        assert wal.hard_state == (taken.term + 1, 1, taken.index + 1)
        assert stopped.log.commit == taken.index + 1
        assert dict(membership.members) == {
            1: MEMBERS[1]._replace(incarnation=stopped.data.incarnation)
        }
        assert (membership.cluster_id, membership.removed) == (CLUSTER, frozenset({9}))
        assert membership.lineage not in ("", LINEAGE)
        assert not stopped.data.is_healing
        assert stopped.data.cluster_id == CLUSTER
        assert state.session_count == 1
    record = json.loads((path / "RESTORED").read_text())
    assert (record["label"], record["lineage"]) == (backups.last.manifest.label, LINEAGE)
    assert record["new_lineage"] == membership.lineage
    assert [found.name for found in tmp_path.iterdir()] == ["data"]
    assert path.stat().st_mode & 0o777 == 0o700


def test_a_full_backup_is_restored_too(backups: Backups, tmp_path: Path) -> None:
    result = backups.restore(tmp_path / "data", backups.full)
    assert result.digest == backups.full.manifest.digest
    assert pairs_in(tmp_path / "data") == backups.full_state


def test_an_encrypted_backup_is_restored(tmp_path: Path) -> None:
    backups = Backups(OperatorKey(bytes(range(32))))
    backups.restore(tmp_path / "data")
    assert pairs_in(tmp_path / "data") == backups.node.model


def test_an_empty_folder_is_taken(backups: Backups, tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "data"
    path.mkdir(parents=True)
    backups.restore(path)
    assert pairs_in(path) == backups.node.model


def test_each_restore_is_another_history(backups: Backups, tmp_path: Path) -> None:
    first, second = backups.plan(tmp_path / "a"), backups.plan(tmp_path / "b")
    assert first.lineage != second.lineage
    assert first.beginning.hash != second.beginning.hash
    assert first.incarnation != second.incarnation


def test_sequences_go_on_far_above_all_that_the_repository_knows(backups: Backups) -> None:
    assert highest_sequence(backups.repository, backups.full.manifest) == 2004
    assert restore_plan._next_sequence(0) == 2 * SEQUENCE_STEP
    assert restore_plan._next_sequence(SEQUENCE_STEP - 1) == 2 * SEQUENCE_STEP
    assert restore_plan._next_sequence(SEQUENCE_STEP) == 3 * SEQUENCE_STEP


def test_sequences_of_other_lineages_count_and_damaged_manifests_do_not(tmp_path: Path) -> None:
    backups = Backups()
    other = "ef" * 16
    far = replace(
        backups.full.manifest,
        lineage=other,
        position=backups.full.manifest.position._replace(last_sequence=7 * SEQUENCE_STEP + 5),
    )
    backups.destination.create(manifest_name(other, far.label), encode_manifest(far, None))
    later = backups.last.manifest.label
    backups.destination.create(manifest_name(other, later), b"rotten")
    assert backups.plan(tmp_path / "data").beginning.last_sequence == 9 * SEQUENCE_STEP


# --- Several members ------------------------------------------------------------------------------


def test_members_that_are_restored_with_the_token_have_the_same_log(
    backups: Backups, tmp_path: Path
) -> None:
    others = {2: MEMBERS[2], 3: MEMBERS[3]}
    token = backups.restore(tmp_path / "1", others=others).token
    backups.restore(tmp_path / "2", node_id=2, token=token)
    entries, incarnations = [], set()
    for node_id in (1, 2):
        assert pairs_in(tmp_path / str(node_id), node_id) == backups.node.model
        with open_stopped(config_of(tmp_path / str(node_id), node_id)) as stopped:
            entries += stopped.wal.read(stopped.wal.first_index, 1 << 20)
            incarnations.add(stopped.data.incarnation)
            membership = stopped.log.membership
    assert entries[0] == entries[1]
    assert len(incarnations) == 2
    assert membership.voters == (1,)
    assert sorted(membership.members) == [1, 2, 3]
    assert membership.members[1].incarnation in incarnations
    assert membership.members[2].incarnation == 0


def test_a_token_is_for_the_same_backup_and_another_member(
    backups: Backups, tmp_path: Path
) -> None:
    token = backups.plan(tmp_path / "1", others={2: MEMBERS[2]}).token
    with pytest.raises(InvalidRequest, match="not of"):
        backups.plan(tmp_path / "2", backups.full, 2, token=token)
    with pytest.raises(InvalidRequest, match="no member"):
        backups.plan(tmp_path / "3", node_id=3, token=token)
    with pytest.raises(InvalidRequest, match="made this token"):
        backups.plan(tmp_path / "1", node_id=1, token=token)
    for bad in ("x", "", token[:-4], token[:50] + "AAAA" + token[54:], "é", "A" * (1 << 21)):
        if bad:
            with pytest.raises(InvalidRequest, match="not the token"):
                backups.plan(tmp_path / "2", node_id=2, token=bad)


# --- Refusals: nothing is touched -----------------------------------------------------------------


def assert_untouched(tmp_path: Path, *names: str) -> None:
    assert sorted(found.name for found in tmp_path.iterdir()) == sorted(names)


def test_a_directory_that_is_not_empty_is_refused(backups: Backups, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.mkdir()
    (path / "mine").write_text("x")
    with pytest.raises(ConfigError, match="not empty"):
        backups.plan(path)
    (path / "mine").unlink()
    plan = backups.plan(path)
    (path / "mine").write_text("x")
    with pytest.raises(ConfigError, match="not empty"):
        run_restore(plan, backups.repository)
    assert [found.name for found in path.iterdir()] == ["mine"]
    assert_untouched(tmp_path, "data")
    with pytest.raises(ConfigError, match="not a folder"):
        backups.plan(path / "mine")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="not a folder"):
        backups.plan(tmp_path / "link")


def test_a_removed_id_is_refused(tmp_path: Path) -> None:
    backups = Backups()
    with pytest.raises(ConfigError, match="node 9 was removed"):
        backups.plan(tmp_path / "data", others={9: Member("127.0.0.1:9")})
    assert_untouched(tmp_path)


def test_a_chain_that_is_broken_is_refused(tmp_path: Path) -> None:
    backups = Backups()
    run = backups.full.manifest.run_name(0)
    backups.destination.delete(run)
    with pytest.raises(ObjectMissing, match="run-0000"):
        backups.plan(tmp_path / "data")
    backups.destination.delete(manifest_name(LINEAGE, backups.full.manifest.label))
    with pytest.raises(ChainBroken):
        backups.plan(tmp_path / "data")
    with pytest.raises(ObjectMissing):
        backups.plan(tmp_path / "data", backups.full)
    assert_untouched(tmp_path)


def test_a_wrong_key_is_refused(tmp_path: Path) -> None:
    backups = Backups(OperatorKey(bytes(range(32))))
    backups.repository.keys = KeyRing([DataKey("ab" * 16, bytes(32), 1)])
    with pytest.raises(KeyMissing):
        backups.plan(tmp_path / "data")
    backups.repository.keys = NO_KEYS
    with pytest.raises(KeyMissing):
        backups.plan(tmp_path / "data")
    assert_untouched(tmp_path)


def test_another_lineage_or_repository_has_no_such_backup(backups: Backups, tmp_path: Path) -> None:
    target = RestoreTarget(
        data_dir=tmp_path / "data",
        cluster_name="bank",
        node_id=1,
        own=MEMBERS[1],
        segment_bytes=16 * MIB,
    )
    with pytest.raises(ObjectMissing):
        plan_restore(backups.repository, "ef" * 16, backups.last.manifest.label, target)
    shelf = Shelf(backups.repository.destinations, "00" * 16, NO_KEYS)
    with pytest.raises(BackupDamaged, match="another repository"):
        load_chain(shelf, LINEAGE, backups.last.manifest.label)
    assert_untouched(tmp_path)


def test_a_disk_without_room_is_refused(backups: Backups, tmp_path: Path) -> None:
    plan = replace(backups.plan(tmp_path / "data"), free_bytes=1000)
    with pytest.raises(StorageFull):
        run_restore(plan, backups.repository)
    assert_untouched(tmp_path)


# --- Damage, found while it runs: there is no directory -------------------------------------------


def test_an_object_that_rots_ends_the_restore(tmp_path: Path) -> None:
    backups = Backups()
    plan = backups.plan(tmp_path / "data")
    backups.destination.plan(Fault("get", "rotten", "*/run-*", None))
    with pytest.raises(BackupDamaged):
        run_restore(plan, backups.repository)
    assert_untouched(tmp_path)


def test_another_destination_helps_out(tmp_path: Path) -> None:
    backups = Backups()
    other = memory("other")
    for info in backups.destination.inner.list(""):
        other.create(info.name, backups.destination.inner.get(info.name, size_max=1 << 30))
    backups.repository.admit(other)
    backups.destination.plan(Fault("get", "rotten", "*", None))
    backups.restore(tmp_path / "data")
    assert pairs_in(tmp_path / "data") == backups.node.model


@pytest.mark.parametrize("which", ["full", "last"])
def test_a_state_with_another_digest_is_not_restored(which: str, tmp_path: Path) -> None:
    backups = Backups()
    manifest = replace(backups.full.manifest, digest="00" * 32)
    data = encode_manifest(manifest, None)
    name = manifest_name(LINEAGE, manifest.label)
    backups.destination.delete(name)
    backups.destination.create(name, data)
    child = replace(backups.last.manifest, parent_sha256=sha256(data).hexdigest())
    name = manifest_name(LINEAGE, child.label)
    backups.destination.delete(name)
    backups.destination.create(name, encode_manifest(child, None))
    with pytest.raises(BackupDamaged, match="digest"):
        backups.restore(tmp_path / "data", getattr(backups, which))
    assert_untouched(tmp_path)


def test_a_restore_that_is_not_wanted_any_more_leaves_nothing(
    backups: Backups, tmp_path: Path
) -> None:
    wanted = iter([True] * 3 + [False] * 1000)
    hooks = ReplayHooks(is_wanted=lambda: next(wanted))
    with pytest.raises(BackupCancelled):
        run_restore(backups.plan(tmp_path / "data"), backups.repository, hooks)
    assert_untouched(tmp_path)


class Killed(BaseException):
    """The process ends."""


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_a_crash_at_any_step_leaves_no_directory_and_the_next_try_succeeds(
    backups: Backups, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_step(reached: int) -> None:
        if reached == step:
            raise Killed

    path = tmp_path / "data"
    with monkeypatch.context() as killed:
        # A process that is killed removes nothing.
        killed.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
        with pytest.raises(Killed):
            run_restore(backups.plan(path), backups.repository, ReplayHooks(on_step=on_step))
    assert not path.exists()
    assert (tmp_path / ".data.restoring").exists()
    backups.restore(path)
    assert pairs_in(path) == backups.node.model
    assert_untouched(tmp_path, "data")


def test_two_restores_at_once_are_refused(backups: Backups, tmp_path: Path) -> None:
    path = tmp_path / "data"
    refused = []

    def on_step(step: int) -> None:
        if step == 1:
            with pytest.raises(ConfigError, match="running"):
                run_restore(backups.plan(path), backups.repository)
            refused.append(step)

    run_restore(backups.plan(path), backups.repository, ReplayHooks(on_step=on_step))
    assert refused == [1]
    assert pairs_in(path) == backups.node.model


def test_progress_and_steps_are_told(backups: Backups, tmp_path: Path) -> None:
    steps: list[int] = []
    progress: list[tuple[int, int]] = []
    hooks = ReplayHooks(
        on_step=steps.append, on_progress=lambda done, total: progress.append((done, total))
    )
    plan = backups.plan(tmp_path / "data")
    run_restore(plan, backups.repository, hooks)
    assert steps == [1, 2, 3, 4, 5]
    assert progress == sorted(progress)
    assert 0.9 * plan.size_bytes < progress[-1][0] <= progress[-1][1] == plan.size_bytes
    assert json.dumps(plan.as_dict())
