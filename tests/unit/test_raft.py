"""The core against its own rules, R1 to R8 of `raftha/core/raft.py`, and its elections.

Each test brings one core into a state, gives it one input, and looks at what it wants to send,
write, and apply. `Net` runs several of them over a perfect network, for what needs a conversation.
"""

from __future__ import annotations

from typing import TypeVar

import pytest

from raftha.core import (
    Append,
    AppendReply,
    CoreConfig,
    Heartbeat,
    HeartbeatReply,
    Message,
    Raft,
    RaftLog,
    ReadReply,
    ReadRequest,
    Ready,
    Role,
    TimeoutNow,
    VoteReply,
    VoteRequest,
    Write,
)
from raftha.entry import LOG_START, Entry, EntryKind, HardState, LogPosition, make_entry
from raftha.errors import NotLeader, TransferFailed
from raftha.events import LeaderLost, ReplicaBehindLog
from raftha.membership import Membership

ELECTION_TICKS = 10
M = TypeVar("M")


def chain(*terms: int, after: LogPosition = LOG_START) -> list[Entry]:
    """Entries of these terms, one after the other."""
    entries: list[Entry] = []
    for term in terms:
        entries.append(make_entry(after, term, 0, EntryKind.NOOP, b"", 0))
        after = entries[-1].position
    return entries


def core(
    node_id: int = 1,
    *terms: int,
    voters: int = 3,
    hard_state: HardState | None = None,
    window_bytes_max: int = 1 << 20,
    in_flight_messages_max: int = 256,
) -> Raft:
    """A core that has just started, with a log of entries of these terms on its disk."""
    config = CoreConfig(
        node_id=node_id,
        heartbeat_ticks=2,
        election_ticks=ELECTION_TICKS,
        window_bytes_max=window_bytes_max,
        in_flight_messages_max=in_flight_messages_max,
    )
    membership = Membership.first({i: f"127.0.0.1:{7100 + i}" for i in range(1, voters + 1)})
    log = RaftLog(1, LOG_START, chain(*terms), window_bytes_max, membership)
    last_term = terms[-1] if terms else 0
    return Raft(config, hard_state or HardState(last_term, 0, 0), log, lambda below: 0)


def peers_of(raft: Raft) -> list[int]:
    """The other voters."""
    return [voter for voter in raft.membership.voters if voter != raft.id]


def finish(raft: Raft, ready: Ready) -> list[Message]:
    """Do all that a ready asks for, disk writes at once; return what was sent."""
    sent = list(ready.messages)
    while ready.write is not None:
        sent += ready.write.messages
        raft.advance(ready.write)
        ready = raft.ready()
        sent += ready.messages
    return sent


def settle(raft: Raft) -> list[Message]:
    """Let a core do what it has to do; return what was sent."""
    return finish(raft, raft.ready())


def step(raft: Raft, message: Message) -> list[Message]:
    """Give a core a message; return what it sends upon it."""
    raft.step(message)
    return settle(raft)


def only(kind: type[M], messages: list[Message]) -> list[M]:
    """The messages of one kind."""
    return [m for m in messages if isinstance(m, kind)]


def become_candidate(raft: Raft) -> None:
    """Make it win its pre-vote; its term and vote are durable."""
    for _ in range(2 * ELECTION_TICKS):
        if raft.role is Role.FOLLOWER:
            raft.tick()
    term = raft.term + 1
    raft.step(VoteReply(raft.id, peers_of(raft)[0], term, True, True))
    raft.step(VoteReply(raft.id, peers_of(raft)[-1], term, True, True))
    settle(raft)
    assert raft.role is Role.CANDIDATE


def become_leader(raft: Raft) -> list[Message]:
    """Make it win its election; return what it sends as the leader, with its no-op durable."""
    become_candidate(raft)
    for peer in peers_of(raft)[: raft.membership.quorum - 1]:
        raft.step(VoteReply(raft.id, peer, raft.term, True, False))
    assert raft.role is Role.LEADER
    return settle(raft)


def follow(raft: Raft, leader: int = 2, term: int = 1) -> None:
    """Make it a follower of `leader`."""
    step(raft, Heartbeat(raft.id, leader, term, 0, 0))
    assert raft.leader == leader


