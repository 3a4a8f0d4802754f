"""The records that users of raftha receive: receipts, digests, statuses."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from raftha.version import VERSION


class ReplicationMode(enum.StrEnum):
    """When the caller of a write is released. The commit rule is the same in all modes."""

    SYNC = "sync"
    """Once all voters have the write on disk."""
    ASYNC_WITH_ACK = "async_with_ack"
    """Once a majority of the voters, or `write_quorum` of them, have the write on disk."""
    ASYNC_FIRE_FORGET = "async_fire_forget"
    """At once. The manager counts the outcomes."""


class ReplicaState(enum.StrEnum):
    """The state of one member, as the leader sees and reports it."""

    CONNECTING = "connecting"
    """It has not connected yet since it was added or the leader began, at most `max_lag_ms` ago."""
    SYNCING = "syncing"
    """It is connected, and has not yet applied the log as of its connection."""
    ACTIVE = "active"
    """It is connected, and at most `max_lag_ms` behind."""
    LAGGING = "lagging"
    """It is connected, and more than `max_lag_ms` behind."""
    DISCONNECTED = "disconnected"
    """The leader's connection to it is lost."""


class ReplicationState(enum.StrEnum):
    """The state of the cluster, as one node sees it."""

    INITIALIZING = "initializing"
    """The node has just started, and has no contact with a leader yet."""
    SYNCING = "syncing"
    """There is a quorum. Some voters are connecting or catching up; the others are active."""
    HEALTHY = "healthy"
    """All voters are active, and there are at least `replication_factor` of them."""
    DEGRADED = "degraded"
    """There is a quorum. Some voters lag or are disconnected, or there are too few voters."""
    FAILED = "failed"
    """There is no quorum, or this node has failed."""


class Health(enum.StrEnum):
    """The result of the checks of a member, or of a disk."""

    HEALTHY = "healthy"
    SUSPECT = "suspect"
    UNHEALTHY = "unhealthy"


class BackupMode(enum.StrEnum):
    """What a backup holds."""

    FULL = "full"
    """Everything."""
    INCREMENTAL = "incremental"
    """What has changed since the last backup."""
    DIFFERENTIAL = "differential"
    """What has changed since the last full backup."""


class BackupState(enum.StrEnum):
    """What the node that takes a backup is doing. Each state is entered when it is true."""

    IDLE = "idle"
    """No backup is running, and none has ended since this cluster began."""
    PREPARING = "preparing"
    """It waits for a checkpoint at or after the backup's beginning, and chooses the mode."""
    BACKING_UP = "backing_up"
    """It reads the state."""
    COMPRESSING = "compressing"
    """Compression is what it is busiest with."""
    ENCRYPTING = "encrypting"
    """Encryption is what it is busiest with."""
    UPLOADING = "uploading"
    """It waits for destinations."""
    VERIFYING = "verifying"
    """It reads the backup back from each destination."""
    COMPLETED = "completed"
    """The last backup is verified in at least one destination."""
    FAILED = "failed"
    """The last backup is in no destination."""

    @property
    def is_running(self) -> bool:
        """Whether a backup is under way."""
        return self not in (BackupState.IDLE, BackupState.COMPLETED, BackupState.FAILED)


class Acknowledgement(NamedTuple):
    """The replicas known to have a write on disk when its caller was released.

    `acked_by`: ids of members, learners included, in ascending order. `regions`: their regions,
    each once. A majority has the write in any case, but `acked_by` may be shorter: a node that has
    just restarted, or follows a new leader, may not know all of that majority. Many receipts share
    one record.
    """

    mode: ReplicationMode
    acked_by: tuple[int, ...] = ()
    regions: tuple[str, ...] = ()


UNACKNOWLEDGED = Acknowledgement(ReplicationMode.ASYNC_WITH_ACK)


