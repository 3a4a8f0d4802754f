"""The operator, who has nodes come and go while everything else goes wrong.

Theory of operation. Every now and then the operator wants a node added or removed, and asks a node
that is up, whether or not that one knows a leader, or is a member. What isn't done is asked for
again, of another node, a few times. A newcomer is started with an empty disk just before it is
asked for; one that was removed stays up for a while, in which it must harm nobody, and is then shut
down for good. Now and then nonsense is asked for, too: to add who was removed.

Where the swarm `is_wiping`, nobody is removed but those who have lost their data directories: one
at a time, and only where the others can still agree. Such a node is started again under its old id,
as an operator might who knows no better; the others have to refuse it. It is to be removed, and
another to come in its place.

When everything has healed there is a last wish, which has to come true.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from raftha.errors import InvalidRequest
from raftha.membership import Membership
from raftha.operations import MembershipOperation
from tests.sim.member import Member
from tests.sim.memberships import voters
from tests.sim.swarm import Swarm
from tests.sim.world import World

TRIES_MAX = 5
LAST_WISH_S = 2.0


class Operator:
    """Asks for changes until `stop`; `latest` is the last membership that is committed."""

    def __init__(
        self,
        world: World,
        swarm: Swarm,
        members: Mapping[int, Member],
        latest: Callable[[], Membership],
    ) -> None:
        self.open = 0
        """Requests without an answer."""
        self.has_wish = False
        """Whether the last wish hasn't come true yet."""
        self._world = world
        self._swarm = swarm
        self._members = members
        self._latest = latest
        self._rng = world.stream("operator")
        self._is_over = False
        self._leaving: set[int] = set()
        self.wiped = 0
        """Who has lost its data directory and isn't removed yet; 0 for nobody."""
        if swarm.change_every_s:
            self._later()

    def stop(self) -> None:
        """One thing more is asked for, until it is so; what was asked still gets its answer."""
        self._is_over = True
        if not self._swarm.change_every_s:
            return
        latest = self._latest()
        new = sorted(self._members.keys() - latest.members.keys() - latest.removed)
        adds = bool(new) and not self.wiped and self._rng.random() < 0.5
        if self._swarm.is_wiping and not adds and not self.wiped:
            return
        if adds or len(voters(latest)) > 1:
            self.has_wish = True
            node_id = self.wiped or self._rng.choice(new if adds else sorted(latest.members))
            if adds:
                self._members[node_id].install()
            self._insist(node_id, adds)

    def watch(self) -> None:
        """See whether somebody was removed: that one is shut down after a while."""
        for node_id in sorted(self._latest().removed - self._leaving):
            self._leaving.add(node_id)
            self.wiped = 0 if node_id == self.wiped else self.wiped
            delay = self._rng.expovariate(1 / self._swarm.retire_s)
            self._world.at(delay, self._members[node_id].retire)

    def _later(self) -> None:
        self._world.at(self._rng.expovariate(1 / self._swarm.change_every_s), self._want)

    def _want(self) -> None:
        if self._is_over:
            return
        self._later()
        latest = self._latest()
        if self._swarm.is_wiping:
            self._replace(latest)
            return
        node_id = self._rng.choice(list(self._members))
        is_member = node_id in latest.members
        adds = not is_member or self._rng.random() < 0.1
        if is_member and not adds and len(voters(latest)) <= self._rng.choice((1, 2, 2, 2)):
            return
        if adds and node_id not in latest.removed:
            self._members[node_id].install()
        self.ask(node_id, adds, 1)

    def _replace(self, latest: Membership) -> None:
        new = sorted(self._members.keys() - latest.members.keys() - latest.removed)
        if self.wiped:
            self.ask(self.wiped, False, 1)
        elif new and (len(latest.removed) > 0 or self._rng.random() < 0.3):
            self._members[new[0]].install()
            self.ask(new[0], True, 1)
        if not self.wiped and self._rng.random() < 0.5:
            self._wipe_one(voters(latest))

    def _wipe_one(self, candidates: set[int]) -> None:
        """Where the others are a majority; and of those that the cluster began with, never so many
        that they could begin another: with empty disks they are what a new cluster is."""
        first = range(1, self._swarm.size + 1)
        wiped_first = sum(self._members[node_id].incarnation > 1 for node_id in first)
        if wiped_first >= (len(first) - 1) // 2:
            candidates = candidates.difference(first)
        if len(candidates) > 0 and len(voters(self._latest())) > 2:
            self._wipe(self._members[self._rng.choice(sorted(candidates))])

    def _wipe(self, victim: Member) -> None:
        self._world.note(victim.id, "wiped")
        self.wiped = victim.id
        if victim.is_up:
            victim.crash(is_power_loss=True, is_silent=self._rng.random() < 0.5)
        victim.wipe()

    def ask(self, node_id: int, adds: bool, tries: int) -> None:
        """Ask some node that is up."""
        up = [member for member in self._members.values() if member.is_up]
        if self._is_over or not up:
            return
        self._send(self._rng.choice(up).id, node_id, adds, tries)

    def _send(self, asked: int, node_id: int, adds: bool, tries: int) -> None:
        member = self._members[asked]
        patience = LAST_WISH_S if tries > TRIES_MAX else self._swarm.change_timeout_s
        deadline = member.deadline(patience * self._rng.uniform(0.5, 1))
        what = f"{'add' if adds else 'remove'} {node_id}, try {tries}"
        self._world.note(member.id, "operator asks", what)
        request = _Request(self, node_id, adds, tries)
        address = self._members[node_id].config.own_address if adds else ""
        operation = MembershipOperation(request, deadline, node_id, adds=adds, address=address)
        self.open += 1
        member.submit([operation])

    def answered(self, request: _Request, result: Any) -> None:
        """A request has its answer, or whoever was asked has died."""
        self.open -= 1
        heard = "it is done" if result is None else f"{type(result).__name__}: {result}"
        self._world.note(0, "operator heard", heard)
        self._world.counts["change refused" if result else "change done"] += 1
        if request.tries > TRIES_MAX:
            self._on_last(request, result)
        elif result is not None and request.tries < TRIES_MAX:
            delay = self._rng.expovariate(1 / self._swarm.change_every_s)
            again = (request.node_id, request.adds, request.tries + 1)
            self._world.at(delay, self.ask, *again)

    def _on_last(self, request: _Request, result: Any) -> None:
        # It can't be if what was asked for before was the opposite, and is done by now.
        if result is None or isinstance(result, InvalidRequest):
            self.has_wish = False
            return
        self._world.at(LAST_WISH_S / 20, self._insist, request.node_id, request.adds)

    def _insist(self, node_id: int, adds: bool) -> None:
        up = [i for i in sorted(self._latest().members) if self._members[i].is_up]
        self._send(self._rng.choice(up), node_id, adds, TRIES_MAX + 1)


class _Request:
    """Waits for a change of membership."""

    def __init__(self, operator: Operator, node_id: int, adds: bool, tries: int) -> None:
        self.node_id = node_id
        self.adds = adds
        self.tries = tries
        self._operator = operator

    def done(self, result: Any) -> None:
        self._operator.answered(self, result)
