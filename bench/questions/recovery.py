"""How long until a killed node serves again: from its own log, or from a snapshot?

`--log-bytes` of log are written in values of 256 bytes, without a checkpoint, so all of it has to
be replayed. Then a follower is killed and started (until it answers, and until it has applied what
the leader had), and after that all three at once (until a write is acknowledged; elections
included). `catchup` measures the snapshot in more detail.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.harness.catch_up import Window
from bench.harness.catch_up import run as catch_up
from bench.harness.load import VALUE_BYTES
from bench.harness.question import Run
from bench.harness.restarts import restart_all, restart_follower
from bench.harness.systems import started_leader
from raftha.config import MIB
from raftha.testing import LocalCluster

ENTRY_BYTES = VALUE_BYTES + 64
"""About how much log a write of 256 bytes takes."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add options beside the shared ones."""
    parser.add_argument("--log-bytes", type=int, default=64 * MIB, help="log to replay")
    parser.add_argument("--image-bytes", type=int, default=1024 * MIB, help="0 for no snapshot")
    parser.add_argument("--rate", type=float, default=5000, help="writes a second meanwhile")


def ask(run: Run) -> None:
    """Measure."""
    run.expect(run.options.runs * (3 if run.options.image_bytes else 2))
    for _ in range(run.options.runs):
        with run.folder() as folder:
            restart(run, folder, run.options.log_bytes)
        if run.options.image_bytes:
            with run.folder() as folder, run.step("a snapshot"):
                snapshot(run, folder)


def restart(run: Run, folder: Path, log_bytes: int) -> None:
    """Fill the log; kill and start one follower, then all."""
    settings = {
        "max_wal_size": 2 * log_bytes + MIB,
        "log_retention_bytes": 2 * log_bytes + MIB,
        "checkpoint_interval_sec": 86_400,
    }
    mib = log_bytes // MIB
    with started_leader(folder, settings=settings) as (cluster, worker):
        worker.ask({"fill": [0, log_bytes // ENTRY_BYTES]})
        with run.step("a follower restarts"):
            answers_s, applied_s = restart_follower(cluster)
        add = run.results.add
        add("raftha", "answers", answers_s, unit="s", better="lower", node="one", log_mib=mib)
        add("raftha", "serves", applied_s, unit="s", better="lower", node="one", log_mib=mib)
        worker.kill()
        with run.step("all restart"):
            serves_s = restart_all(cluster)
        add("raftha", "serves", serves_s, unit="s", better="lower", node="all", log_mib=mib)


def snapshot(run: Run, folder: Path) -> None:
    """A follower that needs a snapshot, under load."""
    settings = {"log_retention_bytes": 64 * MIB}
    options = run.options
    with LocalCluster(3, folder=folder / "cluster", settings=settings) as cluster:
        report = catch_up(cluster, options.image_bytes, options.rate, options.seconds)
    mib, add = options.image_bytes // MIB, run.results.add
    where: dict[str, str | int] = {"node": "one", "image_mib": mib}
    add("raftha", "serves", report.caught_up_s, unit="s", better="lower", **where)
    for name in ("before", "during", "after"):
        window: Window = getattr(report, name)
        add("raftha", f"writes' p99 {name}", window.p99_ms, unit="ms", better="lower", **where)
    add("raftha", "elections", report.elections, unit="", better="lower", **where)
