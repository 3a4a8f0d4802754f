"""What a repository holds, without the cluster that wrote it: its backups and their histories."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from raftha.errors import RepositoryError
from raftha.storage.backup.chain import Shelf, find_manifest
from raftha.storage.backup.manifest import Manifest
from raftha.storage.backup.plan import Fork, Listed, find, listed_in
from raftha.storage.backup.repository import Repository
from raftha.storage.backup.repository_records import LineageRecord
from raftha.storage.backup.restore_plan import RestorePlan
from raftha.types import BackupMode, BackupResult, BackupState


class Shelves(NamedTuple):
    """The backups of a repository, in order, and the destinations that could not be listed."""

    backups: tuple[Listed, ...]
    places: Mapping[tuple[str, str], tuple[str, ...]]
    """The destinations of each, by lineage and label."""
    forks: Mapping[str, Fork]
    errors: Mapping[str, str]

    def find(self, label: str = "", *, at_us: int | None = None, lineage: str = "") -> Listed:
        """Choose a backup, as `plan.find`."""
        return find(self.backups, self.forks, label=label, at_us=at_us, lineage=lineage)


def list_shelves(repository: Repository) -> Shelves:
    """List all destinations; one LIST for each. RepositoryError if none can be listed."""
    errors = {name: str(error) for name, error in repository.failed.items()}
    found: dict[tuple[str, str], Listed] = {}
    places: dict[tuple[str, str], tuple[str, ...]] = {}
    failures: list[RepositoryError] = []
    for name, destination in repository.destinations.items():
        try:
            listed = listed_in(info.name for info in destination.list(""))
        except RepositoryError as error:
            errors[name] = str(error)
            failures.append(error)
            continue
        for each in listed:
            key = each.lineage, each.label
            known = found.get(key, each)
            found[key] = each._replace(is_verified=each.is_verified or known.is_verified)
            places[key] = (*places.get(key, ()), name)
    if len(failures) == len(repository.destinations):
        raise failures[0]
    forks: dict[str, Fork] = {}
    try:
        for lineage, record in repository.read_lineages().items():
            forks[lineage] = Fork(record.parent, record.fork_index)
    except RepositoryError as error:
        # Backups can be restored without: at worst the caller has to say which history is meant.
        errors["lineages"] = str(error)
    ordered = sorted(found.values(), key=lambda each: (*each.order, each.lineage))
    return Shelves(tuple(ordered), places, forks, errors)


def read_results(
    repository: Repository, shelves: Shelves, on_read: Callable[[], None] = lambda: None
) -> tuple[BackupResult, ...]:
    """The backups as callers know them, from their manifests; one request for each."""
    shelf = Shelf(repository.destinations, repository.id, repository.keys)
    results = []
    for listed in shelves.backups:
        where = shelves.places[listed.lineage, listed.label]
        try:
            manifest = find_manifest(shelf, listed.lineage, listed.label).manifest
        except RepositoryError as error:
            results.append(_unreadable(listed, where, str(error)))
        else:
            results.append(_result_of(listed, manifest, where))
        on_read()
    return tuple(results)


def describe_fork(repository: Repository, plan: RestorePlan) -> None:
    """Say in a repository where the history that a restore begins comes from. RepositoryError.

    Later restores know by this which backups it continues; else they ask which history is meant.
    """
    position = plan.position
    record = LineageRecord(
        lineage=plan.lineage,
        parent=plan.recovery.lineage,
        fork_index=position.index,
        fork_sequence=position.last_sequence,
        fork_hash=position.hash.hex(),
        reason="restore",
        cluster_name=plan.target.cluster_name,
        # All members that are restored with one token write the same.
        created_us=position.time_us,
    )
    repository.write_lineage(record)


def _result_of(listed: Listed, manifest: Manifest, places: tuple[str, ...]) -> BackupResult:
    position = manifest.position
    return BackupResult(
        id=manifest.id,
        label=manifest.label,
        mode=BackupMode(manifest.mode),
        state=BackupState.COMPLETED,
        parent=manifest.parent or None,
        base=manifest.base if manifest.parent else None,
        node_id=manifest.node,
        index=position.index,
        sequence=position.last_sequence,
        time_us=position.time_us,
        keys=manifest.keys,
        size_bytes=manifest.size_bytes,
        size_compressed=manifest.size_compressed,
        digest=manifest.digest,
        destinations=dict.fromkeys(places, "ok"),
        error="" if listed.is_verified else "it was not verified",
        verify_level=int(listed.is_verified),
        lineage=manifest.lineage,
    )


_MODES = {"F": BackupMode.FULL, "I": BackupMode.INCREMENTAL, "D": BackupMode.DIFFERENTIAL}


def _unreadable(listed: Listed, places: tuple[str, ...], error: str) -> BackupResult:
    return BackupResult(
        id=listed.begin_index,
        label=listed.label,
        mode=_MODES[listed.mode],
        state=BackupState.FAILED,
        time_us=listed.time_us,
        destinations=dict.fromkeys(places, error),
        error=error,
        lineage=listed.lineage,
    )
