"""When a member last received something from its leader, and that it forgets a silent one.

Theory of operation. Every member that isn't the leader, voter or not, healing or not, must know no
leader once nothing came from it for a timeout. What counts is what only a leader sends: appends,
heartbeats and snapshot offers of the present term. A promise for a lease may make the wait longer,
but no lease is longer than an election timeout. The time is counted here in the member's own
ticks, so neither pauses nor drifting clocks matter.
"""

from __future__ import annotations

from raftha.core import Append, Heartbeat, Raft, SnapshotOffer
from raftha.node.messages import PeerMessage
from tests.sim.world import Violation, World

TIMEOUTS_MAX = 3
"""The longest timeout, in election timeouts: twice one, and a half for each better region."""


class LeaderContact:
    """One member's contact with its leader."""

    def __init__(self, world: World) -> None:
        self.last_at = 0.0
        """When a message of the leader that it knew came last, at the latest."""
        self._world = world
        self._silent_ticks = 0

    def on_message(self, core: Raft, term: int, message: PeerMessage) -> None:
        """The member, which was in `term`, has handled a message."""
        if message.sender != core.leader:
            return
        if core.term == term:
            self.last_at = self._world.now
        if isinstance(message, Append | Heartbeat | SnapshotOffer) and message.term == core.term:
            self._silent_ticks = 0

    def on_tick(self, core: Raft) -> None:
        """The member has handled a tick."""
        if core.leader in (None, core.id):
            self._silent_ticks = 0
            return
        self._silent_ticks += 1
        if self._silent_ticks > TIMEOUTS_MAX * core.config.election_ticks:
            raise Violation(
                f"node {core.id} still takes node {core.leader} for its leader, of which nothing "
                f"came for {self._silent_ticks} ticks"
            )
