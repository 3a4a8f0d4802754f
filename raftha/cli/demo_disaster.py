"""`raftha demo --disaster`: a bad deploy damages the data, and the running cluster is taken back.

Theory of operation. After the load the moment gets a mark. Then clients begin to write orders, each
order a key of its own, and never stop. A "deploy" overwrites and deletes records. The cluster is
taken back to the time of the mark, while the clients go on; the leader gets SIGKILL as soon as the
members begin to prepare the recovery. Then the clients stop, and the dead node is started again.

What must hold then is known to this process, without asking anyone:

1.  Each record is as it was before the deploy.
2.  Of each client's orders, those written before the recovery are gone, and those after it are
    there: the orders that are missing are in one piece, the first ones. One that is gone and was
    written again by a client that retried it would be found in that piece.

Each node's own copy must have the hash that this process computes from both. Then the recovery is
undone, and the copies must have the damage again, and the orders that were gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from raftha.cli.demo_data import Record
from raftha.cli.recovery_tables import exact
from raftha.client import Client
from raftha.client.call import call
from raftha.errors import Indeterminate, RafthaError
from raftha.testing import LocalCluster

CLIENTS = 8
ORDER_PAUSE_S = 0.01
ORDERS_BEFORE = 20
"""Orders of each client before the deploy."""
OVERWRITTEN_OF, DELETED_OF = 3, 7
"""The deploy overwrites one record of so many, and deletes one of so many."""
AT_ONCE = 100
MARK = "before the deploy"
ARCHIVED_S = 30.0
RECOVERY_S = 300.0
CATCH_UP_S = 120.0
POLL_S = 0.005
ORDER_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Disaster:
    """What came of the deploy, of the recovery, and of its undoing."""

    target: str
    """The time to which the cluster was taken back."""
    overwritten: int
    deleted: int
    """Records that the deploy has damaged."""
    estimated_s: float
    """What the plan said that the recovery takes."""
    killed_in: str
    """What the recovery was doing when its leader was killed: "prepared", or "restored" already."""
    killed_leader: int
    recovery_s: float
    """From the request until the state of then was there, with the loss of the leader."""
    undone: int
    """Commands that were undone."""
    orders: int
    """Orders that were acknowledged to clients, before, during and after the recovery."""
    orders_undone: int
    came_back: int
    """Orders that were undone and are there again."""
    longest_wait_ms: float
    """The longest time that a client waited for the acknowledgement of an order."""
    recovered_digest: str
    """Hash over the records as of the mark and the orders after the recovery, by the demo."""
    recovered_digests: dict[str, str]
    """Hash over each node's own copy after the recovery."""
    undo_s: float
    damaged_digest: str
    """Hash over what there was before the recovery, by the demo."""
    damaged_digests: dict[str, str]
    """Hash over each node's own copy after the recovery was undone."""

    @property
    def problems(self) -> list[str]:
        """What went wrong."""
        found = []
        if set(self.recovered_digests.values()) != {self.recovered_digest}:
            found.append("a recovered copy differs from what there was before the deploy")
        if set(self.damaged_digests.values()) != {self.damaged_digest}:
            found.append("after the undo a copy differs from what there was before the recovery")
        if self.came_back:
            found.append(f"{self.came_back} orders that were undone have come back")
        return found


def recover_from_deploy(
    cluster: LocalCluster, records: Sequence[Record], digest: Callable[[Sequence[Record]], str]
) -> Disaster:
    """Do all of it; `digest` is `digest_of` of the demo. The cluster has exactly these records."""
    return asyncio.run(_Disaster(cluster, records, digest).run())


@dataclass(slots=True)
class _Orders:
    """The orders of the clients, and how long one was waited for."""

    acknowledged: list[int] = field(default_factory=lambda: [0] * CLIENTS)
    longest_s: float = 0.0
    is_over: bool = False
    _has_more: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, number: int, addresses: Sequence[str]) -> None:
        """One client: it writes an order after the other until it is over."""
        shift = number % len(addresses)
        async with Client([*addresses[shift:], *addresses[:shift]]) as client:
            while not self.is_over:
                key, value = _order(number, self.acknowledged[number])
                begun = time.perf_counter()
                await client.once("SET", key, value, timeout_s=ORDER_TIMEOUT_S)
                self.longest_s = max(self.longest_s, time.perf_counter() - begun)
                self.acknowledged[number] += 1
                self._has_more.set()
                await asyncio.sleep(ORDER_PAUSE_S)

    async def wait_for(self, more: int) -> None:
        """Wait until each client has so many more."""
        before = list(self.acknowledged)
        while any(now < was + more for now, was in zip(self.acknowledged, before, strict=True)):
            self._has_more.clear()
            await self._has_more.wait()

    def all(self) -> list[list[Record]]:
        """All orders that were acknowledged, by client."""
        return [
            [_order(client, number) for number in range(count)]
            for client, count in enumerate(self.acknowledged)
        ]


