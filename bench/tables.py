"""Results as tables on the terminal."""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from bench.results import Measurement, Parameters, Results

PIPE_COLUMNS = 140
PLACES = {"ms": 2, "s": 2, "cores": 2, "MiB": 1}
METRICS_MAX = 8
"""A table of more of them has a row for each, not a column."""

Row = tuple[str, ...]


def console() -> Console:
    """As wide as the terminal; a file has no width of its own."""
    return Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS, highlight=False)


def show(results: Results) -> None:
    """The machine, a table for each set of parameters, and what was left out."""
    out, facts, syncs = console(), results.machine, results.fdatasync_ms
    out.print(
        f"[bold]{results.question}[/bold]  {facts['cpus']} x {facts['cpu']}, {facts['memory_mib']}"
        f" MiB, {facts['file_system']}; fdatasync {syncs['before']:.2f} ms before,"
        f" {syncs['after']:.2f} after; medians of {results.arguments['runs']}"
    )
    tables: dict[Row, list[Measurement]] = defaultdict(list)
    for m in results.measurements:
        tables[tuple(m.parameters)].append(m)
    for names, measurements in tables.items():
        out.print(_table(names, measurements))
    for system, reason in results.skipped.items():
        out.print(f"skipped: {system}: {reason}", markup=False)
    for system, reason in results.failed.items():
        out.print(f"failed: {system}: {reason}", markup=False)


def title(metric: str, unit: str) -> str:
    """A metric with its unit."""
    if unit == "1/s":
        return f"{metric}/s"
    return f"{metric} {unit}".strip()


def _table(names: Row, measurements: Iterable[Measurement]) -> Table:
    rows: dict[Row, dict[str, str]] = defaultdict(dict)
    metrics: dict[str, None] = {}
    for m in measurements:
        name = title(m.metric, m.unit)
        metrics[name] = None
        rows[m.system, *_cells(m.parameters)][name] = _value(m)
    if len(metrics) <= METRICS_MAX:
        return _filled(["", *names], list(metrics), rows)
    # Turned round: a column for each system and its parameters.
    turned: dict[Row, dict[str, str]] = {(metric,): {} for metric in metrics}
    for key, row in rows.items():
        head = " ".join((key[0], *map(" ".join, zip(names, key[1:], strict=True))))
        for metric, value in row.items():
            turned[(metric,)][head] = value
    heads = list(dict.fromkeys(head for row in turned.values() for head in row))
    return _filled([""], heads, turned)


def _filled(names: Sequence[str], columns: list[str], rows: dict[Row, dict[str, str]]) -> Table:
    table = Table(*names)
    for column in columns:
        table.add_column(column, justify="right")
    for key, row in rows.items():
        table.add_row(*key, *(row.get(column, "") for column in columns))
    return table


def _cells(parameters: Parameters) -> Row:
    return tuple(f"{v:,}" if isinstance(v, int) else str(v) for v in parameters.values())


def _value(measurement: Measurement) -> str:
    return f"{statistics.median(measurement.values):,.{PLACES.get(measurement.unit, 0)}f}"
