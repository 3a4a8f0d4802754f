"""A node that has lost its log, and how the others treat it."""

from __future__ import annotations

import pytest

from raftha.core import (
    Append,
    AppendReply,
    Healed,
    Heartbeat,
    HeartbeatReply,
    Message,
    Raft,
    Role,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from raftha.entry import HardState
from raftha.errors import TransferFailed
from raftha.events import HaEvent, LogsDiffer, ReplicaLostLog
from tests.support.core import ELECTION_TICKS, become_leader, chain, core, only, settle, step

HEALING = 1


def healing(*terms: int) -> Raft:
    return core(3, *terms, healing_generation=HEALING)


def leader() -> Raft:
    """Node 1 of three, which leads term 1 and has committed its no-op with node 2 alone."""
    raft = core(1)
    become_leader(raft)
    step(raft, AppendReply(1, 2, 1, True, 1, 0, 0))
    assert (raft.term, raft.log.commit) == (1, 1)
    return raft


@pytest.mark.parametrize("is_pre", [True, False])
def test_a_healing_node_grants_no_vote(is_pre: bool) -> None:
    raft = healing()
    (reply,) = only(VoteReply, step(raft, VoteRequest(3, 1, 5, 9, 4, is_pre, False)))
    assert (reply.granted, reply.healing_generation) == (False, HEALING)


def test_a_healing_node_never_campaigns_even_if_asked_to() -> None:
    raft = healing()
    raft.step(Heartbeat(3, 1, 1, 0, 0))
    raft.step(TimeoutNow(3, 1, 1))
    for _ in range(10 * ELECTION_TICKS):
        raft.tick()
    assert raft.role is Role.FOLLOWER
    assert not only(VoteRequest, settle(raft))


def test_a_commit_index_for_the_log_that_was_lost_is_not_believed() -> None:
    raft = healing()
    (stale,) = chain(1)
    raft.step(Append(3, 2, 1, 0, 0, 0, 0, (stale,)))
    raft.step(Heartbeat(3, 1, 2, 1, 0))
    assert raft.log.commit == 0, "what it holds at 1 need not be what the leader has there"
    raft.step(Heartbeat(3, 1, 2, 1, 0, healing_generation=HEALING))
    assert raft.log.commit == 1


def test_healing_ends_once_durable_and_not_for_an_earlier_generation() -> None:
    raft = core(3, healing_generation=3)
    raft.step(Healed(3, 1, 1, 1))
    assert raft.ready().healed is None
    raft.step(Healed(3, 1, 1, 3))
    assert raft.ready().healed == 4
    raft.step(Healed(3, 1, 1, 3))
    assert raft.ready().healed is None, "it is being made durable"
    assert raft.is_healing
    raft.healed(4)
    assert not raft.is_healing
    raft.step(Healed(3, 1, 1, 3))
    assert raft.ready().healed is None


def test_acknowledgements_before_a_loss_and_late_replies_count_for_nothing() -> None:
    raft = leader()
    raft.step(AppendReply(1, 3, 1, True, 1, 0, 0))
    assert raft.progress[3].match == 1
    raft.step(AppendReply(1, 3, 1, False, 1, 0, 0, healing_generation=HEALING))
    assert (raft.progress[3].match, raft.progress[3].is_healing) == (0, True)
    raft.propose(b"", 1, 0)
    raft.step(AppendReply(1, 3, 1, True, raft.log.last_index, 0, 0))
    assert raft.progress[3].match == 0, "said before the loss"


def test_a_healing_node_counts_for_no_commit_no_read_and_no_quorum_check() -> None:
    raft = leader()
    raft.step(HeartbeatReply(1, 3, 1, 0, healing_generation=HEALING))
    settle(raft)
    last = raft.log.last_index
    raft.step(AppendReply(1, 3, 1, True, last, 0, 0, healing_generation=HEALING))
    assert (raft.progress[3].match, raft.log.commit) == (last, 1)
    raft.read_index(7)
    settle(raft)
    raft.step(HeartbeatReply(1, 3, 1, 1, healing_generation=HEALING))
    assert not raft.ready().read_states
    with pytest.raises(TransferFailed, match="heals"):
        raft.transfer(3)
    for _ in range(3 * ELECTION_TICKS):
        raft.step(HeartbeatReply(1, 3, 1, 0, healing_generation=HEALING))
        raft.tick()
        if not raft.is_leader:
            break
    assert not raft.is_leader, "the one that answers doesn't count"


def test_a_node_has_healed_when_it_holds_what_the_other_majority_holds() -> None:
    raft = leader()
    raft.step(HeartbeatReply(1, 3, 1, 0, healing_generation=HEALING))
    settle(raft)
    confirmed = raft.log.last_index
    assert confirmed == 2, "a no-op was appended upon the news"

    def is_told() -> bool:
        return bool(
            only(Healed, step(raft, HeartbeatReply(1, 3, 1, 0, healing_generation=HEALING)))
        )

    raft.step(AppendReply(1, 3, 1, True, confirmed, 0, 0, healing_generation=HEALING))
    assert not is_told(), "no majority without it has that entry"
    raft.step(AppendReply(1, 2, 1, True, confirmed, 0, 0))
    assert raft.log.commit == confirmed
    assert is_told()
    assert is_told(), "until it says so itself"
    raft.step(HeartbeatReply(1, 3, 1, 0, healing_generation=HEALING + 1))
    assert not raft.progress[3].is_healing
    assert raft.progress[3].match == confirmed, "what it acknowledged while it healed counts now"


# ---------------------------------------------------------------- a lost tail


def holder(generation: int = 0) -> Raft:
    """Node 3 with two entries of term 1, in term 1."""
    return core(3, 1, 1, healing_generation=generation)


def beat(commit: int, *, term: int = 1, generation: int = 0) -> Heartbeat:
    return Heartbeat(
        to=3, sender=1, term=term, commit=commit, read_round=0, healing_generation=generation
    )


def lost_after(raft: Raft, message: Message) -> int:
    raft.step(message)
    return raft.ready().lost_index


def test_a_commit_index_beyond_the_log_proves_that_its_tail_is_lost() -> None:
    raft = holder()
    assert lost_after(raft, beat(3)) == 3
    assert raft.log.commit == 0, "nothing is committed upon it"
    assert raft.ready().lost_index == 0, "it is reported once"


def test_a_lost_tail_is_noticed_even_if_the_term_was_lost_with_it() -> None:
    assert lost_after(holder(), beat(3, term=2)) == 3


def test_a_commit_index_within_the_log_proves_nothing() -> None:
    raft = holder()
    assert lost_after(raft, beat(2)) == 0
    assert raft.log.commit == 2


@pytest.mark.parametrize(("mine", "theirs"), [(1, 0), (2, 1), (2, 0), (0, 1)])
def test_a_heartbeat_of_another_generation_proves_no_loss(mine: int, theirs: int) -> None:
    """It was sent before the loss, or the end of healing, was known."""
    assert lost_after(holder(mine), beat(3, generation=theirs)) == 0


def test_a_heartbeat_of_an_earlier_term_proves_no_loss() -> None:
    """What was acknowledged to that leader may have been cut off since."""
    raft = core(3, 1, 1, hard_state=HardState(2, 0, 0))
    assert lost_after(raft, beat(3)) == 0


def test_an_append_ahead_of_the_log_proves_no_loss() -> None:
    """A new leader begins behind its own last entry, on trial."""
    assert lost_after(holder(), Append(3, 1, 1, 7, 1, 7, 0, ())) == 0


def test_a_follower_that_lost_its_tail_is_reported_and_sent_nothing_again() -> None:
    raft = leader()
    raft.propose(b"", 0, 0)
    step(raft, AppendReply(1, 2, 1, True, 2, 0, 0))
    raft.connected(2)
    settle(raft)
    sent = []
    events: list[HaEvent] = []
    for _ in range(3):
        raft.step(AppendReply(1, 2, 1, False, 2, 1, 1))
        ready = raft.ready()
        sent += only(Append, ready.messages)
        events += ready.events
    assert not sent
    (lost,) = [event for event in events if isinstance(event, ReplicaLostLog)]
    assert (lost.node_id, lost.acknowledged) == (2, 2)


def test_a_follower_that_lost_its_tail_is_sent_all_of_it_once_it_heals() -> None:
    raft = leader()
    raft.propose(b"", 0, 0)
    step(raft, AppendReply(1, 2, 1, True, 2, 0, 0))
    raft.connected(2)
    settle(raft)
    sent = step(raft, AppendReply(1, 2, 1, False, 2, 0, 0, healing_generation=HEALING))
    assert (0, 1) in [(m.prev_index, m.entries[0].index) for m in only(Append, sent) if m.entries]


# ---------------------------------------------------------------- a tail that is lost for good


def asks(raft: Raft, last_index: int, last_term: int) -> bool:
    """Whether node 3 gets this node's vote for term 9 with such a log."""
    request = VoteRequest(1, 3, 9, last_index, last_term, False, False)
    (reply,) = only(VoteReply, step(raft, request))
    return reply.granted


@pytest.mark.parametrize(("last_index", "granted"), [(3, False), (4, False), (5, True)])
def test_no_vote_for_a_log_that_lacks_what_is_known_to_be_committed(
    last_index: int, granted: bool
) -> None:
    """Entries 3 to 5 were committed with a voter that has lost them; this node still lacks them."""
    raft = core(1, 1, 1)
    step(raft, Append(1, 2, 1, 2, 1, 5, 0, ()))
    assert raft.log.commit == 2
    raft.disconnected(2)
    assert asks(raft, last_index, 1) is granted


def test_a_node_that_lacks_what_is_known_to_be_committed_does_not_campaign() -> None:
    raft = core(1, 1, 1)
    step(raft, Append(1, 2, 1, 2, 1, 3, 0, ()))
    for _ in range(10 * ELECTION_TICKS):
        raft.tick()
        assert not only(VoteRequest, settle(raft))
    step(raft, Append(1, 2, 1, 2, 1, 3, 0, tuple(chain(1, after=raft.log.last))))
    for _ in range(3 * ELECTION_TICKS):
        raft.tick()
    assert only(VoteRequest, settle(raft))


def conflicts(raft: Raft) -> list[LogsDiffer]:
    return [event for event in raft.ready().events if isinstance(event, LogsDiffer)]


def test_a_leader_without_what_is_committed_here_is_reported_and_not_acknowledged() -> None:
    """This node alone has kept entry 3, which was acknowledged; the leader has another one."""
    raft = core(1, 1, 1, 1, hard_state=HardState(1, 0, 3))
    (other,) = chain(2, after=chain(1, 1)[-1].position)
    for entries in ((other,), (other, *chain(2, after=other.position))):
        raft.step(Append(1, 2, 2, 2, 1, 0, 0, entries))
    (event,) = conflicts(raft)
    assert (event.leader, event.term) == (2, 2)
    assert "entry 3, which is committed here, is of term 1, the leader's of term 2" in event.reason
    assert event.reason in raft.mismatch
    assert not only(AppendReply, settle(raft))
    assert raft.log.last_term == 1


def test_an_append_below_commit_is_acknowledged_only_as_far_as_it_shows() -> None:
    """The leader lacks entry 3: counting this node for it would commit another one on one disk."""
    raft = core(1, 1, 1, 1, hard_state=HardState(1, 0, 3))
    raft.step(Append(1, 2, 2, 2, 1, 0, 0, ()))
    (reply,) = only(AppendReply, settle(raft))
    assert reply.ok
    assert reply.index == 2


def test_a_conflict_is_over_when_the_leaders_entries_fit() -> None:
    raft = core(1, 1, 1, 1, hard_state=HardState(1, 0, 3))
    (other,) = chain(2, after=chain(1, 1)[-1].position)
    raft.step(Append(1, 2, 2, 2, 1, 0, 0, (other,)))
    assert raft.mismatch
    raft.step(Append(1, 2, 2, 3, 1, 0, 0, tuple(chain(2, after=raft.log.last))))
    assert not raft.mismatch
