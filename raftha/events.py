"""What happens inside a node, as typed records.

`core` returns events in `Ready` and never logs; the runtime turns each into one log line, and
publishes it (`event_bus.py`). The names of kinds and fields are public, and stay.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, ClassVar

from raftha.types import Health


class EventKind(enum.StrEnum):
    """What an event is about; each kind is a class of its own, and its `kind`."""

    ROLE_CHANGED = "role_changed"
    LEADER_ELECTED = "leader_elected"
    LEADER_LOST = "leader_lost"
    SECOND_LEADER = "second_leader"
    FAILOVER_STARTED = "failover_started"
    FAILOVER_COMPLETED = "failover_completed"
    MEMBERSHIP_CHANGED = "membership_changed"
    CATCH_UP_GIVEN_UP = "catch_up_given_up"
    REMOVED = "removed"
    REPLICA_CONNECTED = "replica_connected"
    REPLICA_DISCONNECTED = "replica_disconnected"
    REPLICA_ADDED = "replica_added"
    REPLICA_REMOVED = "replica_removed"
    REPLICATION_LAG_WARNING = "replication_lag_warning"
    QUORUM_LOST = "quorum_lost"
    QUORUM_RESTORED = "quorum_restored"
    REPLICA_BEHIND_LOG = "replica_behind_log"
    SNAPSHOT_SENT = "snapshot_sent"
    SNAPSHOT_FAILED = "snapshot_failed"
    SNAPSHOT_INSTALLING = "snapshot_installing"
    STORAGE_FAILED = "storage_failed"
    STORAGE_DAMAGED = "storage_damaged"
    HEALING_ENDED = "healing_ended"
    REPLICA_LOST_LOG = "replica_lost_log"
    REPLICA_HEALING = "replica_healing"
    REPLICA_HEALED = "replica_healed"
    STORAGE_FULL = "storage_full"
    STORAGE_HAS_SPACE = "storage_has_space"
    HEALTH_CHECK_FAILED = "health_check_failed"
    HEALTH_RECOVERED = "health_recovered"
    CHECKPOINT_COMPLETED = "checkpoint_completed"


@dataclass(frozen=True, slots=True, kw_only=True)
class HaEvent:
    """The root of all events; `reporter` is the node that saw it.

    In what happens to one member, `node_id` is that member. Stamped when it is published:
    `number` counts this node's events 1, 2, 3 ... (a gap: some were dropped), `time_us` is this
    node's clock, microseconds since 1970 UTC, and `time` the same as a datetime.
    """

    kind: ClassVar[EventKind]

    reporter: int
    number: int = 0
    time_us: int = 0

    @property
    def time(self) -> datetime:
        """When this node saw it, in UTC."""
        return datetime.fromtimestamp(self.time_us / 1e6, UTC)

    def details(self) -> dict[str, Any]:
        """What this kind of event has beside what all have."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in _STAMPS
        }