class Receipt(NamedTuple):
    """Proof that a write is committed: on disk on a majority, and applied on the calling node.

    A receipt of `async_fire_forget` proves nothing: its `is_committed` is false, all its numbers
    are 0, and the receipt itself is false.

    Otherwise the receipt is true if the command took effect. A `compare_and_set` whose comparison
    failed, or a transaction whose conditions didn't hold, is committed too, and its receipt is
    false.

    `sequence`: the number of the command in the cluster's history, 1, 2, 3 ...
    `index`, `term`: the log entry that holds the command.
    `time_us`: the leader's timestamp, in microseconds since 1970 UTC; `time` is its datetime.
    `succeeded`: True if the command took effect.
    `result`: the command's return value, None for a put.
    `acknowledgement`: the replicas that had the write on disk when the caller was released. The
    receipt has its `mode`, `acked_by` and `regions` too.
    """

    sequence: int
    index: int  # type: ignore[assignment]  # shadows tuple.index, which has no callers
    term: int
    time_us: int
    succeeded: bool = True
    result: Any = None
    acknowledgement: Acknowledgement = UNACKNOWLEDGED

    def __bool__(self) -> bool:
        return self.succeeded

    @property
    def is_committed(self) -> bool:
        """Whether the write is known to be committed; false only for `async_fire_forget`."""
        return self.sequence > 0

    @property
    def mode(self) -> ReplicationMode:
        """The mode that decided when the caller was released."""
        return self.acknowledgement.mode

    @property
    def acked_by(self) -> tuple[int, ...]:
        """Ids of the members known to have the write on disk at that moment, learners included."""
        return self.acknowledgement.acked_by

    @property
    def regions(self) -> tuple[str, ...]:
        """The regions of `acked_by`, each once, in the order of these ids."""
        return self.acknowledgement.regions

    @property
    def time(self) -> datetime:
        """The leader's timestamp, in UTC."""
        return datetime.fromtimestamp(self.time_us / 1e6, UTC)


RELEASED = Receipt(
    sequence=0,
    index=0,
    term=0,
    time_us=0,
    succeeded=False,
    acknowledgement=Acknowledgement(ReplicationMode.ASYNC_FIRE_FORGET),
)
"""The receipt of every `async_fire_forget` write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FireForgetCounts:
    """The outcomes of all `async_fire_forget` writes of this manager.

    `submitted`: all of them. `committed`: those that happened. `failed`: those that did not happen
    and will not. `unknown`: those that may have happened.
    """

    submitted: int = 0
    committed: int = 0
    failed: int = 0
    unknown: int = 0

    @property
    def pending(self) -> int:
        """How many writes have no outcome yet."""
        return self.submitted - self.committed - self.failed - self.unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """A hash over all keys and values, in order, as they were after command `sequence`.

    Replicas with the same data at the same sequence have the same `hex`. `keys`: the number of
    keys. `index`: the log entry that holds the command.
    """

    sequence: int
    index: int
    hex: str
    keys: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupResult:
    """One backup, as the cluster's log records it.

    `id`: its number, the index of the log entry that began it. `label`: its name in every
    destination. `mode`: what it holds; `reason` says why that is another mode than was asked for,
    "" if it isn't. `state`: completed, failed, or what its taker is doing. `parent`, `base`: the
    ids of the backups that a restore reads before it, the one before it and the full one; None for
    a full backup. `node_id`: the member that takes it.

    `index`, `sequence`: the last entry and command that it contains. `time_us`: that entry's
    timestamp, in microseconds since 1970 UTC, and `timestamp` its datetime. `keys`: how many keys
    and removed keys it holds. `size_bytes`, `size_compressed`: before and after compression.
    `digest`: the hash of the state that it restores, as `Digest.hex`; "" if it isn't known.
    `lineage`: the history that it belongs to; a restore begins another one. While it runs,
    `done_bytes` of `total_bytes` are read; the total is an estimate.

    `destinations`: name -> "ok", or the error for which this destination doesn't have it. `error`:
    why it failed, "" if it didn't. `verify_level`: how it was verified, as in
    `BackupConfig.verify_level`; 0 before. `pins`: the names of its pins. `is_retired`: no rule
    keeps it, so it is being deleted and can't be a parent any more.
    """

    id: int
    label: str
    mode: BackupMode
    state: BackupState
    parent: int | None = None
    base: int | None = None
    node_id: int = 0
    index: int = 0
    sequence: int = 0
    time_us: int = 0
    keys: int = 0
    size_bytes: int = 0
    size_compressed: int = 0
    duration_ms: float = 0.0
    digest: str = ""
    destinations: Mapping[str, str] = field(default_factory=dict)
    error: str = ""
    reason: str = ""
    verify_level: int = 0
    pins: tuple[str, ...] = ()
    is_retired: bool = False
    lineage: str = ""
    done_bytes: int = 0
    total_bytes: int = 0

    @property
    def timestamp(self) -> datetime:
        """The timestamp of the last entry that it contains, in UTC."""
        return datetime.fromtimestamp(self.time_us / 1e6, UTC)

    @property
    def is_completed(self) -> bool:
        """Whether it can be restored: at least one destination has it, verified."""
        return self.state is BackupState.COMPLETED


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupVerification:
    """What a verification of one backup has found in one destination.

    `level`: as in `BackupConfig.verify_level`, or 0: only listed. `findings`: what is wrong; none
    if it is sound. `objects`, `size_bytes`, `keys`: how much was looked at. `digest`: of the state
    that a restore would give, from level 3 on, else "".
    """

    label: str
    destination: str
    level: int
    findings: tuple[str, ...] = ()
    objects: int = 0
    size_bytes: int = 0
    keys: int = 0
    digest: str = ""

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationCheck:
    """What a destination was found to do, tried with objects that are removed again.

    `findings`: what it doesn't do, as "check: detail". `is_usable`: backups work all the same.
    """

    destination: str
    is_usable: bool
    findings: tuple[str, ...] = ()


class RetentionFate(enum.StrEnum):
    """What retention does with a backup in one destination."""

    KEPT = "kept"
    """A rule keeps it, or what a kept backup is restored from."""
    WAITS = "waits"
    """No rule keeps it, but there is nothing newer in its place yet."""
    GOES = "goes"
    """It is deleted the next time that retention is applied."""
    RETAINED = "retained"
    """It is given up, but the destination doesn't let it be deleted; tried again each day."""


