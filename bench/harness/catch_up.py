"""A node that the log can't help comes back and gets a snapshot, while writes go on.

Theory of operation. One thread sends writes to the leader in an open loop (`Load`). Another
observes the nodes from outside meanwhile (`Watch`). Their own logs show what they did (`Events`).
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import hiredis
import uvloop

from bench.harness.load import KEYS, VALUE_BYTES
from bench.harness.machine import rss_anon_bytes
from raftha.client.resp import pack_request
from raftha.config import MIB, parse_address
from raftha.testing import LocalCluster

FILL_BYTES = 16 * 1024
FILL_WINDOW = 512
CONNECTIONS = 4
PERIOD_S = 0.002
POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class Window:
    """The writes that were due in one part of the run; latencies in milliseconds."""

    seconds: float
    writes: int
    p50_ms: float
    p99_ms: float
    max_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One run."""

    before: Window
    during: Window
    after: Window
    failed_writes: int
    caught_up_s: float
    snapshots: int
    snapshot_bytes: int
    elections: int
    rss_anon_mib: Mapping[int, float]

    @property
    def ratio(self) -> float:
        """How much longer the slowest of a hundred writes takes during the transfer."""
        return self.during.p99_ms / self.before.p99_ms


class Stream(asyncio.Protocol):
    """A pipelined connection: when each write was due, and how long it then took."""

    def __init__(self) -> None:
        self.taken: list[tuple[float, float]] = []
        self.failed: list[str] = []
        self.answered = asyncio.Event()
        self._due: deque[float] = deque()
        self._reader = hiredis.Reader()
        self._transport: asyncio.Transport | None = None

    @property
    def pending(self) -> int:
        """Writes that have no answer yet."""
        return len(self._due)

    def send(self, requests: list[bytes], due: list[float]) -> None:
        """Send writes; `due` is on the clock of `time.perf_counter`."""
        assert self._transport is not None
        self._due.extend(due)
        self._transport.write(b"".join(requests))

    async def finish(self) -> None:
        """Wait for the last answers, and close."""
        while self._due:
            self.answered.clear()
            await self.answered.wait()
        assert self._transport is not None
        self._transport.abort()
        await asyncio.sleep(0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        now = time.perf_counter()
        while (reply := self._reader.gets()) is not False:
            due = self._due.popleft()
            self.taken.append((due, now - due))
            if isinstance(reply, hiredis.ReplyError):
                self.failed.append(str(reply))
        self.answered.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.failed += ["the connection was lost"] * len(self._due)
        self._due.clear()
        self.answered.set()


async def connect(address: str) -> list[Stream]:
    """A few connections to one node."""
    loop = asyncio.get_running_loop()
    target = parse_address("address", address)
    return [(await loop.create_connection(Stream, *target))[1] for _ in range(CONNECTIONS)]


async def fill(address: str, log_bytes: int) -> None:
    """Write so much, as fast as possible."""
    value = os.urandom(FILL_BYTES)
    loop = asyncio.get_running_loop()
    _, stream = await loop.create_connection(Stream, *parse_address("address", address))
    for number in range(log_bytes // FILL_BYTES):
        stream.send([pack_request(("SET", b"fill-%d" % number, value))], [time.perf_counter()])
        while stream.pending >= FILL_WINDOW:
            stream.answered.clear()
            await stream.answered.wait()
    await stream.finish()
    assert not stream.failed, stream.failed[0]


class Load:
    """Writes at a fixed rate, on a thread of their own, until `stop`."""

    def __init__(self, address: str, rate: float) -> None:
        self.streams: list[Stream] = []
        self._address = address
        self._rate = rate
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._run()))
        self._thread.start()

    def stop(self) -> None:
        """Stop, and wait for the last replies."""
        self._is_over.set()
        self._thread.join()

    async def _run(self) -> None:
        self.streams = await connect(self._address)
        value = os.urandom(VALUE_BYTES)
        began, sent = time.perf_counter(), 0
        while not self._is_over.is_set():
            now = time.perf_counter()
            due_count = int((now - began) * self._rate)
            for i, stream in enumerate(self.streams):
                numbers = [n for n in range(sent, due_count) if n % CONNECTIONS == i]
                if numbers:
                    requests = [
                        pack_request(("SET", b"%016d" % (n % KEYS), value)) for n in numbers
                    ]
                    stream.send(requests, [began + n / self._rate for n in numbers])
            sent = due_count
            await asyncio.sleep(PERIOD_S)
        for stream in self.streams:
            await stream.finish()

    def window(self, begin: float, end: float) -> Window:
        """What was due from `begin` to before `end`."""
        taken = sorted(
            took for stream in self.streams for due, took in stream.taken if begin <= due < end
        )
        assert taken, "nothing was written"
        return Window(
            end - begin,
            len(taken),
            1000 * taken[len(taken) // 2],
            1000 * taken[len(taken) * 99 // 100],
            1000 * taken[-1],
        )


@dataclass(slots=True)
class Watch:
    """Observes the nodes from outside."""

    cluster: LocalCluster
    rss_anon: dict[int, int] = field(default_factory=dict)
    snapshot_bytes: int = 0

    def look(self) -> None:
        """Record memory, and the snapshot if there is one."""
        for node_id in self.cluster.running:
            used = rss_anon_bytes(self.cluster.pid(node_id))
            self.rss_anon[node_id] = max(self.rss_anon.get(node_id, 0), used)
            for snapshot in self.cluster.data_of(node_id).glob("outgoing/*/data.mdb"):
                try:
                    self.snapshot_bytes = max(self.snapshot_bytes, snapshot.stat().st_size)
                except FileNotFoundError:
                    continue  # It was sent just now.

    def watch(self, until: float) -> None:
        """Look, until then."""
        while time.perf_counter() < until:
            self.look()
            time.sleep(POLL_S)  # Poll: other processes change.

    def wait_caught_up(self, node_id: int, leader: int) -> None:
        """Wait until the node has applied what the leader had a moment ago."""
        deadline = time.monotonic() + 1800
        while time.monotonic() < deadline:
            ahead = self._status(leader)["last_index"]
            time.sleep(POLL_S)  # Poll: other processes change.
            self.look()
            behind = self.cluster.status(node_id)
            if behind is not None and behind["applied_index"] >= ahead:
                return
        raise AssertionError(f"node {node_id} has not caught up in half an hour")

    def _status(self, node_id: int) -> dict[str, Any]:
        status = self.cluster.status(node_id)
        assert status is not None, f"node {node_id} does not answer"
        return status


class Events:
    """The lines that nodes have added to their logs since this object was made."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster
        self._from = {i: cluster.log_path(i).stat().st_size for i in cluster.node_ids}

    def count(self, node_id: int, *words: str) -> int:
        """The lines in which all of these occur."""
        with self._cluster.log_path(node_id).open(encoding="utf-8", errors="replace") as file:
            file.seek(self._from[node_id])
            return sum(all(word in line for word in words) for line in file)

    def elections(self, gone: int) -> int:
        """How often a node campaigned, or a follower lost its leader by a timeout."""
        candidacies = sum(
            self.count(i, "event=RoleChanged", "candidate") for i in self._from if i != gone
        )
        return candidacies + self.count(gone, "event=LeaderLost", "reason=timeout")


def run(cluster: LocalCluster, log_bytes: int, rate: float, seconds: float) -> Report:
    """Stop a follower, write, load, start it, wait."""
    leader = cluster.wait_leader()
    gone = next(i for i in cluster.node_ids if i != leader)
    cluster.terminate(gone)
    uvloop.run(fill(cluster.addresses[leader], log_bytes))
    watch, events = Watch(cluster), Events(cluster)
    load = Load(cluster.addresses[leader], rate)
    try:
        begin = time.perf_counter() + 2
        watch.watch(begin + seconds)
        started = time.perf_counter()
        cluster.start_node(gone)
        watch.wait_caught_up(gone, leader)
        caught_up = time.perf_counter()
        watch.watch(caught_up + seconds)
        ended = time.perf_counter()
    finally:
        load.stop()
    status = cluster.status(leader)
    assert status is not None and status["is_primary"], "the leader changed: nothing is comparable"
    return Report(
        before=load.window(begin, started),
        during=load.window(started, caught_up),
        after=load.window(caught_up, ended),
        failed_writes=sum(len(stream.failed) for stream in load.streams),
        caught_up_s=caught_up - started,
        snapshots=events.count(gone, "event=SnapshotInstalling"),
        snapshot_bytes=watch.snapshot_bytes,
        elections=events.elections(gone),
        rss_anon_mib={i: used / MIB for i, used in sorted(watch.rss_anon.items())},
    )
