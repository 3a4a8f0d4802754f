"""Wrong wall clocks: which members have one, as the leader sees it, and what it does about them.

Theory of operation. The leader compares the members' clocks every heartbeat interval
(`raftha/node/log_clock.py`), and reports each that is further than `max_clock_offset_ms` from the
reference, once, and once more when it is right again. The offsets are part of the table that the
leader sends to all members (`lag.py`), so every node's status and metrics show them.

A leader whose own clock is wrong hands over to a healthy voter with a right one. If there is none,
it goes on: entries are stamped with the reference, so nothing is lost but the margin.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from raftha.core import Raft
from raftha.events import ClockRight, ClockWrong, HaEvent
from raftha.node.log_clock import LogClock


class ClockWatch:
    """The members' clocks, while this node leads. All calls come from the node's thread."""

    def __init__(
        self,
        core: Raft,
        log_clock: LogClock,
        emit: Callable[[HaEvent], None],
        hand_over: Callable[[Collection[int]], None],
        max_offset_ms: int,
    ) -> None:
        """`hand_over` makes one of the given nodes the leader, if it can."""
        self._core = core
        self._log_clock = log_clock
        self._emit = emit
        self._hand_over = hand_over
        self._max_us = 1000 * max_offset_ms
        self._offsets_us: dict[int, int] = {}
        self._wrong: set[int] = set()

    def offset_ms(self, node_id: int) -> int:
        """How far a member's clock is ahead of the cluster's; 0 if that isn't known."""
        # Towards 0: Python's own division would show a clock that is 1 us behind as 1 ms behind.
        return int(self._offsets_us.get(node_id, 0) / 1000)

    def is_right(self, node_id: int) -> bool:
        """True unless this node leads and knows that a member's clock is wrong."""
        return node_id not in self._wrong

    def on_tick(self, may_lead: Callable[[int], bool]) -> None:
        """A heartbeat interval has passed."""
        if not self._core.is_leader:
            self._log_clock.on_tick()
            self._offsets_us, self._wrong = {}, set()
            return
        verdict = self._log_clock.examine()
        self._offsets_us = dict(verdict.offsets_us)
        for node_id in self._wrong - self._offsets_us.keys():
            self._wrong.discard(node_id)
        for node_id, offset_us in self._offsets_us.items():
            self._report(node_id, offset_us)
        if verdict.is_wrong:
            self._hand_over([v for v in self._right_voters() if may_lead(v)])

    def _report(self, node_id: int, offset_us: int) -> None:
        is_wrong = abs(offset_us) > self._max_us
        if is_wrong is (node_id in self._wrong):
            return
        if is_wrong:
            self._wrong.add(node_id)
            offset_ms = self.offset_ms(node_id)
            event = ClockWrong(reporter=self._core.id, node_id=node_id, offset_ms=offset_ms)
            self._emit(event)
        else:
            self._wrong.discard(node_id)
            self._emit(ClockRight(reporter=self._core.id, node_id=node_id))

    def _right_voters(self) -> list[int]:
        """The other voters whose clocks are known to be right."""
        known = self._offsets_us.keys() - self._wrong - {self._core.id}
        return [voter for voter in self._core.membership.voters if voter in known]
