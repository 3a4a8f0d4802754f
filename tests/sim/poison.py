"""An entry that ends every node, and operators who have it skipped.

Theory of operation. Once in a run a client calls a command that raises `MemoryError`, which is no
outcome. The entry is committed, and each node that comes to apply it ends, now and at each start.
After a while operators act. One host may get more memory: there the command succeeds, and its node
goes on with a state that no other has. The others are to skip the entry: the operator runs
`raftha skip-entry` on each node that has failed, and on each that differs in this from another one,
which is reported. Where the entry is in the checkpoint already, it can't be skipped; the operator
wipes that directory, and the node is healed.

In the meantime nodes that skip the entry and nodes that don't must have nothing to do with each
other. In the end all states are as if the entry had failed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from random import Random
from typing import Any

from raftha.entry import decode_groups
from raftha.node.operations import CallOperation
from raftha.storage.state.commands import pack_call
from raftha.storage.state.machine import Transaction, command
from raftha.storage.state.state import State
from tests.sim.invariants import Invariants
from tests.sim.member import Member
from tests.sim.oracle import POISON, Counters
from tests.sim.swarm import Swarm, undisturbed
from tests.sim.world import World

CHANCE = 0.05
LOOK_S = 0.02
PATIENCE_S = 1.0


def with_poison(swarm: Swarm, rng: Random) -> Swarm:
    """Have this in some seeds, and nothing else then; drawn from a stream of its own."""
    is_taken = swarm.rollback_every_s or swarm.alter_every_s or swarm.lapse_every_s
    is_taken = is_taken or swarm.loses_majority or swarm.lease_ms
    if swarm.is_only_sick or swarm.is_wiping or is_taken or rng.random() >= CHANCE:
        return swarm
    return replace(
        undisturbed(swarm),
        size=rng.choice((3, 3, 5)),
        chaos_s=rng.uniform(5, 7),
        checkpoint_s=rng.choice((0.1, 0.1, 60.0)),
        is_majority_enough=True,
        do_groups_wait=False,
        clients=4,
        digest_every_s=0.0,
        is_poisoned=True,
    )


class Poisonous(Counters):
    """A machine with a command that takes more memory than most hosts have."""

    def __init__(self) -> None:
        self.has_memory = False

    @command(trial=False)
    def poison(self, txn: Transaction, call: bytes) -> None:
        """End the node, or leave a trace."""
        if not self.has_memory:
            raise MemoryError("it was asked to fail")
        txn.put(call, b"applied")


class _Caller:
    """Doesn't care for the outcome."""

    def done(self, result: Any) -> None:
        pass


class Poison:
    """The entry, and the operator."""

    def __init__(
        self, world: World, swarm: Swarm, members: Mapping[int, Member], invariants: Invariants
    ) -> None:
        self._world = world
        self._members = members
        self._invariants = invariants
        self._rng = world.stream("poison strikes")
        self._tries = 0
        self._asked_at = 0.0
        self._found = invariants.oracle.skips
        """The hash of each such entry, by its index: one, unless a call that seemed lost came."""
        self._is_acting = self._is_over = False
        self._pending: set[int] = set()
        self._machines: dict[int, Poisonous] = {}
        if swarm.is_poisoned:
            self._machines = {node_id: Poisonous() for node_id in members}
            for node_id, machine in self._machines.items():
                members[node_id].machine = machine
            world.at(self._rng.uniform(0.8, 2.0), self._ask)

    def _ask(self) -> None:
        up = [member for member in self._members.values() if member.is_up]
        if up:
            self._tries += 1
            member = self._rng.choice(up)
            packed = pack_call(POISON, [b"poisonous call %d." % self._tries])
            deadline = member.deadline(PATIENCE_S)
            member.submit([CallOperation(_Caller(), deadline, packed, POISON)])
        self._asked_at = self._world.now
        self._look()

    def _look(self) -> None:
        """See whether it is committed; if it takes too long, ask again."""
        if self._found:
            self._world.counts["poison"] += 1
            self._world.at(self._rng.uniform(0.2, 0.8), self._act)
        elif self._world.now > self._asked_at + 2 * PATIENCE_S and not self._is_over:
            self._ask()
        elif not self._world.is_settled:
            self._world.at(LOOK_S, self._look)

    def stop(self) -> None:
        """The chaos is over."""
        self._is_over = True

    # ---------------------------------------------------------------- operators

    def _act(self) -> None:
        self._is_acting = True
        if self._tries == 1 and self._is_alone() and self._rng.random() < 0.7:
            lucky = self._rng.choice(list(self._machines))
            self._world.note(lucky, "more memory")
            self._machines[lucky].has_memory = True

    def _is_alone(self) -> bool:
        """Whether no other caller has a part in the entry: it may be answered, and then skipped."""
        (index,) = self._found
        groups = decode_groups(self._invariants.committed[index - 1].payload)
        return sum(group.session != 0 for group in groups) == 1

    def on_failed(self, member: Member) -> None:
        """A node has ended in the middle of an entry."""
        self._world.note(member.id, "poisoned")
        self._see_to(member)

    def on_refused(self, *members: Member) -> None:
        """Of these two, one doesn't skip what the other one skips."""
        self._world.counts["refused for what it skips"] += 1
        for member in members:
            if member.skips != self._found:
                self._see_to(member)

    def _see_to(self, member: Member) -> None:
        if self._is_acting and member.id not in self._pending:
            self._pending.add(member.id)
            self._world.at(self._rng.uniform(0, 0.6), self._skip, member)

    def _skip(self, member: Member) -> None:
        """Run `raftha skip-entry` on a node."""
        self._pending.discard(member.id)
        member.crash(is_power_loss=False, is_silent=False)
        new = self._found.keys() - member.skips.keys()
        if new and State(member.store).applied.index >= min(new):
            self._world.note(member.id, "wiped", "it can't skip what it has applied")
            self._world.counts["applied what others skip"] += 1
            member.wipe()
        member.skips = dict(self._found)
        self._world.note(member.id, "skips", f"{sorted(member.skips)}")
