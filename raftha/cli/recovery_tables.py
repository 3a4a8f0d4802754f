"""How moments are shown: the table of recovery points, and times to the microsecond."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from raftha.cli.backup_tables import moment, size
from raftha.cli.console import printable

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def exact(time_us: int) -> str:
    """A time in UTC to the microsecond, as `--to-time` takes it."""
    try:
        found = _EPOCH + timedelta(microseconds=time_us)
    except OverflowError:
        return f"{time_us} us"
    return found.isoformat(timespec="microseconds").replace("+00:00", "Z")


def window_line(window: Mapping[str, Any]) -> str:
    """The moments that can be restored, in a line."""
    earliest, latest, gaps = window["earliest"], window["latest"], window["gaps"]
    span = f"{moment(earliest['time_us'])} .. {moment(latest['time_us'])}"
    numbers = f"sequence {earliest['sequence']:,} .. {latest['sequence']:,}"
    missing = [
        f"{moment(before['time_us'])} .. {moment(after['time_us'])}" for before, after in gaps
    ]
    return f"{span} ({numbers}), {'but not ' + ', '.join(missing) if missing else 'no gaps'}"


def archive_line(archive: Mapping[str, Any] | None) -> str:
    """How far the archive of the log is, destination by destination, in a line."""
    if archive is None:
        return "the log is not archived"
    parts = []
    for name, each in archive["destinations"].items():
        rpo = f"rpo {each['rpo_ms'] / 1000:.1f} s"
        parts.append(f"{name} {each['error'] or 'ok'}, {rpo}")
    return "   ".join(parts) or "no destination is known yet"


def drill_line(drill: Mapping[str, Any] | None) -> str:
    """The last drill that was ok, in a line."""
    if drill is None:
        return "none that this node knows of"
    took = f"{drill['restore_s']:.1f} s + replay {drill['replay_s']:.1f} s"
    return f"{moment(drill['started_us'])}: ok, {drill['keys']:,} keys in {took}"


def parse_points(told: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The points of a node's answer, those of recoveries with what they say of these."""
    by_sequence = {each["sequence"] - 1: each for each in told["recoveries"]}
    points = []
    for point in told["points"]:
        recovery = by_sequence.get(point["sequence"])
        name = point["name"]
        if point["kind"] == "recovery" and recovery is not None:
            name = f"before a recovery to sequence {recovery['to_sequence']:,}"
        points.append({**point, "name": name})
    return points


def points_table(points: Sequence[Mapping[str, Any]]) -> Table:
    """A line for each moment, the newest first."""
    table = Table("moment", "sequence", "kind", "name", "states", "reads", box=box.SIMPLE_HEAD)
    for name in ("sequence", "reads"):
        column = next(each for each in table.columns if each.header == name)
        column.justify, column.no_wrap = "right", True
    for point in reversed(points):
        cells = (
            exact(point["time_us"]),
            f"{point['sequence']:,}",
            point["kind"],
            point["name"] or "-",
            _compared(point),
            size(point["size_bytes"]) if point["size_bytes"] else "-",
        )
        table.add_row(*(escape(printable(cell)) for cell in cells))
    return table


def _compared(point: Mapping[str, Any]) -> str:
    if not point["voters"]:
        return "not compared"
    same = f"{point['agreed']} of {point['voters']} the same"
    return same if point["is_consistent"] else f"only {same}"
