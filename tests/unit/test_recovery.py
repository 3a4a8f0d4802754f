"""A recovery of the live cluster: when the leader has it switch, and what every member does."""

from __future__ import annotations

from typing import Any

import pytest

from raftha.errors import (
    BackupInProgress,
    InvalidRequest,
    RecoveryAborted,
    RecoveryInProgress,
    TargetUnreachable,
    UpgradePending,
    WireError,
)
from raftha.events import RecoveryCompleted, RecoveryFailed, RecoveryPrepared, RecoveryStarted
from raftha.node.messages import BackupAction, BackupRequest, MembershipRequest, RecoveryReport
from raftha.node.recovery.member import LEADER_WAIT_S, TRIES, Stage
from raftha.node.recovery.wanted import SEQUENCE, TIME, RecoveryWanted, pack_abort
from raftha.node.recovery_work import RecoveryTarget
from raftha.storage.state.catalog import BackupRecord, Begin, End, Prepare, Restore, Retire
from raftha.storage.state.recoveries import PREPARED, RESTORED, RecoveryRecord
from tests.support.backup_scene import LINEAGE, Node, Scene, Waiter


def wanted(number: int = 3, request: int = 7, **others: Any) -> RecoveryWanted:
    fields: dict[str, Any] = {
        "kind": SEQUENCE, "lineage": "", "is_frozen": False, "timeout_s": 60, "reason": "sequence 3"
    }  # fmt: skip
    return RecoveryWanted(request=request, number=number, **{**fields, **others})


class Cluster(Scene):
    """A scene whose cluster uses the protocol with recoveries."""

    def recover(self, node_id: int = 2, *, waits: bool = True, **others: Any) -> Waiter:
        """Ask a node for a recovery."""
        return self.ask(node_id, BackupAction.RECOVER, wanted(**others).pack(), waits=waits)

    def work(self, node_id: int) -> Any:
        return self.nodes[node_id].host.recovery

    def prepare(self, **others: Any) -> Waiter:
        """Have a recovery prepared; return its caller."""
        waiter = self.recover(**others)
        self.work(self.leader or 1).planned()
        self.settle()
        self.pass_time(0.5)
        assert self.record.state == PREPARED
        return waiter

    def build(self, *node_ids: int, digest: str = "d") -> None:
        """These nodes have built the state."""
        for node_id in node_ids:
            self.work(node_id).built(digest)
        self.pass_time(1)

    @property
    def record(self) -> RecoveryRecord:
        return self.catalog.recoveries.records()[-1]

    def events(self, kind: type[Any]) -> list[Any]:
        return [event for node in self.nodes.values() for event in node.events(kind)]

    def node(self, node_id: int) -> Node:
        return self.nodes[node_id]


@pytest.fixture
def scene() -> Cluster:
    return Cluster(protocol=8, enable_pitr=False)


# ---------------------------------------------------------------- from the request to the switch


def test_a_recovery_is_planned_prepared_and_restored(scene: Cluster) -> None:
    waiter = scene.recover(2)
    assert scene.work(1).target == RecoveryTarget(LINEAGE, 3, 0)
    assert scene.changes == []
    scene.work(1).planned()
    scene.pass_time(0.5)
    (prepare,) = scene.changes
    assert isinstance(prepare, Prepare)
    assert (prepare.request, prepare.to_sequence, prepare.lineage) == (7, 3, LINEAGE)
    assert len(scene.events(RecoveryStarted)) == 3
    assert all(scene.work(n).building == scene.record for n in (1, 2, 3))
    scene.build(1, 2)
    assert len(scene.changes) == 1, "node 3 is there, and builds"
    assert scene.node(1).held == []
    scene.build(3)
    restore = scene.changes[1]
    assert restore == Restore(scene.record.id, "d")
    assert scene.record.state == RESTORED
    assert scene.node(1).held == [True, False]
    assert waiter.result == scene.record
    (prepared,) = scene.events(RecoveryPrepared)
    assert (prepared.digest, prepared.nodes) == ("d", (1, 2, 3))
    scene.pass_time(1)
    assert all(scene.work(n).prepared is None for n in (1, 2, 3)), "what it was made for is over"


