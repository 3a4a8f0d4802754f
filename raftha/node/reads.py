"""Linearizable reads on a node: they wait for a read index, then for the state to apply it.

Theory of operation. One request to the leader, under one id, covers all waiting reads. Reads that
arrive while it is under way join the next request. The leader's answer is an index; once the state
has applied it, the reads run. If request or answer is lost, or the leader changes, the reads go
back into the queue and are requested under a new id. That is safe, since a read changes nothing.

A confirmed index that is applied also shows how fresh the state is: the state holds every write
that was complete when the request was sent. A read that allows such an age runs at once. Only this
node's clock that runs on in suspend is involved: a machine that wakes up holds an old state.

A read that the state isn't prepared for is unready. It runs again in each turn, and each turn
prepares a piece of the state, so that the read delays nothing else.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from raftha.core import Raft, ReadState
from raftha.errors import StorageError
from raftha.node.operations import ReadOperation
from raftha.node.pending import PendingOperations
from raftha.storage.state.state import NotYet


class ReadQueue:
    """The reads of this node's callers."""

    def __init__(
        self,
        core: Raft,
        pending: PendingOperations,
        execute: Callable[[ReadOperation], Any],
        wake: Callable[[], None],
        first_id: int,
        timeout_s: float,
        counts: Counter[str],
        *,
        boottime_ns: Callable[[], int],
        uncounted: Callable[[Any], Any],
    ) -> None:
        """`execute` carries out one read. An unanswered request is repeated after `timeout_s`.

        `first_id` is random, so that an answer to this node's earlier life matches no request.
        `counts` counts reads by consistency, without stale reads by the function `uncounted`: the
        node's status is no read of the state.
        """
        self._core = core
        self._pending = pending
        self._execute = execute
        self._wake = wake
        self._boottime_ns = boottime_ns
        self._timeout_s = timeout_s
        self._counts = counts
        self._uncounted = uncounted
        self._id = first_id
        self._asked_at = 0.0
        self._waiting: list[ReadOperation] = []
        self._asking: list[ReadOperation] = []
        self._confirmed: deque[tuple[int, list[ReadOperation], float]] = deque()
        self._fresh_at = float("-inf")
        self._unready: list[ReadOperation] = []

    def submit(self, operations: Iterable[ReadOperation]) -> None:
        """Run the reads that may run at once, and queue the others."""
        at_once: list[ReadOperation] = []
        for operation in operations:
            if not operation.is_linearizable:
                at_once.append(operation)
                self._counts["stale"] += operation.read is not self._uncounted
            elif operation.max_age_s:
                is_fresh = self.is_fresh(operation.max_age_s, self._now())
                (at_once if is_fresh else self._waiting).append(operation)
                self._counts["bounded"] += 1
            else:
                self._waiting.append(operation)
                self._counts["linearizable"] += 1
        if at_once:
            self._run(at_once)

    def is_fresh(self, max_age_s: float, now: float) -> bool:
        """True if the state holds every write that was complete `max_age_s` ago."""
        return now - self._fresh_at <= max_age_s

    @property
    def has_unready(self) -> bool:
        """True if a read waits for the state to be prepared."""
        return bool(self._unready)

    @property
    def has_any(self) -> bool:
        """True if a read has no result yet."""
        return bool(self._waiting or self._asking or self._confirmed or self._unready)

    @property
    def has_work(self) -> bool:
        """True if a turn could send a request, or run a read that the state was not ready for."""
        return bool(self._unready) or (bool(self._waiting) and not self._asking)

    def _now(self) -> float:
        return self._boottime_ns() / 1e9

    def ask(self) -> None:
        """Request a read index, if reads wait and no request is under way."""
        if not self._waiting or self._asking:
            return
        # Before the request leaves: the age of the state counts from here.
        asked_at = self._now()
        if self._core.read_index(self._id + 1):
            self._id += 1
            self._asked_at = asked_at
            self._asking, self._waiting = self._waiting, []

    def ask_again(self) -> None:
        """Put the reads of a request that may be lost back into the queue."""
        self._waiting = self._asking + self._waiting
        self._asking = []

    def ask_again_if_overdue(self) -> None:
        """Repeat a request that has had no answer for too long."""
        if self._asking and self._now() - self._asked_at > self._timeout_s:
            self.ask_again()

    def answer(self, answers: Iterable[ReadState]) -> bool:
        """Accept the leader's answers; return True if the next request can be sent at once.

        Without a leader, reads wait for the next turn, whatever causes it.
        """
        is_answered = False
        for read_id, index in answers:
            if read_id == self._id and self._asking:
                self._confirmed.append((index, self._asking, self._asked_at))
                self._asking = []
                is_answered = True
        return is_answered and bool(self._waiting)

    def run_confirmed(self, applied_index: int) -> None:
        """Run the reads whose index the state has applied, and those that were not ready."""
        if self._unready:
            unready, self._unready = self._unready, []
            self._run(unready)
        while self._confirmed and self._confirmed[0][0] <= applied_index:
            _, batch, asked_at = self._confirmed.popleft()
            self._fresh_at = max(self._fresh_at, asked_at)
            self._run(batch)

    def _run(self, operations: Sequence[ReadOperation]) -> None:
        """Run reads and deliver their results; StorageError if the state could not be read."""
        done: list[ReadOperation] = []
        results: list[Any] = []
        try:
            for operation in operations:
                if operation.waiter is None:
                    continue
                try:
                    result = self._execute(operation)
                except NotYet:
                    self._unready.append(operation)
                    self._wake()
                    continue
                except StorageError as error:
                    self._pending.deliver(operation, error)
                    raise
                except Exception as error:  # noqa: BLE001 - a read changes nothing; its caller gets it
                    result = error
                done.append(operation)
                results.append(result)
        finally:
            self._pending.deliver_each(done, results)

    def pending(self) -> list[ReadOperation]:
        """Return the reads without a result."""
        confirmed = [operation for _, batch, _ in self._confirmed for operation in batch]
        queued = (*self._unready, *confirmed, *self._asking, *self._waiting)
        return [operation for operation in queued if operation.waiter is not None]

    def take(self) -> list[ReadOperation]:
        """Give up the reads without a result: another node answers them."""
        taken = self.pending()
        self._waiting, self._asking, self._unready = [], [], []
        self._confirmed.clear()
        return taken

    def forget_expired(self) -> None:
        """Drop the reads that got a result without running."""
        self._waiting = [operation for operation in self._waiting if operation.waiter is not None]
        self._unready = [operation for operation in self._unready if operation.waiter is not None]
        for _, batch, _ in self._confirmed:
            batch[:] = [operation for operation in batch if operation.waiter is not None]
