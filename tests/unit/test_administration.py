"""Requests of operators, and the nodes that they are sent to."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import pytest

from raftha.core import CoreConfig, Raft, RaftLog
from raftha.entry import LOG_START, HardState
from raftha.membership import Membership
from raftha.node.administration import ASK_AGAIN_AFTER_S, HEARD_S, Administration
from raftha.node.messages import (
    AdminMessage,
    MembershipReply,
    MembershipRequest,
    TransferRequest,
)
from raftha.node.operations import MembershipOperation, Operation, TransferOperation


def test_without_a_leader_all_voters_get_their_turn_before_long() -> None:
    """The wanted node may be unable to lead, and so may be the next one.

    Each attempt of an operator starts over, so it must reach all voters within a usual deadline.
    """
    voters = (1, 2, 3, 4, 5)
    membership = Membership.first({i: f"127.0.0.1:{7100 + i}" for i in voters})
    log = RaftLog(1, LOG_START, [], 1 << 20, membership)
    core = Raft(CoreConfig(node_id=1), HardState(0, 0, 0), log, lambda below: 0)
    asked: list[int] = []
    now = 0.0

    def send(message: AdminMessage) -> None:
        assert isinstance(message, TransferRequest)
        asked.append(message.target)

    def campaign() -> None:
        asked.append(core.id)

    core.campaign = campaign  # type: ignore[method-assign]
    administration = Administration(core, membership, send, lambda *_: None, lambda: now)
    administration.begin_transfer(TransferOperation(object(), 10.0, 2))
    while now < 2.5:
        now += ASK_AGAIN_AFTER_S
        administration.on_tick()

    assert asked[:3] == [2, 2, 2], "it is the wanted one's turn first"
    assert {*asked} == {*voters}
    others = [node_id for node_id in asked if node_id != 2]
    assert len(others) <= len(asked) / 2, "the wanted one is asked at least as often as they"


class Heard(NamedTuple):
    """As much of a follower's progress as a removal needs."""

    is_active: bool
    was_active: bool = False
    is_healing: bool = False
    match: int = 0


UP, DOWN = Heard(True), Heard(False)


class Leader:
    """As much of a leading core as a change of membership needs."""

    id = leader = 1
    is_leader = True

    def __init__(self, membership: Membership) -> None:
        self.membership = membership
        self.progress = {i: UP for i in membership.members if i != self.id}
        self.changes = 0

    def change_membership(self, membership: Membership) -> None:
        self.membership, self.changes = membership, self.changes + 1


def test_a_move_is_one_change_and_ends_when_it_is_applied() -> None:
    first = Membership.first({i: f"127.0.0.1:{7100 + i}" for i in (1, 2, 3)})
    core, results = Leader(first), list[Any]()

    def deliver(operation: Operation, result: Any) -> None:
        operation.waiter = None
        results.append(result)

    administration = Administration(
        cast(Any, core), first, lambda message: None, deliver, lambda: 0.0
    )
    operation = MembershipOperation(
        object(), 1.0, 2, adds=False, address="h:9", region="far", moves=True
    )
    administration.begin_change(operation)
    administration.on_leader()  # It is sent again, which does no harm.
    assert core.changes == 1
    assert core.membership == first.with_address(2, "h:9").with_region(2, "far")
    assert results == []
    administration.on_membership(core.membership)
    assert results == [None]
    administration.begin_change(MembershipOperation(object(), 1.0, 2, adds=False, moves=True))
    assert (results, core.changes) == ([None, None], 1), "it is there already"


@pytest.mark.parametrize(
    ("node_id", "address", "reason"),
    [(2, "127.0.0.1:7103", "another member's address"), (9, "h:9", "node 9 is not a member")],
)
def test_a_move_that_can_not_be_is_refused(node_id: int, address: str, reason: str) -> None:
    first = Membership.first({i: f"127.0.0.1:{7100 + i}" for i in (1, 2, 3)})
    core, sent = Leader(first), list[AdminMessage]()
    administration = Administration(
        cast(Any, core), first, sent.append, lambda *_: None, lambda: 0.0
    )
    administration.on_message(
        MembershipRequest(1, 3, node_id, False, address, "", False, False, True)
    )
    assert core.changes == 0
    (reply,) = sent
    assert isinstance(reply, MembershipReply)
    assert (reply.kind, reason in reply.reason) == ("InvalidRequest", True)


def test_a_change_that_has_to_wait_is_refused_as_pending() -> None:
    """As long as a recovery is under way, say: a repetition just waits."""
    first = Membership.first({i: f"127.0.0.1:{7100 + i}" for i in (1, 2, 3)})
    core, sent = Leader(first), list[AdminMessage]()
    administration = Administration(
        cast(Any, core), first, sent.append, lambda *_: None, lambda: 0.0
    )
    administration.why_not_now = lambda request: f"node {request.node_id} is needed"
    request = MembershipRequest(1, 3, 2, False, "", "", False, False, False)
    administration.on_message(request)
    (reply,) = sent
    assert isinstance(reply, MembershipReply)
    assert reply.kind == "MembershipChangePending"
    assert reply.reason == "node 2 is needed; try again later"
    administration.on_message(request._replace(is_repeat=True))
    assert len(sent) == 1 and core.changes == 0
    administration.why_not_now = lambda request: ""
    administration.on_message(request)
    assert core.changes == 1


@pytest.mark.parametrize(
    ("followers", "removed", "down"),
    [
        ((UP, UP), 2, ""),
        ((UP, DOWN), 3, ""),
        ((DOWN, DOWN, UP, UP), 2, ""),
        ((UP, DOWN), 2, "3"),
        ((UP, DOWN), 1, "3"),
        ((UP, Heard(True, is_healing=True)), 2, "3"),
        ((UP, Heard(False, was_active=True)), 2, ""),
        ((DOWN, DOWN, UP, UP), 4, "2, 3"),
    ],
)
def test_a_voter_that_the_cluster_can_not_do_without_is_not_removed(
    followers: tuple[Heard, ...], removed: int, down: str
) -> None:
    """The others would be no majority, and could not even commit the removal."""
    addresses = {i: f"127.0.0.1:{7100 + i}" for i in range(1, len(followers) + 2)}
    first = Membership.first(addresses)
    core, sent, moved = Leader(first), list[AdminMessage](), list[int]()
    core.progress = dict(enumerate(followers, 2))
    core.transfer = moved.append  # type: ignore[attr-defined]
    now = 0.0
    administration = Administration(
        cast(Any, core), first, sent.append, lambda *_: None, lambda: now
    )
    request = MembershipRequest(1, 3, removed, False, "", "", False, False, False)
    administration.on_message(request)
    if not down:
        assert core.membership == first.without(removed)
        return
    now += 0.9 * HEARD_S
    administration.on_message(request._replace(is_repeat=True))
    assert (core.changes, moved, sent) == (0, [], []), "a new leader hears of them yet"
    now += 0.2 * HEARD_S
    administration.on_message(request._replace(is_repeat=True))
    assert (core.changes, moved) == (0, [])
    (reply,) = sent
    assert isinstance(reply, MembershipReply)
    assert reply.kind == "InvalidRequest"
    assert f"without node {removed} no majority would be up: node {down} is down" in reply.reason
