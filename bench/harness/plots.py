"""Results as plots: a line for each system, or a curve for each load; matplotlib draws them.

Theory of operation. The form of the results decides what is drawn, not the question: a measurement
with a parameter that is a number with several values becomes lines over it, with the medians of the
runs as points and their whole range as bars; curves become lines over the quantile, spread so that
each further nine takes as much room (the distribution of latencies), or over time.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from bench.harness.results import Curve, Measurement, Parameters, Results
from bench.harness.tables import title

SIZE = (8.0, 4.5)
NINES_MAX = 5
DOTS_PER_INCH = 110
STYLE: Any = {
    "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False,
    "font.size": 9, "legend.fontsize": 8, "svg.fonttype": "none", "svg.hashsalt": "raftha",
}  # fmt: skip
COLOURS = [f"C{number}" for number in range(10)]
DASHES = ("-", "--", ":")


def draw(results: Results, folder: Path, name: str) -> list[tuple[str, Path]]:
    """Draw everything, each plot as SVG and PNG; return the titles and the SVG files.

    The files are called `name`-1, `name`-2 ...
    """
    with mpl.rc_context(STYLE):
        plots = [*_lines(results), *_curves(results)]
        drawn = []
        for number, (headline, figure) in enumerate(plots, start=1):
            path = folder / f"{name}-{number}.svg"
            figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
            figure.savefig(path.with_suffix(".png"), bbox_inches="tight", dpi=DOTS_PER_INCH)
            drawn.append((headline, path))
    return drawn


def _figure(headline: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE)
    axes = figure.add_subplot()
    axes.set_title(headline, loc="left", fontsize=10)
    return figure, axes


def _legend(axes: Axes) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)


def _look(number: int) -> dict[str, Any]:
    """Colours, then the same colours with other dashes: no two of 30 lines are alike."""
    dashes, colour = divmod(number, len(COLOURS))
    return {"color": COLOURS[colour], "linestyle": DASHES[dashes % len(DASHES)]}


# --------------------------------------------------------------------------- lines


def _lines(results: Results) -> Iterable[tuple[str, Figure]]:
    """Metrics with a better direction, each over the first parameter that varies."""
    metrics: dict[tuple[str, str], list[Measurement]] = defaultdict(list)
    for m in results.measurements:
        if m.better:
            metrics[m.metric, m.unit].append(m)
    for (metric, unit), measurements in metrics.items():
        x_name = _varying(m.parameters for m in measurements)
        if x_name is None:
            continue
        headline = f"{metric} by {x_name}"
        figure, axes = _figure(headline)
        for number, (label, series) in enumerate(_series(measurements, x_name).items()):
            xs = [float(m.parameters[x_name]) for m in series]
            _line(axes, label, xs, series, _look(number))
        xs = sorted({float(m.parameters[x_name]) for m in measurements if x_name in m.parameters})
        axes.set_xscale("log")
        axes.set_xticks(xs, [f"{x:,.0f}" for x in xs])
        axes.xaxis.set_minor_locator(NullLocator())
        _scale_y(axes, [v for m in measurements for v in m.values])
        axes.set_xlabel(x_name)
        axes.set_ylabel(title(metric, unit))
        _legend(axes)
        yield headline, figure


def _varying(parameters: Iterable[Parameters]) -> str | None:
    """The first parameter that is a number, and has more than one value."""
    values: dict[str, set[object]] = defaultdict(set)
    for each in parameters:
        for name, value in each.items():
            if isinstance(value, int | float) and name != "replica":
                values[name].add(value)
    return next((name for name, found in values.items() if len(found) > 1), None)


def _series(measurements: Iterable[Measurement], x_name: str) -> dict[str, list[Measurement]]:
    """Those that differ in `x_name` alone, in its order."""
    found: dict[str, list[Measurement]] = defaultdict(list)
    for m in measurements:
        if x_name in m.parameters:
            found[_label(m.system, m.parameters, x_name)].append(m)
    for series in found.values():
        series.sort(key=lambda m: float(m.parameters[x_name]))
    return found


def _line(
    axes: Axes, label: str, xs: list[float], series: list[Measurement], look: dict[str, Any]
) -> None:
    medians = [statistics.median(m.values) for m in series]
    below = [median - min(m.values) for median, m in zip(medians, series, strict=True)]
    above = [max(m.values) - median for median, m in zip(medians, series, strict=True)]
    axes.errorbar(
        xs, medians, yerr=[below, above], label=label, marker="o", ms=4, capsize=2, **look
    )


def _scale_y(axes: Axes, values: list[float]) -> None:
    """Make the scale logarithmic if values are far apart."""
    if min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    _plain_numbers(axes)


def _plain_numbers(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.10g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _label(system: str, parameters: Parameters, without: str = "") -> str:
    others = [f"{name} {value}" for name, value in parameters.items() if name != without]
    return ", ".join([system, *others])


# --------------------------------------------------------------------------- curves


def _curves(results: Results) -> Iterable[tuple[str, Figure]]:
    """The curves of equal parameters together, so that systems can be compared."""
    groups: dict[tuple[str, str], list[Curve]] = defaultdict(list)
    for curve in results.curves:
        others = {n: v for n, v in curve.parameters.items() if n != "replica"}
        groups[curve.kind, ", ".join(f"{n} {v}" for n, v in others.items())].append(curve)
    for (kind, where), curves in groups.items():
        name = "latencies" if kind == "quantiles" else "over time"
        headline = f"{name}, {where}" if where else name
        figure, axes = _figure(headline)
        for number, curve in enumerate(curves):
            look = _look(number)
            replica = curve.parameters.get("replica")
            label = curve.system if replica is None else f"{curve.system}, replica {replica}"
            if kind == "quantiles":
                points = _median_points(curve)
                axes.plot(
                    [_nines(q) for q, _ in points], [y for _, y in points], label=label, **look
                )
            else:
                run = curve.runs[-1]
                axes.plot([x for x, _ in run], [y for _, y in run], label=label, lw=1, **look)
        if kind == "quantiles":
            axes.set_xticks(range(NINES_MAX), ["0", "0.9", "0.99", "0.999", "0.9999"])
            axes.set_yscale("log")
            axes.set_xlabel("share of the operations")
        else:
            axes.set_xlabel("s")
            axes.axvline(0, color="grey", lw=0.8)
        _plain_numbers(axes)
        axes.set_ylabel(curves[0].unit)
        _legend(axes)
        yield headline, figure


def _median_points(curve: Curve) -> list[tuple[float, float]]:
    """At each quantile, the median of the runs."""
    at: dict[float, list[float]] = defaultdict(list)
    for run in curve.runs:
        for q, value in run:
            at[q].append(value)
    return [(q, statistics.median(values)) for q, values in sorted(at.items()) if q < 1]


def _nines(q: float) -> float:
    return min(NINES_MAX, -math.log10(1 - q))
