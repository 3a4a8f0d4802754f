"""Operations that a node has accepted and not answered, and their size.

Theory of operation. Every result of an operation is delivered here, wherever the operation waits.
An operation gets at most one result, and counts towards the node's limits until then. When the node
ends, the remaining operations get an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from raftha.errors import Unavailable
from raftha.node.operations import Operation, sizes


class Part(Protocol):
    """A part of a node where operations wait."""

    def pending(self) -> Sequence[Operation]: ...
    def forget_expired(self) -> None: ...


class PendingOperations:
    """The unanswered operations of one node; for the node's thread, except `all`."""

    def __init__(
        self,
        deliver: Callable[[Any, Any], None],
        deliver_each: Callable[[Sequence[Any], Sequence[Any]], None],
        errors: Counter[str],
    ) -> None:
        """`deliver` and `deliver_each` are the host's; `errors` counts errors by class."""
        self.write_bytes = 0
        self.read_bytes = 0
        self._operations: set[Operation] = set()
        self._deliver = deliver
        self._deliver_each = deliver_each
        self._errors = errors

    def add(self, operations: Sequence[Operation], held: tuple[int, int] | None = None) -> None:
        """Accept operations; `held` is their `sizes`, if already known."""
        self._operations.update(operations)
        writes, reads = sizes(operations) if held is None else held
        self.write_bytes += writes
        self.read_bytes += reads

    def all(self) -> list[Operation]:
        """Return the operations without a result; from any thread, since the copy is one step."""
        return list(self._operations)

    def forget(self, operations: Sequence[Operation]) -> None:
        """Hold these no longer: others will answer them."""
        for operation in operations:
            self._operations.discard(operation)
        self._release(operations)

    def deliver(self, operation: Operation, result: Any) -> None:
        """Deliver an operation's result; its caller is released at the end of the turn."""
        waiter, operation.waiter = operation.waiter, None
        if operation in self._operations:
            self._operations.remove(operation)
            self._release((operation,))
        if isinstance(result, Exception):
            self._errors[type(result).__name__] += 1
        self._deliver(waiter, result)

    def deliver_each(self, operations: Sequence[Operation], results: Sequence[Any]) -> None:
        """Deliver a result to each operation that still waits: the hot path.

        Calling `deliver` for each one would take three times as long.
        """
        waiters = [operation.waiter for operation in operations]
        if None in waiters:
            both = zip(operations, results, strict=True)
            waiting = [(o, r) for o, r in both if o.waiter is not None]
            operations, results = [o for o, _ in waiting], [r for _, r in waiting]
            waiters = [operation.waiter for operation in operations]
        for operation in operations:
            operation.waiter = None
        self._operations.difference_update(operations)
        self._release(operations)
        failed = [type(result).__name__ for result in results if isinstance(result, Exception)]
        if failed:
            self._errors.update(failed)
        self._deliver_each(waiters, results)

    def _release(self, operations: Sequence[Operation]) -> None:
        writes, reads = sizes(operations)
        self.write_bytes -= writes
        self.read_bytes -= reads


def expire(
    part: Part, now: float, error: str, deliver: Callable[[Operation, Exception], None]
) -> float:
    """Fail the operations of a part whose deadline has passed; return the next deadline."""
    earliest = float("inf")
    for operation in part.pending():
        if operation.deadline > now:
            earliest = min(earliest, operation.deadline)
        else:
            deliver(operation, Unavailable(error))
    part.forget_expired()
    return earliest
