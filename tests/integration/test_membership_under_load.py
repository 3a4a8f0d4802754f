"""Real processes under load, while nodes come and go: no write fails, is lost or applied twice.

Every client writes unique keys and increments a counter that all share, each with an exactly-once
call that is sent again, through another node, until it has a reply. The load stays below one
segment of log: a node that joins late needs all of it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from raftha.client import Client
from raftha.errors import RafthaError
from raftha.testing import LocalCluster
from tests.support.load import check_alike, check_values, wait_removed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
CLIENTS = 6
COUNTER = b"counter"


@dataclass(slots=True)
class Record:
    """The writes that the cluster acknowledged; `failures` should stay empty."""

    values: dict[bytes, bytes] = field(default_factory=dict)
    increments: int = 0
    failures: list[RafthaError] = field(default_factory=list)


async def write_until(stop: threading.Event, name: int, client: Client, record: Record) -> None:
    number = 0
    while not stop.is_set():
        key, value = b"key/%d/%d" % (name, number), b"value %d" % number
        try:
            await client.once("SET", key, value)
            record.values[key] = value
            await client.once("INCR", COUNTER)
            record.increments += 1
        except RafthaError as error:
            record.failures.append(error)
            return
        number += 1
    await client.close()


async def write_all(addresses: list[str], stop: threading.Event, record: Record) -> None:
    clients = [
        Client(addresses[i % len(addresses) :] + addresses[: i % len(addresses)], timeout_s=60)
        for i in range(CLIENTS)
    ]
    await asyncio.gather(*(write_until(stop, i, c, record) for i, c in enumerate(clients)))


@contextmanager
def load(cluster: LocalCluster) -> Iterator[Record]:
    """Write through all nodes, members or not, until the block ends."""
    record, stop = Record(), threading.Event()
    addresses = list(cluster.addresses.values())
    thread = threading.Thread(target=lambda: asyncio.run(write_all(addresses, stop, record)))
    thread.start()
    try:
        yield record
    finally:
        stop.set()
        thread.join()


def wait_progress(record: Record, writes: int = 200, timeout_s: float = 30.0) -> None:
    """Wait until so many more writes are acknowledged."""
    target, deadline = record.increments + writes, time.monotonic() + timeout_s
    pause = threading.Event()
    while record.increments < target:
        assert not record.failures
        assert time.monotonic() < deadline, "writing has stopped"
        pause.wait(0.02)


def check(cluster: LocalCluster, record: Record, members: set[int]) -> None:
    """Every acknowledged write is there, once, on every member alike, and on no other node."""
    assert record.failures == []
    assert check_alike(cluster) == set(cluster.members()) == members
    for node_id in members:
        check_values(cluster, node_id, record.values)
        assert int(cluster.call(node_id, "GET", COUNTER)) == record.increments
        assert cluster.call(node_id, "DBSIZE") == len(record.values) + 1


def test_no_write_fails_while_two_nodes_come_and_two_go() -> None:
    with LocalCluster(3) as cluster:
        new = [cluster.add_node(), cluster.add_node()]
        with load(cluster) as record:
            wait_progress(record)
            for node_id in new:
                cluster.add_replica(node_id)
                wait_progress(record)
            leader = cluster.wait_leader()
            other = next(i for i in (1, 2, 3) if i != leader)
            for node_id in (leader, other):
                cluster.remove_replica(node_id)
                wait_progress(record)
        check(cluster, record, {1, 2, 3, *new} - {leader, other})


def test_a_node_that_lost_its_disk_comes_back_and_is_replaced_under_load() -> None:
    with LocalCluster(3) as cluster:
        new = cluster.add_node()
        with load(cluster) as record:
            wait_progress(record)
            wiped = next(i for i in (1, 2, 3) if i != cluster.wait_leader())
            cluster.kill(wiped)
            cluster.wipe(wiped)
            cluster.start_node(wiped)
            wait_progress(record)
            cluster.remove_replica(wiped)
            cluster.add_replica(new)
            wait_progress(record)
        check(cluster, record, {1, 2, 3, new} - {wiped})
        wait_removed(cluster, wiped)
