"""Where leadership must be when nothing happens any more, and that it stays there.

Theory of operation. Everything is healed, all members agree, and there are no requests. Then
leadership must be in the best region that has a voter, or move there, within the time that the
rules allow for each step; every change of leader on the way is a step to a better region; and once
it is there it doesn't move again. So a cluster makes no more planned transfers than there are
regions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raftha.node.watch import placement
from tests.sim.member import Member
from tests.sim.swarm import Swarm
from tests.sim.world import Violation, World

CHECK_S = 0.05
STEP_S = 1.0
"""For a step beyond the wait: until healthy members are known as such, and for the transfer."""
HOLD_S = 1.0
"""So long it must stay where it is."""


class Calm:
    """Watches where leadership goes; `leaders` says which member led a term."""

    def __init__(
        self,
        world: World,
        swarm: Swarm,
        leaders: Mapping[int, int],
        current: Sequence[Member],
    ) -> None:
        """`current`: all members of today."""
        self._world = world
        self._swarm = swarm
        self._leaders = leaders
        self._term, self._leader = max(leaders.items())
        self._home_since: float | None = None
        voters = [
            member.id
            for member in current
            if member.node is not None and member.id in member.node.core.membership.voters
        ]
        self._best = min(self._place(voter) for voter in voters)
        self.is_over = len(swarm.regions) == 1
        steps = len(swarm.regions) - 1
        self.limit_s = steps * (placement.RETURN_AFTER_MAX_S + STEP_S) + HOLD_S + CHECK_S
        """How long it may take."""
        if not self.is_over:
            world.at(0.0, self._check)

    def lacking(self) -> str:
        """Where leadership is, and where it should be."""
        region = self._swarm.region(self._leader)
        return f"node {self._leader} in {region} leads term {self._term}"

    def _place(self, node_id: int) -> int:
        return self._swarm.regions.index(self._swarm.region(node_id))

    def _check(self) -> None:
        for term in range(self._term + 1, max(self._leaders) + 1):
            self._change(term)
        if self._place(self._leader) > self._best:
            self._home_since = None
        elif self._home_since is None:
            self._home_since = self._world.now
        elif self._world.now - self._home_since > HOLD_S:
            self._world.is_done = True
        self._world.at(CHECK_S, self._check)

    def _change(self, term: int) -> None:
        before, after = self._leader, self._leaders.get(term, 0)
        if not after or self._place(after) >= self._place(before):
            raise Violation(
                f"leadership goes from node {before} in {self._swarm.region(before)} to node "
                f"{after} in {self._swarm.region(after)} in term {term}, in a time of calm"
            )
        self._world.counts["leadership returned"] += 1
        self._term, self._leader = term, after
