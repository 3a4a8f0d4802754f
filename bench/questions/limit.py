"""What would be possible? The bare group-commit loop alone: one process that writes and syncs
blocks written before, two followers over loopback, no Raft, no LMDB (`bench.harness.bare`).
"""

from __future__ import annotations

import argparse

from bench.harness.load import Load
from bench.harness.question import Run, numbers
from bench.harness.samples import Sample
from bench.harness.systems import Bare, BareOverResp


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add options beside the shared ones."""
    parser.add_argument("--callers", type=numbers, default=[1, 16, 64, 256, 1024])


def ask(run: Run) -> None:
    """Measure."""

    def add(system: str, load: Load, sample: Sample) -> None:
        run.add_sample(system, sample, "writes", callers=load.callers)

    loads = [run.load(callers=count) for count in run.options.callers]
    run.in_turns(run.systems([Bare(), BareOverResp()]), loads, add)
