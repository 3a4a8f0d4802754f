"""Elections, leases, and what must be durable first: rules R1, R2 and R7 of `raftha.core.raft`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from raftha.core import (
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    Raft,
    Role,
    VoteReply,
    VoteRequest,
)
from raftha.entry import EntryKind, HardState
from raftha.events import LeaderElected, LeaderLost
from tests.support.core import (
    ELECTION_TICKS,
    Net,
    become_candidate,
    become_leader,
    chain,
    core,
    follow,
    only,
    settle,
    step,
)

# ---------------------------------------------------------------- elections


def test_a_node_starts_as_a_follower_that_knows_no_leader() -> None:
    """Raft paper 5.2: «When servers start up, they begin as followers.»"""
    raft = core()
    assert (raft.role, raft.leader) == (Role.FOLLOWER, None)


def test_a_follower_without_messages_asks_for_pre_votes_in_its_term() -> None:
    """Thesis 9.6."""
    raft = core()
    for _ in range(2 * ELECTION_TICKS):
        raft.tick()
    asked = only(VoteRequest, settle(raft))
    assert raft.term == 0
    assert {(m.to, m.term, m.pre) for m in asked} >= {(2, 1, True), (3, 1, True)}


def test_heartbeats_keep_a_follower_from_campaigning() -> None:
    """Raft paper 5.2: «A server remains in follower state as long as it receives valid RPCs.»"""
    raft = core()
    follow(raft)
    for _ in range(10 * ELECTION_TICKS):
        raft.tick()
        step(raft, Heartbeat(1, 2, 1, 0, 0))
    assert raft.role is Role.FOLLOWER


def test_a_majority_of_pre_votes_starts_the_real_election_in_the_next_term() -> None:
    raft = core(1, voters=5)
    for _ in range(ELECTION_TICKS):
        raft.tick()
    raft.step(VoteReply(1, 2, 1, True, True))
    assert raft.role is Role.PRE_CANDIDATE
    raft.step(VoteReply(1, 3, 1, True, True))
    assert (raft.role, raft.term, raft.vote) == (Role.CANDIDATE, 1, 1)


def test_a_majority_of_refusals_ends_the_campaign() -> None:
    raft = core()
    become_candidate(raft)
    raft.step(VoteReply(1, 2, raft.term, False, False))
    raft.step(VoteReply(1, 3, raft.term, False, False))
    assert raft.role is Role.FOLLOWER


def test_one_voter_counts_once() -> None:
    raft = core(1, voters=5)
    become_candidate(raft)
    for _ in range(3):
        raft.step(VoteReply(1, 2, raft.term, True, False))
    assert raft.role is Role.CANDIDATE


def test_a_single_voter_elects_itself() -> None:
    raft = core(1, voters=1)
    for _ in range(3):
        raft.tick()
        settle(raft)
    assert raft.is_leader
    assert raft.log.commit == 1


def test_votes_of_another_round_do_not_count() -> None:
    raft = core()
    become_candidate(raft)
    raft.step(VoteReply(1, 2, raft.term - 1, True, False))
    raft.step(VoteReply(1, 3, raft.term, True, True))
    assert raft.role is Role.CANDIDATE


def test_a_candidate_steps_down_on_an_append_from_the_same_term() -> None:
    """Raft paper 5.2: «If the leader's term is at least as large ..., the candidate recognizes»."""
    raft = core()
    become_candidate(raft)
    step(raft, Append(1, 2, raft.term, 0, 0, 0, 0, ()))
    assert (raft.role, raft.leader) == (Role.FOLLOWER, 2)


@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.CANDIDATE, Role.LEADER])
def test_a_message_of_a_later_term_makes_every_role_a_follower(role: Role) -> None:
    """Raft paper 5.1."""
    raft = core()
    if role is Role.CANDIDATE:
        become_candidate(raft)
    elif role is Role.LEADER:
        become_leader(raft)
    step(raft, Heartbeat(1, 3, raft.term + 4, 0, 0))
    assert (raft.role, raft.leader) == (Role.FOLLOWER, 3)


def test_a_message_of_an_earlier_term_is_answered_with_the_current_one() -> None:
    """Raft paper 5.1: «If a server receives a request with a stale term number, it rejects.»"""
    raft = core(1, hard_state=HardState(5, 0, 0))
    (reply,) = step(raft, Append(1, 2, 4, 0, 0, 0, 0, ()))
    assert isinstance(reply, AppendReply)
    assert (reply.ok, reply.term) == (False, 5)
    (answer,) = step(raft, VoteRequest(1, 3, 3, 9, 3, False, False))
    assert isinstance(answer, VoteReply)
    assert (answer.granted, answer.term) == (False, 5)