def acknowledge(raft: Raft, peer: int, index: int | None = None) -> list[Message]:
    """A follower says that it has everything up to `index`."""
    last = raft.log.last_index if index is None else index
    return step(raft, AppendReply(raft.id, peer, raft.term, True, last, 0, 0))


class Net:
    """Cores that hear everything the others say, at once, and whose disks take no time."""

    def __init__(self, *cores: Raft) -> None:
        self.cores = {raft.id: raft for raft in cores}
        self.cut_off: set[int] = set()
        self.applied: dict[int, list[Entry]] = {raft.id: [] for raft in cores}
        self.reads: dict[int, list[tuple[int, int]]] = {raft.id: [] for raft in cores}

    def run(self) -> None:
        """Deliver until nobody has anything to say."""
        is_busy = True
        while is_busy:
            is_busy = False
            for raft in self.cores.values():
                for message in self._take(raft):
                    is_busy = True
                    if not {message.to, message.sender} & self.cut_off:
                        self.cores[message.to].step(message)

    def _take(self, raft: Raft) -> list[Message]:
        sent: list[Message] = []
        while True:
            ready = raft.ready()
            sent += ready.messages
            self.applied[raft.id] += ready.committed
            self.reads[raft.id] += ready.read_states
            if ready.write is None:
                return sent
            sent += ready.write.messages
            raft.advance(ready.write)

    def elect(self, node_id: int) -> Raft:
        """Let this one's patience end first."""
        raft = self.cores[node_id]
        for _ in range(3 * ELECTION_TICKS):
            if raft.is_leader:
                break
            raft.tick()
            self.run()
        assert raft.is_leader
        return raft


# ---------------------------------------------------------------- elections


def test_a_node_starts_as_a_follower_that_knows_no_leader() -> None:
    """Raft paper 5.2: «When servers start up, they begin as followers.»"""
    raft = core()
    assert (raft.role, raft.leader) == (Role.FOLLOWER, None)


def test_a_follower_that_hears_nothing_asks_for_pre_votes_and_keeps_its_term() -> None:
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
def test_a_message_of_a_later_term_makes_anyone_a_follower(role: Role) -> None:
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


def test_a_pre_vote_binds_nobody() -> None:
    raft = core()
    for who in (2, 3):
        (reply,) = step(raft, VoteRequest(1, who, 1, 0, 0, True, False))
        assert isinstance(reply, VoteReply)
        assert reply.granted
    assert (raft.term, raft.vote) == (0, 0)


def test_a_node_that_was_cut_off_does_not_depose_the_leader_when_it_returns() -> None:
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


def test_r2_an_acknowledgement_leaves_only_with_the_write_that_holds_the_entries() -> None:
    raft = core()
    follow(raft)
    raft.step(Append(1, 2, 1, 0, 0, 0, 0, tuple(chain(1, 1))))
    ready = raft.ready()
    assert ready.messages == []
    assert ready.write is not None
    assert [e.index for e in ready.write.entries] == [1, 2]
    assert [m.index for m in only(AppendReply, list(ready.write.messages))] == [2]


def test_r2_an_acknowledgement_waits_for_the_write_under_way_and_for_its_own() -> None:
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


def test_r2_what_is_durable_already_is_acknowledged_at_once() -> None:
    raft = core(1, 1, 1, hard_state=HardState(1, 0, 0))
    follow(raft)
    raft.step(Append(1, 2, 1, 0, 0, 0, 0, tuple(chain(1, 1))))
    assert [m.index for m in only(AppendReply, raft.ready().messages)] == [2]


def test_r2_acknowledgements_to_an_earlier_leader_are_dropped_with_its_term() -> None:
    raft = core()
    follow(raft)
    first = raft.ready().write
    raft.step(Append(1, 2, 1, 0, 0, 0, 0, tuple(chain(1))))
    raft.step(Heartbeat(1, 3, 2, 0, 0))
    assert first is None
    assert only(AppendReply, settle(raft)) == []


# ---------------------------------------------------------------- R3, R4: what is committed


def test_r3_a_leader_sends_entries_before_they_are_on_its_own_disk() -> None:
    """Thesis 10.2.1."""
    raft = core()
    become_leader(raft)
    acknowledge(raft, 2)
    raft.propose(b"", 0, 0)
    ready = raft.ready()
    assert ready.write is not None
    assert any(append.entries for append in only(Append, ready.messages))


