"""Events on their way from a node to whoever wants them: a callback, and any number of streams.

Theory of operation. The node's thread stamps an event and appends it to the queue of each
subscriber, and never waits: a queue that is full loses its oldest event, which is counted. A
subscriber takes from its own queue on its own thread or event loop, so a slow one loses events and
slows nothing.

`on_event` is called by a thread of its own, one event after the other; there is none without a
callback. What the callback raises is counted, and logged once for each kind of exception. The
thread ends with the node, after what is queued by then; who stops the node waits for that only a
moment, since the callback may hang, and not at all in the callback itself. A node that is started
anew while an old callback still hangs gets no second thread: calls never overlap.

The bus belongs to the manager, so it goes on when the node is started anew; in a forked process,
where the node isn't, its streams end.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Self

from raftha.clock import SystemClock
from raftha.events import HaEvent
from raftha.runtime import forks
from raftha.types import HaStatus

QUEUE_EVENTS_MAX = 10_000
"""Events that wait for one subscriber."""
CALLBACK_ENDS_S = 1.0
"""How long the end of a node waits for its callback."""

log = logging.getLogger(__name__)


class EventBus:
    """One manager's events; published by the node's thread, all else from any thread."""

    def __init__(
        self,
        on_event: Callable[[HaEvent], None] | None = None,
        queue_events_max: int = 0,
    ) -> None:
        self._lock = threading.Lock()
        self._clock = SystemClock()
        self._queue_events_max = queue_events_max or QUEUE_EVENTS_MAX
        self._published = 0
        self._dropped = 0
        # Who drops a stream without closing it is to cost nothing for ever.
        self._queues: weakref.WeakSet[EventQueue] = weakref.WeakSet()
        self._dispatcher = Dispatcher(self.subscribe(), on_event) if on_event else None
        forks.renew_in_child(self, EventBus._renew)

    def _renew(self) -> None:
        """In a forked process: the node isn't there, so the streams end; a new one may start."""
        self._lock = threading.Lock()
        for queue in list(self._queues):
            queue.end_in_child()
        self._queues.clear()
        if self._dispatcher is not None:
            self._dispatcher = Dispatcher(self.subscribe(), self._dispatcher.on_event)

    def publish(self, event: HaEvent) -> HaEvent:
        """Stamp an event and queue it for every subscriber; return it with its stamps."""
        with self._lock:
            self._published += 1
            event = replace(event, number=self._published, time_us=self._clock.time_us())
            for queue in list(self._queues):
                self._dropped += queue.put(event)
        return event

    def subscribe(self) -> EventQueue:
        """A queue of all events from now on."""
        queue = EventQueue(self._queue_events_max)
        with self._lock:
            self._queues.add(queue)
        return queue

    @property
    def dropped(self) -> int:
        """Events that some subscriber, the callback or a stream, was too slow for."""
        return self._dropped

    @property
    def callback_errors(self) -> int:
        """How often the callback raised."""
        return self._dispatcher.errors if self._dispatcher is not None else 0

    def start(self) -> None:
        """A node begins."""
        if self._dispatcher is not None:
            self._dispatcher.start()

    def stop(self) -> None:
        """The node has ended: the callback gets what is queued, if it is quick."""
        if self._dispatcher is not None:
            self._dispatcher.stop()

    def join(self) -> None:
        """After `stop`, wait a moment for the callback, unless this is called by it."""
        if self._dispatcher is not None:
            self._dispatcher.join()

    def add_counts(self, status: HaStatus) -> HaStatus:
        """A node's status with what is counted here."""
        return replace(status, events_dropped=self.dropped, event_errors=self.callback_errors)


class EventQueue:
    """What one subscriber hasn't taken yet; the oldest go when there is no room."""

    def __init__(self, events_max: int) -> None:
        self.dropped = 0
        self._lock = threading.Lock()
        self._events: deque[HaEvent] = deque()
        self._events_max = events_max
        self._is_closed = False
        self._wake: Callable[[], None] | None = None

    def put(self, event: HaEvent) -> bool:
        """Add an event; whether another was dropped for it. Never waits."""
        with self._lock:
            if self._is_closed:
                return False
            is_full = len(self._events) >= self._events_max
            if is_full:
                self._events.popleft()
                self.dropped += 1
            self._events.append(event)
            wake, self._wake = self._wake, None
        if wake is not None:
            wake()
        return is_full

    def take(self, wake: Callable[[], None]) -> HaEvent | None:
        """The next event. None if there is none yet: `wake` is then called, once, when to look."""
        with self._lock:
            if self._events and not self._is_closed:
                return self._events.popleft()
            if self._is_closed:
                wake()
            else:
                self._wake = wake
            return None

    def nudge(self) -> None:
        """Have whoever waits look again."""
        with self._lock:
            wake, self._wake = self._wake, None
        if wake is not None:
            wake()

    def end_in_child(self) -> None:
        """Close it in a forked process, whatever its lock was held for."""
        self._lock = threading.Lock()
        self._is_closed, self._wake = True, None
        self._events.clear()

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def close(self) -> None:
        """Give up what is queued and take nothing more; whoever waits is told."""
        with self._lock:
            self._is_closed = True
            self._events.clear()
        self.nudge()