@pytest.mark.parametrize(
    ("last_index", "last_term", "granted"),
    [(3, 2, True), (4, 2, True), (2, 3, True), (2, 2, False), (9, 1, False)],
)
def test_a_vote_goes_only_to_a_log_that_has_all_of_the_voters(
    last_index: int, last_term: int, granted: bool
) -> None:
    """Raft paper 5.4.1."""
    raft = core(1, 1, 2, 2)
    (reply,) = step(raft, VoteRequest(1, 2, 5, last_index, last_term, False, False))
    assert isinstance(reply, VoteReply)
    assert reply.granted is granted


def test_a_voter_votes_once_a_term_and_says_so_again_when_asked_again() -> None:
    """Raft paper 5.2: «Each server will vote for at most one candidate in a given term.»"""
    raft = core()
    replies = [
        only(VoteReply, step(raft, VoteRequest(1, who, 5, 0, 0, False, False)))[0].granted
        for who in (2, 3, 2)
    ]
    assert replies == [True, False, True]


def test_a_restarted_voter_remembers_its_vote() -> None:
    raft = core(1, hard_state=HardState(5, 2, 0))
    assert not only(VoteReply, step(raft, VoteRequest(1, 3, 5, 9, 5, False, False)))[0].granted
    assert only(VoteReply, step(raft, VoteRequest(1, 2, 5, 9, 5, False, False)))[0].granted


def test_a_pre_vote_binds_no_voter() -> None:
    raft = core()
    for who in (2, 3):
        (reply,) = step(raft, VoteRequest(1, who, 1, 0, 0, True, False))
        assert isinstance(reply, VoteReply)
        assert reply.granted
    assert (raft.term, raft.vote) == (0, 0)


def test_a_node_that_was_cut_off_deposes_no_leader_when_it_returns() -> None:
    """Thesis 9.6."""
    net = Net(core(1), core(2), core(3))
    leader = net.elect(1)
    net.cut_off = {3}
    for _ in range(10 * ELECTION_TICKS):
        net.cores[3].tick()
        net.run()
    net.cut_off = set()
    leader._elapsed_ticks = 0
    for _ in range(2 * ELECTION_TICKS):
        for raft in net.cores.values():
            raft.tick()
        net.run()
    assert leader.is_leader
    assert net.cores[3].leader == 1


def test_the_first_entry_of_a_leader_is_a_no_op() -> None:
    """Raft paper 8."""
    raft = core(1, 1, 1)
    appends = only(Append, become_leader(raft))
    assert raft.log.window[-1].kind == EntryKind.NOOP
    assert raft.log.last_term == raft.term
    assert {append.to for append in appends} == {2, 3}


