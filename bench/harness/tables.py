"""Results as tables, on the terminal and in Markdown."""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from bench.harness.results import Measurement, Parameters, Results

PIPE_COLUMNS = 140
PLACES = {"ms": 2, "s": 2, "cores": 2, "MiB": 1}
WEAKER = ("pysyncobj", "redis")
"""Peers that reply before a majority's disks have a write; raftha isn't compared with them."""
METRICS_MAX = 8
"""A table of more systems has a row for each, not a column."""

Row = tuple[str, ...]


class Grid(NamedTuple):
    """A table of texts: the labels of the rows, the names of the values, and the rows."""

    names: Sequence[str]
    columns: Sequence[str]
    rows: Mapping[Row, Mapping[str, str]]

    def texts(self) -> list[list[str]]:
        """The rows, cell by cell."""
        return [
            [*key, *(row.get(column, "") for column in self.columns)]
            for key, row in self.rows.items()
        ]


def console() -> Console:
    """A console as wide as the terminal; a file has no width of its own."""
    return Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS, highlight=False)


def show(results: Results) -> None:
    """Print the machine, a table for each set of parameters, and what was left out."""
    out, facts, syncs = console(), results.machine, results.fdatasync_ms
    out.print(
        f"[bold]{results.question}[/bold]  {facts['cpus']} x {facts['cpu']}, {facts['memory_mib']}"
        f" MiB, {facts['file_system']}; fdatasync {syncs['before']:.2f} ms before,"
        f" {syncs['after']:.2f} after; medians of {results.arguments['runs']}"
    )
    for grid in (*grids(results), ratios(results)):
        if grid.rows:
            out.print(_table(grid))
    for system, reason in results.skipped.items():
        out.print(f"skipped: {system}: {reason}", markup=False)
    for system, reason in results.failed.items():
        out.print(f"failed: {system}: {reason}", markup=False)


def title(metric: str, unit: str) -> str:
    """A metric with its unit."""
    if unit == "1/s":
        return f"{metric}/s"
    return f"{metric} {unit}".strip()


def grids(results: Results) -> list[Grid]:
    """A table for each set of parameters."""
    tables: dict[Row, list[Measurement]] = defaultdict(list)
    for m in results.measurements:
        tables[tuple(m.parameters)].append(m)
    return [_grid(names, measurements) for names, measurements in tables.items()]


def ratios(results: Results) -> Grid:
    """raftha's rates as multiples of the limit's and of the best peer's, under the same load.

    Only peers that are as durable count.
    """
    rates: dict[Row, dict[str, float]] = defaultdict(dict)
    # At a fixed rate all have the same throughput, or stall.
    known = [m for m in results.measurements if m.unit == "1/s" and "rate" not in m.parameters]
    for m in known:
        rates[_cells(m.parameters)][m.system] = statistics.median(m.values)
    rows: dict[Row, dict[str, str]] = defaultdict(dict)
    for m in known:
        own, beside = statistics.median(m.values), rates[_cells(m.parameters)]
        if not m.system.startswith("raftha"):
            continue
        key = m.system, *_cells(m.parameters)
        if limit := beside.get(m.system.replace("raftha", "limit")):
            rows[key]["of the limit"] = f"{own / limit:.2f}"
        peers = [name for name in beside if not name.startswith(("raftha", "limit", *WEAKER))]
        if peers:
            best = max(peers, key=beside.__getitem__)
            rows[key]["of the best peer"] = f"{own / beside[best]:.1f} ({best})"
    names = dict.fromkeys(name for m in known for name in m.parameters)
    return Grid(["", *names], ["of the limit", "of the best peer"], rows)


def markdown(grid: Grid) -> str:
    """The table, as Markdown."""
    heads = [*grid.names, *grid.columns]
    rules = ["---"] * len(grid.names) + ["---:"] * len(grid.columns)
    lines = [heads, rules, *grid.texts()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _grid(names: Row, measurements: Iterable[Measurement]) -> Grid:
    rows: dict[Row, dict[str, str]] = defaultdict(dict)
    metrics: dict[str, None] = {}
    for m in measurements:
        name = title(m.metric, m.unit)
        metrics[name] = None
        rows[m.system, *_cells(m.parameters)][name] = _value(m)
    if len(metrics) <= METRICS_MAX:
        return Grid(["", *names], list(metrics), rows)
    # Transposed: a column for each system and its parameters.
    turned: dict[Row, dict[str, str]] = {(metric,): {} for metric in metrics}
    for key, row in rows.items():
        head = " ".join((key[0], *map(" ".join, zip(names, key[1:], strict=True))))
        for metric, value in row.items():
            turned[(metric,)][head] = value
    heads = list(dict.fromkeys(head for row in turned.values() for head in row))
    return Grid([""], heads, turned)


def _table(grid: Grid) -> Table:
    table = Table(*grid.names)
    for column in grid.columns:
        table.add_column(column, justify="right")
    for line in grid.texts():
        table.add_row(*line)
    return table


def _cells(parameters: Parameters) -> Row:
    return tuple(f"{v:,}" if isinstance(v, int) else str(v) for v in parameters.values())


def _value(measurement: Measurement) -> str:
    return f"{statistics.median(measurement.values):,.{PLACES.get(measurement.unit, 0)}f}"
