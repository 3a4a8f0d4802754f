"""How many durable writes a second do callers get that wait for each reply?

Values of 256 bytes under 10,000 keys. raftha: callers inside the leader's process, and connections
from another process (`redis-benchmark`, if it is there). Beside it the limit: `bench.harness.bare`.
"""

from __future__ import annotations

import argparse

from bench import peers
from bench.harness.load import Load
from bench.harness.question import Run, numbers
from bench.harness.samples import Sample
from bench.harness.systems import Bare, BareOverResp, InProcess, OverResp, System


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add options beside the shared ones."""
    peers.add_options(parser)
    parser.add_argument("--callers", type=numbers, default=[1, 16, 64, 256, 1024])
    parser.add_argument("--pipeline", type=int, default=16, help="redis-benchmark -P; 0 for none")


def ask(run: Run) -> None:
    """Measure."""
    own: list[System] = [InProcess(), Bare(), OverResp(), BareOverResp()]
    if run.options.pipeline > 1:
        own += [OverResp(run.options.pipeline), BareOverResp(run.options.pipeline)]

    def add(system: str, load: Load, sample: Sample) -> None:
        run.add_sample(system, sample, "writes", callers=load.callers)

    loads = [run.load(callers=count) for count in run.options.callers]
    run.in_turns(run.systems(own), loads, add)
