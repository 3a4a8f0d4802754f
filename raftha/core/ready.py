"""What the core asks of its caller: to write, send, apply and read. And the core's settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from raftha.core.messages import Message, SnapshotOffer
from raftha.entry import Entry, HardState
from raftha.events import HaEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreConfig:
    """Settings of the core. Time is in ticks; only the caller knows how long a tick is."""

    node_id: int
    heartbeat_ticks: int = 5
    election_ticks: int = 50
    campaigns: bool = True
    """Whether this node campaigns by itself. Without effect for a sole voter or an empty log."""
    regions: tuple[str, ...] = ()
    """All regions, in the order of preference for leadership."""
    append_bytes_max: int = 4 << 20
    """Entries in one append; a single larger entry still goes."""
    in_flight_messages_max: int = 256
    in_flight_bytes_max: int = 16 << 20
    """Appends sent to one follower and not yet acknowledged."""
    window_bytes_max: int = 32 << 20
    """Applied entries kept in memory for followers that lag a little."""
    catch_up_rounds_max: int = 10
    """Rounds for a learner to catch up; one must finish within an election timeout."""
    write_bytes_max: int = 8 << 20
    """Entries in one write."""
    lease_ms: int = 0
    """The promise asked of followers, and the longest this node gives; 0 for no leases."""
    promised_ms: int = 0
    """The longest promise this node may ever have given; at least `lease_ms`."""
    clock_drift_max: float = 0.0
    """How much faster than this node's another member's clock may run, as a fraction: a second of
    its clock takes at least `1 - clock_drift_max` seconds of this node's."""


class Write(NamedTuple):
    """Make this durable as a whole; then send the messages and call `Raft.advance`."""

    hard_state: HardState | None
    entries: tuple[Entry, ...]
    messages: tuple[Message, ...]


class ReadState(NamedTuple):
    """Once `index` is applied, this node may answer its reads `read_id`."""

    read_id: int
    index: int  # type: ignore[assignment]  # shadows tuple.index, which is never called


class LogRead(NamedTuple):
    """Follower `peer` needs entries from `index` on, which only the disk has: `Raft.log_read`.

    The leader of `term` asks, whose disk had its own log up to `persisted` then. Nothing beyond
    that may be sent: the disk may still hold entries of an earlier leader there.
    """

    peer: int
    term: int
    persisted: int
    index: int  # type: ignore[assignment]  # shadows tuple.index, which is never called


class SnapshotRequest(NamedTuple):
    """Follower `peer` needs entries that the log of the leader of `term` no longer has.

    Send it a snapshot of the state; `Raft.snapshot_sent` or `snapshot_failed` ends the request.
    """

    peer: int
    term: int


@dataclass(slots=True)
class Requests:
    """A leader's requests of this turn to its caller."""

    log_reads: list[LogRead] = field(default_factory=list)
    snapshots: list[SnapshotRequest] = field(default_factory=list)

    @property
    def all(self) -> tuple[list[LogRead], list[SnapshotRequest]]:
        """Both lists, which stay the same objects."""
        return self.log_reads, self.snapshots


@dataclass(slots=True)
class Ready:
    """One turn's work. Only the messages in `write` wait for it to be durable."""

    write: Write | None
    messages: list[Message]
    committed: tuple[Entry, ...]
    read_states: list[ReadState] = field(default_factory=list)
    log_reads: list[LogRead] = field(default_factory=list)
    snapshot_requests: list[SnapshotRequest] = field(default_factory=list)
    snapshot_offers: list[SnapshotOffer] = field(default_factory=list)
    events: list[HaEvent] = field(default_factory=list)
    healed: int | None = None
    """This node has healed: make this generation durable, then call `Raft.healed`."""
    restore: Entry | None = None
    """The RESTORE that is next to be applied, after `committed`: call `RaftLog.pass_restore`, or
    end this node and go on with the restored state."""
    lost_index: int = 0
    """This node acknowledged entries up to here, and its log is shorter: end it, and start it with
    the log set aside, as one that heals. 0 if nothing is lost."""
