"""Callers' requests about backups: asked of the leader until it has answered.

Theory of operation. As with changes of membership (`administration.py`): a request goes to the
leader, and again, marked as a repetition, to a new one and when no answer comes. The answer names
the entry that did it, and the caller gets its result once this node has applied that entry.

A caller that waits for a backup gets the one that was completed for it, which may be a later try.

A node that goes on with the state of a recovery ends, and begins another life, which takes over the
requests for recoveries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from raftha.core import Raft
from raftha.errors import (
    BackupDamaged,
    BackupFailed,
    BackupInProgress,
    InvalidRequest,
    KeyMissing,
    ObjectMissing,
    RafthaError,
    RecoveryAborted,
    RecoveryInProgress,
    Rejected,
    RepositoryUnavailable,
    RequestTimeout,
    SeveralLineages,
    TargetUnreachable,
    Unavailable,
    UpgradePending,
)
from raftha.node.backup.choosing import RETRY_TIMES, failures
from raftha.node.messages import BackupAction, BackupReply, BackupRequest
from raftha.node.operations import BackupOperation, Operation
from raftha.storage.state.catalog import COMPLETED, Catalog
from raftha.storage.state.recoveries import ABORTED, PREPARED
from raftha.storage.state.state import State

ASK_AGAIN_AFTER_S = 0.5
_OF_RECOVERY = (BackupAction.CHECKPOINT, BackupAction.RECOVER, BackupAction.ABORT_RECOVERY)
_REFUSALS: dict[str, type[RafthaError]] = {
    kind.__name__: kind
    for kind in (
        InvalidRequest,
        TargetUnreachable,
        RepositoryUnavailable,
        BackupDamaged,
        ObjectMissing,
        KeyMissing,
        SeveralLineages,
    )
}


class Requests:
    """The requests of one node's callers. All calls come from the node's thread."""

    def __init__(
        self,
        core: Raft,
        state: State,
        send: Callable[[BackupRequest], None],
        deliver: Callable[[Operation, Any], None],
        waits_for: Callable[[], tuple[int, ...]],
        random_below: Callable[[int], int],
    ) -> None:
        """`send` reaches the leader, also if that is this node.

        `waits_for` returns the members that have to be upgraded.
        """
        self._core = core
        self._state = state
        self._send = send
        self._deliver = deliver
        self._waits_for = waits_for
        self._random_below = random_below
        self._number = 0
        self._operations: list[BackupOperation] = []

    def pending(self) -> Sequence[Operation]:
        """Return the requests without a result."""
        return [operation for operation in self._operations if operation.waiter is not None]

    def take_recoveries(self) -> Sequence[Operation]:
        """Give up the requests for recoveries: `begin` of the node's next life takes them over."""
        recoveries = [o for o in self._operations if o.what == BackupAction.RECOVER]
        taken = [operation for operation in recoveries if operation.waiter is not None]
        self._operations = [each for each in self._operations if each not in taken]
        return taken

    def begin(self, operation: BackupOperation, now: float) -> None:
        """Ask the leader, now or as soon as one is known."""
        if self._state.versions is not None and not self._state.has_catalog:
            hint = "upgrade all members; one that is down must be started or removed"
            text = f"the cluster uses protocol {self._state.versions.protocol}, backups need 7"
            self._deliver(operation, UpgradePending(text, self._waits_for(), hint=hint))
            return
        if operation.what in _OF_RECOVERY and not self._state.has_recovery:
            text = "not all members know the protocol with recovery points, and with recovery"
            hint = "upgrade all members; one that is down must be started or removed"
            self._deliver(operation, UpgradePending(text, self._waits_for(), hint=hint))
            return
        # A random start tells these requests from those before a restart.
        self._number = self._number + 1 if self._number else 1 + self._random_below(1 << 32)
        operation.number = self._number
        self._operations.append(operation)
        self._ask(operation, now)
        self.on_applied()

    def on_reply(self, reply: BackupReply) -> None:
        """The leader has answered."""
        for operation in self._operations:
            if operation.number == reply.number and operation.waiter is not None:
                if reply.kind:
                    self._deliver(operation, _error(reply))
                else:
                    operation.index = max(reply.index, 1)
        self.on_applied()

    def on_leader(self, now: float) -> None:
        """A leader is known."""
        for operation in self._operations:
            self._ask(operation, now)

    def on_tick(self, now: float) -> None:
        """Repeat the requests without an answer."""
        for operation in self._operations:
            if now - operation.asked_at >= ASK_AGAIN_AFTER_S:
                self._ask(operation, now)

    def on_applied(self) -> None:
        """The state has applied more, or more is known: give callers their results."""
        if not self._operations:
            return
        for operation in self._operations:
            if operation.waiter is not None and operation.index:
                result = self._result(operation)
                if result is not None:
                    self._deliver(operation, result)
        self.forget_expired()

    def expire(self, now: float) -> float:
        """Fail the callers whose deadline has passed; return the next deadline."""
        earliest = float("inf")
        for operation in self._operations:
            if operation.waiter is None:
                continue
            if operation.deadline > now:
                earliest = min(earliest, operation.deadline)
            else:
                self._deliver(operation, _late(operation))
        self.forget_expired()
        return earliest

    def forget_expired(self) -> None:
        """Drop the requests that have a result."""
        self._operations = [each for each in self._operations if each.waiter is not None]

    def _ask(self, operation: BackupOperation, now: float) -> None:
        if self._core.leader is None or operation.waiter is None or operation.index:
            return
        request = BackupRequest(
            to=self._core.leader,
            sender=self._core.id,
            number=operation.number,
            what=operation.what,
            payload=operation.payload,
            is_repeat=operation.is_repeated,
        )
        operation.asked_at, operation.is_repeated = now, True
        self._send(request)

    def _result(self, operation: BackupOperation) -> Any:
        """What the caller gets, None if that isn't known yet."""
        catalog = self._state.catalog
        if operation.index > self._state.applied.index:
            return None
        if operation.what == BackupAction.RECOVER:
            return _recovered(catalog, operation)
        if operation.what != BackupAction.TRIGGER:
            return operation.index
        if not operation.waits:
            return catalog.get(operation.index) or BackupFailed("it is gone", operation.index)
        for record in catalog.records():
            if record.id >= operation.index and record.state == COMPLETED:
                return record
        failed = failures(catalog)
        if catalog.running is None and (len(failed) >= RETRY_TIMES or not failed):
            text = failed[0].error if failed else "it is gone"
            return BackupFailed(text, failed[0].id if failed else operation.index)
        return None


def _recovered(catalog: Catalog, operation: BackupOperation) -> Any:
    """The record of a recovery, once it has begun, or has ended; its error if it was given up."""
    record = catalog.recoveries.get(operation.index)
    if record is None:
        return RecoveryAborted("it is forgotten", operation.index)
    if record.state == ABORTED:
        return RecoveryAborted(record.error, record.id)
    return None if record.state == PREPARED and operation.waits else record


def _error(reply: BackupReply) -> RafthaError:
    if reply.kind == BackupInProgress.__name__:
        return BackupInProgress(reply.reason, reply.index)
    if reply.kind == RecoveryInProgress.__name__:
        return RecoveryInProgress(reply.reason, reply.index)
    return _REFUSALS.get(reply.kind, Rejected)(reply.reason)


def _late(operation: BackupOperation) -> RafthaError:
    if operation.index:
        what = "recovery" if operation.what == BackupAction.RECOVER else "backup"
        return RequestTimeout(f"the {what} was not completed before the deadline; it may go on")
    if operation.is_repeated:
        return RequestTimeout("the leader had not answered before the deadline")
    return Unavailable("no leader was known before the deadline, so nothing was requested")
