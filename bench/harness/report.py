"""Results as a page: plots and tables of one or more files.

    python -m bench report FILE.json... [--out FOLDER]

Writes `index.html`, which holds all plots and needs nothing else, each plot as SVG and PNG, and
`results.md`, with the same tables as the terminal shows, and the PNGs.
Needs matplotlib: `pip install '.[bench]'`.
"""

from __future__ import annotations

import argparse
import base64
import html
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.harness.plots import draw
from bench.harness.results import BadResults, Measurement, Results, read
from bench.harness.tables import grids, markdown, ratios, title

Plots = Sequence[tuple[str, Path]]
"""Titles, and the files of the plots."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff }
table { border-collapse: collapse; margin: 1rem 0; font-size: 13px }
td, th { padding: .15rem .7rem; border-bottom: 1px solid #ddd; text-align: left }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
img { max-width: 100% } .facts { color: #555; font-size: 13px }
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--out", type=Path, default=Path("bench-report"), help="the folder")


def main(options: argparse.Namespace) -> None:
    """Read, and write the page."""
    try:
        results = [read(path) for path in options.files]
    except BadResults as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(write(results, options.out))


def write(results: Sequence[Results], folder: Path) -> Path:
    """Write the page; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    sections, text = "", "# Results\n"
    for position, each in enumerate(results):
        before = sum(other.question == each.question for other in results[:position])
        name = f"{each.question}-{before + 1}" if before else each.question
        plots = draw(each, folder, name)
        sections += _section(each, plots)
        text += _markdown(each, plots)
    (folder / "results.md").write_text(text, encoding="utf-8")
    page = folder / "index.html"
    page.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>raftha: benchmarks</title>'
        f"<style>{STYLE}</style><h1>raftha: benchmarks</h1>{sections}</html>\n",
        encoding="utf-8",
    )
    return page


def _section(results: Results, plots: Plots) -> str:
    figures = "".join(
        f'<figure><img alt="{html.escape(title)}" src="data:image/svg+xml;base64,'
        f'{base64.b64encode(path.read_bytes()).decode()}"></figure>'
        for title, path in plots
    )
    facts = "".join(f'<p class="facts">{html.escape(line)}</p>' for line in _facts(results))
    return f"<h2>{html.escape(results.question)}</h2>{facts}{figures}{_table(results)}"


def _markdown(results: Results, plots: Plots) -> str:
    tables = [markdown(grid) for grid in (*grids(results), ratios(results)) if grid.rows]
    images = [f"![{title}]({path.with_suffix('.png').name})\n" for title, path in plots]
    facts = "".join(f"- {line}\n" for line in _facts(results))
    return "\n".join([f"\n## {results.question}\n", facts, *tables, *images])


def _facts(results: Results) -> list[str]:
    machine, syncs = results.machine, results.fdatasync_ms
    return [
        f"{results.at}; {machine['cpus']} x {machine['cpu']}, {machine['memory_mib']:,} MiB",
        f"Linux {machine['kernel']}, {machine['file_system']}",
        f"fdatasync of 4 KiB: {syncs['before']:.3f} ms before, {syncs['after']:.3f} ms after",
        "; ".join(f"{name} {version}" for name, version in results.versions.items()),
        *(f"skipped: {system}: {reason}" for system, reason in results.skipped.items()),
        *(f"failed: {system}: {reason}" for system, reason in results.failed.items()),
    ]


def _table(results: Results) -> str:
    head = ["system", "parameters", "what", "median", "least", "most", "runs"]
    cells = [f"<th{' class=n' if i > 2 else ''}>{name}</th>" for i, name in enumerate(head)]
    rows = "".join(_row(m) for m in results.measurements)
    return f"<table><tr>{''.join(cells)}</tr>{rows}</table>"


def _row(m: Measurement) -> str:
    parameters = ", ".join(f"{name} {value}" for name, value in m.parameters.items())
    texts = (m.system, parameters, title(m.metric, m.unit))
    values = (statistics.median(m.values), min(m.values), max(m.values))
    return (
        "<tr>"
        + "".join(f"<td>{html.escape(text)}</td>" for text in texts)
        + "".join(f'<td class="n">{_number(value)}</td>' for value in values)
        + f'<td class="n">{len(m.values)}</td></tr>'
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
