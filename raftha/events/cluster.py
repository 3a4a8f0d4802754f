"""Events of the cluster: leaders, members, replication, disks, health."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from raftha.events.base import EventKind, HaEvent
from raftha.types import Health


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleChanged(HaEvent):
    """This node became a follower, a pre-candidate, a candidate or the leader of `term`."""

    kind: ClassVar[EventKind] = EventKind.ROLE_CHANGED
    role: str
    term: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderElected(HaEvent):
    """This node learned that `leader` leads `term`."""

    kind: ClassVar[EventKind] = EventKind.LEADER_ELECTED
    leader: int
    term: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderLost(HaEvent):
    """This node no longer knows a leader; the last one was `leader`.

    `reason` is timeout (the leader was silent), disconnected (its connection broke), quorum (this
    node led and lost contact with a majority), term (a message had a later term), transfer (this
    node campaigns at the leader's request), resigned (this node led and stepped down) or removed
    (this node led, and another member reported its removal).
    """

    kind: ClassVar[EventKind] = EventKind.LEADER_LOST
    leader: int
    term: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondLeader(HaEvent):
    """`other` acts as the leader of `term`, but `leader` leads it. Messages of `other` are dropped.

    A term has one leader, so a voter has forgotten its vote, or `other` is not the node that it
    claims to be. Reported once a term.
    """

    kind: ClassVar[EventKind] = EventKind.SECOND_LEADER
    term: int
    leader: int
    other: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LogsDiffer(HaEvent):
    """The leader's entries can't follow this node's log, so this node takes none of them.

    From entry `index` on: the leader has another history under the same index and term, which can't
    happen unless a disk was changed, or a data directory is of another cluster's past. Reported
    once for each leader and term; `HaStatus.log_mismatch` says so until entries are taken again.
    Replace this node, or the leader, whichever has the wrong data.
    """

    kind: ClassVar[EventKind] = EventKind.LOGS_DIFFER
    leader: int
    term: int
    index: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FailoverStarted(HaEvent):
    """An election began: `to_node` asks to lead `term` in place of `from_node`.

    0 stands for a node that the reporter doesn't know. `raftha/node/watch/failover.py` defines what
    counts as one failover.
    """

    kind: ClassVar[EventKind] = EventKind.FAILOVER_STARTED
    from_node: int
    to_node: int
    term: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FailoverCompleted(HaEvent):
    """`new_primary` leads `term` and has committed in it. Each node reports each change once.

    This node measures three times, in milliseconds: `detect_ms` from the old leader's last message
    to the election, `elect_ms` from there until the new leader is known, and `first_commit_ms` from
    there until a commit is known. `duration_ms` is their sum. `is_planned`: leadership was handed
    over.
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
    """The membership in this node's log has changed, by entry `index`."""

    kind: ClassVar[EventKind] = EventKind.MEMBERSHIP_CHANGED
    index: int
    voters: tuple[int, ...]
    learners: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CatchUpGivenUp(HaEvent):
    """A learner didn't catch up within `rounds` rounds. It stays a learner."""

    kind: ClassVar[EventKind] = EventKind.CATCH_UP_GIVEN_UP
    node_id: int
    rounds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed(HaEvent):
    """This node learned that it is no longer a member."""

    kind: ClassVar[EventKind] = EventKind.REMOVED


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaConnected(HaEvent):
    """A peer is connected, and its Hello was accepted."""

    kind: ClassVar[EventKind] = EventKind.REPLICA_CONNECTED
    node_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaDisconnected(HaEvent):
    """The connection to a peer is lost.

    `reason` is node_shutdown if the peer announced its stop, removed if one of the two is no longer
    a member, timeout if the peer went silent, and otherwise network_error: its process or the
    network broke.
    """

    kind: ClassVar[EventKind] = EventKind.REPLICA_DISCONNECTED
    node_id: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaUnsupported(HaEvent):
    """A node runs a version that can't take part in this cluster; `reason` says why.

    Its `node_id` is the reporter's own if this node is the one to be upgraded: it has stopped.
    """

    kind: ClassVar[EventKind] = EventKind.REPLICA_UNSUPPORTED
    node_id: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberCloned(HaEvent):
    """Two processes run under one id; this node refuses one.

    The second has a copy of the member's data directory, or another directory, as after a mistake
    in `node_id`. The process that was connected first stays. The one at `remote`, an address, is
    refused: stop it, or the other one. Reported once an hour while both run.
    """

    kind: ClassVar[EventKind] = EventKind.MEMBER_CLONED
    node_id: int
    remote: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterUpgraded(HaEvent):
    """All members support more than before, and from now on the cluster uses it.

    `protocol`, `machine_version`: the versions in use. `commands`: how many commands of the state
    machine may be called. From here on, a node that supports less can't take part.
    """

    kind: ClassVar[EventKind] = EventKind.CLUSTER_UPGRADED
    protocol: int
    machine_version: int
    commands: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EntrySkipped(HaEvent):
    """This node passes over the commands of an entry, because an operator has told every node to.

    Reported at each start that is to apply the entry.
    """

    kind: ClassVar[EventKind] = EventKind.ENTRY_SKIPPED
    index: int
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaAdded(HaEvent):
    """A node became a member: a learner first, unless the cluster started with it."""

    kind: ClassVar[EventKind] = EventKind.REPLICA_ADDED
    node_id: int
    region: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaRemoved(HaEvent):
    """A node is no longer a member, for good."""

    kind: ClassVar[EventKind] = EventKind.REPLICA_REMOVED
    node_id: int
    region: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicationLagWarning(HaEvent):
    """A replica is more than `max_lag_ms` behind.

    Reported once, and again only after the lag has stayed below half of that for `max_lag_ms`, or
    for 10 s if that is shorter.
    """

    kind: ClassVar[EventKind] = EventKind.REPLICATION_LAG_WARNING
    node_id: int
    lag_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QuorumLost(HaEvent):
    """This node can't reach a majority: `connected` are the voters it reaches, of `needed`.

    Some of the voters that count as connected may be silent.
    """

    kind: ClassVar[EventKind] = EventKind.QUORUM_LOST
    connected: tuple[int, ...]
    needed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QuorumRestored(HaEvent):
    """A leader is known again, `duration_ms` after the quorum was lost."""

    kind: ClassVar[EventKind] = EventKind.QUORUM_RESTORED
    leader: int
    duration_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaBehindLog(HaEvent):
    """A follower needs entry `needs_index`, but this leader's log starts at `first_index`."""

    kind: ClassVar[EventKind] = EventKind.REPLICA_BEHIND_LOG
    node_id: int
    needs_index: int
    first_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotSent(HaEvent):
    """A follower that needed older log received a snapshot of `size` bytes, as of entry `index`."""

    kind: ClassVar[EventKind] = EventKind.SNAPSHOT_SENT
    node_id: int
    index: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotFailed(HaEvent):
    """A snapshot could not be made, sent or received. It is tried again after a pause."""

    kind: ClassVar[EventKind] = EventKind.SNAPSHOT_FAILED
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotInstalling(HaEvent):
    """A snapshot as of `index` replaces this node's log and state; the node opens them again."""

    kind: ClassVar[EventKind] = EventKind.SNAPSHOT_INSTALLING
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageDamaged(HaEvent):
    """Durable data is damaged: `parts` (log, state) are moved to the folder `quarantine`.

    `path`, `offset` and `detail` say where and how. With `heals` this node counts for no quorum
    until it has received from the others what it lost. Without it nothing is lost: the state is
    rebuilt from the log.
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
    """This node, which had lost its log, holds again all that it may have acknowledged."""

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
class ReplicaDiverged(HaEvent):
    """The states of members differ as of entry `index`: those of `diverged` from a majority's.

    With `heals` these members replace their states. Without it nothing is changed: no majority has
    the same state, or the same members have diverged again since they were replaced. `detail` says
    which.
    """

    kind: ClassVar[EventKind] = EventKind.REPLICA_DIVERGED
    index: int
    diverged: tuple[int, ...]
    heals: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaHealing(HaEvent):
    """A follower has lost its log. It counts for no quorum until it has healed."""

    kind: ClassVar[EventKind] = EventKind.REPLICA_HEALING
    node_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaHealed(HaEvent):
    """A follower that had lost its log has healed, and counts again."""

    kind: ClassVar[EventKind] = EventKind.REPLICA_HEALED
    node_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageFailure(HaEvent):
    """The disk failed, or an invariant is broken. The node has stopped for good."""

    kind: ClassVar[EventKind] = EventKind.STORAGE_FAILED
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageIsFull(HaEvent):
    """The disk has no space for more log or a checkpoint. This node refuses writes meanwhile."""

    kind: ClassVar[EventKind] = EventKind.STORAGE_FULL
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageHasSpace(HaEvent):
    """The disk has space again, and this node accepts writes again."""

    kind: ClassVar[EventKind] = EventKind.STORAGE_HAS_SPACE


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheckFailed(HaEvent):
    """A member didn't answer a check; for the reporter itself, its disk is slow.

    Reported at the first failure, when the member becomes unhealthy, and from then on every
    `health_check_interval_sec`.
    """

    kind: ClassVar[EventKind] = EventKind.HEALTH_CHECK_FAILED
    node_id: int
    consecutive_failures: int
    health: Health
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthRecovered(HaEvent):
    """A member that was unhealthy is healthy again."""

    kind: ClassVar[EventKind] = EventKind.HEALTH_RECOVERED
    node_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointCompleted(HaEvent):
    """A checkpoint is durable: LMDB holds the state as of entry `index` and command `sequence`.

    `keys`: the number of keys that it wrote.
    """

    kind: ClassVar[EventKind] = EventKind.CHECKPOINT_COMPLETED
    index: int
    sequence: int
    keys: int
    duration_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockWrong(HaEvent):
    """The leader finds a member's wall clock further off than `max_clock_offset_ms`.

    `offset_ms`: how far it is ahead of the clock on which most voters agree, negative if behind. A
    leader whose own clock is wrong hands over.
    """

    kind: ClassVar[EventKind] = EventKind.CLOCK_WRONG
    node_id: int
    offset_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockRight(HaEvent):
    """The wall clock of a member that was wrong agrees with the others again."""

    kind: ClassVar[EventKind] = EventKind.CLOCK_RIGHT
    node_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateExpires(HaEvent):
    """This node's certificate for its peers, at `path`, expires in `days_left` days, or has.

    Reported 30, 7 and 1 days before and when it has expired; also at a start, if it is due. Peers
    refuse new connections with an expired certificate.
    """

    kind: ClassVar[EventKind] = EventKind.CERTIFICATE_EXPIRES
    path: str
    days_left: int
