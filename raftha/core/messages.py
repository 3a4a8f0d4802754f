"""The messages of the protocol, as records.

Every message names its receiver, its sender and the sender's term: a message without a term can't
be told from one of an earlier leader's time, and counting such a reply commits without a quorum.

A follower's replies also carry its healing generation: 0 if it has never lost its log, odd while it
heals from the loss of one, even once it has healed (`raft.py`).
"""

from __future__ import annotations

from typing import NamedTuple

from raftha.entry import Entry


class VoteRequest(NamedTuple):
    """Asks for a vote in `term`; with `pre`, only whether one would be given (thesis 9.6).

    `transfer`: the leader itself asked for this election, so its lease doesn't stand in the way.
    """

    to: int
    sender: int
    term: int
    last_index: int
    last_term: int
    pre: bool
    transfer: bool


class VoteReply(NamedTuple):
    """`term` is the requested one if granted, the voter's own if not."""

    to: int
    sender: int
    term: int
    granted: bool
    pre: bool
    healing_generation: int = 0


class Append(NamedTuple):
    """Entries that follow (`prev_index`, `prev_term`); none of them: a probe, or news of `commit`.

    `compact_index`: every member has everything up to there on disk. `behind`: by how much each
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
    of the sender's log that still could (its term is not above the leader's at `index`).

    `applied`, `applied_sequence`: the last entry, and command, that the sender has applied.
    """

    to: int
    sender: int
    term: int
    ok: bool
    index: int  # type: ignore[assignment]  # shadows tuple.index, which nobody calls
    hint_index: int
    hint_term: int
    applied: int = 0
    applied_sequence: int = 0
    healing_generation: int = 0


class Heartbeat(NamedTuple):
    """The leader is there; `commit` is never beyond what the receiver is known to have.

    `read_round` numbers the leader's rounds of asking «am I still the leader?» for reads. `behind`
    is that of `Append`, as of `commit`. `healing_generation` is the receiver's, as of which it is
    known to have that much. `lease_ms`: what the receiver is asked to promise (`lease.py`), 0 for
    nothing; `sent_ns`: when this was sent, by the leader's clock for leases.
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
    """The sender takes the receiver for the leader of `term`, as of `read_round`.

    `applied`, `applied_sequence`: as in `AppendReply`. `sent_ns`: that of the heartbeat;
    `promised_ms`: what the sender promised when it handled that.
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


class Healed(NamedTuple):
    """The receiver, which heals in this generation, holds all it may ever have acknowledged."""

    to: int
    sender: int
    term: int
    healing_generation: int


class ReadRequest(NamedTuple):
    """A follower asks for a read index on behalf of the reads it numbers `read_id`."""

    to: int
    sender: int
    term: int
    read_id: int


class ReadReply(NamedTuple):
    """State that has applied `index` may answer the reads `read_id`."""

    to: int
    sender: int
    term: int
    read_id: int
    index: int  # type: ignore[assignment]  # shadows tuple.index, which nobody calls


class DurableIndexesRequest(NamedTuple):
    """Asks for a reply whenever another disk has entry `index`, until all voters' have."""

    to: int
    sender: int
    term: int
    index: int  # type: ignore[assignment]  # shadows tuple.index, which nobody calls


class DurableIndexesReply(NamedTuple):
    """How far each member's disk is behind `commit`; as in `Append`."""

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
    """The leader has a snapshot of the state, as of a committed entry, for whom its log can't help.

    `snapshot_id` names the snapshot, `size` is its length in bytes. How it is carried over is not
    the core's business; that there is a leader, and whether its snapshot is of use, is.
    """

    to: int
    sender: int
    term: int
    snapshot_id: int
    index: int  # type: ignore[assignment]  # shadows tuple.index, which nobody calls
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
