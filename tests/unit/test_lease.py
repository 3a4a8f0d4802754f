"""Leases: what followers promise, and until when a leader knows that no other node leads."""

from __future__ import annotations

import pytest

from raftha.core import (
    Heartbeat,
    HeartbeatReply,
    Raft,
    ReadReply,
    ReadRequest,
    Role,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from raftha.core.lease import FOR_EVER, MS
from raftha.core.messages import Message
from raftha.membership import Membership
from tests.support.core import (
    ELECTION_TICKS,
    acknowledge,
    become_leader,
    core,
    follow,
    only,
    settle,
    step,
)

LEASE_MS = 100
START_NS = 5 * MS


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_ns = START_NS

    def __call__(self) -> int:
        return self.now_ns

    def go(self, ms: float) -> None:
        self.now_ns += int(ms * MS)


@pytest.fixture(name="clock")
def make_clock() -> Clock:
    return Clock()


def follower(clock: Clock, *, lease_ms: int = LEASE_MS, asked_ms: int = LEASE_MS) -> Raft:
    """Node 1, which started long ago and has just got a heartbeat from node 2."""
    raft = core(lease_ms=lease_ms, clock_ns=clock)
    clock.go(10 * LEASE_MS)
    step(raft, Heartbeat(1, 2, 1, 0, 0, sent_ns=7, lease_ms=asked_ms))
    return raft


def leader(clock: Clock, *, voters: int = 3, drift: float = 0.0) -> Raft:
    """Node 1, which leads and has committed its no-op, without a lease yet."""
    raft = core(voters=voters, lease_ms=LEASE_MS, clock_drift_max=drift, clock_ns=clock)
    clock.go(10 * LEASE_MS)
    become_leader(raft)
    for peer in range(2, 2 + raft.membership.quorum - 1):
        acknowledge(raft, peer)
    return raft


def beat(raft: Raft) -> dict[int, Heartbeat]:
    """Let it send heartbeats; return them by receiver."""
    raft.tick()
    raft.tick()
    return {message.to: message for message in only(Heartbeat, settle(raft))}


def promise(
    raft: Raft, heartbeat: Heartbeat, promised_ms: int = LEASE_MS, healing_generation: int = 0
) -> None:
    """Deliver the reply of the receiver of `heartbeat`."""
    own = heartbeat.sender, heartbeat.to, heartbeat.term, heartbeat.read_round
    step(raft, HeartbeatReply(*own, 0, 0, healing_generation, heartbeat.sent_ns, promised_ms))


def asks(raft: Raft, candidate: int, term: int, *, transfer: bool = False) -> bool:
    """True if `candidate` gets its vote."""
    request = VoteRequest(raft.id, candidate, term, 9, 9, False, transfer)
    return any(reply.granted for reply in only(VoteReply, step(raft, request)))


# ---------------------------------------------------------------- followers


def test_a_reply_says_what_is_promised_and_when_the_heartbeat_was_sent(clock: Clock) -> None:
    raft = follower(clock)
    (reply,) = only(HeartbeatReply, step(raft, Heartbeat(1, 2, 1, 0, 0, sent_ns=9, lease_ms=60)))
    assert (reply.sent_ns, reply.promised_ms) == (9, 60)


@pytest.mark.parametrize(("own_ms", "promised_ms"), [(0, 0), (40, 40), (300, LEASE_MS)])
def test_a_follower_promises_no_more_than_its_own_setting(
    clock: Clock, own_ms: int, promised_ms: int
) -> None:
    raft = core(lease_ms=own_ms, clock_ns=clock)
    (reply,) = only(
        HeartbeatReply, step(raft, Heartbeat(1, 2, 1, 0, 0, sent_ns=9, lease_ms=LEASE_MS))
    )
    assert reply.promised_ms == promised_ms


@pytest.mark.parametrize("is_pre", [True, False])
def test_a_promise_outlives_the_connection_to_the_leader(clock: Clock, is_pre: bool) -> None:
    raft = follower(clock)
    raft.disconnected(2)
    clock.go(LEASE_MS - 1)
    assert step(raft, VoteRequest(1, 3, 2, 9, 9, is_pre, False)) == []
    clock.go(1)
    (reply,) = only(VoteReply, step(raft, VoteRequest(1, 3, 2, 9, 9, is_pre, False)))
    assert reply.granted


def test_a_promise_outlives_the_term(clock: Clock) -> None:
    """A node may learn of the later term in other ways than by a vote request."""
    raft = follower(clock)
    step(raft, VoteReply(1, 3, 8, False, True))
    assert (raft.term, raft.leader) == (8, None)
    assert not asks(raft, 3, 8)
    clock.go(LEASE_MS)
    assert asks(raft, 3, 8)


def test_a_promise_does_not_bind_against_the_leader_that_has_it(clock: Clock) -> None:
    raft = follower(clock)
    raft.disconnected(2)
    assert asks(raft, 2, 2)


def test_a_leader_that_hands_over_lets_others_vote_at_once(clock: Clock) -> None:
    raft = follower(clock)
    assert asks(raft, 3, 2, transfer=True)


def test_the_target_of_a_transfer_campaigns_at_once(clock: Clock) -> None:
    raft = follower(clock)
    requests = only(VoteRequest, step(raft, TimeoutNow(1, 2, 1)))
    assert requests and all(request.transfer for request in requests)


def test_a_follower_asks_for_votes_a_moment_after_its_promise_ends(clock: Clock) -> None:
    raft = follower(clock)
    raft.disconnected(2)
    for _ in range(5 * ELECTION_TICKS):
        raft.tick()
    assert raft.role is Role.FOLLOWER
    raft.campaign()
    assert raft.role is Role.FOLLOWER, "not even if an operator wants it to"
    clock.go(LEASE_MS)
    raft.tick()
    assert only(VoteRequest, settle(raft))


def test_the_election_timeout_may_end_before_the_promise(clock: Clock) -> None:
    """Ticks are no clock."""
    raft = follower(clock)
    for _ in range(5 * ELECTION_TICKS):
        raft.tick()
    assert (raft.role, raft.leader) == (Role.FOLLOWER, 2)
    clock.go(LEASE_MS)
    raft.tick()
    assert only(VoteRequest, settle(raft))


def test_a_node_that_starts_keeps_every_promise_it_may_have_given(clock: Clock) -> None:
    """Also if its settings have become smaller since."""
    raft = core(lease_ms=0, promised_ms=LEASE_MS, clock_ns=clock)
    for _ in range(5 * ELECTION_TICKS):
        raft.tick()
    assert raft.role is Role.FOLLOWER
    assert not asks(raft, 3, 2)
    clock.go(LEASE_MS)
    assert asks(raft, 3, 2)


def test_without_leases_no_candidate_waits() -> None:
    def no_clock() -> int:
        raise AssertionError("it isn't asked")

    raft = core(clock_ns=no_clock)
    follow(raft)
    raft.disconnected(2)
    assert asks(raft, 3, 2)


# ---------------------------------------------------------------- the leader


def test_a_lease_is_counted_from_when_the_heartbeat_was_sent(clock: Clock) -> None:
    raft = leader(clock)
    sent_ns = clock.now_ns
    heartbeat = beat(raft)[2]
    assert (heartbeat.sent_ns, heartbeat.lease_ms) == (sent_ns, LEASE_MS)
    clock.go(30)
    promise(raft, heartbeat)
    assert raft.leases.holds()
    clock.go(LEASE_MS - 31)
    assert raft.leases.holds()
    clock.go(1)
    assert not raft.leases.holds()


def test_a_lease_is_shortened_by_the_bound_on_clock_drift(clock: Clock) -> None:
    raft = leader(clock, drift=0.25)
    promise(raft, beat(raft)[2])
    clock.go(LEASE_MS * 0.75 - 1)
    assert raft.leases.holds()
    clock.go(1)
    assert not raft.leases.holds()


@pytest.mark.parametrize("promised_ms", [30, 3 * LEASE_MS])
def test_a_lease_is_no_longer_than_what_was_promised_or_asked_for(
    clock: Clock, promised_ms: int
) -> None:
    raft = leader(clock)
    promise(raft, beat(raft)[2], promised_ms)
    clock.go(min(promised_ms, LEASE_MS))
    assert not raft.leases.holds()


def test_a_lease_needs_a_quorum_and_lasts_as_long_as_a_quorums_promises(clock: Clock) -> None:
    raft = leader(clock, voters=5)
    promise(raft, beat(raft)[2])
    assert not raft.leases.holds()
    clock.go(20)
    promise(raft, beat(raft)[3])
    assert raft.leases.holds()
    clock.go(LEASE_MS - 20)
    assert not raft.leases.holds(), "node 2's promise has ended"


def test_replies_out_of_order_do_not_shorten_a_lease(clock: Clock) -> None:
    raft = leader(clock)
    early = beat(raft)[2]
    clock.go(40)
    promise(raft, beat(raft)[2])
    promise(raft, early)
    clock.go(LEASE_MS - 1)
    assert raft.leases.holds()


def test_there_is_no_lease_before_an_entry_of_the_own_term_is_committed(clock: Clock) -> None:
    raft = core(1, 1, lease_ms=LEASE_MS, clock_ns=clock)
    clock.go(10 * LEASE_MS)
    become_leader(raft)
    promise(raft, beat(raft)[2])
    assert raft.leases.current is None
    acknowledge(raft, 3)
    assert raft.leases.holds()


def test_a_single_voter_holds_a_lease_until_there_is_another_voter(clock: Clock) -> None:
    raft = core(voters=1, lease_ms=LEASE_MS, clock_ns=clock)
    clock.go(LEASE_MS)
    for _ in range(2 * ELECTION_TICKS):
        raft.tick()
        settle(raft)
    assert raft.leases.current is not None
    assert raft.leases.current.until_ns == FOR_EVER
    two = Membership.first({1: "127.0.0.1:7101", 2: "127.0.0.1:7102"})
    raft.change_membership(two)
    assert not raft.leases.holds()
    promise(raft, beat(raft)[2])
    assert raft.leases.holds()


def test_a_healing_node_counts_for_no_lease(clock: Clock) -> None:
    raft = leader(clock)
    promise(raft, beat(raft)[3], healing_generation=1)
    assert not raft.leases.holds()


def test_a_lease_ends_with_a_transfer_and_returns_without_timeout_now(
    clock: Clock,
) -> None:
    raft = leader(clock)
    promise(raft, beat(raft)[2])
    lease = raft.leases.current
    raft.transfer(3)
    assert only(TimeoutNow, settle(raft)) == [], "node 3 lacks the no-op"
    assert raft.leases.current is None
    assert lease is not None and lease.until_ns == 0, "for the readers that have taken it as well"
    promise(raft, beat(raft)[2])
    assert raft.leases.current is None
    for _ in range(ELECTION_TICKS):
        raft.tick()
    promise(raft, beat(raft)[2])
    assert raft.leases.holds()
    assert raft.leases.current is not lease


def test_a_term_in_which_a_timeout_now_was_sent_has_no_lease(clock: Clock) -> None:
    """The message may arrive late."""
    raft = leader(clock)
    raft.transfer(2)
    assert only(TimeoutNow, settle(raft))
    for _ in range(2 * ELECTION_TICKS):
        for heartbeat in beat(raft).values():
            promise(raft, heartbeat)
    assert raft.is_leader and raft.can_propose
    assert raft.leases.current is None


@pytest.mark.parametrize("news", [Heartbeat(1, 2, 9, 0, 0), VoteReply(1, 2, 9, False, False)])
def test_a_node_that_no_longer_leads_has_no_lease(clock: Clock, news: Message) -> None:
    raft = leader(clock)
    promise(raft, beat(raft)[2])
    lease = raft.leases.current
    raft.step(news)
    assert not raft.is_leader
    assert raft.leases.current is None
    assert lease is not None and lease.until_ns == 0


def test_while_a_lease_holds_reads_need_no_round(clock: Clock) -> None:
    raft = leader(clock)
    promise(raft, beat(raft)[2])
    raft.read_index(5)
    ready = raft.ready()
    assert [state.read_id for state in ready.read_states] == [5]
    assert ready.messages == []
    assert only(ReadReply, step(raft, ReadRequest(1, 2, raft.term, 6))), "for followers likewise"
    clock.go(LEASE_MS)
    raft.read_index(7)
    ready = raft.ready()
    assert ready.read_states == []
    assert only(Heartbeat, ready.messages)
