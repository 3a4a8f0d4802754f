"""When a write's caller is released: modes, quorums, receipts. Nodes in this process."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import raftha
from raftha import ReplicationConfig, ReplicationMode
from raftha.client import Client
from raftha.config import MIB
from raftha.testing import LocalCluster
from tests.support.conditions import wait_until
from tests.support.nodes import found_once, free_addresses, make_config

REGIONS = ("eu", "us", "ap")
ACK_TIMEOUT_MS = 300


@contextmanager
def running(folder: Path, size: int, **replication: Any) -> Iterator[list[raftha.HaManager]]:
    """A cluster of so many nodes, the third in another region than the first two."""
    members = dict(enumerate(free_addresses(size), start=1))
    regions = {i: REGIONS[(i - 1) % 3] for i in members}
    settings = ReplicationConfig(ack_timeout_ms=ACK_TIMEOUT_MS, **replication)
    found_once(folder, members, regions=regions)
    managers = [
        raftha.HaManager(
            replace(
                make_config(folder, node_id, members),
                regions=REGIONS,
                member_regions=regions,
                replication=settings,
            )
        )
        for node_id in members
    ]
    try:
        for manager in managers:
            manager.start()
        managers[0].put(b"leader", b"wanted")
        wait_until(lambda: all(m.get_status().leader_id for m in managers), "a leader")
        yield managers
    finally:
        for manager in managers:
            manager.stop()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[raftha.HaManager]]:
    with running(tmp_path_factory.mktemp("modes"), 3) as managers:
        yield managers


def leader_of(nodes: Sequence[raftha.HaManager]) -> raftha.HaManager:
    for node in nodes:
        if node.get_status().is_primary:
            return node
    raise AssertionError("no node leads")


def others(nodes: Sequence[raftha.HaManager], *without: raftha.HaManager) -> raftha.HaManager:
    return next(node for node in nodes if node not in without)


def test_sync_is_acknowledged_by_all_voters_through_any_node(
    nodes: list[raftha.HaManager],
) -> None:
    for node in nodes:
        receipt = node.put(b"sync", b"1", mode="sync")
        assert receipt.acked_by == (1, 2, 3)
        assert receipt.regions == REGIONS
        assert receipt.mode is ReplicationMode.SYNC
        assert receipt.is_committed


def test_a_receipt_names_at_least_a_majority_and_the_node_that_was_asked(
    nodes: list[raftha.HaManager],
) -> None:
    for node in nodes:
        for number in range(20):
            receipt = node.put(b"majority", b"%d" % number)
            assert len(receipt.acked_by) >= 2
            assert node.config.node_id in receipt.acked_by
            assert receipt.regions == tuple(REGIONS[i - 1] for i in receipt.acked_by)
            assert receipt.mode is ReplicationMode.ASYNC_WITH_ACK


def test_each_kind_of_write_takes_a_mode(nodes: list[raftha.HaManager]) -> None:
    node = nodes[0]
    for receipt in (
        node.put(b"kind", b"1", mode="sync"),
        node.compare_and_set(b"kind", b"1", b"2", mode="sync"),
        node.transaction([], [raftha.Get(b"kind")], mode="sync"),
        node.delete(b"kind", mode=ReplicationMode.SYNC),
        node.put(b"kind", b"3", write_quorum=3),
    ):
        assert receipt.acked_by == (1, 2, 3)


@pytest.mark.parametrize(
    "call",
    [
        lambda ha: ha.put(b"k", b"v", mode="eventually"),
        lambda ha: ha.put(b"k", b"v", write_quorum=1),
        lambda ha: ha.put(b"k", b"v", write_quorum=4),
        lambda ha: ha.put(b"k", b"v", write_quorum=-1),
        lambda ha: ha.put(b"k", b"v", write_quorum="2"),
        lambda ha: ha.put(b"k", b"v", mode="sync", write_quorum=3),
        lambda ha: ha.put(b"k", b"v", mode="async_fire_forget", write_quorum=3),
    ],
)
def test_an_unknown_mode_or_impossible_quorum_is_invalid(
    nodes: list[raftha.HaManager], call: Callable[[raftha.HaManager], object]
) -> None:
    nodes[0].put(b"k", b"before")
    for node in nodes[:2]:
        with pytest.raises(raftha.InvalidRequest):
            call(node)
    assert nodes[0].get(b"k") == b"before"


def test_a_write_quorum_below_a_majority_of_the_members_is_a_config_error(tmp_path: Path) -> None:
    members = dict(enumerate(free_addresses(3), start=1))
    with pytest.raises(raftha.ConfigError, match="write_quorum"):
        replace(make_config(tmp_path, 1, members), replication=ReplicationConfig(write_quorum=1))


def test_fire_and_forget_releases_at_once_and_applies_all_of_it(
    nodes: list[raftha.HaManager],
) -> None:
    for node in nodes:
        before = node.get_status().fire_forget
        for number in range(100):
            receipt = node.put(b"forget/%d" % number, b"x", mode="async_fire_forget")
            assert not receipt.is_committed
            assert not receipt
            assert (receipt.sequence, receipt.acked_by) == (0, ())
            assert receipt.mode is ReplicationMode.ASYNC_FIRE_FORGET

        def all_done(node: raftha.HaManager = node, before: int = before.committed) -> bool:
            return node.get_status().fire_forget.committed == before + 100

        wait_until(all_done, "all are committed")
        counts = node.get_status().fire_forget
        assert (counts.submitted, counts.pending) == (counts.committed, 0)
        assert len(node.scan(b"forget/", b"forget0")) == 100
        node.transaction([], [raftha.Delete(b"forget/%d" % i) for i in range(100)])


def test_aio_has_the_same_modes(tmp_path: Path) -> None:
    members = dict(enumerate(free_addresses(3), start=1))

    async def use() -> None:
        async with (
            raftha.aio.HaManager(make_config(tmp_path, 1, members)) as one,
            raftha.aio.HaManager(make_config(tmp_path, 2, members)) as two,
            raftha.aio.HaManager(make_config(tmp_path, 3, members)),
        ):
            for node in (one, two):
                receipt = await node.put(b"a", b"1", mode="sync", timeout=30)
                assert receipt.acked_by == (1, 2, 3)
                with pytest.raises(raftha.InvalidRequest):
                    await node.put(b"a", b"1", write_quorum=1)
                # In order with the earlier operations of the same task.
                future = asyncio.ensure_future(node.put(b"a", b"2"))
                await asyncio.sleep(0)
                assert not await node.put(b"a", b"3", mode="async_fire_forget")
                await future
                assert await node.get(b"a") == b"3"
                counts = (await node.get_status()).fire_forget
                assert (counts.submitted, counts.committed) == (1, 1)

    asyncio.run(use())


@pytest.mark.slow
def test_sync_with_a_dead_voter_times_out_and_the_write_is_there(
    tmp_path: Path,
) -> None:
    with running(tmp_path, 3) as nodes:
        leader = leader_of(nodes)
        dead = others(nodes, leader)
        dead.stop()
        for node in nodes:
            if node is dead:
                continue
            began = time.monotonic()
            with pytest.raises(raftha.AcknowledgementTimeout) as timeout:
                node.put(b"sync", b"%d" % node.config.node_id, mode="sync")
            took_ms = 1000 * (time.monotonic() - began)
            assert ACK_TIMEOUT_MS <= took_ms < ACK_TIMEOUT_MS + 2000
            error = timeout.value
            assert isinstance(error, raftha.Indeterminate)
            assert error.missing == (dead.config.node_id,)
            assert error.receipt.sequence > 0
            assert len(error.receipt.acked_by) == 2
            assert node.get(b"sync") == b"%d" % node.config.node_id
            # The call's own deadline may come first.
            began = time.monotonic()
            with pytest.raises(raftha.AcknowledgementTimeout):
                node.put(b"sync", b"hasty", mode="sync", timeout=0.1)
            assert time.monotonic() - began < ACK_TIMEOUT_MS / 1000
            assert node.put(b"sync", b"asked for less")


@pytest.mark.slow
def test_a_server_reports_a_write_that_lacks_disks_as_committed() -> None:
    settings = {"replication": {"mode": "sync", "ack_timeout_ms": 300}}
    with LocalCluster(nodes=3, settings=settings) as cluster:
        leader = cluster.wait_ready()
        assert cluster.call(leader, "SET", "key", "by all") == b"OK"
        silent = next(i for i in cluster.node_ids if i != leader)
        cluster.pause(silent)
        host, _, port = cluster.addresses[leader].rpartition(":")
        with socket.create_connection((host, int(port)), 10) as connection:
            connection.sendall(b"SET key lacking\r\n")
            assert connection.recv(1000).startswith(b"-ACKTIMEOUT committed as entry")
        assert cluster.call(leader, "GET", "key") == b"lacking"
        with pytest.raises(raftha.AcknowledgementTimeout):
            cluster.call(leader, "SET", "key", "again")

        async def count_once() -> None:
            reachable = [cluster.addresses[i] for i in cluster.node_ids if i != silent]
            async with Client(reachable) as client:
                await client.once("INCR", "count", timeout_s=1.5)

        with pytest.raises(raftha.AcknowledgementTimeout):
            asyncio.run(count_once())
        assert cluster.call(leader, "GET", "count") == b"1"


@pytest.mark.slow
def test_sync_waits_no_longer_for_a_voter_that_is_removed_meanwhile(tmp_path: Path) -> None:
    with running(tmp_path, 3) as nodes:
        dead = others(nodes, leader_of(nodes))
        dead.stop()
        asked = others(nodes, dead)
        patient = replace(
            asked.config.replication, ack_timeout_ms=60_000, mode=ReplicationMode.SYNC
        )
        asked.stop()
        asked = raftha.HaManager(replace(asked.config, replication=patient))
        with asked:
            receipts: list[raftha.Receipt] = []
            writer = threading.Thread(
                target=lambda: receipts.append(asked.put(b"sync", b"by config", timeout=60))
            )
            writer.start()
            wait_until(
                lambda: asked.get(b"sync", consistency="stale") == b"by config", "it is applied"
            )
            assert not receipts
            asked.remove_replica(dead.config.node_id, timeout=60)
            writer.join(30)
            (receipt,) = receipts
            assert dead.config.node_id not in receipt.acked_by
            assert len(receipt.acked_by) == 2


@pytest.mark.slow
def test_a_write_quorum_of_four_in_five_takes_four_disks(tmp_path: Path) -> None:
    with running(tmp_path, 5, write_quorum=4) as nodes:
        for node in nodes[:2]:
            receipt = node.put(b"four", b"of five")
            assert len(receipt.acked_by) >= 4
        fifth = others(nodes, leader_of(nodes))
        fifth.stop()
        assert len(leader_of(nodes).put(b"four", b"are left").acked_by) == 4
        fourth = others(nodes, leader_of(nodes), fifth)
        fourth.stop()
        for node in nodes:
            if node in (fourth, fifth):
                continue
            with pytest.raises(raftha.AcknowledgementTimeout) as timeout:
                node.put(b"four", b"are not left")
            assert set(timeout.value.missing) == {fourth.config.node_id, fifth.config.node_id}
            assert len(node.put(b"three", b"are", write_quorum=3).acked_by) == 3


@pytest.mark.slow
def test_fire_and_forget_is_refused_by_a_full_queue_and_counts_failures(
    tmp_path: Path,
) -> None:
    """One of three nodes alone: nothing commits, so the queue fills."""
    members = dict(enumerate(free_addresses(3), start=1))
    settings = ReplicationConfig(mode=ReplicationMode.ASYNC_FIRE_FORGET)
    config = replace(
        make_config(tmp_path, 1, members),
        replication=settings,
        submit_queue_bytes_max=8 * MIB,
        request_timeout_s=1.0,
    )
    with raftha.HaManager(config) as node:
        for _ in range(8):
            node.put(b"large", bytes(MIB - 1000))
        with pytest.raises(raftha.Overloaded):
            node.put(b"large", bytes(MIB - 1000))
        assert node.get_status().fire_forget.submitted == 8
        wait_until(lambda: node.get_status().fire_forget.failed == 8, "their deadline passes")
        assert node.get_status().fire_forget.pending == 0
    with pytest.raises(raftha.Stopped):
        node.put(b"k", b"v")
    assert node.get_status().fire_forget.submitted == 8
