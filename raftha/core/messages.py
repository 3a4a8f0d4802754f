"""The messages of the protocol, as records.

Every message names its receiver, its sender and the sender's term. Without the term, a reply to an
earlier leader would look current, and counting it would commit without a quorum.

A follower's replies also carry its healing generation (`healing_generation.py`): 0 if it has never
lost its log, odd while it heals from a loss, even once it has healed.
"""

from __future__ import annotations

from typing import NamedTuple

from raftha.entry import Entry


class VoteRequest(NamedTuple):
    """Asks for a vote in `term`; with `pre`, only if the receiver would grant one (thesis 9.6).

    `transfer`: the leader itself asked for this election, so its lease doesn't prevent it.
    """

    to: int
    sender: int
    term: int
    last_index: int
    last_term: int
    pre: bool
    transfer: bool


class VoteReply(NamedTuple):
    """`term` is the requested term if granted, the voter's own if not.

    `time_us`: the voter's wall clock (`clocks.py`).
    """

    to: int
    sender: int
    term: int
    granted: bool
    pre: bool
    healing_generation: int = 0
    time_us: int = 0


class Append(NamedTuple):
    """Entries that follow (`prev_index`, `prev_term`). Without entries: a probe, or a new `commit`.

    `compact_index`: every member has everything up to there on disk. `behind`: how far each
    member's disk is behind `commit` (`durable_indexes.py`).
    """

    to: int
    sender: int
    term: int
    prev_index: int
    prev_term: int
    commit: int
    compact_index: int
    entries: tuple[Entry, ...]
    behind: tuple[int, ...] = ()


class AppendReply(NamedTuple):
    """`ok`: everything up to `index` is on the sender's disk and equals the leader's log.

    Otherwise the entry at `index` didn't match, and (`hint_index`, `hint_term`) is the last entry
    of the sender's log that still could: its term is not above the leader's at `index`.

    `applied`, `applied_sequence`: the last entry and the last command that the sender has applied.
    """

    to: int
    sender: int
    term: int
    ok: bool
    index: int  # type: ignore[assignment]  # shadows tuple.index, which is never called
    hint_index: int
    hint_term: int
    applied: int = 0
    applied_sequence: int = 0
    healing_generation: int = 0


class Heartbeat(NamedTuple):
    """The leader is alive; `commit` is never beyond what the receiver is known to have.

    `read_round` numbers the rounds in which the leader confirms its leadership for reads. `behind`
    is that of `Append`, as of `commit`. `healing_generation`: the receiver's generation in which it
    acknowledged that much. `lease_ms`: the promise that the receiver is asked for (`lease.py`), 0
    for none; `sent_ns`: when this was sent, by the leader's clock that runs on in suspend.
    """

    to: int
    sender: int
    term: int
    commit: int
    read_round: int
    behind: tuple[int, ...] = ()
    healing_generation: int = 0
    sent_ns: int = 0
    lease_ms: int = 0


class HeartbeatReply(NamedTuple):
    """The sender accepts the receiver as leader of `term`, as of `read_round`.

    `applied`, `applied_sequence`: as in `AppendReply`. `sent_ns`: that of the heartbeat.
    `promised_ms`: what the sender promised when it handled that heartbeat. `time_us`: the sender's
    wall clock (`clocks.py`).
    """

    to: int
    sender: int
    term: int
    read_round: int
    applied: int = 0
    applied_sequence: int = 0
    healing_generation: int = 0
    sent_ns: int = 0
    promised_ms: int = 0
    time_us: int = 0


class Healed(NamedTuple):
    """The receiver, which heals in this generation, holds all it may have acknowledged."""

    to: int
    sender: int
    term: int
    healing_generation: int


class ReadRequest(NamedTuple):
    """A follower asks for a read index for the reads that it numbers `read_id`."""

    to: int
    sender: int
    term: int
    read_id: int


class ReadReply(NamedTuple):
    """Any state that has applied `index` may answer the reads `read_id`."""

    to: int
    sender: int
    term: int
    read_id: int
    index: int  # type: ignore[assignment]  # shadows tuple.index, which is never called


class DurableIndexesRequest(NamedTuple):
    """Asks for a reply whenever another disk has entry `index`, until all voters' have it."""

    to: int
    sender: int
    term: int
    index: int  # type: ignore[assignment]  # shadows tuple.index, which is never called


class DurableIndexesReply(NamedTuple):
    """How far each member's disk is behind `commit`, as in `Append`."""

    to: int
    sender: int
    term: int
    commit: int
    behind: tuple[int, ...]


class TimeoutNow(NamedTuple):
    """The leader hands over: campaign at once (thesis 3.10)."""

    to: int
    sender: int
    term: int


class SnapshotOffer(NamedTuple):
    """The leader offers a snapshot of the state, as of a committed entry, in place of old entries.

    `snapshot_id` names the snapshot, `size` is its length in bytes. The core only learns from this
    that the leader is alive, and checks if the snapshot is needed; others transfer it.
    """

    to: int
    sender: int
    term: int
    snapshot_id: int
    index: int  # type: ignore[assignment]  # shadows tuple.index, which is never called
    index_term: int
    size: int
    sha256: bytes


Message = (
    VoteRequest
    | VoteReply
    | Append
    | AppendReply
    | Heartbeat
    | HeartbeatReply
    | ReadRequest
    | ReadReply
    | DurableIndexesRequest
    | DurableIndexesReply
    | TimeoutNow
    | SnapshotOffer
    | Healed
)
