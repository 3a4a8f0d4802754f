"""Reads backups: a chain of manifests, their objects from any destination, and the pairs in them.

Theory of operation. A chain is a full backup and the deltas that were built on it, each on the one
before. Every destination has the same bytes, so an object that is missing or damaged in one is read
from the next. Nothing is used before it has the size and the hash that its manifest says; a
manifest's own hash stands in the manifest of the next link.

Applied one after the other, or merged so that the newest pair of a key counts, the runs of a chain
are the state at the position of its last link. A delta may begin before its parent's position: it
sets the same keys to the same values.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from itertools import pairwise
from typing import NamedTuple, TypeVar

from raftha.errors import (
    BackupDamaged,
    ChainBroken,
    KeyMissing,
    ObjectMissing,
    ObjectTooLarge,
    RepositoryError,
    RepositoryUnavailable,
)
from raftha.storage.backup.crypto import KeyRing
from raftha.storage.backup.destination import Destination
from raftha.storage.backup.manifest import Manifest, StoredManifest, load_manifest
from raftha.storage.backup.pairs import Piece, merge, without_deleted
from raftha.storage.backup.pool import Pool
from raftha.storage.backup.runs import ObjectFacts, check_object, read_run

T = TypeVar("T")

LINKS_MAX = 1000
"""How long a chain may be; one of a cluster's own has at most 28."""
AHEAD = 2
"""Objects that are fetched ahead, with a pool."""


_GRAVEST = (BackupDamaged, KeyMissing, RepositoryUnavailable, ObjectMissing)
"""What another destination may do better, the gravest first. A damaged header may name any key."""


class Shelf(NamedTuple):
    """Where to read backups: destinations, in the order in which they are asked, and keys."""

    destinations: Mapping[str, Destination]
    repository: str
    keys: KeyRing


def load_chain(shelf: Shelf, lineage: str, label: str) -> list[StoredManifest]:
    """Read the manifests of a backup and of all that it needs; the full one comes first.

    ChainBroken if one is missing or doesn't fit; BackupDamaged; KeyMissing.
    """
    links = [find_manifest(shelf, lineage, label)]
    while links[-1].manifest.parent_label:
        child = links[-1].manifest
        if len(links) >= LINKS_MAX:
            raise ChainBroken("its chain has no end", label)
        try:
            links.append(find_manifest(shelf, lineage, child.parent_label))
        except ObjectMissing as error:
            raise ChainBroken(
                f"it builds on {child.parent_label}, which is missing",
                child.label,
                object_name=error.object,
                hint="restore an older backup, or one of another chain",
            ) from error
    links.reverse()
    for before, after in pairwise(links):
        _check_link(before, after.manifest)
    return links


def _check_link(parent: StoredManifest, child: Manifest) -> None:
    found = parent.manifest
    if child.parent_sha256 != parent.sha256:
        raise ChainBroken(f"it builds on another {found.label} than the one there", child.label)
    if child.base_label != found.base_label or child.id <= found.id:
        raise ChainBroken(f"it doesn't continue {found.label}", child.label)
    if not child.start <= found.position.index < child.position.index:
        raise ChainBroken(f"it lacks changes after {found.label}", child.label)


def find_manifest(shelf: Shelf, lineage: str, label: str) -> StoredManifest:
    """Read a backup's manifest from the first destination that has it, sound."""

    def read(destination: Destination) -> StoredManifest:
        return load_manifest(destination, lineage, label, shelf.repository, shelf.keys)

    return from_any(shelf, read)


def fetch(shelf: Shelf, name: str, facts: ObjectFacts) -> bytes | memoryview:
    """Read an object of a run from the first destination that has it, sound."""

    def read(destination: Destination) -> bytes | memoryview:
        try:
            data = destination.get(name, size_max=facts.size)
        except ObjectTooLarge as error:
            raise BackupDamaged(
                "it is too large", destination=destination.name, object_name=name
            ) from error
        check_object(data, name, facts)
        return data

    return from_any(shelf, read)


def from_any(shelf: Shelf, read: Callable[[Destination], T]) -> T:
    """Return what the first destination gives; the gravest error if none does.

    Damage is graver than absence, and a destination that didn't answer may have what is missing.
    """
    errors: list[RepositoryError] = []
    for destination in shelf.destinations.values():
        try:
            return read(destination)
        except _GRAVEST as error:
            errors.append(error)
    assert errors, "a repository has a destination"
    raise min(errors, key=lambda each: _GRAVEST.index(type(each)))


def read_objects(
    shelf: Shelf, manifest: Manifest, pool: Pool | None = None
) -> Iterator[tuple[str, bytes | memoryview, ObjectFacts]]:
    """Yield the objects of a backup in order; with a pool, some are fetched ahead."""
    wanted = ((manifest.run_name(i), facts) for i, facts in enumerate(manifest.runs))
    if pool is None:
        for name, facts in wanted:
            yield name, fetch(shelf, name, facts), facts
        return
    coming: deque[tuple[str, Future[bytes | memoryview], ObjectFacts]] = deque()
    for name, facts in wanted:
        coming.append((name, pool.submit(fetch, shelf, name, facts), facts))
        if len(coming) > AHEAD:
            found, future, its = coming.popleft()
            yield found, future.result(), its
    for found, future, its in coming:
        yield found, future.result(), its


def read_backup(
    shelf: Shelf,
    manifest: Manifest,
    on_meta: Callable[[bytes], None] = lambda meta: None,
    pool: Pool | None = None,
    on_block: Callable[[bytes, int], None] = lambda raw, keys: None,
) -> Iterator[Piece]:
    """Yield the pairs of one backup; deleted keys of a delta have None."""
    objects = read_objects(shelf, manifest, pool)
    return read_run(objects, shelf.keys, on_meta, on_block, is_checked=True, pool=pool)


def read_state(shelf: Shelf, links: Sequence[StoredManifest]) -> Iterator[Piece]:
    """Yield all pairs of the state that a chain leads to.

    Holds one object of each link in memory.
    """
    runs = [read_backup(shelf, link.manifest) for link in reversed(links)]
    return without_deleted(merge(runs))
