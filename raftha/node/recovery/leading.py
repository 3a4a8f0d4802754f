"""The leader's part in a recovery: it plans, proposes the entries, and decides when to switch.

Theory of operation. The log says which recovery is under way, so a new leader goes on where the one
before it was. What it knows beside that, the members' reports, is sent again each second.

    request            wait until all that was written before is archived, for a while; then
                       plan -> `prepare`
    prepared           wait until a majority of the voters is ready, and all ready ones have the
                       same digest. Members that are connected are waited for, others aren't
    agreed             hold new writes, until the log is applied and archived: then an undo finds
                       all of it. At most `freeze_timeout_s`
    then               `restore`, and writes go on: those behind it find the restored state

A recovery is aborted if members come to different digests, if no majority can become ready, if the
log isn't archived in time, after its time limit, and on request. Nothing has changed then.

After `restore` the leader sends a snapshot to each member that reports that it stands in front of
it (STOPPED).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from typing import NamedTuple

from raftha.core import Raft
from raftha.errors import InvalidRequest, RafthaError, RecoveryInProgress
from raftha.events import HaEvent, RecoveryPrepared
from raftha.node.log_clock import LogClock
from raftha.node.messages import BackupAction, BackupReply, BackupRequest, RecoveryReport
from raftha.node.recovery.member import REPORT_S, Stage
from raftha.node.recovery.wanted import TIME, RecoveryWanted, unpack_abort
from raftha.node.recovery_work import PlannedRecovery, RecoveryTarget, RecoveryWork
from raftha.storage.state.catalog import (
    Abort,
    Change,
    End,
    Prepare,
    Restore,
    Verdict,
    encode_change,
)
from raftha.storage.state.recoveries import RESTORED, RecoveryRecord
from raftha.storage.state.state import State

QUEUE_MAX = 8
"""Requests that wait; further ones are dropped, and their senders repeat them."""
RECOVERS = "a recovery begins"


Steering = tuple[Callable[[bool], None], Callable[[Collection[int]], None], Callable[[int], None]]
"""`hold`, `hand_over` and `send_state` of `Surroundings`."""


class Surroundings(NamedTuple):
    """What a recovery needs of its node.

    `hold` holds new writes, or lets them go on. `hand_over` makes one of these nodes the leader.
    `send_state` sends a member a snapshot of the state, if none is under way to it.
    `archived_index` is the last entry in a destination; None if nothing is archived.
    """

    hold: Callable[[bool], None]
    hand_over: Callable[[Collection[int]], None]
    send_state: Callable[[int], None]
    archived_index: Callable[[], int | None]
    is_connected: Callable[[int], bool]


class _Open(NamedTuple):
    """The proposal under way: its place in the log, and the request that it answers."""

    term: int
    index: int  # type: ignore[assignment]  # shadows tuple.index, which is never called
    request: BackupRequest | None


class _Votes(NamedTuple):
    """What the members say of a recovery: digests of those that are ready, errors of the failed.

    `waited`: connected ones that build. `possible`: the voters that are ready, or may become so.
    """

    ready: dict[int, str]
    failed: dict[int, str]
    waited: set[int]
    possible: int


class Leading:
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
        reply: Callable[[BackupReply], None],
        emit: Callable[[HaEvent], None],
        wake: Callable[[], None],
    ) -> None:
        """`reply` answers a request, of another node or of this one's callers.

        `freeze_s`: how long writes are held until the log is applied and archived.
        """
        self._freeze_s = freeze_s
        self._core = core
        self._state = state
        self._work = work
        self._log_clock = log_clock
        self._around = around
        self._reply = reply
        self._emit = emit
        self._wake = wake
        self._term = 0
        self._queue: deque[BackupRequest] = deque()
        self._planning: BackupRequest | None = None
        self._planned: tuple[BackupRequest, PlannedRecovery] | None = None
        self._until: tuple[int, float] | None = None
        """Until which entry is archived, or what time it is, the next request waits."""
        self._open: _Open | None = None
        self._reports: dict[int, tuple[RecoveryReport, float]] = {}
        self._seen: tuple[int, float] = 0, 0.0
        """The recovery under way, and when this leader saw it first."""
        self._held_at: float | None = None
        self._agreed_id = 0

    @property
    def is_ready(self) -> bool:
        """Whether this node leads, and knows what the leaders before it have done."""
        core, applied = self._core, self._state.applied.index
        return core.is_leader and self._state.has_recovery and core.log.term(applied) == core.term

    @property
    def is_beginning(self) -> bool:
        """Whether this leader is about to propose a recovery."""
        return self.is_ready and self._planned is not None

    # ---------------------------------------------------------------- what comes in

    def on_request(self, request: BackupRequest) -> None:
        """A member wants a recovery, or wants it given up; this node's callers' come here too."""
        if request.what == BackupAction.RECOVER:
            RecoveryWanted.unpack(request.payload)
        else:
            unpack_abort(request.payload)
        if not self.is_ready or len(self._queue) >= QUEUE_MAX:
            return  # It will be repeated, perhaps to another leader.
        if self._term != self._core.term:
            self._take_over()
        under_way = [self._planning, self._planned and self._planned[0]]
        under_way += [self._open and self._open.request, *self._queue]
        same = (request.sender, request.number, request.payload)
        if all(o is None or (o.sender, o.number, o.payload) != same for o in under_way):
            self._queue.append(request)

    def on_report(self, report: RecoveryReport, now: float) -> None:
        """A member says how far it is."""
        self._reports[report.sender] = report, now
        record = self._state.catalog.recoveries.get(report.recovery_id)
        if report.stage == Stage.STOPPED and record is not None and record.state == RESTORED:
            self._around.send_state(report.sender)

    def on_applied(self, verdict: Verdict) -> None:
        """An entry has changed the catalog, or was refused."""
        opened = self._open
        if opened is None or opened.index != verdict.index:
            return
        self._open = None
        if opened.request is not None:
            error = InvalidRequest(verdict.refusal) if verdict.refusal else None
            self._answer(opened.request, error, verdict.index)

    def on_tick(self, now: float) -> None:
        """Do what is due, one entry at a time."""
        if not self.is_ready:
            self._term = 0
            self._hold(None)
            return
        if self._term != self._core.term:
            self._take_over()
        if self._open is None:
            prepared = self._state.catalog.recoveries.prepared
            if prepared is None:
                self._hold(None)
                self._begin_next(now)
            else:
                self._drive(prepared, now)

    def _take_over(self) -> None:
        self._term = self._core.term
        self._open = self._planning = self._planned = None
        self._queue.clear()
        self._reports.clear()
        self._seen, self._until = (0, 0.0), None

    # ---------------------------------------------------------------- beginning one

    def _begin_next(self, now: float) -> None:
        if self._planned is not None:
            (request, planned), running = self._planned, self._state.catalog.running
            if running is not None:
                end = End(running.id, (), 0, 0, 0, 0, 0, 0, "", b"", 0, (), RECOVERS)
                self._propose(end)
            else:
                self._planned = None
                self._propose(self._prepare(request, planned), request)
        elif self._planning is None and self._queue and self._is_archived(now):
            self._until = None
            self._plan(self._queue.popleft())

    def _is_archived(self, now: float) -> bool:
        """Whether all that was written before the next request is archived, or takes too long.

        The target may be the moment that has just passed.
        """
        if self._until is None:
            self._until = self._core.log.last_index, now + self._freeze_s
        archived, (index, until) = self._around.archived_index(), self._until
        return archived is None or archived >= index or now >= until

    def _plan(self, request: BackupRequest) -> None:
        recoveries = self._state.catalog.recoveries
        if request.what == BackupAction.ABORT_RECOVERY:
            self._answer(request, InvalidRequest("no recovery is under way"), 0)
            return
        wanted = RecoveryWanted.unpack(request.payload)
        known = recoveries.by_request(wanted.request)
        if known is not None:
            self._answer(request, None, known.id)
            return
        sequence, time_us = wanted.number, 0
        if wanted.kind == TIME:
            sequence, time_us = 0, wanted.number
        self._planning = request
        lineage = wanted.lineage or self._core.membership.lineage

        def done(planned: PlannedRecovery) -> None:
            if self._planning is request:
                self._planning = None
                self._on_planned(request, planned)

        self._work().plan(RecoveryTarget(lineage, sequence, time_us), done)

    def _on_planned(self, request: BackupRequest, planned: PlannedRecovery) -> None:
        if planned.kind:
            self._answer_as(request, planned.kind, planned.error, 0)
        else:
            self._planned = request, planned
        self._wake()

    def _prepare(self, request: BackupRequest, planned: PlannedRecovery) -> Prepare:
        wanted = RecoveryWanted.unpack(request.payload)
        catalog = self._state.catalog
        # Those of a lineage before this one are in no danger: only the own ones are retired.
        known = [i for i in planned.backups if catalog.get(i) is not None]
        return Prepare(
            request=wanted.request,
            lineage=planned.lineage,
            to_sequence=planned.to_sequence,
            to_us=planned.to_us,
            backups=tuple(known),
            is_frozen=int(wanted.is_frozen),
            timeout_s=wanted.timeout_s,
            reason=wanted.reason,
        )

    # ---------------------------------------------------------------- the one under way

    def _drive(self, record: RecoveryRecord, now: float) -> None:
        if self._seen[0] != record.id:
            self._seen = record.id, now
        self._answer_others(record)
        votes = self._count(record, now)
        reason = self._why_abort(record, votes, now)
        if self._open is not None:
            return  # It is aborted on request.
        if reason:
            self._propose(Abort(record.id, reason[:500]))
            return
        if not self._is_agreed(votes):
            self._hold(now if record.is_frozen else None)
            return
        self._note_agreement(record, votes)
        if self._core.id not in votes.ready:
            self._around.hand_over([peer for peer in votes.ready if peer != self._core.id])
            return
        self._hold(now)
        if self._is_at_rest:
            self._propose_restore(record, votes.ready[self._core.id])

    def _answer_others(self, record: RecoveryRecord) -> None:
        """Answer the requests that come while a recovery is under way."""
        for request in list(self._queue):
            if self._open is not None:
                return
            self._queue.remove(request)
            if request.what == BackupAction.ABORT_RECOVERY:
                if unpack_abort(request.payload) in (0, record.id):
                    self._propose(Abort(record.id, "it was given up on request"), request)
                else:
                    self._answer(request, InvalidRequest("that recovery is not under way"), 0)
            elif RecoveryWanted.unpack(request.payload).request == record.request:
                self._answer(request, None, record.id)
            else:
                text = f"a recovery to sequence {record.to_sequence} is under way"
                self._answer(request, RecoveryInProgress(text), record.id)

    def _count(self, record: RecoveryRecord, now: float) -> _Votes:
        core = self._core
        votes = _Votes({}, {}, set(), 0)
        possible = 0
        for node_id, member in core.membership.members.items():
            report, heard = self._reports.get(node_id, (None, 0.0))
            if report is not None and report.recovery_id != record.id:
                report = None
            is_there = node_id == core.id or self._around.is_connected(node_id)
            is_fresh = report is not None and now - heard < 5 * REPORT_S
            if report is not None and report.stage == Stage.READY and is_there and is_fresh:
                votes.ready[node_id] = report.digest
            elif report is not None and report.stage == Stage.FAILED:
                votes.failed[node_id] = report.error
                continue
            elif is_there and (member.is_voter or member.is_standby):
                votes.waited.add(node_id)
            possible += member.is_voter
        return votes._replace(possible=possible)

    def _why_abort(self, record: RecoveryRecord, votes: _Votes, now: float) -> str:
        """Why the recovery has to be given up; "" if it goes on."""
        if len(set(votes.ready.values())) > 1:
            found = ", ".join(f"node {i} {d[:16]}" for i, d in sorted(votes.ready.items()))
            return f"the members have come to different states: {found}"
        if votes.possible < self._core.membership.quorum:
            node_id, error = min(votes.failed.items())
            return f"no majority can build the state; node {node_id}: {error}"
        if now - self._seen[1] >= record.timeout_s:
            late = sorted(votes.waited | votes.failed.keys())
            return f"it has taken more than {record.timeout_s} s; not ready: {late}"
        is_late = self._held_at is not None and now - self._held_at >= self._freeze_s
        if is_late and not record.is_frozen:
            return f"the log was not applied and archived within {self._freeze_s:g} s"
        return ""

    def _is_agreed(self, votes: _Votes) -> bool:
        membership = self._core.membership
        ready = sum(voter in votes.ready for voter in membership.voters)
        return ready >= membership.quorum and not votes.waited

    def _note_agreement(self, record: RecoveryRecord, votes: _Votes) -> None:
        if self._agreed_id != record.id:
            self._agreed_id = record.id
            self._emit(
                RecoveryPrepared(
                    reporter=self._core.id,
                    recovery_id=record.id,
                    digest=next(iter(votes.ready.values())),
                    nodes=tuple(sorted(votes.ready)),
                )
            )

    @property
    def _is_at_rest(self) -> bool:
        """Whether the whole log is applied here, and archived."""
        last = self._core.log.last_index
        archived = self._around.archived_index()
        return self._state.applied.index == last and (archived is None or archived >= last)

    # ---------------------------------------------------------------- entries and answers

    def _hold(self, now: float | None) -> None:
        """Hold new writes from now on, if they aren't held; None: let them go on."""
        if (now is None) is not (self._held_at is None):
            self._held_at = now
            self._around.hold(now is not None)

    def _propose(self, change: Change, request: BackupRequest | None = None) -> None:
        time_us = self._log_clock.stamp(self._core.log.last.time_us)
        index = self._core.propose_admin(encode_change(change), time_us)
        self._on_proposed(index, request)
        if index is None and request is not None:
            self._queue.append(request)

    def _propose_restore(self, record: RecoveryRecord, digest: str) -> None:
        time_us = self._log_clock.stamp(self._core.log.last.time_us)
        payload = encode_change(Restore(record.id, digest))
        self._on_proposed(self._core.propose_restore(payload, time_us), None)
        if self._open is not None:
            self._hold(None)

    def _on_proposed(self, index: int | None, request: BackupRequest | None) -> None:
        if index is not None:
            self._open = _Open(self._core.term, index, request)
            self._wake()

    def _answer(self, request: BackupRequest, error: RafthaError | None, index: int) -> None:
        kind = type(error).__name__ if error is not None else ""
        self._answer_as(request, kind, str(error) if error is not None else "", index)

    def _answer_as(self, request: BackupRequest, kind: str, reason: str, index: int) -> None:
        self._reply(
            BackupReply(
                to=request.sender,
                sender=self._core.id,
                number=request.number,
                kind=kind,
                reason=reason[:500],
                index=index,
            )
        )
