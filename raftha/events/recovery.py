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
    """The cluster prepares to go back to `to_sequence`, of time `log_time_us`; `request` says why.

    All members build the state of then, beside the present one. Nothing has changed yet.
    """

    kind: ClassVar[EventKind] = EventKind.RECOVERY_STARTED
    recovery_id: int
    to_sequence: int
    log_time_us: int
    request: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryPrepared(HaEvent):
    """A majority is ready to go back, and all that are ready (`nodes`) have the same `digest`."""

    kind: ClassVar[EventKind] = EventKind.RECOVERY_PREPARED
    recovery_id: int
    digest: str
    nodes: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryCompleted(HaEvent):
    """This node has gone back: from `sequence` on, its state is that of `to_sequence`.

    `undone` commands were taken back. Reported again if the node is restarted soon after.
    """

    kind: ClassVar[EventKind] = EventKind.RECOVERY_COMPLETED
    recovery_id: int
    sequence: int
    to_sequence: int
    undone: int
    digest: str
    duration_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryFailed(HaEvent):
    """A recovery was given up, and nothing has changed."""

    kind: ClassVar[EventKind] = EventKind.RECOVERY_FAILED
    recovery_id: int
    reason: str
