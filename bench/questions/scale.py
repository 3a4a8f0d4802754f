"""What changes with the number of keys, and of nodes?

For each number of keys (values of 256 bytes): how fast they are written, and then written again by
64 callers in the leader's process; the memory that a follower has of its own, without LMDB's page
cache; how long writes take at a fixed rate while a checkpoint runs on the leader, and while none
does; and how long a killed follower takes to serve again. Then, for each number of nodes, writes a
second at 10,000 keys.
"""

from __future__ import annotations

import argparse
from bisect import bisect_right

from bench.harness.machine import rss_anon_bytes
from bench.harness.question import Run, numbers
from bench.harness.restarts import FOLLOWER, restart_follower
from bench.harness.samples import Sample, Taken, quantile
from bench.harness.systems import InProcess, started_leader
from bench.harness.worker import Worker
from raftha.config import MIB

CALLERS = 64
SETTINGS = {"checkpoint_interval_sec": 2.0}
"""More often than by default, so that some run while latencies are measured."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add options beside the shared ones."""
    keys = [1_000, 10_000, 100_000, 1_000_000, 10_000_000]
    parser.add_argument("--keys", type=numbers, default=keys)
    parser.add_argument("--nodes", type=numbers, default=[3, 5, 7])
    parser.add_argument("--callers", type=numbers, default=[64, 256], help="for numbers of nodes")
    parser.add_argument("--rate", type=float, default=5000, help="for checkpoints")


def ask(run: Run) -> None:
    """Measure."""
    sizes, callers = run.options.keys, run.options.callers
    run.expect(run.options.runs * (4 * len(sizes) + len(run.options.nodes) * len(callers)))
    for _ in range(run.options.runs):
        for keys in sizes:
            measure_keys(run, keys)
        for nodes in run.options.nodes:
            measure_nodes(run, nodes)


def measure_keys(run: Run, keys: int) -> None:
    """One size of the state."""
    add = run.results.add
    with (
        run.folder() as folder,
        started_leader(folder, settings=SETTINGS) as (cluster, worker),
    ):
        with run.step(f"{keys:,} keys, first writes"):
            seconds = worker.ask({"fill": [0, keys]})["seconds"]
        add("raftha", "first writes", keys / seconds, unit="1/s", better="higher", keys=keys)
        with run.step(f"{keys:,} keys, {CALLERS} callers"):
            taken = worker.load(run.load(callers=CALLERS, keys=keys))
        add_writes(run, taken, keys=keys)
        memory = rss_anon_bytes(cluster.pid(FOLLOWER)) / MIB
        add("raftha", "memory", memory, unit="MiB", better="lower", keys=keys)
        with run.step(f"{keys:,} keys, checkpoints"):
            measure_checkpoints(run, worker, keys)
        with run.step(f"{keys:,} keys, restart"):
            _, serves_s = restart_follower(cluster)
        add("raftha", "restart", serves_s, unit="s", better="lower", keys=keys)


def measure_checkpoints(run: Run, worker: Worker, keys: int) -> None:
    """Latencies while checkpoints run, and while none does."""
    load = run.load(rate=run.options.rate, keys=keys)
    answer = worker.ask(load.as_dict())
    taken, spans = Taken.from_dict(answer), sorted(answer["checkpoints"])
    begins = [begin for begin, _ in spans]
    split: dict[bool, list[float]] = {True: [], False: []}
    for due, latency in zip(taken.begun, taken.latencies, strict=True):
        # The last checkpoint that began before its reply affects it.
        number = bisect_right(begins, due + latency) - 1
        split[number >= 0 and due <= spans[number][1]].append(latency)
    add = run.results.add
    for is_during, latencies in split.items():
        when = "during checkpoints" if is_during else "otherwise"
        if latencies:
            p99 = 1000 * quantile(sorted(latencies), 0.99)
            add("raftha", f"p99 {when}", p99, unit="ms", better="lower", keys=keys)
            worst = 1000 * max(latencies)
            add("raftha", f"max {when}", worst, unit="ms", keys=keys)
    if spans:
        longest = max(end - begin for begin, end in spans)
        add("raftha", "longest checkpoint", longest, unit="s", keys=keys)


def measure_nodes(run: Run, nodes: int) -> None:
    """One size of the cluster."""
    with run.folder() as folder, InProcess(nodes=nodes).start(folder) as measure:
        for callers in run.options.callers:
            with run.step(f"{nodes} nodes, {callers} callers"):
                sample = measure(run.load(callers=callers))
            run.add_sample("raftha", sample, "writes", nodes=nodes, callers=callers)


def add_writes(run: Run, taken: Taken, *, keys: int) -> None:
    """Rate and latencies of writes to keys that are there."""
    sample = Sample.of([taken], is_client=False)
    run.add_sample("raftha", sample, f"{CALLERS} callers, writes", keys=keys)
