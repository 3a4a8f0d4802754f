"""What goes wrong, and when: each kind of fault strikes again and again, as the seed's swarm says.

Theory of operation. A fault with an interval strikes after random times of that mean, at a random
victim, preferably the leader. `on_role` strikes at members in the moment they become leader: the
old bugs of consensus hide where leaders change before anything of theirs has spread. `heal` ends it
all: everything is started, connected, and awake.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

from tests.sim.member import Member
from tests.sim.network import Network
from tests.sim.rot import Rot
from tests.sim.swarm import Swarm
from tests.sim.world import World

CLOG_MAX_S = 4.0
CLOCK_STEPS_US = (10_000, 1_000_000, 60_000_000, 7_200_000_000)


class Faults:
    """All faults of one simulation."""

    def __init__(
        self,
        world: World,
        swarm: Swarm,
        members: Mapping[int, Member],
        network: Network,
        transfer: Callable[[Member, int], None],
    ) -> None:
        """`transfer` asks a member to have a node lead."""
        self._world = world
        self._swarm = swarm
        self._members = members
        self._network = network
        self._ask_transfer = transfer
        self._rng = world.stream("faults")
        self._is_over = False
        self._rotting = Rot(world, members, self._rng)
        for interval, fault in (
            (swarm.crash_every_s, self._crash),
            (swarm.partition_every_s, self._partition),
            (swarm.flap_every_s, self._flap),
            (swarm.clog_every_s, self._clog),
            (swarm.pause_every_s, self._pause),
            (swarm.clock_every_s, self._step_clock),
            (swarm.transfer_every_s, self._transfer),
            (swarm.drift_every_s, self._drift),
            (swarm.rot_every_s, self._rot),
        ):
            if interval:
                self._repeat(interval, fault)

    def heal(self) -> None:
        """End all faults: start members that are down, unblock links, resume paused members."""
        self._is_over = True
        self._network.calm()
        for member in self._members.values():
            member.calm()
            member.start()

    def on_role(self, member: Member, role: str) -> None:
        """A member's role has changed."""
        if role != "leader" or self._is_over:
            return
        if self._rng.random() < self._swarm.strike_chance:
            delay = self._rng.uniform(0, 8) * self._swarm.delay_s
            strike = self._rng.choice((self._crash_one, self._isolate))
            self._world.at(delay, strike, member, actor=member)

    def on_crash(self, member: Member) -> None:
        """A member is down: it will be back."""
        delay = self._rng.expovariate(1 / self._swarm.restart_s)
        self._world.at(delay, self._start, member)

    def _start(self, member: Member) -> None:
        if not member.is_up and not self._is_over and self._rng.random() < 0.1:
            member.faults.arm(self._rng.randint(0, 12))
        member.start()

    def _repeat(self, interval: float, fault: Callable[[Member], None]) -> None:
        def strike() -> None:
            if not self._is_over:
                fault(self.pick())
                self._world.at(self._rng.expovariate(1 / interval), strike)

        self._world.at(self._rng.expovariate(1 / interval), strike)

    def pick(self) -> Member:
        """A victim, preferably the leader."""
        if self._rng.random() < self._swarm.leader_chance:
            for member in self._members.values():
                if member.node is not None and member.node.core.is_leader:
                    return member
        return self._rng.choice(list(self._members.values()))

    # The faults.

    def _crash(self, victim: Member) -> None:
        if self._rng.random() < self._swarm.crash_all_chance:
            for member in self._members.values():
                self._crash_one(member)
        else:
            self._crash_one(victim)

    def _crash_one(self, victim: Member) -> None:
        if not victim.is_up:
            return
        if self._rng.random() < self._swarm.mid_operation_chance:
            victim.faults.arm(self._rng.choice((0, 1, 1, 1, 2, 2, 3, 5, 8, 12)))
            return
        victim.crash(
            is_power_loss=self._rng.random() < self._swarm.power_loss_chance,
            is_silent=self._rng.random() < self._swarm.silent_crash_chance,
        )

    def _rot(self, victim: Member) -> None:
        if self._rotting.strike(victim) and self._rng.random() < self._swarm.rot_crash_chance:
            self._crash_one(victim)

    def _partition(self, victim: Member) -> None:
        if self._rng.random() < self._swarm.isolate_chance:
            self._isolate(victim)
            if self._swarm.bereave_chance and self._rng.random() < self._swarm.bereave_chance:
                for other in self._members.values():
                    if other is not victim:
                        other.crash(is_power_loss=False, is_silent=False)
            return
        ids = list(self._members)
        some = set(self._rng.sample(ids, self._rng.randint(1, len(ids))))
        pairs = itertools.permutations(ids, 2)
        self._block([(a, b) for a, b in pairs if (a in some) is not (b in some)])

    def _isolate(self, victim: Member) -> None:
        ways = [(victim.id, other) for other in self._members if other != victim.id]
        self._block(ways + [(other, one) for one, other in ways])

    def _block(self, ways: list[tuple[int, int]]) -> None:
        if self._is_over:
            return
        if self._rng.random() < self._swarm.one_way_chance:
            ways = self._rng.sample(ways, len(ways) // 2)
            self._world.counts["blocked one way"] += any((b, a) not in ways for a, b in ways)
        ways = [way for way in ways if way not in self._network.blocked]
        self._world.note(0, "block", " ".join(f"{one}>{other}" for one, other in ways))
        self._network.blocked.update(ways)
        if self._rng.random() < self._swarm.reset_chance:
            for one, other in ways:
                self._network.reset(one, other)
        delay = self._rng.expovariate(1 / self._swarm.partition_s)
        self._world.at(delay, self._unblock, ways)

    def _unblock(self, ways: list[tuple[int, int]]) -> None:
        self._world.note(0, "unblock", " ".join(f"{one}>{other}" for one, other in ways))
        self._network.blocked.difference_update(ways)

    def _flap(self, victim: Member) -> None:
        others = [other for other in self._members if other != victim.id]
        if others:
            other = self._rng.choice(others)
            self._world.note(0, "reset", f"{victim.id}-{other}")
            self._network.reset(victim.id, other)

    def _clog(self, victim: Member) -> None:
        """Some links from or to it hold up everything for a while, and then deliver it at once."""
        others = [other for other in self._members if other != victim.id]
        ways = [(victim.id, other) for other in others] + [(other, victim.id) for other in others]
        ways = self._rng.sample(ways, self._rng.randint(0, len(ways)))
        # What it holds comes when it would have, even after the chaos.
        clog = min(self._rng.expovariate(1 / self._swarm.clog_s), CLOG_MAX_S)
        told = " ".join(f"{one}>{other}" for one, other in ways)
        self._world.note(0, "clog", f"{told} for {clog:.3f} s")
        self._network.clogged_until.update(dict.fromkeys(ways, self._world.now + clog))

    def _pause(self, victim: Member) -> None:
        if victim.is_up:
            pause = self._rng.expovariate(1 / self._swarm.pause_s)
            self._world.note(victim.id, "pause", f"{pause:.3f} s")
            victim.paused_until = self._world.now + pause

    def _step_clock(self, victim: Member) -> None:
        step = self._rng.choice(CLOCK_STEPS_US) * self._rng.choice((1, -1))
        self._world.note(victim.id, "clock step", f"{step / 1e6} s")
        victim.clock.offset_us += step

    def _drift(self, victim: Member) -> None:
        most = self._swarm.drift_max
        rate = self._rng.uniform(1 - most, 1 + most)
        if self._swarm.is_drift_extreme:
            victim = self._rng.choice(list(self._members.values()))
            rate = 1 - most if rate < 1 else 1 + most
        self._world.note(victim.id, "clock drifts", f"{rate:.3f} s a second")
        victim.clock.run_at(rate)

    def _transfer(self, victim: Member) -> None:
        if victim.is_up:
            self._ask_transfer(victim, self._rng.choice(list(self._members)))
