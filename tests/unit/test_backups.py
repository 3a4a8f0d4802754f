"""Backups of a cluster: who takes one, what becomes of it if a node dies, and what goes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from raftha.config import BackupConfig, RetentionPolicy
from raftha.errors import (
    BackupFailed,
    BackupInProgress,
    InvalidRequest,
    RequestTimeout,
    Unavailable,
    UpgradePending,
    WireError,
)
from raftha.events import (
    BackupCompleted,
    BackupFailure,
    BackupMissing,
    BackupProgress,
    BackupStarted,
    RetentionApplied,
    RetentionRefused,
)
from raftha.membership import Membership
from raftha.node import backup_work
from raftha.node.backup.leading import QUEUE_MAX, SILENCE_S
from raftha.node.messages import BackupAction, BackupRequest
from raftha.storage.state.catalog import (
    BackupRecord,
    Begin,
    Deleted,
    End,
    MarkNow,
    Pin,
    Retire,
    Unpin,
    encode_change,
)
from raftha.storage.state.versions import Versions
from raftha.types import BackupState
from tests.support.backup_scene import HOUR_S, LINEAGE, T0_US, Scene, with_first

FULL, INCREMENTAL, DIFFERENTIAL = "full", "incremental", "differential"
DAY_S = 24 * HOUR_S


@pytest.fixture
def scene() -> Scene:
    return Scene()


# ---------------------------------------------------------------- begin and end


def test_the_first_backup_is_full_and_a_follower_takes_it(scene: Scene) -> None:
    scene.pass_time(3)
    assert scene.states() == [(FULL, "running", 2)]
    assert scene.running.reason == "there is none to build on"
    record = scene.complete()
    assert (record.state, record.destinations, record.keys) == ("completed", ("local",), 10)
    for node in scene.nodes.values():
        (started,), (completed,) = node.events(BackupStarted), node.events(BackupCompleted)
        assert (started.backup_id, started.label, started.node_id) == (record.id, record.label, 2)
        assert (completed.backup_id, completed.size_bytes) == (record.id, 1000)
        assert node.backups.state is BackupState.COMPLETED


def test_a_standby_takes_backups_before_followers() -> None:
    scene = Scene(standby=3)
    scene.pass_time(3)
    assert scene.running.node == 3


def test_settings_say_who_may_take_backups() -> None:
    scene = Scene(config=BackupConfig(backup_from=("leader",)))
    scene.pass_time(3)
    assert scene.running.node == 1


def test_the_follower_that_is_least_behind_takes_it() -> None:
    scene = Scene(lags={2: 100, 3: 5})
    scene.pass_time(3)
    assert scene.running.node == 3


def test_a_full_backup_has_the_states_compared_at_its_position() -> None:
    scene = with_first()
    (first,) = scene.catalog.records()
    scene.pass_time(6 * HOUR_S, step=60)
    scene.complete()
    assert scene.nodes[1].compared == [first.id]


def test_a_full_backup_is_complete_only_after_the_comparison(scene: Scene) -> None:
    scene.pass_time(5)
    record = scene.running
    scene.comparing.add(record.id)
    scene.taker.work.taken(scene)
    scene.pass_time(5)
    assert scene.states() == [(FULL, "running", 2)]
    scene.comparing.clear()
    scene.pass_time(1)
    assert scene.states() == [(FULL, "completed", 2)]


def test_what_a_diverged_member_has_taken_is_never_complete(scene: Scene) -> None:
    scene.pass_time(5)
    record = scene.running
    scene.diverged.add((2, record.id))
    scene.taker.work.taken(scene)
    scene.pass_time(2)
    failed = scene.catalog.records()[0]
    assert failed.error == "the state of node 2 differs from a majority's"
    assert scene.running.node == 3
    full = scene.complete()
    scene.pass_time(2)
    whole = full._replace(id=record.id, node=2, began_us=record.began_us)
    leader_work(scene).lists(adoptable=(whole,))
    scene.pass_time(2)
    found = scene.catalog.get(record.id)
    assert found is not None and found.state == "retired"


def test_the_next_one_is_incremental_after_the_interval() -> None:
    scene = with_first()
    scene.pass_time(6 * HOUR_S - 60, step=60)
    assert scene.catalog.running is None
    scene.pass_time(120)
    (first, second) = scene.catalog.records()
    assert (second.mode, second.parent, second.base) == (INCREMENTAL, first.id, first.id)
    assert scene.taker.work.order is not None
    assert scene.taker.work.order.parent == first


def test_the_first_one_after_a_fork_names_what_it_forked_from() -> None:
    scene = with_first()
    (before,) = scene.catalog.records()
    scene.membership = replace(scene.membership, lineage="b" * 32)
    scene.pass_time(6 * HOUR_S, step=60)
    assert (scene.running.mode, scene.running.lineage) == (FULL, "b" * 32)
    assert scene.taker.work.order is not None
    assert scene.taker.work.order.forked_from == before


def test_work_begins_after_a_checkpoint_at_or_after_the_begin(scene: Scene) -> None:
    scene.pass_time(3)
    taker = scene.taker
    taker.work.order = None
    scene.nodes[2].restart()
    scene.now += 1
    taker.backups.on_tick(scene.now)
    assert taker.work.order is None
    progress = taker.backups.progress
    assert progress is not None and progress.state is BackupState.PREPARING


def test_progress_is_known_everywhere_and_reported_in_tenths(scene: Scene) -> None:
    scene.pass_time(5)
    taker = scene.taker
    assert taker.work.progress is not None
    for done in (0, 1, 5, 10, 12, 100):
        taker.work.progress(backup_work.BackupProgress(BackupState.UPLOADING, done, 100))
    scene.pass_time(2)
    events = taker.events(BackupProgress)
    assert [event.done_bytes for event in events] == [0, 10, 100]
    for node in scene.nodes.values():
        assert node.backups.state is BackupState.UPLOADING
        progress = node.backups.progress
        assert progress is not None and progress.done_bytes == 100


# ---------------------------------------------------------------- failures


def test_a_silent_taker_is_given_up_and_another_member_tries(scene: Scene) -> None:
    scene.pass_time(5)
    assert scene.running.node == 2
    scene.down.add(2)
    scene.pass_time(SILENCE_S - 5)
    assert scene.running.node == 2
    scene.pass_time(10)
    assert scene.states() == [(FULL, "failed", 2), (FULL, "running", 3)]
    failure = scene.nodes[1].events(BackupFailure)[0]
    assert failure.reason == "node 2, which took it, was silent for 30 s"
    scene.complete()
    assert scene.nodes[1].backups.state is BackupState.COMPLETED


def test_a_taker_that_reports_is_not_given_up(scene: Scene) -> None:
    scene.pass_time(10 * SILENCE_S)
    assert scene.states() == [(FULL, "running", 2)]


def test_a_taker_that_is_started_again_says_so_at_once(scene: Scene) -> None:
    scene.pass_time(5)
    scene.nodes[2].restart()
    scene.pass_time(2)
    assert scene.states()[0] == (FULL, "failed", 2)
    assert scene.catalog.records()[0].error == "the member that took it was started again"
    scene.pass_time(2)
    assert scene.running.node == 3


def test_a_removed_taker_is_given_up(scene: Scene) -> None:
    scene.pass_time(5)
    members = dict(scene.membership.members)
    del members[2]
    scene.membership = Membership(members, lineage=LINEAGE)
    scene.down.add(2)
    scene.pass_time(2)
    assert "is no member any more" in scene.catalog.records()[0].error


def test_a_backup_goes_on_under_another_leader_and_its_end_goes_there(scene: Scene) -> None:
    scene.pass_time(5)
    scene.down.add(1)
    scene.elect(3)
    scene.pass_time(5)
    work = scene.nodes[2].work
    work.taken(scene)
    scene.settle()
    scene.pass_time(2)
    assert scene.nodes[3].state.catalog.records()[0].state == "completed"


def test_an_end_that_is_lost_is_sent_again(scene: Scene) -> None:
    scene.pass_time(5)
    taker = scene.taker
    scene.leader = None
    taker.work.taken(scene)
    scene.pass_time(2)
    scene.elect(3)
    scene.pass_time(1)
    scene.lose_proposals()
    scene.pass_time(3)
    assert scene.states() == [(FULL, "completed", 2)]


def test_what_is_given_up_is_cancelled(scene: Scene) -> None:
    scene.pass_time(5)
    taker = scene.taker
    scene.down.add(2)
    scene.pass_time(SILENCE_S + 5)
    scene.down.clear()
    scene.pass_time(2)
    assert taker.work.cancelled == 1
    assert scene.states() == [(FULL, "failed", 2), (FULL, "running", 3)]


def test_a_failed_backup_is_tried_three_times_and_then_by_schedule() -> None:
    scene = with_first()
    waiter = scene.trigger(3, waits=True)
    takers = []
    for _ in range(3):
        scene.pass_time(70)
        takers.append(scene.running.node)
        scene.taker.work.failed("no space")
        scene.pass_time(2)
    assert takers == [2, 3, 1]
    assert [r.mode for r in scene.catalog.records()] == [FULL, INCREMENTAL, INCREMENTAL, FULL]
    scene.pass_time(1)
    assert scene.catalog.running is None
    assert isinstance(waiter.result, BackupFailed) and "no space" in str(waiter.result)
    scene.pass_time(HOUR_S, step=10)
    assert scene.catalog.running is None
    scene.pass_time(6 * HOUR_S, step=60)
    assert scene.catalog.running is not None


def test_a_new_leader_waits_for_the_members_reports(scene: Scene) -> None:
    scene.leader = None
    scene.pass_time(10)
    scene.down.add(2)
    scene.elect(3)
    scene.pass_time(1.5)
    assert scene.running.node == 1


# ---------------------------------------------------------------- callers


def test_any_node_can_ask_for_a_backup(scene: Scene) -> None:
    scene = with_first()
    begun, done = scene.trigger(3), scene.trigger(2, waits=True)
    assert isinstance(begun.result, BackupRecord) and begun.result.state == "running"
    assert isinstance(done.result, BackupInProgress)
    assert done.result.backup_id == begun.result.id
    scene.complete()
    waits = scene.trigger(1, FULL, waits=True)
    assert waits.result is None
    record = scene.complete()
    assert waits.result == record
    assert (record.mode, record.reason) == (FULL, "")


def test_a_caller_that_waits_gets_the_later_try(scene: Scene) -> None:
    scene = with_first()
    waiter = scene.trigger(2, waits=True)
    scene.pass_time(3)
    scene.taker.work.failed("no space")
    scene.pass_time(3)
    assert waiter.result is None
    record = scene.complete()
    assert waiter.result == record


def test_a_request_goes_to_the_next_leader_too(scene: Scene) -> None:
    scene = with_first()
    scene.leader = None
    waiter = scene.trigger(2)
    scene.pass_time(1)
    assert waiter.result is None
    scene.elect(3)
    scene.pass_time(2)
    assert isinstance(waiter.result, BackupRecord)


def test_a_request_whose_answer_is_lost_begins_no_second_backup(scene: Scene) -> None:
    scene = with_first()
    reply = scene.nodes[2].backups._requests.on_reply
    scene.nodes[2].backups._requests.on_reply = lambda reply: None  # type: ignore[method-assign]
    waiter = scene.trigger(2)
    scene.nodes[2].backups._requests.on_reply = reply  # type: ignore[method-assign]
    scene.pass_time(2)
    assert isinstance(waiter.result, BackupRecord)
    assert len(scene.catalog.records()) == 2


def test_deadlines_end_requests(scene: Scene) -> None:
    scene = with_first()
    late = scene.trigger(3, waits=True)
    scene.leader = None
    unasked = scene.trigger(2)
    for node in (scene.nodes[2], scene.nodes[3]):
        assert node.backups.expire(scene.now) == scene.now + 600
        assert len(node.backups.pending()) == 1
        assert node.backups.expire(scene.now + 700) == float("inf")
        assert not node.backups.pending()
    assert isinstance(unasked.result, Unavailable)
    assert isinstance(late.result, RequestTimeout)


def test_pins_and_marks_are_asked_of_the_leader(scene: Scene) -> None:
    scene = with_first()
    (record,) = scene.catalog.records()
    assert scene.change(2, Pin(record.id, "audit", 0)).result == scene.index
    assert scene.catalog.records()[0].pins == (("audit", 0),)
    refused = scene.change(3, Pin(999, "audit", 0)).result
    assert isinstance(refused, InvalidRequest) and "999" in str(refused)
    scene.change(2, Unpin(record.id, "audit"))
    assert isinstance(scene.change(2, Unpin(record.id, "audit")).result, InvalidRequest)
    mark = scene.change(1, MarkNow("m"))
    assert mark.result == scene.catalog.marks()[0].index
    assert isinstance(scene.change(1, MarkNow("m")).result, InvalidRequest)


@pytest.mark.parametrize(
    ("what", "payload"),
    [
        (9, b""),
        (BackupAction.TRIGGER, b"page diff"),
        (BackupAction.TRIGGER, b"\xff"),
        (BackupAction.CHANGE, b""),
        (BackupAction.CHANGE, b"\xc1"),
        (BackupAction.CHANGE, encode_change(Retire((1,), LINEAGE))),
        (BackupAction.CHANGE, encode_change(Deleted((1,)))),
        (BackupAction.CHANGE, encode_change(Begin(1, FULL, 0, LINEAGE, ("local",), ""))),
    ],
)
def test_a_peer_cannot_ask_for_what_is_the_leaders(scene: Scene, what: int, payload: bytes) -> None:
    scene.pass_time(1)
    request = BackupRequest(1, 2, 5, what, payload, False)
    with pytest.raises(WireError):
        scene.nodes[1].backups.on_message(request)


def test_requests_that_wait_are_bounded(scene: Scene) -> None:
    scene.pass_time(1)
    scene.nodes[1].core.can_propose = False
    for number in range(2 * QUEUE_MAX):
        payload = encode_change(MarkNow(f"{number}"))
        request = BackupRequest(1, 2, number, BackupAction.CHANGE, payload, False)
        scene.nodes[1].backups.on_message(request)
    assert len(scene.nodes[1].backups._leading._queue) <= QUEUE_MAX


def test_nothing_happens_before_the_protocol_is_in_use(scene: Scene) -> None:
    for node in scene.nodes.values():
        node.state.versions = Versions(6, 0, frozenset())
    waiter = scene.trigger(2)
    assert isinstance(waiter.result, UpgradePending) and waiter.result.nodes == (3,)
    scene.pass_time(60)
    assert scene.catalog.records() == ()


def test_without_settings_nothing_is_taken(scene: Scene) -> None:
    scene = Scene(config=None)
    scene.pass_time(60)
    assert scene.catalog.records() == ()
    assert "no settings" in str(scene.trigger(2).result)


# ---------------------------------------------------------------- upkeep


def leader_work(scene: Scene) -> Any:
    assert scene.leader is not None
    return scene.nodes[scene.leader].work


def test_what_the_destinations_lost_is_missing_and_reported() -> None:
    scene = with_first()
    (record,) = scene.catalog.records()
    scene.pass_time(DAY_S, step=600)
    while leader_work(scene).listed is None:
        scene.complete()
    leader_work(scene).lists(found={}, lost={(record.id, "local"): "its manifest is gone"})
    scene.pass_time(2)
    (missing,) = scene.nodes[1].events(BackupMissing)
    assert (missing.backup_id, missing.destination) == (record.id, "local")
    assert missing.reason == "its manifest is gone"
    assert scene.catalog.records()[0].state == "missing"


def test_a_destination_that_cannot_be_listed_has_lost_nothing() -> None:
    scene = Scene()
    scene.pass_time(3)
    scene.complete()
    scene.pass_time(2)
    leader_work(scene).lists(errors={"local": "no route"}, found={})
    scene.pass_time(2)
    assert scene.catalog.records()[0].state == "completed"


def test_a_backup_that_was_given_up_is_adopted_when_it_is_complete() -> None:
    scene = with_first()
    (full,) = scene.catalog.records()
    scene.trigger(1)
    late = scene.running
    scene.pass_time(2)
    scene.taker.work.failed("it was cut off")
    scene.pass_time(2)
    scene.complete()
    scene.pass_time(2)
    whole = full._replace(id=late.id, mode=late.mode, parent=full.id, began_us=late.began_us)
    leader_work(scene).lists(adoptable=(whole,))
    scene.pass_time(2)
    adopted = scene.catalog.get(late.id)
    assert adopted is not None and adopted.state == "completed"


POLICY = RetentionPolicy(keep_last=1, keep_daily_days=0, keep_weekly_weeks=0, keep_monthly_months=0)


def test_retire_is_committed_before_anything_is_deleted() -> None:
    scene = with_first(config=BackupConfig(retention=POLICY), enable_pitr=False)
    (old,) = scene.catalog.records()
    scene.trigger(1, FULL)
    scene.complete()
    scene.pass_time(2)
    work = leader_work(scene)
    work.lists()
    scene.nodes[1].backups.on_tick(scene.now)
    assert isinstance(scene._pending[0][2], bytes) and work.deleting is None
    scene.settle()
    scene.pass_time(1)
    assert scene.changes[-1] == Retire((old.id,), LINEAGE)
    (deleting,) = leader_work(scene).deleting["local"]
    assert (deleting.id, deleting.state) == (old.id, "retired")
    work.deletes()
    scene.pass_time(2)
    assert scene.catalog.get(old.id) is None
    for node in scene.nodes.values():
        (applied,) = node.events(RetentionApplied)
        assert (applied.deleted, applied.freed_bytes) == ((old.id,), 1000)


def test_a_refused_deletion_is_reported_once_and_tried_again() -> None:
    scene = with_first(config=BackupConfig(retention=POLICY), enable_pitr=False)
    (old,) = scene.catalog.records()
    scene.trigger(1, FULL)
    scene.complete()
    for _ in range(2):
        scene.pass_time(2)
        leader_work(scene).lists()
        scene.pass_time(2)
        refused = {(old.id, "local"): "object lock"}
        leader_work(scene).deletes(gone=frozenset(), refused=refused)
        scene.pass_time(2)
        scene.ask(2, BackupAction.APPLY_RETENTION)
    (event,) = scene.nodes[1].events(RetentionRefused)
    assert (event.backup_id, event.reason) == (old.id, "object lock")
    record = scene.catalog.get(old.id)
    assert record is not None and record.state == "retired"


def test_a_leader_that_was_deposed_proposes_nothing_of_its_round() -> None:
    scene = with_first(config=BackupConfig(retention=POLICY), enable_pitr=False)
    scene.trigger(1, FULL)
    scene.complete()
    scene.pass_time(2)
    work = leader_work(scene)
    assert work.listed is not None
    scene.elect(3)
    scene.pass_time(1)
    before = len(scene.changes)
    work.lists()
    scene.pass_time(2)
    assert len(scene.changes) == before
    assert work.deleting is None


def test_a_backup_that_completes_while_it_is_listed_is_not_missing() -> None:
    scene = with_first()
    scene.trigger(1)
    scene.pass_time(3)
    scene.ask(2, BackupAction.APPLY_RETENTION)
    scene.pass_time(1)
    listed = leader_work(scene).listed
    assert listed is not None
    record = scene.complete()
    leader_work(scene).lists()
    scene.pass_time(2)
    found = scene.catalog.get(record.id)
    assert found is not None and found.state == "completed"


def test_a_leftover_of_an_unknown_backup_is_adopted_as_failed_and_deleted_later() -> None:
    scene = with_first()
    (full,) = scene.catalog.records()
    scene.ask(1, BackupAction.APPLY_RETENTION)
    scene.pass_time(2)
    leftover = full._replace(id=3, state="failed", manifest=b"", position_index=0, began_us=T0_US)
    leader_work(scene).lists(leftovers=(leftover,))
    scene.pass_time(2)
    found = scene.catalog.get(3)
    assert found is not None and found.state == "failed"
    assert leader_work(scene).deleting is None


def test_end_is_what_a_taker_sends() -> None:
    """A peer's `end` counts for the running backup only, and once."""
    scene = with_first()
    (full,) = scene.catalog.records()
    end = End(full.id, (), 0, 0, 0, 0, 0, 0, "", b"", 0, (), "late")
    request = BackupRequest(1, 3, 0, BackupAction.CHANGE, encode_change(end), False)
    scene.nodes[1].backups.on_message(request)
    scene.pass_time(2)
    assert scene.catalog.records()[0].state == "completed"
