"""Callers of a node, on their own threads and loops: operations on the way in, results out.

Theory of operation. The tasks of one event loop submit together what they submit in one turn of
that loop (`LoopBatches`). Operations are queued in a deque, with one wake-up for as many as come
before the node's thread looks (`SubmitQueue`). A blocking caller is released by a lock of its own,
at once; all futures of one event loop by a single call on that loop, at the end of the turn
(`Results.flush`).

The node answers every operation by its deadline. Should its thread hang, in a user's command that
doesn't end or on a disk that doesn't answer, its callers wait `GRACE_S` longer and no more.

What a node holds for its callers is bounded, from here until they have their results: writes by
`submit_queue_bytes_max`, all else by `READ_BYTES_MAX`, so that neither keeps out the other.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from raftha.errors import Indeterminate, Overloaded, RafthaError, RequestTimeout
from raftha.node.operations import Operation, sizes
from raftha.types import FireForgetCounts

READ_BYTES_MAX = 32 << 20
"""Reads, digests, transfers and changes of membership on a node that have no result yet."""

GRACE_S = 1.0

Submit: TypeAlias = Callable[[Sequence[Operation]], Sequence[Operation]]
"""Takes operations, in order, and returns those for which there is no room."""


class ThreadWaiter:
    """What a blocking caller waits on: released at most once, waited for by one thread."""

    __slots__ = ("_lock", "result")

    def __init__(self) -> None:
        self.result: Any = None
        self._lock = threading.Lock()
        self._lock.acquire()

    def release(self, result: Any) -> None:
        self.result = result
        self._lock.release()

    def wait(self, timeout_s: float) -> bool:
        """Whether it was released in time."""
        return self._lock.acquire(timeout=timeout_s)

    def result_by(self, deadline: float) -> Any:
        """The result, returned or raised; RequestTimeout if the node hangs."""
        if not self._lock.acquire(timeout=max(0.0, deadline - time.monotonic() + GRACE_S)):
            raise no_answer()
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


class DeadlineWatchdog:
    """Ends the futures of one event loop that a node which hangs leaves open.

    Once a second, while calls are under way, it asks which have no result; a node that is well ends
    them itself by their deadlines. To keep the futures here, or a timer for each, would cost too
    much: at 50,000 calls a second, a look through a second's futures stopped the loop for 20 ms.
    """

    def __init__(self, unanswered: Callable[[], Sequence[Operation]]) -> None:
        """`unanswered` gives the operations that have no result, of all loops."""
        self._unanswered = unanswered
        self._has_news = self._is_checking = False

    def watch(self) -> None:
        """Operations are handed over now; on their futures' event loop."""
        self._has_news = True
        if not self._is_checking:
            self._is_checking = True
            self._check_later()

    def _check_later(self) -> None:
        loop = asyncio.get_running_loop()
        # After a turn, for results that came while the host blocked its loop.
        loop.call_later(GRACE_S, loop.call_soon, self._check)

    def _check(self) -> None:
        loop, latest = asyncio.get_running_loop(), time.monotonic() - GRACE_S
        has_open = False
        for operation in self._unanswered():
            future = operation.waiter  # None as soon as there is a result.
            if not isinstance(future, asyncio.Future) or future.get_loop() is not loop:
                continue
            has_open = True
            if operation.deadline <= latest and not future.done():
                future.set_exception(no_answer())
        self._is_checking, self._has_news = has_open or self._has_news, False
        if self._is_checking:
            self._check_later()


class LoopBatches:
    """Operations of asyncio's tasks: those of one turn of an event loop are submitted together."""

    def __init__(self, submit: Submit, unanswered: Callable[[], Sequence[Operation]]) -> None:
        """`unanswered` gives the submitted operations that have no result, of all loops."""
        self.submit = submit
        self._unanswered = unanswered
        self._batches: dict[asyncio.AbstractEventLoop, list[Operation]] = {}
        self._watchdogs: dict[asyncio.AbstractEventLoop, DeadlineWatchdog] = {}

    def add(self, operation: Operation) -> asyncio.Future[Any]:
        """Submit an operation once the running loop turns; return the future of its result."""
        loop = asyncio.get_running_loop()
        operation.waiter = future = loop.create_future()
        batch = self._batches.get(loop)
        if batch is None:
            self._batches[loop] = [operation]
            loop.call_soon(self.flush, loop)
        else:
            batch.append(operation)
        return future

    def flush(self, loop: asyncio.AbstractEventLoop) -> None:
        """Submit now what was added on `loop`, the running one."""
        batch = self._batches.pop(loop, None)
        if batch is None:
            return
        self._watch(loop)
        error: RafthaError = overloaded()
        try:
            refused = self.submit(batch)
        except RafthaError as ended:
            error, refused = ended, batch
        for operation in refused:
            if not operation.waiter.done():
                operation.waiter.set_exception(error)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        watchdog = self._watchdogs.get(loop)
        if watchdog is None:
            for other in [other for other in self._watchdogs if other.is_closed()]:
                del self._watchdogs[other]
            watchdog = self._watchdogs[loop] = DeadlineWatchdog(self._unanswered)
        watchdog.watch()


