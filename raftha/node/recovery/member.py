"""Each node's part in a recovery: it builds the state, reports, and goes on with it at the RESTORE.

Theory of operation. While the log says that a recovery is prepared, the node has its state built,
and reports to the leader once a second:

    BUILDING   not there yet
    READY      whole and durable, with this digest
    FAILED     its tries are over
    STOPPED    the node stands in front of the RESTORE, and can't go on by itself

READY is a promise: what is prepared stays until the log, as this node has applied it, says that the
recovery is over.

In front of a RESTORE that the catalog accepts the core hands out no more (`RaftLog.applicable`).
With the prepared state, and if its digest is that of the entry, the node ends and is opened with
it. It answers nothing in between, since it has applied nothing of the entry. A leader lets others
go first, for a moment: it hands over to one that is behind the RESTORE, so that no election is
needed.

Without the state the node goes on building, reports STOPPED, and takes the snapshot that the leader
sends. As the leader it hands over to a voter that is behind the RESTORE.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

from raftha.core import Raft
from raftha.entry import Entry
from raftha.events import HaEvent, RecoveryCompleted
from raftha.node.messages import RecoveryReport
from raftha.node.recovery_work import BuiltState, RecoveryWork
from raftha.storage.state.recoveries import RecoveryRecord
from raftha.storage.state.restored import meta_behind, wanted_restore
from raftha.storage.state.state import State

REPORT_S = 1.0
TRIES = 3
RETRY_S = 2.0
"""A build that has failed is tried again after this time, then after twice as long."""
BEHIND_MAX = 100
"""A member builds nothing while it has more entries than this to apply."""
LEADER_WAIT_S = 3.0
"""A leader waits so long for another voter to be behind the RESTORE first."""


class Stage(enum.IntEnum):
    """How far a member is with a recovery."""

    BUILDING = 0
    READY = 1
    FAILED = 2
    STOPPED = 3


@dataclass(slots=True)
class _Task:
    """A state that is being built, or couldn't be."""

    recovery_id: int
    tries: int = 0
    is_at_work: bool = False
    retry_at: float = 0.0
    done_bytes: int = 0
    total_bytes: int = 0
    error: str = ""


class _Stop(NamedTuple):
    """The RESTORE in front of which this node stands."""

    entry: Entry
    record: RecoveryRecord
    digest: str
    at: float


