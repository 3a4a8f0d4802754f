"""The operator, which adds and removes nodes while everything else goes wrong.

Theory of operation. Every now and then the operator wants a node added or removed, and asks a node
that is up, whether or not that one knows a leader, or is a member. What isn't done is asked for
again, of another node, a few times. A newcomer is started with an empty disk just before it is
asked for; a removed one stays up for a while, in which it must do no harm, and is then shut down
for good. Now and then it asks for nonsense, too: to add a removed id.

Some newcomers become standbys, by the swarm's `standby_chance`: learners that stay learners until
the operator promotes them, one alone or all of a region, one after the other. Every voter, or node
about to be one, was wished to be one.

Where the swarm `is_wiping`, only nodes that have lost their data directories are removed: one at a
time, and only where the others can still agree. Such a node is started again under its old id, as
an ignorant operator might do; the others have to refuse it. Then it is removed, and another takes
its place.

When everything has healed there is a last wish, which has to come true.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from raftha.errors import InvalidRequest, UpgradePending
from raftha.membership import Membership
from raftha.node.operations import MembershipOperation
from tests.sim.member import Member
from tests.sim.memberships import Memberships, voters
from tests.sim.swarm import Swarm
from tests.sim.world import Violation, World

TRIES_MAX = 5
LAST_WISH_S = 2.0


class Wish(NamedTuple):
    """What the operator wants a node to be: a voter or a standby, or gone; and then the next."""

    node_id: int
    adds: bool
    is_standby: bool = False
    others: tuple[int, ...] = ()
    """The members to promote after it."""

    def __str__(self) -> str:
        what = "remove" if not self.adds else "have as standby" if self.is_standby else "add"
        return f"{what} {self.node_id}"


class Operator:
    """Asks for changes until `stop`."""

    def __init__(
        self,
        world: World,
        swarm: Swarm,
        members: Mapping[int, Member],
        memberships: Memberships,
    ) -> None:
        self.open = 0
        """Requests without an answer."""
        self.has_wish = False
        """Whether the last wish hasn't come true yet."""
        self.on_upgrade_pending: Callable[[Member], None] = lambda member: None
        """Called for a member whose build is too old to join."""
        self._world = world
        self._swarm = swarm
        self._members = members
        self._memberships = memberships
        self._rng = world.stream("operator")
        self._standbys = world.stream("standbys")
        self._is_over = False
        self._leaving: set[int] = set()
        self.wiped = 0
        """The member that has lost its data directory, and isn't healed or removed yet; 0 for
        none."""
        self._last_wiped = 0
        self._is_patient = world.stream("patience").random() < 0.7
        """Whether it waits until such a member has healed, rather than remove it."""
        if swarm.is_late:
            world.at(self._rng.uniform(0.5, 3), members[swarm.size].install)
        if swarm.change_every_s:
            self._later()

    def _latest(self) -> Membership:
        return self._memberships.latest

    def stop(self) -> None:
        """One thing more is asked for, until it is so; what was asked still gets its answer."""
        self._is_over = True
        if not self._swarm.change_every_s:
            return
        self._see_return()
        if self._swarm.is_late:
            self._members[self._swarm.size].install()
        latest = self._latest()
        standbys = _standbys(latest)
        if standbys and self._standbys.random() < 0.7:
            self.has_wish = True
            self._insist(Wish(self._standbys.choice(standbys), True))
            return
        new = sorted(self._members.keys() - latest.members.keys() - latest.removed)
        adds = bool(new) and not self.wiped and self._rng.random() < 0.5
        if self._swarm.is_wiping and not adds and not self.wiped:
            return
        if self.wiped and self._is_patient:
            return
        if adds or len(voters(latest)) > 1:
            self.has_wish = True
            node_id = self.wiped or self._rng.choice(new if adds else sorted(latest.members))
            if adds:
                self._members[node_id].install()
            self._insist(Wish(node_id, adds))

    def watch(self) -> None:
        """Shut down a removed member after a while."""
        self._world.counts["standby"] += bool(_standbys(self._latest()))
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
        if self._swarm.standby_chance and self._promote(latest):
            return
        node_id = self._rng.choice(list(self._members))
        is_member = node_id in latest.members
        adds = not is_member or self._rng.random() < 0.1
        if is_member and not adds and len(voters(latest)) <= self._rng.choice((1, 2, 2, 2)):
            return
        if adds and node_id not in latest.removed:
            self._members[node_id].install()
        is_standby = adds and self._standbys.random() < self._swarm.standby_chance
        self.ask(Wish(node_id, adds, is_standby), 1)

    def _promote(self, latest: Membership) -> bool:
        """Now and then, have a standby promoted, or all of a region."""
        standbys = _standbys(latest)
        if not standbys or self._standbys.random() < 0.6:
            return False
        first = self._standbys.choice(standbys)
        others: list[int] = []
        if self._standbys.random() < 0.5:
            region = latest.members[first].region
            others = [i for i in standbys if i != first and latest.members[i].region == region]
            self._world.counts["region promoted"] += 1
        self.ask(Wish(first, True, others=tuple(others)), 1)
        return True

    def _replace(self, latest: Membership) -> None:
        new = sorted(self._members.keys() - latest.members.keys() - latest.removed)
        self._see_return()
        if self.wiped:
            if not self._is_patient:
                self.ask(Wish(self.wiped, False), 1)
        elif new and (len(latest.removed) > 0 or self._rng.random() < 0.3):
            self._members[new[0]].install()
            self.ask(Wish(new[0], True), 1)
        if not self.wiped and self._rng.random() < 0.5:
            self._wipe_one(voters(latest))

    def _wipe_one(self, candidates: set[int]) -> None:
        """Where the others are a majority."""
        if len(candidates) > 0 and len(voters(self._latest())) > 2:
            is_again = self._last_wiped in candidates and self._rng.random() < 0.6
            chosen = self._last_wiped if is_again else self._rng.choice(sorted(candidates))
            self._last_wiped = chosen
            self._wipe(self._members[chosen])

    def _see_return(self) -> None:
        """Whether the member that was wiped is whole again, where that is waited for."""
        if self.wiped and self._is_patient:
            member = self._members[self.wiped]
            recorded = self._latest().recorded(member.id)
            is_whole = member.has_cluster and not member.node_files.is_healing
            if is_whole and recorded == member.incarnation:
                self.wiped = 0

    def _wipe(self, victim: Member) -> None:
        self._world.note(victim.id, "wiped")
        self.wiped = victim.id
        if victim.is_up:
            victim.crash(is_power_loss=True, is_silent=self._rng.random() < 0.5)
        victim.wipe()

    def ask(self, wish: Wish, tries: int) -> None:
        """Ask some node that is up."""
        up = [member for member in self._members.values() if member.is_up]
        if self._is_over or not up:
            return
        self._send(self._rng.choice(up).id, wish, tries)

    def _send(self, asked: int, wish: Wish, tries: int) -> None:
        member = self._members[asked]
        timeout_s = LAST_WISH_S if tries > TRIES_MAX else self._swarm.change_timeout_s
        deadline = member.deadline(timeout_s * self._rng.uniform(0.5, 1))
        self._world.note(member.id, "operator asks", f"{wish}, try {tries}")
        if wish.adds and not wish.is_standby:
            self._memberships.wanted.add(wish.node_id)
        # A member needs no address to be promoted, but the request may have one.
        known = self._latest().members
        is_named = wish.adds and (wish.node_id not in known or self._standbys.random() < 0.5)
        operation = MembershipOperation(
            _Request(self, wish, tries),
            deadline,
            wish.node_id,
            adds=wish.adds,
            address=self._members[wish.node_id].config.own_address if is_named else "",
            region=self._swarm.region(wish.node_id),
            is_standby=wish.is_standby,
        )
        self.open += 1
        member.submit([operation])

    def answered(self, request: _Request, result: Any) -> None:
        """A request has its reply, or the asked member has died."""
        self.open -= 1
        wish = request.wish
        heard = "it is done" if result is None else f"{type(result).__name__}: {result}"
        self._world.note(0, "operator heard", heard)
        self._world.counts["change refused" if result else "change done"] += 1
        if result is None:
            self._on_done(wish)
        if isinstance(result, UpgradePending):
            self.on_upgrade_pending(self._members[wish.node_id])
        if request.tries > TRIES_MAX:
            self._on_last(request, result)
        elif result is not None and request.tries < TRIES_MAX:
            delay = self._rng.expovariate(1 / self._swarm.change_every_s)
            self._world.at(delay, self.ask, wish, request.tries + 1)

    def _on_done(self, wish: Wish) -> None:
        """It is said to be so: then it is, or was by now."""
        node_id, adds, is_standby, _ = wish
        if not self._memberships.has_been(node_id, adds=adds, is_standby=is_standby):
            raise Violation(f"the operator is told that it is done: {wish}; it never was so")
        if adds and node_id in self._memberships.standbys and not is_standby:
            self._world.counts["standby promoted"] += 1
        if wish.others:
            self.ask(Wish(wish.others[0], True, others=wish.others[1:]), 1)

    def _on_last(self, request: _Request, result: Any) -> None:
        # It can't be if what was asked for before was the opposite, and is done by now.
        if result is None or isinstance(result, InvalidRequest):
            self.has_wish = False
            return
        self._world.at(LAST_WISH_S / 20, self._insist, request.wish)

    def _insist(self, wish: Wish) -> None:
        up = [i for i in sorted(self._latest().members) if self._members[i].is_up]
        if up:
            self._send(self._rng.choice(up), wish, TRIES_MAX + 1)
        else:  # All of them start again, for a snapshot or with another build.
            self._world.at(LAST_WISH_S / 20, self._insist, wish)


class _Request:
    """Waits for a change of membership."""

    def __init__(self, operator: Operator, wish: Wish, tries: int) -> None:
        self.wish = wish
        self.tries = tries
        self._operator = operator

    def done(self, result: Any) -> None:
        self._operator.answered(self, result)


def _standbys(membership: Membership) -> list[int]:
    return [i for i, member in sorted(membership.members.items()) if member.is_standby]