def no_answer() -> RequestTimeout:
    """The error for callers of a node that hangs."""
    return RequestTimeout("the node did not answer by the deadline")


def overloaded() -> Overloaded:
    """The error for a caller whose operation found no room."""
    return Overloaded("too many calls wait on this node", hint="try again a little later")


class FireForgetCounter:
    """The waiter of all `async_fire_forget` writes: counts what becomes of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._submitted = self._committed = self._failed = self._unknown = 0

    def submit(self, operation: Operation, submit: Submit) -> None:
        """Submit a write, from any thread. If this raises, the write isn't counted."""
        operation.waiter = self
        self._count(1)
        try:
            if submit((operation,)):
                raise overloaded()
        except BaseException:
            self._count(-1)
            raise

    def _count(self, change: int) -> None:
        with self._lock:
            self._submitted += change

    def add(self, result: Any) -> None:
        """One has ended; from the node's thread."""
        if isinstance(result, Indeterminate):
            self._unknown += 1
        elif isinstance(result, Exception):
            self._failed += 1
        else:
            self._committed += 1

    @property
    def counts(self) -> FireForgetCounts:
        """The numbers now."""
        return FireForgetCounts(
            submitted=self._submitted,
            committed=self._committed,
            failed=self._failed,
            unknown=self._unknown,
        )


class SubmitQueue:
    """What callers have submitted and the node has not taken; all but `lock` is used under it."""

    def __init__(self, bytes_max: int) -> None:
        self.lock = threading.Lock()
        self.is_draining = False
        """Whether the node's thread is about to look."""
        self._bytes_max = bytes_max
        self._operations: deque[Operation] = deque()
        self._write_bytes = self._read_bytes = 0
        self._taken = (0, 0)

    def put(
        self, operations: Sequence[Operation], write_bytes_held: int, read_bytes_held: int
    ) -> Sequence[Operation]:
        """Queue operations, in order; return those for which there is no room.

        `write_bytes_held` and `read_bytes_held` are what the node holds already.
        """
        write_room = self._bytes_max - self._write_bytes - write_bytes_held
        read_room = READ_BYTES_MAX - self._read_bytes - read_bytes_held
        writes, reads = sizes(operations)
        refused: list[Operation] = []
        if writes > write_room or reads > read_room:
            fitting: list[Operation] = []
            for operation in operations:
                room = write_room if operation.is_write else read_room
                if operation.size > room:
                    refused.append(operation)
                    continue
                fitting.append(operation)
                if operation.is_write:
                    write_room -= operation.size
                else:
                    read_room -= operation.size
            operations = fitting
            writes, reads = sizes(operations)
        self._operations.extend(operations)
        self._write_bytes += writes
        self._read_bytes += reads
        return refused

    def take(self) -> tuple[deque[Operation], tuple[int, int]]:
        """Take what is queued, and its sizes.

        It counts until `taken`, so that there is no moment at which it isn't counted.
        """
        operations, self._operations = self._operations, deque()
        self._taken = self._write_bytes, self._read_bytes
        self.is_draining = False
        return operations, self._taken

    def queued(self) -> list[Operation]:
        """What nobody has taken."""
        return list(self._operations)

    def taken(self) -> None:
        """The node itself counts what was taken last from now on."""
        writes, reads = self._taken
        self._write_bytes -= writes
        self._read_bytes -= reads
        self._taken = 0, 0


class Results:
    """Results on their way to callers; for the node's thread."""

    def __init__(self) -> None:
        self._futures: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}

    def deliver(self, waiter: Any, result: Any) -> None:
        """Release a blocking caller now, a future's at the next `flush`."""
        if type(waiter) is ThreadWaiter:
            waiter.release(result)
        elif type(waiter) is FireForgetCounter:
            waiter.add(result)
        else:
            self._futures.setdefault(waiter.get_loop(), []).append((waiter, result))

    def deliver_each(self, waiters: Sequence[Any], results: Sequence[Any]) -> None:
        """As `deliver`, a result for each."""
        loop: asyncio.AbstractEventLoop | None = None
        batch: list[tuple[asyncio.Future[Any], Any]] = []
        for waiter, result in zip(waiters, results, strict=True):
            if type(waiter) is ThreadWaiter or type(waiter) is FireForgetCounter:
                self.deliver(waiter, result)
                continue
            if waiter.get_loop() is not loop:  # Seldom: most hosts have one.
                loop = waiter.get_loop()
                batch = self._futures.setdefault(loop, [])
            batch.append((waiter, result))

    def flush(self) -> None:
        """Complete all futures that were delivered to."""
        if not self._futures:
            return
        batches, self._futures = self._futures, {}
        for loop, batch in batches.items():
            try:
                loop.call_soon_threadsafe(_release, batch)
            except RuntimeError:
                # That loop is closed: nobody waits there any more.
                continue


def _release(batch: list[tuple[asyncio.Future[Any], Any]]) -> None:
    """Complete futures, on their own loop."""
    for future, result in batch:
        if future.done():
            continue  # Its caller was cancelled.
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
