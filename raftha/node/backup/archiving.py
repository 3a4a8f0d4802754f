"""The archive of the log as a node knows it: its own part, how far it is, what must stay for it.

Theory of operation. One member archives the log into all destinations: the leader has chosen it
(`archive_leading.py`) and says so each second; it stops when it hasn't heard so for `ORDERED_S`.
The work itself is the host's (`ArchiveWork`), destination by destination.

    members that can        ArchiveReport, each second      ->  leader
    archiver                ArchiveReport, at each result   ->  leader
    all members        <-   ArchiveNotice, each second and at each news    leader

Each member keeps its log behind the *verified* index of the destination that is furthest, as it
keeps it for a member that lags: `archive_backlog_bytes`, or else `log_retention_bytes`, is the
limit, and a full disk takes it back. Until a member has heard how far the archive is, it keeps all.

How far the archive is never follows from a clock, and a notice that comes late says less, not more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from raftha.clock import Clock
from raftha.config import HaConfig
from raftha.core import Raft
from raftha.events import ArchiveGapRecorded, ArchiveLagging, ArchiveResumed
from raftha.node.backup.archive_leading import REPORT_S, ArchiveDecision, ArchiveLeading
from raftha.node.backup.archive_times import ArchiveTimes
from raftha.node.host import Host
from raftha.node.log_clock import LogClock
from raftha.node.messages import ArchiveNotice, ArchiveReport, ArchiveRow
from raftha.storage.backup.archive import NOWHERE, ArchiveOrder, ArchiveResult
from raftha.storage.backup.archive_records import RestoreRecord
from raftha.storage.backup.segments import SEGMENT_RAW_BYTES
from raftha.storage.backup.window import US_PER_HOUR, keep_from
from raftha.storage.state.recoveries import RESTORED
from raftha.storage.state.state import State
from raftha.types import ArchivedTo, ArchiveStatus

ORDERED_S = 10.0
"""An archiver goes on for so long without a word of a leader."""
TIDY_S = 10.0
"""How often the archiver looks whether segments can be merged or deleted."""
RETRY_MAX_S = 10.0
"""The longest pause after an error of a destination."""
CONFLICT_S = 60.0
"""After other entries than ours were found there."""
LAGGING_S = 10.0
"""The archive lags when something is not archived for so long, or for ten intervals."""


@dataclass(slots=True)
class _Lane:
    """This node's work for one destination."""

    row: ArchiveRow
    is_new: bool = True
    """It has to be listed: another member may have archived since."""
    is_known: bool = False
    is_putting: bool = False
    is_tidying: bool = False
    put_at: float = float("-inf")
    tidied_at: float = float("-inf")
    failures: int = 0
    may_try_at: float = float("-inf")


