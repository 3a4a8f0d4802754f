"""Results as a page: plots and tables of one or more files.

    python -m bench report FILE.json... [--out FOLDER]

Writes `index.html`, which holds all plots and needs nothing else, and each plot as SVG and PNG.
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

from bench.plots import draw
from bench.results import BadResults, Measurement, Results, read
from bench.tables import title

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff }
table { border-collapse: collapse; margin: 1rem 0; font-size: 13px }
td, th { padding: .15rem .7rem; border-bottom: 1px solid #ddd; text-align: left }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
img { max-width: 100% } .facts { color: #555; font-size: 13px }
"""


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--out", type=Path, default=Path("bench-report"), help="the folder")
    options = parser.parse_args()
    try:
        results = [read(path) for path in options.files]
    except BadResults as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(write(results, options.out))


def write(results: Sequence[Results], folder: Path) -> Path:
    """Write the page; return where it is."""
    folder.mkdir(parents=True, exist_ok=True)
    sections = ""
    for position, each in enumerate(results):
        before = sum(other.question == each.question for other in results[:position])
        name = f"{each.question}-{before + 1}" if before else each.question
        sections += _section(each, folder, name)
    page = folder / "index.html"
    page.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>raftha: benchmarks</title>'
        f"<style>{STYLE}</style><h1>raftha: benchmarks</h1>{sections}</html>\n",
        encoding="utf-8",
    )
    return page


def _section(results: Results, folder: Path, name: str) -> str:
    plots = "".join(
        f'<figure><img alt="{html.escape(title)}" src="data:image/svg+xml;base64,'
        f'{base64.b64encode(path.read_bytes()).decode()}"></figure>'
        for title, path in draw(results, folder, name)
    )
    return f"<h2>{html.escape(results.question)}</h2>{_facts(results)}{plots}{_table(results)}"


def _facts(results: Results) -> str:
    machine, syncs = results.machine, results.fdatasync_ms
    lines = [
        f"{results.at}; {machine['cpus']} x {machine['cpu']}, {machine['memory_mib']:,} MiB",
        f"Linux {machine['kernel']}, {machine['file_system']}",
        f"fdatasync of 4 KiB: {syncs['before']:.3f} ms before, {syncs['after']:.3f} ms after",
        "; ".join(f"{name} {version}" for name, version in results.versions.items()),
        *(f"skipped: {system}: {reason}" for system, reason in results.skipped.items()),
        *(f"failed: {system}: {reason}" for system, reason in results.failed.items()),
    ]
    return "".join(f'<p class="facts">{html.escape(line)}</p>' for line in lines)


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


if __name__ == "__main__":
    main()
