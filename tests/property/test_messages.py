"""No message of a peer trips an assert: asserts are about a node's own state.

A faulty or hostile peer speaks the protocol: its messages pass the decoder, and its entries
continue the receiver's chain of hashes. Everything else in them is arbitrary. The core, and the log
on disk that takes its writes, must go on.

The contents of a leader's batch are the exception: nothing checks them before they are applied.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftha.core import (
    Append,
    AppendReply,
    DurableIndexesReply,
    DurableIndexesRequest,
    Healed,
    Heartbeat,
    HeartbeatReply,
    Message,
    Raft,
    ReadReply,
    ReadRequest,
    SnapshotOffer,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from raftha.entry import Entry, EntryKind, LogPosition, make_entry
from raftha.errors import Compacted, WireError
from raftha.membership import Membership
from raftha.net.wire import INT_MAX, decode, encode
from raftha.storage.directory.replay import read_from
from raftha.storage.log.wal import Wal
from tests.sim.disk import SimulatedDisk
from tests.support.core import ELECTION_TICKS, become_candidate, become_leader, core, follow
from tests.support.wal import opener

pytestmark = pytest.mark.slow

OWN, PEERS, TERMS = 1, (2, 3, 4), (1, 1, 2)
NUMBERS = st.integers(0, 8) | st.sampled_from([100, INT_MAX - 1])
SENDERS = st.sampled_from(PEERS)
KINDS: tuple[type[Any], ...] = (
    VoteRequest, VoteReply, AppendReply, Heartbeat, HeartbeatReply, ReadRequest, ReadReply,
    DurableIndexesRequest, DurableIndexesReply, SnapshotOffer, TimeoutNow, Healed,
)  # fmt: skip
BOOLEANS = frozenset({"granted", "pre", "transfer", "ok"})


class Node:
    """A core, and the log on disk that takes its writes."""

    def __init__(self, make: Callable[[], Raft]) -> None:
        self.raft = make()
        self.wal: Wal = opener(SimulatedDisk(Random(1)))()
        self.wal.append(None, self.raft.log.window[: self.raft.log.persisted])
        self.run()

    def step(self, message: Message) -> None:
        """Deliver a message, as the transport would."""
        try:
            arrived = decode(encode(message)[4:])
        except WireError:
            return
        self.raft.step(arrived)  # type: ignore[arg-type]  # It is what was encoded.

    def run(self) -> None:
        """Do everything that the core asks for."""
        ready = self.raft.ready()
        while True:
            for request in ready.log_reads:
                try:
                    self.raft.log_read(request, *read_from(self.wal, request.index))
                except Compacted as compacted:
                    self.raft.log_read_failed(request, compacted.first_index)
            for wanted in ready.snapshot_requests:
                self.raft.snapshot_failed(wanted)
            if ready.healed is not None:
                self.raft.healed(ready.healed)
            if ready.write is None:
                break
            self.wal.append(ready.write.hard_state, ready.write.entries)
            self.raft.advance(ready.write)
            ready = self.raft.ready()


def follower() -> Raft:
    raft = core(OWN, *TERMS)
    follow(raft, 2, 3)
    return raft


def candidate() -> Raft:
    raft = core(OWN, *TERMS)
    become_candidate(raft)
    return raft


def leader(**options: Any) -> Raft:
    raft = core(OWN, *TERMS, **options)
    become_leader(raft)
    raft.step(AppendReply(OWN, 2, raft.term, True, raft.log.last_index, 0, 0))
    return raft


def leader_with_a_lease() -> Raft:
    """A leader whose clock advances by half a second at each reading."""
    return leader(lease_ms=1000, clock_ns=count(0, 500_000_000).__next__)


def leader_with_little_memory() -> Raft:
    return leader(window_bytes_max=1, append_bytes_max=1, in_flight_messages_max=1)


def healing() -> Raft:
    return core(OWN, *TERMS, healing_generation=1)


ROLES = (follower, candidate, leader, leader_with_a_lease, leader_with_little_memory, healing)


@st.composite
def chained(draw: st.DrawFn, raft: Raft) -> tuple[int, int, tuple[Entry, ...]]:
    """Entries that follow one of this log by their hashes; all else in them is arbitrary."""
    log = raft.log
    held: list[Entry | LogPosition] = [log.anchor, *log.window]
    before = draw(st.sampled_from(held))
    digest, index, entries = before.hash, before.index, []
    for _ in range(draw(st.integers(0, 3))):
        time_us, sequence = draw(NUMBERS), draw(st.integers(0, 8))
        previous = LogPosition(index, 0, time_us, sequence, digest)
        kind = draw(st.sampled_from([EntryKind.NOOP, EntryKind.BATCH, EntryKind.MEMBERSHIP]))
        payload = draw(st.binary(max_size=5))
        if kind is EntryKind.MEMBERSHIP and draw(st.booleans()):
            members = draw(st.sets(st.integers(1, 5), min_size=1))
            payload = Membership.first({i: f"127.0.0.1:{7100 + i}" for i in members}).encode()
        term = draw(st.sampled_from([0, 1, 2, raft.term, raft.term + 1, INT_MAX - 1]))
        entries.append(make_entry(previous, term, 0, kind, payload, draw(st.integers(0, 2))))
        digest, index = entries[-1].hash, entries[-1].index
    return before.index, before.term, tuple(entries)


@st.composite
def messages(draw: st.DrawFn, raft: Raft) -> Message:
    """Any message that a peer might send to this core."""
    terms = st.sampled_from([raft.term, raft.term, raft.term, raft.term + 1, 0, INT_MAX - 1])
    head = OWN, draw(SENDERS), draw(terms)
    behind = tuple(draw(st.lists(st.tuples(SENDERS, NUMBERS), max_size=3).map(_flat)))
    kind: Any = draw(st.sampled_from([Append, Append, *KINDS]))
    if kind is Append:
        prev_index, prev_term, entries = draw(chained(raft))
        return Append(*head, prev_index, prev_term, draw(NUMBERS), draw(NUMBERS), entries, behind)
    fields: list[Any] = []
    for name in kind._fields[3:]:
        if name == "behind":
            fields.append(behind)
        elif name == "sha256":
            fields.append(b"")
        else:
            fields.append(draw(st.booleans() if name in BOOLEANS else NUMBERS))
    message: Message = kind(*head, *fields)
    return message


def _flat(pairs: list[tuple[int, int]]) -> list[int]:
    return [number for pair in pairs for number in pair]


@pytest.mark.parametrize("make", ROLES, ids=lambda make: make.__name__)
@given(data=st.data())
def test_no_message_breaks_an_assert(make: Callable[[], Raft], data: st.DataObject) -> None:
    node = Node(make)
    for _ in range(data.draw(st.integers(1, 8))):
        for _ in range(data.draw(st.integers(1, 3))):
            node.step(data.draw(messages(node.raft)))
        if data.draw(st.booleans()):
            for _ in range(data.draw(st.integers(1, 2 * ELECTION_TICKS))):
                node.raft.tick()
        node.raft.propose(b"", 0, 0)
        node.raft.read_index(1)
        node.run()


@pytest.mark.parametrize("index", [0, 3, 100, INT_MAX - 1])
def test_no_answer_to_an_offer_breaks_an_assert(index: int) -> None:
    """The index in a follower's reply goes to the core unchecked."""
    node = Node(leader_with_little_memory)
    raft = node.raft
    raft.log.first_index = 3
    raft.step(AppendReply(OWN, 3, raft.term, False, raft.log.last_index - 1, 0, 0))
    (request,) = raft.ready().snapshot_requests
    raft.snapshot_sent(request, index)
    node.run()


def test_a_transfer_to_a_peer_that_lies_breaks_no_assert() -> None:
    node = Node(leader_with_a_lease)
    raft = node.raft
    raft.transfer(2)
    node.step(AppendReply(OWN, 2, raft.term, True, INT_MAX - 1, 0, 0))
    node.step(HeartbeatReply(OWN, 2, raft.term, 0, 0, 0, 0, INT_MAX - 1, 100))
    node.run()
    assert not raft.leases.holds()