class RetentionDecision(NamedTuple):
    """Why a backup is in a destination, and whether it stays.

    `destination` is "" for a backup that is in none, but in the cluster's log. `reasons`: each rule
    that keeps it; of one that isn't kept, what it waits for, or why it goes.
    """

    backup_id: int
    label: str
    destination: str
    fate: RetentionFate
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStatus:
    """One member, as the reporting node sees it.

    `address`: "host:port" of its peer listener. `client_address`: where it serves its own clients,
    "" if it doesn't say. `is_voter`: false for a learner, which receives the log and counts for no
    quorum. `is_standby`: a learner that stays one until it is promoted. `connected`: this node has
    a connection to it. `match_index`: the last entry known to be durable there; None if this node
    can't know. `health`: the result of this node's checks of the member; for this node itself, of
    the checks of its disk.

    The rest comes from the leader's last report, at most a heartbeat old. Without reports the lags
    grow with time. `lag_ms`: the age of the oldest entry that the member has not applied; if the
    leader has had no message from it for more than four heartbeats, at least that time.
    `lag_sequences`: the number of commands that it has not applied. `match_sequence`: a lower bound
    of the last command in its log. `applied_index`, `applied_sequence`: the last entry and command
    that its state has applied. `last_heard_ms`: the time since its last message to the leader.
    `clock_offset_ms`: how far its wall clock is ahead of the one on which most voters agree,
    negative if behind, 0 if not known.

    `version`: its version of raftha, "" if this node isn't connected to it. `machine_version`: the
    newest version of the state machine that it supports.
    """

    node_id: int
    address: str
    client_address: str
    is_voter: bool
    connected: bool
    match_index: int | None
    health: Health
    is_standby: bool = False
    region: str = ""
    state: ReplicaState = ReplicaState.CONNECTING
    match_sequence: int = 0
    applied_index: int = 0
    applied_sequence: int = 0
    lag_ms: int = 0
    lag_sequences: int = 0
    last_heard_ms: int = 0
    clock_offset_ms: int = 0
    version: str = ""
    machine_version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivedTo:
    """How far the archive of the log is in one destination.

    `index`, `sequence`, `time_us`: the last entry that is there. `rpo_ms`: how old the oldest
    command is that is not. `error`: why the last try has failed, "" if it hasn't.
    """

    index: int
    sequence: int
    time_us: int
    rpo_ms: int
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveStatus:
    """How far the archive of the log is, as this node knows it; the leader tells all members.

    `archiver`: the member that archives, None if none can. The next fields are those of the
    destination that is furthest: what is there can be restored if the whole cluster is lost. Its
    `rpo_ms` says how old the oldest command is that would be lost then, 0 if there is none.
    `backlog_bytes`: about how much log is in no destination. `gaps`: how many gaps were recorded
    since this node was started.
    """

    archiver: int | None
    archived_index: int
    archived_sequence: int
    archived_us: int
    rpo_ms: int
    backlog_bytes: int
    gaps: int
    destinations: Mapping[str, ArchivedTo]


