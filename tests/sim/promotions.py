"""Operators that choose the leader, and what must hold where only they cause elections.

Theory of operation. A promotion asks a node, whether or not it knows a leader, to make a node the
leader. Its reply must be true: the named node has led since the request. Without automatic failover
(`Swarm.campaigns`), members campaign only when they are asked to: by an operator, by a node that an
operator has asked, or by a leader that hands over. So nothing is demanded of a cluster that has
lost its leader until an operator acts: after the chaos one does, some time. A member whose log has
nothing but the founding of its cluster may campaign unasked: it wins only in a new cluster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from raftha.core import Role
from raftha.errors import RafthaError
from raftha.membership import Membership
from raftha.node.operations import TransferOperation
from tests.sim.member import Member
from tests.sim.memberships import voters
from tests.sim.swarm import Swarm
from tests.sim.world import Violation, World

FAULT_TIMEOUT_S = 0.5
LAST_PATIENCE_S = 8.0
"""A link or disk that was slow before everything healed may be slow for four seconds more."""
LEADERLESS_MAX_S = 1.5
"""How long no operator acts when everything has healed."""
LOOK_S = 0.3


class Promotions:
    """All requests for a certain leader; `leaders` says which member led a term."""

    def __init__(
        self,
        world: World,
        swarm: Swarm,
        members: Mapping[int, Member],
        leaders: Mapping[int, int],
        latest: Callable[[], Membership],
    ) -> None:
        self._world = world
        self._swarm = swarm
        self._members = members
        self._leaders = leaders
        self._latest = latest
        self._rng = world.stream("promotions")
        self._open: Counter[int] = Counter()
        self._roles: dict[int, Role] = {}
        self._is_over = False
        if swarm.promotion_every_s:
            self._later()

    def stop(self) -> None:
        """Stop, unless there is no leader."""
        self._is_over = True
        if not self._swarm.campaigns:
            self._world.at(self._rng.uniform(0, LEADERLESS_MAX_S), self._see_to_it)

    @property
    def has_open(self) -> bool:
        """Whether a request for another leader has no answer: it may still move leadership."""
        return any(self._open.values())

    def _later(self) -> None:
        self._world.at(self._rng.expovariate(1 / self._swarm.promotion_every_s), self._promote)

    def _promote(self) -> None:
        if self._is_over:
            return
        self._later()
        up = [member for member in self._members.values() if member.is_up]
        if up:
            target = self._rng.choice(list(self._members))
            self.ask(self._rng.choice(up), target, self._rng.choice((0.3, 1.0, 3.0)))

    def _see_to_it(self) -> None:
        """Make some member the leader, if there is none."""
        if self._world.is_settled:
            return
        self._world.at(LOOK_S, self._see_to_it)
        up = [member for member in self._members.values() if member.is_up]
        if sum(self._open.values()) or any(_leads(member) for member in up):
            return
        latest = self._latest()
        known = [m for m in up if m.id in latest.members and m.founding is None]
        if not known:
            return
        asked = self._rng.choice(known)
        assert asked.node is not None
        # A node refuses a target that its own log has removed; its operator would ask another.
        own = set(asked.node.core.membership.voters)
        wanted = [self._members[voter] for voter in sorted(voters(latest)) if voter in own]
        if not wanted:
            return
        # An operator doesn't know which member lacks entries, or heals.
        is_unlucky = self._rng.random() < 0.5
        target = min(wanted, key=_last_index) if is_unlucky else self._rng.choice(wanted)
        self.ask(asked, target.id, LAST_PATIENCE_S, is_last=True)

    def ask(
        self,
        member: Member,
        target: int,
        timeout_s: float = FAULT_TIMEOUT_S,
        *,
        is_last: bool = False,
    ) -> None:
        """Ask `member` to make `target` the leader; if `is_last`, there must be one in the end."""
        assert member.node is not None
        self._world.note(member.id, "transfer", f"to {target}")
        if member.node.core.leader is None:
            self._world.counts["promotion without a leader"] += 1
        self._open[member.id] += 1
        request = _Request(self, member.id, target, member.node.core.term, is_last=is_last)
        member.submit([TransferOperation(request, member.deadline(timeout_s), target)])

    def answered(self, request: _Request, result: Any) -> None:
        """A request has its reply, or the asked member has died."""
        self._open[request.asked] -= 1
        if result is not None:
            if not isinstance(result, RafthaError):
                raise Violation(f"a transfer to {request.target} was answered with {result!r}")
            if request.is_last and not any(map(_leads, self._members.values())):
                raise Violation(f"no node leads, though an operator asked for it: {result}")
            return
        self._world.counts["transfer done"] += 1
        since = (who for term, who in self._leaders.items() if term >= request.term)
        if request.target not in since:
            raise Violation(
                f"node {request.asked} says that {request.target} leads, which has led no term "
                f"from {request.term} on"
            )

    def check(self, member: Member) -> None:
        """An event has touched this member: if it campaigns now, it was asked to."""
        assert member.node is not None
        core = member.node.core
        role, before = core.role, self._roles.get(member.id, Role.FOLLOWER)
        if role is before:
            return
        self._roles[member.id] = role
        if role not in (Role.PRE_CANDIDATE, Role.CANDIDATE) or before is Role.PRE_CANDIDATE:
            return
        is_alone = voters(core.membership) == {member.id}
        log = core.log
        is_new = log.last_index == 0 or (log.last_index == 1 and log.membership_index == 1)
        if is_alone or is_new or self._open[member.id]:
            return
        if member.invited_at != self._world.now:
            raise Violation(f"node {member.id} campaigns for term {core.term} unasked")
        self._world.counts["campaign on demand"] += 1


class _Request:
    """Waits for a transfer."""

    def __init__(
        self, promotions: Promotions, asked: int, target: int, term: int, *, is_last: bool
    ) -> None:
        self.asked = asked
        self.target = target
        self.term = term
        self.is_last = is_last
        self._promotions = promotions

    def done(self, result: Any) -> None:
        self._promotions.answered(self, result)


def _leads(member: Member) -> bool:
    return member.node is not None and member.node.core.is_leader


def _last_index(member: Member) -> int:
    return member.node.core.log.last_index if member.node is not None else 0