class EventStream:
    """A node's events, in order, from when the stream was made: `HaManager.events`.

        with ha.events() as events:
            for event in events: ...

    Iterating waits for events, also while the node is stopped, and ends once the stream is closed,
    from whatever thread. One thread at a time takes from it. A reader that is slower than events
    come loses the oldest beyond 10,000; `dropped` counts them.
    """

    def __init__(self, queue: EventQueue) -> None:
        self._queue = queue

    @property
    def dropped(self) -> int:
        """Events that this stream lost, its reader being too slow."""
        return self._queue.dropped

    def next(self, timeout: float | None = None) -> HaEvent | None:
        """The next event; None if there is none within `timeout` seconds, or the stream closed."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._queue.is_closed:
            news = threading.Event()
            event = self._queue.take(news.set)
            if event is not None:
                return event
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not news.wait(left):
                return None
        return None

    def close(self) -> None:
        """End the stream; what it holds is given up."""
        self._queue.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> HaEvent:
        event = self.next()
        if event is None:
            raise StopIteration
        return event

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class AsyncEventStream:
    """As `EventStream`, awaited: `raftha.aio.HaManager.events`.

        async with ha.events() as events:
            async for event in events: ...

    One task at a time takes from it; which event loop it runs on doesn't matter. `close` needs no
    awaiting and may be called from any thread.
    """

    def __init__(self, queue: EventQueue) -> None:
        self._queue = queue

    @property
    def dropped(self) -> int:
        """Events that this stream lost, its reader being too slow."""
        return self._queue.dropped

    async def next(self, timeout: float | None = None) -> HaEvent | None:
        """The next event; None if there is none within `timeout` seconds, or the stream closed."""
        try:
            async with asyncio.timeout(timeout):
                return await self._next()
        except TimeoutError:
            return None

    async def _next(self) -> HaEvent | None:
        loop = asyncio.get_running_loop()
        while not self._queue.is_closed:
            news = asyncio.Event()
            event = self._queue.take(partial(_call_on, loop, news.set))
            if event is not None:
                return event
            await news.wait()
        return None

    def close(self) -> None:
        """End the stream; what it holds is given up."""
        self._queue.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> HaEvent:
        event = await self._next()
        if event is None:
            raise StopAsyncIteration
        return event

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Dispatcher:
    """Calls the callback with one event after the other, on a thread of its own."""

    def __init__(self, queue: EventQueue, on_event: Callable[[HaEvent], None]) -> None:
        self.errors = 0
        self._queue = queue
        self.on_event = on_event
        self._logged: set[type[BaseException]] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ends_at: float | None = None

    def start(self) -> None:
        """Begin, or go on."""
        with self._lock:
            self._ends_at = None
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="raftha-events", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End once nothing is queued, or a moment is over; what is left then waits for `start`."""
        with self._lock:
            self._ends_at = time.monotonic() + CALLBACK_ENDS_S
        self._queue.nudge()

    def join(self) -> None:
        """Wait for the end as long as that moment lasts."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(CALLBACK_ENDS_S)

    def _run(self) -> None:
        while True:
            news = threading.Event()
            ends_at = self._ends_at  # Before looking: what came before the end is to be found.
            event = self._queue.take(news.set)
            if event is not None:
                self._call(event)
            elif ends_at is None:
                news.wait()
            with self._lock:
                is_done = event is None and ends_at is not None
                is_late = self._ends_at is not None and time.monotonic() >= self._ends_at
                if self._ends_at is not None and (is_done or is_late):
                    self._thread = None
                    return

    def _call(self, event: HaEvent) -> None:
        try:
            self.on_event(event)
        except BaseException as error:  # Whatever it is, the next event comes.
            self.errors += 1
            if type(error) not in self._logged:
                self._logged.add(type(error))
                log.exception(
                    "node=%d on_event raised kind=%s; not logged again for this exception",
                    event.reporter,
                    event.kind,
                )


def _call_on(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(function)
    except RuntimeError:
        if not loop.is_closed():
            raise