@dataclass(frozen=True, slots=True, kw_only=True)
class HaStatus:
    """The state of a node at one moment.

    `role`: waiting, follower, pre_candidate, candidate, leader, removed, stopped or failed.
    `waits_for`: what a node without a cluster waits for, "" once it has one; `cluster_id` is ""
    until then. `failure`: why the node has failed, "" if it hasn't. `is_primary`: true if this node
    leads. `leader_id`: the leader, None if this node knows none.

    Log pointers: first_index - 1 <= applied_index <= commit_index <= last_index, and
    persisted_index <= last_index. `checkpoint_index`: the last entry whose effect LMDB holds
    durably. `sequence`: the last command applied.

    `is_healing`: the node has lost its log; it counts for no quorum and can't be elected until it
    again holds everything that it may have acknowledged. `has_lease`: the leader answers reads by
    itself at this moment. `replicas`: the members; `removed`: the ids of former members; both by
    this node's own log.

    `replication_lag_ms`: the largest lag of a voter. `rpo_commands`, `rpo_bytes`: what is lost if
    this node dies for good now: commands handed to it that it doesn't know to be committed. None of
    them was acknowledged; acknowledged writes are on a majority of the disks.

    `compared_index`: the log entry as of which the members' states were compared last, 0 if this
    node knows of no comparison. `diverged`: the members whose state differed then.
    `log_mismatch`: why this node can't take the leader's entries, "" if it can: their logs differ
    where they must not. `cloned`: the members of which this node has refused a second process, with
    a copy of the data directory, in the last minute.
    `version`: this node's version of raftha. `protocol_version`, `machine_version`: what the
    cluster uses by the log, as far as this node has applied it; 0 before its first leader has
    recorded it.
    `upgrade_waits_for`: the members that keep the cluster from using all that this node supports.

    `events_dropped`: events lost because `on_event` or a stream was too slow. `event_errors`: how
    often `on_event` raised. `fire_forget`: the outcomes of this manager's `async_fire_forget`
    writes. `backup_state`: what comes of the backup that runs, or came of the last one.
    `last_backup`: the newest one that can be restored, None if there is none. `archive`: how far
    the archive of the log is, None without point-in-time recovery.
    `pitr_sequence`: up to which command the cluster can be restored without its members, and
    `rpo_ms`: how old the oldest write is that would be lost with them, 0 if there is none; both as
    far as this node knows, and None without point-in-time recovery.
    """

    is_running: bool
    is_primary: bool
    node_id: int
    cluster_id: str
    role: str
    term: int
    leader_id: int | None
    first_index: int
    last_index: int
    persisted_index: int
    commit_index: int
    applied_index: int
    checkpoint_index: int
    sequence: int
    is_healing: bool = False
    has_lease: bool = False
    failure: str
    waits_for: str = ""
    replicas: tuple[ReplicaStatus, ...]
    removed: tuple[int, ...] = ()
    events_dropped: int = 0
    event_errors: int = 0
    fire_forget: FireForgetCounts = FireForgetCounts()
    replication_state: ReplicationState = ReplicationState.INITIALIZING
    replication_lag_ms: int = 0
    rpo_commands: int = 0
    rpo_bytes: int = 0
    compared_index: int = 0
    diverged: tuple[int, ...] = ()
    log_mismatch: str = ""
    cloned: tuple[int, ...] = ()
    version: str = VERSION
    protocol_version: int = 0
    machine_version: int = 0
    upgrade_waits_for: tuple[int, ...] = ()
    backup_state: BackupState = BackupState.IDLE
    last_backup: BackupResult | None = None
    archive: ArchiveStatus | None = None
    pitr_sequence: int | None = None
    rpo_ms: int | None = None

    @classmethod
    def unstarted(cls, node_id: int) -> HaStatus:
        """The status of a node that was not started in this process."""
        return cls(
            is_running=False,
            is_primary=False,
            node_id=node_id,
            cluster_id="",
            role="stopped",
            term=0,
            leader_id=None,
            first_index=0,
            last_index=0,
            persisted_index=0,
            commit_index=0,
            applied_index=0,
            checkpoint_index=0,
            sequence=0,
            failure="",
            replicas=(),
        )

    @property
    def replica_count(self) -> int:
        """The number of members, voters and learners, this node included."""
        return len(self.replicas)

    @property
    def quorum_size(self) -> int:
        """How many voters are a majority: a write is committed once so many have it on disk."""
        return sum(replica.is_voter for replica in self.replicas) // 2 + 1
