"""Looks at what is in a repository, for callers and the command line: verifies, lists, probes."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from raftha.errors import RepositoryError
from raftha.storage.backup.destinations import open_destination
from raftha.storage.backup.probe import probe
from raftha.storage.backup.repository import Repository
from raftha.storage.backup.uploads import Waits
from raftha.storage.backup.verify import verify_in
from raftha.types import BackupVerification, DestinationCheck

WAITS = Waits(time.monotonic, time.sleep)


def verify_backup(
    repository: Repository,
    lineage: str,
    label: str,
    level: int,
    destinations: Collection[str],
    waits: Waits = WAITS,
) -> tuple[BackupVerification, ...]:
    """Verify a backup in each of these destinations; one that can't be reached is a finding."""
    return tuple(
        _verify_in(repository, name, lineage, label, level, waits) for name in sorted(destinations)
    )


def _verify_in(
    repository: Repository, name: str, lineage: str, label: str, level: int, waits: Waits
) -> BackupVerification:
    nothing = BackupVerification(label=label, destination=name, level=level)
    destination = repository.destinations.get(name)
    if destination is None:
        reason = repository.failed.get(name, "it is not configured here")
        return replace(nothing, findings=(str(reason),))
    try:
        report = verify_in(destination, repository, lineage, label, level, waits)
    except RepositoryError as error:
        return replace(nothing, findings=(str(error),))
    return replace(
        nothing,
        findings=tuple(map(str, report.findings)),
        objects=report.objects,
        size_bytes=report.size,
        keys=report.keys,
        digest=report.digest,
    )


def check_places(places: Mapping[str, str]) -> tuple[DestinationCheck, ...]:
    """Try what each of these folders or URLs really does, with objects of its own."""
    return tuple(_check_place(name, place) for name, place in places.items())


def _check_place(name: str, place: str) -> DestinationCheck:
    with closing(open_destination(name, place, base=Path())) as destination:
        found = probe(destination)
    wrong = [each for each in found if not each.is_ok]
    return DestinationCheck(
        destination=name,
        is_usable=not any(each.is_needed for each in wrong),
        findings=tuple(f"{each.check}: {each.detail}" for each in wrong),
    )
