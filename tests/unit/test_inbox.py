"""The leader's inbox: what goes into its log, when, and what doesn't go in twice."""

from __future__ import annotations

import pytest

from raftha.core import Raft
from raftha.node.proposals import (
    BATCH_BYTES_MAX,
    GROUP_BYTES,
    INBOX_BYTES_MAX,
    UNCOMMITTED_BYTES_MAX,
    Inbox,
    Waiting,
)
from tests.support.core import become_leader, core, settle


@pytest.fixture
def leader() -> Raft:
    raft = core()
    become_leader(raft)
    return raft


def waiting(size: int = 10, sender: int = 2) -> Waiting:
    return Waiting(sender, 1, b"x" * size)


def last_payload(raft: Raft) -> bytes:
    return bytes(raft.log.window[-1].payload)


def test_all_that_waits_goes_into_one_batch(leader: Raft) -> None:
    inbox = Inbox(leader)
    for number in (1, 2, 3):
        inbox.put((5, number), Waiting(2, number, b"%d" % number))
    inbox.propose(0)
    assert last_payload(leader) == b"123"
    assert leader.log.last.last_sequence == 1 + 2 + 3
    assert inbox.waiting_bytes == 0


def test_an_empty_inbox_proposes_nothing(leader: Raft) -> None:
    last = leader.log.last_index
    Inbox(leader).propose(0)
    assert leader.log.last_index == last


def test_one_batch_a_write(leader: Raft) -> None:
    inbox = Inbox(leader)
    inbox.put((5, 1), waiting())
    inbox.propose(0)
    write = leader.ready().write
    assert write is not None
    assert not inbox.can_propose
    leader.advance(write)
    assert inbox.can_propose


def test_a_group_sent_twice_is_in_the_log_once_until_it_is_applied(leader: Raft) -> None:
    inbox = Inbox(leader)
    inbox.put((5, 1), waiting())
    inbox.put((5, 1), waiting())
    inbox.propose(0)
    last = leader.log.last_index
    inbox.put((5, 1), waiting())
    inbox.propose(0)
    assert leader.log.last_index == last
    inbox.on_group_applied((5, 1))
    inbox.put((5, 1), waiting())
    inbox.propose(0)
    assert leader.log.last_index == last + 1


def test_a_batch_is_bounded_but_takes_any_one_group(leader: Raft) -> None:
    inbox = Inbox(leader)
    inbox.put((5, 1), waiting(BATCH_BYTES_MAX + 1))
    inbox.put((5, 2), waiting())
    inbox.propose(0)
    assert len(last_payload(leader)) == BATCH_BYTES_MAX + 1
    assert inbox.waiting_bytes == GROUP_BYTES + 10


def test_a_full_inbox_takes_nothing_more_but_copies(leader: Raft) -> None:
    inbox = Inbox(leader)
    inbox.put((5, 1), waiting(INBOX_BYTES_MAX))
    assert not inbox.has_room((5, 2), 1)
    assert inbox.has_room((5, 1), INBOX_BYTES_MAX)


def test_groups_without_commands_fill_an_inbox_too(leader: Raft) -> None:
    """Each is a few records at least; a flood of openings of sessions is one of memory."""
    inbox = Inbox(leader)
    number = 0
    while inbox.has_room((0, number), 0):
        inbox.put((0, number), waiting(0))
        number += 1
    assert number * GROUP_BYTES <= INBOX_BYTES_MAX


def test_what_one_leadership_left_unapplied_does_not_hold_up_the_next(leader: Raft) -> None:
    """Its entries may be gone, and would then never be applied."""
    inbox = Inbox(leader)
    for number in range(UNCOMMITTED_BYTES_MAX // BATCH_BYTES_MAX + 1):
        inbox.put((5, number), waiting(BATCH_BYTES_MAX))
        inbox.propose(0)
        settle(leader)
    assert not inbox.can_propose
    inbox.clear()
    assert inbox.can_propose
    inbox.put((5, 0), waiting())
    inbox.propose(0)
    assert len(last_payload(leader)) == 10


def test_applying_makes_room(leader: Raft) -> None:
    inbox = Inbox(leader)
    for number in range(UNCOMMITTED_BYTES_MAX // BATCH_BYTES_MAX + 1):
        inbox.put((5, number), waiting(BATCH_BYTES_MAX))
        inbox.propose(0)
        settle(leader)
    inbox.on_applied(leader.log.last_index)
    assert inbox.can_propose
