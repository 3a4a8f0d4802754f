"""Data directories that are put back to an earlier copy, under a leader that stays.

Theory of operation. A copy of a follower's directory is taken while it runs; a while later the
follower ends, and starts from the copy. If the copy is recent, that is the same as damage to its
last writes, which a start takes for a torn tail. What it acknowledged since is missing and nothing
on its disk says so: it must learn of that from its leader, and heal.

Until it does, it may vote for a candidate that lacks what was committed with its help. Nothing can
prevent that. So in these seeds nothing else goes wrong: the leader stays, and one member at a time
is put back.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random

from tests.sim.disk import SimulatedDisk
from tests.sim.invariants import DurableLog, Invariants
from tests.sim.member import Member
from tests.sim.store import DictStore
from tests.sim.swarm import Swarm, without_faults
from tests.sim.world import World

CHANCE = 0.06
AGES_S = (0.0, 0.005, 0.05, 0.5)
"""How old a copy is when it is put back, beside the time until the next chance to do so."""


def with_rollbacks(swarm: Swarm, rng: Random) -> Swarm:
    """Have this in some seeds, and nothing else then; drawn from a stream of its own."""
    if swarm.is_only_sick or swarm.is_wiping or swarm.lease_ms or rng.random() >= CHANCE:
        return swarm
    return replace(
        without_faults(swarm),
        chaos_s=rng.uniform(4, 6),
        is_fifo=True,
        delay_s=rng.choice((0.0003, 0.001)),
        checkpoint_s=rng.choice((0.1, 60.0)),
        append_bytes_max=4096,
        write_bytes_max=4096,
        window_bytes_max=rng.choice((1000, 1 << 20)),
        clients=4,
        change_every_s=0.0,
        standby_chance=0.0,
        campaigns=True,
        promotion_every_s=0.0,
        regions=("primary",),
        rot_every_s=0.0,
        ghost_kinds=(),
        rollback_every_s=rng.choice((0.2, 0.5)),
    )


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of a running member's data directory."""

    term: int
    generation: int
    disk: SimulatedDisk
    store: DictStore
    durable: DurableLog


def take_copy(member: Member, invariants: Invariants) -> Copy | None:
    """Copy a directory; None if something is being written, so that a copy may be of no moment."""
    durable = invariants.copy_durable(member)
    if durable is None or member.node is None:
        return None
    return Copy(
        member.node.core.term,
        member.node_files.healing_generation,
        member.disk.without_power(),
        copy.deepcopy(member.store),
        durable,
    )


def has_moved_on(member: Member, saved: Copy) -> bool:
    """Whether its term or healing generation is another one by now."""
    assert member.node is not None
    now = member.node.core.term, member.node_files.healing_generation
    return now != (saved.term, saved.generation)


def put_back(member: Member, saved: Copy, invariants: Invariants, world: World) -> None:
    """End a member, and have it start from the copy."""
    lost = invariants.put_back(member, saved.durable)
    member.crash(is_power_loss=False, is_silent=False)
    member.disk, member.store = saved.disk, saved.store
    member.faults.disk = saved.disk
    member.is_put_back = lost > 0
    world.counts["put back"] += lost > 0
    world.note(member.id, "copy put back", f"{lost} entries are missing")


class Rollbacks:
    """Puts back one member's directory at a time."""

    def __init__(
        self, world: World, swarm: Swarm, members: Mapping[int, Member], invariants: Invariants
    ) -> None:
        self._world = world
        self._swarm = swarm
        self._members = members
        self._invariants = invariants
        self._rng = world.stream("rollbacks")
        self._is_over = False
        if swarm.rollback_every_s:
            self._wait()

    def stop(self) -> None:
        """The chaos is over."""
        self._is_over = True

    def _wait(self) -> None:
        self._world.at(self._rng.expovariate(1 / self._swarm.rollback_every_s), self._copy)

    def _copy(self) -> None:
        if self._is_over:
            return
        victim = self._rng.choice(list(self._members.values()))
        saved = take_copy(victim, self._invariants)
        if saved is None or not self._is_calm(victim):
            self._wait()
            return
        self._world.at(self._rng.choice(AGES_S), self._put_back, victim, saved)

    def _put_back(self, victim: Member, saved: Copy) -> None:
        self._wait()
        if not self._is_over and self._is_calm(victim) and not has_moved_on(victim, saved):
            put_back(victim, saved, self._invariants, self._world)

    def _is_calm(self, victim: Member) -> bool:
        """Whether all are up, sound, and follow the same leader, which the victim isn't."""
        members = [member for member in self._members.values() if member.is_wanted]
        leaders = {member.node.core.leader for member in members if member.node is not None}
        return (
            all(member.is_up and not member.is_put_back for member in members)
            and not any(member.node_files.is_healing for member in members)
            and len(leaders) == 1
            and not leaders & {None, victim.id}
            and victim in members
        )
