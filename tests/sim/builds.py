"""Two builds of the same program, and members that change from one to the other and back.

Theory of operation. The new build has a new command, and an old one that behaves differently once
the cluster uses version 2 of the machine. It speaks a later protocol, too, with which the format of
the state changes (`PROTOCOL_OLDEST`). A member changes its build while it is down, as in a
rolling upgrade, also back to the old one. The cluster uses version 2 from an entry of the log on,
and only once every member has run the new build: `check_raised`. After that a member with the old
build must refuse to run, and harm nothing; it gets the new one. Some seeds end with members of both
builds, some with the new one everywhere: then the cluster must come to use it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from random import Random

from raftha.storage.state.machine import Transaction, command
from tests.sim.member import Member
from tests.sim.oracle import COUNTER, MARK, Counters
from tests.sim.swarm import Swarm
from tests.sim.world import Violation, World

CHANCE = 0.25
OLD, NEW = 1, 2


class NewCounters(Counters):
    """The next build: `advance` is new, and both count by two once the cluster uses version 2."""

    version = NEW
    oldest_version = OLD

    @command
    def increment(self, txn: Transaction, key: bytes, call: bytes) -> int:
        """As before, or by two."""
        value = int(txn.get(COUNTER + key) or 0) + (2 if txn.machine_version >= NEW else 1)
        txn.put(COUNTER + key, b"%d" % value)
        txn.put(MARK + call, b"%d" % (int(txn.get(MARK + call) or 0) + 1))
        return value

    @command
    def advance(self, txn: Transaction, key: bytes, call: bytes) -> int:
        """The same under a new name."""
        return self.increment(txn, key, call)


def with_builds(swarm: Swarm, rng: Random) -> Swarm:
    """Have this in some seeds, beside all else; drawn from a stream of its own.

    Not where members campaign on demand only: all restart at the end, and the operator would have
    to find a leader in the time that is meant for agreement.
    """
    is_directed = swarm.rollback_every_s or swarm.lapse_every_s or swarm.loses_majority
    is_directed = is_directed or swarm.is_poisoned or swarm.is_only_sick
    if is_directed or not swarm.campaigns or rng.random() >= CHANCE:
        return swarm
    return replace(swarm, upgrade_every_s=rng.choice((0.3, 0.8, 2.0)))


class Builds:
    """Which member runs which build."""

    def __init__(self, world: World, swarm: Swarm, members: Mapping[int, Member]) -> None:
        self._world = world
        self._members = members
        self._rng = world.stream("builds")
        self._is_over = False
        self._is_new_at_the_end = self._rng.random() < 0.5
        self._have_been_new: set[int] = set()
        self.used = 0
        """The version of the machine in the committed log."""
        if swarm.upgrade_every_s:
            self._interval_s = swarm.upgrade_every_s
            self._wait()

    @property
    def must_be_new(self) -> bool:
        """Whether all members run the new build for good, so that the cluster has to use it."""
        return self._is_over and self._is_new_at_the_end and bool(self._have_been_new)

    def stop(self) -> None:
        """The chaos is over."""
        self._is_over = True
        if self.must_be_new:
            for member in self._members.values():
                self._change(member, NEW)

    def _wait(self) -> None:
        self._world.at(self._rng.expovariate(1 / self._interval_s), self._strike)

    def _strike(self) -> None:
        if self._is_over:
            return
        victim = self._rng.choice(list(self._members.values()))
        # Forward more often than back, so that now and then all are new.
        self._change(victim, self._rng.choice((NEW, NEW, NEW, OLD)))
        self._wait()

    def _change(self, member: Member, build: int) -> None:
        if member.machine.version == build:
            return
        self._world.note(member.id, "build", f"{build}")
        self._world.counts["upgraded" if build == NEW else "downgraded"] += 1
        member.crash(is_power_loss=False, is_silent=False)
        if build == NEW:
            self._have_been_new.add(member.id)
        member.run_build(NewCounters() if build == NEW else Counters())

    def on_unsupported(self, member: Member, reason: str) -> None:
        """A member refuses to run with its build: it gets the new one."""
        if self.used < NEW or member.machine.version == NEW:
            raise Violation(f"node {member.id} refuses to run: {reason}")
        self._world.counts["too old to run"] += 1
        self._have_been_new.add(member.id)
        member.run_build(NewCounters())

    def on_refused(self, member: Member) -> None:
        """A member can't join with its build: it gets the new one, as an operator would do."""
        if self.used >= NEW:
            self._change(member, NEW)

    def check_raised(self, used: int, members: Collection[int]) -> None:
        """The log has come to use a version, with these members."""
        if used < self.used:
            raise Violation(f"the cluster goes from version {self.used} back to {used}")
        # The first leader doesn't wait for members that it has never heard of.
        lacking = set(members) - self._have_been_new if self.used else set()
        self.used = used
        if used >= NEW and lacking:
            raise Violation(f"the cluster uses version {used}, which nodes {lacking} never had")
        self._world.counts["version raised"] += used >= NEW
