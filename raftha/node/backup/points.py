"""The leader's recovery points: moments that the log records, and what is known of the state then.

Theory of operation. Every moment of the window can be restored. A recovery point is one for which
two more things hold: its log is in a destination, and the log says so, on every member. Usually the
members' states were compared as of it, too (`watch/divergence.py`).

    a comparison has ended: asked for by a caller, for a full backup, or by its own schedule
    a point is due: `checkpoint_interval_sec` after the last one, or after `max_wal_size` of log
        -> compared, if comparisons would take no more than `COMPARED_SHARE` of the time
        -> else the last entry applied, uncompared
    the archive holds the entry
        -> `NotePoint` is proposed, and each member that applies it raises `pitr_checkpoint`

What was not proposed when another node becomes the leader is forgotten: callers ask again, and the
next point is due soon.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from raftha.config import PitrConfig
from raftha.core import Raft
from raftha.entry import LogPosition
from raftha.node.comparison import Comparison, Outcome
from raftha.node.log_clock import LogClock
from raftha.node.messages import BackupRequest
from raftha.storage.state.catalog import NotePoint
from raftha.storage.state.state import State

COMPARED_SHARE = 0.01
"""The share of the time that comparisons for due points may take."""
TRIES = 3
"""How often the states are compared, until a majority has the same digest."""
RETRY_S = 1.0
REQUEST_S = 60.0
"""A caller's request is forgotten after this time; a caller that is still there repeats it."""
NOTED_MAX = 16


class _Asked(NamedTuple):
    """A caller's request: for a point at or after this entry."""

    since_index: int
    at: float


class Points:
    """See the module's docstring. All calls come from the node's thread."""

    def __init__(
        self,
        core: Raft,
        state: State,
        config: PitrConfig | None,
        *,
        comparison: Comparison,
        log_clock: LogClock,
        applied_bytes: Callable[[], int],
        archived_index: Callable[[], int | None],
        compares: bool,
        now: float,
    ) -> None:
        """`applied_bytes` counts the log that this node has applied.

        `archived_index` returns the last entry in a destination; None if nothing is archived.
        `compares`: due points may be compared.
        """
        self._core = core
        self._state = state
        self._config = config
        self._comparison = comparison
        self._log_clock = log_clock
        self._applied_bytes = applied_bytes
        self._archived_index = archived_index
        self._compares = compares
        self._asked: dict[tuple[int, int], _Asked] = {}
        self._noted: deque[NotePoint] = deque(maxlen=NOTED_MAX)
        """What waits for the archive."""
        self._comparing: tuple[int, float] | None = None
        """The entry of the comparison under way, and when that began."""
        self._seen_index = 0
        self._compared_from = self._compared_until = 0.0
        self._tries = 0
        self._retry_at = 0.0
        self._is_repeated = False
        """No majority was found to have the same state: it is compared again."""
        self.begin(now)

    def begin(self, now: float) -> None:
        """This node leads from now on."""
        self._asked.clear()
        self._noted.clear()
        self._comparing = None
        self._tries, self._retry_at, self._is_repeated = 0, now, False
        self._last_at, self._last_bytes = now, self._applied_bytes()

    @property
    def is_able(self) -> bool:
        """Whether this node's settings have recovery, and the cluster uses a protocol that has."""
        return self._config is not None and self._state.has_recovery

    def serve(self, request: BackupRequest, now: float) -> int | None:
        """Return the entry that noted the point which a request has led to; None: not yet."""
        key = request.sender, request.number
        since_index, _ = self._asked.setdefault(key, _Asked(self._core.log.last_index + 1, now))
        for point in reversed(self._state.catalog.points()):
            if point.index >= since_index and point.voters:
                del self._asked[key]
                return point.noted
        return None

    def is_forgotten(self, request: BackupRequest, now: float) -> bool:
        """Forget a request that has waited too long; its sender repeats it, if it still waits."""
        key = request.sender, request.number
        asked = self._asked.get(key)
        if asked is None or now - asked.at < REQUEST_S:
            return False
        del self._asked[key]
        return True

    def next_change(self, now: float) -> NotePoint | None:
        """Return the point to propose now; begin what is due."""
        if not self.is_able:
            return None
        self._look(now)
        if not self._noted and self._comparing is None and now >= self._retry_at:
            self._begin_if_due(now)
        archived = self._archived_index()
        if self._noted and (archived is None or archived >= self._noted[0].index):
            return self._noted.popleft()
        return None

    def _look(self, now: float) -> None:
        """See whether a comparison has ended."""
        outcome = self._comparison.outcome
        if outcome is not None and outcome.position.index > self._seen_index:
            self._seen_index = outcome.position.index
            if self._comparing is not None and self._comparing[0] == self._seen_index:
                self._compared_from, self._compared_until = self._comparing[1], now
            self._take(outcome, now)
        if self._comparing is not None and not self._comparison.is_comparing(self._comparing[0]):
            self._comparing = None

    def _take(self, outcome: Outcome, now: float) -> None:
        is_agreed = 2 * outcome.agreed > outcome.voters
        self._tries += 1
        if not is_agreed and self._tries < TRIES:
            self._is_repeated, self._retry_at = True, now + RETRY_S
            return
        self._tries = 0
        self._note(outcome.position, now, outcome.digest, outcome.agreed, outcome.voters)

    def _note(
        self, at: LogPosition, now: float, digest: bytes = b"", agreed: int = 0, voters: int = 0
    ) -> None:
        self._noted.append(
            NotePoint(at.index, at.last_sequence, at.time_us, digest, agreed, voters)
        )
        self._last_at, self._last_bytes = now, self._applied_bytes()

    def _begin_if_due(self, now: float) -> None:
        if self._asked or self._is_repeated or (self._is_due(now) and self._may_compare(now)):
            self._compare(now)
        elif self._is_due(now):
            self._note(self._state.applied, now)

    def _is_due(self, now: float) -> bool:
        """Whether something was written since the last point, and for long enough, or enough."""
        assert self._config is not None, "points are due by the settings"
        points = self._state.catalog.points()
        if self._state.applied.last_sequence <= (points[-1].sequence if points else 0):
            return False
        is_large = self._applied_bytes() - self._last_bytes >= self._config.max_wal_size
        return is_large or now - self._last_at >= self._config.checkpoint_interval_sec

    def _may_compare(self, now: float) -> bool:
        took_s = self._compared_until - self._compared_from
        return self._compares and (now - self._compared_until) * COMPARED_SHARE >= took_s

    def _compare(self, now: float) -> None:
        core = self._core
        time_us = self._log_clock.stamp(core.log.last.time_us)
        index = self._comparison.compare_now(lambda: core.propose(b"", 0, time_us), now)
        if index is not None:
            self._comparing, self._is_repeated = (index, now), False
