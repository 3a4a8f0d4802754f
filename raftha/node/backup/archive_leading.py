"""The leader's side of the archive: it chooses the archiver, and says what is lost for good.

Theory of operation. Members that can archive report to the leader each second: where their log
begins, and the archiver how far each destination is. The leader chooses the archiver among them as
`backup_from` says, and keeps it as long as it does its work. It tells all members, each second and
at once when something is archived: they keep the log that is not verified in a destination yet, as
they keep it for a member that lags.

  - A member whose log no longer has what comes next is no good archiver: one whose log has it is
    chosen instead.
  - If no member's log has it, the leader says so (`lost_index`), once all members that can archive
    were heard, or have been silent for `LOST_S`. Then the archiver records a gap, and goes on.
  - An archiver that gets nothing done for `FAILED_S` is replaced, if another member is there: its
    network may be what fails.

Where nothing is written, the archive says nothing of the time. So the leader adds a *time mark*, an
empty batch, `MARK_S` after the last write, and then once in `MARK_AGAIN_S`.

Nothing but economy depends on there being one archiver (`storage/backup/archive.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from raftha.config import HaConfig
from raftha.core import Raft
from raftha.node.backup.choosing import kind_of
from raftha.node.host import Host
from raftha.node.log_clock import LogClock
from raftha.node.messages import ArchiveReport, ArchiveRow
from raftha.storage.state.state import State

REPORT_S = 1.0
"""How often members report, and are told."""
SILENCE_S = 3.0
"""A member that was silent for so long can't be the archiver."""
LOST_S = 10.0
FAILED_S = 30.0
AVOID_S = 600.0
"""How long a member is no archiver after it has failed, unless all have."""
MARK_S, MARK_AGAIN_S = 60.0, 3600.0


class ArchiveDecision(NamedTuple):
    """What the leader tells all members; see `ArchiveNotice`."""

    now_us: int
    archiver: int
    lost_index: int
    gap: tuple[int, int]
    rows: tuple[ArchiveRow, ...]


class _Heard(NamedTuple):
    report: ArchiveReport
    at: float


