"""Three real processes under load, while nodes are killed or stopped at random: nothing is lost.

Every client writes unique keys, increments a counter of its own and one shared by all, each with an
exactly-once call that is sent again, through another node, until it is answered. Afterwards every
acknowledged write must be there, every counter must be exact, and all nodes must hold the same
data.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from raftha.client import Client
from raftha.errors import Indeterminate, Stopped, Unavailable
from raftha.testing import LocalCluster

LOAD_S = 30.0
CLIENTS = 8
SETTINGS = {
    # Small, so that segments roll and checkpoints are taken while nodes die.
    "wal_segment_bytes": 16 << 20,
    "max_wal_size": 1 << 20,
    "checkpoint_interval_sec": 1.0,
}


@dataclass(slots=True)
class Record:
    """What the cluster acknowledged."""

    values: dict[bytes, bytes] = field(default_factory=dict)
    increments: dict[bytes, int] = field(default_factory=dict)
    stale_reads: list[str] = field(default_factory=list)


async def write_until(end: float, name: int, client: Client, record: Record, seed: int) -> None:
    """One client: unique puts, increments, and reads of what it wrote, one after the other."""
    rng = random.Random(f"{seed} {name}")
    own = b"counter/%d" % name
    number = 0
    while time.monotonic() < end:
        match rng.randrange(4):
            case 0 | 1:
                key, value = b"key/%d/%d" % (name, number), rng.randbytes(rng.randrange(512))
                await client.once("SET", key, value)
                record.values[key] = value
            case 2:
                counter = rng.choice((own, b"counter/shared"))
                await client.once("INCR", counter)
                record.increments[counter] = record.increments.get(counter, 0) + 1
            case _ if record.increments.get(own):
                seen = int(await read(client, own))
                if seen != record.increments[own]:
                    record.stale_reads.append(f"{own!r}: {seen}, not {record.increments[own]}")
        number += 1


async def read(client: Client, key: bytes) -> bytes:
    """A linearizable read; asked again if the node went away, which changes nothing."""
    while True:
        try:
            value = await client.call("GET", key, timeout_s=3)
        except (Indeterminate, Unavailable, Stopped):
            continue
        assert isinstance(value, bytes)
        return value


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
    seed = int(os.environ.get("RAFTHA_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"replay with RAFTHA_SEED={seed}")
    record = Record()
    with LocalCluster(nodes=3, settings=SETTINGS) as cluster:

        async def load() -> int:
            addresses = list(cluster.addresses.values())
            clients = [
                Client(addresses[i % 3 :] + addresses[: i % 3], timeout_s=60)
                for i in range(CLIENTS)
            ]
            end = time.monotonic() + LOAD_S
            hurting = asyncio.create_task(
                asyncio.to_thread(
                    torment, cluster, lambda node_id, rng: hurt(cluster, node_id, rng), seed
                )
            )
            writing = (
                write_until(end, i, client, record, seed) for i, client in enumerate(clients)
            )
            await asyncio.gather(*writing)
            times = await hurting
            for client in clients:
                await client.close()
            return times

        times = asyncio.run(load())
        increments = sum(record.increments.values())
        print(f"{times} faults, {len(record.values)} puts, {increments} increments acknowledged")
        assert times >= 6, "too few faults to prove anything"
        assert len(record.values) > 500, "too few writes to prove anything"
        check(cluster, record)


def check(cluster: LocalCluster, record: Record) -> None:
    """Nothing lost, nothing twice, everywhere the same."""
    cluster.start()
    digests = cluster.digests()
    assert len({(d["sequence"], d["hex"]) for d in digests.values()}) == 1, digests
    for node_id in cluster.node_ids:
        keys = list(record.values)
        for start in range(0, len(keys), 500):
            part = keys[start : start + 500]
            found = cluster.call(node_id, "MGET", *part)
            assert found == [record.values[key] for key in part]
        counters = {
            counter: int(cluster.call(node_id, "GET", counter)) for counter in record.increments
        }
        assert counters == record.increments
        held = cluster.call(node_id, "DBSIZE")
        assert held == len(record.values) + len(record.increments)
    assert not record.stale_reads


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
