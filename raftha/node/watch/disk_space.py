"""Whose disk has no space for more: this node's, and, as the leader is told, the others'.

Theory of operation. A node is full from the moment when its disk has no room for what is made ahead
of need (the next log segment, the reserve), or when a write or a checkpoint has found none. In the
first case its log can still take what is under way, votes and entries of the leader; so a cluster
on disks that fill up stops taking writes before it stops working: nothing that it took is in doubt,
leaders can be elected, and reads stay linearizable.

A full node refuses its own callers' writes. It says so to the leader, again and again, so that
neither a lost message nor another leader needs care; a report counts until it isn't repeated. A
leader that is full hands over to a voter that is well and isn't, once it has led for long enough to
have heard who else is full. A leader refuses everybody's writes while those who have space are too
few for a majority.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from raftha.core import Raft
from raftha.node.messages import SpaceReport
from raftha.node.submissions import MAJORITY_FULL

REPORTED_TICKS = 3
"""A new leader has heard by then from all who are full: they report once in the time of each."""


class DiskSpace:
    """What one node knows. All calls come from the node's thread."""

    def __init__(
        self,
        core: Raft,
        send: Callable[[SpaceReport], None],
        hand_over: Callable[[Collection[int]], None],
        valid_s: float,
    ) -> None:
        """A report is valid for `valid_s`; `hand_over` makes one of these nodes the leader."""
        self._core = core
        self._send = send
        self._hand_over = hand_over
        self._valid_s = valid_s
        self._full_places: dict[str, str] = {}
        self._full_peers: dict[int, float] = {}
        self._leading_ticks = 0

    @property
    def has_space(self) -> bool:
        """Whether nothing is wrong on this node."""
        return not self._full_places

    def on_full(self, place: str, reason: str) -> None:
        """What is written at `place` has found no space."""
        self._full_places[place] = reason

    def on_space(self, place: str) -> None:
        """It has been written."""
        self._full_places.pop(place, None)
        leader = self._core.leader
        if not self._full_places and leader is not None and leader != self._core.id:
            self._send(SpaceReport(to=leader, sender=self._core.id, has_space=True))

    def on_message(self, message: SpaceReport, now: float) -> None:
        """A member says how it is."""
        if message.has_space:
            self._full_peers.pop(message.sender, None)
        else:
            self._full_peers[message.sender] = now

    def on_tick(self, now: float, may_lead: Callable[[int], bool]) -> None:
        """Tell the leader, or, as the leader, look for one with space."""
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
        """Why this node takes no writes of its own callers now; "" if it does."""
        if self._full_places:
            return next(iter(self._full_places.values()))
        return MAJORITY_FULL if self.is_majority_full else ""

    @property
    def is_majority_full(self) -> bool:
        """Whether this node leads and those with space are too few for writes to be taken."""
        if not self._core.is_leader or not (self._full_places or self._full_peers):
            return False
        with_space = sum(voter not in self._full_peers for voter in self._active())
        return with_space + (not self._full_places) < self._core.membership.quorum

    def _active(self) -> list[int]:
        """The other voters that answer."""
        progress = self._core.progress
        return [
            voter
            for voter in self._core.membership.voters
            if voter != self._core.id and (progress[voter].is_active or progress[voter].was_active)
        ]
