"""Clients that know exactly what a cluster has acknowledged, and the check that it is all there.

Every client writes unique keys, increments a counter of its own and one shared by all, each with an
exactly-once call that is sent again, through another node, until it has a reply. Afterwards every
acknowledged write must be there, every counter must be exact, and all nodes must hold the same
data.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from raftha.client import Client
from raftha.errors import Indeterminate, Stopped, Unavailable
from raftha.testing import LocalCluster
from tests.support.conditions import wait_until

CLIENTS = 8
SETTINGS = {
    # Small, so that segments roll and checkpoints are taken while nodes die.
    "wal_segment_bytes": 16 << 20,
    "max_wal_size": 1 << 20,
    "checkpoint_interval_sec": 1.0,
}


@dataclass(slots=True)
class Record:
    """The writes that the cluster acknowledged."""

    values: dict[bytes, bytes] = field(default_factory=dict)
    increments: dict[bytes, int] = field(default_factory=dict)
    stale_reads: list[str] = field(default_factory=list)


async def write_until(
    is_over: Callable[[], bool],
    name: int,
    client: Client,
    record: Record,
    seed: int,
    pause_s: float = 0,
) -> None:
    """One client: unique puts, increments, and reads of what it wrote, one after the other."""
    rng = random.Random(f"{seed} {name}")
    own = b"counter/%d" % name
    number = 0
    while not is_over():
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
        await asyncio.sleep(pause_s)


async def read(client: Client, key: bytes) -> bytes:
    """A linearizable read; repeated if the node went away, which changes nothing."""
    while True:
        try:
            value = await client.call("GET", key, timeout_s=3)
        except (Indeterminate, Unavailable, Stopped):
            continue
        assert isinstance(value, bytes)
        return value


async def run_load(
    cluster: LocalCluster,
    record: Record,
    seed: int,
    torment: Callable[[], None],
    count: int = CLIENTS,
    pause_s: float = 0,
) -> None:
    """Let `count` clients write, each preferring another node, while `torment` runs in a thread."""
    addresses = list(cluster.addresses.values())
    clients = [Client(addresses[i % 3 :] + addresses[: i % 3], timeout_s=60) for i in range(count)]
    tormenting = asyncio.create_task(asyncio.to_thread(torment))
    writing = (
        write_until(tormenting.done, i, client, record, seed, pause_s)
        for i, client in enumerate(clients)
    )
    await asyncio.gather(*writing)
    await tormenting
    for client in clients:
        await client.close()


def choose_seed() -> int:
    """The seed of this run, from RAFTHA_SEED if that is set; printed."""
    seed = int(os.environ.get("RAFTHA_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"replay with RAFTHA_SEED={seed}")
    return seed


def check_alike(cluster: LocalCluster) -> set[int]:
    """Check that all nodes hold the same data; return their ids."""
    digests = cluster.digests()
    assert len({(d["sequence"], d["hex"]) for d in digests.values()}) == 1, digests
    return set(digests)


def check_values(cluster: LocalCluster, node_id: int, values: Mapping[bytes, bytes]) -> None:
    """Check that a node holds all of these."""
    keys = list(values)
    for start in range(0, len(keys), 500):
        part = keys[start : start + 500]
        found = cluster.call(node_id, "MGET", *part)
        assert found == [values[key] for key in part]


def wait_removed(cluster: LocalCluster, node_id: int) -> dict[str, Any]:
    """Wait until a node knows that it was removed; return its status."""
    found: dict[str, Any] = {}

    def is_removed() -> bool:
        found.update(cluster.status(node_id) or {"role": ""})
        return bool(found["role"] == "removed")

    wait_until(is_removed, f"node {node_id} doesn't know that it was removed")
    return found


def check(cluster: LocalCluster, record: Record) -> None:
    """Start all nodes; check that no write is lost or applied twice, and that all nodes agree."""
    cluster.start()
    check_alike(cluster)
    for node_id in cluster.node_ids:
        check_values(cluster, node_id, record.values)
        counters = {
            counter: int(cluster.call(node_id, "GET", counter)) for counter in record.increments
        }
        assert counters == record.increments
        held = cluster.call(node_id, "DBSIZE")
        assert held == len(record.values) + len(record.increments)
    assert not record.stale_reads