def test_r3_a_leader_counts_itself_only_when_its_write_is_durable() -> None:
    raft = core()
    become_leader(raft)
    acknowledge(raft, 2)
    index = raft.propose(b"", 0, 0)
    assert index is not None
    write = raft.ready().write
    assert write is not None
    raft.step(AppendReply(1, 2, raft.term, True, index, 0, 0))
    assert raft.log.commit == index - 1
    raft.advance(write)
    assert raft.log.commit == index


def test_r3_two_followers_of_three_commit_without_the_leaders_disk() -> None:
    raft = core()
    become_leader(raft)
    index = raft.propose(b"", 0, 0)
    assert index is not None
    ready = raft.ready()
    assert ready.write is not None
    for peer in (2, 3):
        raft.step(AppendReply(1, peer, raft.term, True, index, 0, 0))
    assert raft.log.commit == index
    assert [e.index for e in raft.ready().committed] == [1], "its own disk has no more yet (R5)"


def test_r4_an_entry_of_an_older_term_is_not_committed_by_counting() -> None:
    """Raft paper 5.4.2 and figure 8."""
    raft = core(1, 1, 2)
    become_leader(raft)
    acknowledge(raft, 2, index=2)
    acknowledge(raft, 3, index=2)
    assert raft.log.commit == 0
    acknowledge(raft, 2, index=3)
    assert raft.log.commit == 3


def test_a_minority_commits_nothing() -> None:
    raft = core(1, voters=5)
    become_leader(raft)
    acknowledge(raft, 2)
    assert raft.log.commit == 0
    acknowledge(raft, 3)
    assert raft.log.commit == 1


def test_a_follower_commits_only_what_the_append_showed_to_agree() -> None:
    """Raft paper, figure 2: «min(leaderCommit, index of last new entry)»."""
    raft = core(1, 1, 1, 1)
    step(raft, Append(1, 2, 2, 1, 1, 3, 0, ()))
    assert raft.log.commit == 1


def test_a_heartbeat_commits_no_more_than_the_follower_has_acknowledged() -> None:
    raft = core(1, 1, 1)
    become_leader(raft)
    acknowledge(raft, 2)
    acknowledge(raft, 3, index=1)
    raft.tick()
    raft.tick()
    beats = {m.to: m.commit for m in only(Heartbeat, settle(raft))}
    assert beats == {2: 3, 3: 1}


def test_a_waiting_member_is_told_at_once_that_its_write_is_committed() -> None:
    raft = core()
    become_leader(raft)
    acknowledge(raft, 2)
    acknowledge(raft, 3)
    index = raft.propose(b"", 0, 0)
    assert index is not None
    raft.notify_commit(3, index)
    settle(raft)
    news = only(Append, acknowledge(raft, 2, index))
    assert [(m.to, m.commit) for m in news if not m.entries] == [(3, index)]


# ---------------------------------------------------------------- R5, R6: applying and cutting off


def test_r5_nothing_is_applied_before_it_is_on_this_disk() -> None:
    raft = core()
    follow(raft)
    raft.step(Append(1, 2, 1, 0, 0, 2, 0, tuple(chain(1, 1))))
    ready = raft.ready()
    assert raft.log.commit == 2
    assert ready.committed == ()
    assert ready.write is not None
    raft.advance(ready.write)
    assert [e.index for e in raft.ready().committed] == [1, 2]


def test_r5_what_the_disk_knows_to_be_committed_is_applied_after_a_restart() -> None:
    raft = core(1, 1, 1, 1, hard_state=HardState(1, 0, 2))
    assert [e.index for e in raft.ready().committed] == [1, 2]


def test_r6_an_append_that_was_overtaken_drops_nothing() -> None:
    raft = core(1, 1, 1, 1)
    (reply,) = step(raft, Append(1, 2, 1, 0, 0, 0, 0, tuple(chain(1))))
    assert isinstance(reply, AppendReply)
    assert (reply.ok, reply.index) == (True, 1)
    assert raft.log.last_index == 3


def test_r6_a_conflicting_tail_is_replaced() -> None:
    """Raft paper 5.3."""
    raft = core(1, 1, 1, 1)
    leader = chain(1, 2)
    write: Write | None
    raft.step(Append(1, 2, 2, 1, 1, 0, 0, (leader[1],)))
    write = raft.ready().write
    assert write is not None
    assert [(e.index, e.term) for e in write.entries] == [(2, 2)]
    assert raft.log.last_index == 2


