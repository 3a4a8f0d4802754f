"""Replication, reads, transfers: rules R3 to R6 and R8 of `raftha.core.raft`."""

from __future__ import annotations

import pytest

from raftha.core import (
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    Raft,
    ReadReply,
    ReadRequest,
    Role,
    SnapshotOffer,
    TimeoutNow,
    VoteReply,
    VoteRequest,
    Write,
)
from raftha.entry import HardState
from raftha.errors import NotLeader, TransferFailed
from raftha.events import ReplicaBehindLog
from tests.support.core import (
    ELECTION_TICKS,
    Net,
    acknowledge,
    become_candidate,
    become_leader,
    chain,
    core,
    finish,
    follow,
    only,
    peers_of,
    settle,
    step,
)

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


def test_there_is_no_work_after_a_follower_has_replied() -> None:
    raft = core(1)
    follow(raft)
    entries = tuple(chain(1))
    raft.step(Append(1, 2, 1, 0, 0, 0, 0, entries))
    assert raft.has_ready
    write = raft.ready().write
    assert write is not None
    assert not raft.has_ready, "its reply waits for the disk"
    raft.advance(write)
    assert not raft.has_ready, "nothing is committed"


def test_there_is_no_work_for_a_leader_in_a_reply_that_commits_nothing() -> None:
    raft = core()
    become_leader(raft)
    raft.step(AppendReply(1, 2, raft.term, True, raft.log.last_index, 0, 0))
    assert raft.has_ready, "the no-op is committed"
    settle(raft)
    raft.step(AppendReply(1, 3, raft.term, True, raft.log.last_index, 0, 0))
    assert not raft.has_ready


def test_a_follower_writes_before_it_applies() -> None:
    """The leader waits for its reply. It applies in the turn after that, and at the latest then."""
    raft = core(1)
    follow(raft)
    first, second, third = chain(1, 1, 1)
    step(raft, Append(1, 2, 1, 0, 0, 0, 0, (first,)))
    raft.step(Append(1, 2, 1, 1, 1, 1, 0, (second,)))
    ready = raft.ready()
    assert ready.write is not None
    assert ready.write.entries == (second,)
    assert ready.committed == ()
    assert raft.has_ready
    raft.step(Append(1, 2, 1, 2, 1, 1, 0, (third,)))
    raft.advance(ready.write)
    ready = raft.ready()
    assert ready.write is not None
    assert ready.committed == (first,), "put off once, not again"


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


def test_r5_entries_committed_on_disk_are_applied_after_a_restart() -> None:
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


def test_r8_a_new_leader_answers_no_read_before_a_commit_in_its_term() -> None:
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


def test_an_unknown_follower_that_reconnects_is_not_asked_for_entry_1() -> None:
    raft = core(1, 1, 1, 1)
    raft.log.first_index = 3
    become_leader(raft)
    raft.connected(2)
    ready = raft.ready()
    assert not [event for event in ready.events if isinstance(event, ReplicaBehindLog)]
    assert [m.prev_index for m in only(Append, ready.messages)] == [3]


def test_entries_that_wait_for_an_answer_are_not_sent_with_every_heartbeat() -> None:
    """They may be large, and the network or the follower's disk slower than a heartbeat."""
    raft = core(1, 1, 1)
    become_leader(raft)
    for _ in range(3):
        (again,) = only(Append, step(raft, HeartbeatReply(1, 3, raft.term, 0)))
        assert (again.prev_index, again.prev_term, again.entries) == (2, 1, ())
    (lost,) = only(Append, acknowledge(raft, 3, index=2))
    assert [entry.index for entry in lost.entries] == [3]


def test_a_probe_from_the_disk_is_repeated_without_the_disk() -> None:
    raft = core(1, 1, 1, window_bytes_max=1)
    lagging(raft)
    (request,) = raft.ready().log_reads
    first, second = chain(1, 1)
    raft.log_read(request, first.position, [second])
    settle(raft)
    raft.step(HeartbeatReply(1, 3, raft.term, 0))
    ready = raft.ready()
    assert ready.log_reads == []
    (again,) = only(Append, ready.messages)
    assert (again.prev_index, again.prev_term, again.entries) == (1, 1, ())


def test_an_append_from_the_disk_is_no_larger_than_others() -> None:
    raft = core(1, 1, 1, 1, window_bytes_max=1, append_bytes_max=1)
    lagging(raft)
    raft.step(AppendReply(1, 3, raft.term, False, raft.progress[3].next - 1, 1, 1))
    (request,) = raft.ready().log_reads
    first, *others = chain(1, 1, 1)
    raft.log_read(request, first.position, others)
    (append,) = [m for m in only(Append, settle(raft)) if m.to == 3]
    assert [entry.index for entry in append.entries] == [2]


def test_late_answers_do_not_make_what_is_in_flight_go_out_again() -> None:
    """An append was overtaken and rejected. The replies to earlier ones have no news."""
    raft = core()
    become_leader(raft)
    acknowledge(raft, 3)
    for _ in range(4):
        raft.propose(b"", 0, 0)
        settle(raft)
    acknowledge(raft, 3, index=3)
    (again,) = step(raft, AppendReply(1, 3, raft.term, False, 4, 3, raft.term))
    assert isinstance(again, Append)
    assert (again.prev_index, len(again.entries)) == (3, 2)
    for index in (1, 2, 3):
        assert acknowledge(raft, 3, index) == []


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
    """The log may have been replaced in between: node 3 would get entries that no log has."""
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
    assert (event.node_id, event.needs_index, event.first_index) == (3, 2, 4)
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


def test_a_transfer_makes_a_target_with_the_whole_log_campaign_at_once() -> None:
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


def test_a_transfer_that_fails_is_given_up() -> None:
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


def test_timeout_now_from_any_other_node_than_the_leader_is_ignored() -> None:
    raft = core()
    follow(raft)
    step(raft, TimeoutNow(1, 3, 1))
    assert raft.role is Role.FOLLOWER


def test_a_candidate_of_a_later_membership_may_get_a_vote() -> None:
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
    """It may belong to an earlier life of the cluster, which was considered lost for good."""
    raft = core()
    become_leader(raft)
    raft.removed()
    assert raft.role is Role.FOLLOWER
    assert raft.leader is None
    for _ in range(5 * ELECTION_TICKS):
        raft.tick()
    assert raft.role is Role.FOLLOWER


def test_messages_that_no_correct_node_sends_do_no_harm() -> None:
    raft = core()
    become_leader(raft)
    term = raft.term
    assert step(raft, AppendReply(1, 2, term, True, 10**9, 0, 0)) == []
    assert step(raft, Heartbeat(1, 3, term, 0, 0)) == []
    assert step(raft, SnapshotOffer(1, 3, term, 7, 9, term, 10, bytes(32))) == []
    assert step(raft, ReadReply(1, 3, term, 1, 1 << 60)) == []
    assert raft.is_leader
    assert raft.log.commit == 0
