"""Events of the recovery to a moment. A `sequence` is that of the last command of the moment.

`recovery_id` is the number of a recovery, as in `raftha.RecoveryResult`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from raftha.events.base import EventKind, HaEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class PitrCheckpoint(HaEvent):
    """A recovery point: the cluster can be taken back to entry `index`, of time `log_time_us`.

    `is_consistent`: the states of a majority were compared as of it, and were the same.
    """

    kind: ClassVar[EventKind] = EventKind.PITR_CHECKPOINT
    index: int
    sequence: int
    log_time_us: int
    is_consistent: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryStarted(HaEvent):
    """The cluster prepares to go back to command `to_sequence`, of time `log_time_us`.

    `recovery_id`: as in `ha.pitr.list_recoveries()`. `request`: what was asked for. The members
    build the state of then beside their own, and nothing else has changed yet.
    """

    kind: ClassVar[EventKind] = EventKind.RECOVERY_STARTED
    recovery_id: int
    to_sequence: int
    log_time_us: int
    request: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryPrepared(HaEvent):
    """The members `nodes`, a majority, have built the state of then, with one digest.

    The leader reports it, and has writes wait until the log is in a destination.
    """

    kind: ClassVar[EventKind] = EventKind.RECOVERY_PREPARED
    recovery_id: int
    digest: str
    nodes: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryCompleted(HaEvent):
    """The cluster was taken back: behind command `sequence`, the state is that of `to_sequence`.

    `undone`: how many commands that took back. `digest`: of the restored contents. `duration_ms`:
    by log time, since it started. Reported again by a node that is restarted soon after.
    """

    kind: ClassVar[EventKind] = EventKind.RECOVERY_COMPLETED
    recovery_id: int
    to_sequence: int
    sequence: int
    undone: int
    digest: str
    duration_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryFailed(HaEvent):
    """A recovery was given up; nothing has changed."""

    kind: ClassVar[EventKind] = EventKind.RECOVERY_FAILED
    recovery_id: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreDrillCompleted(HaEvent):
    """This node has restored a moment for proof, and thrown it away again.

    `is_ok`: the moment was restored, and all digests on the way were equal. `sequence`: its last
    command. `restore_s`, `replay_s`: reading backups, and applying log; together a restore takes
    that long on this machine. `error`: what was wrong.
    """

    kind: ClassVar[EventKind] = EventKind.RESTORE_DRILL_COMPLETED
    is_ok: bool
    sequence: int
    restore_s: float
    replay_s: float
    error: str = ""