def _order(client: int, number: int) -> Record:
    return b"order-%d-%06d" % (client, number), b"%d items" % (number % 9 + 1)


class _Disaster:
    def __init__(
        self,
        cluster: LocalCluster,
        records: Sequence[Record],
        digest: Callable[[Sequence[Record]], str],
    ) -> None:
        self._cluster = cluster
        self._records = records
        self._digest = digest

    async def run(self) -> Disaster:
        mark = await self._ask("RAFTHA", "RECOVER", "MARK", MARK)
        orders = _Orders()
        addresses = list(self._cluster.addresses.values())
        writing = [asyncio.create_task(orders.run(n, addresses)) for n in range(CLIENTS)]
        try:
            await orders.wait_for(ORDERS_BEFORE)
            damaged = await asyncio.to_thread(self._deploy)
            plan = await self._plan(mark["time_us"])
            recovery = _Recovery(self._cluster, mark["time_us"])
            await asyncio.to_thread(recovery.run)
            await orders.wait_for(ORDERS_BEFORE)
            orders.is_over = True
            await asyncio.gather(*writing)
        finally:
            for task in writing:
                task.cancel()
        await asyncio.to_thread(self._cluster.start_node, recovery.killed)
        await asyncio.to_thread(self._cluster.wait_caught_up, CATCH_UP_S)
        gone, kept, came_back = await self._divide(orders)
        recovered = await self._digests()
        begun = time.perf_counter()
        await asyncio.to_thread(recovery.undo)
        await asyncio.to_thread(self._cluster.wait_caught_up, CATCH_UP_S)
        undo_s = time.perf_counter() - begun
        overwritten = len(self._records[::OVERWRITTEN_OF])
        return Disaster(
            target=exact(mark["time_us"]),
            overwritten=overwritten - len(self._records[:: OVERWRITTEN_OF * DELETED_OF]),
            deleted=len(self._records[::DELETED_OF]),
            estimated_s=plan["seconds"],
            killed_in=recovery.killed_in,
            killed_leader=recovery.killed,
            recovery_s=round(recovery.took_s, 3),
            undone=recovery.result["undone"],
            orders=sum(orders.acknowledged),
            orders_undone=len(gone),
            came_back=came_back,
            longest_wait_ms=round(1000 * orders.longest_s, 1),
            recovered_digest=self._digest([*self._records, *kept]),
            recovered_digests=recovered,
            undo_s=round(undo_s, 3),
            damaged_digest=self._digest([*damaged.items(), *gone]),
            damaged_digests=await self._digests(),
        )

    def _deploy(self) -> dict[bytes, bytes]:
        """Damage records; return what there is then."""
        after = dict(self._records)
        leader = self._cluster.wait_leader()
        overwritten = [key for key, _ in self._records[::OVERWRITTEN_OF]]
        deleted = [key for key, _ in self._records[::DELETED_OF]]
        for start in range(0, len(overwritten), AT_ONCE):
            pairs = [(key, b"undefined") for key in overwritten[start : start + AT_ONCE]]
            self._cluster.call(leader, "MSET", *(part for pair in pairs for part in pair))
            after.update(pairs)
        for start in range(0, len(deleted), AT_ONCE):
            self._cluster.call(leader, "DEL", *deleted[start : start + AT_ONCE])
        for key in deleted:
            del after[key]
        return after

    async def _plan(self, time_us: int) -> Mapping[str, Any]:
        """The plan, once the archive has the moment."""
        deadline = time.monotonic() + ARCHIVED_S
        while True:
            try:
                found: Mapping[str, Any]
                found = await self._ask("RAFTHA", "RECOVER", "PLAN", "TIME", time_us)
                return found
            except RafthaError:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(0.1)

    async def _divide(self, orders: _Orders) -> tuple[list[Record], list[Record], int]:
        """The orders that are gone, those that are there, and how many of these shouldn't be."""
        gone: list[Record] = []
        kept: list[Record] = []
        came_back = 0
        async with Client([self._cluster.addresses[self._cluster.wait_leader()]]) as client:
            for each in orders.all():
                found: list[bytes | None] = []
                for start in range(0, len(each), AT_ONCE):
                    keys = [key for key, _ in each[start : start + AT_ONCE]]
                    found += await client.call("MGET", *keys)
                last_gone = max((n for n, value in enumerate(found) if value is None), default=-1)
                came_back += sum(value is not None for value in found[:last_gone])
                gone += each[: last_gone + 1]
                kept += each[last_gone + 1 :]
        return gone, kept, came_back

    async def _digests(self) -> dict[str, str]:
        found = await asyncio.to_thread(self._cluster.digests)
        return {str(node_id): each["hex"] for node_id, each in found.items()}

    async def _ask(self, *words: str | int) -> Any:
        leader = await asyncio.to_thread(self._cluster.wait_leader)
        return json.loads(await asyncio.to_thread(self._cluster.call, leader, *words))


