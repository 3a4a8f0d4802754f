"""The memory of real processes under a flood, with one follower that is stuck.

The bound is the one that docs/internals/limits.md states («Memory»), computed from the settings.
The flood is more than that, and comes through the leader and the live follower at once: large
values and small ones, on connections some of which never read a reply.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable

import hiredis
import pytest
import uvloop

from bench.harness.machine import rss_anon_bytes
from raftha.client.resp import REQUEST_BYTES_MAX, pack_request
from raftha.config import MIB, parse_address
from raftha.core import CoreConfig
from raftha.net.connection import OUTGOING_BYTES_MAX
from raftha.node.proposals import BATCH_BYTES_MAX, PROPOSAL_QUEUE_BYTES_MAX, UNCOMMITTED_BYTES_MAX
from raftha.runtime.callers import READ_BYTES_MAX
from raftha.server.connection import WAITING_BYTES_MAX
from raftha.storage.state.sessions import OUTCOMES_BYTES_MAX
from raftha.testing import LocalCluster
from tests.support.load import check_alike

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

SETTINGS = {
    "wal_segment_bytes": 16 * MIB,
    "max_wal_size": 2 * MIB,
    "log_retention_bytes": 16 * MIB,
    "submit_queue_bytes_max": 8 * MIB,
}
CONNECTIONS = 8
LARGE, SMALL = bytes(512 * 1024), b"small"
TIMEOUT_S = 60.0
BASE_BYTES = 128 * MIB
"""The interpreter, the libraries, and memory that the allocator doesn't return."""


Replies = Counter[str]


async def count_replies(reader: asyncio.StreamReader, replies: Replies) -> None:
    """Count replies by their first word, to the end of the connection."""
    parser = hiredis.Reader()
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            parser.feed(data)
            while (reply := parser.gets()) is not False:
                replies["OK" if reply == b"OK" else str(reply).split()[0]] += 1


async def write(address: str, name: int, replies: Replies, *, reads: bool) -> None:
    """Send writes as fast as the server takes them; large ones on every other connection."""
    reader, writer = await asyncio.open_connection(*parse_address("address", address))
    counting = asyncio.create_task(count_replies(reader, replies if reads else Counter()))
    if not reads:
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # of its reading half
    number = name << 32
    value, count = (LARGE, 1) if name % 2 else (SMALL, 200)
    try:
        while True:
            requests = [pack_request(("SET", b"%d" % (number + i), value)) for i in range(count)]
            number += count
            writer.write(b"".join(requests))
            replies["sent"] += sum(map(len, requests))
            await writer.drain()
    except OSError:
        assert not reads, "only those who take no replies are cut off"
    finally:
        counting.cancel()
        writer.transport.abort()


async def flood(addresses: list[str], enough_bytes: int, look: Callable[[], None]) -> Replies:
    """Write through these nodes until so much was sent; measure their memory meanwhile."""
    replies: Replies = Counter()
    tasks = [
        asyncio.create_task(
            write(address, 2 * CONNECTIONS * place + name, replies, reads=name % 4 < 3)
        )
        for place, address in enumerate(addresses)
        for name in range(CONNECTIONS)
    ]
    async with asyncio.timeout(TIMEOUT_S):
        while replies["sent"] < enough_bytes:
            await asyncio.to_thread(look)
            await asyncio.wait(tasks, timeout=0.1, return_when=asyncio.FIRST_EXCEPTION)
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert result is None or isinstance(result, asyncio.CancelledError), result
    return replies


def bound_bytes(peers: int) -> int:
    """The memory that a node may take, by docs/internals/limits.md."""
    core = CoreConfig(node_id=1)
    largest_buffer = 2 * SETTINGS["max_wal_size"] + UNCOMMITTED_BYTES_MAX + BATCH_BYTES_MAX
    return (
        BASE_BYTES
        + SETTINGS["submit_queue_bytes_max"]
        + READ_BYTES_MAX
        + PROPOSAL_QUEUE_BYTES_MAX
        + UNCOMMITTED_BYTES_MAX
        + BATCH_BYTES_MAX
        + core.window_bytes_max
        + 2 * largest_buffer
        + peers * OUTGOING_BYTES_MAX
        + OUTCOMES_BYTES_MAX
        + CONNECTIONS * 2 * (REQUEST_BYTES_MAX + WAITING_BYTES_MAX)
    )


def test_memory_stays_bounded_under_a_flood_while_a_follower_is_stuck() -> None:
    with LocalCluster(3, settings=SETTINGS) as cluster:
        leader = cluster.wait_leader()
        stuck, other = (i for i in cluster.node_ids if i != leader)
        cluster.pause(stuck)
        most: dict[int, int] = {}

        def look() -> None:
            for node_id in (leader, other):
                used = rss_anon_bytes(cluster.pid(node_id))
                most[node_id] = max(most.get(node_id, 0), used)

        addresses = [cluster.addresses[i] for i in (leader, other)]
        bound = bound_bytes(peers=2)
        replies = uvloop.run(flood(addresses, 2 * bound, look))
        mib = {node_id: used // MIB for node_id, used in most.items()}
        print(f"bound {bound // MIB} MiB, at most {mib}, {dict(replies)}")
        assert max(most.values()) < bound
        assert replies["OK"] > 0
        assert replies["OVERLOADED"] > 0
        cluster.resume(stuck)
        cluster.wait_ready()
        assert check_alike(cluster) == {1, 2, 3}
