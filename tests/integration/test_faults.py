"""Three real processes under load, while nodes are killed or stopped at random: nothing is lost."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable

import pytest

from raftha.testing import LocalCluster
from tests.support.load import SETTINGS, Record, check, choose_seed, run_load

FAULTS = 6


def torment(cluster: LocalCluster, hurt: Callable[[int, random.Random], None], seed: int) -> None:
    """`hurt` a random node, again and again, at intervals of 1.5 to 3.5 s."""
    rng = random.Random(seed)
    clock = threading.Event()
    for _ in range(FAULTS):
        clock.wait(rng.uniform(1.5, 3.5))
        hurt(rng.choice(cluster.node_ids), rng)
    clock.wait(1.5)


def run(hurt: Callable[[LocalCluster, int, random.Random], None]) -> None:
    seed = choose_seed()
    record = Record()
    with LocalCluster(nodes=3, settings=SETTINGS) as cluster:

        def hurt_some() -> None:
            torment(cluster, lambda node_id, rng: hurt(cluster, node_id, rng), seed)

        asyncio.run(run_load(cluster, record, seed, hurt_some))
        increments = sum(record.increments.values())
        print(f"{FAULTS} faults, {len(record.values)} puts, {increments} increments acknowledged")
        assert len(record.values) > 500, "too few writes to prove anything"
        check(cluster, record)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_nothing_is_lost_or_applied_twice_when_nodes_are_killed() -> None:
    def kill(cluster: LocalCluster, node_id: int, rng: random.Random) -> None:
        cluster.kill(node_id)
        threading.Event().wait(rng.uniform(0, 1))
        cluster.start_node(node_id)

    run(kill)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_nothing_is_lost_or_applied_twice_when_nodes_stand_still() -> None:
    def pause(cluster: LocalCluster, node_id: int, rng: random.Random) -> None:
        cluster.pause(node_id)
        threading.Event().wait(rng.uniform(0.2, 1.8))
        cluster.resume(node_id)

    run(pause)
