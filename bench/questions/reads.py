"""How many reads a second do callers get: linearizable, on leader and follower, leased, and stale?

Lease reads are linearizable, too: by threads of the leader's process, whose values are in its
memory or in LMDB alone, and by tasks.

Values of 256 bytes under 1,000 keys, written before. Peers answer reads as by default: linearizable
in etcd, from a server's own, perhaps older state in ZooKeeper and Redis.
"""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import peers
from bench.harness.leases import LEASE, CallingThreads
from bench.harness.load import Load
from bench.harness.question import Run, numbers
from bench.harness.samples import Sample
from bench.harness.systems import BareOverResp, InProcess, Measure, OverResp, System
from raftha.node.arguments import Consistency

KEYS = 1_000


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add options beside the shared ones."""
    peers.add_options(parser)
    parser.add_argument("--callers", type=numbers, default=[1, 64, 256])


class Filled:
    """A system with values to read, each written about twice."""

    def __init__(self, system: System, consistency: str = "") -> None:
        self.name = f"{system.name}, {consistency}" if consistency else system.name
        self.settings = system.settings
        self._system = system
        self._options = {"consistency": consistency} if consistency else {}

    def missing(self) -> str:
        return self._system.missing()

    def version(self) -> str:
        return self._system.version()

    @contextmanager
    def start(self, folder: Path) -> Iterator[Measure]:
        with self._system.start(folder) as measure:
            measure(Load(callers=16, warm_up_s=0, seconds=0.5, keys=KEYS))
            yield lambda load: measure(dataclasses.replace(load, options=self._options))


def ask(run: Run) -> None:
    """Measure."""

    def add(system: str, load: Load, sample: Sample) -> None:
        run.add_sample(system, sample, "reads", callers=load.callers)

    own: list[System] = []
    for consistency in typing.get_args(Consistency):
        own.append(Filled(InProcess("raftha, leader"), consistency))
        own.append(Filled(InProcess("raftha, follower", leader=2), consistency))
    for is_cold, where in ((False, "in memory"), (True, "in LMDB")):
        own.append(Filled(CallingThreads(f"raftha, lease, threads, {where}", is_cold=is_cold)))
    own.append(Filled(InProcess("raftha, leader with a lease", config=LEASE)))
    own.append(Filled(InProcess("raftha, follower with a lease", leader=2, config=LEASE)))
    own += [Filled(OverResp()), Filled(OverResp(config=LEASE)), Filled(BareOverResp())]
    loads = [run.load(callers=c, operation="get", keys=KEYS) for c in run.options.callers]
    run.in_turns(run.systems(own), loads, add)