class Archiving:
    """See the module's docstring. All calls come from the node's thread."""

    def __init__(
        self,
        config: HaConfig,
        core: Raft,
        state: State,
        host: Host,
        log_clock: LogClock,
        clock: Clock,
        applied_bytes: Callable[[], int],
    ) -> None:
        """`applied_bytes` counts the log that this node has applied."""
        self._core = core
        self._state = state
        self._host = host
        self._now = clock.monotonic
        self._pitr = config.archive
        self._interval_s = 0.0 if self._pitr is None else self._pitr.archive_interval_ms / 1000
        self._leading = ArchiveLeading(config, core, state, host, log_clock)
        self._times = ArchiveTimes(core.log, state, applied_bytes)
        destinations = sorted(config.backup.destinations) if config.backup is not None else []
        self._lanes = {name: _Lane(_row(name)) for name in destinations}
        self._rows: dict[str, ArchiveRow] = {}
        """How far each destination is, as this node was told last."""
        self._archiver = 0
        self._lost_index = 0
        self._appointed_at = float("-inf")
        """When a leader has last said which member archives."""
        self._reported_at = self._told_at = float("-inf")
        self._gap: tuple[int, int] | None = None
        """The last gap that this node has heard of; None before the first notice."""
        self._recorded = 0, 0
        """The last gap that this node has recorded."""
        self._gaps = 0
        self._since = self._now()
        self._told = 0, self._since
        """Log time as the leader has told it last, and when."""
        self._lags = False

    # ---------------------------------------------------------------- what is known

    @property
    def is_on(self) -> bool:
        """Whether the log is archived: by the settings, and all members know how."""
        return self._pitr is not None and self._state.has_recovery

    @property
    def archiver(self) -> int | None:
        """The member that archives the log, as far as this node was told lately."""
        is_fresh = self._now() - self._appointed_at < ORDERED_S
        return self._archiver if self.is_on and is_fresh and self._archiver else None

    @property
    def archived_index(self) -> int | None:
        """The last entry that is in a destination, as far as is known; None if none is archived."""
        return self._furthest.index if self.is_on else None

    @property
    def _furthest(self) -> ArchiveRow:
        return max(self._rows.values(), key=lambda row: row.index, default=_row(""))

    def is_archived(self, index: int) -> bool:
        """Whether all entries up to there are in a destination."""
        return self.is_on and 0 < index <= self._furthest.index

    @property
    def held_index(self) -> int | None:
        """The entry after which the log is kept for the archive; None if it isn't.

        What is verified in one destination is safe: the others copy it.
        """
        if not self.is_on:
            return None
        return max((row.verified for row in self._rows.values()), default=0)

    @property
    def start_index(self) -> int:
        """The first entry of those that lead up to the archived one without a hole; 0 if unknown.

        A recovery needs a backup that isn't older than that.
        """
        return self._furthest.start if self.is_on else 0

    @property
    def status(self) -> ArchiveStatus | None:
        """How far the archive is, on any node; None if the log isn't archived."""
        if not self.is_on:
            return None
        furthest = self._furthest
        return ArchiveStatus(
            archiver=self.archiver,
            archived_index=furthest.index,
            archived_sequence=furthest.sequence,
            archived_us=furthest.time_us,
            rpo_ms=self._rpo_ms(furthest),
            backlog_bytes=self._times.bytes_after(furthest.index),
            gaps=self._gaps,
            destinations={
                name: ArchivedTo(
                    index=row.index,
                    sequence=row.sequence,
                    time_us=row.time_us,
                    rpo_ms=self._rpo_ms(row),
                    error=row.error,
                )
                for name, row in sorted(self._rows.items())
            },
        )

    def _rpo_ms(self, row: ArchiveRow) -> int:
        """How old the oldest command is that is not there."""
        if not self._rows:
            return round(1000 * (self._now() - self._since))
        pending_us = self._times.pending_us(row.sequence)
        if not pending_us:
            return 0
        if row.pending_us:
            pending_us = min(pending_us, row.pending_us)
        told_us, at = self._told
        now_us = told_us + round(1e6 * (self._now() - at))
        return max((max(now_us, self._core.log.last.time_us) - pending_us) // 1000, 0)

    # ---------------------------------------------------------------- what comes in

    def on_message(self, message: ArchiveReport | ArchiveNotice) -> None:
        """A member reports, or the leader tells."""
        now = self._now()
        if not self.is_on:
            return  # By its settings, or it has yet to apply that all members know how.
        if isinstance(message, ArchiveReport):
            if self._leading.on_report(message, now):
                self._tell(now)
        elif message.sender == self._core.leader:
            decision = ArchiveDecision(
                message.now_us,
                message.archiver,
                message.lost_index,
                (message.gap_first, message.gap_last),
                message.rows,
            )
            self._take_in(decision, now)

    def on_leader(self) -> None:
        """A leader is known: it hears at once what this node has."""
        self._reported_at = float("-inf")

    def on_tick(self, now: float) -> None:
        """A heartbeat interval has passed."""
        if not self.is_on or self._core.is_removed:
            return
        self._times.sample(self._furthest.index)
        if now - self._reported_at >= REPORT_S:
            self._report(now)
        if now - self._told_at >= REPORT_S:
            self._tell(now)
            self._watch()
        self._advance(now)

    # ---------------------------------------------------------------- between members

    def _report(self, now: float) -> None:
        """Tell the leader where this node's log begins, and what it has archived."""
        leader = self._core.leader
        self._reported_at = now
        if leader is None:
            return
        report = ArchiveReport(
            to=leader,
            sender=self._core.id,
            first_index=self._core.log.first_index,
            gap_first=self._recorded[0],
            gap_last=self._recorded[1],
            rows=tuple(lane.row for lane in self._lanes.values() if lane.is_known),
        )
        if leader == self._core.id:
            self._leading.on_report(report, now)
        elif self._host.is_connected(leader):
            self._host.send(report)

    def _tell(self, now: float) -> bool:
        """As the leader, tell all members how far the archive is; False if it isn't the leader."""
        decision = self._leading.decide(now)
        if decision is None:
            return False
        self._told_at = now
        for member in self._core.membership.members.keys() - {self._core.id}:
            if self._host.is_connected(member):
                self._host.send(
                    ArchiveNotice(
                        to=member,
                        sender=self._core.id,
                        now_us=decision.now_us,
                        archiver=decision.archiver,
                        lost_index=decision.lost_index,
                        gap_first=decision.gap[0],
                        gap_last=decision.gap[1],
                        rows=decision.rows,
                    )
                )
        self._take_in(decision, now)
        return True

    def _take_in(self, decision: ArchiveDecision, now: float) -> None:
        """The leader has decided so; until a new one has chosen, the old choice stays."""
        self._told = decision.now_us, now
        if decision.archiver:
            self._appoint(decision.archiver, now)
        self._lost_index = decision.lost_index
        if decision.rows:
            self._rows = {row.destination: row for row in decision.rows}
        self._on_gap(decision.gap)
        self._advance(now)

    def _appoint(self, archiver: int, now: float) -> None:
        is_kept = archiver == self._archiver == self._core.id
        if not is_kept or now - self._appointed_at >= ORDERED_S:
            for name, lane in self._lanes.items():
                lane.is_new, lane.is_known, lane.row = True, False, _row(name)
        self._archiver, self._appointed_at = archiver, now

    def _on_gap(self, gap: tuple[int, int]) -> None:
        is_news = gap[1] > 0 and gap != self._gap
        if is_news and self._gap is not None:
            self._gaps += 1
            self._host.emit(
                ArchiveGapRecorded(reporter=self._core.id, first_index=gap[0], last_index=gap[1])
            )
        if is_news or self._gap is None:
            self._gap = gap

    def _watch(self) -> None:
        """Report when the archive begins to lag, and when it lags no more."""
        furthest = self._furthest
        rpo_ms, limit_ms = self._rpo_ms(furthest), 1000 * max(LAGGING_S, 10 * self._interval_s)
        if not self._lags and rpo_ms >= limit_ms:
            self._lags = True
            errors = (row.error for row in self._rows.values() if row.error)
            self._host.emit(
                ArchiveLagging(
                    reporter=self._core.id,
                    rpo_ms=rpo_ms,
                    sequence=furthest.sequence,
                    reason=next(errors, ""),
                )
            )
        elif self._lags and rpo_ms < limit_ms / 2:
            self._lags = False
            self._host.emit(
                ArchiveResumed(reporter=self._core.id, rpo_ms=rpo_ms, sequence=furthest.sequence)
            )

    # ---------------------------------------------------------------- as the archiver

    def _advance(self, now: float) -> None:
        """Have the work done that is due."""
        is_archiver = self._archiver == self._core.id and now - self._appointed_at < ORDERED_S
        if not is_archiver or not self._core.log.first_membership.lineage:
            return
        for name, lane in self._lanes.items():
            if not lane.is_putting and self._is_due(lane, now):
                self._put(name, lane, now)
            elif not lane.is_tidying and lane.is_known and now - lane.tidied_at >= TIDY_S:
                self._tidy(name, lane, now)

    def _is_due(self, lane: _Lane, now: float) -> bool:
        if now < lane.may_try_at:
            return False
        if lane.is_new or lane.failures:
            return True
        if self._state.applied.index <= lane.row.index:
            return False
        is_much = self._times.bytes_after(lane.row.index) >= SEGMENT_RAW_BYTES
        return is_much or now - lane.put_at >= self._interval_s

    def _order(self, name: str, lane: _Lane) -> ArchiveOrder:
        assert self._pitr is not None, "it is on"
        lineage, catalog = self._core.log.first_membership.lineage, self._state.catalog
        recoveries = catalog.recoveries.records()
        since_us = self._state.applied.time_us - self._pitr.retention_hours * US_PER_HOUR
        own = [record for record in catalog.records() if record.lineage == lineage]
        return ArchiveOrder(
            lineage=lineage,
            through=self._state.applied.index,
            is_new=lane.is_new,
            lost_index=self._lost_to(lane),
            keep_from=keep_from(own, recoveries, name, since_us),
            restores=tuple(
                RestoreRecord(lineage, r.index, r.sequence, r.to_sequence, r.digest, r.ended_us)
                for r in recoveries
                if r.state == RESTORED
            ),
        )

    def _lost_to(self, lane: _Lane) -> int:
        """Up to where the log is lost to a destination.

        For one that is furthest, to all members. For the others, to this one: what they need is in
        the furthest one, if anywhere.
        """
        if lane.row.index < self._furthest.index:
            return self._core.log.first_index - 1
        return self._lost_index

    def _put(self, name: str, lane: _Lane, now: float) -> None:
        order = self._order(name, lane)
        lane.is_putting, lane.put_at, lane.is_new = True, now, False

        def done(result: ArchiveResult) -> None:
            lane.is_putting = False
            self._on_result(lane, result)
            at = self._now()
            lane.failures = lane.failures + 1 if result.error else 0
            if result.error:
                pause_s = min(self._interval_s * 2 ** min(lane.failures, 10), RETRY_MAX_S)
                lane.may_try_at = at + (CONFLICT_S if result.conflict else pause_s)
            elif result.needs:
                lane.may_try_at = at + REPORT_S  # Until the leader has chosen, or given it up.
            elif result.archived.index < order.through:
                lane.put_at = float("-inf")  # There is more, and no pause.
            self._report(at)
            if not self._tell(at):
                self._advance(at)

        self._host.backups.archive.put(name, order, done)

    def _tidy(self, name: str, lane: _Lane, now: float) -> None:
        lane.is_tidying, lane.tidied_at = True, now

        def done(result: ArchiveResult) -> None:
            lane.is_tidying = False
            if lane.is_known and result.archived != NOWHERE:
                verified = max(lane.row.verified, result.verified)
                lane.row = lane.row._replace(verified=verified, start=result.start)
            self._note_gaps(result)

        self._host.backups.archive.tidy(name, self._order(name, lane), done)

    def _on_result(self, lane: _Lane, result: ArchiveResult) -> None:
        """Note how far the destination is; an error before it is known changes no numbers."""
        if lane.is_new:
            return  # Another member has archived meanwhile: it is listed again.
        lane.is_known = True
        row = lane.row._replace(error=result.error[:200], conflict=bool(result.conflict))
        if result.archived != NOWHERE or not result.error:
            row = row._replace(
                index=result.archived.index,
                sequence=result.archived.sequence,
                time_us=result.archived.time_us,
                verified=result.verified,
                start=result.start,
                needs=result.needs,
                pending_us=result.pending_us,
            )
        lane.row = row
        self._note_gaps(result)

    def _note_gaps(self, result: ArchiveResult) -> None:
        for gap in result.gaps:
            self._recorded = gap


def _row(destination: str) -> ArchiveRow:
    return ArchiveRow(destination, 0, 0, 0, 0, 0, 0, 0, False, "")
