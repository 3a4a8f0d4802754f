"""Members that forget, just when what they knew is needed.

Theory of operation. One follower is cut off, so that the leader and the other follower commit
without it. Then that other follower forgets, the leader is gone for a while, and the follower that
lags is back. Of the two that are left, one has forgotten what was committed and the other doesn't
have it. Neither may lead before the leader is back, and nothing is lost, since its disk is whole.

    wiped       The other follower loses its directory, and the leader goes as soon as it is back in
                the cluster: it may not vote.
    put back    Its directory is put back to an earlier copy, which nothing on its disk shows. But
                the follower that lags has heard of the leader's commit index before the leader
                goes: neither of the two logs goes that far.

In these seeds nothing else goes wrong. Directories are lost and put back in others, too
(`operators.py`, `rollbacks.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from random import Random
from typing import NamedTuple

from tests.sim.invariants import Invariants
from tests.sim.member import Member
from tests.sim.network import Network
from tests.sim.rollbacks import Copy, has_moved_on, put_back, take_copy
from tests.sim.swarm import Swarm, undisturbed
from tests.sim.world import World

CHANCE = 0.06
LOOK_S = 0.0005
RETURN_MAX_S = 1.5
HEARING_MAX_S = 0.3


def with_lapses(swarm: Swarm, rng: Random) -> Swarm:
    """Have this in some seeds, and nothing else then; drawn from a stream of its own."""
    is_taken = swarm.lease_ms or swarm.rollback_every_s or swarm.alter_every_s
    if swarm.is_only_sick or swarm.is_wiping or is_taken or rng.random() >= CHANCE:
        return swarm
    return replace(
        undisturbed(swarm),
        chaos_s=rng.uniform(5, 7),
        is_fifo=True,
        delay_s=rng.choice((0.001, 0.004)),
        checkpoint_s=rng.choice((0.1, 60.0)),
        append_bytes_max=rng.choice((1, 400)),
        in_flight_messages_max=rng.choice((1, 4)),
        write_bytes_max=8 << 20,
        restart_s=rng.choice((0.01, 0.2)),
        clients=4,
        think_s=0.01,
        lapse_every_s=rng.choice((0.05, 0.2)),
    )


class _Roles(NamedTuple):
    leader: Member
    forgetful: Member
    lagging: Member


class Lapses:
    """Has one member at a time forget while another one lags."""

    def __init__(
        self,
        world: World,
        swarm: Swarm,
        members: Mapping[int, Member],
        network: Network,
        invariants: Invariants,
    ) -> None:
        self._world = world
        self._swarm = swarm
        self._members = members
        self._network = network
        self._invariants = invariants
        self._rng = world.stream("lapses")
        self._is_over = False
        if swarm.lapse_every_s:
            self._wait()

    def stop(self) -> None:
        """The chaos is over."""
        self._is_over = True

    def _wait(self) -> None:
        self._world.at(self._rng.expovariate(1 / self._swarm.lapse_every_s), self._begin)

    def _begin(self) -> None:
        if self._is_over:
            return
        roles = self._choose()
        if roles is None:
            self._wait()
            return
        saved = take_copy(roles.forgetful, self._invariants)
        self._cut_off(roles.lagging)
        lag_s = self._rng.uniform(0.05, 0.3)
        if saved is not None and self._rng.random() < 0.5:
            self._world.at(lag_s, self._let_hear, roles, saved)
        else:
            self._world.at(lag_s, self._wipe, roles)

    def _choose(self) -> _Roles | None:
        """Choose roles, if all members are up, whole and recorded, and follow the same leader."""
        members = list(self._members.values())
        cores = [member.node.core for member in members if member.node is not None]
        leaders = {core.leader for core in cores}
        if len(leaders) != 1 or None in leaders or not all(map(_is_whole, members)):
            return None
        leader = next(member for member in members if member.id in leaders)
        recorded = leader.membership.recorded
        if any(recorded(member.id) != member.incarnation for member in members):
            return None
        if not all(self._has_again(member, leader) for member in members):
            return None
        others = [member for member in members if member is not leader]
        self._rng.shuffle(others)
        return _Roles(leader, *others)

    def _has_again(self, member: Member, leader: Member) -> bool:
        """Whether a member that was put back has received again what it had lost."""
        assert member.node is not None
        assert leader.node is not None
        if member.node.core.log.last_index >= leader.node.core.log.commit:
            member.is_put_back = False
        return not member.is_put_back

    # ---------------------------------------------------------------- wiped

    def _wipe(self, roles: _Roles) -> None:
        if self._is_over or self._is_off(roles):
            return
        self._world.note(roles.forgetful.id, "wiped", f"while {roles.lagging.id} lags")
        roles.forgetful.crash(is_power_loss=True, is_silent=self._rng.random() < 0.5)
        roles.forgetful.wipe()
        self._when(RETURN_MAX_S, lambda: roles.forgetful.has_cluster, self._bereave, roles)

    # ---------------------------------------------------------------- put back

    def _let_hear(self, roles: _Roles, saved: Copy) -> None:
        """Have the member that lags hear how far it lags."""
        if self._is_over or self._is_off(roles):
            return
        self._network.blocked.clear()

        def has_heard() -> bool:
            assert roles.lagging.node is not None
            log = roles.lagging.node.core.log
            return log.known_commit > max(log.last_index, saved.durable.last[0])

        self._when(HEARING_MAX_S, has_heard, self._put_back, roles, saved)

    def _put_back(self, roles: _Roles, saved: Copy) -> None:
        if not roles.forgetful.is_up or has_moved_on(roles.forgetful, saved):
            self._end()
            return
        put_back(roles.forgetful, saved, self._invariants, self._world)
        self._bereave(roles)

    # ---------------------------------------------------------------- the end of a round

    def _when(
        self,
        patience_s: float,
        condition: Callable[[], bool],
        then: Callable[..., None],
        roles: _Roles,
        *args: Copy,
    ) -> None:
        """Look again and again; the round is over if it takes too long."""
        gives_up_at = self._world.now + patience_s

        def look() -> None:
            if self._is_over or self._is_off(roles):
                return
            if condition():
                then(roles, *args)
            elif self._world.now > gives_up_at:
                self._end()
            else:
                self._world.at(LOOK_S, look)

        look()

    def _is_off(self, roles: _Roles) -> bool:
        """Whether this round came to nothing, since there is another leader, or one is down."""
        leads = roles.leader.node is not None and roles.leader.node.core.is_leader
        if leads and roles.lagging.is_up:
            return False
        self._end()
        return True

    def _bereave(self, roles: _Roles) -> None:
        """The leader is gone for a while, and the member that lags is back."""
        how = "put back" if roles.forgetful.is_put_back else "wiped"
        self._world.counts[f"{how} without the leader"] += 1
        self._network.blocked.clear()
        self._cut_off(roles.leader)
        if self._rng.random() < 0.5:
            roles.leader.crash(is_power_loss=self._rng.random() < 0.5, is_silent=False)
        self._world.at(self._rng.uniform(0.3, 1.2), self._end)

    def _end(self) -> None:
        if not self._is_over:
            self._network.blocked.clear()
            self._wait()

    def _cut_off(self, member: Member) -> None:
        others = [other for other in self._members if other != member.id]
        self._network.blocked.update(_both_ways(member.id, others))
        for other in others:
            self._network.reset(member.id, other)


def _both_ways(one: int, others: Iterable[int]) -> list[tuple[int, int]]:
    return list(itertools.chain.from_iterable(((one, other), (other, one)) for other in others))


def _is_whole(member: Member) -> bool:
    return member.is_up and member.has_cluster and not member.node_files.is_healing
