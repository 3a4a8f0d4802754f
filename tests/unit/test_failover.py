"""What a node reports of a change of leader: each change once, and how long its phases took."""

from __future__ import annotations

import pytest

from raftha.core import (
    Append,
    AppendReply,
    Heartbeat,
    Message,
    Raft,
    Role,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from raftha.events import FailoverCompleted, FailoverStarted
from raftha.node.watch.failover import FailoverWatch
from tests.support.core import ELECTION_TICKS, acknowledge, chain, core, settle


class Watched:
    """Node 1 with a watch, on a clock that the test moves."""

    def __init__(self, raft: Raft) -> None:
        self.raft = raft
        self.now = 10.0
        self.watch = FailoverWatch(raft, self.now)
        self.reported: list[FailoverStarted | FailoverCompleted] = []

    def step(self, message: Message, after: float = 0.0) -> None:
        self.now += after
        self.raft.step(message)
        self.watch.observe(self.now, message)
        self.turn()

    def turn(self) -> None:
        settle(self.raft)
        self.watch.observe(self.now)
        for event in (self.watch.take_started(), self.watch.take_completed(self.now)):
            if event is not None:
                self.reported.append(event)

    def wait_until_candidate(self) -> None:
        """Let it time out, and its pre-vote succeed."""
        for _ in range(2 * ELECTION_TICKS):
            if self.raft.role is not Role.PRE_CANDIDATE:
                self.raft.tick()
                self.turn()
        self.step(VoteReply(1, 2, self.raft.term + 1, True, True))
        assert self.raft.role is Role.CANDIDATE

    def follow(self, leader: int, term: int, after: float = 0.0) -> None:
        """Take a leader's first entry, committed."""
        log = self.raft.log
        entry = chain(term, after=log.last)
        last = log.last_index, log.last_term
        commit = last[0] + 1
        self.step(Append(1, leader, term, *last, commit, 0, tuple(entry)), after)


def started(from_node: int, to_node: int, term: int) -> FailoverStarted:
    return FailoverStarted(reporter=1, from_node=from_node, to_node=to_node, term=term)


def completed_of(watched: Watched) -> FailoverCompleted:
    (event,) = [e for e in watched.reported if isinstance(e, FailoverCompleted)]
    return event


def follower_of_2() -> Watched:
    watched = Watched(core(1))
    watched.follow(leader=2, term=1)
    assert watched.reported == []
    return watched


def ask_for_vote(candidate: int, term: int, *, transfer: bool = False) -> VoteRequest:
    return VoteRequest(1, candidate, term, 9, term - 1, False, transfer)


def test_the_first_leader_of_a_cluster_is_no_failover() -> None:
    elected = Watched(core(1))
    elected.wait_until_candidate()
    elected.step(VoteReply(1, 2, 1, True, False))
    acknowledge(elected.raft, 2)
    elected.turn()
    assert elected.raft.log.commit == 1
    assert elected.reported == []


def test_a_fruitless_pre_vote_is_no_failover() -> None:
    watched = follower_of_2()
    for _ in range(2 * ELECTION_TICKS):
        watched.raft.tick()
        watched.turn()
    assert watched.raft.role is Role.PRE_CANDIDATE
    watched.step(Heartbeat(1, 2, 1, 1, 0))
    assert watched.reported == []


def test_phases_are_measured_from_the_old_leaders_last_message() -> None:
    watched = follower_of_2()
    watched.step(Heartbeat(1, 2, 1, 1, 0), after=5.0)
    watched.now += 0.5
    watched.wait_until_candidate()
    assert watched.reported == [started(2, 1, 2)]
    watched.step(VoteReply(1, 3, 2, True, False), after=0.02)
    assert len(watched.reported) == 1
    watched.now += 0.003
    acknowledge(watched.raft, 3)
    watched.turn()
    event = completed_of(watched)
    assert (event.new_primary, event.term, event.is_planned) == (1, 2, False)
    assert event.detect_ms == pytest.approx(500)
    assert event.elect_ms == pytest.approx(20)
    assert event.first_commit_ms == pytest.approx(3)
    assert event.duration_ms == pytest.approx(523)


def test_a_voter_reports_the_election_of_another_once() -> None:
    watched = follower_of_2()
    for _ in range(2 * ELECTION_TICKS):
        watched.raft.tick()
    watched.step(ask_for_vote(3, 2))
    assert watched.reported == [started(2, 3, 2)]
    watched.follow(leader=3, term=2)
    watched.step(Heartbeat(1, 3, 2, 2, 0))
    assert len(watched.reported) == 2
    assert completed_of(watched).new_primary == 3


def test_a_split_vote_is_part_of_one_failover() -> None:
    watched = follower_of_2()
    watched.wait_until_candidate()
    watched.step(VoteReply(1, 3, 2, False, False))
    watched.step(VoteReply(1, 2, 2, False, False))
    watched.step(ask_for_vote(3, 3))
    watched.step(ask_for_vote(3, 4))
    watched.follow(leader=3, term=4)
    assert watched.reported == [started(2, 1, 2), completed_of(watched)]
    assert completed_of(watched).term == 4


def test_a_leader_that_goes_before_it_has_committed_ends_no_failover() -> None:
    watched = follower_of_2()
    watched.raft.disconnected(2)
    watched.step(ask_for_vote(3, 2))
    watched.step(Heartbeat(1, 3, 2, 0, 0))
    watched.raft.disconnected(3)
    watched.step(ask_for_vote(2, 3))
    watched.follow(leader=2, term=3)
    assert watched.reported == [started(2, 3, 2), completed_of(watched)]
    assert completed_of(watched).new_primary == 2


def test_a_transfer_is_planned_for_every_node_that_sees_it() -> None:
    target = follower_of_2()
    target.step(TimeoutNow(1, 2, 1))
    target.step(VoteReply(1, 3, 2, True, False))
    acknowledge(target.raft, 3)
    target.turn()
    assert target.reported == [started(2, 1, 2), completed_of(target)]
    assert completed_of(target).is_planned
    other = follower_of_2()
    other.step(ask_for_vote(3, 2, transfer=True))
    other.follow(leader=3, term=2)
    assert completed_of(other).is_planned


def test_an_election_that_follows_a_transfer_in_vain_is_not_planned() -> None:
    watched = follower_of_2()
    watched.step(ask_for_vote(3, 2, transfer=True))
    watched.step(ask_for_vote(2, 3))
    watched.follow(leader=2, term=3)
    assert not completed_of(watched).is_planned


def test_a_node_that_was_away_reports_the_change_when_it_learns_of_it() -> None:
    """A paused leader learns from a follower's reply that its term is over."""
    watched = follower_of_2()
    watched.wait_until_candidate()
    watched.step(VoteReply(1, 3, 2, True, False))
    acknowledge(watched.raft, 3)
    watched.turn()
    watched.reported.clear()
    watched.step(AppendReply(1, 2, 5, False, 0, 0, 0))
    assert watched.reported == [started(1, 0, 5)]
    watched.follow(leader=3, term=5)
    assert completed_of(watched).new_primary == 3


def test_a_node_that_starts_under_a_leader_reports_no_failover() -> None:
    restarted = Watched(core(1, 1, 1))
    restarted.follow(leader=2, term=4)
    assert restarted.reported == []
    asking = Watched(core(1, 1, 1))
    for _ in range(2 * ELECTION_TICKS):
        asking.raft.tick()
        asking.turn()
    asking.step(VoteReply(1, 2, 4, False, True))
    asking.follow(leader=2, term=4)
    assert asking.reported == []


def test_a_node_that_starts_into_an_election_names_no_former_leader() -> None:
    watched = Watched(core(1, 1, 1))
    watched.step(ask_for_vote(3, 2))
    watched.follow(leader=3, term=2)
    assert watched.reported == [started(0, 3, 2), completed_of(watched)]


def test_each_change_is_reported_again() -> None:
    watched = follower_of_2()
    for term, leader in ((2, 3), (3, 2), (4, 3)):
        watched.raft.disconnected(watched.raft.leader or 0)
        watched.step(ask_for_vote(leader, term))
        watched.follow(leader=leader, term=term)
    kinds = [type(event) for event in watched.reported]
    assert kinds == [FailoverStarted, FailoverCompleted] * 3
