"""When a moment is restored for proof: by the member that archives the log, as often as is set.

Theory of operation. The leader chooses the member that archives the log, and that member does the
drills too, one at a time: it asks no other node, since a drill changes nothing but its report.
When the last drill was, the repository says, in its report. So it is asked when this node begins to
archive or to lead, and once a day; a leader needs the rates that the drill has measured, which
decide when a backup is due (`BackupConfig.rto_target_s`).

The first drill is due a day after the first complete backup, or after `drill_every_days` if that is
less. One that fails is repeated after a quarter of this time.
"""

from __future__ import annotations

from collections.abc import Callable

from raftha.config import HaConfig
from raftha.core import Raft
from raftha.events import RestoreDrillCompleted
from raftha.node.backup_work import DrillWork
from raftha.node.host import Host
from raftha.recovery import DrillReport
from raftha.storage.backup.drill import DrillOrder, rates_of
from raftha.storage.backup.recovery import Rates
from raftha.storage.state.catalog import COMPLETED
from raftha.storage.state.state import State

LOOK_S = 60.0
"""How often it is looked whether something is due."""
ASK_S = 86_400.0
FIRST_DAYS = 1.0
_DAY_US = 86_400 * 10**6


class Drilling:
    """See the module's docstring. All calls come from the node's thread."""

    def __init__(
        self,
        config: HaConfig,
        core: Raft,
        state: State,
        host: Host,
        *,
        now_us: Callable[[], int],
        archiver: Callable[[], int | None],
    ) -> None:
        """`now_us` is the time on which the members agree; `archiver` the member that archives."""
        self._core = core
        self._state = state
        self._host = host
        self._now_us = now_us
        self._archiver = archiver
        pitr = config.archive
        self._every_us = 0 if pitr is None else round(pitr.drill_every_days * _DAY_US)
        self._looked_at = self._asked_at = float("-inf")
        self._is_busy = self._is_known = False
        self._failed_us = 0
        """When a drill of this life that failed began."""
        self.last: DrillReport | None = None
        """The last report that this node knows of."""

    @property
    def rates(self) -> Rates:
        """The rates of a restore, as far as they were measured."""
        return rates_of(self.last)

    def on_tick(self, now: float) -> None:
        """A heartbeat interval has passed."""
        if not self._every_us or now - self._looked_at < LOOK_S or self._is_busy:
            return
        self._looked_at = now
        is_archiver = self._archiver() == self._core.id
        if not (is_archiver or self._core.is_leader) or self._now_us() < self._first_us():
            return
        if now - self._asked_at >= ASK_S:
            self._asked_at, self._is_busy = now, True
            self._work.last(self._lineage, self._on_last)
        elif is_archiver and self._is_known and self._is_due():
            self._is_busy = True
            order = DrillOrder(
                started_us=self._now_us(),
                lineage=self._lineage,
                seed=self._state.applied.index,
                node_id=self._core.id,
            )
            self._work.run(order, self._on_report)

    @property
    def _work(self) -> DrillWork:
        return self._host.backups.drills

    @property
    def _lineage(self) -> str:
        return self._core.membership.lineage

    def _first_us(self) -> int:
        """Before this time there was no drill."""
        complete = [r for r in self._state.catalog.records() if r.state == COMPLETED]
        own = [record.ended_us for record in complete if record.lineage == self._lineage]
        wait_us = min(self._every_us, round(FIRST_DAYS * _DAY_US))
        return min(own) + wait_us if own else 1 << 62

    def _is_due(self) -> bool:
        now_us = self._now_us()
        last_us = 0 if self.last is None else self.last.started_us
        is_late = now_us - last_us >= self._every_us
        return is_late and now_us - self._failed_us >= self._every_us // 4

    def _on_last(self, report: DrillReport | None) -> None:
        self._is_busy, self._is_known = False, True
        is_newer = self.last is None or (report and report.started_us > self.last.started_us)
        if is_newer:
            self.last = self._host.statistics.drill = report
        self._looked_at = float("-inf")

    def _on_report(self, report: DrillReport) -> None:
        """A scheduled drill of this node has ended."""
        self._is_busy = False
        if not report.is_ok:
            self._failed_us = report.started_us
        self.record(report)

    def record(self, report: DrillReport) -> None:
        """This node has done a drill, by schedule or because a caller wanted it."""
        if report.is_ok:
            self.last = report
        self._host.statistics.drill = report
        self._host.emit(
            RestoreDrillCompleted(
                reporter=self._core.id,
                is_ok=report.is_ok,
                sequence=report.sequence,
                restore_s=report.restore_s + report.digest_s,
                replay_s=report.replay_s,
                error=report.error,
            )
        )
