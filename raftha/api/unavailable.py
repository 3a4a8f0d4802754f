"""The reference's names for what this version can't do yet: backups, point-in-time recovery."""

from __future__ import annotations

from typing import NoReturn

from raftha.errors import NotAvailable


def no_backups(*_: object) -> NoReturn:
    """Raises NotAvailable: backups come with a later version."""
    raise NotAvailable("backups are not available in this version")


def no_recovery(*_: object) -> NoReturn:
    """Raises NotAvailable: point-in-time recovery comes with a later version."""
    raise NotAvailable("point-in-time recovery is not available in this version")
