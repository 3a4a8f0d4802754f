"""Messages of strangers, and terms that can't be true."""

from __future__ import annotations

import pytest

from raftha.core import Append, Heartbeat, Message, Raft, VoteRequest
from raftha.errors import WireError
from raftha.node.messages import Forward, HealthRequest, PeerMessage, SnapshotChunk
from raftha.node.senders import TERM_JUMP_MAX, SenderCheck
from tests.support.core import become_leader, core, follow

STRANGER = 77
TIMEOUT_S = 0.5


def follower(now: float) -> tuple[Raft, SenderCheck]:
    """Node 1, which follows node 2 and had a heartbeat at `now`."""
    raft = core()
    follow(raft)
    check = SenderCheck(raft, TIMEOUT_S)
    assert check.admits(Heartbeat(1, 2, 1, 0, 0), now)
    return raft, check


FROM_STRANGER: list[PeerMessage] = [
    VoteRequest(1, STRANGER, 9, 1 << 40, 9, pre=False, transfer=True),
    Append(1, STRANGER, 9, 0, 0, 0, 0, ()),
    Forward(1, STRANGER, b"a group"),
    SnapshotChunk(1, STRANGER, 5, 0, 0, b"bytes"),
]


@pytest.mark.parametrize("message", FROM_STRANGER, ids=lambda m: type(m).__name__)
def test_a_follower_of_a_live_leader_drops_messages_of_strangers(message: PeerMessage) -> None:
    _, check = follower(now=10.0)
    assert not check.admits(message, 10.4)
    assert check.admits(message._replace(sender=3), 10.4)


@pytest.mark.parametrize("message", FROM_STRANGER, ids=lambda m: type(m).__name__)
def test_a_leader_drops_messages_of_strangers(message: PeerMessage) -> None:
    raft = core()
    become_leader(raft)
    assert not SenderCheck(raft, TIMEOUT_S).admits(message, 1e6)


def test_without_a_live_leader_a_later_membership_may_speak() -> None:
    """Thesis 4.1: servers process requests of servers that aren't in their configuration."""
    _, check = follower(now=10.0)
    assert check.admits(FROM_STRANGER[1], 10.0 + TIMEOUT_S)
    assert SenderCheck(core(), TIMEOUT_S).admits(FROM_STRANGER[0], 0.0)


def test_a_stranger_gets_an_answer_to_a_check_of_health() -> None:
    _, check = follower(now=10.0)
    assert check.admits(HealthRequest(1, STRANGER), 10.1)


@pytest.mark.parametrize("sender", [2, STRANGER])
@pytest.mark.parametrize("term", [TERM_JUMP_MAX + 2, (1 << 63) - 1])
def test_a_term_that_jumps_too_far_closes_the_connection(sender: int, term: int) -> None:
    raft, check = follower(now=10.0)
    message: Message = VoteRequest(1, sender, term, 0, 0, pre=False, transfer=True)
    with pytest.raises(WireError, match="far beyond this node's term 1"):
        check.admits(message, 10.0)
    assert check.admits(message._replace(sender=2, term=raft.term + TERM_JUMP_MAX), 10.0)
