"""Clients that read by lease, from threads of their own.

Theory of operation. A `LeasedReader` asks a member that takes itself for the leader, if there is
one; there may be two. `raftha.node.lease_reads` does in one step what takes two events here, since
the thread may be paused in between, with the process or alone: take the lease and read the value,
then see whether the lease still holds. Only a read that found both counts; it must be linearizable
like any other.
"""

from __future__ import annotations

from collections.abc import Mapping

from raftha.core import Lease
from raftha.node.lease_reads import Missed
from tests.sim.clients import Command, History
from tests.sim.member import Member
from tests.sim.swarm import Swarm


class LeasedReader:
    """One thread that reads, wherever there is a lease."""

    is_busy = False

    def __init__(
        self, name: str, history: History, swarm: Swarm, members: Mapping[int, Member]
    ) -> None:
        self.history = history
        self.is_active = True
        self._world = history.world
        self._rng = history.world.stream(name)
        self._swarm = swarm
        self._members = members
        self._later()

    def _later(self) -> None:
        self._world.at(self._swarm.think_s * self._rng.expovariate(1), self._ask)

    def _ask(self) -> None:
        if not self.is_active:
            return
        self._later()
        leaders = [m for m in self._members.values() if m.node and m.node.core.is_leader]
        if leaders:
            member = self._rng.choice(leaders)
            key = b"key %d" % self._rng.randrange(self._swarm.keys)
            command = Command(self.history, "read", key)
            self._world.at(0.0, self._read, member, command, actor=member)

    def _read(self, member: Member, command: Command) -> None:
        assert member.node is not None
        lease_reads = member.node.lease_reads
        lease = lease_reads.take()
        if lease is None:
            self._world.counts["lease missed"] += 1
            return
        value = lease_reads.read_applied(command.key)
        if isinstance(value, Missed):
            self._world.counts["lease missed"] += 1
            return
        most = self._swarm.thread_pause_s
        pause = self._rng.expovariate(1 / most) if most and self._rng.random() < 0.3 else 0.0
        self._world.at(pause, self._confirm, member, command, lease, value, actor=member)

    def _confirm(self, member: Member, command: Command, lease: Lease, value: bytes | None) -> None:
        assert member.node is not None
        if not member.node.lease_reads.holds(lease):
            self._world.counts["lease ran out"] += 1
            return
        self._world.note(member.id, "lease read", f"{command.id!r} {command.key!r} {value!r}")
        self.history.read(command, value)
