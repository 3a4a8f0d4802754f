"""The node's latest events, for clients that ask for the events after the last one they saw.

Theory of operation. A task reads the node's event stream and keeps the last `EVENTS_KEPT`. A client
that is up to date waits until the next event, until its time is over, or until the server stops.
Each run of the server has a journal id of its own. A client that sees another id knows that the
numbers have started again from 1.
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
    """The kept events of one run. All calls come from the server's event loop."""

    def __init__(self, ha: HaManager) -> None:
        self.id = secrets.token_hex(8)
        self._ha = ha
        self._events: deque[HaEvent] = deque(maxlen=EVENTS_KEPT)
        self._news = asyncio.Event()
        self._stream: AsyncEventStream | None = None
        self._reading: asyncio.Task[None] | None = None
        self._is_closed = False

    def start(self) -> None:
        """Start reading; no event after this call is missed."""
        self._stream = self._ha.events()
        self._reading = asyncio.get_running_loop().create_task(self._read(self._stream))

    async def _read(self, stream: AsyncEventStream) -> None:
        async for event in stream:
            self._events.append(event)
            self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def close(self) -> None:
        """Answer the clients that wait, and stop reading."""
        self._is_closed = True
        if self._stream is not None:
            self._stream.close()
        self._wake()

    async def after(self, journal_id: str, number: int, wait_s: float) -> dict[str, Any]:
        """Return the events after `number` of that journal; for another journal, all kept events.

        If there are none, wait up to `wait_s` for one. `lost` counts the events in between that
        are no longer kept.
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
    """Convert an event to its JSON form."""
    stamps = {"number": event.number, "time_us": event.time_us, "reporter": event.reporter}
    return {"kind": event.kind.value, **stamps, **event.details()}
