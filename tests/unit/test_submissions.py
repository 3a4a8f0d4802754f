"""Submissions: a write between its caller and its outcome, without a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest

from raftha.entry import Group, decode_groups
from raftha.errors import (
    CommandFailed,
    Disconnected,
    Indeterminate,
    InvalidRequest,
    Overloaded,
    RequestTimeout,
    Stopped,
    StorageFull,
    Unavailable,
)
from raftha.node.acknowledgements import Acknowledgements
from raftha.node.operations import (
    ALL_VOTERS,
    AcknowledgedWrite,
    GroupOperation,
    Operation,
    WriteOperation,
)
from raftha.node.pending import PendingOperations
from raftha.node.submissions import InFlight, Submissions, is_proper
from raftha.storage.state.commands import COMMAND_BYTES_MAX, pack_put
from raftha.storage.state.sessions import Applied, Outcome, Verdict
from raftha.types import Acknowledgement, Receipt, ReplicationMode

SESSION = 77
NOW = 100.0
ACKNOWLEDGED = Acknowledgement(ReplicationMode.ASYNC_WITH_ACK, (1, 3), ("primary",))


class FakeRouter:
    """The parts of a node that submissions use; there is a leader if `has_leader`.

    It is their route, their pending operations and their acknowledgements in one.
    """

    def __init__(self) -> None:
        self.has_leader = True
        self.routed: list[Group] = []
        self.delivered: list[tuple[str, Any]] = []
        self.awaited: list[tuple[str, Any]] = []
        self.time = 100.0

    def route(self, group: InFlight) -> bool:
        if self.has_leader:
            self.routed += decode_groups(memoryview(group.encoded))
        return self.has_leader

    def deliver(self, operation: Operation, result: Any) -> None:
        self.delivered.append((operation.waiter, result))
        operation.waiter = None

    def deliver_each(self, operations: Sequence[Operation], results: Sequence[Any]) -> None:
        for operation, result in zip(operations, results, strict=True):
            self.deliver(operation, result)

    def of(self, index: int) -> Acknowledgement:
        return ACKNOWLEDGED

    def add(
        self, operation: WriteOperation | GroupOperation, result: Receipt | Outcome, now: float
    ) -> None:
        self.awaited.append((operation.waiter, result))

    def now(self) -> float:
        return self.time

    def random_below(self, limit: int) -> int:
        return 12345 % limit


@pytest.fixture
def router() -> FakeRouter:
    return FakeRouter()


def make_submissions(router: FakeRouter) -> Submissions:
    pending, acknowledgements = cast(PendingOperations, router), cast(Acknowledgements, router)
    return Submissions(router.route, pending, acknowledgements, router.now, router.random_below)


@pytest.fixture
def submissions(router: FakeRouter) -> Submissions:
    """With a session already open."""
    fresh = make_submissions(router)
    fresh.add(write("first"))
    form(fresh)
    (opening,) = router.routed
    assert (opening.session, opening.count) == (0, 0)
    fresh.on_applied(Applied(0, opening.number, outcome(count=0, session=SESSION)), NOW)
    fresh.queue.clear()
    router.routed.clear()
    return fresh


def write(name: str, deadline: float = 200.0) -> WriteOperation:
    return WriteOperation(name, deadline, pack_put(name.encode(), b"value"))


def form(submissions: Submissions) -> None:
    submissions.form_groups(1 << 20, 100)


def outcome(count: int, session: int = 0, verdict: Verdict = Verdict.APPLIED) -> Outcome:
    return Outcome(10, 5, 2, 1_000, count, None, session, verdict)


def test_all_that_waits_becomes_one_group(submissions: Submissions, router: FakeRouter) -> None:
    for name in "abc":
        submissions.add(write(name))
    form(submissions)
    (group,) = router.routed
    assert (group.session, group.number, group.floor, group.count) == (SESSION, 1, 1, 3)
    submissions.on_applied(Applied(SESSION, 1, outcome(count=3)), NOW)
    assert [name for name, _ in router.delivered] == ["a", "b", "c"]
    assert [receipt.sequence for _, receipt in router.delivered] == [10, 11, 12]


def test_the_floor_is_the_lowest_number_in_flight(
    submissions: Submissions, router: FakeRouter
) -> None:
    for name in "abc":
        submissions.add(write(name))
        form(submissions)
    submissions.on_applied(Applied(SESSION, 1, outcome(count=1)), NOW)
    submissions.on_applied(Applied(SESSION, 3, outcome(count=1)), NOW)
    submissions.add(write("d"))
    form(submissions)
    assert [(group.number, group.floor) for group in router.routed] == [
        (1, 1),
        (2, 1),
        (3, 1),
        (4, 2),
    ]


def test_a_new_leader_gets_all_groups_in_flight_in_order(
    submissions: Submissions, router: FakeRouter
) -> None:
    for name in "abc":
        submissions.add(write(name))
        form(submissions)
    submissions.on_applied(Applied(SESSION, 2, outcome(count=1)), NOW)
    router.routed.clear()
    submissions.send_again()
    assert [group.number for group in router.routed] == [1, 3]


def test_a_group_without_an_answer_is_sent_again_after_a_while(
    submissions: Submissions, router: FakeRouter
) -> None:
    submissions.add(write("a"))
    form(submissions)
    submissions.send_overdue()
    assert len(router.routed) == 1
    router.time += 1.5
    submissions.send_overdue()
    assert [group.number for group in router.routed] == [1, 1]


def test_an_outcome_of_another_submitter_is_ignored(
    submissions: Submissions, router: FakeRouter
) -> None:
    submissions.add(write("a"))
    form(submissions)
    submissions.on_applied(Applied(SESSION + 1, 1, outcome(count=1)), NOW)
    assert router.delivered == []


def test_a_write_that_never_left_is_rejected_at_its_deadline(
    submissions: Submissions, router: FakeRouter
) -> None:
    submissions.add(write("early", deadline=101.0))
    submissions.add(write("late", deadline=150.0))
    assert submissions.expire(102.0) == 150.0
    ((name, error),) = router.delivered
    assert name == "early"
    assert isinstance(error, Unavailable)
    form(submissions)
    assert router.routed[0].count == 1


def test_a_sent_write_is_indeterminate_at_its_deadline_and_not_done_later(
    submissions: Submissions, router: FakeRouter
) -> None:
    submissions.add(write("a", deadline=101.0))
    form(submissions)
    submissions.expire(102.0)
    assert isinstance(router.delivered[0][1], RequestTimeout)
    submissions.add(write("b"))
    form(submissions)
    assert router.routed[-1].floor == 2, "a copy of group 1 still on its way must be dropped"


def test_a_group_that_was_never_sent_is_rejected_at_its_deadline(
    submissions: Submissions, router: FakeRouter
) -> None:
    router.has_leader = False
    submissions.add_group(GroupOperation("a", 101.0, 5, 1, 1, [pack_put(b"a", b"")]))
    submissions.expire(102.0)
    assert isinstance(router.delivered[0][1], Unavailable)


def test_an_overloaded_leader_rejects_a_group_sent_once(
    submissions: Submissions, router: FakeRouter
) -> None:
    submissions.add(write("a"))
    form(submissions)
    submissions.on_refused(SESSION, 1, is_full=False)
    assert isinstance(router.delivered[0][1], Overloaded)


def test_an_overloaded_leader_leaves_a_group_sent_twice_indeterminate(
    submissions: Submissions, router: FakeRouter
) -> None:
    submissions.add(write("a"))
    form(submissions)
    submissions.send_again()
    submissions.on_refused(SESSION, 1, is_full=False)
    assert isinstance(router.delivered[0][1], RequestTimeout)


def test_a_leader_without_space_does_not_report_overload(
    submissions: Submissions, router: FakeRouter
) -> None:
    submissions.add(write("a"))
    form(submissions)
    submissions.on_refused(SESSION, 1, is_full=True)
    assert isinstance(router.delivered[0][1], StorageFull)


def test_writes_waiting_for_a_session_are_refused_when_many_disks_are_full(
    router: FakeRouter,
) -> None:
    fresh = make_submissions(router)
    fresh.add(write("a"))
    form(fresh)
    (opening,) = router.routed
    fresh.on_refused(0, opening.number, is_full=True)
    ((name, error),) = router.delivered
    assert name == "a"
    assert isinstance(error, StorageFull)
    assert not fresh.queue
    fresh.add(write("b"))
    form(fresh)
    assert len(router.routed) == 2, "the next one opens a session again"


def test_writes_of_an_expired_session_go_out_in_a_new_one_in_their_order(
    submissions: Submissions, router: FakeRouter
) -> None:
    for name in "abc":
        submissions.add(write(name))
        form(submissions)
    expired = outcome(count=1, verdict=Verdict.SESSION_EXPIRED)
    for number in (1, 2, 3):
        submissions.on_applied(Applied(SESSION, number, expired), NOW)
    router.routed.clear()
    form(submissions)
    (opening,) = router.routed
    submissions.on_applied(Applied(0, opening.number, outcome(count=0, session=SESSION + 1)), NOW)
    form(submissions)
    group = router.routed[-1]
    assert (group.session, group.number, group.count) == (SESSION + 1, 1, 3)
    submissions.on_applied(Applied(SESSION + 1, 1, outcome(count=3)), NOW)
    assert [name for name, _ in router.delivered] == ["a", "b", "c"]
    assert all(isinstance(receipt, Receipt) for _, receipt in router.delivered)


def test_a_group_that_the_floor_passed_goes_out_in_a_new_session(
    submissions: Submissions, router: FakeRouter
) -> None:
    for name in "ab":
        submissions.add(write(name))
        form(submissions)
    submissions.on_applied(Applied(SESSION, 1, outcome(count=1, verdict=Verdict.FORGOTTEN)), NOW)
    submissions.on_applied(Applied(SESSION, 2, outcome(count=1)), NOW)
    assert [name for name, _ in router.delivered] == ["b"]
    router.routed.clear()
    form(submissions)
    (opening,) = router.routed
    submissions.on_applied(Applied(0, opening.number, outcome(count=0, session=SESSION + 1)), NOW)
    form(submissions)
    submissions.on_applied(Applied(SESSION + 1, 1, outcome(count=1)), NOW)
    assert [name for name, _ in router.delivered] == ["b", "a"]


def test_a_client_cannot_use_the_nodes_own_session(
    submissions: Submissions, router: FakeRouter
) -> None:
    submissions.add_group(GroupOperation("a", 200.0, SESSION, 1, 1, [pack_put(b"a", b"")]))
    assert router.routed == []
    assert isinstance(router.delivered[0][1], InvalidRequest)


def test_an_outcome_of_a_foreign_group_with_our_number_is_not_ours(
    submissions: Submissions, router: FakeRouter
) -> None:
    submissions.add(write("a"))
    submissions.add(write("b"))
    form(submissions)
    submissions.on_applied(Applied(SESSION, 1, outcome(count=1)), NOW)
    assert [type(error) for _, error in router.delivered] == [Indeterminate, Indeterminate]


def test_a_failed_command_fails_only_its_own_caller(
    submissions: Submissions, router: FakeRouter
) -> None:
    submissions.add(write("a"))
    submissions.add(write("b"))
    form(submissions)
    results = [None, (2, "ValueError", "no")]
    failed = outcome(count=2)._replace(results=results)
    submissions.on_applied(Applied(SESSION, 1, failed), NOW)
    kinds = [type(result) for _, result in router.delivered]
    assert kinds == [Receipt, CommandFailed]


def test_a_receipt_names_the_holders_and_its_caller_may_wait_for_more(
    submissions: Submissions, router: FakeRouter
) -> None:
    submissions.add(write("a"))
    submissions.add(AcknowledgedWrite("b", 200.0, pack_put(b"b", b"value"), ALL_VOTERS))
    form(submissions)
    submissions.on_applied(Applied(SESSION, 1, outcome(count=2)), NOW)
    ((_, receipt),) = router.delivered
    assert (receipt.acked_by, receipt.regions) == ((1, 3), ("primary",))
    ((waiter, later),) = router.awaited
    assert (waiter, later.sequence) == ("b", 11)


def test_a_failed_command_waits_for_no_disks(submissions: Submissions, router: FakeRouter) -> None:
    submissions.add(AcknowledgedWrite("a", 200.0, pack_put(b"a", b"value"), ALL_VOTERS))
    form(submissions)
    failed = outcome(count=1)._replace(results=[(2, "ValueError", "no")])
    submissions.on_applied(Applied(SESSION, 1, failed), NOW)
    assert [type(result) for _, result in router.delivered] == [CommandFailed]
    assert router.awaited == []


def test_the_same_group_asked_for_twice_answers_both(
    submissions: Submissions, router: FakeRouter
) -> None:
    for name in ("one", "two"):
        submissions.add_group(GroupOperation(name, 200.0, 5, 1, 1, [pack_put(b"a", b"")]))
    assert len(router.routed) == 1
    submissions.on_applied(Applied(5, 1, outcome(count=1)), NOW)
    assert [name for name, _ in router.delivered] == ["one", "two"]


def test_the_end_rejects_unsent_writes_but_not_sent_ones(
    submissions: Submissions, router: FakeRouter
) -> None:
    submissions.add(write("sent"))
    form(submissions)
    submissions.add(write("queued"))
    submissions.abort(Stopped("over"), Disconnected("over"))
    assert {name: type(error) for name, error in router.delivered} == {
        "sent": Disconnected,
        "queued": Stopped,
    }
    assert submissions.in_flight_bytes == 0


@pytest.mark.parametrize(
    ("group", "verdict"),
    [
        (Group(1, 1, 1, 1, b"x"), True),
        (Group(0, 9, 0, 0, b""), True),
        (Group(0, 9, 0, 1, b""), False),
        (Group(0, 9, 0, 0, bytes(16)), True),
        (Group(0, 9, 0, 0, bytes(17)), False),
        (Group(1, 1, 1, 1 << 31, b""), False),
        (Group(1, 1, 1, 1, bytes(COMMAND_BYTES_MAX)), True),
        (Group(1, 1, 1, 1, bytes(COMMAND_BYTES_MAX + 1)), False),
    ],
    ids=range(8),
)
def test_groups_that_would_trip_the_state_machine_are_improper(group: Group, verdict: bool) -> None:
    assert is_proper(group) is verdict
