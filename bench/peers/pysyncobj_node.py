"""One PySyncObj node, with callers inside it.

python -m bench.peers.pysyncobj_node JOURNAL batch|no-batch SELF OTHER...
"""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
import threading
import time
from array import array
from typing import Any

from bench.harness.load import VALUE_BYTES, Load, key_of
from bench.harness.samples import Taken
from bench.harness.worker import serve

library: Any = importlib.import_module("pysyncobj")  # It has no types.


class Store(library.SyncObj):  # type: ignore[misc]
    """A replicated dict."""

    def __init__(self, own: str, others: list[str], journal: str, *, uses_batch: bool) -> None:
        conf = library.SyncObjConf(journalFile=journal, appendEntriesUseBatch=uses_batch)
        super().__init__(own, others, conf)
        self._values: dict[bytes, bytes] = {}

    @library.replicated  # type: ignore[untyped-decorator]
    def put(self, key: bytes, value: bytes) -> None:
        """Replicated by the decorator."""
        self._values[key] = value


class Callers:
    """A closed loop whose callers are callbacks, all in the thread that ticks."""

    def __init__(self, store: Store, load: Load, seconds: float) -> None:
        self._store = store
        self._load = load
        self._value = os.urandom(VALUE_BYTES)
        self._latencies = array("d")
        self._begun = array("d")
        self._failed = 0
        self._running = load.callers
        self._is_over = threading.Event()
        self._begin = time.perf_counter()
        self._end = self._begin + seconds

    def run(self) -> Taken:
        """Begin, and wait for the last."""
        cpu = time.process_time()
        for caller in range(self._load.callers):
            self._call(caller)
        self._is_over.wait()
        seconds, cpu = time.perf_counter() - self._begin, time.process_time() - cpu
        return Taken(seconds, self._latencies, self._begun, self._failed, cpu)

    def _call(self, number: int) -> None:
        begun = time.perf_counter()

        def done(_: Any, error: int) -> None:
            now = time.perf_counter()
            if error:
                self._failed += 1
            else:
                self._latencies.append(now - begun)
                self._begun.append(begun)
            if now < self._end:
                self._call(number + self._load.callers)
            else:
                self._running -= 1
                if not self._running:
                    self._is_over.set()

        self._store.put(key_of(number, self._load.keys), self._value, callback=done)


async def main(journal: str, batch: str, own: str, others: list[str]) -> None:
    """Run the node until its input ends."""
    store = Store(own, others, journal, uses_batch=batch == "batch")

    async def answer(request: dict[str, Any]) -> dict[str, Any]:
        if "status" in request:
            leader = store.getStatus()["leader"]
            leads = leader is not None and str(leader) == own and store.isReady()
            return {"leads": leads}
        load = Load(**request)
        if load.warm_up_s:
            await asyncio.to_thread(Callers(store, load, load.warm_up_s).run)
        return (await asyncio.to_thread(Callers(store, load, load.seconds).run)).as_dict()

    await serve(answer)
    store.destroy()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]))
