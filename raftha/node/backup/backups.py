"""The backups of one node: what it asks for, what it does as leader, and what it takes.

Theory of operation. What there is of backups, the log says (`raftha/storage/state/catalog.py`).
Three parts act on it, which don't know each other:

    `Requests`   this node's callers, whose requests go to the leader
    `Leading`    as leader: begins backups, and proposes all other changes, recovery points too
    `Taker`      as the member that a backup names: has it taken, and reports

`Archiving` has the archive of the log, which goes on by itself, and `Drilling` the drills.

A round of a backup:

    leader                                      member that it names
    chooses one by the members' reports
    proposes `begin`                    ->      applies it: waits for a checkpoint at or after it
                                                has the host take the backup
                                        <-      BackupReport, once a second
                                        <-      `end`, until the catalog has it
    proposes `end`                      ->      applies it

Nothing of this is sent or proposed before the cluster uses the protocol that has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, assert_never

from raftha.clock import Clock
from raftha.config import HaConfig
from raftha.core import Raft
from raftha.events import (
    BackupCompleted,
    BackupFailure,
    BackupStarted,
    PitrCheckpoint,
    RetentionApplied,
)
from raftha.node.backup.archiving import Archiving
from raftha.node.backup.drilling import Drilling
from raftha.node.backup.leading import REPORT_S, Leading
from raftha.node.backup.points import Points
from raftha.node.backup.requests import Requests
from raftha.node.backup.taking import Taker
from raftha.node.backup_work import BackupProgress
from raftha.node.checkpoints import Checkpoints
from raftha.node.comparison import Comparison
from raftha.node.host import Host
from raftha.node.log_clock import LogClock
from raftha.node.messages import (
    ArchiveNotice,
    ArchiveReport,
    BackupAction,
    BackupMessage,
    BackupReply,
    BackupReport,
    BackupRequest,
    RecoveryReport,
)
from raftha.node.operations import BackupOperation, Operation
from raftha.node.recovery.leading import Steering, Surroundings
from raftha.node.recovery.recovery import Recovery
from raftha.storage.state.catalog import (
    COMPLETED,
    FAILED,
    BackupRecord,
    Begin,
    Deleted,
    End,
    NotePoint,
    Point,
    encode_change,
)
from raftha.storage.state.state import State
from raftha.types import BackupMode, BackupState

FREEZE_S = 10.0
"""How long a leader without settings for recovery holds writes for one."""
END_AGAIN_S = 1.0
"""How often the end of a backup is sent again."""
_STATES = tuple(BackupState)


class Backups:
    """See the module's docstring. All calls come from the node's thread."""

    def __init__(
        self,
        config: HaConfig,
        core: Raft,
        state: State,
        host: Host,
        checkpoints: Checkpoints,
        *,
        deliver: Callable[[Operation, Any], None],
        clock: Clock,
        log_clock: LogClock,
        comparison: Comparison,
        waits_for: Callable[[], tuple[int, ...]],
        random_below: Callable[[int], int],
        steer: Steering,
    ) -> None:
        """`waits_for` is that of `Requests`."""
        self._core = core
        self._state = state
        self._host = host
        self._now = clock.monotonic
        self._is_able = config.backup is not None
        self.archiving = Archiving(
            config, core, state, host, log_clock, clock, lambda: checkpoints.applied_bytes
        )
        checkpoints.archived_index = lambda: self.archiving.held_index
        self._points = Points(
            core,
            state,
            config.archive,
            comparison=comparison,
            log_clock=log_clock,
            applied_bytes=lambda: checkpoints.applied_bytes,
            archived_index=lambda: self.archiving.archived_index,
            compares=config.digest_interval_hours > 0,
            now=self._now(),
        )
        around = Surroundings(*steer, lambda: self.archiving.archived_index, host.is_connected)
        self.recovery = Recovery(
            core,
            state,
            lambda: host.recovery,
            log_clock,
            around,
            freeze_s=FREEZE_S if config.archive is None else config.archive.freeze_timeout_s,
            send=host.send,
            reply=self._reply,
            emit=host.emit,
            wake=host.wake,
            now=clock.monotonic,
        )
        self.drilling = Drilling(
            config,
            core,
            state,
            host,
            now_us=lambda: max(log_clock.now_us(), core.log.last.time_us),
            archiver=lambda: self.archiving.archiver,
        )
        self._leading = Leading(
            core,
            state,
            host,
            config.backup,
            log_clock,
            comparison=comparison,
            points=self._points,
            archive_start=lambda: self.archiving.start_index,
            pitr=config.archive,
            recovery=self.recovery,
            rates=lambda: None if config.archive is None else self.drilling.rates,
            reply=self._reply,
            now=self._now(),
        )
        self._taker = Taker(
            core, state, host, checkpoints, self._propose_end, is_able=self._is_able
        )
        self._requests = Requests(core, state, self._ask_leader, deliver, waits_for, random_below)
        self._reported: BackupReport | None = None
        """What the member that takes a backup last said."""
        self._reported_at = self._ended_at = float("-inf")
        self._ended_id = 0
        """The backup whose end was sent last."""

    # ---------------------------------------------------------------- callers

    def submit(self, operation: BackupOperation) -> None:
        """A caller wants something of the leader."""
        self._requests.begin(operation, self._now())

    def pending(self) -> Sequence[Operation]:
        """Return the requests without a result."""
        return self._requests.pending()

    def take_recoveries(self) -> Sequence[Operation]:
        """Give up the requests for recoveries without a result: the node's next life has them."""
        return self._requests.take_recoveries()

    def expire(self, now: float) -> float:
        """Fail the callers whose deadline has passed; return the next deadline."""
        return self._requests.expire(now)

    def forget_expired(self) -> None:
        """Drop the requests that have a result."""
        self._requests.forget_expired()

    # ---------------------------------------------------------------- what is known

    @property
    def progress(self) -> BackupProgress | None:
        """How far the backup is that is being taken, by any member; None if none is."""
        running = self._state.catalog.running
        if running is None:
            return None
        own_id, own = self._taker.progress
        if own_id == running.id:
            return own
        report = self._reported
        if report is None or report.backup_id != running.id:
            return BackupProgress(BackupState.PREPARING, 0, 0)
        return BackupProgress(_STATES[report.state], report.done_bytes, report.total_bytes)

    @property
    def state(self) -> BackupState:
        """What becomes of the backup that runs, or became of the last one."""
        progress = self.progress
        if progress is not None:
            return progress.state
        for record in reversed(self._state.catalog.records()):
            if record.state in (COMPLETED, FAILED):
                return BackupState(record.state)
        return BackupState.IDLE

    def refused_by(self, backup_id: int) -> set[str]:
        """The destinations that refuse to delete this backup, as far as this node has tried."""
        return self._leading.refused_by(backup_id)

    # ---------------------------------------------------------------- what comes in

    def on_message(self, message: BackupMessage) -> None:
        """A member asks, answers or reports."""
        if not self._state.has_catalog:
            return  # This node has yet to apply that the cluster uses it.
        match message:
            case BackupRequest():
                self._on_request(message)
            case BackupReply():
                self._requests.on_reply(message)
            case BackupReport():
                self._leading.on_report(message, self._now())
                if message.backup_id:
                    self._reported = message
            case RecoveryReport():
                self.recovery.on_report(message)
            case ArchiveReport() | ArchiveNotice():
                self.archiving.on_message(message)
            case _:
                assert_never(message)

    def _on_request(self, request: BackupRequest) -> None:
        if request.what in (BackupAction.RECOVER, BackupAction.ABORT_RECOVERY):
            self.recovery.on_request(request)
        else:
            self._leading.on_request(request)
            self._leading.on_tick(self._now())

    def on_leader(self) -> None:
        """A leader is known: it gets the requests without an answer, and what this node can do."""
        self.archiving.on_leader()
        self._reported_at = float("-inf")
        self._requests.on_leader(self._now())

    def on_tick(self, now: float) -> None:
        """A heartbeat interval has passed."""
        if self._state.has_catalog:
            if self._core.leader is not None:
                self._taker.on_tick()
            self._report(now)
            self.recovery.on_tick(now)
            self._leading.on_tick(now)
            self.archiving.on_tick(now)
            self.drilling.on_tick(now)
        self._requests.on_tick(now)

    def on_applied(self, index: int, *, is_new: bool) -> None:
        """The state has applied a change of the catalog; `is_new`: not before a start."""
        verdict = self._state.catalog.verdict
        assert verdict.index == index, "the entry has changed the catalog"
        if not verdict.refusal:
            match verdict.change:
                case Begin():
                    record = self._record(index)
                    self._taker.on_begun(record, is_new=is_new)
                    if is_new:
                        self._emit_started(record)
                case End() if is_new:
                    self._emit_ended(self._record(verdict.change.id))
                case Deleted() if is_new:
                    self._emit_deleted(verdict.before)
                case NotePoint() if is_new:
                    self._emit_point(self._state.catalog.points()[-1])
                case _:
                    pass
        now = self._now()
        self.recovery.on_applied(is_new=is_new)
        self._leading.on_applied(verdict, now)
        self._leading.on_tick(now)
        self._requests.on_applied()

    def _record(self, backup_id: int) -> BackupRecord:
        record = self._state.catalog.get(backup_id)
        assert record is not None, "an accepted change has its record"
        return record

    # ---------------------------------------------------------------- what goes out

    def _ask_leader(self, request: BackupRequest) -> None:
        if request.to == self._core.id:
            self._on_request(request)
        else:
            self._host.send(request)

    def _reply(self, reply: BackupReply) -> None:
        if reply.to == self._core.id:
            self._requests.on_reply(reply)
        else:
            self._host.send(reply)

    def _propose_end(self, end: End) -> None:
        """Have the leader propose it; sent again each second until the catalog has it."""
        leader, now = self._core.leader, self._now()
        is_repeat = self._ended_id == end.id and now - self._ended_at < END_AGAIN_S
        if leader is None or is_repeat:
            return
        self._ended_id, self._ended_at = end.id, now
        payload = encode_change(end)
        own = self._core.id
        self._ask_leader(
            BackupRequest(
                to=leader,
                sender=own,
                number=0,
                what=BackupAction.CHANGE,
                payload=payload,
                is_repeat=False,
            )
        )

    def _report(self, now: float) -> None:
        """Tell the leader what this node can do, and all members how far its backup is."""
        if not self._is_able or now - self._reported_at < REPORT_S:
            return
        self._reported_at = now
        core = self._core
        backup_id, progress = self._taker.progress
        spool = self._host.backups.spool_index
        others = core.membership.members.keys() - {core.id}
        for member in others if backup_id else {core.leader} & others:
            if member is not None and self._host.is_connected(member):
                self._host.send(
                    BackupReport(
                        to=member,
                        sender=core.id,
                        is_able=True,
                        has_spool=spool is not None,
                        spool_index=spool or 0,
                        backup_id=backup_id,
                        state=_STATES.index(progress.state),
                        done_bytes=progress.done_bytes,
                        total_bytes=progress.total_bytes,
                    )
                )

    # ---------------------------------------------------------------- events

    def _emit_started(self, record: BackupRecord) -> None:
        self._host.emit(
            BackupStarted(
                reporter=self._core.id,
                backup_id=record.id,
                label=record.label,
                mode=BackupMode(record.mode),
                node_id=record.node,
            )
        )

    def _emit_ended(self, record: BackupRecord) -> None:
        reporter = self._core.id
        if record.state == FAILED:
            self._host.emit(
                BackupFailure(reporter=reporter, backup_id=record.id, reason=record.error)
            )
            return
        self._host.emit(
            BackupCompleted(
                reporter=reporter,
                backup_id=record.id,
                mode=BackupMode(record.mode),
                sequence=record.position_sequence,
                size_bytes=record.size_bytes,
                size_compressed=record.size_compressed,
                duration_ms=(record.ended_us - record.began_us) / 1000,
                destinations=record.destinations,
                errors=record.errors,
            )
        )

    def _emit_point(self, point: Point) -> None:
        self._host.emit(
            PitrCheckpoint(
                reporter=self._core.id,
                index=point.index,
                sequence=point.sequence,
                log_time_us=point.time_us,
                is_consistent=point.is_consistent,
            )
        )

    def _emit_deleted(self, records: Sequence[BackupRecord]) -> None:
        self._host.emit(
            RetentionApplied(
                reporter=self._core.id,
                deleted=tuple(record.id for record in records),
                freed_bytes=sum(record.size_compressed for record in records),
            )
        )
