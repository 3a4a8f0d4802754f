"""Moves leadership back to the preferred region.

Theory of operation. After a failover, the leader may be outside the preferred region. It hands over
to a voter in a better region that has been healthy, active and caught up for `RETURN_AFTER_S`
without interruption. If leadership soon comes back, or doesn't move at all, that voter is worse
than it looks. So each attempt doubles the time, up to `RETURN_AFTER_MAX_S`, and `CALM_FACTOR` times
as long without an attempt resets it. An unstable region doesn't take leadership every time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from raftha.core import Raft

RETURN_AFTER_S = 10.0
RETURN_AFTER_MAX_S = 640.0
CALM_FACTOR = 10


class LeaderPlacement:
    """Places leadership while this node leads. All calls come from the node's thread."""

    def __init__(
        self,
        core: Raft,
        regions: tuple[str, ...],
        hand_over: Callable[[Collection[int]], None],
    ) -> None:
        """`regions`, the preferred first; `hand_over` makes one of the given nodes the leader."""
        self._core = core
        self._regions = regions
        self._hand_over = hand_over
        self._return_after_s = RETURN_AFTER_S
        self._tried_at = float("-inf")
        self._commit_then = 0
        self._since: dict[int, float] = {}

    def on_tick(self, now: float, may_lead: Callable[[int], bool]) -> None:
        """Hand over to a better voter that has been fit to lead for long enough."""
        if not self._core.is_leader:
            self._since = {}
            return
        better = {voter for voter in self._better_voters() if self._is_fit(voter, may_lead)}
        self._commit_then = self._core.log.commit
        self._since = {voter: self._since.get(voter, now) for voter in better}
        if now - self._tried_at > CALM_FACTOR * self._return_after_s:
            self._return_after_s = RETURN_AFTER_S
        ready = [v for v, since in self._since.items() if now - since >= self._return_after_s]
        if ready:
            best = min(self._place(voter) for voter in ready)
            self._tried_at, self._since = now, {}
            self._return_after_s = min(2 * self._return_after_s, RETURN_AFTER_MAX_S)
            self._hand_over([voter for voter in ready if self._place(voter) == best])

    def _place(self, node_id: int) -> int:
        return self._core.membership.place(node_id, self._regions)

    def _better_voters(self) -> list[int]:
        voters = self._core.membership.voters
        if self._core.id not in voters:
            return []
        here = self._place(self._core.id)
        return [voter for voter in voters if self._place(voter) < here]

    def _is_fit(self, voter: int, may_lead: Callable[[int], bool]) -> bool:
        """True if a voter is healthy, active, and holds all that was committed one tick ago."""
        progress = self._core.progress[voter]
        is_heard = progress.is_active or progress.was_active
        return may_lead(voter) and is_heard and progress.match >= self._commit_then
