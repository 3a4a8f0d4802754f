"""A process with the leader inside it, and threads that call it: the case for `HaManager`.

    python -m bench.harness.threads CONFIG

`CONFIG` is a node's TOML file. Requests: a `Load`, of which each caller is a thread; `{"lead": id}`
makes that node the leader, with a lease if so configured; `{"checkpoint": true}` empties the write
buffer, so that all values are in LMDB only.

A call by lease takes no longer than a few readings of the clock. So each thread times one call in
`SAMPLED_EVERY`, and the reply has the number of all calls beside these times.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import time
from array import array
from pathlib import Path
from typing import Any

import raftha
from bench.harness.embedded import read_config
from bench.harness.load import VALUE_BYTES, Load, key_of
from bench.harness.samples import Taken
from bench.harness.worker import serve
from raftha.server.machine import RedisMachine

SAMPLED_EVERY = 256


class Threads:
    """The node, and the requests to it."""

    def __init__(self, ha: raftha.HaManager) -> None:
        self._ha = ha

    async def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer one of the requests in the module's docstring."""
        return await asyncio.to_thread(self._answer, request)

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if "lead" in request:
            return self._lead(request["lead"])
        if "checkpoint" in request:
            self._ha.digest(timeout=60)
            return {}
        load = Load(**request)
        if load.warm_up_s:
            self._call(load, load.warm_up_s)
        return self._call(load, load.seconds)

    def _lead(self, node_id: int) -> dict[str, Any]:
        deadline = time.monotonic() + 60
        while (status := self._ha.get_status()).leader_id != node_id or not (
            status.has_lease or not self._ha.config.lease_ms
        ):
            assert time.monotonic() < deadline, f"node {node_id} doesn't lead after 60 s"
            if status.leader_id != node_id:
                with contextlib.suppress(raftha.RafthaError):
                    self._ha.failover_to(node_id, timeout=5)
            time.sleep(0.05)  # Poll: an election or a lease is to come.
        return {}

    def _call(self, load: Load, seconds: float) -> dict[str, Any]:
        latencies, begun = array("d"), array("d")
        counts = [0] * load.callers
        cpu = time.process_time()
        begin = time.perf_counter()
        end = begin + seconds
        call = self._read if load.operation == "get" else self._write
        threads = [
            threading.Thread(target=call, args=(load, caller, end, counts, latencies, begun))
            for caller in range(load.callers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.perf_counter() - begin
        taken = Taken(took, latencies, begun, 0, time.process_time() - cpu)
        return {**taken.as_dict(), "calls": sum(counts)}

    def _read(
        self,
        load: Load,
        caller: int,
        end: float,
        counts: list[int],
        latencies: array[float],
        begun: array[float],
    ) -> None:
        get = self._ha.get
        keys = [key_of(number * load.callers + caller, load.keys) for number in range(load.keys)]
        count = place = 0
        while (started := time.perf_counter()) < end:
            get(keys[place])
            latencies.append(time.perf_counter() - started)
            begun.append(started)
            rest = keys[place + 1 : place + SAMPLED_EVERY]
            for key in rest:
                get(key)
            count += 1 + len(rest)
            place = (place + SAMPLED_EVERY) % len(keys)
        counts[caller] = count

    def _write(
        self,
        load: Load,
        caller: int,
        end: float,
        counts: list[int],
        latencies: array[float],
        begun: array[float],
    ) -> None:
        value, number = os.urandom(VALUE_BYTES), caller
        while (started := time.perf_counter()) < end:
            self._ha.put(key_of(number, load.keys), value)
            latencies.append(time.perf_counter() - started)
            begun.append(started)
            number += load.callers
            counts[caller] += 1


async def main(config: Path) -> None:
    """Run the node until its input ends."""
    with raftha.HaManager(read_config(config), state_machine=RedisMachine()) as ha:
        await serve(Threads(ha).answer)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
