"""Every error that raftha raises, in one tree. It splits by whether the operation happened.

`Rejected`: the operation did not happen and will not. `Indeterminate`: it may have happened; its
subclass `AcknowledgementTimeout` knows that it did. A call that returns has happened. The other
classes («—» in the reference) don't concern one operation: a wrong setting, a disk, a peer. `hint`,
which is part of the message, names the next step.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any


class RafthaError(Exception):
    """The root of all errors of raftha. `hint` says what to do next; "" if there is no advice."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(f"{message} ({hint})" if hint else message)
        self.hint = hint


class ConfigError(RafthaError):
    """A setting is wrong, or doesn't match the data directory."""


class UpgradeRequired(ConfigError):
    """This node doesn't support what the cluster's log uses. Nothing is lost: upgrade the node."""

    HINT = (
        "install a version of your program that supports it, and start this node again; "
        "nothing is lost, and the other members go on"
    )

    def __init__(self, message: str, *, hint: str = HINT) -> None:
        super().__init__(message, hint=hint)


class Rejected(RafthaError):
    """The operation did not happen and will not."""


class InvalidRequest(Rejected):
    """The request is wrong: for example, a value over its limit or an unknown command."""


class NotLeader(Rejected):
    """Only the leader can do this. `leader` is its id, or None if this node knows no leader."""

    def __init__(self, leader: int | None) -> None:
        where = f"node {leader} is" if leader is not None else "no leader is known"
        super().__init__(f"this node is not the leader; {where}")
        self.leader = leader


class Unavailable(Rejected):
    """No leader could be reached before the deadline, so the request never left this node."""


class Overloaded(Rejected):
    """A queue of this node is full. Nothing was queued; try again later."""


class CommandFailed(Rejected):
    """A command of the state machine raised; every replica rolled back its changes.

    `kind` is the name of the exception's class, and `detail` its message.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail


class Stopped(Rejected):
    """The node doesn't run, or it stopped before the request left it."""


class Forked(Rejected):
    """The node runs in the process that this one was forked from, and not in this one."""

    def __init__(self) -> None:
        super().__init__(
            "this process was forked after start(), and the node runs in the process it came from",
            hint="start raftha after the fork, with a data directory for each process",
        )


class MembershipChangePending(Rejected):
    """The previous membership change isn't committed yet. Members change one at a time."""