def test_entries_that_break_the_chain_of_hashes_are_not_answered() -> None:
    raft = core(1, 1)
    other = chain(2, after=chain(1, 1)[-1].position._replace(index=1, hash=b"x" * 16))
    assert step(raft, Append(1, 2, 2, 1, 1, 0, 0, tuple(other))) == []
    assert raft.log.last_index == 1


# ---------------------------------------------------------------- R7: check-quorum and lease


def test_r7_a_leader_that_hears_from_no_quorum_steps_down() -> None:
    raft = core()
    become_leader(raft)
    for _ in range(3 * ELECTION_TICKS):
        raft.tick()
    assert not raft.is_leader


def test_r7_a_leader_that_hears_from_a_quorum_stays() -> None:
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


def test_r7_the_lease_ends_after_an_election_timeout_without_a_word() -> None:
    raft = core()
    follow(raft)
    for _ in range(ELECTION_TICKS):
        raft.tick()
    settle(raft)
    assert only(VoteReply, step(raft, VoteRequest(1, 3, 2, 9, 1, True, False)))[0].granted


# ---------------------------------------------------------------- R8: reads


def test_r8_a_read_waits_for_a_round_of_replies_begun_after_it() -> None:
    """Thesis 6.4."""
    raft = core()
    become_leader(raft)
    acknowledge(raft, 2)
    assert raft.read_index(7)
    ready = raft.ready()
    (beat, _) = only(Heartbeat, ready.messages)
    raft.step(HeartbeatReply(1, 2, raft.term, beat.read_round - 1))
    assert raft.ready().read_states == []
    raft.step(HeartbeatReply(1, 2, raft.term, beat.read_round))
    assert raft.ready().read_states == [(7, raft.log.commit)]


def test_r8_a_new_leader_answers_no_read_before_it_has_committed_in_its_term() -> None:
    raft = core(1, 1, hard_state=HardState(1, 0, 1))
    become_leader(raft)
    raft.read_index(7)
    assert only(Heartbeat, raft.ready().messages) == []
    sent = acknowledge(raft, 2)
    assert len(only(Heartbeat, sent)) == 2


def test_r8_reads_that_come_during_a_round_share_the_next_one() -> None:
    raft = core()
    become_leader(raft)
    acknowledge(raft, 2)
    raft.read_index(1)
    first = only(Heartbeat, settle(raft))[0].read_round
    for read_id in (2, 3):
        raft.read_index(read_id)
    assert settle(raft) == []
    raft.step(HeartbeatReply(1, 2, raft.term, first))
    ready = raft.ready()
    assert [state.read_id for state in ready.read_states] == [1]
    second = only(Heartbeat, finish(raft, ready))[0].read_round
    raft.step(HeartbeatReply(1, 2, raft.term, second))
    assert [state.read_id for state in raft.ready().read_states] == [2, 3]


def test_r8_a_followers_read_is_answered_by_the_leader() -> None:
    net = Net(core(1), core(2), core(3))
    leader = net.elect(1)
    assert net.cores[3].read_index(9)
    net.run()
    assert net.reads[3] == [(9, leader.log.commit)]


def test_r8_reads_of_an_earlier_leadership_are_forgotten() -> None:
    raft = core()
    become_leader(raft)
    acknowledge(raft, 2)
    raft.read_index(7)
    settle(raft)
    step(raft, Heartbeat(1, 2, raft.term + 1, 0, 0))
    ready = raft.ready()
    assert ready.read_states == []


def test_a_read_without_a_leader_is_not_taken() -> None:
    assert not core().read_index(1)


def test_a_single_voter_reads_at_once() -> None:
    raft = core(1, voters=1)
    for _ in range(3):
        raft.tick()
        settle(raft)
    raft.read_index(5)
    assert raft.ready().read_states == [(5, 1)]


def test_a_read_request_to_a_node_that_does_not_lead_is_dropped() -> None:
    raft = core()
    follow(raft)
    assert only(ReadReply, step(raft, ReadRequest(1, 3, 1, 4))) == []


# ---------------------------------------------------------------- replication


def test_a_follower_that_lacks_entries_says_where_its_log_could_match() -> None:
    raft = core(1, 1, 1, 3, 3)
    follow(raft, term=4)
    (reply,) = step(raft, Append(1, 2, 4, 4, 2, 0, 0, ()))
    assert isinstance(reply, AppendReply)
    assert (reply.ok, reply.index, reply.hint_index, reply.hint_term) == (False, 4, 2, 1)


