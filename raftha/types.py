"""The records a user of raftha meets: receipts, statuses, what a transaction is made of."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple


class ReplicationMode(enum.StrEnum):
    """When the caller of a write is released; the commit rule is the same in all modes."""

    SYNC = "sync"
    """Once all voters have it on disk."""
    ASYNC_WITH_ACK = "async_with_ack"
    """Once a majority has, or `write_quorum` voters."""
    ASYNC_FIRE_FORGET = "async_fire_forget"
    """At once; what becomes of it is counted."""


class ReplicaState(enum.StrEnum):
    """How it stands with one member; by the leader's judgement, which it shares with all."""

    CONNECTING = "connecting"
    """It was never connected, since it was added or the leader began, up to `max_lag_ms` ago."""
    SYNCING = "syncing"
    """It is connected and has not yet applied what there was when it connected."""
    ACTIVE = "active"
    """It is at most `max_lag_ms` behind."""
    LAGGING = "lagging"
    """It is connected, and further behind."""
    DISCONNECTED = "disconnected"
    """The leader's connection to it is lost."""


class ReplicationState(enum.StrEnum):
    """How it stands with the cluster, as one node sees it."""

    INITIALIZING = "initializing"
    """The node has just started and has not heard of a leader."""
    SYNCING = "syncing"
    """There is a quorum; some voters connect, or catch up after they did, the others are active."""
    HEALTHY = "healthy"
    """All voters are active, and there are `replication_factor` of them."""
    DEGRADED = "degraded"
    """There is a quorum; some voters lag or are disconnected, or there are too few."""
    FAILED = "failed"
    """There is no quorum, or the node has failed."""


class Health(enum.StrEnum):
    """What the checks of a member, or of a disk, have shown."""

    HEALTHY = "healthy"
    SUSPECT = "suspect"
    UNHEALTHY = "unhealthy"


class Acknowledgement(NamedTuple):
    """Who was known to have a write on disk when its caller was released; many receipts share it.

    `acked_by`: the members, learners too, in the order of their ids; `regions`: theirs, each once.
    A majority has it in any case; who that is, a node that has just restarted, or follows a new
    leader, may not know of all.
    """

    mode: ReplicationMode
    acked_by: tuple[int, ...] = ()
    regions: tuple[str, ...] = ()


UNACKNOWLEDGED = Acknowledgement(ReplicationMode.ASYNC_WITH_ACK)