_STAMPS = ("reporter", "number", "time_us")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleChanged(HaEvent):
    """This node became a follower, a candidate or the leader."""

    kind: ClassVar[EventKind] = EventKind.ROLE_CHANGED
    role: str
    term: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderElected(HaEvent):
    """This node learned who leads `term`."""

    kind: ClassVar[EventKind] = EventKind.LEADER_ELECTED
    leader: int
    term: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderLost(HaEvent):
    """This node no longer knows a leader.

    `reason` is timeout, disconnected, quorum, term, transfer or resigned.
    """

    kind: ClassVar[EventKind] = EventKind.LEADER_LOST
    leader: int
    term: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondLeader(HaEvent):
    """`other` speaks as the leader of `term`, which `leader` leads; what it says is dropped.

    A term has one leader: a voter has forgotten its vote, or `other` is not what it says. Told once
    a term.
    """

    kind: ClassVar[EventKind] = EventKind.SECOND_LEADER
    term: int
    leader: int
    other: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FailoverStarted(HaEvent):
    """An election is held, in which `to_node` asks to lead `term` in place of `from_node`.

    0: this node doesn't know who. `raftha/node/watch/failover.py` says what counts as one failover.
    """

    kind: ClassVar[EventKind] = EventKind.FAILOVER_STARTED
    from_node: int
    to_node: int
    term: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FailoverCompleted(HaEvent):
    """`new_primary` leads `term` and has committed in it; each node reports this once a change.

    All times are milliseconds as this node measured them: `detect_ms` from when it last heard from
    the old leader to the election, `elect_ms` until it knew the new one, `first_commit_ms` until
    it knew of a commit; `duration_ms` is their sum. `is_planned`: leadership was handed over.
    """

    kind: ClassVar[EventKind] = EventKind.FAILOVER_COMPLETED
    new_primary: int
    term: int
    duration_ms: float
    detect_ms: float
    elect_ms: float
    first_commit_ms: float
    is_planned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MembershipChanged(HaEvent):
    """The membership in this node's log is another one, as of entry `index`."""

    kind: ClassVar[EventKind] = EventKind.MEMBERSHIP_CHANGED
    index: int
    voters: tuple[int, ...]
    learners: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CatchUpGivenUp(HaEvent):
    """A learner didn't catch up within the rounds it is given; it isn't made a voter."""

    kind: ClassVar[EventKind] = EventKind.CATCH_UP_GIVEN_UP
    node_id: int
    rounds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed(HaEvent):
    """This node learned that it is no longer a member."""

    kind: ClassVar[EventKind] = EventKind.REMOVED


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaConnected(HaEvent):
    """A peer connected and is who it says."""

    kind: ClassVar[EventKind] = EventKind.REPLICA_CONNECTED
    node_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaDisconnected(HaEvent):
    """The connection to a peer is gone.

    `reason` is node_shutdown if the peer said so, removed if one of the two is no member any more,
    timeout if the other side went silent, else network_error: its process or the network broke.
    """

    kind: ClassVar[EventKind] = EventKind.REPLICA_DISCONNECTED
    node_id: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaAdded(HaEvent):
    """A node is a member now; a learner first, unless the cluster was made with it."""

    kind: ClassVar[EventKind] = EventKind.REPLICA_ADDED
    node_id: int
    region: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaRemoved(HaEvent):
    """A node is no member any more, for good."""

    kind: ClassVar[EventKind] = EventKind.REPLICA_REMOVED
    node_id: int
    region: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicationLagWarning(HaEvent):
    """A replica is more than `max_lag_ms` behind.

    Said once, and again only after its lag was below half of that for as long (10 s at most).
    """

    kind: ClassVar[EventKind] = EventKind.REPLICATION_LAG_WARNING
    node_id: int
    lag_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QuorumLost(HaEvent):
    """No majority can be reached; `connected` are the voters that are, `needed` how many must be.

    Some that count as connected may be silent.
    """

    kind: ClassVar[EventKind] = EventKind.QUORUM_LOST
    connected: tuple[int, ...]
    needed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QuorumRestored(HaEvent):
    """There is a leader again, `duration_ms` after the quorum was lost."""

    kind: ClassVar[EventKind] = EventKind.QUORUM_RESTORED
    leader: int
    duration_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaBehindLog(HaEvent):
    """A follower needs entries that this leader's log no longer holds."""

    kind: ClassVar[EventKind] = EventKind.REPLICA_BEHIND_LOG
    node_id: int
    needs_index: int
    first_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotSent(HaEvent):
    """A follower that the log couldn't help now has entry `index`, by a snapshot of `size`."""

    kind: ClassVar[EventKind] = EventKind.SNAPSHOT_SENT
    node_id: int
    index: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotFailed(HaEvent):
    """A snapshot could not be made, or not be received; it is tried again after a pause."""

    kind: ClassVar[EventKind] = EventKind.SNAPSHOT_FAILED
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotInstalling(HaEvent):
    """A snapshot as of `index` takes the place of this node's log and state; it is opened anew."""

    kind: ClassVar[EventKind] = EventKind.SNAPSHOT_INSTALLING
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageDamaged(HaEvent):
    """What was durable is damaged: `parts` (log, state) are set aside in `quarantine`.

    With `heals` this node counts for no quorum until it has from the others what it lost; without,
    nothing is lost, and the state is rebuilt from the log.
    """

    kind: ClassVar[EventKind] = EventKind.STORAGE_DAMAGED
    path: str
    offset: int
    detail: str
    parts: tuple[str, ...]
    quarantine: str
    heals: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HealingEnded(HaEvent):
    """This node has lost its log and holds again all that it may have acknowledged; it counts."""

    kind: ClassVar[EventKind] = EventKind.HEALING_ENDED


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaLostLog(HaEvent):
    """A follower lacks log entries that it acknowledged, up to `acknowledged`; it is about to heal.

    Its data directory was put back to an earlier copy, or its last write was damaged.
    """

    kind: ClassVar[EventKind] = EventKind.REPLICA_LOST_LOG
    node_id: int
    acknowledged: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaHealing(HaEvent):
    """A follower has lost its log; it counts for no quorum until it has healed."""

    kind: ClassVar[EventKind] = EventKind.REPLICA_HEALING
    node_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaHealed(HaEvent):
    """A follower that had lost its log has healed, and counts again."""

    kind: ClassVar[EventKind] = EventKind.REPLICA_HEALED
    node_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageFailure(HaEvent):
    """The disk failed, or an invariant was broken; the node has stopped taking part."""

    kind: ClassVar[EventKind] = EventKind.STORAGE_FAILED
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageIsFull(HaEvent):
    """There is no space for more log, or for a checkpoint; writers here are refused meanwhile."""

    kind: ClassVar[EventKind] = EventKind.STORAGE_FULL
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageHasSpace(HaEvent):
    """What had no space has been written; writers are served again."""

    kind: ClassVar[EventKind] = EventKind.STORAGE_HAS_SPACE


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheckFailed(HaEvent):
    """A member didn't answer, or, of the reporter itself, its disk is slow.

    Said at the first failure, when it counts as unhealthy, and every `health_check_interval_sec`.
    """

    kind: ClassVar[EventKind] = EventKind.HEALTH_CHECK_FAILED
    node_id: int
    consecutive_failures: int
    health: Health
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthRecovered(HaEvent):
    """Who counted as unhealthy is well again."""

    kind: ClassVar[EventKind] = EventKind.HEALTH_RECOVERED
    node_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointCompleted(HaEvent):
    """The write buffer is in LMDB, durable, as of `index` and `sequence`."""

    kind: ClassVar[EventKind] = EventKind.CHECKPOINT_COMPLETED
    index: int
    sequence: int
    keys: int
    duration_ms: float
