"""What a destination really does: `raftha backup check` asks it, with objects of its own.

Stores say that they speak S3 and differ where it matters. So `probe` writes small objects under
`probe/`, and looks what becomes of them. It never touches another object, and removes its own.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import NamedTuple

from raftha.errors import (
    BackupDamaged,
    DeletionDenied,
    ObjectExists,
    ObjectMissing,
    ObjectTooLarge,
    RepositoryError,
)
from raftha.storage.backup.destination import Destination

_CONTENT = bytes(range(256)) * 1024
_OTHER = bytes(1024)


class Finding(NamedTuple):
    """What one check found. `is_needed`: backups don't work without this."""

    check: str
    is_ok: bool
    is_needed: bool
    detail: str


def probe(
    destination: Destination, token: Callable[[], str] = lambda: secrets.token_hex(8)
) -> list[Finding]:
    """Try everything that a repository needs of a destination; never raises RepositoryError."""
    name = f"probe/{token()}/object"
    findings = [
        _tried("create", lambda: destination.create(name, _CONTENT)),
    ]
    if not findings[0].is_ok:
        return findings
    findings += [
        _tried("read back", lambda: _read_back(destination, name)),
        _tried("create twice", lambda: _create_twice(destination, name), is_needed=False),
        _tried("range", lambda: _range(destination, name)),
        _tried("limit", lambda: _limit(destination, name)),
        _tried("list after put", lambda: _listed(destination, name)),
        _tried("delete", lambda: destination.delete(name), is_needed=False),
    ]
    if findings[-1].is_ok:
        findings.append(_tried("gone after delete", lambda: _gone(destination, name)))
    return findings


def _tried(check: str, act: Callable[[], str | None], *, is_needed: bool = True) -> Finding:
    try:
        detail = act()
    except DeletionDenied as error:
        return Finding(check, False, is_needed, f"denied, so nothing here ever goes: {error}")
    except RepositoryError as error:
        return Finding(check, False, is_needed, str(error))
    return Finding(check, not detail, is_needed, detail or "")


def _read_back(destination: Destination, name: str) -> str:
    found = destination.get(name, size_max=len(_CONTENT))
    return "" if bytes(found) == _CONTENT else "other bytes came back than were written"


def _create_twice(destination: Destination, name: str) -> str:
    try:
        destination.create(name, _OTHER)
    except ObjectExists:
        found = destination.get(name, size_max=len(_CONTENT))
        return "" if bytes(found) == _CONTENT else "it was refused, but its bytes are stored"
    return (
        "an object that exists was replaced: the store ignores conditions."
        " Backups work, as no two nodes write different bytes under one name"
    )


def _range(destination: Destination, name: str) -> str:
    found = destination.get_range(name, 100, 50)
    if bytes(found) not in (_CONTENT[100:150], _OTHER[100:150]):
        return "a range holds other bytes than were written there"
    try:
        destination.get_range(name, len(_CONTENT) - 5, 10)
    except BackupDamaged:
        return ""
    return "a range beyond the end is no error"


def _limit(destination: Destination, name: str) -> str:
    try:
        destination.get(name, size_max=10)
    except ObjectTooLarge:
        return ""
    return "an object that is too large is read all the same"


def _listed(destination: Destination, name: str) -> str:
    folder = name.rpartition("/")[0]
    listed = [each.name for each in destination.list(f"{folder}/")]
    return "" if listed == [name] else "a list lacks an object that was just written"


def _gone(destination: Destination, name: str) -> str:
    try:
        destination.get(name, size_max=len(_CONTENT))
    except ObjectMissing:
        pass
    else:
        return "an object that was deleted can still be read"
    folder = name.rpartition("/")[0]
    return "a list has an object that was deleted" if destination.list(f"{folder}/") else ""
