"""Load: callers that wait for each answer (a closed loop), or calls at a fixed rate (an open one).

Theory of operation. A call takes a number, from which the caller makes its key, and returns an
awaitable. In the closed loop, each of `callers` tasks awaits one call after the other: the system
sets the pace, and the result is a throughput. In the open loop each call begins when it is due,
even if earlier ones have no reply yet, and its latency counts from the moment it was *due*: a
system that stalls is charged for all calls that were due meanwhile (Tene's "coordinated omission").

A process that makes load does other things only where that is the question (callers inside the
leader's process). Its CPU time is part of the measurement.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.harness.samples import Taken

Call = Callable[[int], Awaitable[object]]

VALUE_BYTES = 256
KEYS = 10_000
PERIOD_S = 0.001
PENDING_MAX = 20_000
"""Calls that an open loop lets pile up; further due calls count as failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The load: so many callers, or `rate` calls a second."""

    operation: str = "put"
    """put or get."""
    callers: int = 0
    rate: float = 0.0
    seconds: float = 5.0
    warm_up_s: float = 1.0
    keys: int = KEYS
    options: dict[str, Any] = field(default_factory=dict)
    """Options that only some systems have: consistency, mode."""

    def as_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self)


def key_of(number: int, keys: int) -> bytes:
    """16 bytes."""
    return b"key-%012d" % (number % keys)


async def put_under(load: Load, call: Call) -> Taken:
    """Warm up, then measure."""
    if load.warm_up_s:
        await _once(load, call, load.warm_up_s)
    return await _once(load, call, load.seconds)


async def _once(load: Load, call: Call, seconds: float) -> Taken:
    if load.callers:
        return await closed_loop(call, load.callers, seconds)
    return await open_loop(call, load.rate, seconds)


async def closed_loop(call: Call, callers: int, seconds: float) -> Taken:
    """Run `callers` tasks for `seconds`; the first call that fails ends all of them."""
    latencies, begun = array("d"), array("d")
    cpu = time.process_time()
    begin = time.perf_counter()
    end = begin + seconds

    async def go_on(caller: int) -> None:
        number = caller
        while (started := time.perf_counter()) < end:
            await call(number)
            latencies.append(time.perf_counter() - started)
            begun.append(started)
            number += callers

    await asyncio.gather(*(go_on(caller) for caller in range(callers)))
    return Taken(time.perf_counter() - begin, latencies, begun, 0, time.process_time() - cpu)


async def open_loop(call: Call, rate: float, seconds: float) -> Taken:
    """Begin `rate` calls a second for `seconds`, and wait for the last."""
    latencies, due_at = array("d"), array("d")
    pending: set[asyncio.Future[object]] = set()
    failed = 0
    cpu = time.process_time()
    begin = time.perf_counter()

    def begin_call(number: int) -> None:
        due = begin + number / rate
        future = asyncio.ensure_future(call(number))
        pending.add(future)

        def end_call(future: asyncio.Future[object]) -> None:
            nonlocal failed
            pending.discard(future)
            if future.cancelled() or future.exception() is not None:
                failed += 1
            else:
                latencies.append(time.perf_counter() - due)
                due_at.append(due)

        future.add_done_callback(end_call)

    done, total = 0, max(1, int(rate * seconds))
    while done < total:
        due_now = min(total, int((time.perf_counter() - begin) * rate) + 1)
        for number in range(done, due_now):
            if len(pending) < PENDING_MAX:
                begin_call(number)
            else:
                failed += 1
        done = due_now
        await asyncio.sleep(PERIOD_S)
    while pending:
        await asyncio.wait(pending)
        await asyncio.sleep(0)
    cpu = time.process_time() - cpu
    return Taken(time.perf_counter() - begin, latencies, due_at, failed, cpu)
