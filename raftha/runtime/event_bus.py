"""Events from a node to its subscribers: one callback and any number of streams.

Theory of operation. The node's thread stamps an event and appends it to the queue of each
subscriber. It never waits: a full queue loses its oldest event, which is counted. Each subscriber
takes events from its own queue on its own thread or event loop, so a slow subscriber loses events
and delays nothing.

`on_event` runs on its own thread, for one event after the other; without a callback there is no
such thread. Exceptions of the callback are counted, and logged once for each exception type. The
thread ends with the node, after the events that are queued by then. `stop` waits for that only a
moment, since the callback may hang, and not at all if the callback itself calls it. If a node is
restarted while an old callback still hangs, it gets no second thread: calls never overlap.

The bus belongs to the manager, so it survives a restart of the node. In a forked process there is
no node, and the streams end.
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
"""The limit on events that wait for one subscriber."""
CALLBACK_ENDS_S = 1.0
"""How long stopping a node waits for its callback."""

log = logging.getLogger(__name__)


class EventBus:
    """One manager's events; the node's thread publishes, any thread may call the rest."""

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
        # Weak references: a stream that is dropped without `close` costs nothing.
        self._queues: weakref.WeakSet[EventQueue] = weakref.WeakSet()
        self._dispatcher = Dispatcher(self.subscribe(), on_event) if on_event else None
        forks.renew_in_child(self, EventBus._renew)

    def _renew(self) -> None:
        """In a forked process: end the streams, since the node isn't there; a new one may start."""
        self._lock = threading.Lock()
        for queue in list(self._queues):
            queue.end_in_child()
        self._queues.clear()
        if self._dispatcher is not None:
            self._dispatcher = Dispatcher(self.subscribe(), self._dispatcher.on_event)

    def publish(self, event: HaEvent) -> HaEvent:
        """Stamp an event and queue it for every subscriber; return the stamped event."""
        with self._lock:
            self._published += 1
            event = replace(event, number=self._published, time_us=self._clock.time_us())
            for queue in list(self._queues):
                self._dropped += queue.put(event)
        return event

    def subscribe(self) -> EventQueue:
        """Return a queue of all events from now on."""
        queue = EventQueue(self._queue_events_max)
        with self._lock:
            self._queues.add(queue)
        return queue

    @property
    def dropped(self) -> int:
        """The number of events lost by subscribers, callback or streams, that were too slow."""
        return self._dropped

    @property
    def callback_errors(self) -> int:
        """How often the callback raised an exception."""
        return self._dispatcher.errors if self._dispatcher is not None else 0

    def start(self) -> None:
        """A node starts."""
        if self._dispatcher is not None:
            self._dispatcher.start()

    def stop(self) -> None:
        """The node has ended: the callback gets the queued events, if it is quick."""
        if self._dispatcher is not None:
            self._dispatcher.stop()

    def join(self) -> None:
        """After `stop`, wait a moment for the callback, unless the callback calls this."""
        if self._dispatcher is not None:
            self._dispatcher.join()

    def add_counts(self, status: HaStatus) -> HaStatus:
        """Return a node's status with the counts of this bus."""
        return replace(status, events_dropped=self.dropped, event_errors=self.callback_errors)


class EventQueue:
    """The events that one subscriber hasn't taken; a full queue drops the oldest."""

    def __init__(self, events_max: int) -> None:
        self.dropped = 0
        self._lock = threading.Lock()
        self._events: deque[HaEvent] = deque()
        self._events_max = events_max
        self._is_closed = False
        self._wake: Callable[[], None] | None = None

    def put(self, event: HaEvent) -> bool:
        """Add an event; return True if another was dropped for it. Never waits."""
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
        """Return the next event. If there is none, return None, and call `wake` when to retry."""
        with self._lock:
            if self._events and not self._is_closed:
                return self._events.popleft()
            if self._is_closed:
                wake()
            else:
                self._wake = wake
            return None

    def nudge(self) -> None:
        """Wake the waiting subscriber, if there is one."""
        with self._lock:
            wake, self._wake = self._wake, None
        if wake is not None:
            wake()

    def end_in_child(self) -> None:
        """Close the queue in a forked process, where its lock may be held for ever."""
        self._lock = threading.Lock()
        self._is_closed, self._wake = True, None
        self._events.clear()

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def close(self) -> None:
        """Drop the queued events, accept no more, and wake the waiting subscriber."""
        with self._lock:
            self._is_closed = True
            self._events.clear()
        self.nudge()


class EventStream:
    """A node's events, in order, from the creation of the stream on: `HaManager.events`.

        with ha.events() as events:
            for event in events: ...

    Iterating waits for events, also while the node is stopped, and ends once the stream is closed,
    from any thread. One thread at a time may read it. A reader that is too slow loses the oldest
    events beyond 10,000; `dropped` counts them.
    """

    def __init__(self, queue: EventQueue) -> None:
        self._queue = queue

    @property
    def dropped(self) -> int:
        """The number of events that this stream lost because its reader was too slow."""
        return self._queue.dropped

    def next(self, timeout: float | None = None) -> HaEvent | None:
        """Return the next event; None after `timeout` seconds or if the stream is closed."""
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
        """End the stream and drop its events."""
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

    One task at a time may read it, on any event loop. `close` is not a coroutine and may be called
    from any thread.
    """

    def __init__(self, queue: EventQueue) -> None:
        self._queue = queue

    @property
    def dropped(self) -> int:
        """The number of events that this stream lost because its reader was too slow."""
        return self._queue.dropped

    async def next(self, timeout: float | None = None) -> HaEvent | None:
        """Return the next event; None after `timeout` seconds or if the stream is closed."""
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
        """End the stream and drop its events."""
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
    """Calls the callback for one event after the other, on its own thread."""

    def __init__(self, queue: EventQueue, on_event: Callable[[HaEvent], None]) -> None:
        self.errors = 0
        self._queue = queue
        self.on_event = on_event
        self._logged: set[type[BaseException]] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ends_at: float | None = None

    def start(self) -> None:
        """Start the thread, or let it continue."""
        with self._lock:
            self._ends_at = None
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="raftha-events", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End once nothing is queued, or after a moment; remaining events wait for `start`."""
        with self._lock:
            self._ends_at = time.monotonic() + CALLBACK_ENDS_S
        self._queue.nudge()

    def join(self) -> None:
        """Wait for the end of the thread, at most `CALLBACK_ENDS_S`."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(CALLBACK_ENDS_S)

    def _run(self) -> None:
        while True:
            news = threading.Event()
            ends_at = self._ends_at  # Read before `take`: events from before the end must be found.
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
        except BaseException as error:  # Whatever it is, the next event follows.
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
