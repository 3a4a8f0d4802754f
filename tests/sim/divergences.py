"""States that differ from the others' though nothing on the disk is damaged.

Theory of operation. A member's state gets a pair that no command has written. Nothing of what
clients ask for shows it, so the run goes on as any other. The comparison of digests must find that
member and no other one, and it must replace its state. One member at a time is altered, while all
others are up and sound, so that a majority is right.

A snapshot of an altered state carries the pair to other members. It may do so only while a majority
stays sound: a comparison goes by what most members have, and can't know more.

States are compared in other seeds too, beside all their faults: no sound state may be replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from random import Random

from tests.sim.member import Member
from tests.sim.swarm import Swarm, without_faults
from tests.sim.world import World

CHANCE = 0.06
COMPARING_CHANCE = 0.15


def with_divergences(swarm: Swarm, rng: Random) -> Swarm:
    """Have this in some seeds; drawn from a stream of its own."""
    if rng.random() < COMPARING_CHANCE:
        swarm = replace(swarm, digest_every_s=rng.choice((0.4, 1.0)))
    if swarm.is_only_sick or swarm.is_wiping or swarm.lease_ms or swarm.rollback_every_s:
        return swarm
    if rng.random() >= CHANCE:
        return swarm
    return replace(
        without_faults(swarm),
        size=rng.choice((3, 3, 5)),
        chaos_s=rng.uniform(4, 6),
        is_fifo=True,
        delay_s=rng.choice((0.0003, 0.001)),
        checkpoint_s=rng.choice((0.1, 1.0, 60.0)),
        append_bytes_max=rng.choice((400, 4096)),
        write_bytes_max=8 << 20,
        window_bytes_max=rng.choice((1000, 1 << 20)),
        crash_every_s=rng.choice((0.0, 0.0, 0.8)),
        transfer_every_s=rng.choice((0.0, 0.5)),
        clients=4,
        change_every_s=0.0,
        standby_chance=0.0,
        campaigns=True,
        promotion_every_s=0.0,
        regions=("primary",),
        rot_every_s=0.0,
        ghost_kinds=(),
        digest_every_s=0.4,
        alter_every_s=rng.choice((0.3, 1.0)),
    )


class Divergences:
    """Alters one member's state at a time."""

    def __init__(self, world: World, swarm: Swarm, members: Mapping[int, Member]) -> None:
        self._world = world
        self._swarm = swarm
        self._members = members
        self._rng = world.stream("divergences")
        self._is_over = False
        if swarm.alter_every_s:
            self._wait()

    def stop(self) -> None:
        """The chaos is over."""
        self._is_over = True

    def _wait(self) -> None:
        self._world.at(self._rng.expovariate(1 / self._swarm.alter_every_s), self._alter)

    def _alter(self) -> None:
        if self._is_over:
            return
        self._wait()
        members = list(self._members.values())
        if not all(member.is_up and self._is_sound(member) for member in members):
            return
        victim = self._rng.choice(members)
        victim.store.alter()
        self._world.note(victim.id, "state altered")

    def on_start(self, member: Member) -> None:
        """A member has started: it may have installed a snapshot of an altered state."""
        altered = sum(each.store.is_altered for each in self._members.values())
        if member.store.is_altered and 2 * altered >= len(self._members):
            member.store.restore()
            self._world.note(member.id, "altered pair left out")

    def _is_sound(self, member: Member) -> bool:
        return not (member.store.is_altered or member.is_rotten or member.node_files.is_healing)
