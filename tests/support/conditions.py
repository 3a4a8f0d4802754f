"""Waits for conditions that other threads, processes and callbacks bring about."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

POLL_S = 0.005


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 20) -> None:
    """Wait until `condition` holds; fail with `what` if it doesn't in time."""
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, what
        pause.wait(POLL_S)


async def wait_until_async(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    """Wait until other callbacks of the loop have made `condition` hold."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - any condition: there is nothing to wait on
            await asyncio.sleep(POLL_S)