def test_a_follower_whose_connection_to_the_leader_breaks_campaigns_soon() -> None:
    raft = core()
    follow(raft)
    raft.disconnected(2)
    ready = raft.ready()
    assert [event.reason for event in ready.events if isinstance(event, LeaderLost)] == [
        "disconnected"
    ]
    for _ in range(ELECTION_TICKS // 2):
        raft.tick()
    assert raft.role is Role.PRE_CANDIDATE


def test_other_connections_that_break_are_no_reason_to_campaign() -> None:
    raft = core()
    follow(raft)
    raft.disconnected(3)
    for _ in range(ELECTION_TICKS // 2):
        raft.tick()
    assert raft.role is Role.FOLLOWER


# ---------------------------------------------------------------- R1: term and vote first


def test_r1_a_vote_leaves_only_with_the_write_that_makes_it_durable() -> None:
    raft = core()
    raft.step(VoteRequest(1, 2, 5, 0, 0, False, False))
    ready = raft.ready()
    assert ready.messages == []
    assert ready.write is not None
    assert ready.write.hard_state == HardState(5, 2, 0)
    assert only(VoteReply, list(ready.write.messages))[0].granted


def test_r1_a_candidate_does_not_count_its_own_vote_before_it_is_durable() -> None:
    raft = core()
    for _ in range(ELECTION_TICKS):
        raft.tick()
    raft.step(VoteReply(1, 2, 1, True, True))
    write = raft.ready().write
    assert write is not None
    raft.step(VoteReply(1, 2, 1, True, False))
    raft.step(VoteReply(1, 3, 1, True, False))
    assert raft.role is Role.CANDIDATE
    raft.advance(write)
    assert raft.is_leader


def test_r1_a_vote_given_while_a_write_is_under_way_waits_for_the_next_one() -> None:
    raft = core()
    raft.step(Append(1, 2, 1, 0, 0, 0, 0, tuple(chain(1))))
    first = raft.ready().write
    assert first is not None
    raft.step(VoteRequest(1, 3, 2, 9, 1, False, True))
    assert raft.ready().write is None
    assert not only(VoteReply, list(first.messages))
    raft.advance(first)
    second = raft.ready().write
    assert second is not None
    assert second.hard_state == HardState(2, 3, 0)
    assert only(VoteReply, list(second.messages))[0].granted


# ---------------------------------------------------------------- R2: acknowledge what is durable


def test_r2_an_acknowledgement_leaves_with_the_write_that_holds_entries() -> None:
    raft = core()
    follow(raft)
    raft.step(Append(1, 2, 1, 0, 0, 0, 0, tuple(chain(1, 1))))
    ready = raft.ready()
    assert ready.messages == []
    assert ready.write is not None
    assert [e.index for e in ready.write.entries] == [1, 2]
    assert [m.index for m in only(AppendReply, list(ready.write.messages))] == [2]


def test_r2_an_acknowledgement_waits_for_the_current_write_and_its_own() -> None:
    raft = core()
    follow(raft)
    entries = chain(1, 1)
    raft.step(Append(1, 2, 1, 0, 0, 0, 0, (entries[0],)))
    first = raft.ready().write
    assert first is not None
    raft.step(Append(1, 2, 1, 1, 1, 0, 0, (entries[1],)))
    assert only(AppendReply, raft.ready().messages) == []
    raft.advance(first)
    second = raft.ready().write
    assert second is not None
    assert [m.index for m in only(AppendReply, list(second.messages))] == [2]


def test_r2_an_append_that_is_durable_already_is_acknowledged_at_once() -> None:
    raft = core(1, 1, 1, hard_state=HardState(1, 0, 0))
    follow(raft)
    raft.step(Append(1, 2, 1, 0, 0, 0, 0, tuple(chain(1, 1))))
    assert [m.index for m in only(AppendReply, raft.ready().messages)] == [2]


def test_r2_acknowledgements_to_an_earlier_leader_go_with_its_term() -> None:
    raft = core()
    follow(raft)
    first = raft.ready().write
    raft.step(Append(1, 2, 1, 0, 0, 0, 0, tuple(chain(1))))
    raft.step(Heartbeat(1, 3, 2, 0, 0))
    assert first is None
    assert only(AppendReply, settle(raft)) == []


# ---------------------------------------------------------------- R7: check-quorum and lease


def test_r7_a_leader_without_replies_from_a_quorum_steps_down() -> None:
    raft = core()
    become_leader(raft)
    for _ in range(3 * ELECTION_TICKS):
        raft.tick()
    assert not raft.is_leader


def test_r7_a_leader_with_replies_from_a_quorum_stays() -> None:
    raft = core(1, voters=5)
    become_leader(raft)
    for _ in range(5 * ELECTION_TICKS):
        raft.tick()
        for peer in (2, 3):
            step(raft, HeartbeatReply(1, peer, raft.term, 0))
    assert raft.is_leader


@pytest.mark.parametrize("is_pre", [True, False])
def test_r7_a_follower_that_hears_its_leader_ignores_other_candidates(is_pre: bool) -> None:
    """Thesis 4.2.3."""
    raft = core()
    follow(raft)
    assert step(raft, VoteRequest(1, 3, 9, 9, 9, is_pre, False)) == []
    assert (raft.term, raft.leader) == (1, 2)


def test_r7_the_lease_gives_way_to_a_candidate_that_the_leader_chose() -> None:
    """Thesis 4.2.3, 3.10."""
    raft = core()
    follow(raft)
    (reply,) = step(raft, VoteRequest(1, 3, 2, 9, 1, False, True))
    assert isinstance(reply, VoteReply)
    assert reply.granted


def test_a_removed_node_grants_no_votes() -> None:
    """Only nodes that lost their disks would need its vote. They could outvote their successors."""
    raft = core()
    raft.removed()
    assert not only(VoteReply, step(raft, VoteRequest(1, 3, 1, 0, 0, True, False)))[0].granted
    assert not only(VoteReply, step(raft, VoteRequest(1, 3, 1, 0, 0, False, False)))[0].granted
    assert raft.vote == 0


def test_r7_the_lease_ends_after_an_election_timeout_of_silence() -> None:
    raft = core()
    follow(raft)
    for _ in range(ELECTION_TICKS):
        raft.tick()
    settle(raft)
    assert only(VoteReply, step(raft, VoteRequest(1, 3, 2, 9, 1, True, False)))[0].granted


def test_a_candidate_keeps_its_term_until_its_vote_is_durable() -> None:
    """On a slow disk it would raise the term again and again, and never count a vote."""
    raft = core(1, voters=1)
    while raft.role is not Role.CANDIDATE:
        raft.tick()
    (write,) = [raft.ready().write]
    for _ in range(100 * ELECTION_TICKS):
        raft.tick()
    assert raft.term == 1
    assert write is not None
    raft.advance(write)
    assert raft.is_leader


def test_each_term_without_a_leader_lengthens_the_timeout() -> None:
    raft = core(1)
    ticks = []
    for _ in range(6):
        become_candidate(raft)
        count = 0
        while raft.role is Role.CANDIDATE:
            raft.tick()
            count += 1
        ticks.append(count)
    assert ticks == sorted(ticks)
    assert ticks[-1] >= 4 * ELECTION_TICKS
    follow(raft, term=raft.term)
    assert not silent_for(raft, ELECTION_TICKS - 1)
    assert silent_for(raft, ELECTION_TICKS + 1)


def silent_for(raft: Raft, ticks: int) -> bool:
    """Let time pass; return True if the node's election timeout has passed."""
    for _ in range(ticks):
        raft.tick()
    return raft.role is not Role.FOLLOWER


def test_a_leader_that_resigns_lets_the_others_campaign_first() -> None:
    net = Net(core(1), core(2), core(3))
    leader = net.elect(1)
    leader.resign()
    assert leader.role is Role.FOLLOWER
    assert leader.leader is None
    term = leader.term
    for _ in range(4 * ELECTION_TICKS):
        for raft in net.cores.values():
            raft.tick()
            net.run()
    assert leader.leader in (2, 3)
    assert leader.term > term


# ---------------------------------------------------------------- silent leaders


def without_a_vote() -> Raft:
    """Node 4, which the log doesn't name: a learner that has no entry yet."""
    return core(4)


def healing_voter() -> Raft:
    return core(1, healing_generation=1)


def removed_voter() -> Raft:
    raft = core()
    raft.removed()
    return raft


CANNOT_CAMPAIGN = pytest.mark.parametrize("make", [without_a_vote, healing_voter, removed_voter])


@CANNOT_CAMPAIGN
def test_a_node_that_cannot_campaign_loses_a_silent_leader(make: Callable[[], Raft]) -> None:
    raft = make()
    follow(raft)
    raft.ready()
    for _ in range(2 * ELECTION_TICKS):
        raft.tick()
    assert (raft.role, raft.leader) == (Role.FOLLOWER, None)
    (lost,) = [event for event in raft.ready().events if isinstance(event, LeaderLost)]
    assert (lost.leader, lost.reason) == (2, "timeout")


@CANNOT_CAMPAIGN
def test_a_node_that_cannot_campaign_keeps_a_live_leader(make: Callable[[], Raft]) -> None:
    raft = make()
    follow(raft)
    for _ in range(10 * ELECTION_TICKS):
        raft.tick()
        step(raft, Heartbeat(raft.id, 2, 1, 0, 0))
    assert raft.leader == 2


def test_reads_are_not_sent_to_a_leader_that_is_silent() -> None:
    raft = without_a_vote()
    follow(raft)
    assert raft.read_index(1)
    for _ in range(2 * ELECTION_TICKS):
        raft.tick()
    assert not raft.read_index(2)


def test_a_node_without_a_vote_follows_its_leader_again_when_that_returns() -> None:
    raft = without_a_vote()
    follow(raft)
    for _ in range(2 * ELECTION_TICKS):
        raft.tick()
    raft.ready()
    raft.step(Heartbeat(raft.id, 2, 1, 0, 0))
    assert [event.leader for event in raft.ready().events if isinstance(event, LeaderElected)] == [
        2
    ]


def test_a_voter_whose_vote_is_not_durable_yet_loses_a_silent_leader() -> None:
    """It can't ask for votes until its last one is durable; its status is true all the same."""
    raft = core()
    follow(raft)
    raft.step(Heartbeat(1, 3, 2, 0, 0))
    raft.ready()
    for _ in range(2 * ELECTION_TICKS):
        raft.tick()
    assert (raft.role, raft.leader) == (Role.FOLLOWER, None)
