"""Verifies backups, in four levels, and records what was verified.

    0  listed        all objects that the manifest names are there, with their sizes
    1  read back     and have the bytes that the manifest's hashes say
    2  rebuilt       and decode; keys are in order, numbers are right; the chain is whole
    3  digest        and the state that the chain leads to has the digest that the node that took
                     the backup has computed; a delta that has none is compared at its full backup

Level 3 does all that a restore does but writing, and is what a restore can be trusted by.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from raftha.errors import (
    BackupDamaged,
    KeyMissing,
    ObjectMissing,
    RepositoryConflict,
    RepositoryError,
    RepositoryUnavailable,
)
from raftha.storage.backup import names
from raftha.storage.backup.chain import Shelf, fetch, find_manifest, load_chain, read_backup
from raftha.storage.backup.destination import Destination
from raftha.storage.backup.documents import hex_of, number_of, text_of, write_json
from raftha.storage.backup.manifest import Manifest, StoredManifest
from raftha.storage.backup.pairs import Piece, merge, without_deleted
from raftha.storage.backup.repository import Repository
from raftha.storage.backup.repository_records import checked, document_of, get_document
from raftha.storage.backup.runs import read_run
from raftha.storage.backup.uploads import BackupCancelled, Waits, store_object
from raftha.storage.state.blocks import encode_pairs
from raftha.storage.state.store import Hasher

LEVELS = (0, 1, 2, 3)
FORMAT = 1


class VerifyReport(NamedTuple):
    """What a verification of one backup in one destination has found: nothing, if it is sound.

    `digest`: of the state, from level 3 on. `objects`, `size`: how many were looked at.
    """

    label: str
    destination: str
    level: int
    findings: tuple[RepositoryError, ...]
    objects: int = 0
    size: int = 0
    keys: int = 0
    digest: str = ""

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings


class Verified(NamedTuple):
    """The record of a verification that found nothing wrong, beside the manifest."""

    label: str
    manifest_sha256: str
    level: int
    digest: str
    node: int
    time_us: int


def verify_in(
    destination: Destination,
    repository: Repository,
    lineage: str,
    label: str,
    level: int,
    waits: Waits,
) -> VerifyReport:
    """Verify a backup in one destination. RepositoryUnavailable and KeyMissing if that can't be.

    All other errors are findings of the report. BackupCancelled once it is no longer wanted.
    """
    assert level in LEVELS, "there are four levels"
    shelf = Shelf({destination.name: destination}, repository.id, repository.keys)
    verifying = _Verifying(destination, shelf, level, waits)
    with verifying.collecting():
        verifying.check(lineage, label)
    return VerifyReport(
        label,
        destination.name,
        level,
        tuple(verifying.findings),
        verifying.objects,
        verifying.size,
        verifying.keys,
        verifying.digest,
    )


class _Verifying:
    """One verification."""

    def __init__(self, destination: Destination, shelf: Shelf, level: int, waits: Waits) -> None:
        self._destination = destination
        self._shelf = shelf
        self._level = level
        self._waits = waits
        self.findings: list[RepositoryError] = []
        self.objects = self.size = self.keys = 0
        self.digest = ""

    @contextmanager
    def collecting(self) -> Iterator[None]:
        try:
            yield
        except (RepositoryUnavailable, KeyMissing):
            raise
        except RepositoryError as error:
            self.findings.append(error)

    def check(self, lineage: str, label: str) -> None:
        """Verify as far as is wanted."""
        stored = find_manifest(self._shelf, lineage, label)
        links = [stored]
        if self._level >= 2:
            links = load_chain(self._shelf, lineage, label)
        for link in links:
            self._check_listed(link.manifest)
        if self._level >= 1:
            self._check_objects(stored.manifest)
        if self._level >= 3 and not self.findings:
            self._check_digest(links)

    def _check_listed(self, manifest: Manifest) -> None:
        folder = names.backup_folder(manifest.lineage, manifest.label)
        sizes = {info.name: info.size for info in self._destination.list(folder)}
        for number, facts in enumerate(manifest.runs):
            name = manifest.run_name(number)
            where = {"destination": self._destination.name, "object_name": name}
            if name not in sizes:
                with self.collecting():  # A listing may be late: a read decides.
                    self._destination.get_range(name, 0, 1)
            elif sizes[name] != facts.size:
                found = f"it has {sizes[name]} bytes, not {facts.size}"
                self.findings.append(BackupDamaged(found, **where))
        self.objects += len(manifest.runs)
        self.size += manifest.size_compressed

    def _check_objects(self, manifest: Manifest) -> None:
        missing = {finding.object for finding in self.findings}
        for number, facts in enumerate(manifest.runs):
            self._go_on()
            name = manifest.run_name(number)
            if name in missing:
                continue
            with self.collecting():
                data = fetch(self._shelf, name, facts)
                if self._level >= 2:
                    pieces = read_run([(name, data, facts)], self._shelf.keys)
                    self.keys += sum(map(len, pieces))

    def _check_digest(self, links: list[StoredManifest]) -> None:
        full, last = links[0].manifest, links[-1].manifest
        base, state = Hasher(), Hasher()
        runs = [read_backup(self._shelf, link.manifest) for link in reversed(links)]
        if last is not full and not last.digest:
            runs[-1] = _hashed(runs[-1], base)
        for _ in _hashed(without_deleted(merge(runs)), state):
            self._go_on()
        self.digest = state.finish().hex
        found = base.finish()
        compared = [(last, self.digest), *([(full, found.hex)] if found.keys else [])]
        for manifest, digest in compared:
            if manifest.digest not in ("", digest):
                self.findings.append(
                    BackupDamaged(
                        f"the state that it restores has digest {digest}, and the node that took "
                        f"it computed {manifest.digest}",
                        destination=self._destination.name,
                        object_name=names.manifest_name(manifest.lineage, manifest.label),
                    )
                )

    def _go_on(self) -> None:
        if not self._waits.is_wanted():
            raise BackupCancelled("the verification is no longer wanted")


def _hashed(pieces: Iterator[Piece], hasher: Hasher) -> Iterator[Piece]:
    """Add pairs, none of which is a deleted key, to a digest as they pass."""
    for piece in pieces:
        hasher.add_encoded(encode_pairs(piece), len(piece))
        yield piece


def encode_verified(verified: Verified) -> bytes:
    """Return the content of a `verified` object."""
    return write_json({"format": FORMAT, **verified._asdict()})


def read_verified(destination: Destination, lineage: str, label: str) -> Verified | None:
    """Return the record of a backup's verification in a destination; None if there is none.

    BackupDamaged if there is another thing in its place.
    """
    name = names.verified_name(lineage, label)
    try:
        data = get_document(destination, name)
    except ObjectMissing:
        return None
    with checked(destination.name, name):
        found = document_of(data, destination.name, name)
        verified = Verified(
            text_of(found, "label"),
            hex_of(found, "manifest_sha256", 32).hex(),
            number_of(found, "level", 0, LEVELS[-1]),
            text_of(found, "digest"),
            number_of(found, "node", 0, 1 << 62),
            number_of(found, "time_us", 0, 1 << 62),
        )
        if verified.label != label:
            raise ValueError("it is of another backup")
        return verified


def write_verified(
    destination: Destination, lineage: str, verified: Verified, waits: Waits, retry_s: float
) -> None:
    """Record that a backup was verified. An earlier record of the same manifest stays."""
    name = names.verified_name(lineage, verified.label)
    try:
        store_object(destination, name, encode_verified(verified), waits, retry_s)
    except RepositoryConflict:
        earlier = read_verified(destination, lineage, verified.label)
        if earlier is None or earlier.manifest_sha256 != verified.manifest_sha256:
            raise
