"""The blocking work of backups over a repository: what a node asks of its `BackupWork`.

Theory of operation. `take` has the backup that the catalog names taken (`storage/backup/take.py`).
`list` compares what the destinations hold with the catalog, and `delete` empties folders. They
block, and know no thread and no clock but what they are given: threads call them in a node
(`backup_thread.py`), and the simulator in virtual time.

A destination fails alone: what can't be reached is reported, and nothing is concluded from it. An
object counts as lost only if the listing lacks it and a read says so too, since listings may be
late. A backup that the catalog doesn't have counts only once all of it was read back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from raftha.config.backup import BackupConfig
from raftha.errors import (
    BackupDamaged,
    BackupFailed,
    DeletionDenied,
    ObjectMissing,
    RafthaError,
    RepositoryError,
    RepositoryUnavailable,
)
from raftha.node.backup_work import BackupOrder, Deletion, Listing, TakenBackup
from raftha.storage.backup import names
from raftha.storage.backup.chain import Shelf, find_manifest
from raftha.storage.backup.destination import Destination, ObjectInfo
from raftha.storage.backup.manifest import StoredManifest, load_manifest
from raftha.storage.backup.repository import Repository
from raftha.storage.backup.repository_records import LineageRecord, get_document
from raftha.storage.backup.source import Source
from raftha.storage.backup.take import TakeHooks, TakeOrder, take
from raftha.storage.backup.uploads import BackupCancelled, Waits
from raftha.storage.backup.verify import Verified, read_verified, verify_in, write_verified
from raftha.storage.state.catalog import (
    COMPLETED,
    FAILED,
    MISSING,
    RETIRED,
    BackupRecord,
)

MANIFESTS_MAX = 1000
"""Manifests whose objects are remembered, so that each is read once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Whose backups these are: what manifests say of the node."""

    node_id: int
    cluster_name: str
    machine: str = ""
    commands: tuple[str, ...] = ()


@dataclass(slots=True)
class _Folder:
    """What a destination lists of one backup."""

    sizes: dict[str, int]
    has_manifest: bool = False


class BackupJobs:
    """The work of one node. One caller at a time for each method."""

    def __init__(
        self,
        config: BackupConfig,
        owner: Owner,
        source: Source,
        opened: Callable[[], Repository],
        *,
        on_error: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        """`opened` returns the repository, which it opens at the first call.

        `on_error` gets each error that ends a job.
        """
        self._on_error = on_error
        self._config = config
        self._owner = owner
        self._source = source
        self._opened = opened
        self._objects: dict[str, dict[str, int]] = {}
        """Names and sizes of the objects of complete backups, by their manifests' hashes."""

    # ---------------------------------------------------------------- taking

    def take(self, order: BackupOrder, hooks: TakeHooks) -> TakenBackup:
        """Take a backup; all errors of raftha are in the result."""
        record = order.record
        try:
            repository = self._opened()
            repository.retry_failed()
            repository.refresh_keys()
            _check_is_new(repository, record)
            self._describe_lineage(repository, order)
            parent = self._parent(repository, order)
            taken = take(self._take_order(record, parent), self._source, repository, hooks)
        except RafthaError as error:
            self._on_error(error)
            return TakenBackup(str(error) or type(error).__name__)
        manifest, position = taken.manifest, taken.manifest.position
        return TakenBackup(
            error="",
            destinations=tuple(sorted(taken.completed)),
            errors=tuple(f"{name}: {error}" for name, error in sorted(taken.errors.items())),
            position_index=position.index,
            position_sequence=position.last_sequence,
            position_us=position.time_us,
            keys=manifest.keys,
            size_bytes=manifest.size_bytes,
            size_compressed=manifest.size_compressed,
            digest=manifest.digest,
            manifest=bytes.fromhex(taken.manifest_sha256),
            verify_level=self._config.verify_level,
        )

    def _take_order(self, record: BackupRecord, parent: StoredManifest | None) -> TakeOrder:
        config = self._config
        return TakeOrder(
            id=record.id,
            label=record.label,
            mode=record.mode,
            lineage=record.lineage,
            node=self._owner.node_id,
            started_us=record.began_us,
            destinations=record.destinations,
            parent=parent,
            level=config.compression_level if config.compression else 0,
            retry_s=config.retry_s,
            verify_level=config.verify_level,
            machine=self._owner.machine,
            commands=self._owner.commands,
        )

    def _parent(self, repository: Repository, order: BackupOrder) -> StoredManifest | None:
        """The manifest of the parent, which must be the one that the catalog knows."""
        if order.parent is None:
            return None
        shelf = Shelf(repository.destinations, repository.id, repository.keys)
        stored = find_manifest(shelf, order.parent.lineage, order.parent.label)
        if bytes.fromhex(stored.sha256) != order.parent.manifest:
            raise BackupDamaged(
                "the log says that it is another one",
                object_name=names.manifest_name(order.parent.lineage, order.parent.label),
                hint="it was replaced; the next backup must be a full one",
            )
        return stored

    def _describe_lineage(self, repository: Repository, order: BackupOrder) -> None:
        """Say whose lineage this is, where nothing says so yet. The backup doesn't depend on it.

        A restore says where it forks from. After a fork by `recover-quorum` only the catalog knows:
        the backups of the lineage before, up to its newest one, are of this history too.
        """
        record, before = order.record, order.forked_from
        described = LineageRecord(
            lineage=record.lineage,
            parent="" if before is None else before.lineage,
            fork_index=0 if before is None else before.position_index,
            fork_sequence=0 if before is None else before.position_sequence,
            fork_hash="",
            reason="" if before is None else "fork",
            cluster_name=self._owner.cluster_name,
            created_us=record.began_us,
        )
        name = names.lineage_name(record.lineage)
        for destination in repository.destinations.values():
            with contextlib.suppress(RepositoryError):
                try:
                    get_document(destination, name)
                except ObjectMissing:
                    destination.create(name, described.encode())

    # ---------------------------------------------------------------- listing

    def list(self, lineage: str, known: Sequence[BackupRecord], waits: Waits) -> Listing:
        """Compare what the destinations hold with what the catalog says of this lineage.

        BackupCancelled once that is no longer wanted.
        """
        try:
            repository = self._opened()
            repository.retry_failed()
            repository.refresh_keys()
        except RafthaError as error:
            self._on_error(error)
            return _nothing(dict.fromkeys(self._config.destinations, str(error)))
        listing = _Listing(self, repository, lineage, known, waits)
        return listing.make()

    def objects_of(self, stored: StoredManifest) -> dict[str, int]:
        """Names and sizes of the objects that a manifest names."""
        found = {
            stored.manifest.run_name(number): facts.size
            for number, facts in enumerate(stored.manifest.runs)
        }
        if len(self._objects) >= MANIFESTS_MAX:
            self._objects.clear()
        self._objects[stored.sha256] = found
        return found

    def known_objects(self, sha256: str) -> dict[str, int] | None:
        """The same for a manifest that was read before."""
        return self._objects.get(sha256)

    @property
    def verify_level(self) -> int:
        """How backups are verified."""
        return self._config.verify_level

    @property
    def owner(self) -> Owner:
        """Whose backups these are."""
        return self._owner

    @property
    def retry_s(self) -> float:
        """How long a put is tried."""
        return self._config.retry_s

    # ---------------------------------------------------------------- deletion

    def delete(
        self,
        wanted: Mapping[str, Sequence[BackupRecord]],
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> Deletion:
        """Delete all objects of retired backups, in this order from each destination.

        BackupCancelled, between two of them, once that is no longer wanted.
        """
        gone: set[tuple[int, str]] = set()
        refused: dict[tuple[int, str], str] = {}
        try:
            repository = self._opened()
            repository.retry_failed()
        except RafthaError as error:
            self._on_error(error)
            return Deletion(frozenset(), {})
        for name, records in wanted.items():
            destination = repository.destinations.get(name)
            if destination is None:
                continue
            for record in records:
                assert record.state == RETIRED, "nothing is deleted before it is retired"
                try:
                    _empty(destination, record, is_wanted)
                except DeletionDenied as error:
                    refused[record.id, name] = str(error)
                except RepositoryUnavailable:
                    break  # Its parents come after it, and it may still be there.
                except RepositoryError as error:
                    refused[record.id, name] = str(error)
                else:
                    gone.add((record.id, name))
        return Deletion(frozenset(gone), refused)


def _check_is_new(repository: Repository, record: BackupRecord) -> None:
    """BackupFailed if there are objects of this backup already.

    A node that was started again, and doesn't know yet how far the log goes, may take for new what
    it has begun, or even completed, in an earlier life. Other bytes under the same names would make
    a complete backup another one, in a store that ignores conditions.
    """
    for name in record.destinations:
        destination = repository.destinations.get(name)
        with contextlib.suppress(RepositoryUnavailable):  # It fails when something is put there.
            if destination and destination.list(names.backup_folder(record.lineage, record.label)):
                raise BackupFailed(f"it was begun before: {name} has objects of it", record.id)


def _empty(destination: Destination, record: BackupRecord, is_wanted: Callable[[], bool]) -> None:
    """Delete all objects of a backup, its manifest first: without it the others are none.

    The two with a known name go also if they aren't listed: a listing may be late.
    """
    folder = names.backup_folder(record.lineage, record.label)
    found = [info.name for info in destination.list(folder)]
    named = [
        make(record.lineage, record.label) for make in (names.manifest_name, names.verified_name)
    ]
    for name in (*named, *(name for name in found if name not in named)):
        if not is_wanted():
            raise BackupCancelled("the deletion is no longer wanted")
        destination.delete(name)
    if destination.list(folder):
        raise RepositoryUnavailable(
            "deleted objects are still listed", destination=destination.name, object_name=folder
        )


class _Listing:
    """One comparison of the destinations with the catalog."""

    def __init__(
        self,
        jobs: BackupJobs,
        repository: Repository,
        lineage: str,
        known: Sequence[BackupRecord],
        waits: Waits,
    ) -> None:
        self._jobs = jobs
        self._repository = repository
        self._lineage = lineage
        self._known = {record.id: record for record in known}
        self._waits = waits
        self._errors = {name: str(error) for name, error in repository.failed.items()}
        self._folders: dict[str, dict[str, _Folder]] = {}
        """What there is, by destination and label."""
        self._found: dict[int, list[str]] = {}
        self._lost: dict[tuple[int, str], str] = {}
        self._adoptable: list[BackupRecord] = []
        self._leftovers: list[BackupRecord] = []

    def make(self) -> Listing:
        """List everything, and compare."""
        for name, destination in self._repository.destinations.items():
            with self._noting(name):
                self._folders[name] = _folders(destination, self._lineage)
        for record in self._known.values():
            if record.state in (COMPLETED, MISSING):
                self._find(record)
        labels = {label for folders in self._folders.values() for label in folders}
        for label in sorted(labels):
            known = self._known.get(names.parse_label(label).begin_index)
            if known is None or (known.state == FAILED and known.label == label):
                self._adopt(label, known)
        return Listing(
            errors=self._errors,
            found={i: tuple(where) for i, where in self._found.items()},
            lost=self._lost,
            adoptable=tuple(self._adoptable),
            leftovers=tuple(self._leftovers),
        )

    @contextlib.contextmanager
    def _noting(self, name: str) -> Iterator[None]:
        """A destination that fails is left out from here on."""
        if not self._waits.is_wanted():
            raise BackupCancelled("the listing is no longer wanted")
        try:
            yield
        except RepositoryError as error:
            self._errors[name] = str(error)
            self._folders.pop(name, None)

    def _listed(self) -> list[tuple[str, Destination]]:
        return [(name, self._repository.destinations[name]) for name in self._folders]

    # ---------------------------------------------------------------- known backups

    def _find(self, record: BackupRecord) -> None:
        """Find out which destinations have a backup that the catalog calls complete."""
        for name, destination in self._listed():
            with self._noting(name):
                try:
                    self._check(destination, record, is_expected=name in record.destinations)
                except RepositoryUnavailable:
                    raise
                except RepositoryError as error:
                    if name in record.destinations:
                        self._lost[record.id, name] = str(error)
                else:
                    self._found.setdefault(record.id, []).append(name)

    def _check(self, destination: Destination, record: BackupRecord, *, is_expected: bool) -> None:
        """RepositoryError unless the destination has all of it, verified."""
        folder = self._folders[destination.name].get(record.label, _Folder({}))
        sha256 = record.manifest.hex()
        manifest_name = names.manifest_name(record.lineage, record.label)
        objects = self._jobs.known_objects(sha256)
        if objects is None or not folder.has_manifest:
            stored = self._load(destination, record.label)
            if stored.sha256 != sha256:
                raise BackupDamaged(
                    "its manifest is another one than the log says",
                    destination=destination.name,
                    object_name=manifest_name,
                )
            objects = self._jobs.objects_of(stored)
        _check_there(destination, folder, objects)
        if not is_expected and not self._is_verified(destination, record.label, sha256):
            self._verify(destination, record.label, sha256)

    def _load(self, destination: Destination, label: str) -> StoredManifest:
        repository = self._repository
        return load_manifest(destination, self._lineage, label, repository.id, repository.keys)

    def _is_verified(self, destination: Destination, label: str, sha256: str) -> bool:
        verified = read_verified(destination, self._lineage, label)
        return verified is not None and verified.manifest_sha256 == sha256

    def _verify(self, destination: Destination, label: str, sha256: str) -> None:
        """Read a backup back, and record that it is sound."""
        level = self._jobs.verify_level
        lineage = self._lineage
        report = verify_in(destination, self._repository, lineage, label, level, self._waits)
        for finding in report.findings:
            raise finding
        node, now_us = self._jobs.owner.node_id, 0
        verified = Verified(label, sha256, level, report.digest, node, now_us)
        write_verified(destination, lineage, verified, self._waits, self._jobs.retry_s)

    # ---------------------------------------------------------------- unknown ones

    def _adopt(self, label: str, known: BackupRecord | None) -> None:
        """See whether what is there of a backup is all of it."""
        found: tuple[StoredManifest, list[str]] | None = None
        for name, destination in self._listed():
            folder = self._folders[name].get(label)
            if folder is None or not folder.has_manifest:
                continue
            with self._noting(name), contextlib.suppress(BackupDamaged, ObjectMissing):
                stored = self._load(destination, label)
                if found is not None and stored.sha256 != found[0].sha256:
                    continue
                if not self._fits(stored):
                    continue
                _check_there(destination, folder, self._jobs.objects_of(stored))
                if not self._is_verified(destination, label, stored.sha256):
                    self._verify(destination, label, stored.sha256)
                found = stored, [*(found[1] if found else []), name]
        if found is not None:
            self._adoptable.append(_adopted(label, *found, known))
        elif known is None:
            self._leftovers.append(self._leftover(label))

    def _fits(self, stored: StoredManifest) -> bool:
        """Whether its parent is the one that the catalog knows."""
        if not stored.manifest.parent_label:
            return True
        parent = self._known.get(stored.manifest.parent)
        return (
            parent is not None
            and parent.state == COMPLETED
            and parent.label == stored.manifest.parent_label
            and parent.manifest.hex() == stored.manifest.parent_sha256
        )

    def _leftover(self, label: str) -> BackupRecord:
        read = names.parse_label(label)
        where = (name for name, folders in self._folders.items() if label in folders)
        return BackupRecord(
            id=read.begin_index,
            mode=_MODES[read.mode],
            parent=0,
            base=0,
            lineage=self._lineage,
            node=0,
            state=FAILED,
            destinations=tuple(sorted(where)),
            began_us=read.time_us,
            error="there is no manifest that fits",
        )


_MODES = {"F": "full", "I": "incremental", "D": "differential"}


def _nothing(errors: Mapping[str, str]) -> Listing:
    return Listing(errors, {}, {}, (), ())


def _folders(destination: Destination, lineage: str) -> dict[str, _Folder]:
    """What a destination has of each backup of a lineage, by label."""
    found: dict[str, _Folder] = {}
    for info in destination.list(names.backups_folder(lineage)):
        _sort_in(found, info)
    return found


def _sort_in(found: dict[str, _Folder], info: ObjectInfo) -> None:
    try:
        named = names.parse_backup_object(info.name)
    except ValueError:
        return  # Not ours.
    folder = found.setdefault(named.label, _Folder({}))
    if named.part == "manifest":
        folder.has_manifest = True
    elif named.part != "verified":
        folder.sizes[info.name] = info.size


def _check_there(destination: Destination, folder: _Folder, objects: Mapping[str, int]) -> None:
    """RepositoryError unless all objects of a backup are there, with their sizes."""
    for name, size in objects.items():
        if name not in folder.sizes:
            destination.get_range(name, 0, 1)  # The listing may be late.
        elif folder.sizes[name] != size:
            raise BackupDamaged(
                f"it has {folder.sizes[name]} bytes, not {size}",
                destination=destination.name,
                object_name=name,
            )


def _adopted(
    label: str, stored: StoredManifest, where: list[str], known: BackupRecord | None
) -> BackupRecord:
    manifest, read = stored.manifest, names.parse_label(label)
    is_same_second = manifest.started_us // 1_000_000 == read.time_us // 1_000_000
    return BackupRecord(
        id=manifest.id,
        mode=manifest.mode,
        parent=manifest.parent,
        base=manifest.base,
        lineage=manifest.lineage,
        node=manifest.node,
        state=COMPLETED,
        destinations=tuple(sorted(where)),
        began_us=manifest.started_us if is_same_second else read.time_us,
        ended_us=manifest.finished_us,
        position_index=manifest.position.index,
        position_sequence=manifest.position.last_sequence,
        position_us=manifest.position.time_us,
        keys=manifest.keys,
        size_bytes=manifest.size_bytes,
        size_compressed=manifest.size_compressed,
        digest=manifest.digest,
        manifest=bytes.fromhex(stored.sha256),
        verify_level=1,
        reason=known.reason if known is not None else "",
    )