@pytest.mark.parametrize("committed", [0, 40])
def test_logs_that_differ_meet_in_a_round_per_term_not_per_entry(committed: int) -> None:
    follower = core(2, 1, *[2] * 30)
    leader = core(1, 1, *[3] * 39, hard_state=HardState(3, 0, committed))
    appends = [m for m in only(Append, become_leader(leader)) if m.to == 2]
    rounds = 0
    while follower.log.last_term != leader.term:
        rounds += 1
        assert rounds < 6
        replies = [r for append in appends for r in step(follower, append)]
        appends = [m for r in replies for m in only(Append, step(leader, r)) if m.to == 2]
    assert follower.log.last == leader.log.last


def test_lost_appends_are_found_by_the_next_heartbeat() -> None:
    net = Net(core(1), core(2), core(3))
    leader = net.elect(1)
    net.cut_off = {3}
    leader.propose(b"", 0, 0)
    net.run()
    net.cut_off = set()
    assert net.cores[3].log.last_index < leader.log.last_index
    for _ in range(4):
        leader.tick()
        net.run()
    assert net.cores[3].log.last == leader.log.last


def test_lost_appends_that_are_out_of_memory_are_found_too() -> None:
    raft = core(1, window_bytes_max=1, in_flight_messages_max=1)
    become_leader(raft)
    for peer in (2, 3):
        acknowledge(raft, peer)
    for _ in range(3):
        raft.propose(b"", 0, 0)
        settle(raft)
        acknowledge(raft, 2)
        settle(raft)
    raft.step(HeartbeatReply(1, 3, raft.term, 0))
    (request,) = raft.ready().log_reads
    assert (request.peer, request.index) == (3, 2)


def test_a_reconnected_follower_gets_what_was_in_flight_again() -> None:
    raft = core()
    become_leader(raft)
    acknowledge(raft, 2)
    raft.propose(b"", 0, 0)
    settle(raft)
    raft.disconnected(2)
    raft.connected(2)
    (again,) = only(Append, settle(raft))
    assert (again.to, again.prev_index, len(again.entries)) == (2, 1, 1)


def test_a_follower_never_heard_of_is_not_asked_for_entry_1_when_it_reconnects() -> None:
    raft = core(1, 1, 1, 1)
    raft.log.first_index = 3
    become_leader(raft)
    raft.connected(2)
    ready = raft.ready()
    assert not [event for event in ready.events if isinstance(event, ReplicaBehindLog)]
    assert [m.prev_index for m in only(Append, ready.messages)] == [3]


def lagging(raft: Raft) -> None:
    """Make node 3 need entries that only the disk has."""
    become_leader(raft)
    for _ in range(3):
        raft.propose(b"", 0, 0)
        settle(raft)
        acknowledge(raft, 2)
        settle(raft)
    raft.step(AppendReply(1, 3, raft.term, False, 2, 1, 1))


def test_entries_that_left_the_memory_are_read_from_the_disk_and_sent() -> None:
    raft = core(1, 1, 1, window_bytes_max=1)
    lagging(raft)
    (request,) = raft.ready().log_reads
    assert (request.peer, request.index) == (3, 2)
    first, second = chain(1, 1)
    raft.log_read(request, first.position, [second])
    (append,) = [m for m in only(Append, settle(raft)) if m.to == 3]
    assert (append.prev_index, append.entries) == (1, (second,))


def test_an_answer_from_the_disk_to_an_earlier_leadership_is_not_sent() -> None:
    """The log may have been replaced in between: node 3 would get entries that nobody has."""
    raft = core(1, 1, 1, window_bytes_max=1)
    lagging(raft)
    (request,) = raft.ready().log_reads
    step(raft, Heartbeat(1, 2, raft.term + 1, 0, 0))
    raft.disconnected(2)
    become_leader(raft)
    raft.step(AppendReply(1, 3, raft.term, False, raft.progress[3].next - 1, 1, 1))
    settle(raft)
    first, second = chain(1, 1)
    raft.log_read(request, first.position, [second])
    assert only(Append, settle(raft)) == []


