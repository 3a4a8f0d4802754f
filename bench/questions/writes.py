"""How many durable writes a second do callers in the leader's own process get?

    python -m bench writes [--callers 1,16,64,256] [--seconds 5] [--runs 3] [--json]

Three nodes on this machine: one in this process, two in processes of their own, each with its log
on the disk that the temporary folder is on. Callers are tasks of one event loop, each of which puts
a value of 256 bytes under a key of 16 and waits for the receipt before the next (a closed loop).
One second of warm-up for each number of callers, then `--runs` times `--seconds`; the median run
counts.

The disk's own speed stands beside it: an fdatasync of 4 KiB into blocks that were written before.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop

import raftha
from bench.harness.embedded import read_config
from bench.harness.load import KEYS, VALUE_BYTES, closed_loop, key_of
from bench.harness.machine import fdatasync_ms
from bench.harness.samples import Sample
from raftha.server.machine import RedisMachine
from raftha.testing import LocalCluster


@dataclass(frozen=True, slots=True)
class Run:
    """One measurement; latencies in milliseconds."""

    callers: int
    writes_per_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float


async def measure(ha: raftha.aio.HaManager, callers: int, seconds: float) -> Run:
    """Let `callers` tasks write for `seconds`."""
    value = os.urandom(VALUE_BYTES)
    taken = await closed_loop(lambda n: ha.put(key_of(n, KEYS), value), callers, seconds)
    sample = Sample.of([taken])
    p50, p99, worst = (sample.quantiles_ms[q] for q in (0.5, 0.99, 1.0))
    return Run(callers, sample.rate, p50, p99, worst)


async def run(cluster: LocalCluster, callers: list[int], seconds: float, runs: int) -> list[Run]:
    """The median run for each number of callers."""
    results = []
    async with raftha.aio.HaManager(
        read_config(cluster.config_of(1)), state_machine=RedisMachine()
    ) as ha:
        await ha.put(b"warm", b"up", timeout=60)
        await ha.failover_to(1)
        for count in callers:
            await measure(ha, count, 1.0)
            measured = [await measure(ha, count, seconds) for _ in range(runs)]
            results.append(sorted(measured, key=lambda r: r.writes_per_s)[runs // 2])
        assert (await ha.get_status()).is_primary, "the leader changed under way: not comparable"
    return results


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--callers", default="1,16,64,256", help="numbers of callers, with commas")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one run")
    parser.add_argument("--runs", type=int, default=3, help="runs, of which the median counts")
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(options: argparse.Namespace) -> None:
    """Measure and print."""
    callers = [int(count) for count in options.callers.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        sync_ms = fdatasync_ms(Path(folder))
    with LocalCluster(nodes=3) as cluster:
        cluster.terminate(1)
        results = uvloop.run(run(cluster, callers, options.seconds, options.runs))
    if options.json:
        machine = {"cpus": os.cpu_count(), "python": platform.python_version()}
        report = {**machine, "fdatasync_ms": sync_ms, "runs": [asdict(r) for r in results]}
        print(json.dumps(report, indent=2))
        return
    print(f"{os.cpu_count()} CPUs, Python {platform.python_version()}, fdatasync {sync_ms:.2f} ms")
    print(f"{'callers':>7}  {'writes/s':>9}  {'p50 ms':>7}  {'p99 ms':>7}  {'max ms':>7}")
    for r in results:
        print(
            f"{r.callers:7}  {r.writes_per_s:9,.0f}  {r.p50_ms:7.2f}  {r.p99_ms:7.2f}  "
            f"{r.max_ms:7.1f}"
        )