def test_a_caller_that_does_not_wait_gets_the_recovery_that_has_begun(scene: Cluster) -> None:
    waiter = scene.recover(3, waits=False)
    scene.work(1).planned()
    scene.pass_time(0.5)
    assert waiter.result == scene.record


def test_a_time_is_a_target_too(scene: Cluster) -> None:
    scene.recover(kind=TIME, number=1234)
    assert scene.work(1).target == RecoveryTarget(LINEAGE, 0, 1234)


def test_a_plan_waits_until_what_was_written_before_is_archived(scene: Cluster) -> None:
    scene.archived = scene.index - 1
    scene.recover()
    scene.pass_time(2)
    assert scene.work(1).target is None
    scene.archived = scene.index
    scene.pass_time(0.5)
    assert scene.work(1).target is not None


def test_a_plan_does_not_wait_for_an_archive_that_is_away(scene: Cluster) -> None:
    scene.archived = scene.index - 1
    scene.recover()
    scene.pass_time(10.5)
    assert scene.work(1).target is not None


def test_what_cannot_be_reached_is_refused_and_leaves_no_trace(scene: Cluster) -> None:
    waiter = scene.recover()
    scene.work(1).planned("TargetUnreachable", "no backup is that old")
    scene.pass_time(1)
    assert isinstance(waiter.result, TargetUnreachable)
    assert str(waiter.result) == "no backup is that old"
    assert scene.changes == []


def test_a_target_in_the_future_is_refused_by_the_catalog(scene: Cluster) -> None:
    waiter = scene.recover(number=10**6)
    scene.work(1).planned()
    scene.pass_time(1)
    assert isinstance(waiter.result, InvalidRequest)
    assert scene.catalog.recoveries.records() == ()


# ---------------------------------------------------------------- which members are waited for


def test_a_dead_member_is_not_waited_for_once_a_majority_is_ready(scene: Cluster) -> None:
    scene.down.add(3)
    scene.prepare()
    scene.build(1, 2)
    assert scene.record.state == RESTORED


def test_a_dead_member_is_waited_for_while_no_majority_is_ready(scene: Cluster) -> None:
    scene.down |= {2, 3}
    waiter = scene.prepare(node_id=1, timeout_s=30)
    scene.build(1)
    scene.pass_time(25)
    assert scene.record.state == PREPARED
    scene.down.discard(3)
    scene.pass_time(1)
    scene.build(3)
    scene.pass_time(1)
    assert scene.record.state == RESTORED
    assert waiter.result == scene.record


def test_a_recovery_that_takes_too_long_is_given_up(scene: Cluster) -> None:
    waiter = scene.prepare(timeout_s=30)
    scene.build(1)
    scene.pass_time(31)
    assert isinstance(waiter.result, RecoveryAborted)
    assert "more than 30 s; not ready: [2, 3]" in str(waiter.result)
    assert len(scene.events(RecoveryFailed)) == 3
    assert scene.node(1).held == []
    scene.pass_time(1)
    assert all(scene.work(n).building is None and scene.work(n).discarded for n in (1, 2, 3))


def test_members_that_come_to_different_states_end_it(scene: Cluster) -> None:
    waiter = scene.prepare()
    scene.build(1, digest="a")
    scene.build(2, digest="b")
    assert isinstance(waiter.result, RecoveryAborted)
    assert "different states: node 1 a, node 2 b" in str(waiter.result)


def test_a_build_is_tried_again_and_a_member_that_cannot_is_not_waited_for(scene: Cluster) -> None:
    scene.prepare()
    scene.build(1, 2)
    for tries in range(1, TRIES + 1):
        assert scene.work(3).builds == tries
        scene.work(3).failed("the disk is full")
        assert scene.record.state == PREPARED
        scene.pass_time(10)
    assert scene.work(3).builds == TRIES
    assert scene.record.state == RESTORED


def test_it_is_given_up_once_no_majority_can_build(scene: Cluster) -> None:
    waiter = scene.prepare()
    scene.build(1)
    for _ in range(TRIES):
        for node_id in (2, 3):
            scene.work(node_id).failed("the repository is away")
        scene.pass_time(10)
    assert "no majority can build the state; node 2: the repository is away" in str(waiter.result)


