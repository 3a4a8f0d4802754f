"""The leader's proposal queue: what goes into its log and when, and that no group goes in twice."""

from __future__ import annotations

import pytest

from raftha.core import Raft
from raftha.node.proposals import (
    BATCH_BYTES_MAX,
    GROUP_BYTES,
    PROPOSAL_QUEUE_BYTES_MAX,
    UNCOMMITTED_BYTES_MAX,
    ProposalQueue,
    QueuedGroup,
)
from tests.support.core import become_leader, core, settle


@pytest.fixture
def leader() -> Raft:
    raft = core()
    become_leader(raft)
    return raft


def group(size: int = 10, sender: int = 2) -> QueuedGroup:
    return QueuedGroup(sender, 1, b"x" * size)


def last_payload(raft: Raft) -> bytes:
    return bytes(raft.log.window[-1].payload)


def test_all_that_waits_goes_into_one_batch(leader: Raft) -> None:
    proposals = ProposalQueue(leader)
    for number in (1, 2, 3):
        proposals.put((5, number), QueuedGroup(2, number, b"%d" % number))
    proposals.propose(lambda last_us: 0)
    assert last_payload(leader) == b"123"
    assert leader.log.last.last_sequence == 1 + 2 + 3
    assert proposals.queued_bytes == 0


def test_an_empty_proposal_queue_proposes_nothing(leader: Raft) -> None:
    last = leader.log.last_index
    ProposalQueue(leader).propose(lambda last_us: 0)
    assert leader.log.last_index == last


def test_one_batch_a_write(leader: Raft) -> None:
    proposals = ProposalQueue(leader)
    proposals.put((5, 1), group())
    proposals.propose(lambda last_us: 0)
    write = leader.ready().write
    assert write is not None
    assert not proposals.can_propose
    leader.advance(write)
    assert proposals.can_propose


def test_a_group_sent_twice_is_in_the_log_once_until_it_is_applied(leader: Raft) -> None:
    proposals = ProposalQueue(leader)
    proposals.put((5, 1), group())
    proposals.put((5, 1), group())
    proposals.propose(lambda last_us: 0)
    last = leader.log.last_index
    proposals.put((5, 1), group())
    proposals.propose(lambda last_us: 0)
    assert leader.log.last_index == last
    proposals.on_group_applied((5, 1))
    proposals.put((5, 1), group())
    proposals.propose(lambda last_us: 0)
    assert leader.log.last_index == last + 1


def test_a_batch_is_bounded_but_takes_any_one_group(leader: Raft) -> None:
    proposals = ProposalQueue(leader)
    proposals.put((5, 1), group(BATCH_BYTES_MAX + 1))
    proposals.put((5, 2), group())
    proposals.propose(lambda last_us: 0)
    assert len(last_payload(leader)) == BATCH_BYTES_MAX + 1
    assert proposals.queued_bytes == GROUP_BYTES + 10


def test_a_full_proposal_queue_takes_nothing_more_but_copies(leader: Raft) -> None:
    proposals = ProposalQueue(leader)
    proposals.put((5, 1), group(PROPOSAL_QUEUE_BYTES_MAX))
    assert not proposals.has_room((5, 2), 1)
    assert proposals.has_room((5, 1), PROPOSAL_QUEUE_BYTES_MAX)


def test_groups_without_commands_fill_a_proposal_queue_too(leader: Raft) -> None:
    """Each takes a few records at least; a flood of session openings would fill memory."""
    proposals = ProposalQueue(leader)
    number = 0
    while proposals.has_room((0, number), 0):
        proposals.put((0, number), group(0))
        number += 1
    assert number * GROUP_BYTES <= PROPOSAL_QUEUE_BYTES_MAX


def test_unapplied_batches_of_a_leadership_do_not_hold_up_the_next(leader: Raft) -> None:
    """Its entries may be cut off, and would then never be applied."""
    proposals = ProposalQueue(leader)
    for number in range(UNCOMMITTED_BYTES_MAX // BATCH_BYTES_MAX + 1):
        proposals.put((5, number), group(BATCH_BYTES_MAX))
        proposals.propose(lambda last_us: 0)
        settle(leader)
    assert not proposals.can_propose
    proposals.clear()
    assert proposals.can_propose
    proposals.put((5, 0), group())
    proposals.propose(lambda last_us: 0)
    assert len(last_payload(leader)) == 10


def test_applying_makes_room(leader: Raft) -> None:
    proposals = ProposalQueue(leader)
    for number in range(UNCOMMITTED_BYTES_MAX // BATCH_BYTES_MAX + 1):
        proposals.put((5, number), group(BATCH_BYTES_MAX))
        proposals.propose(lambda last_us: 0)
        settle(leader)
    proposals.on_applied(leader.log.last_index)
    assert proposals.can_propose
