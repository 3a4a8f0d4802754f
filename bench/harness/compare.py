"""Faster, slower, or no difference?

    python -m bench compare OLD.json NEW.json [--tolerance 0.05]

For each quantity that both files have, and of which more or less is better: the medians of the
runs, their ratio, and a 95 % interval of the ratio (bootstrap: runs drawn again with replacement,
5,000 times). It is faster or slower only if the interval excludes 1 and the medians differ by more
than the tolerance. Few runs make wide intervals, and fewer than three on a side make none. Exits
with 1 if something is slower. For files from different machines, or with another cost of a sync, it
says so first: then the machine may cause a difference.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from bench.harness.results import BadResults, Measurement, Results, read
from bench.harness.tables import console, title

DRAWS = 5_000
RUNS_MIN = 3
SEED = 1
SYNC_TOLERANCE = 0.2
STYLES = {"faster": "green", "slower": "red"}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One quantity. `ratio` is new to old, above 1 if it is better; so is its interval."""

    old: Measurement
    new: Measurement
    ratio: float
    low: float
    high: float
    verdict: str
    """faster, slower, no difference, or too few runs."""


def compare(old: Results, new: Results, tolerance: float) -> list[Comparison]:
    """Everything that both have."""
    by_id = {m.id: m for m in old.measurements}
    random_source = random.Random(SEED)
    return [
        _compare(by_id[m.id], m, tolerance, random_source)
        for m in new.measurements
        if m.better and m.id in by_id
    ]


def _compare(old: Measurement, new: Measurement, tolerance: float, r: random.Random) -> Comparison:
    ratio = _gain(old, new.values, old.values)
    if min(len(old.values), len(new.values)) < RUNS_MIN:
        return Comparison(old, new, ratio, 0.0, float("inf"), "too few runs")
    draws = sorted(_gain(old, _draw(new.values, r), _draw(old.values, r)) for _ in range(DRAWS))
    low, high = draws[DRAWS * 25 // 1000], draws[DRAWS * 975 // 1000]
    verdict = "no difference"
    if low > 1 and ratio > 1 + tolerance:
        verdict = "faster"
    elif high < 1 and ratio < 1 / (1 + tolerance):
        verdict = "slower"
    return Comparison(old, new, ratio, low, high, verdict)


def _draw(values: Sequence[float], r: random.Random) -> list[float]:
    return r.choices(values, k=len(values))


def _gain(measurement: Measurement, new: Sequence[float], old: Sequence[float]) -> float:
    """How many times better the median is."""
    more, less = statistics.median(new), statistics.median(old)
    if measurement.better == "lower":
        more, less = less, more
    if more == less:
        return 1.0
    return more / less if less else float("inf")


def differences(old: Results, new: Results) -> list[str]:
    """The reasons that make the two files hard to compare."""
    found = []
    if old.question != new.question:
        found.append(f"the questions differ: {old.question}, {new.question}")
    for name in ("cpus", "cpu", "memory_mib", "kernel", "file_system"):
        if old.machine.get(name) != new.machine.get(name):
            found.append(f"{name}: {old.machine.get(name)}, then {new.machine.get(name)}")
    syncs = [statistics.mean(r.fdatasync_ms.values()) for r in (old, new)]
    if max(syncs) > min(syncs) * (1 + SYNC_TOLERANCE):
        found.append(f"an fdatasync took {syncs[0]:.2f} ms, then {syncs[1]:.2f} ms")
    arguments = sorted({*old.arguments, *new.arguments})
    for name in arguments:
        if old.arguments.get(name) != new.arguments.get(name):
            found.append(f"--{name}: {old.arguments.get(name)}, then {new.arguments.get(name)}")
    return found


def show(comparisons: Sequence[Comparison], warnings: Sequence[str]) -> None:
    """Print them."""
    out = console()
    for warning in warnings:
        out.print(f"not the same: {warning}", style="yellow", markup=False)
    table = Table("", "", "", "old", "new", "better by", "95 %", "")
    for column in table.columns[3:7]:
        column.justify = "right"
    for c in comparisons:
        parameters = ", ".join(f"{name} {value}" for name, value in c.new.parameters.items())
        medians = (statistics.median(m.values) for m in (c.old, c.new))
        interval = "" if c.verdict == "too few runs" else f"{c.low:.2f} - {c.high:.2f}"
        table.add_row(
            c.new.system, parameters, title(c.new.metric, c.new.unit),
            *(f"{median:,.2f}" for median in medians), f"{c.ratio:.2f} x", interval, c.verdict,
            style=STYLES.get(c.verdict, ""),
        )  # fmt: skip
    out.print(table)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument(
        "--tolerance", type=float, default=0.05, help="differences that don't count"
    )


def main(options: argparse.Namespace) -> None:
    """Read, and print."""
    try:
        old, new = read(options.old), read(options.new)
    except BadResults as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    comparisons = compare(old, new, options.tolerance)
    show(comparisons, differences(old, new))
    sys.exit(any(c.verdict == "slower" for c in comparisons))
