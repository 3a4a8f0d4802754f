"""How long do writes take at a fixed rate, whether the system keeps up or not?

An open loop: a write begins when it is due, and its latency counts from then on. Values of 256
bytes. If a system can't keep up with the rate, latencies grow as long as the run, and writes fail
because too many are under way.
"""

from __future__ import annotations

import argparse

from bench import peers
from bench.harness.load import Load
from bench.harness.question import Run, numbers
from bench.harness.samples import Sample
from bench.harness.systems import Bare, BareOverResp, InProcess, OverResp


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add options beside the shared ones."""
    peers.add_options(parser)
    parser.add_argument("--rates", type=numbers, default=[100, 1000, 5000, 10000, 20000])


def ask(run: Run) -> None:
    """Measure."""

    def add(system: str, load: Load, sample: Sample) -> None:
        run.add_sample(system, sample, "writes", rate=int(load.rate))

    loads = [run.load(rate=float(rate)) for rate in run.options.rates]
    systems = run.systems([InProcess(), Bare(), OverResp(), BareOverResp()])
    run.in_turns(systems, loads, add)
