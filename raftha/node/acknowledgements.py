"""Committed writes whose callers wait for more disks than a majority's.

Theory of operation. When a node has applied a write of one of its callers, it knows which members
have it on disk: as leader from its followers' replies, as follower from what the leader sends along
with the commit index (`core/durable_indexes.py`). If the caller wants more disks, the write waits
here. The leader notifies waiting followers as soon as another disk has it. Voters are counted by
the current membership, so a caller never waits for a removed voter.

If the wait takes too long, the caller gets `AcknowledgementTimeout` with the receipt: the write
itself is committed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from raftha.core import Raft
from raftha.errors import AcknowledgementTimeout, InvalidRequest
from raftha.membership import Membership
from raftha.node.operations import ALL_VOTERS, GroupOperation, Operation, WriteOperation
from raftha.storage.state.sessions import Outcome
from raftha.types import Acknowledgement, Receipt, ReplicationMode

Wanting = WriteOperation | GroupOperation


class _Waiting(NamedTuple):
    """A write with its result, at `index`; its caller waits for disks until `deadline`."""

    index: int  # type: ignore[assignment]  # shadows tuple.index, which is never called
    operation: Wanting
    result: Receipt | Outcome
    deadline: float


class Acknowledgements:
    """Which members hold the writes applied here, and the callers that wait for more of them."""

    def __init__(
        self, core: Raft, deliver: Callable[[Operation, Any], None], timeout_s: float
    ) -> None:
        """`timeout_s` limits how long a committed write waits here."""
        self._core = core
        self._deliver = deliver
        self._timeout_s = timeout_s
        self._waiting: list[_Waiting] = []
        self._applied: tuple[int, Acknowledgement] | None = None

    @property
    def has_waiting(self) -> bool:
        """True if a caller waits for more disks."""
        return bool(self._waiting)

    def begin_entry(self) -> None:
        """The state has applied another entry: its groups come next."""
        self._applied = None

    def of(self, index: int) -> Acknowledgement:
        """Return which members are known to hold entry `index`, which this node has applied.

        The groups of one entry share one record: it is worked out once, not once a group.
        """
        if self._applied is None or self._applied[0] != index:
            self._applied = index, self._of(index, ReplicationMode.ASYNC_WITH_ACK)
        return self._applied[1]

    def _of(self, index: int, mode: ReplicationMode) -> Acknowledgement:
        acked_by = holders(self._core, index)
        members = self._core.membership.members
        regions = dict.fromkeys(members[i].region for i in acked_by if i in members)
        return Acknowledgement(mode, acked_by, tuple(regions))

    def add(self, operation: Wanting, result: Receipt | Outcome, now: float) -> None:
        """Deliver `result` once as many disks hold the write as the caller wants."""
        deadline = min(operation.deadline, now + self._timeout_s)
        waiting = _Waiting(result.index, operation, result, deadline)
        if not self._release(waiting):
            self._waiting.append(waiting)
            self._core.watch_durable_indexes(result.index)

    def check(self) -> None:
        """Release the callers whose writes are now on enough disks."""
        if self._waiting:
            self._waiting = [w for w in self._waiting if not self._release(w)]

    def expire(self, now: float) -> float:
        """Fail the callers that have waited too long; return the next deadline."""
        for waiting in self._waiting:
            if waiting.deadline <= now and waiting.operation.waiter is not None:
                self._deliver(waiting.operation, self._late(waiting))
        self._waiting = [w for w in self._waiting if w.operation.waiter is not None]
        return min((waiting.deadline for waiting in self._waiting), default=float("inf"))

    def abort(self) -> None:
        """The node ends: fail all waiting callers."""
        self.expire(float("inf"))

    def _release(self, waiting: _Waiting) -> bool:
        operation = waiting.operation
        if operation.waiter is None:
            return True
        wanted = _wanted(operation.acks, self._core.membership)
        if len(self._missing(waiting.index)) > len(self._core.membership.voters) - wanted:
            return False
        self._deliver(operation, self._result(waiting))
        return True

    def _missing(self, index: int) -> Sequence[int]:
        held_by = holders(self._core, index)
        return [voter for voter in self._core.membership.voters if voter not in held_by]

    def _result(self, waiting: _Waiting) -> Receipt | Outcome:
        is_sync = waiting.operation.acks == ALL_VOTERS
        mode = ReplicationMode.SYNC if is_sync else ReplicationMode.ASYNC_WITH_ACK
        acknowledgement = self._of(waiting.index, mode)
        return waiting.result._replace(acknowledgement=acknowledgement)

    def _late(self, waiting: _Waiting) -> AcknowledgementTimeout:
        missing = tuple(self._missing(waiting.index))
        wanted = _wanted(waiting.operation.acks, self._core.membership)
        nodes = ", ".join(map(str, missing)) or "too few voters"
        return AcknowledgementTimeout(
            f"committed as entry {waiting.index}, but not on {wanted} disks in time: {nodes}",
            self._result(waiting),
            missing,
            hint="the write stays; sending it again would be another write",
        )


def holders(core: Raft, index: int) -> tuple[int, ...]:
    """Return the nodes known to hold entry `index`, which is applied here, on disk.

    They include nodes that were removed since. A healing node doesn't count, this one included.
    """
    here = set() if core.is_healing else {core.id}
    return tuple(sorted(here.union(core.log.durable_indexes.holders(index))))


def _wanted(acks: int, membership: Membership) -> int:
    """Return the number of voters that `acks` stands for."""
    if acks == ALL_VOTERS:
        return len(membership.voters)
    # If the membership has grown since, a commit may need more voters.
    return max(acks, membership.quorum)


def check_wanted(acks: int, membership: Membership) -> None:
    """Raise InvalidRequest if `acks` voters are less than a majority, or more than there are."""
    voters = len(membership.voters)
    if acks > 0 and not membership.quorum <= acks <= voters:
        raise InvalidRequest(
            f"write_quorum must be 0, or from {membership.quorum} to {voters} with {voters}"
            f" voters, got {acks}",
            hint="a write is only safe on a majority",
        )
