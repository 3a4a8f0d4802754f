"""Requests of operators, and the nodes that they are sent to."""

from __future__ import annotations

from raftha.core import CoreConfig, Raft, RaftLog
from raftha.entry import LOG_START, HardState
from raftha.membership import Membership
from raftha.node.administration import ASK_AGAIN_AFTER_S, Administration
from raftha.node.messages import AdminMessage, TransferRequest
from raftha.node.operations import TransferOperation


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