class UpgradePending(Rejected):
    """Not all members support this yet. `nodes` are the ids of those that don't, as far as known.

    Upgrade them. A member that doesn't answer counts as one that doesn't: start or remove it.
    """

    def __init__(self, message: str, nodes: tuple[int, ...] = (), *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.nodes = nodes


class BackupInProgress(Rejected):
    """A backup is running already, or a change that excludes backups. `backup_id` is its number."""

    def __init__(self, message: str, backup_id: int = 0, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.backup_id = backup_id


class BackupFailed(RafthaError):
    """The backup that the call waited for is in no destination. `backup_id` is its number."""

    def __init__(self, message: str, backup_id: int = 0, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.backup_id = backup_id


class RecoveryInProgress(Rejected):
    """A recovery to an earlier moment is under way. `recovery_id` is its number."""

    def __init__(self, message: str, recovery_id: int = 0, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.recovery_id = recovery_id


class RecoveryAborted(Rejected):
    """The recovery to an earlier moment was given up; nothing has changed.

    `recovery_id` is its number in `ha.pitr.list_recoveries()`; 0 if it hasn't begun.
    """

    def __init__(self, message: str, recovery_id: int = 0, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.recovery_id = recovery_id


class ReplicaTooSlow(Rejected):
    """A new node didn't catch up within its rounds. It stays a learner."""


class TransferFailed(Rejected):
    """Leadership did not move: the target can't be reached, or isn't a voter."""


class Indeterminate(RafthaError):
    """The operation may have happened. Read the state, or retry under the same session number."""


class SessionExpired(Indeterminate):
    """The session of this write has expired or was never opened; this try was not applied.

    If it was the first try of the write, the write did not happen. An earlier try may have been
    applied before the session expired.
    """


class RequestTimeout(Indeterminate):
    """The deadline passed after the request had left this node, without an outcome."""


class AcknowledgementTimeout(Indeterminate):
    """The write is committed, but fewer replicas than requested acknowledged it in time.

    It is an Indeterminate because it is unknown whether the other replicas have the write on disk.
    The write itself happened and stays, so don't send it again: that would be a second write. (A
    write that a client sends with `once` may be repeated.)

    `receipt` is the write's `Receipt`; for a group of `submit_once`, its outcome; None if the error
    comes from a server. `missing` are the ids of the voters that had not acknowledged the write.
    """

    def __init__(
        self, message: str, receipt: Any = None, missing: tuple[int, ...] = (), *, hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.receipt = receipt
        self.missing = missing


class Disconnected(Indeterminate):
    """The connection or the node ended while the request was under way."""


class StorageError(RafthaError):
    """The disk, or the data on it, has failed."""


class StorageFailed(StorageError):
    """A write or sync failed. The node stops for good, since the disk's contents are unknown."""


class StorageFull(StorageError, Rejected):
    """The disk has no space for more log. Nothing was queued. Writes resume once there is space."""


class Corrupt(StorageError):
    """Durable bytes have changed: `path` at byte `offset`. `detail` says what is wrong."""

    HINT = "acknowledged data is damaged; keep the files, and replace this node by a new one"

    def __init__(self, path: str | Path, offset: int, detail: str, *, hint: str = HINT) -> None:
        super().__init__(f"{path} is corrupt at byte {offset}: {detail}", hint=hint)
        self.path = Path(path)
        self.offset = offset
        self.detail = detail


class Compacted(StorageError):
    """The log no longer holds entry `index`; it starts at `first_index`."""

    def __init__(self, index: int, first_index: int) -> None:
        super().__init__(f"entry {index} is compacted; the log starts at {first_index}")
        self.index = index
        self.first_index = first_index


class RepositoryError(RafthaError):
    """A backup repository, or an object in it, is not as it should be.

    `destination` is the configured name of the destination, and `object` the object's name; either
    is "" if the error doesn't concern one.
    """

    def __init__(
        self, message: str, *, destination: str = "", object_name: str = "", hint: str = ""
    ) -> None:
        where = "".join(f"{part}: " for part in (destination, object_name) if part)
        super().__init__(where + message, hint=hint)
        self.destination = destination
        self.object = object_name


class RepositoryUnavailable(RepositoryError):
    """A destination can't be reached or failed. A write may have happened; it can be repeated."""


class ObjectExists(RepositoryError):
    """An object of this name exists, or its store said so. Objects are never replaced."""


class ObjectMissing(RepositoryError):
    """There is no object of this name."""


class ObjectTooLarge(RepositoryError):
    """The object is larger than the reader's limit. It was not read."""


class DeletionDenied(RepositoryError):
    """The destination keeps the object, for example because of an object lock."""


class RepositoryConflict(RepositoryError):
    """Different bytes under one name, or two repositories in one place: another cluster writes."""


class BackupDamaged(RepositoryError):
    """The object's bytes are not those that were written, or were written for another object."""


class KeyMissing(RepositoryError):
    """No key at hand opens this. `key_id` names the data key; "" if none is known."""

    def __init__(
        self,
        message: str,
        key_id: str = "",
        *,
        destination: str = "",
        object_name: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(message, destination=destination, object_name=object_name, hint=hint)
        self.key_id = key_id


class ChainBroken(RepositoryError):
    """A backup needs another one, or an object, that is not there. `label` names the backup."""

    def __init__(
        self,
        message: str,
        label: str = "",
        *,
        destination: str = "",
        object_name: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(message, destination=destination, object_name=object_name, hint=hint)
        self.label = label


class TargetUnreachable(RepositoryError):
    """No backup holds the state that was asked for.

    `earliest` and `latest` are the times between which there is one; None if there is none at all.
    """

    def __init__(
        self,
        message: str,
        *,
        earliest: datetime | None = None,
        latest: datetime | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.earliest = earliest
        self.latest = latest


class ArchiveGap(RepositoryError):
    """The log in the repository lacks the entries `first` to `last`, which the target needs."""

    def __init__(self, message: str, first: int, last: int, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.first = first
        self.last = last


class SeveralLineages(RepositoryError):
    """Several histories fit: clusters that don't continue each other wrote to one place.

    `lineages` are their ids. Name the one that you mean.
    """

    def __init__(self, message: str, lineages: tuple[str, ...]) -> None:
        super().__init__(message, hint="name one with --lineage")
        self.lineages = lineages


class WireError(RafthaError):
    """A peer sent bytes that break the protocol. The connection is closed."""


class LocalClusterError(RafthaError):
    """A node process of a `LocalCluster` failed, or did not do what was asked in time."""
