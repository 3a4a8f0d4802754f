"""How backups are shown: tables, sizes, times."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from raftha.cli.console import printable

Backup = Mapping[str, Any]
Decision = Mapping[str, Any]

ERROR_CHARACTERS = 40
"""How much of an error a table shows; `raftha backup show` has all of it."""

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_LEVELS = ("", "read back", "rebuilt", "digest")


def backups_table(backups: Sequence[Backup], decisions: Sequence[Decision]) -> Table:
    """A line for each backup, the newest first."""
    columns = ("id", "backup", "mode", "state", "parent", "sequence", "keys", "raw", "stored")
    table = Table(*columns, "took", "verified", "in", "kept because", box=box.SIMPLE_HEAD)
    for name in ("id", "sequence", "keys", "raw", "stored", "took"):
        column = next(each for each in table.columns if each.header == name)
        column.justify, column.no_wrap = "right", True
    for backup in reversed(backups):
        why = [each for each in decisions if each["backup_id"] == backup["id"]]
        cells = (
            backup["id"],
            backup["label"],
            backup["mode"],
            "retired" if backup["is_retired"] else backup["state"],
            backup["parent"] or "-",
            f"{backup['sequence']:,}",
            f"{backup['keys']:,}",
            size(backup["size_bytes"]),
            size(backup["size_compressed"]),
            f"{backup['duration_ms'] / 1000:.1f} s",
            _LEVELS[min(backup["verify_level"], 3)],
            _where(backup),
            _why(backup, why),
        )
        table.add_row(*(escape(printable(cell)) for cell in cells))
    return table


def decisions_table(decisions: Sequence[Decision]) -> Table:
    """A line for each backup and destination, the newest first."""
    table = Table("id", "backup", "in", "fate", "because", box=box.SIMPLE_HEAD)
    for each in reversed(decisions):
        where = each["destination"] or "nowhere"
        cells = (each["backup_id"], each["label"], where, each["fate"], ", ".join(each["reasons"]))
        table.add_row(*(escape(printable(cell)) for cell in cells))
    return table


def fields_table(fields: Mapping[str, Any]) -> Table:
    """A line for each field."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in fields.items():
        table.add_row(name, escape(printable(value)))
    return table


def backup_fields(backup: Backup, decisions: Sequence[Decision]) -> dict[str, Any]:
    """One backup, in words."""
    found: dict[str, Any] = {
        "id": backup["id"],
        "label": backup["label"],
        "lineage": backup["lineage"],
        "mode": backup["mode"] + (f" ({backup['reason']})" if backup["reason"] else ""),
        "state": "retired" if backup["is_retired"] else backup["state"],
        "builds on": backup["parent"] or "nothing",
        "as of": f"{moment(backup['time_us'])}, sequence {backup['sequence']:,}",
        "taken by": f"node {backup['node_id']}, in {backup['duration_ms'] / 1000:.1f} s",
        "keys": f"{backup['keys']:,}",
        "size": f"{size(backup['size_bytes'])}, stored {size(backup['size_compressed'])}",
        "verified": _LEVELS[min(backup["verify_level"], 3)] or "not yet",
        "digest": backup["digest"] or "not computed",
    }
    if backup["error"]:
        found["error"] = backup["error"]
    if backup["pins"]:
        found["pins"] = ", ".join(backup["pins"])
    for name, what in backup["destinations"].items():
        found[f"in {name}"] = what
    for each in decisions:
        where = f" in {each['destination']}" if each["destination"] else ""
        found[f"{each['fate']}{where}"] = ", ".join(each["reasons"])
    return found


def size(count: int) -> str:
    """A number of bytes, with three digits."""
    value, unit = float(count), 0
    while value >= 1000 and unit + 1 < len(_UNITS):
        value, unit = value / 1024, unit + 1
    return (
        f"{value:.0f} {_UNITS[unit]}"
        if unit == 0 or value >= 100
        else f"{value:.1f} {_UNITS[unit]}"
    )


def moment(time_us: int) -> str:
    """A time in UTC, as in `2026-11-27T12:00:00Z`."""
    try:
        return f"{datetime.fromtimestamp(time_us / 1e6, UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (ValueError, OverflowError, OSError):
        return f"{time_us} us"


def _where(backup: Backup) -> str:
    parts = [
        name if what == "ok" else f"({name}: {what})"
        for name, what in backup["destinations"].items()
    ]
    return " ".join(parts) or backup["error"][:ERROR_CHARACTERS] or "-"


def _why(backup: Backup, decisions: Iterable[Decision]) -> str:
    """The reasons in short: what all destinations have in common once."""
    reasons = dict.fromkeys(
        reason if each["fate"] == "kept" else f"{each['fate']}: {reason}"
        for each in decisions
        for reason in each["reasons"]
    )
    shown = [reason for reason in reasons if not reason.endswith(" builds on it")]
    children = len(reasons) - len(shown)
    if children:
        shown.append(f"parent of {children}")
    return ", ".join(shown)
