"""Names reserved for what this version doesn't have: backups and point-in-time recovery."""

from __future__ import annotations

from typing import NoReturn

from raftha.errors import NotAvailable


def no_backups(*_: object) -> NoReturn:
    """Raises NotAvailable."""
    raise NotAvailable("backups are not available in this version")


def no_recovery(*_: object) -> NoReturn:
    """Raises NotAvailable."""
    raise NotAvailable("point-in-time recovery is not available in this version")