def test_a_leader_without_the_state_hands_over_to_a_member_that_has_it(scene: Cluster) -> None:
    scene.prepare()
    scene.build(2, 3)
    for _ in range(TRIES):
        scene.work(1).failed("the disk is full")
        scene.pass_time(10)
    assert set(scene.node(1).handed_over[-1]) == {2, 3}
    assert scene.record.state == PREPARED
    scene.elect(2)
    scene.pass_time(3)
    assert scene.record.state == RESTORED


# ---------------------------------------------------------------- the archive, and writes


def test_writes_are_held_until_the_log_is_archived(scene: Cluster) -> None:
    scene.prepare()
    scene.archived = 0
    scene.build(1, 2, 3)
    assert scene.node(1).held == [True]
    assert scene.record.state == PREPARED
    scene.archived = scene.index
    scene.pass_time(0.5)
    assert scene.record.state == RESTORED
    assert scene.node(1).held == [True, False]


def test_writes_go_on_if_the_archive_lags_too_far(scene: Cluster) -> None:
    waiter = scene.prepare()
    scene.archived = 0
    scene.build(1, 2, 3)
    scene.pass_time(11)
    assert "was not applied and archived within 10 s" in str(waiter.result)
    assert scene.node(1).held == [True, False]


def test_writes_may_be_held_from_the_beginning(scene: Cluster) -> None:
    scene.prepare(is_frozen=True)
    scene.pass_time(0.5)
    assert scene.node(1).held == [True]
    scene.build(1, 2)
    scene.pass_time(20)
    scene.build(3)
    assert scene.record.state == RESTORED
    assert scene.node(1).held == [True, False]


def test_a_leader_that_is_replaced_holds_no_writes(scene: Cluster) -> None:
    scene.prepare()
    scene.archived = 0
    scene.build(1, 2, 3)
    scene.elect(2)
    scene.pass_time(2)
    assert scene.node(1).held == [True, False]
    assert scene.node(2).held == [True]
    scene.archived = scene.index
    scene.pass_time(1)
    assert scene.record.state == RESTORED


# ---------------------------------------------------------------- requests


def test_a_request_is_carried_out_once(scene: Cluster) -> None:
    """Its answer is lost, and its sender repeats it, also to another leader."""
    waiter = scene.recover(3)
    scene.work(1).planned()
    scene.down.add(3)
    scene.pass_time(0.5)
    recovery_id = scene.record.id
    scene.elect(2)
    scene.down.discard(3)
    scene.nodes[3].backups.on_leader()
    scene.pass_time(2)
    scene.build(1, 2, 3)
    scene.pass_time(2)
    assert scene.record.state == RESTORED
    assert [record.id for record in scene.catalog.recoveries.records()] == [recovery_id]
    assert waiter.result == scene.record


def test_a_second_recovery_is_refused(scene: Cluster) -> None:
    scene.prepare()
    other = scene.recover(3, request=8)
    assert isinstance(other.result, RecoveryInProgress)
    assert other.result.recovery_id == scene.record.id


def test_a_recovery_is_given_up_on_request(scene: Cluster) -> None:
    waiter = scene.prepare()
    wrong = scene.ask(3, BackupAction.ABORT_RECOVERY, pack_abort(scene.record.id + 1))
    assert isinstance(wrong.result, InvalidRequest)
    done = scene.ask(3, BackupAction.ABORT_RECOVERY, pack_abort(scene.record.id))
    assert done.result == scene.index
    assert "on request" in str(waiter.result)
    late = scene.ask(3, BackupAction.ABORT_RECOVERY, pack_abort(0))
    assert isinstance(late.result, InvalidRequest)


def test_a_plan_of_a_leader_that_was_replaced_is_worth_nothing(scene: Cluster) -> None:
    scene.recover(3)
    scene.elect(2)
    scene.pass_time(1)
    scene.work(1).planned()
    scene.pass_time(1)
    assert scene.catalog.recoveries.records() == ()
    scene.work(2).planned()
    scene.pass_time(1)
    assert scene.record.state == PREPARED


