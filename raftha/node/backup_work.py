"""The work that backups are, as a node asks its host to do it: reading, writing and listing.

The real one is `raftha/runtime/backup_thread.py`, the simulated one `tests/sim/backups.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from raftha.recovery import DrillReport
from raftha.storage.backup.archive import ArchiveOrder, ArchiveResult
from raftha.storage.backup.drill import DrillOrder
from raftha.storage.state.catalog import BackupRecord
from raftha.types import BackupState


class BackupOrder(NamedTuple):
    """A backup to take. `record` is what the catalog says of it, `parent` of the one before.

    `forked_from`: the newest complete backup of the lineage before this one, if there is one: the
    history that this one forked from has it.
    """

    record: BackupRecord
    parent: BackupRecord | None
    forked_from: BackupRecord | None = None


class BackupProgress(NamedTuple):
    """How far a backup is; the total is an estimate until all is read."""

    state: BackupState
    done_bytes: int
    total_bytes: int


class TakenBackup(NamedTuple):
    """What came of an order: `error`, or what was taken, as in `BackupRecord`.

    `destinations` have it, verified; `errors` say why the others don't, as "name: error".
    """

    error: str
    destinations: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    position_index: int = 0
    position_sequence: int = 0
    position_us: int = 0
    keys: int = 0
    size_bytes: int = 0
    size_compressed: int = 0
    digest: str = ""
    manifest: bytes = b""
    verify_level: int = 0


class Listing(NamedTuple):
    """What the destinations hold of one lineage.

    `errors`: why a destination could not be listed, by name; nothing is known of it. `found`: where
    each complete backup is, by id. `lost`: why one that should be in a destination isn't, by id and
    destination. `adoptable`: complete backups that the catalog doesn't know, or calls failed.
    `leftovers`: what is there of backups without a manifest, as failed ones.
    """

    errors: Mapping[str, str]
    found: Mapping[int, tuple[str, ...]]
    lost: Mapping[tuple[int, str], str]
    adoptable: tuple[BackupRecord, ...]
    leftovers: tuple[BackupRecord, ...]


class Deletion(NamedTuple):
    """What came of deleting backups, by id and destination.

    `gone`: nothing of it is left there. `refused`: why a destination doesn't let it be deleted.
    What is in neither couldn't be tried.
    """

    gone: frozenset[tuple[int, str]]
    refused: Mapping[tuple[int, str], str]


class ArchiveWork(Protocol):
    """Archives the log, in the background. Results come as calls on the node's thread.

    At most one `put` and one `tidy` at a time are asked for each destination.
    """

    def put(
        self, destination: str, order: ArchiveOrder, done: Callable[[ArchiveResult], None]
    ) -> None:
        """Put what is committed and not there yet."""
        ...

    def tidy(
        self, destination: str, order: ArchiveOrder, done: Callable[[ArchiveResult], None]
    ) -> None:
        """Merge segments, and delete those that have been replaced or that the window left."""
        ...


class DrillWork(Protocol):
    """Restores moments for proof, in the background. Results come as calls on the node's thread.

    One call at a time is asked for.
    """

    def last(self, lineage: str, done: Callable[[DrillReport | None], None]) -> None:
        """Find the last report of a lineage in the repository."""
        ...

    def run(self, order: DrillOrder, done: Callable[[DrillReport], None]) -> None:
        """Restore a moment, and put the report into the repository."""
        ...


class BackupWork(Protocol):
    """Does the work of backups, in the background. Results come as calls on the node's thread.

    At most one backup, and one listing or deletion at a time are asked for.
    """

    @property
    def archive(self) -> ArchiveWork:
        """Archives the log; only if the settings have point-in-time recovery."""
        ...

    @property
    def drills(self) -> DrillWork:
        """Restores moments for proof; only if the settings have point-in-time recovery."""
        ...

    @property
    def spool_index(self) -> int | None:
        """The entry since which this node has recorded all changes; None if it records none."""
        ...

    def take(
        self,
        order: BackupOrder,
        on_progress: Callable[[BackupProgress], None],
        done: Callable[[TakenBackup], None],
    ) -> None:
        """Take a backup of the state as of a checkpoint at or after the order's id."""
        ...

    def cancel(self) -> None:
        """Give up the backup that is being taken, if there is one; `done` isn't called."""
        ...

    def list(
        self, lineage: str, known: Sequence[BackupRecord], done: Callable[[Listing], None]
    ) -> None:
        """List what all destinations hold of this lineage, and compare it with the catalog."""
        ...

    def delete(
        self, wanted: Mapping[str, Sequence[BackupRecord]], done: Callable[[Deletion], None]
    ) -> None:
        """Delete all objects of retired backups, in this order from each destination."""
        ...


class NoBackupWork:
    """The `BackupWork` of a node whose settings have no backups: nothing is asked of it."""

    spool_index = None

    @property
    def archive(self) -> ArchiveWork:
        raise AssertionError("a node without settings for backups archives nothing")

    @property
    def drills(self) -> DrillWork:
        raise AssertionError("a node without settings for backups restores nothing for proof")

    def take(
        self,
        order: BackupOrder,
        on_progress: Callable[[BackupProgress], None],
        done: Callable[[TakenBackup], None],
    ) -> None:
        raise AssertionError("no backup begins on a node without settings for backups")

    def cancel(self) -> None:
        raise AssertionError("no backup is being taken")

    def list(
        self, lineage: str, known: Sequence[BackupRecord], done: Callable[[Listing], None]
    ) -> None:
        raise AssertionError("a leader without settings for backups lists nothing")

    def delete(
        self, wanted: Mapping[str, Sequence[BackupRecord]], done: Callable[[Deletion], None]
    ) -> None:
        raise AssertionError("a leader without settings for backups deletes nothing")
