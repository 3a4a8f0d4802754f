"""The reference's names for what this version can't do yet: backups, point-in-time recovery."""

from __future__ import annotations

from raftha.errors import NotAvailable


def no_backups() -> NotAvailable:
    """What everything that has to do with backups raises."""
    return NotAvailable("backups are not available in this version")


def no_recovery() -> NotAvailable:
    """What everything that has to do with point-in-time recovery raises."""
    return NotAvailable("point-in-time recovery is not available in this version")
