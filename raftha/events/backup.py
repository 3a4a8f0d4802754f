"""Events of backups. `backup_id` is the number of the backup, as in `raftha.BackupResult`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from raftha.events.base import EventKind, HaEvent
from raftha.types import BackupMode, BackupState


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupStarted(HaEvent):
    """A backup has begun: member `node_id` takes it.

    `mode` is what was asked for, or is due; `BackupCompleted` has the mode that it got.
    """

    kind: ClassVar[EventKind] = EventKind.BACKUP_STARTED
    backup_id: int
    label: str
    mode: BackupMode
    node_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupProgress(HaEvent):
    """The backup that this node takes has entered `state`, or has got a tenth further.

    `done_bytes` of `total_bytes` are uploaded, before compression; the total is an estimate until
    all is read.
    """

    kind: ClassVar[EventKind] = EventKind.BACKUP_PROGRESS
    backup_id: int
    state: BackupState
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadStarted(HaEvent):
    """This node begins to upload a backup to `destination`."""

    kind: ClassVar[EventKind] = EventKind.UPLOAD_STARTED
    backup_id: int
    destination: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadCompleted(HaEvent):
    """All objects of a backup are in `destination`; they are not verified yet."""

    kind: ClassVar[EventKind] = EventKind.UPLOAD_COMPLETED
    backup_id: int
    destination: str
    size_bytes: int
    duration_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationPassed(HaEvent):
    """A backup was verified in `destination`, at `level` as in `BackupConfig.verify_level`."""

    kind: ClassVar[EventKind] = EventKind.VERIFICATION_PASSED
    backup_id: int
    destination: str
    level: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationFailed(HaEvent):
    """A backup in `destination` is not what was uploaded; it doesn't count there."""

    kind: ClassVar[EventKind] = EventKind.VERIFICATION_FAILED
    backup_id: int
    destination: str
    level: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupCompleted(HaEvent):
    """A backup is verified in at least one destination.

    `destinations`: those that have it. `errors`: "name: error" for those that don't. `size_bytes`,
    `size_compressed`: before and after compression.
    """

    kind: ClassVar[EventKind] = EventKind.BACKUP_COMPLETED
    backup_id: int
    mode: BackupMode
    sequence: int
    size_bytes: int
    size_compressed: int
    duration_ms: float
    destinations: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupFailure(HaEvent):
    """A backup is in no destination, or its taker has died. Another member tries again."""

    kind: ClassVar[EventKind] = EventKind.BACKUP_FAILED
    backup_id: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupMissing(HaEvent):
    """`destination` has lost a complete backup, or an object of it."""

    kind: ClassVar[EventKind] = EventKind.BACKUP_MISSING
    backup_id: int
    destination: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionApplied(HaEvent):
    """Backups that no rule keeps have been deleted. `freed_bytes`: their size, compressed."""

    kind: ClassVar[EventKind] = EventKind.RETENTION_APPLIED
    deleted: tuple[int, ...]
    freed_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionRefused(HaEvent):
    """`destination` doesn't let a backup be deleted, because of an object lock for example.

    The backup stays retired, and the deletion is tried again each day.
    """

    kind: ClassVar[EventKind] = EventKind.RETENTION_REFUSED
    backup_id: int
    destination: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryConflicted(HaEvent):
    """`destination` holds other bytes under the name of an object of ours. Nothing is overwritten.

    Another cluster writes under the same prefix, or someone has changed the object.
    """

    kind: ClassVar[EventKind] = EventKind.REPOSITORY_CONFLICT
    destination: str
    object_name: str
    reason: str
