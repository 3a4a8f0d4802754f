"""A server process with a node inside that forks, for `test_forks`.

    python -m tests.integration.forking_host KIND CONFIG

starts the node that the TOML file CONFIG describes, forks in the way that KIND names, and prints
one line of JSON: the child's process id, and for every call that the child made on the manager what
it raised. Then the parent waits for its end, and so does the child, unless KIND says otherwise.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import raftha
from raftha.testing import LocalCluster

CALLS: dict[str, tuple[object, ...]] = {
    "put": (b"key", b"by the child"),
    "delete": (b"key",),
    "compare_and_set": (b"key", None, b"by the child"),
    "transaction": ([], [raftha.Put(b"key", b"by the child")]),
    "execute": ("anything",),
    "get": (b"key",),
    "get_many": ([b"key"],),
    "scan": (),
    "count": (),
    "digest": (),
    "failover_to": (1,),
    "add_replica": (9, "127.0.0.1:1"),
    "promote_replica": (9,),
    "promote_region": ("primary",),
    "move_replica": (9, "127.0.0.1:1"),
    "remove_replica": (9,),
    "trigger_backup": (),
    "recover_to_point": (0,),
    "recover_to_sequence": (1,),
    "get_status": (),
    "events": (),
    "observe": (),
    "start": (),
    "stop": (),
}


def outcome(call: Callable[[], object]) -> str:
    try:
        call()
    except raftha.RafthaError as error:
        return type(error).__name__
    return "returned"


def blocking_outcomes(ha: raftha.HaManager) -> dict[str, str]:
    return {name: outcome(lambda n=name: getattr(ha, n)(*CALLS[n])) for name in CALLS}  # type: ignore[misc]


def awaited_outcomes(ha: raftha.aio.HaManager) -> dict[str, str]:
    async def call(name: str) -> object:
        result = getattr(ha, name)(*CALLS[name])
        return await result if inspect.isawaitable(result) else result

    return {name: outcome(lambda n=name: asyncio.run(call(n))) for name in CALLS}  # type: ignore[misc]


def report(outcomes: dict[str, str]) -> None:
    print(json.dumps({"child": os.getpid(), "outcomes": outcomes}), flush=True)


def wait_for_the_end() -> None:
    while True:
        signal.pause()


def on_another_thread(start: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run `start` on an event loop that keeps running on a thread of its own."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    asyncio.run_coroutine_threadsafe(start(), loop).result()


def fork(config: raftha.HaConfig) -> None:
    with raftha.HaManager(config) as ha:
        ha.put(b"key", b"by the parent")
        if not os.fork():
            report(blocking_outcomes(ha))
        wait_for_the_end()


def fork_from_asyncio(config: raftha.HaConfig) -> None:
    ha = raftha.aio.HaManager(config)

    async def start() -> None:
        await ha.start()
        await ha.put(b"key", b"by the parent")

    on_another_thread(start)
    if not os.fork():
        report(awaited_outcomes(ha))
    wait_for_the_end()


def use_multiprocessing(config: raftha.HaConfig) -> None:
    with raftha.HaManager(config) as ha:
        ha.put(b"key", b"by the parent")

        def work() -> None:
            report(blocking_outcomes(ha))
            wait_for_the_end()

        multiprocessing.get_context("fork").Process(target=work).start()
        wait_for_the_end()


def fork_and_leave(config: raftha.HaConfig) -> None:
    """The child drops everything that it inherited, and ends as a Python program does."""
    with raftha.HaManager(config) as ha:
        ha.put(b"key", b"by the parent")
        child = os.fork()
        if not child:
            del ha
            gc.collect()
            sys.exit(7)
        _, status = os.waitpid(child, 0)
        ha.put(b"after", b"the child")
        print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), flush=True)


def become_a_daemon(config: raftha.HaConfig) -> None:
    """The manager is started, stopped, and started again in the child."""
    ha = raftha.HaManager(config)
    with ha:
        ha.put(b"key", b"by the parent")
    if os.fork():
        return
    ha.start()
    report({"get": str(ha.get(b"key")), "put": str(bool(ha.put(b"key", b"by the child")))})
    wait_for_the_end()


def fork_beside_a_cluster(config: raftha.HaConfig) -> None:
    """The child ends within the block, as its parent does later."""
    with LocalCluster(1) as cluster:
        cluster.wait_ready()
        child = os.fork()
        if not child:
            sys.exit(7)
        _, status = os.waitpid(child, 0)
        written = cluster.call(1, "SET", "key", "value")
        answer = {"status": os.waitstatus_to_exitcode(status), "written": str(written)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    kinds = (
        fork_beside_a_cluster,
        fork,
        fork_from_asyncio,
        use_multiprocessing,
        fork_and_leave,
        become_a_daemon,
    )
    by_name = {kind.__name__: kind for kind in kinds}
    by_name[sys.argv[1]](raftha.HaConfig.from_toml(Path(sys.argv[2])))