class Receipt(NamedTuple):
    """Proof that a write is committed: on disk on a majority, and applied on the node that asked.

    Of `async_fire_forget` it proves nothing: `is_committed` is false, and so is the receipt; all
    numbers are 0.

    A receipt is true if the command did what it was asked to: a `compare_and_set` whose comparison
    failed, or a transaction whose conditions didn't hold, is committed too but changed nothing, and
    its receipt is false.

    `sequence`: the command's number over the cluster's life, 1, 2, 3 ...
    `index`, `term`: the log entry that carries it.
    `time_us`: the leader's stamp, microseconds since 1970 UTC; `time` is the same as a datetime.
    `result`: what the command returned, None for a plain put.
    `acknowledgement`: who had it on disk when the caller was released; its `mode`, `acked_by` and
    `regions` are the receipt's too.
    """

    sequence: int
    index: int  # type: ignore[assignment]  # shadows tuple.index, which nobody calls
    term: int
    time_us: int
    succeeded: bool = True
    result: Any = None
    acknowledgement: Acknowledgement = UNACKNOWLEDGED

    def __bool__(self) -> bool:
        return self.succeeded

    @property
    def is_committed(self) -> bool:
        """Whether it is known to be: always, but for `async_fire_forget`."""
        return self.sequence > 0

    @property
    def mode(self) -> ReplicationMode:
        """When the caller was to be released."""
        return self.acknowledgement.mode

    @property
    def acked_by(self) -> tuple[int, ...]:
        """The members known to have it on disk at that moment, learners too, in order."""
        return self.acknowledgement.acked_by

    @property
    def regions(self) -> tuple[str, ...]:
        """The regions of `acked_by`, each once, in the order of the ids."""
        return self.acknowledgement.regions

    @property
    def time(self) -> datetime:
        """The leader's stamp, in UTC."""
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
    """What became of the writes that this manager submitted with `async_fire_forget`, all in all.

    `failed` did not and will not happen, of `unknown` it isn't known. What isn't in any of the
    others yet is on its way.
    """

    submitted: int = 0
    committed: int = 0
    failed: int = 0
    unknown: int = 0

    @property
    def pending(self) -> int:
        """How many have no outcome yet."""
        return self.submitted - self.committed - self.failed - self.unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """A hash over the whole ordered contents as they were after command `sequence`.

    Replicas that hold the same data at the same sequence have the same `hex`. `keys` counts them.
    """

    sequence: int
    index: int
    hex: str
    keys: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStatus:
    """One member, as the node that reports it sees it.

    `match_index` is what the leader knows to be durable there; None where this node can't know. A
    learner (`is_voter` false) gets the log and counts for nothing yet; if `is_standby` it stays one
    until it is promoted. `client_address` is where the member serves its own clients, "" if it
    doesn't say. `health` is what this node's checks of the member have shown; of this node itself,
    the checks of its disk.

    The others are by the leader's last report, a heartbeat old at most; without reports lags grow
    with the time. `lag_ms` is the age of the oldest entry that the member has not applied, and at
    least the time since it was heard last if that is more than four heartbeats; `lag_sequences`
    counts the commands it has not applied. `match_sequence` (at least so much), `applied_index` and
    `applied_sequence` say how far its log and its state are. `last_heard_ms`: how long ago the
    leader heard of it.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class HaStatus:
    """A node's state at one moment.

    Log pointers: first_index - 1 <= applied_index <= commit_index <= last_index, and
    persisted_index <= last_index. `checkpoint_index` is what LMDB holds durably by itself. `role`
    is follower, pre_candidate, candidate, leader, removed, stopped or failed; `failure` says why
    failed. A node that `is_healing` has lost its log: it counts for no quorum and can't be elected
    until it holds again all that it may have acknowledged. A leader that `has_lease` answers reads
    by itself at that moment. `replicas` are the members, `removed` those that once were, by this
    node's own log.
    `events_dropped` counts events for which `on_event` or a stream was too slow, `event_errors` how
    often `on_event` raised.
    `fire_forget` counts this manager's writes that nobody waits for.

    `replication_lag_ms` is the largest lag of a voter. `rpo_commands` and `rpo_bytes` are what
    could be lost if this node died for good now: commands that were handed to it and that it
    doesn't know to be committed. None of them was acknowledged; what was is on a majority of the
    disks. `backup_state` and `pitr_sequence` are None: this version has neither.
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
    replicas: tuple[ReplicaStatus, ...]
    removed: tuple[int, ...] = ()
    events_dropped: int = 0
    event_errors: int = 0
    fire_forget: FireForgetCounts = FireForgetCounts()
    replication_state: ReplicationState = ReplicationState.INITIALIZING
    replication_lag_ms: int = 0
    rpo_commands: int = 0
    rpo_bytes: int = 0
    backup_state: None = None
    pitr_sequence: None = None

    @classmethod
    def unstarted(cls, node_id: int, cluster_id: str) -> HaStatus:
        """The status of a node that was never started in this process."""
        return cls(
            is_running=False,
            is_primary=False,
            node_id=node_id,
            cluster_id=cluster_id,
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
        """Members of the cluster, this node among them."""
        return len(self.replicas)

    @property
    def quorum_size(self) -> int:
        """How many voters are a majority: as many must have a write before it is committed."""
        return sum(replica.is_voter for replica in self.replicas) // 2 + 1