def test_a_follower_whose_entries_are_compacted_is_reported_once() -> None:
    raft = core(1, 1, 1, window_bytes_max=1)
    lagging(raft)
    (request,) = raft.ready().log_reads
    raft.log_read_failed(request, 4)
    (event,) = raft.ready().events
    assert isinstance(event, ReplicaBehindLog)
    assert (event.peer, event.needs_index, event.first_index) == (3, 2, 4)
    raft.log_read_failed(request, 4)
    assert raft.ready().events == []


def test_the_log_may_be_cut_where_every_member_has_it() -> None:
    raft = core(1, 1, 1)
    become_leader(raft)
    acknowledge(raft, 2)
    assert raft.log.compact_index == 0
    acknowledge(raft, 3, index=2)
    assert raft.log.compact_index == 2


# ---------------------------------------------------------------- handing over


def test_a_transfer_makes_the_target_campaign_at_once_when_it_has_the_whole_log() -> None:
    """Thesis 3.10."""
    net = Net(core(1), core(2), core(3))
    leader = net.elect(1)
    leader.transfer(2)
    net.run()
    assert net.cores[2].is_leader
    assert leader.leader == 2


def test_a_transfer_waits_for_the_targets_log() -> None:
    raft = core()
    become_leader(raft)
    raft.transfer(2)
    assert only(TimeoutNow, settle(raft)) == []
    assert [m.to for m in only(TimeoutNow, acknowledge(raft, 2))] == [2]


def test_no_proposals_are_taken_during_a_transfer() -> None:
    raft = core()
    become_leader(raft)
    raft.transfer(2)
    assert raft.propose(b"", 0, 0) is None
    assert not raft.can_propose


def test_a_transfer_that_does_not_happen_is_given_up() -> None:
    raft = core()
    become_leader(raft)
    raft.transfer(2)
    for _ in range(ELECTION_TICKS):
        raft.tick()
        for peer in peers_of(raft):
            step(raft, HeartbeatReply(1, peer, raft.term, 0))
    assert raft.is_leader
    assert raft.can_propose


def test_only_the_leader_transfers_and_only_to_a_member() -> None:
    with pytest.raises(NotLeader):
        core().transfer(2)
    raft = core()
    become_leader(raft)
    with pytest.raises(TransferFailed, match="not a member"):
        raft.transfer(9)


def test_timeout_now_from_anyone_but_the_leader_is_ignored() -> None:
    raft = core()
    follow(raft)
    step(raft, TimeoutNow(1, 3, 1))
    assert raft.role is Role.FOLLOWER


def test_a_vote_is_given_to_who_may_be_a_member_by_a_later_membership() -> None:
    """Thesis 4.1: a server also answers those that aren't in its own latest configuration."""
    raft = core()
    (reply,) = step(raft, VoteRequest(1, 9, 5, 9, 9, False, False))
    assert reply == VoteReply(9, 1, 5, True, False)


def test_the_votes_of_strangers_do_not_count() -> None:
    raft = core(1, voters=5)
    become_candidate(raft)
    for stranger in (7, 8, 9):
        raft.step(VoteReply(1, stranger, raft.term, True, False))
    assert raft.role is Role.CANDIDATE


def test_a_leader_that_learns_of_its_removal_leads_no_more() -> None:
    """It may be of an earlier life of the cluster, which others took for lost for good."""
    raft = core()
    become_leader(raft)
    raft.removed()
    assert raft.role is Role.FOLLOWER
    assert raft.leader is None
    for _ in range(5 * ELECTION_TICKS):
        raft.tick()
    assert raft.role is Role.FOLLOWER


def test_a_candidate_does_not_go_on_to_the_next_term_before_its_vote_is_durable() -> None:
    """On a slow disk it would raise the term for ever, and never count a vote."""
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


def test_each_term_without_a_leader_makes_a_candidate_more_patient() -> None:
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
    """Let time pass; whether the node has lost patience with its leader."""
    for _ in range(ticks):
        raft.tick()
    return raft.role is not Role.FOLLOWER


def test_what_no_correct_node_sends_ends_nothing() -> None:
    raft = core()
    become_leader(raft)
    term = raft.term
    assert step(raft, AppendReply(1, 2, term, True, 10**9, 0, 0)) == []
    assert step(raft, Heartbeat(1, 3, term, 0, 0)) == []
    assert step(raft, ReadReply(1, 3, term, 1, 1 << 60)) == []
    assert raft.is_leader
    assert raft.log.commit == 0
