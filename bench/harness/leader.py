"""A process with the leader and callers inside it: the case that embedding raftha is for.

    python -m bench.harness.leader CONFIG

`CONFIG` is a node's TOML file. Requests: a `Load` (its `options`: `mode` of writes, `consistency`
of reads, `watch_s`: how often to note how far the replicas are meanwhile, `archive_s`: how often to
note how old the oldest command is that is not archived, and `backups`: take full ones, one after
the other, meanwhile); `{"lead": id}` makes that node the leader; `{"fill": [from, to]}` writes
keys, 512 at a time; `{"backup": mode}` takes a backup. The reply to a load has its latencies,
`lags` and `ages` (what was noted), `checkpoints` (when this node's began and ended), and `backups`
(the seconds that each took).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

import raftha
from bench.harness.embedded import read_config
from bench.harness.load import VALUE_BYTES, Call, Load, key_of, put_under
from bench.harness.worker import serve
from raftha.events import CheckpointCompleted
from raftha.server.machine import RedisMachine

FILLERS = 512


class Leader:
    """The node, and the requests to it."""

    def __init__(self, ha: raftha.aio.HaManager) -> None:
        self._ha = ha
        self._lags: list[tuple[float, int, dict[int, int]]] = []
        self._ages: list[tuple[float, int]] = []
        self._checkpoints: list[tuple[float, float]] = []
        self._backups: list[float] = []

    async def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer one of the requests in the module's docstring."""
        if "lead" in request:
            return await self._lead(request["lead"])
        if "fill" in request:
            return await self._fill(*request["fill"])
        if "backup" in request:
            return {"seconds": await self._backup(request["backup"])}
        load = Load(**request)
        watch_s = load.options.pop("watch_s", 0.0)
        archive_s = load.options.pop("archive_s", 0.0)
        has_backups = load.options.pop("backups", False)
        self._lags, self._ages, self._checkpoints, self._backups = [], [], [], []
        async with asyncio.TaskGroup() as tasks, self._ha.events() as events:
            watching = [tasks.create_task(self._watch_checkpoints(events))]
            if watch_s:
                watching.append(tasks.create_task(self._watch_lags(watch_s)))
            if archive_s:
                watching.append(tasks.create_task(self._watch_ages(archive_s)))
            if has_backups:
                watching.append(tasks.create_task(self._take_backups()))
            taken = await put_under(load, self._make_call(load))
            for task in watching:
                task.cancel()
        status = await self._ha.get_status()
        assert status.leader_id, "the leader changed under way: not comparable"
        recorded = {"lags": self._lags, "ages": self._ages, "checkpoints": self._checkpoints}
        return {**taken.as_dict(), **recorded, "backups": self._backups}

    def _make_call(self, load: Load) -> Call:
        ha, keys, options = self._ha, load.keys, load.options
        if load.operation == "get":
            return lambda number: ha.get(key_of(number, keys), **options)
        value = os.urandom(VALUE_BYTES)
        return lambda number: ha.put(key_of(number, keys), value, **options)

    async def _lead(self, node_id: int) -> dict[str, Any]:
        await self._ha.put(b"leader", b"wanted", timeout=60)
        deadline = time.monotonic() + 60
        while (await self._ha.get_status()).leader_id != node_id:
            assert time.monotonic() < deadline, f"node {node_id} doesn't lead after 60 s"
            with contextlib.suppress(raftha.RafthaError):
                await self._ha.failover_to(node_id, timeout=5)
        return {"leader": node_id}

    async def _fill(self, begin: int, end: int) -> dict[str, Any]:
        value = os.urandom(VALUE_BYTES)
        numbers = iter(range(begin, end))

        async def fill() -> None:
            for number in numbers:
                await self._ha.put(key_of(number, end), value, timeout=60)

        started = time.perf_counter()
        await asyncio.gather(*(fill() for _ in range(FILLERS)))
        return {"seconds": time.perf_counter() - started}

    async def _take_backups(self) -> None:
        while True:
            self._backups.append(await self._backup("full"))

    async def _backup(self, mode: str) -> float:
        """Take a backup; return the seconds that it took."""
        started = time.perf_counter()
        while True:
            try:
                await self._ha.backup.trigger_backup(mode, wait=True, timeout=600)
            except raftha.BackupInProgress:
                await asyncio.sleep(0.05)  # One that was due.
                started = time.perf_counter()
            else:
                return time.perf_counter() - started

    async def _watch_lags(self, period_s: float) -> None:
        """Record at intervals: the time, the last index, and what each replica has on disk."""
        while True:
            status = await self._ha.get_status()
            durable = {r.node_id: r.match_index or 0 for r in status.replicas}
            self._lags.append((time.perf_counter(), status.last_index, durable))
            await asyncio.sleep(period_s)

    async def _watch_ages(self, period_s: float) -> None:
        """Record at intervals: the time, and how old what the archive lacks is, in milliseconds."""
        while True:
            archive = (await self._ha.get_status()).archive
            if archive is not None:
                self._ages.append((time.perf_counter(), archive.rpo_ms))
            await asyncio.sleep(period_s)

    async def _watch_checkpoints(self, events: raftha.AsyncEventStream) -> None:
        async for event in events:
            if isinstance(event, CheckpointCompleted):
                end = time.perf_counter()
                self._checkpoints.append((end - event.duration_ms / 1000, end))


async def main(config: Path) -> None:
    """Run the node until its input ends."""
    async with raftha.aio.HaManager(read_config(config), state_machine=RedisMachine()) as ha:
        await serve(Leader(ha).answer)


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1])))
