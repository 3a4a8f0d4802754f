"""Callers of a node, on their own threads and event loops: operations in, results out.

Theory of operation. The operations that tasks submit in one turn of their event loop go to the node
together (`LoopBatches`). They are queued in a deque, with one wake-up for all operations that
arrive before the node's thread takes them (`SubmitQueue`). Each blocking caller is released at
once, by its own lock. All futures of one event loop are completed by a single call on that loop, at
the end of the node's turn (`Results.flush`).

The node answers every operation by its deadline. If the node's thread hangs, in a user's command
that doesn't end or on a disk that doesn't answer, its callers wait at most `GRACE_S` longer, or
twice that if they await a future.

The bytes that a node holds for its callers are limited, from the call until the result: writes by
`submit_queue_bytes_max`, all other operations by `READ_BYTES_MAX`, so that neither blocks the
other.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from raftha.errors import Indeterminate, InvalidRequest, Overloaded, RafthaError, RequestTimeout
from raftha.node.operations import Operation, sizes
from raftha.types import FireForgetCounts

READ_BYTES_MAX = 32 << 20
"""The limit on reads, digests, transfers and changes of membership without a result."""

GRACE_S = 1.0

Submit: TypeAlias = Callable[[Sequence[Operation]], Sequence[Operation]]
"""Submits operations, in order, and returns those for which there is no room."""


_here = threading.local()


def enter_node_thread() -> None:
    """The calling thread runs a node from now on."""
    _here.is_node = True


def refuse_on_node_thread() -> None:
    """InvalidRequest on a node's own thread: a command that calls a manager waits for itself."""
    if getattr(_here, "is_node", False):
        raise InvalidRequest(
            "a command can't call the manager, whose node waits for the command to return",
            hint="read and write through txn; do the rest before or after the call",
        )


class ThreadWaiter:
    """The waiter of a blocking caller: released at most once, awaited by one thread."""

    __slots__ = ("_lock", "result")

    def __init__(self) -> None:
        self.result: Any = None
        self._lock = threading.Lock()
        self._lock.acquire()

    def release(self, result: Any) -> None:
        self.result = result
        self._lock.release()

    def wait(self, timeout_s: float) -> bool:
        """True if the waiter was released in time."""
        return self._lock.acquire(timeout=timeout_s)

    def result_by(self, deadline: float) -> Any:
        """Return or raise the result; RequestTimeout if the node hangs."""
        if not self._lock.acquire(timeout=max(0.0, deadline - time.monotonic() + GRACE_S)):
            raise no_answer()
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


class DeadlineWatchdog:
    """Ends the futures of one event loop that a hanging node leaves open.

    Once a second, while calls are under way, it checks which have no result. A healthy node ends
    them itself by their deadlines. Keeping the futures here, or a timer for each, would cost too
    much: at 50,000 calls a second, going through a second's futures stopped the loop for 20 ms.
    """

    def __init__(self, unanswered: Callable[[], Sequence[Operation]]) -> None:
        """`unanswered` returns the operations without a result, of all loops."""
        self._unanswered = unanswered
        self._has_news = self._is_checking = False

    def watch(self) -> None:
        """Operations are being submitted; called on their futures' event loop."""
        self._has_news = True
        if not self._is_checking:
            self._is_checking = True
            self._check_later()

    def _check_later(self) -> None:
        loop = asyncio.get_running_loop()
        # One loop turn later, so that results that arrived while the loop was blocked count.
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
    """Submits the operations of asyncio tasks, those of one loop turn together."""

    def __init__(self, submit: Submit, unanswered: Callable[[], Sequence[Operation]]) -> None:
        """`unanswered` returns the submitted operations without a result, of all loops."""
        self.submit = submit
        self._unanswered = unanswered
        self._batches: dict[asyncio.AbstractEventLoop, list[Operation]] = {}
        self._watchdogs: dict[asyncio.AbstractEventLoop, DeadlineWatchdog] = {}

    def add(self, operation: Operation) -> asyncio.Future[Any]:
        """Submit an operation at the end of this loop turn; return the future of its result."""
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
        """Submit now the operations added on `loop`, which is the running one."""
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
    """Make the error for callers of a hanging node."""
    return RequestTimeout("the node did not answer by the deadline")


