"""Events of the archive of the log. `sequence` is that of the last command in a destination."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from raftha.events.base import EventKind, HaEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveLagging(HaEvent):
    """The oldest command that is in no destination is `rpo_ms` old: more than it should ever be.

    `reason`: the error of a destination, "" if none has reported one.
    """

    kind: ClassVar[EventKind] = EventKind.ARCHIVE_LAGGING
    rpo_ms: int
    sequence: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveResumed(HaEvent):
    """The archive lags no more."""

    kind: ClassVar[EventKind] = EventKind.ARCHIVE_RESUMED
    rpo_ms: int
    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveGapRecorded(HaEvent):
    """No member had these entries any more when they were to be archived.

    No recovery leads to a moment between them. A backup begins at once, so that one leads to
    all later moments.
    """

    kind: ClassVar[EventKind] = EventKind.ARCHIVE_GAP
    first_index: int
    last_index: int