def test_recoveries_wait_until_all_members_know_them() -> None:
    scene = Cluster(protocol=7)
    waiter = scene.recover(2)
    assert isinstance(waiter.result, UpgradePending)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\x01",
        RecoveryWanted(1, "x", 1, "", False, 1, "").pack(),
        RecoveryWanted(-1, SEQUENCE, 1, "", False, 1, "").pack(),
        RecoveryWanted(1, SEQUENCE, 1 << 63, "", False, 1, "").pack(),
        RecoveryWanted(1, SEQUENCE, 1, "", False, 0, "").pack(),
        RecoveryWanted(1, SEQUENCE, 1, "x" * 201, False, 1, "").pack(),
    ],
)
def test_a_request_that_makes_no_sense_ends_the_connection(scene: Cluster, payload: bytes) -> None:
    request = BackupRequest(1, 2, 5, BackupAction.RECOVER, payload, False)
    with pytest.raises(WireError):
        scene.node(1).backups.on_message(request)
    if payload in (b"", b"\xc1"):
        with pytest.raises(WireError):
            scene.node(1).backups.on_message(request._replace(what=BackupAction.ABORT_RECOVERY))


# ---------------------------------------------------------------- what waits for a recovery


def test_a_backup_that_runs_is_given_up_for_a_recovery(scene: Cluster) -> None:
    scene.trigger(2, "full")
    scene.pass_time(4)
    assert scene.catalog.running is not None
    scene.recover(2)
    scene.work(1).planned()
    scene.pass_time(1)
    assert [type(change) for change in scene.changes] == [Begin, End, Prepare]
    assert scene.record.state == PREPARED
    refused = scene.trigger(3, "full")
    assert isinstance(refused.result, BackupInProgress)
    scene.pass_time(5)
    assert [type(change) for change in scene.changes] == [Begin, End, Prepare]


def test_a_full_backup_follows_a_recovery(scene: Cluster) -> None:
    take_first(scene)
    scene.changes.clear()
    scene.prepare()
    scene.build(1, 2, 3)
    for node in scene.nodes.values():
        node.work.spool_index = scene.index  # All begin with another state.
    scene.pass_time(5)
    begin = scene.changes[-1]
    assert isinstance(begin, Begin) and begin.mode == "full"


def take_first(scene: Cluster) -> BackupRecord:
    """Have a full backup, and the upkeep after it."""
    scene.pass_time(3)
    record = scene.complete()
    scene.upkeep()
    return record


def change_of(node_id: int, **others: bool) -> MembershipRequest:
    adds = others.get("adds", False)
    return MembershipRequest(1, 2, node_id, adds, "", "", False, False, False)


def test_the_membership_does_not_change_while_a_recovery_is_under_way(scene: Cluster) -> None:
    recovery = scene.node(1).backups.recovery
    assert recovery.why_no_change(change_of(3)) == ""
    scene.prepare()
    assert "is under way" in recovery.why_no_change(change_of(3))
    assert "is under way" in recovery.why_no_change(change_of(4, adds=True))


def test_a_majority_must_have_the_restored_state_before_a_member_goes(scene: Cluster) -> None:
    scene.prepare()
    scene.build(1, 2, 3)
    recovery = scene.node(1).backups.recovery
    for node_id in (2, 3):
        state = scene.node(node_id).state
        state.applied = state.applied._replace(index=scene.record.index - 1)
    assert "a majority must have" in recovery.why_no_change(change_of(2))
    assert recovery.why_no_change(change_of(4, adds=True)) == ""
    state = scene.node(3).state
    state.applied = state.applied._replace(index=scene.record.index)
    assert recovery.why_no_change(change_of(2)) == "", "the two that stay have it"
    assert "a majority must have" in recovery.why_no_change(change_of(3))