class Member:
    """See the module's docstring. All calls come from the node's thread."""

    def __init__(
        self,
        core: Raft,
        state: State,
        work: Callable[[], RecoveryWork],
        *,
        send: Callable[[RecoveryReport], None],
        emit: Callable[[HaEvent], None],
        hand_over: Callable[[Collection[int]], None],
        now: Callable[[], float],
    ) -> None:
        """`send` reaches the leader, also if that is this node."""
        self._core = core
        self._state = state
        self._get_work = work
        self._send = send
        self._emit = emit
        self._hand_over = hand_over
        self._now = now
        self._task: _Task | None = None
        self._stop: _Stop | None = None
        self._is_restoring = False
        record = state.catalog.recoveries.last_restored
        is_here = record is not None and record.index == state.applied.index
        self._completed = record if is_here else None
        """The recovery with whose state this life begins, until that is reported."""
        self._reported_at = float("-inf")

    @property
    def _work(self) -> RecoveryWork:
        return self._get_work()

    @property
    def progress(self) -> tuple[Stage, int, int, str]:
        """How far this node is with the recovery under way: stage, bytes done, of all, error."""
        task = self._task
        if task is None:
            return Stage.BUILDING, 0, 0, ""
        stage = self._stage(task.recovery_id)[0]
        return stage, task.done_bytes, task.total_bytes, task.error

    # ---------------------------------------------------------------- building

    def on_tick(self, now: float) -> None:
        """A heartbeat interval has passed."""
        if self._completed is not None:
            self._emit_completed(self._completed)
            self._completed = None
        prepared = self._state.catalog.recoveries.prepared
        if self._is_over(prepared):
            self._task = None
            self._work.discard()
        if prepared is None:
            return
        self._build(prepared, now)
        if self._stop is not None:
            self._go_on(self._stop, now)
        self._report(prepared.id, now)

    def _emit_completed(self, record: RecoveryRecord) -> None:
        self._emit(
            RecoveryCompleted(
                reporter=self._core.id,
                recovery_id=record.id,
                to_sequence=record.to_sequence,
                sequence=record.sequence,
                undone=record.undone,
                digest=record.digest,
                duration_ms=(record.ended_us - record.began_us) / 1000,
            )
        )

    def _is_over(self, prepared: RecoveryRecord | None) -> bool:
        """Whether what is prepared here, or being built, is for a recovery that has ended.

        What is prepared was promised to the leader. So it stays until the log says otherwise, which
        a node that has just started has yet to apply.
        """
        found, task = self._work.prepared, self._task
        recovery_id = 0 if task is None else task.recovery_id
        if found is not None:
            recovery_id = found.recovery_id
        is_known = 0 < recovery_id <= self._state.applied.index
        return is_known and (prepared is None or prepared.id != recovery_id)

    def on_prepared(self, record: RecoveryRecord) -> None:
        """The log says that this recovery is prepared."""
        self._reported_at = float("-inf")
        self._build(record, self._now())

    def _build(self, record: RecoveryRecord, now: float) -> None:
        task, found = self._task, self._work.prepared
        if found is not None and found.recovery_id > record.id:
            return  # The log goes on beyond this one, which has ended.
        if task is None or task.recovery_id != record.id:
            task = self._task = _Task(record.id)
        has_it = self._stage(record.id)[0] is Stage.READY
        if (
            self._is_catching_up
            or has_it
            or task.is_at_work
            or task.tries >= TRIES
            or now < task.retry_at
        ):
            return
        task.is_at_work = True
        task.tries += 1

        def on_progress(done_bytes: int, total_bytes: int) -> None:
            task.done_bytes, task.total_bytes = done_bytes, total_bytes

        def done(built: BuiltState) -> None:
            task.is_at_work = False
            task.error = built.error
            task.retry_at = self._now() + RETRY_S * 2 ** (task.tries - 1)
            if self._task is task:
                self._reported_at = float("-inf")
                self.on_tick(self._now())

        self._work.build(record, on_progress, done)

    @property
    def _is_catching_up(self) -> bool:
        """Whether much of the log is yet to be applied: this recovery may have ended long ago."""
        log = self._core.log
        known = max(log.commit, log.known_commit)
        return self._stop is None and known - self._state.applied.index > BEHIND_MAX

    def _stage(self, recovery_id: int) -> tuple[Stage, str]:
        """The stage, and the digest of what is prepared."""
        found, task = self._work.prepared, self._task
        if found is not None and found.recovery_id == recovery_id:
            return Stage.READY, found.digest
        if self._stop is not None:
            return Stage.STOPPED, ""
        is_over = task is not None and not task.is_at_work and task.tries >= TRIES
        return (Stage.FAILED if is_over else Stage.BUILDING), ""

    def _report(self, recovery_id: int, now: float) -> None:
        leader = self._core.leader
        if leader is None or now - self._reported_at < REPORT_S or self._is_restoring:
            return
        self._reported_at = now
        stage, digest = self._stage(recovery_id)
        task = self._task
        self._send(
            RecoveryReport(
                to=leader,
                sender=self._core.id,
                recovery_id=recovery_id,
                stage=stage,
                digest=digest,
                done_bytes=task.done_bytes if task is not None else 0,
                total_bytes=task.total_bytes if task is not None else 0,
                error=task.error[:500] if task is not None else "",
            )
        )

    # ---------------------------------------------------------------- at the entry

    def on_restore(self, entry: Entry) -> bool:
        """The state stands in front of this RESTORE; False if it is refused, and to be applied."""
        found = wanted_restore(self._state, entry)
        if found is None:
            return False
        restore, record = found
        now = self._now()
        self._stop = _Stop(entry, record, restore.digest, now)
        self._reported_at = float("-inf")
        self._go_on(self._stop, now)
        return True

    def _go_on(self, stop: _Stop, now: float) -> None:
        """Go on with the prepared state, if it is the right one; a leader lets others go first."""
        stage, digest = self._stage(stop.record.id)
        if self._is_restoring:
            return
        if stage is Stage.READY and digest != stop.digest:
            self._work.discard()  # It isn't what the others have.
            stage = Stage.STOPPED
        if self._core.is_leader:
            ahead = self.ahead(stop.entry.index)
            if ahead:
                self._hand_over(ahead)
                return
            if stage is Stage.READY and self._waits_for_others() and now - stop.at < LEADER_WAIT_S:
                return
        if stage is Stage.READY:
            self._is_restoring = True
            self._work.restore(stop.record.id, meta_behind(self._state, stop.entry))

    def ahead(self, index: int) -> set[int]:
        """The other voters whose states are known to have applied this entry."""
        voters, progress = self._core.membership.voters, self._core.progress
        return {peer for peer, each in progress.items() if peer in voters and each.applied >= index}

    def _waits_for_others(self) -> bool:
        voters, progress = self._core.membership.voters, self._core.progress
        return any(
            peer in voters and (each.is_active or each.was_active)
            for peer, each in progress.items()
        )