class ArchiveLeading:
    """See the module's docstring. All calls come from the node's thread."""

    def __init__(
        self, config: HaConfig, core: Raft, state: State, host: Host, log_clock: LogClock
    ) -> None:
        self._core = core
        self._state = state
        self._host = host
        self._log_clock = log_clock
        self._kinds = config.backup.backup_from if config.backup is not None else ()
        self._term = 0
        self._since = 0.0
        """When this node became the leader, by its own knowledge."""
        self._archiver = 0
        self._heard: dict[int, _Heard] = {}
        self._rows: dict[str, ArchiveRow] = {}
        self._gap = 0, 0
        self._failing_since: float | None = None
        self._avoided: dict[int, float] = {}
        """Members that have failed, and until when they are avoided."""
        self._written = 0, 0.0
        """The last command, and when this leader first saw it."""
        self._marked_at = float("-inf")

    @property
    def is_leading(self) -> bool:
        """Whether this node leads, and has applied an entry of its term."""
        core = self._core
        is_own = core.log.term(self._state.applied.index) == core.term
        return core.is_leader and self._state.has_recovery and is_own

    def on_report(self, report: ArchiveReport, now: float) -> bool:
        """A member says what it has, and has done; this node's own reports come here too.

        True if all members have to know.
        """
        self._heard[report.sender] = _Heard(report, now)
        if report.sender != self._archiver:
            return False
        before = dict(self._rows)
        if report.gap_last:
            self._gap = report.gap_first, report.gap_last
        for row in report.rows:
            known = self._rows.get(row.destination)
            if known is not None and row.error and row.index < known.index:
                row = known._replace(error=row.error, conflict=row.conflict)  # noqa: PLW2901
            self._rows[row.destination] = row
        self._note_failure(now)
        return self._rows != before

    def _note_failure(self, now: float) -> None:
        fails = bool(self._rows) and all(row.error for row in self._rows.values())
        if not fails:
            self._failing_since = None
        elif self._failing_since is None:
            self._failing_since = now
        elif now - self._failing_since >= FAILED_S:
            self._failing_since = None
            self._avoided[self._archiver] = now + AVOID_S

    def decide(self, now: float) -> ArchiveDecision | None:
        """Decide what all members have to know; None if this node doesn't lead."""
        if not self.is_leading:
            self._term = 0
            return None
        if self._term != self._core.term:
            self._take_over(now)
        fresh = {m: each.report for m, each in self._heard.items() if now - each.at < SILENCE_S}
        candidates = dict(self._candidates(fresh))
        if candidates and (self._archiver in candidates or self._has_heard_all(now, SILENCE_S)):
            chosen = min(candidates, key=lambda m: self._rank(m, candidates[m], fresh[m], now))
            if chosen != self._archiver:
                self._archiver, self._failing_since = chosen, None
        elif self._has_heard_all(now, LOST_S):
            self._archiver = 0
        lost_index = 0
        if candidates and self._has_heard_all(now, LOST_S):
            lost_index = min(fresh[m].first_index for m in candidates) - 1
        self._mark_time(now)
        # Only a leader may ask this clock: a stamp relies on what was examined since the election.
        now_us = max(self._log_clock.now_us(), self._core.log.last.time_us)
        rows = tuple(self._rows.values())
        return ArchiveDecision(now_us, self._archiver, lost_index, self._gap, rows)

    def _take_over(self, now: float) -> None:
        self._term, self._since = self._core.term, now
        self._archiver = 0
        self._heard.clear()
        self._rows.clear()
        self._avoided.clear()
        self._gap = 0, 0
        self._failing_since = None
        self._written = self._state.applied.last_sequence, now
        self._marked_at = float("-inf")

    def _candidates(self, fresh: Iterable[int]) -> Iterable[tuple[int, int]]:
        """The members that can archive, and the places of their kinds in `backup_from`."""
        core = self._core
        for node_id, member in core.membership.members.items():
            if node_id not in fresh or not (member.is_voter or member.is_standby):
                continue
            kind = kind_of(is_leader=node_id == core.id, is_voter=member.is_voter)
            progress = core.progress.get(node_id)
            if kind in self._kinds and (progress is None or not progress.is_healing):
                yield node_id, self._kinds.index(kind)

    def _rank(
        self, node_id: int, kind: int, report: ArchiveReport, now: float
    ) -> tuple[int, bool, int, bool, int, int]:
        """The lowest is the best archiver."""
        needed = max((row.index for row in self._rows.values()), default=0) + 1
        lacks = report.first_index if self._rows and report.first_index > needed else 0
        is_avoided = self._avoided.get(node_id, now) > now
        # A new leader keeps the archiver that it finds: each change costs a listing.
        is_at_work = node_id == self._archiver or (not self._archiver and bool(report.rows))
        progress = self._core.progress.get(node_id)
        lag = 0 if progress is None else self._core.log.last_index - progress.match
        return lacks, is_avoided, kind, not is_at_work, lag, node_id

    def _has_heard_all(self, now: float, patience_s: float) -> bool:
        """Whether all members have reported since this node leads, or have had the time to."""
        if now - self._since >= patience_s:
            return True
        members = self._core.membership.members
        return all(m in self._heard for m in members)

    # ---------------------------------------------------------------- time marks

    def _mark_time(self, now: float) -> None:
        sequence, since = self._written
        if sequence != self._state.applied.last_sequence:
            self._written = self._state.applied.last_sequence, now
            self._marked_at = float("-inf")
            return
        due_at = max(since + MARK_S, self._marked_at + MARK_AGAIN_S)
        if now >= due_at:
            time_us = self._log_clock.stamp(self._core.log.last.time_us)
            if self._core.propose(b"", 0, time_us) is not None:
                self._marked_at = now
                self._host.wake()
