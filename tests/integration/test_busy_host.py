"""A host process that is busy with something else keeps its node's leadership.

One node, the leader, is in this process; the other two are processes of their own, through which
writes go on meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import pytest

import raftha
from raftha.server.machine import RedisMachine
from raftha.testing import LocalCluster
from tests.support.conditions import wait_until
from tests.support.nodes import read_config

BUSY_S = 3.0
SETTINGS = {"election_timeout_ms": 1000}
"""A leader that was silent for `BUSY_S` would have been replaced: that takes 2 s at most."""


@contextlib.contextmanager
def cluster_without_1() -> Iterator[tuple[LocalCluster, raftha.HaConfig]]:
    """The cluster, and what node 1 needs to run in this process."""
    with LocalCluster(3, settings=SETTINGS) as cluster:
        cluster.wait_ready()
        cluster.terminate(1)
        yield cluster, read_config(cluster.config_of(1))


def terms(cluster: LocalCluster) -> set[tuple[int, int]]:
    """Leaders and terms, as the nodes in the other processes know them."""
    statuses = (cluster.status(node_id) for node_id in (2, 3))
    return {(status["leader_id"], status["term"]) for status in statuses if status}


def check_leadership_is_kept(cluster: LocalCluster, be_busy: Callable[[], None]) -> None:
    """Write through another process while this one is busy; the leader and its term stay."""
    wait_until(lambda: [leader for leader, _ in terms(cluster)] == [1], "node 1 leads")
    before = terms(cluster)
    is_over = threading.Event()
    written: list[int] = []

    def write() -> None:
        while not is_over.is_set():
            cluster.call(2, "SET", "key", len(written))
            written.append(1)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        be_busy()
    finally:
        is_over.set()
        writer.join()
    assert len(written) > 3
    assert terms(cluster) == before


@pytest.mark.slow
def test_a_host_that_blocks_its_event_loop_keeps_leadership() -> None:
    with cluster_without_1() as (cluster, config):

        async def host() -> None:
            async with raftha.aio.HaManager(config, state_machine=RedisMachine()) as ha:
                await ha.put(b"led", b"by anyone")
                await ha.failover_to(1)
                block = lambda: time.sleep(BUSY_S)  # noqa: E731 - what a host should not do
                check_leadership_is_kept(cluster, block)
                assert (await ha.get_status()).is_primary

        asyncio.run(host())


@pytest.mark.slow
def test_a_host_whose_thread_computes_all_the_time_keeps_leadership() -> None:
    """It holds the GIL as Python threads do, until another has waited for 5 ms."""

    def compute() -> None:
        end, total = time.monotonic() + BUSY_S, 0
        while time.monotonic() < end:
            for number in range(1000):
                total += number * number

    with (
        cluster_without_1() as (cluster, config),
        raftha.HaManager(config, state_machine=RedisMachine()) as ha,
    ):
        ha.put(b"led", b"by anyone")
        ha.failover_to(1)
        check_leadership_is_kept(cluster, compute)
        assert ha.get_status().is_primary
