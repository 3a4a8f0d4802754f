"""Nodes lose power under load, on a file system that forgets unsynced data: nothing is lost.

Each of three processes has its data directory on a file system of `tests.faultfs`. A node that
loses power is killed, its file system is unmounted and forgets unsynced bytes and names (none, all,
or a torn part, by the seed), and the node starts again on what is left.

RAFTHA_POWER_LOSSES says how many times; RAFTHA_SEED repeats the choices.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from pathlib import Path

import pytest

from raftha.testing import LocalCluster
from tests.faultfs.cluster import cluster_on_disks
from tests.faultfs.mount import FaultFs, why_not
from tests.support.load import SETTINGS, Record, check, choose_seed, run_load

POWER_LOSSES = int(os.environ.get("RAFTHA_POWER_LOSSES", "10"))
OUTAGES = 3
"""How often all nodes lose power at once."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=f"no FUSE: {why_not()}"),
]


def lose_power(
    cluster: LocalCluster, disks: dict[int, FaultFs], node_ids: tuple[int, ...], seed: int
) -> None:
    """Cut the power of these nodes, and start them again."""
    for node_id in node_ids:
        cluster.kill(node_id)
    for node_id in node_ids:
        disks[node_id].lose_power(seed + node_id)
    for node_id in node_ids:
        cluster.start_node(node_id)


@pytest.mark.timeout(60 + 6 * (POWER_LOSSES + OUTAGES))
def test_no_acknowledged_write_is_lost_when_nodes_lose_power(tmp_path: Path) -> None:
    """One at a time, the leader as often as others, then all at once; all come back."""
    seed = choose_seed()
    rng = random.Random(seed)
    record = Record()
    with cluster_on_disks(tmp_path, SETTINGS) as (cluster, disks):

        def torment() -> None:
            clock = threading.Event()
            for number in range(POWER_LOSSES + OUTAGES):
                leader = cluster.wait_ready()
                clock.wait(rng.uniform(0, 0.5))
                if number < POWER_LOSSES:
                    followers = [n for n in cluster.node_ids if n != leader]
                    struck: tuple[int, ...] = (rng.choice([leader, rng.choice(followers)]),)
                else:
                    struck = cluster.node_ids
                lose_power(cluster, disks, struck, rng.randrange(1 << 30))
            cluster.wait_ready()

        began = time.monotonic()
        asyncio.run(run_load(cluster, record, seed, torment))
        increments = sum(record.increments.values())
        print(
            f"{POWER_LOSSES} power losses of a node and {OUTAGES} of all in"
            f" {time.monotonic() - began:.0f} s,"
            f" {len(record.values)} puts and {increments} increments acknowledged"
        )
        assert len(record.values) > 50 * OUTAGES, "too few writes to prove anything"
        check(cluster, record)


def test_acknowledged_writes_are_lost_when_all_disks_lie_and_power_fails(tmp_path: Path) -> None:
    """The test above can fail: without real syncs, acknowledged writes are gone."""
    with cluster_on_disks(tmp_path, SETTINGS) as (cluster, disks):
        cluster.call(cluster.wait_leader(), "SET", "before", "kept")
        for disk in disks.values():
            disk.ignore_syncs()
        assert cluster.call(cluster.wait_leader(), "SET", "key", "value") == b"OK"
        for node_id in cluster.node_ids:
            cluster.kill(node_id)
        for disk in disks.values():
            disk.lose_power(seed=1, chance=0.0)
            disk.ignore_syncs(ignores=False)
        cluster.start()
        assert cluster.call(cluster.wait_leader(), "GET", "before") == b"kept"
        assert cluster.call(cluster.wait_leader(), "GET", "key") is None
