"""The node's latest events, kept for clients that ask for what came after the last one they saw.

Theory of operation. A task reads the node's stream and keeps the last `EVENTS_KEPT`. A client that
is up to date waits: it is answered at the next event, at the end of its time, or when the server
stops. The journal has an id of its own, so a client notices that it speaks to another run of the
server, in which numbers begin anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import deque
from typing import Any

from raftha.aio import HaManager
from raftha.events import HaEvent
from raftha.runtime.event_bus import AsyncEventStream

EVENTS_KEPT = 1000


class Journal:
    """All calls come from the server's event loop."""

    def __init__(self, ha: HaManager) -> None:
        self.id = secrets.token_hex(8)
        self._ha = ha
        self._events: deque[HaEvent] = deque(maxlen=EVENTS_KEPT)
        self._news = asyncio.Event()
        self._stream: AsyncEventStream | None = None
        self._reading: asyncio.Task[None] | None = None
        self._is_closed = False

    def start(self) -> None:
        """Begin to read; from here on nothing is missed."""
        self._stream = self._ha.events()
        self._reading = asyncio.get_running_loop().create_task(self._read(self._stream))

    async def _read(self, stream: AsyncEventStream) -> None:
        async for event in stream:
            self._events.append(event)
            self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def close(self) -> None:
        """Answer whoever waits, and stop reading."""
        self._is_closed = True
        if self._stream is not None:
            self._stream.close()
        self._tell()

    async def after(self, journal_id: str, number: int, wait_s: float) -> dict[str, Any]:
        """What came after event `number` of that journal; of another one, all that is kept.

        If nothing did, wait for it up to `wait_s`. `lost` events came in between, and are gone.
        """
        known = number if journal_id == self.id else 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while not self._is_closed and not self._has_after(known):
                    await self._news.wait()
        events = [event for event in self._events if event.number > known]
        lost = events[0].number - known - 1 if events and known else 0
        return {"journal": self.id, "lost": lost, "events": [as_table(event) for event in events]}

    def _has_after(self, number: int) -> bool:
        return bool(self._events) and self._events[-1].number > number


def as_table(event: HaEvent) -> dict[str, Any]:
    """An event as JSON has it."""
    stamps = {"number": event.number, "time_us": event.time_us, "reporter": event.reporter}
    return {"kind": event.kind.value, **stamps, **event.details()}