class _Recovery:
    """A recovery that is asked of a follower, and whose leader is killed as soon as it prepares."""

    def __init__(self, cluster: LocalCluster, time_us: int) -> None:
        self.killed = 0
        self.killed_in = ""
        self.took_s = 0.0
        self.result: Mapping[str, Any] = {}
        self._cluster = cluster
        self._time_us = time_us

    def run(self) -> None:
        """Do it, and lose the leader meanwhile."""
        cluster = self._cluster
        self.killed = cluster.wait_leader()
        address = next(a for i, a in cluster.addresses.items() if i != self.killed)
        begun = time.perf_counter()
        with contextlib.ExitStack() as threads:
            doing = _start(threads, address, ("RAFTHA", "RECOVER", "TO", "TIME", self._time_us))
            while not self.killed_in and not doing.done():
                ours = _recoveries(address)
                self.killed_in = ours[-1]["state"] if ours else ""
                time.sleep(POLL_S)
            self.killed_in = self.killed_in or "restored"
            cluster.kill(self.killed)
            self.result = _outcome(doing, address, 0)
        self.took_s = time.perf_counter() - begun

    def undo(self) -> None:
        """Take it back, through another node than the leader."""
        leader = self._cluster.wait_leader()
        address = next(a for i, a in self._cluster.addresses.items() if i != leader)
        with contextlib.ExitStack() as threads:
            doing = _start(threads, address, ("RAFTHA", "RECOVER", "UNDO"))
            _outcome(doing, address, self.result["id"])


def _start(
    threads: contextlib.ExitStack, address: str, request: tuple[str | int, ...]
) -> Future[bytes]:
    pool = threads.enter_context(ThreadPoolExecutor(1))
    return pool.submit(call, address, request, RECOVERY_S)


def _recoveries(address: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(call(address, ("RAFTHA", "PITR"), 10.0))["recoveries"]
    return found


def _outcome(doing: Future[bytes], address: str, after_id: int) -> Mapping[str, Any]:
    """What has come of a recovery; the log says it if the answer was lost."""
    try:
        found: Mapping[str, Any] = json.loads(doing.result())
    except Indeterminate:
        deadline = time.monotonic() + RECOVERY_S
        ended: list[dict[str, Any]] = []
        while not ended and time.monotonic() < deadline:
            with contextlib.suppress(RafthaError):
                later = [each for each in _recoveries(address) if each["id"] > after_id]
                ended = [each for each in later if each["state"] != "prepared"]
            time.sleep(10 * POLL_S)
        if not ended:
            raise
        found = ended[0]
    if found["state"] != "restored":
        raise RafthaError(f"the recovery was given up: {found['error']}")
    return found


def rows_of(disaster: Disaster) -> list[tuple[str, str]]:
    """The lines of the demo's table."""
    lost = f"{disaster.orders_undone:,} of {disaster.orders:,} orders undone with it"
    rows = [
        ("bad deploy", f"{disaster.overwritten:,} records overwritten, {disaster.deleted:,} gone"),
        ("taken back", f"to {disaster.target}, {disaster.undone:,} commands undone"),
        ("killed", f"node {disaster.killed_leader}, its leader, while {disaster.killed_in}"),
        (
            "recovery",
            f"{disaster.recovery_s} s with the failover; planned {disaster.estimated_s} s",
        ),
        ("clients", f"{CLIENTS}; {lost}, {disaster.came_back} came back"),
        ("longest wait", f"{disaster.longest_wait_ms} ms for the acknowledgement of an order"),
        ("expected", f"{disaster.recovered_digest[:32]}… hash of what there was, and is new"),
    ]
    rows += _copies(disaster.recovered_digests, disaster.recovered_digest, "recovered")
    rows.append(("undo", f"{disaster.undo_s} s"))
    rows.append(("expected", f"{disaster.damaged_digest[:32]}… hash of what the recovery took"))
    return rows + _copies(disaster.damaged_digests, disaster.damaged_digest, "damaged")


def _copies(digests: Mapping[str, str], expected: str, what: str) -> list[tuple[str, str]]:
    rows = []
    for node_id, digest in digests.items():
        comparison = "[green]equal[/]" if digest == expected else "[red]different[/]"
        rows.append((f"node {node_id}", f"{digest[:32]}… {comparison}, hash of its {what} copy"))
    return rows
