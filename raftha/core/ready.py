"""What the core asks of the outside: to write, send, apply, read; and the settings it is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from raftha.core.messages import Message, SnapshotOffer
from raftha.entry import Entry, HardState
from raftha.events import HaEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreConfig:
    """Settings of the core. Time is in ticks, whose length only the outside knows."""

    node_id: int
    heartbeat_ticks: int = 5
    election_ticks: int = 50
    campaigns: bool = True
    """Whether this node campaigns by itself. The first leader of a new cluster comes so anyway."""
    regions: tuple[str, ...] = ()
    """The regions there are, those first that leadership is to be in."""
    append_bytes_max: int = 4 << 20
    """Entries in one append; a single larger entry still goes."""
    in_flight_messages_max: int = 256
    in_flight_bytes_max: int = 16 << 20
    """Appends sent to one follower and not yet acknowledged."""
    window_bytes_max: int = 32 << 20
    """Applied entries kept in memory for followers that lag a little."""
    catch_up_rounds_max: int = 10
    """Rounds that a learner is given to catch up in one of at most an election timeout."""
    write_bytes_max: int = 8 << 20
    """Entries in one write."""
    lease_ms: int = 0
    """What followers are asked to promise, and the most that this node does; 0 for no leases."""
    promised_ms: int = 0
    """The most that this node may have promised in its life; no less than `lease_ms`."""
    clock_drift_max: float = 0.0
    """By which part another member's clock may be ahead of this one's for every second: a second
    of its own is at least `1 - clock_drift_max` of this node's."""


class Write(NamedTuple):
    """To be made durable as a whole; then the messages may be sent, and `Raft.advance` is due."""

    hard_state: HardState | None
    entries: tuple[Entry, ...]
    messages: tuple[Message, ...]


class ReadState(NamedTuple):
    """Once `index` is applied, the reads that this node asked for as `read_id` may be answered."""

    read_id: int
    index: int  # type: ignore[assignment]  # shadows tuple.index, which nobody calls


class LogRead(NamedTuple):
    """Follower `peer` needs entries from `index` on, which only the disk has: `Raft.log_read`.

    Asked by the leader of `term`, whose disk had its own log up to `persisted` then. Nothing else
    of what the disk holds may be sent: what an earlier leader's log had there may be read as well.
    """

    peer: int
    term: int
    persisted: int
    index: int  # type: ignore[assignment]  # shadows tuple.index, which nobody calls


class SnapshotRequest(NamedTuple):
    """Follower `peer` needs entries that the log of the leader of `term` no longer has.

    It is to be sent a snapshot of the state: `Raft.snapshot_sent` or `snapshot_failed` ends it.
    """

    peer: int
    term: int


@dataclass(slots=True)
class Requests:
    """What a leader asks of the outside, as it comes up in a turn."""

    log_reads: list[LogRead] = field(default_factory=list)
    snapshots: list[SnapshotRequest] = field(default_factory=list)


@dataclass(slots=True)
class Ready:
    """One turn's work. Nothing waits for `write` but the messages that are part of it."""

    write: Write | None
    messages: list[Message]
    committed: tuple[Entry, ...]
    read_states: list[ReadState]
    log_reads: list[LogRead]
    snapshot_requests: list[SnapshotRequest]
    snapshot_offers: list[SnapshotOffer]
    events: list[HaEvent]
    healed: int | None = None
    """This node has healed: make this generation durable, then call `Raft.healed`."""
