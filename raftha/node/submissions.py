"""Writes in flight: from a caller's queue into groups, to the leader, and back as outcomes.

Theory of operation. Each node numbers the groups it submits, in its own session. An entry of the
log opens that session and determines its id. A group stays in `in_flight` until this node has
applied it, its callers' deadlines have passed, or the leader has refused it. Whenever the node
finds a leader or its connection returns, it sends every group in flight again, in order. The state
machine drops repetitions. So a write is applied once, however often it is sent.

`floor`, sent with each group, is the lowest number still in flight. All lower numbers are finished
for good: their results may be forgotten, and a copy that is still in transit is not applied.

A caller that wants its write on more disks than a majority's waits longer (`acknowledgements.py`).

The error of a caller without an outcome depends on whether the group was ever sent: `Rejected` if
not, `Indeterminate` if so.

On the leader, groups go into its proposal queue (`proposals.py`). A follower keeps a few groups in
flight to the leader; writes that arrive meanwhile form the next one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from operator import attrgetter
from typing import Any

from raftha.entry import Group, encode_group
from raftha.errors import (
    Indeterminate,
    InvalidRequest,
    Overloaded,
    RafthaError,
    RequestTimeout,
    StorageFull,
    Unavailable,
)
from raftha.node.acknowledgements import Acknowledgements
from raftha.node.operations import GroupOperation, Operation, WriteOperation
from raftha.node.pending import PendingOperations
from raftha.storage.state.commands import ARRAY_MAX, COMMAND_BYTES_MAX
from raftha.storage.state.owners import OWNER_BYTES
from raftha.storage.state.sessions import Applied, Outcome, Verdict, receipts
from raftha.types import Receipt

GROUP_BYTES_MAX = 1 << 20
FORWARDED_MAX = 8
RESEND_AFTER_S = 1.0
_ACKS = attrgetter("acks")
MAJORITY_FULL = "too many members' disks are full for writes to be accepted"


class InFlight:
    """A group that has left the queue, with the operations that wait for it."""

    __slots__ = (
        "count",
        "encoded",
        "is_own",
        "number",
        "operations",
        "sent_at",
        "sent_times",
        "session",
    )

    def __init__(self, group: Group, operations: list[Any], *, is_own: bool) -> None:
        """`is_own`: this node chose the number. With session 0, the group opens its own session."""
        self.is_own = is_own
        self.session = group.session
        self.number = group.number
        self.count = group.count
        self.encoded = encode_group(group)
        self.operations = operations
        self.sent_times = 0
        self.sent_at = 0.0


class Submissions:
    """The writes of this node's callers."""

    def __init__(
        self,
        route: Callable[[InFlight], bool],
        pending: PendingOperations,
        acknowledgements: Acknowledgements,
        now: Callable[[], float],
        random_below: Callable[[int], int],
        owner: bytes = b"",
    ) -> None:
        """`owner`: that of this node's own session (`raftha.storage.state.owners`).

        `route` sends a group to the leader and returns False if no leader is reachable."""
        self.queue: deque[WriteOperation] = deque()
        self.in_flight_bytes = 0
        """Bytes of the encoded groups in flight, without the operations that wait for them."""
        self.in_flight: dict[tuple[int, int], InFlight] = {}
        self._route = route
        self._pending = pending
        self._acknowledgements = acknowledgements
        self._now = now
        self._random_below = random_below
        self._owner = owner
        self._session = 0
        self._is_opening = False
        self._next_number = 1
        self._own_numbers: deque[int] = deque()

    def unfinished(self) -> tuple[int, int]:
        """Return how many commands of this node's callers have no outcome yet, and their bytes."""
        groups = self.in_flight.values()
        count = len(self.queue) + sum(group.count for group in groups)
        queued = sum(len(operation.command) for operation in self.queue)
        return count, queued + sum(len(group.encoded) for group in groups)

    def add(self, *operations: WriteOperation) -> None:
        """Queue writes, in order."""
        self.queue.extend(operations)

    def add_group(self, operation: GroupOperation) -> None:
        """Send a group that a client has numbered, or that opens a client's session."""
        if operation.session and operation.session == self._session:
            refusal = InvalidRequest(
                "this is the node's own session; open a session for the client"
            )
            self._pending.deliver(operation, refusal)
            return
        # A group that opens a session has no number yet: a random one identifies it.
        number = operation.number if operation.session else self._random_below(1 << 63)
        group = Group(
            operation.session, number, operation.floor, operation.count, operation.commands
        )
        earlier = self.in_flight.get((group.session, group.number))
        if earlier is not None:
            # The client repeats a request that is still in flight: both get the outcome.
            operation.commands = b""
            earlier.operations.append(operation)
            return
        self._launch(InFlight(group, [operation], is_own=False))

    # ---------------------------------------------------------------- from the queue into groups

    def form_groups(self, bytes_max: int, groups_max: int) -> None:
        """Form groups of the queued writes and send them."""
        if not self.queue:
            return
        if not self._session:
            self._open_session()
            return
        formed = 0
        while self.queue and formed < bytes_max and len(self._own_numbers) < groups_max:
            formed += self._form_group()

    def _form_group(self) -> int:
        operations = self._take_fitting()
        commands = b"".join([operation.command for operation in operations])
        if operations:
            number, self._next_number = self._next_number, self._next_number + 1
            self._own_numbers.append(number)
            floor = self._own_numbers[0]
            group = Group(self._session, number, floor, len(operations), commands)
            self._launch(InFlight(group, operations, is_own=True))
        return len(commands)

    def _take_fitting(self) -> list[WriteOperation]:
        """Take the operations of one group from the queue, at least one unless it is empty."""
        queue = self.queue
        if len(queue) <= ARRAY_MAX:
            size = sum([len(operation.command) for operation in queue])
            if size <= GROUP_BYTES_MAX:
                # The usual case: the whole queue fits.
                self.queue = deque()
                return [operation for operation in queue if operation.waiter is not None]
        operations: list[WriteOperation] = []
        size = 0
        while queue and len(operations) < ARRAY_MAX:
            size += len(queue[0].command)
            if operations and size > GROUP_BYTES_MAX:
                break
            operation = queue.popleft()
            if operation.waiter is None:
                size -= len(operation.command)
            else:
                operations.append(operation)
        return operations

    def _open_session(self) -> None:
        if not self._is_opening:
            self._is_opening = True
            nonce = self._random_below(1 << 63)
            self._launch(InFlight(Group(0, nonce, 0, 0, self._owner), [], is_own=True))

    def _launch(self, group: InFlight) -> None:
        self.in_flight[group.session, group.number] = group
        self.in_flight_bytes += len(group.encoded)
        self._send(group)

    def _send(self, group: InFlight) -> None:
        group.sent_at = self._now()
        if self._route(group):
            group.sent_times += 1

    def send_again(self) -> None:
        """A leader was found, or its connection came back: send all groups in flight, in order."""
        for group in list(self.in_flight.values()):
            self._send(group)

    def send_overdue(self) -> None:
        """Repeat the groups without an outcome for long: the last copy may have been dropped."""
        overdue = self._now() - RESEND_AFTER_S
        for group in list(self.in_flight.values()):
            if group.sent_at <= overdue:
                self._send(group)

    # ---------------------------------------------------------------- outcomes

    def on_applied(self, applied: Applied, now: float) -> bool:
        """This node has applied a group: release the callers that wait for it.

        True if queued writes can now be sent: the next turn forms groups of them.
        """
        group = self._take((applied.session, applied.number))
        if group is None:
            return False
        acknowledgement = self._acknowledgements.of(applied.outcome.index)
        outcome = applied.outcome._replace(acknowledgement=acknowledgement)
        if not group.is_own:
            self._deliver_outcome(group, outcome, now)
        elif group.session == 0:
            self._session, self._is_opening, self._next_number = outcome.session, False, 1
            return bool(self.queue)
        elif outcome.verdict is Verdict.SESSION_EXPIRED:
            self._number_all_anew(group)
            return bool(self.queue)
        elif outcome.verdict is Verdict.FORGOTTEN:
            # The table was full and the floor rose past this group: it was not and will not be
            # applied. Later groups of the session may be, so they keep their numbers.
            self._leave_session(group.session)
            self._number_anew([group])
            return bool(self.queue)
        else:
            self._finish_own(group)
            self._deliver_each(group, outcome, now)
        return False

    def on_refused(self, session: int, number: int, *, is_full: bool) -> None:
        """The leader refused this group: too many disks are full, or its queue is."""
        group = self._take((session, number))
        if group is None:
            return
        if group.is_own and session == 0:
            self._is_opening = False
            if is_full:  # The session can't be opened, so no queued write can be sent.
                self._refuse_queue(StorageFull(MAJORITY_FULL))
        elif group.is_own:
            self._finish_own(group)
        # An earlier copy may be in a log: the refusal is definite only for a group sent once.
        is_sure = group.sent_times <= 1
        message = MAJORITY_FULL if is_full else "the leader's queue is full"
        refusal = StorageFull(message) if is_full else Overloaded(message)
        self._fail_all(group, refusal if is_sure else RequestTimeout(message))

    def _refuse_queue(self, error: Exception) -> None:
        for operation in self.queue:
            if operation.waiter is not None:
                self._pending.deliver(operation, error)
        self.queue.clear()

    def _take(self, key: tuple[int, int]) -> InFlight | None:
        group = self.in_flight.pop(key, None)
        if group is not None:
            self.in_flight_bytes -= len(group.encoded)
        return group

    def _number_all_anew(self, expired: InFlight) -> None:
        """This node's session has expired: put its groups back into the queue.

        This node applies the whole log in order, and the session is gone from this entry on. So a
        group that is still in flight was not applied before it and can't be applied after it.
        """
        groups = [expired]
        groups += [g for g in self.in_flight.values() if g.is_own and g.session == expired.session]
        self._leave_session(expired.session)
        self._number_anew(groups)

    def _leave_session(self, session: int) -> None:
        """Stop using `session`; the next groups open a new one."""
        if session == self._session:
            self._session, self._own_numbers = 0, deque()

    def _number_anew(self, groups: list[InFlight]) -> None:
        """Put the operations of these unapplied groups back into the queue."""
        for group in reversed(groups):
            self._take((group.session, group.number))
            for operation in reversed(group.operations):
                if operation.waiter is not None:
                    self.queue.appendleft(operation)

    def _finish_own(self, group: InFlight) -> None:
        numbers, number = self._own_numbers, group.number
        if group.session != self._session:
            return
        if numbers and numbers[0] == number:
            numbers.popleft()
        elif number in numbers:
            numbers.remove(number)

    def _deliver_each(self, group: InFlight, outcome: Outcome, now: float) -> None:
        """Deliver to each operation its own result, in order."""
        if outcome.count != group.count:
            taken = "another process used this node's session; the write's outcome is not known"
            self._fail_all(group, Indeterminate(taken))
            return
        try:
            results = receipts(outcome)
        except RafthaError as error:
            self._fail_all(group, error)
            return
        if not any(map(_ACKS, group.operations)):
            self._pending.deliver_each(group.operations, results)
            return
        for operation, result in zip(group.operations, results, strict=True):
            if operation.waiter is None:
                continue
            if operation.acks and type(result) is Receipt:
                self._acknowledgements.add(operation, result, now)
            else:
                self._pending.deliver(operation, result)

    def _deliver_outcome(self, group: InFlight, outcome: Outcome, now: float) -> None:
        """Deliver the group's outcome to each operation that submitted it."""
        for operation in group.operations:
            if operation.waiter is None:
                continue
            if operation.acks and not outcome.verdict:
                self._acknowledgements.add(operation, outcome, now)
            else:
                self._pending.deliver(operation, outcome)

    def _fail_all(self, group: InFlight, error: Exception) -> None:
        for operation in group.operations:
            if operation.waiter is not None:
                self._pending.deliver(operation, error)

    # ---------------------------------------------------------------- deadlines and the end

    def expire(self, now: float) -> float:
        """Fail the callers whose deadline has passed; return the next deadline."""
        earliest = float("inf")
        unsent, sent = _no_leader(), RequestTimeout("no outcome before the deadline")
        for operation in self.queue:
            earliest = min(earliest, self._expire_one(operation, now, unsent))
        if any(operation.waiter is None for operation in self.queue):
            self.queue = deque(o for o in self.queue if o.waiter is not None)
        for key, group in list(self.in_flight.items()):
            error = sent if group.sent_times else unsent
            for operation in group.operations:
                earliest = min(earliest, self._expire_one(operation, now, error))
            if group.operations and all(o.waiter is None for o in group.operations):
                self._take(key)
                if group.is_own:
                    self._finish_own(group)
            elif not group.is_own:
                # A client may repeat a request without end: drop those that have expired.
                group.operations = [o for o in group.operations if o.waiter is not None]
        return earliest

    def _expire_one(self, operation: Operation, now: float, error: Exception) -> float:
        if operation.waiter is None:
            return float("inf")
        if operation.deadline > now:
            return operation.deadline
        self._pending.deliver(operation, error)
        return float("inf")

    def abort(self, unsent: Exception, sent: Exception) -> None:
        """The node ends: fail each caller by whether its write had left this node."""
        self._refuse_queue(unsent)
        for group in self.in_flight.values():
            self._fail_all(group, sent if group.sent_times else unsent)
        self.in_flight.clear()
        self.in_flight_bytes = 0


def is_proper(group: Group) -> bool:
    """True if a group meets what the state machine relies on."""
    if group.session == 0:
        return group.count == 0 and len(group.commands) <= OWNER_BYTES
    return group.count <= ARRAY_MAX and len(group.commands) <= COMMAND_BYTES_MAX


def _no_leader() -> Unavailable:
    return Unavailable(
        "no leader was reached before the deadline",
        hint="a majority of the members must be running and connected",
    )
