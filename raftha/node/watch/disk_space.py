"""Which disks are full: this node's and, as reported to the leader, those of other members.

Theory of operation. A node is full when its disk has no room for preallocated space (the next log
segment, the reserve), or when a write or a checkpoint has found no space. In the first case its log
still has room for writes under way, for votes and for the leader's entries. So a cluster on disks
that fill up stops accepting writes before it stops working: no accepted write is in doubt, leaders
can be elected, and reads stay linearizable.

A full node refuses its own callers' writes. It reports to the leader every heartbeat interval, so a
lost message or a new leader needs no special care; a report expires unless it is repeated. A full
leader hands over to a healthy voter with space, once it has led long enough to have received all
reports. A leader refuses all writes while the voters with space are no majority.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from raftha.core import Raft
from raftha.node.messages import SpaceReport
from raftha.node.submissions import MAJORITY_FULL

REPORTED_TICKS = 3
"""Heartbeat intervals after which a new leader has received the reports of all full members."""


class DiskSpace:
    """The full disks that one node knows of. All calls come from the node's thread."""

    def __init__(
        self,
        core: Raft,
        send: Callable[[SpaceReport], None],
        hand_over: Callable[[Collection[int]], None],
        valid_s: float,
    ) -> None:
        """A report is valid for `valid_s`; `hand_over` makes one of the given nodes the leader."""
        self._core = core
        self._send = send
        self._hand_over = hand_over
        self._valid_s = valid_s
        self._full_places: dict[str, str] = {}
        self._full_peers: dict[int, float] = {}
        self._leading_ticks = 0

    @property
    def has_space(self) -> bool:
        """True if this node's disk has space."""
        return not self._full_places

    def on_full(self, place: str, reason: str) -> None:
        """A write at `place` found no space."""
        self._full_places[place] = reason

    def on_space(self, place: str) -> None:
        """The write at `place` succeeded."""
        self._full_places.pop(place, None)
        leader = self._core.leader
        if not self._full_places and leader is not None and leader != self._core.id:
            self._send(SpaceReport(to=leader, sender=self._core.id, has_space=True))

    def on_message(self, message: SpaceReport, now: float) -> None:
        """A member reports whether its disk has space."""
        if message.has_space:
            self._full_peers.pop(message.sender, None)
        else:
            self._full_peers[message.sender] = now

    def on_tick(self, now: float, may_lead: Callable[[int], bool]) -> None:
        """Report a full disk to the leader; as a full leader, hand over to a voter with space."""
        self._full_peers = {
            peer: at for peer, at in self._full_peers.items() if now - at <= self._valid_s
        }
        leader = self._core.leader
        self._leading_ticks = self._leading_ticks + 1 if self._core.is_leader else 0
        if not self._full_places or leader is None:
            return
        if leader != self._core.id:
            self._send(SpaceReport(to=leader, sender=self._core.id, has_space=False))
        elif self._leading_ticks > REPORTED_TICKS:
            well = [v for v in self._active() if v not in self._full_peers and may_lead(v)]
            if well:
                self._hand_over(well)

    def refusal(self) -> str:
        """Return why this node refuses its callers' writes now; "" if it accepts them."""
        if self._full_places:
            return next(iter(self._full_places.values()))
        return MAJORITY_FULL if self.is_majority_full else ""

    @property
    def is_majority_full(self) -> bool:
        """True if this node leads and too few voters have space to accept writes."""
        if not self._core.is_leader or not (self._full_places or self._full_peers):
            return False
        with_space = sum(voter not in self._full_peers for voter in self._active())
        return with_space + (not self._full_places) < self._core.membership.quorum

    def _active(self) -> list[int]:
        """Return the other voters that answer."""
        progress = self._core.progress
        return [
            voter
            for voter in self._core.membership.voters
            if voter != self._core.id and (progress[voter].is_active or progress[voter].was_active)
        ]
