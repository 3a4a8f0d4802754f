"""Events of the recovery to a moment. A `sequence` is that of the last command of the moment."""

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