def test_sources_stay_until_all_members_are_behind_the_restore(scene: Cluster) -> None:
    recovery = scene.node(1).backups.recovery
    assert recovery.sources() == frozenset()
    backup = take_first(scene)
    scene.recover()
    scene.work(1).planned(backups=(backup.id,))
    scene.pass_time(0.5)
    assert recovery.sources() == {backup.id}
    scene.build(1, 2, 3)
    assert recovery.sources() == frozenset()
    state = scene.node(3).state
    state.applied = state.applied._replace(index=scene.record.index - 1)
    assert recovery.sources() == {backup.id}
    upkeep = scene.node(1).backups._leading._upkeep
    kept = [each for each in upkeep.decide().each if each.backup_id == backup.id]
    assert "a recovery reads it" in str(kept)
    assert not any(isinstance(change, Retire) for change in scene.changes)
    scene.recover(request=8)
    scene.work(1).planned(backups=())
    scene.pass_time(0.5)
    assert scene.node(1).state.catalog.recoveries.prepared is not None
    behind = state.catalog.recoveries.last_restored
    assert behind is not None
    state.applied = state.applied._replace(index=behind.index - 1)
    assert recovery.sources() == {backup.id}, "the next recovery reads others, and it still reads"


# ---------------------------------------------------------------- in front of the entry


def test_a_member_that_stands_in_front_of_the_restore_is_sent_the_state(scene: Cluster) -> None:
    scene.prepare()
    scene.build(1, 2, 3)
    member = scene.node(3).backups.recovery._member
    report = [scene.record.id, Stage.STOPPED, "", 0, 0, ""]
    for recovery_id in (scene.record.id, 999):
        report[0] = recovery_id
        scene.node(1).backups.on_message(RecoveryReport(1, 3, *report))  # type: ignore[arg-type]
    assert scene.node(1).sent_state == [3]
    assert member.progress[0] is Stage.BUILDING


def test_a_life_that_begins_with_a_restored_state_says_so(scene: Cluster) -> None:
    scene.prepare()
    scene.build(1, 2, 3)
    node = scene.node(2)
    node.state.applied = node.state.applied._replace(index=scene.record.index)
    node.restart()
    scene.pass_time(1)
    (completed,) = node.events(RecoveryCompleted)
    assert (completed.recovery_id, completed.to_sequence) == (scene.record.id, 3)
    assert completed.undone == scene.record.sequence - 1 - 3


def test_what_an_earlier_life_has_prepared_counts(scene: Cluster) -> None:
    scene.prepare()
    scene.build(1, 3)
    scene.work(2).built("d")
    prepared = scene.work(2).prepared
    scene.node(2).restart()
    scene.work(2).prepared = prepared
    scene.pass_time(3)
    assert scene.work(2).builds == 0
    assert scene.record.state == RESTORED


def test_what_is_prepared_stays_until_the_log_says_that_it_is_over(scene: Cluster) -> None:
    """It was promised: a node that has just started knows less than the one before."""
    scene.prepare()
    scene.build(2)
    node, prepared = scene.node(2), scene.work(2).prepared
    behind, record = node.state.applied, scene.record
    node.state.catalog.recoveries.forget_prepared()
    node.state.applied = behind._replace(index=record.id - 1)
    node.restart()
    scene.work(2).prepared = prepared
    scene.pass_time(1)
    assert (scene.work(2).discarded, scene.work(2).builds) == (0, 0)
    node.state.applied = behind
    scene.pass_time(1)
    assert scene.work(2).discarded == 1


def test_a_member_that_catches_up_builds_nothing_for_old_recoveries(scene: Cluster) -> None:
    scene.prepare()
    node = scene.node(3)
    node.restart()
    applied = node.state.applied
    node.state.applied = applied._replace(index=applied.index - 200)
    node.backups.recovery._member.on_prepared(scene.record)
    scene.pass_time(1)
    assert scene.work(3).builds == 0
    node.state.applied = applied
    scene.pass_time(1)
    assert scene.work(3).builds == 1


def test_an_earlier_recovery_in_the_log_costs_nothing_of_what_is_prepared(scene: Cluster) -> None:
    """A node that starts applies its log again, with recoveries in it that have ended since."""
    scene.prepare()
    scene.build(2)
    member = scene.node(2).backups.recovery._member
    member.on_prepared(scene.record._replace(id=scene.record.id - 5))
    assert (scene.work(2).discarded, scene.work(2).builds) == (0, 1)
    assert scene.work(2).prepared is not None


def test_how_long_a_leader_lets_others_go_first_is_short() -> None:
    assert LEADER_WAIT_S <= 3
