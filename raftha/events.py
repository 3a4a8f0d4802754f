"""What happens inside a node, as typed records.

`core` returns events in `Ready` and never logs; the runtime turns each into one log line.
"""

from __future__ import annotations

from dataclasses import dataclass

from raftha.types import Health


@dataclass(frozen=True, slots=True, kw_only=True)
class HaEvent:
    """The root of all events; `reporter` is the node that saw it.

    In what happens to one member, `node_id` is that member.
    """

    reporter: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleChanged(HaEvent):
    """This node became a follower, a candidate or the leader."""

    role: str
    term: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderElected(HaEvent):
    """This node learned who leads `term`."""

    leader: int
    term: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderLost(HaEvent):
    """This node no longer knows a leader.

    `reason` is timeout, disconnected, quorum, term, transfer or resigned.
    """

    leader: int
    term: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MembershipChanged(HaEvent):
    """The membership in this node's log is another one, as of entry `index`."""

    index: int
    voters: tuple[int, ...]
    learners: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CatchUpGivenUp(HaEvent):
    """A learner didn't catch up within the rounds it is given; it isn't made a voter."""

    node_id: int
    rounds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed(HaEvent):
    """This node learned that it is no longer a member."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaConnected(HaEvent):
    """A peer connected and is who it says."""

    node_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaDisconnected(HaEvent):
    """The connection to a peer is gone."""

    node_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaBehindLog(HaEvent):
    """A follower needs entries that this leader's log no longer holds."""

    node_id: int
    needs_index: int
    first_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotSent(HaEvent):
    """A follower that the log couldn't help has what came up to `index`, by an image of `size`."""

    node_id: int
    index: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotFailed(HaEvent):
    """An image could not be made, or not be received; it is tried again after a pause."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotInstalling(HaEvent):
    """An image as of `index` takes the place of this node's log and state; it is opened anew."""

    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageFailure(HaEvent):
    """The disk failed, or an invariant was broken; the node has stopped taking part."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageIsFull(HaEvent):
    """There is no space for more log, or for a checkpoint; writers here are refused meanwhile."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageHasSpace(HaEvent):
    """What had no space has been written; writers are served again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheckFailed(HaEvent):
    """A member didn't answer, or, of the reporter itself, its disk is slow.

    Said at the first failure, when it counts as unhealthy, and every `health_check_interval_sec`.
    """

    node_id: int
    consecutive_failures: int
    health: Health
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthRecovered(HaEvent):
    """Who counted as unhealthy is well again."""

    node_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointCompleted(HaEvent):
    """The write buffer is in LMDB, durable, as of `index` and `sequence`."""

    index: int
    sequence: int
    keys: int
    duration_ms: float
