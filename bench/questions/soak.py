"""Does a busy cluster keep its leader? Elections are counted; there must be none.

    python -m bench soak [--minutes 10] [--json]

Three nodes with the default configuration but for small logs (`SETTINGS`), so that checkpoints come
all the time: 2 and 3 in processes of their own, and 1, which leads, in this one, with 64 callers
that write 4 KiB each as fast as they can. Meanwhile another process computes without a pause, and a
follower, 2 and 3 in turn, is killed, left behind for longer than the log is kept, and started
again: it gets a snapshot.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass

import raftha
from bench.harness.embedded import read_config
from raftha.config import MIB
from raftha.events import EventKind
from raftha.server.machine import RedisMachine
from raftha.testing import LocalCluster

OWN, FOLLOWERS = 1, (2, 3)
CALLERS, VALUE_BYTES, KEYS = 64, 4096, 20_000
AWAY_S, BACK_S = 5.0, 10.0
SETTINGS = {
    "wal_segment_bytes": 16 * MIB,
    "max_wal_size": 4 * MIB,
    "log_retention_bytes": 4 * MIB,
}


@dataclass(frozen=True, slots=True)
class Soak:
    """What happened: elections and lost leaders must be 0."""

    seconds: float
    writes: int
    failed: int
    elections: int
    leaders_lost: int
    checkpoints: int
    snapshots_sent: int


def _write(ha: raftha.HaManager, caller: int, until: float, counts: Counter[str]) -> None:
    number = caller
    while time.monotonic() < until:
        try:
            ha.put(b"key-%d" % (number % KEYS), b"x" * VALUE_BYTES)
            counts["writes"] += 1
        except raftha.RafthaError:
            counts["failed"] += 1
        number += CALLERS


def _disturb(cluster: LocalCluster, until: float) -> None:
    """Make a follower fall behind, again and again."""
    pause, number = threading.Event(), 0
    while time.monotonic() + AWAY_S + BACK_S < until:
        follower = FOLLOWERS[number % 2]
        cluster.kill(follower)
        pause.wait(AWAY_S)
        cluster.start_node(follower)
        pause.wait(BACK_S)
        number += 1


def _lead(ha: raftha.HaManager) -> None:
    ha.put(b"warm", b"up", timeout=60)
    while not ha.get_status().is_primary:
        with suppress(raftha.RafthaError):
            ha.failover_to(OWN, timeout=2)


def run(cluster: LocalCluster, minutes: float) -> Soak:
    """Load the cluster for so long, and count."""
    counts: Counter[str] = Counter()
    with (
        raftha.HaManager(read_config(cluster.config_of(OWN)), state_machine=RedisMachine()) as ha,
        ha.events() as events,
    ):
        _lead(ha)
        while events.next(timeout=0.5) is not None:
            pass
        term, began = ha.get_status().term, time.monotonic()
        until = began + 60 * minutes
        threads = [
            threading.Thread(target=_write, args=(ha, caller, until, counts))
            for caller in range(CALLERS)
        ]
        threads.append(threading.Thread(target=_disturb, args=(cluster, until)))
        for thread in threads:
            thread.start()
        while time.monotonic() < until:
            event = events.next(timeout=1)
            if event is not None:
                counts[event.kind] += 1
        for thread in threads:
            thread.join()
        return Soak(
            time.monotonic() - began,
            counts["writes"],
            counts["failed"],
            ha.get_status().term - term,
            counts[EventKind.LEADER_LOST],
            counts[EventKind.CHECKPOINT_COMPLETED],
            counts[EventKind.SNAPSHOT_SENT],
        )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(options: argparse.Namespace) -> None:
    """Measure and print; exit code 1 if there was an election."""
    with LocalCluster(nodes=3, settings=SETTINGS) as cluster:
        cluster.terminate(OWN)
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            soak = run(cluster, options.minutes)
        finally:
            busy.kill()
            busy.wait()
    if options.json:
        print(json.dumps(asdict(soak), indent=2))
    else:
        print(
            f"{soak.seconds:.0f} s, {soak.writes} writes, {soak.failed} failed, "
            f"{soak.checkpoints} checkpoints, {soak.snapshots_sent} snapshots sent: "
            f"{soak.elections} elections, {soak.leaders_lost} leaders lost"
        )
    sys.exit(1 if soak.elections or soak.leaders_lost else 0)
