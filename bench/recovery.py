"""How long until a node that was killed serves again: from its own log, or from an image?

`--log-bytes` of log are written in values of 256 bytes, without a checkpoint, so that all of it is
there to be replayed. Then a follower is killed and started (until it answers, and until it has
applied what the leader had), and after that all three at once (until a write is acknowledged;
elections included). The image is `bench.catchup`, which can be run by itself too.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from pathlib import Path

from bench import catchup
from bench.load import VALUE_BYTES
from bench.question import Run
from bench.systems import started_leader
from raftha.config import MIB
from raftha.errors import RafthaError
from raftha.testing import LocalCluster

ENTRY_BYTES = VALUE_BYTES + 64
"""About what a write of 256 bytes takes in the log."""
TIMEOUT_S = 600.0
POLL_S = 0.005
FOLLOWER = 2


def add_options(parser: argparse.ArgumentParser) -> None:
    """Beside the shared ones."""
    parser.set_defaults(peer=[], only=[])
    parser.add_argument("--log-bytes", type=int, default=64 * MIB, help="log to replay")
    parser.add_argument("--image-bytes", type=int, default=1024 * MIB, help="0 for no image")
    parser.add_argument("--rate", type=float, default=5000, help="writes a second meanwhile")


def ask(run: Run) -> None:
    """Measure."""
    run.expect(run.options.runs * (3 if run.options.image_bytes else 2))
    for _ in range(run.options.runs):
        with run.folder() as folder:
            restart(run, folder, run.options.log_bytes)
        if run.options.image_bytes:
            with run.folder() as folder, run.step("an image"):
                image(run, folder)


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


def restart_follower(cluster: LocalCluster) -> tuple[float, float]:
    """Seconds until it answers, and until it has applied all that it had."""
    before = cluster.status(FOLLOWER)
    assert before is not None
    cluster.kill(FOLLOWER)
    begin = time.perf_counter()
    cluster.start_node(FOLLOWER)
    answers_s = 0.0
    while time.perf_counter() < begin + TIMEOUT_S:
        status = cluster.status(FOLLOWER)
        if status and not answers_s:
            answers_s = time.perf_counter() - begin
        if status and status["applied_index"] >= before["last_index"]:
            return answers_s, time.perf_counter() - begin
        time.sleep(POLL_S)  # Other processes change: they are asked.
    raise AssertionError(f"node {FOLLOWER} has not caught up after {TIMEOUT_S} s")


def restart_all(cluster: LocalCluster) -> float:
    """Seconds until a write is acknowledged, by whichever node."""
    for node_id in cluster.running:
        cluster.kill(node_id)
    begin = time.perf_counter()
    for node_id in cluster.node_ids:
        cluster.start_node(node_id)
    while time.perf_counter() < begin + TIMEOUT_S:
        with contextlib.suppress(RafthaError):
            cluster.call(cluster.node_ids[0], "SET", "after", "restart")
            return time.perf_counter() - begin
        time.sleep(POLL_S)  # Other processes change: they are asked.
    raise AssertionError(f"no write was acknowledged after {TIMEOUT_S} s")


def image(run: Run, folder: Path) -> None:
    """A follower that needs an image, under load."""
    settings = {"log_retention_bytes": 64 * MIB}
    options = run.options
    with LocalCluster(3, folder=folder / "cluster", settings=settings) as cluster:
        report = catchup.run(cluster, options.image_bytes, options.rate, options.seconds)
    mib, add = options.image_bytes // MIB, run.results.add
    where: dict[str, str | int] = {"node": "one", "image_mib": mib}
    add("raftha", "serves", report.caught_up_s, unit="s", better="lower", **where)
    for name in ("before", "during", "after"):
        window: catchup.Window = getattr(report, name)
        add("raftha", f"writes' p99 {name}", window.p99_ms, unit="ms", better="lower", **where)
    add("raftha", "elections", report.elections, unit="", better="lower", **where)
