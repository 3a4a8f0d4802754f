"""The leader's side of backups: it has them begun, given up, adopted, retired and deleted.

Theory of operation. Everything that the leader does to backups is an entry of the log, one at a
time: it proposes the next one when it has seen what came of the last. So it decides on what the
catalog says, and the catalog refuses what has become wrong meanwhile. What it knows beside that,
the members' reports and the last listing, ends with its leadership; its successor asks again.

    members' requests        begin, pin, unpin, mark; `end` of the member that takes a backup
    its own                  begin when a backup is due; `end` of a taker that is silent or gone

`Points` has the recovery points, `Upkeep` the rest: listing, adoption, retention, deletion.

A request is answered when its entry is applied. What gets lost is asked for again by its sender.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from raftha.config.backup import BackupConfig
from raftha.config.pitr import PitrConfig
from raftha.core import Raft
from raftha.errors import BackupInProgress, InvalidRequest, UpgradeRequired, WireError
from raftha.node.backup.choosing import (
    RETRY_TIMES,
    Candidate,
    Choice,
    choose,
    due_us,
    failures,
    is_slow,
    kind_of,
)
from raftha.node.backup.points import Points
from raftha.node.backup.upkeep import Upkeep
from raftha.node.backup_work import BackupWork
from raftha.node.comparison import Comparison
from raftha.node.host import Host
from raftha.node.log_clock import LogClock
from raftha.node.messages import BackupAction, BackupReply, BackupReport, BackupRequest
from raftha.node.recovery.recovery import Recovery
from raftha.storage.backup.recovery import Rates
from raftha.storage.state.catalog import (
    FULL,
    MODES,
    BackupRecord,
    Begin,
    Change,
    End,
    MarkNow,
    Pin,
    Unpin,
    Verdict,
    decode_change,
    encode_change,
)
from raftha.storage.state.state import State
from raftha.storage.state.versions import decode_admin

REPORT_S = 1.0
"""How often members report."""
SILENCE_S = 30.0
"""A backup fails if nothing was heard of its taker for this long."""
QUEUE_MAX = 64
"""Requests that wait; further ones are dropped, and their senders repeat them."""


class _Open(NamedTuple):
    """The proposal under way: its place in the log, and the request that it answers."""

    term: int
    index: int  # type: ignore[assignment]  # shadows tuple.index, which is never called
    request: BackupRequest | None


class Leading:
    """See the module's docstring. All calls come from the node's thread."""

    def __init__(
        self,
        core: Raft,
        state: State,
        host: Host,
        config: BackupConfig | None,
        log_clock: LogClock,
        *,
        comparison: Comparison,
        points: Points,
        archive_start: Callable[[], int],
        pitr: PitrConfig | None,
        recovery: Recovery,
        rates: Callable[[], Rates | None],
        reply: Callable[[BackupReply], None],
        now: float,
    ) -> None:
        """`reply` answers a request, of another node or of this one's callers.

        `archive_start` returns the entry from which the archive of the log leads on without a gap.
        `rates` are those of a restore that replays log; None if the log isn't archived.
        """
        self._core = core
        self._state = state
        self._host = host
        self._config = config
        self._log_clock = log_clock
        self._comparison = comparison
        self._points = points
        self._archive_start = archive_start
        self._recovery = recovery
        self._rates = rates
        self._reply = reply
        self._term = 0
        self._since = now
        """When this node became the leader, by its own knowledge."""
        self._open: _Open | None = None
        self._queue: deque[BackupRequest] = deque()
        self._reports: dict[int, tuple[BackupReport, float]] = {}
        self._heard: dict[int, float] = {}
        """When a report of a backup came last, by its id."""
        self._upkeep = Upkeep(
            core,
            state,
            host,
            config,
            pitr,
            self.now_us,
            comparison.has_diverged,
            sources=recovery.sources,
        )
        self._seen_index = -1
        self._looked_at = float("-inf")
        """When this leader last looked whether a backup is due."""
        self._newest = 0, now
        """The id of the newest completed backup, and when this node learned of it."""

    @property
    def is_ready(self) -> bool:
        """Whether this node leads, and knows what the leaders before it have done."""
        core = self._core
        return (
            core.is_leader
            and self._state.has_catalog
            and core.log.term(self._state.applied.index) == core.term
        )

    def now_us(self) -> int:
        """The time on which most members agree; it never is before log time."""
        return max(self._log_clock.now_us(), self._core.log.last.time_us)

    def report_of(self, backup_id: int) -> BackupReport | None:
        """What the taker of this backup last said of it."""
        for report, _ in self._reports.values():
            if report.backup_id == backup_id:
                return report
        return None

    def refused_by(self, backup_id: int) -> set[str]:
        """The destinations that refuse to delete this backup, as far as this node has tried."""
        return self._upkeep.refused_by(backup_id)

    # ---------------------------------------------------------------- what comes in

    def on_report(self, report: BackupReport, now: float) -> None:
        """A member says what it can do, and does."""
        self._reports[report.sender] = report, now
        if report.backup_id:
            self._heard = {report.backup_id: now}

    def on_request(self, request: BackupRequest) -> None:
        """A member wants something; this node's callers' requests come here too."""
        _check(request)
        if not self.is_ready or len(self._queue) >= QUEUE_MAX:
            return  # It will be repeated, perhaps to another leader.
        same = (request.sender, request.number, request.payload)
        if all((other.sender, other.number, other.payload) != same for other in self._queue):
            self._queue.append(request)

    def on_applied(self, verdict: Verdict, now: float) -> None:
        """An entry has changed the catalog, or was refused."""
        opened = self._open
        if opened is not None and opened.index == verdict.index:
            self._open = None
            if opened.request is not None:
                error = InvalidRequest(verdict.refusal) if verdict.refusal else None
                self._answer(opened.request, error, verdict.index)
        if isinstance(verdict.change, End) and not verdict.refusal and not verdict.change.error:
            self._upkeep.wish(now)
        self._upkeep.on_applied(verdict)

    def on_tick(self, now: float) -> None:
        """Do what is due, one entry at a time."""
        if self._state.catalog.changed_index != self._seen_index:
            self._see_newest(now)
        if not self.is_ready:
            self._term = 0
            return
        if self._term != self._core.term:
            self._take_over(now)
        if self._open is None:
            self._advance(now)

    def _see_newest(self, now: float) -> None:
        self._seen_index = self._state.catalog.changed_index
        newest = self._state.catalog.newest(self._core.membership.lineage)
        if newest is not None and newest.id != self._newest[0]:
            self._newest = newest.id, now

    def _take_over(self, now: float) -> None:
        self._term, self._since = self._core.term, now
        self._open = None
        self._queue.clear()
        self._reports.clear()
        self._heard.clear()
        self._upkeep.begin(now)
        self._points.begin(now)

    # ---------------------------------------------------------------- one after the other

    def _advance(self, now: float) -> None:
        running = self._state.catalog.running
        if running is not None:
            reason = self._why_lost(running, now)
            if reason:
                self._propose(_failed(running.id, reason), now=now)
        for request in list(self._queue):
            if self._open is None and self._serve(request, now):
                self._queue.remove(request)
        if self._recovery.is_under_way:
            return  # Nothing begins meanwhile, and nothing goes.
        point = self._points.next_change(now) if self._open is None else None
        if point is not None:
            self._propose(point, now=now)
        elif self._open is None and self._config is not None:
            change = self._upkeep.next_change(now)
            if change is not None:
                self._propose(change, now=now)
            elif running is None and not self._queue and self._is_due(now):
                self._begin(self._wanted_mode(), None, now)

    def _propose(self, change: Change, request: BackupRequest | None = None, *, now: float) -> None:
        payload = encode_change(change)
        # Backups are due by log time, which else stands still where nothing is written.
        time_us = self._log_clock.stamp(self._core.log.last.time_us)

        def propose() -> int | None:
            return self._core.propose_admin(payload, time_us)

        is_full = isinstance(change, Begin) and change.mode == FULL
        index = self._comparison.compare_with(propose, now) if is_full else propose()
        if index is not None:
            self._open = _Open(self._core.term, index, request)
            self._host.wake()

    def _why_lost(self, running: BackupRecord, now: float) -> str:
        """Why a backup that runs has to be given up; "" if it goes on."""
        if running.node == self._core.id:
            return ""  # This node's own side knows.
        if running.node not in self._core.membership.members:
            return f"node {running.node}, which took it, is no member any more"
        heard = max(self._heard.get(running.id, 0.0), self._since)
        if now - max(heard, self._began(running.id, now)) < SILENCE_S:
            return ""
        return f"node {running.node}, which took it, was silent for {SILENCE_S:g} s"

    def _began(self, backup_id: int, now: float) -> float:
        """When this leader first saw that the backup runs."""
        if backup_id not in self._heard:
            self._heard = {backup_id: now}
        return self._heard[backup_id]

    # ---------------------------------------------------------------- requests

    def _serve(self, request: BackupRequest, now: float) -> bool:
        """Carry out a request, or refuse it; False if it has to wait."""
        if request.what == BackupAction.TRIGGER:
            return self._trigger(request, now)
        if request.what == BackupAction.CHECKPOINT:
            return self._checkpoint(request, now)
        if request.what == BackupAction.APPLY_RETENTION:
            self._upkeep.wish(now)
            self._answer(request, None, 0)
            return True
        change = decode_change(*decode_admin(request.payload))
        held = _held(self._state, change)
        if isinstance(change, End):
            return self._end(change, now) if held is None else True  # Else it is a repetition.
        if request.is_repeat and held is not None:
            self._answer(request, None, held)
        else:
            self._propose(change, request, now=now)
        return True

    def _end(self, end: End, now: float) -> bool:
        """Propose the end of a backup; False if it has to wait.

        A full one waits for the comparison of the members' states: what a member has taken that
        differs from a majority must not be restored.
        """
        record = self._state.catalog.get(end.id)
        assert record is not None, "it runs"
        if not end.error and self._comparison.is_comparing(record.id):
            return False
        if not end.error and self._comparison.has_diverged(record.node, record.id):
            end = _failed(end.id, f"the state of node {record.node} differs from a majority's")
        self._propose(end, now=now)
        return True

    def _trigger(self, request: BackupRequest, now: float) -> bool:
        running, prepared = self._state.catalog.running, self._state.catalog.recoveries.prepared
        if prepared is not None:
            error_of_recovery = BackupInProgress("a recovery is under way", prepared.id)
            self._answer(request, error_of_recovery, prepared.id)
            return True
        if running is not None:
            if request.is_repeat:
                self._answer(request, None, running.id)
                return True
            error = BackupInProgress(f"backup {running.label} is running", running.id)
            self._answer(request, error, running.id)
            return True
        if self._config is None:
            hint = "give all members the table [backup]"
            error_of_config = InvalidRequest("the leader has no settings for backups", hint=hint)
            self._answer(request, error_of_config, 0)
            return True
        if not self._has_heard_all(now):
            return False
        mode = request.payload.decode() or str(self._config.mode)
        if not self._begin(mode, request, now):
            self._answer(request, InvalidRequest(self._why_none()), 0)
        return True

    def _checkpoint(self, request: BackupRequest, now: float) -> bool:
        if not self._points.is_able:
            hint = "give all members the table [backup]"
            error = InvalidRequest("the leader has no settings for recovery", hint=hint)
            self._answer(request, error, 0)
            return True
        noted = self._points.serve(request, now)
        if noted is not None:
            self._answer(request, None, noted)
        return noted is not None or self._points.is_forgotten(request, now)

    def _why_none(self) -> str:
        assert self._config is not None
        kinds = ", ".join(self._config.backup_from)
        return f"no member can take a backup: backup_from allows {kinds}, and none of them is up"

    def _answer(self, request: BackupRequest, error: Exception | None, index: int) -> None:
        if request.number == 0:
            return
        self._reply(
            BackupReply(
                to=request.sender,
                sender=self._core.id,
                number=request.number,
                kind=type(error).__name__ if error else "",
                reason=str(error)[:500] if error else "",
                index=index,
            )
        )

    # ---------------------------------------------------------------- beginning one

    def _is_due(self, now: float) -> bool:
        assert self._config is not None
        if now - self._looked_at < REPORT_S:
            return False
        self._looked_at = now
        lineage, catalog = self._core.membership.lineage, self._state.catalog
        interval_s = 3600 * self._config.interval_hours
        due = due_us(self._config, catalog, lineage, is_urgent=self._has_gap())
        is_due = self.now_us() >= due
        # Where log time was set wrong once, this node's own time decides.
        newest, since = self._newest
        is_overdue = newest > 0 and now - since >= interval_s
        is_early = is_overdue or self._is_after_recovery() or self._is_slow()
        is_due = is_due or (not failures(catalog) and is_early)
        return is_due and self._has_heard_all(now) and self._upkeep.is_ready_to_begin(now)

    def _has_gap(self) -> bool:
        """Whether the archive has no way from the last backup on: the next one must be behind it.

        That follows from what there is, not from an event: the next leader sees it too.
        """
        newest = self._state.catalog.newest(self._core.membership.lineage)
        return newest is not None and self._archive_start() > newest.position_index + 1

    def _is_after_recovery(self) -> bool:
        """Whether no backup is of the state behind the last recovery: none builds on those before.

        Until one is there, whatever goes back to a moment behind it has to go through it.
        """
        restored = self._state.catalog.recoveries.last_restored
        newest = self._state.catalog.newest(self._core.membership.lineage)
        position = 0 if newest is None else newest.position_index
        return restored is not None and restored.index > position

    def _is_slow(self) -> bool:
        """Whether a restore would take longer than is wanted, because of the log behind the last.

        That goes by what drills have measured.
        """
        rates, config = self._rates(), self._config
        sequence, lineage = self._state.applied.last_sequence, self._core.membership.lineage
        assert config is not None
        return rates is not None and is_slow(config, self._state.catalog, lineage, sequence, rates)

    def _wanted_mode(self) -> str:
        assert self._config is not None
        failed = failures(self._state.catalog)
        is_retry = 0 < len(failed) < RETRY_TIMES
        return failed[0].mode if is_retry else str(self._config.mode)

    def _begin(self, mode: str, request: BackupRequest | None, now: float) -> bool:
        """Propose a backup; False if no member can take one."""
        assert self._config is not None
        lineage, catalog = self._core.membership.lineage, self._state.catalog
        mode = FULL if self._is_after_recovery() else mode
        choice: Choice | None = choose(
            self._config,
            catalog,
            lineage,
            self.now_us(),
            mode,
            self._candidates(now),
            self._upkeep.errors,
            rates=self._rates(),
        )
        if choice is None or not lineage:
            return False
        reason = choice.reason
        if request is None and not reason:
            reason = next((record.reason for record in failures(catalog)), "")
            if self._has_gap():
                reason = f"the archive of the log has a gap before entry {self._archive_start()}"
        begin = Begin(choice.node, choice.mode, choice.parent, lineage, choice.destinations, reason)
        self._propose(begin, request, now=now)
        return True

    def _has_heard_all(self, now: float) -> bool:
        """Whether the connected members have reported, or have had the time to."""
        if now - self._since >= 3 * REPORT_S:
            return True
        others = self._core.membership.members.keys() - {self._core.id}
        return all(m in self._reports for m in others if self._host.is_connected(m))

    def _candidates(self, now: float) -> list[Candidate]:
        core, found = self._core, []
        for node_id, member in core.membership.members.items():
            is_leader = node_id == core.id
            if not (member.is_voter or member.is_standby):
                continue  # It is catching up.
            kind = kind_of(is_leader=is_leader, is_voter=member.is_voter)
            if is_leader:
                work: BackupWork = self._host.backups
                found.append(Candidate(node_id, kind, 0, work.spool_index))
                continue
            report, heard = self._reports.get(node_id, (None, 0.0))
            progress = core.progress.get(node_id)
            is_there = report is not None and now - heard < 3 * REPORT_S and report.is_able
            if report is None or not is_there or progress is None or progress.is_healing:
                continue
            spool = report.spool_index if report.has_spool else None
            lag = core.log.last_index - progress.match
            found.append(Candidate(node_id, kind, lag, spool))
        return found


def _check(request: BackupRequest) -> None:
    """WireError unless a request can be carried out."""
    if request.what not in set(BackupAction):
        raise WireError(f"there is no action {request.what} for backups")
    if request.what == BackupAction.TRIGGER:
        if request.payload and request.payload.decode(errors="replace") not in MODES:
            raise WireError("there is no such mode of a backup")
    elif request.what == BackupAction.CHANGE:
        try:
            change = decode_change(*decode_admin(request.payload))
        except UpgradeRequired as error:
            raise WireError(f"a change of the catalog can't be read: {error}") from error
        if not isinstance(change, End | Pin | Unpin | MarkNow):
            raise WireError(f"only a leader makes a change {type(change).__name__}")


def _held(state: State, change: Change) -> int | None:
    """The entry with which what the change asks for came to be, if it is so already."""
    catalog = state.catalog
    if isinstance(change, End):
        record = catalog.get(change.id)
        return None if record == catalog.running and record is not None else catalog.changed_index
    if isinstance(change, Unpin):
        record = catalog.get(change.id)
        has_it = record is not None and any(change.name in ("", name) for name, _ in record.pins)
        return None if has_it else catalog.changed_index
    if isinstance(change, MarkNow):
        return next((mark.index for mark in catalog.marks() if mark.name == change.name), None)
    return None


def _failed(backup_id: int, error: str) -> End:
    return End(backup_id, (), 0, 0, 0, 0, 0, 0, "", b"", 0, (), error)