def overloaded() -> Overloaded:
    """Make the error for a caller whose operation found no room."""
    return Overloaded("too many calls wait on this node", hint="try again a little later")


class FireForgetCounter:
    """The waiter of all `async_fire_forget` writes: counts their results."""

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
        """Count the result of one write; from the node's thread."""
        if isinstance(result, Indeterminate):
            self._unknown += 1
        elif isinstance(result, Exception):
            self._failed += 1
        else:
            self._committed += 1

    @property
    def counts(self) -> FireForgetCounts:
        """The current counts."""
        return FireForgetCounts(
            submitted=self._submitted,
            committed=self._committed,
            failed=self._failed,
            unknown=self._unknown,
        )


class SubmitQueue:
    """Operations that the node has not taken yet; hold `lock` for every call."""

    def __init__(self, bytes_max: int) -> None:
        self.lock = threading.Lock()
        self.is_draining = False
        """True if the node's thread is about to take the operations."""
        self._bytes_max = bytes_max
        self._operations: deque[Operation] = deque()
        self._write_bytes = self._read_bytes = 0
        self._taken = (0, 0)

    def put(
        self, operations: Sequence[Operation], write_bytes_held: int, read_bytes_held: int
    ) -> Sequence[Operation]:
        """Queue operations, in order; return those for which there is no room.

        `write_bytes_held` and `read_bytes_held` are the bytes that the node holds already.
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
        """Take the queued operations and their sizes.

        They count here until `taken`, so that they are counted at every moment.
        """
        operations, self._operations = self._operations, deque()
        self._taken = self._write_bytes, self._read_bytes
        self.is_draining = False
        return operations, self._taken

    def queued(self) -> list[Operation]:
        """Return the operations that are not taken yet."""
        return list(self._operations)

    def taken(self) -> None:
        """The node now counts the operations that were taken last."""
        writes, reads = self._taken
        self._write_bytes -= writes
        self._read_bytes -= reads
        self._taken = 0, 0


class Results:
    """Delivers results to callers; for the node's thread."""

    def __init__(self) -> None:
        self._futures: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}

    def deliver(self, waiter: Any, result: Any) -> None:
        """Release a blocking caller at once; complete a future at the next `flush`."""
        if type(waiter) is ThreadWaiter:
            waiter.release(result)
        elif type(waiter) is FireForgetCounter:
            waiter.add(result)
        else:
            self._futures.setdefault(waiter.get_loop(), []).append((waiter, result))

    def deliver_each(self, waiters: Sequence[Any], results: Sequence[Any]) -> None:
        """Deliver to each waiter its result."""
        loop: asyncio.AbstractEventLoop | None = None
        batch: list[tuple[asyncio.Future[Any], Any]] = []
        for waiter, result in zip(waiters, results, strict=True):
            if type(waiter) is ThreadWaiter or type(waiter) is FireForgetCounter:
                self.deliver(waiter, result)
                continue
            if waiter.get_loop() is not loop:  # Rare: most hosts have one loop.
                loop = waiter.get_loop()
                batch = self._futures.setdefault(loop, [])
            batch.append((waiter, result))

    def flush(self) -> None:
        """Complete all futures that have got a result."""
        if not self._futures:
            return
        batches, self._futures = self._futures, {}
        for loop, batch in batches.items():
            try:
                loop.call_soon_threadsafe(_release, batch)
            except RuntimeError:
                # The loop is closed, so none of its tasks waits any more.
                continue


def _release(batch: list[tuple[asyncio.Future[Any], Any]]) -> None:
    """Complete futures, on their own loop."""
    for future, result in batch:
        if future.done():
            continue  # The caller was cancelled.
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
