"""Messages that no correct node sends: they are dropped or reported, and do no harm."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from raftha.core import (
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    Message,
    Raft,
    SnapshotOffer,
)
from raftha.core.log import LogMismatch
from raftha.core.progress import Mode
from raftha.entry import ENTRY_BYTES_MAX, Entry, EntryKind, LogPosition, make_entry
from raftha.events import HaEvent, LogsDiffer, SecondLeader
from raftha.membership import Membership
from tests.support.core import acknowledge, become_leader, chain, core, follow, only, settle, step

# ---------------------------------------------------------------- a second leader


def events_of(raft: Raft, kind: type[HaEvent]) -> list[HaEvent]:
    return [event for event in raft.ready().events if isinstance(event, kind)]


@pytest.mark.parametrize(
    "message",
    [
        Heartbeat(1, 3, 1, 0, 0),
        Append(1, 3, 1, 0, 0, 0, 0, tuple(chain(1))),
        SnapshotOffer(1, 3, 1, 7, 9, 1, 10, bytes(32)),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_second_leader_of_a_term_is_not_followed_and_reported_once(message: Message) -> None:
    raft = core()
    follow(raft, leader=2, term=1)
    raft.ready()
    raft.step(message)
    raft.step(message)
    ready = raft.ready()
    assert ready.events == [SecondLeader(reporter=1, term=1, leader=2, other=3)]
    assert (ready.messages, ready.snapshot_offers) == ([], [])
    assert (raft.leader, raft.log.last_index) == (2, 0)


def test_a_leader_reports_a_second_one_in_its_term_and_goes_on() -> None:
    raft = core()
    become_leader(raft)
    raft.step(Heartbeat(1, 3, raft.term, 0, 0))
    assert events_of(raft, SecondLeader) == [SecondLeader(reporter=1, term=1, leader=1, other=3)]
    assert raft.is_leader


def test_a_leader_of_a_later_term_is_not_a_second_leader() -> None:
    raft = core()
    follow(raft, leader=2, term=1)
    raft.disconnected(2)
    follow(raft, leader=2, term=1)
    follow(raft, leader=3, term=2)
    assert events_of(raft, SecondLeader) == []


# ---------------------------------------------------------------- entries that can't follow


def following(previous: LogPosition, term: int = 2, count: int = 0) -> Entry:
    return make_entry(previous._replace(term=0), term, 0, EntryKind.NOOP, b"", count)


def large(previous: LogPosition) -> Entry:
    payload = bytes(ENTRY_BYTES_MAX)
    return make_entry(previous, 2, 0, EntryKind.BATCH, payload, 0)


def empty_membership(previous: LogPosition) -> Entry:
    payload = Membership({}).encode()
    return make_entry(previous, 2, 0, EntryKind.MEMBERSHIP, payload, 0)


WRONG: dict[str, Callable[[LogPosition], Entry]] = {
    "of an earlier term": lambda last: following(last, term=1),
    "of a later term than its leader's": lambda last: following(last, term=4),
    "older": lambda last: following(last._replace(time_us=1)),
    "with fewer commands before it": lambda last: following(last._replace(last_sequence=1)),
    "with commands that it can't have": lambda last: following(last, count=1),
    "not the next": lambda last: following(last._replace(index=7)),
    "larger than any": large,
    "a membership without voters": empty_membership,
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_an_entry_that_cannot_follow_the_log_is_not_taken(
    wrong: Callable[[LogPosition], Entry],
) -> None:
    raft = core()
    first = make_entry(raft.log.last, 2, 9, EntryKind.BATCH, b"", 5)
    step(raft, Append(1, 2, 3, 0, 0, 0, 0, (first,)))
    last = first.position
    assert raft.log.last == last
    with pytest.raises(LogMismatch):
        raft.log.merge(Append(1, 2, 3, 1, 2, 0, 0, (wrong(last),)))
    assert step(raft, Append(1, 2, 3, 1, 2, 0, 0, (wrong(last),))) == []
    assert raft.log.last == last


def test_another_history_of_the_leader_is_reported_once_and_until_entries_are_taken() -> None:
    raft = core()
    first = make_entry(raft.log.last, 2, 9, EntryKind.BATCH, b"", 5)
    other = make_entry(raft.log.last, 2, 9, EntryKind.BATCH, b"other", 5)
    step(raft, Append(1, 2, 3, 0, 0, 0, 0, (first,)))
    assert raft.mismatch == ""
    follower_of_other = make_entry(other.position, 2, 9, EntryKind.NOOP, b"", 0)
    for _ in range(3):
        raft.step(Append(1, 2, 3, 1, 2, 0, 0, (follower_of_other,)))
    (event,) = events_of(raft, LogsDiffer)
    assert isinstance(event, LogsDiffer)
    assert (event.leader, event.term, event.index) == (2, 3, 2)
    assert "node 2 sends entries" in raft.mismatch
    step(raft, Append(1, 2, 3, 1, 2, 0, 0, ()))
    assert raft.mismatch, "an append without entries proves nothing"
    step(
        raft,
        Append(1, 2, 3, 1, 2, 0, 0, (make_entry(first.position, 2, 9, EntryKind.NOOP, b"", 0),)),
    )
    assert raft.mismatch == ""


# ---------------------------------------------------------------- what followers say


def test_a_follower_that_claims_more_than_the_log_has_is_probed_again() -> None:
    raft = core(1, 1, 1, 1, window_bytes_max=1)
    become_leader(raft)
    acknowledge(raft, 2)
    raft.log.first_index = 4
    raft.step(AppendReply(1, 3, raft.term, False, 3, 0, 0))
    (request,) = raft.ready().snapshot_requests
    raft.snapshot_sent(request, 100)
    assert not raft.ready().log_reads, "there is nothing to read for it"
    step(raft, HeartbeatReply(1, 3, raft.term, 0))
    assert raft.progress[3].mode is Mode.SNAPSHOT, "it needs a snapshot as before"


def test_a_promise_for_a_heartbeat_not_yet_sent_makes_no_lease() -> None:
    now = [0]
    raft = core(lease_ms=100, clock_ns=lambda: now[0])
    now[0] = 10**9
    become_leader(raft)
    acknowledge(raft, 2)
    own = 1, 2, raft.term, 0, 0, 0, 0
    step(raft, HeartbeatReply(*own, 10**12, 100))
    assert not raft.leases.holds()
    step(raft, HeartbeatReply(*own, now[0], 100))
    assert raft.leases.holds()


# ---------------------------------------------------------------- rare, and right


def test_a_new_leader_may_cut_off_acknowledged_entries_in_the_same_turn() -> None:
    raft = core(1, 1, 1)
    follow(raft, leader=2, term=1)
    raft.step(Append(1, 2, 1, 2, 1, 0, 0, ()))
    raft.step(Append(1, 3, 2, 1, 1, 0, 0, (following(chain(1)[0].position),)))
    replies = only(AppendReply, settle(raft))
    assert [(reply.term, reply.index) for reply in replies] == [(1, 2), (2, 2)]


def test_an_entry_replaced_and_restored_during_its_write_is_durable() -> None:
    raft = core()
    follow(raft, leader=2, term=1)
    first, second = chain(1, 1)
    raft.step(Append(1, 2, 1, 0, 0, 0, 0, (first, second)))
    write = raft.ready().write
    assert write is not None
    raft.step(Append(1, 3, 2, 1, 1, 0, 0, (following(first.position),)))
    raft.step(Append(1, 2, 3, 1, 1, 0, 0, (second,)))
    raft.advance(write)
    ready = raft.ready()
    assert (raft.log.persisted, raft.log.written) == (2, 2)
    assert ready.write is not None
    assert ready.write.entries == (), "it isn't written twice"
