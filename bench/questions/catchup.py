"""What do clients notice while a node that the log can't help catches up through a snapshot?

    python -m bench catchup [--log-bytes 1073741824] [--rate 5000] [--seconds 40] [--json]

Three nodes on this machine, each a process of its own. A follower is stopped, `--log-bytes` of log
are written beyond what it has (values of 16 KiB, each under a key of its own, so that the state is
as large), and the log that is kept is so short that it needs a snapshot of the state. Then writes
of 256 bytes come at a fixed rate, on a few pipelined connections to the leader, whether earlier
ones have replies or not (an open loop); each latency counts from the moment at which the write was
due. After `--seconds` of that the follower is started. `during` ends when it has caught up with the
leader, to a quarter of a second; `after` is `--seconds` more.

Elections: any change of the term, and any node that began to campaign, in the logs of the nodes
since the load began; the returning node may campaign until it first hears from the leader. Memory
is the most that each process had of its own (RssAnon), without the pages of LMDB's map.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from dataclasses import asdict

from bench.harness.catch_up import Report, Window, run
from raftha.config import MIB
from raftha.testing import LocalCluster


def show(report: Report) -> None:
    """Print the report as text."""
    print(f"{os.cpu_count()} CPUs, Python {platform.python_version()}")
    print(f"{'':7}  {'s':>6}  {'writes':>8}  {'p50 ms':>7}  {'p99 ms':>7}  {'max ms':>7}")
    for name in ("before", "during", "after"):
        window: Window = getattr(report, name)
        print(
            f"{name:7}  {window.seconds:6.1f}  {window.writes:8,}  {window.p50_ms:7.2f}  "
            f"{window.p99_ms:7.2f}  {window.max_ms:7.1f}"
        )
    print(
        f"p99 during / before: {report.ratio:.2f}; caught up after {report.caught_up_s:.1f} s; "
        f"snapshots: {report.snapshots}, of {report.snapshot_bytes / MIB:,.0f} MiB; "
        f"failed writes: {report.failed_writes}; elections: {report.elections}"
    )
    memory = ", ".join(f"node {i}: {mib:.0f}" for i, mib in report.rss_anon_mib.items())
    print(f"memory at most, MiB: {memory}")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--log-bytes", type=int, default=1024 * MIB, help="log it lacks")
    parser.add_argument("--rate", type=float, default=5000, help="writes a second")
    parser.add_argument("--seconds", type=float, default=40, help="before, and after")
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(options: argparse.Namespace) -> None:
    """Measure and print."""
    settings = {"log_retention_bytes": 64 * MIB}
    with LocalCluster(nodes=3, settings=settings) as cluster:
        report = run(cluster, options.log_bytes, options.rate, options.seconds)
    if options.json:
        machine = {"cpus": os.cpu_count(), "python": platform.python_version()}
        print(json.dumps({**machine, "ratio": report.ratio, **asdict(report)}, indent=2))
    else:
        show(report)
