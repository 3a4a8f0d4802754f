"""How long are writes impossible when the leader fails, and what do callers see of it?

Three nodes with the default configuration, one of them in a process with 8 callers, each with one
write under way. Each run is one failover of each kind: the leader, which is another node, is

    kill      killed with SIGKILL stop      paused with SIGSTOP, and woken after the round silent
    cut off: the others' packets are dropped, and no connection breaks. Each node is in a
              network namespace of its own, on one bridge; needs root and `ip`
    planned   told to hand over to the third node

For the first three, the time counts from before the fault to the first acknowledged write that was
submitted when it was complete. For `planned` it is the longest time between two acknowledgements
around the transfer. The phases come from the `failover_completed` event of the node beside the
callers: they end when it knows of a commit.

Beside them, once for each kind but `silent`, a timeline: writes come to a follower at a fixed rate,
and the plot shows how many were acknowledged in each 20 ms, from a second before the fault.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from bench.harness import namespaces
from bench.harness.failovers import HOWS, measure
from bench.harness.load import Load
from bench.harness.question import Run
from bench.harness.samples import Taken
from bench.harness.systems import started_leader
from raftha.testing import LocalCluster

PHASES = {"detect": "detect_ms", "elect": "elect_ms", "first commit": "first_commit_ms"}
BIN_S = 0.02
BEFORE_S = 1.0
LEADER = 2


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add options beside the shared ones."""
    parser.set_defaults(runs=30)
    parser.add_argument("--how", action="append", choices=HOWS, help="may be repeated")
    parser.add_argument("--rate", type=float, default=2000, help="writes a second, for timelines")
    parser.add_argument("--lease-ms", type=int, default=0, help="of the nodes' configuration")


def ask(run: Run) -> None:
    """Measure."""
    hows = [how for how in run.options.how or HOWS if can(run, how)]
    run.expect(2 * len(hows) - ("silent" in hows))
    for how in hows:
        with run.step(f"{how}, {run.options.runs} rounds"):
            rounds = measure(how, run.options.runs, run.options.lease_ms)
        add = run.results.add
        for each in rounds:
            add("raftha", "no writes", each.total_ms, unit="ms", better="lower", how=how)
            for name, attribute in PHASES.items():
                add("raftha", name, getattr(each, attribute), unit="ms", better="lower", how=how)
        add("raftha", "worst", max(each.total_ms for each in rounds), unit="ms", how=how)
        if how != "silent":  # The callers' node would need a namespace too.
            with run.step(f"{how}, timeline"):
                draw_timeline(run, how)


def can(run: Run, how: str) -> bool:
    """True if it can be tried here."""
    reason = namespaces.why_not() if how == "silent" else ""
    if reason:
        run.results.skipped[how] = reason
    return not reason


def draw_timeline(run: Run, how: str) -> None:
    """One more failover, under an open loop."""
    seconds = max(run.options.seconds, 1.0)
    settings = {"lease_ms": run.options.lease_ms}
    load = Load(rate=run.options.rate, seconds=BEFORE_S + seconds, warm_up_s=0)
    with (
        run.folder() as folder,
        started_leader(folder, LEADER, settings=settings) as (cluster, worker),
        ThreadPoolExecutor(1) as thread,
    ):
        loading = thread.submit(worker.load, load)
        time.sleep(BEFORE_S)  # The undisturbed part of the load is shown, too.
        gone = time.perf_counter()
        let_go(cluster, how)
        taken = loading.result()
    run.results.add_curve("raftha", "timeline", acknowledged(taken, gone), unit="writes/s", how=how)


def let_go(cluster: LocalCluster, how: str) -> None:
    """Make the leader fail."""
    match how:
        case "kill":
            cluster.kill(LEADER)
        case "stop":
            cluster.pause(LEADER)
        case _:
            cluster.call(LEADER, "RAFTHA", "FAILOVER", 3)


def acknowledged(taken: Taken, zero: float) -> list[tuple[float, float]]:
    """Writes a second in each bin of time, by when they were acknowledged, from `zero`."""
    ends = [due + took - zero for due, took in zip(taken.begun, taken.latencies, strict=True)]
    counts = Counter(int(end // BIN_S) for end in ends)
    bins = range(int(-BEFORE_S / BIN_S), max(counts) + 1)
    return [(number * BIN_S, counts[number] / BIN_S) for number in bins]
