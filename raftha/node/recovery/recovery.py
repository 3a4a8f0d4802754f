"""Recovery of the live cluster to an earlier moment, on one node.

Theory of operation. A recovery has two entries in the log (`raftha/storage/state/recoveries.py`).
The second one, RESTORE, puts the pairs of an earlier moment in the place of the present ones, on
every node at the same place of the log. Two parts act on them, which don't know each other:

    `Leading`   as leader: plans, proposes the entries, decides when to switch
    `Member`    on every node: has the state built, reports, goes on with it at the RESTORE

    leader                                      every member
    request: plans, proposes `prepare`   ->     applies it: has the state built, beside its own
                                         <-     RecoveryReport, once a second
    a majority is ready, all agree:
    holds writes until all is archived
    proposes RESTORE                     ->     stops in front of it, and is opened behind it,
                                                with the prepared state

What can be recovered after the failure of any node at any step follows from the log, and from what
is durable on the disks (`raftha/storage/directory/restoring.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from raftha.core import Raft
from raftha.entry import Entry
from raftha.events import HaEvent, RecoveryFailed, RecoveryStarted
from raftha.node.log_clock import LogClock
from raftha.node.messages import BackupReply, BackupRequest, MembershipRequest, RecoveryReport
from raftha.node.recovery.leading import Leading, Surroundings
from raftha.node.recovery.member import Member, Stage
from raftha.node.recovery_work import RecoveryWork
from raftha.storage.state.catalog import Abort, Prepare
from raftha.storage.state.recoveries import RecoveryRecord
from raftha.storage.state.state import State


class RecoveryProgress(NamedTuple):
    """The recovery under way, and how far this node is with it."""

    record: RecoveryRecord
    stage: Stage
    done_bytes: int
    total_bytes: int
    error: str


class Recovery:
    """See the module's docstring. All calls come from the node's thread."""

    def __init__(
        self,
        core: Raft,
        state: State,
        work: Callable[[], RecoveryWork],
        log_clock: LogClock,
        around: Surroundings,
        *,
        freeze_s: float,
        send: Callable[[RecoveryReport], None],
        reply: Callable[[BackupReply], None],
        emit: Callable[[HaEvent], None],
        wake: Callable[[], None],
        now: Callable[[], float],
    ) -> None:
        """`freeze_s` is that of `Leading`.

        `send` sends to another node; `reply` answers a request of any node.
        """
        self._core = core
        self._state = state
        self._emit = emit
        self._send = send
        self._now = now
        self._leading = Leading(
            core,
            state,
            work,
            log_clock,
            around,
            freeze_s=freeze_s,
            reply=reply,
            emit=emit,
            wake=wake,
        )
        self._member = Member(
            core, state, work, send=self._report, emit=emit, hand_over=around.hand_over, now=now
        )

    @property
    def progress(self) -> RecoveryProgress | None:
        """The recovery under way; None if there is none."""
        record = self._state.catalog.recoveries.prepared
        return None if record is None else RecoveryProgress(record, *self._member.progress)

    @property
    def is_under_way(self) -> bool:
        """Whether a recovery is prepared, or about to be, as this leader knows."""
        return self._leading.is_beginning or self._state.catalog.recoveries.prepared is not None

    def _report(self, report: RecoveryReport) -> None:
        if report.to == self._core.id:
            self._leading.on_report(report, self._now())
        else:
            self._send(report)

    # ---------------------------------------------------------------- what comes in

    def on_request(self, request: BackupRequest) -> None:
        """A node wants a recovery, or wants it given up."""
        self._leading.on_request(request)
        self._leading.on_tick(self._now())

    def on_report(self, report: RecoveryReport) -> None:
        """A member says how far it is."""
        if self._state.has_recovery:
            self._leading.on_report(report, self._now())

    def on_tick(self, now: float) -> None:
        """A heartbeat interval has passed."""
        if self._state.has_recovery:
            self._member.on_tick(now)
            self._leading.on_tick(now)

    def on_applied(self, *, is_new: bool) -> None:
        """The state has applied a change of the catalog; `is_new`: not before a start."""
        verdict = self._state.catalog.verdict
        recoveries = self._state.catalog.recoveries
        if not verdict.refusal:
            match verdict.change:
                case Prepare():
                    record = recoveries.get(verdict.index)
                    assert record is not None, "an accepted change has its record"
                    if is_new:
                        self._emit_started(record)
                    self._member.on_prepared(record)
                case Abort() if is_new:
                    change = verdict.change
                    self._emit(
                        RecoveryFailed(
                            reporter=self._core.id, recovery_id=change.id, reason=change.error
                        )
                    )
                case _:
                    pass
        self._leading.on_applied(verdict)

    def on_restore(self, entry: Entry) -> None:
        """The state stands in front of this RESTORE, and has applied all before it."""
        if not self._member.on_restore(entry):
            self._core.log.pass_restore()

    def _emit_started(self, record: RecoveryRecord) -> None:
        self._emit(
            RecoveryStarted(
                reporter=self._core.id,
                recovery_id=record.id,
                to_sequence=record.to_sequence,
                log_time_us=record.to_us,
                request=record.reason,
            )
        )

    # ---------------------------------------------------------------- what has to wait for it

    def sources(self) -> frozenset[int]:
        """The backups that members may still read: no leader may give them up.

        Those of the last restore stay until every member's state is known to be behind it, also if
        the next recovery begins before.
        """
        recoveries, progress = self._state.catalog.recoveries, self._core.progress.values()
        wanted, last = recoveries.prepared, recoveries.last_restored
        read = set(wanted.backups) if wanted is not None else set()
        if last is not None and any(each.applied < last.index for each in progress):
            read.update(last.backups)
        return frozenset(read)

    def why_no_change(self, request: MembershipRequest) -> str:
        """Why the membership can't change so now, as this leader knows; "" if it can.

        Whatever changes, a majority must have the restored state.
        """
        recoveries, membership = self._state.catalog.recoveries, self._core.membership
        if recoveries.prepared is not None:
            return "a recovery is under way"
        last = recoveries.last_restored
        if last is None or request.adds or request.moves:
            return ""
        staying = [voter for voter in membership.voters if voter != request.node_id]
        ahead = self._member.ahead(last.index)
        if self._state.applied.index >= last.index:
            ahead.add(self._core.id)
        if 2 * len(ahead.intersection(staying)) > len(staying):
            return ""
        return "a majority must have the restored state first"
