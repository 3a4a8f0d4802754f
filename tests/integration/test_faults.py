"""Three real processes under load, while nodes are killed or stopped at random: nothing is lost."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable

import pytest

from raftha.testing import LocalCluster
from tests.integration.load import SETTINGS, Record, check, choose_seed, run_load

LOAD_S = 20.0


def torment(cluster: LocalCluster, hurt: Callable[[int, random.Random], None], seed: int) -> int:
    """Every 2 to 4 s, `hurt` a random node; returns how often, after `LOAD_S`."""
    rng = random.Random(seed)
    clock = threading.Event()
    end = time.monotonic() + LOAD_S
    times = 0
    while (pause := rng.uniform(2, 4)) < end - time.monotonic():
        clock.wait(pause)
        hurt(rng.choice(cluster.node_ids), rng)
        times += 1
    return times


def run(hurt: Callable[[LocalCluster, int, random.Random], None]) -> None:
    seed = choose_seed()
    record = Record()
    with LocalCluster(nodes=3, settings=SETTINGS) as cluster:
        times = 0

        def hurt_some() -> None:
            nonlocal times
            times = torment(cluster, lambda node_id, rng: hurt(cluster, node_id, rng), seed)

        asyncio.run(run_load(cluster, record, seed, hurt_some))
        increments = sum(record.increments.values())
        print(f"{times} faults, {len(record.values)} puts, {increments} increments acknowledged")
        assert times >= 6, "too few faults to prove anything"
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
