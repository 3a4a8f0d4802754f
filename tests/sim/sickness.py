"""Disks that are full, hang, are slow, or fail; and what the others must still do.

Theory of operation. Each kind comes again and again, as the seed's swarm says, to a member that the
faults pick. A *full* disk has room for a little more log, then for none; a disk that *hangs* does
nothing for a while, and one that is *slow* takes many times as long as usual; an *error* hits one
sync, or all writes and syncs until a restart, and ends the node.

Where nothing else goes wrong (`is_only_sick`), one disk at a time is full or hangs, and the cluster
must go on: after `HANDOVER_S`, in which a leader may have to notice and hand over, writes must be
acknowledged although that disk is still sick.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from random import Random

from tests.sim.member import Member
from tests.sim.swarm import Swarm
from tests.sim.world import Violation, World

HANG_MAX_S = 4.0
HANDOVER_S = 2.5
ENDURED_S = 1.5


class Sickness:
    """Faults of all disks; `pick` chooses the member, `acknowledged` is what clients know of."""

    def __init__(
        self,
        world: World,
        swarm: Swarm,
        pick: Callable[[], Member],
        acknowledged: Sized,
    ) -> None:
        self._world = world
        self._swarm = swarm
        self._pick = pick
        self._acknowledged = acknowledged
        self._rng: Random = world.stream("sickness")
        self._is_over = False
        for interval, strike in (
            (swarm.disk_error_every_s, self._break),
            (swarm.stall_every_s, self._stall),
            (swarm.slow_every_s, self._slow),
            (swarm.full_every_s, self._fill),
        ):
            if interval:
                self._repeat(interval, strike)
        if swarm.is_only_sick:
            self._later(1.0, self._make_sick)

    def heal(self) -> None:
        """No more of it."""
        self._is_over = True

    def _later(self, delay: float, function: Callable[..., None], *args: object) -> None:
        self._world.at(delay, function, *args)

    def _repeat(self, interval: float, strike: Callable[[Member], None]) -> None:
        def again() -> None:
            if not self._is_over:
                strike(self._pick())
                self._later(self._rng.expovariate(1 / interval), again)

        self._later(self._rng.expovariate(1 / interval), again)

    # The kinds.

    def _break(self, victim: Member) -> None:
        if victim.is_up:
            is_for_good = self._rng.random() < 0.5
            self._world.note(victim.id, "disk breaks", "for good" if is_for_good else "once")
            victim.faults.break_disk(is_for_good=is_for_good)

    def _stall(self, victim: Member) -> None:
        # An operation that has begun on a disk that hangs ends at its time, even after the chaos.
        self._hang(victim, min(self._rng.expovariate(1 / self._swarm.stall_s), HANG_MAX_S))

    def _hang(self, victim: Member, for_s: float) -> None:
        self._world.note(victim.id, "disk hangs", f"{for_s:.3f} s")
        victim.faults.stalled_until = self._world.now + for_s

    def _slow(self, victim: Member) -> None:
        victim.faults.slowness = self._rng.choice((3.0, 10.0, 30.0))
        self._world.note(victim.id, "disk is slow", f"{victim.faults.slowness:.0f} times")
        self._later(self._rng.expovariate(1 / self._swarm.sick_s), self._quicken, victim)

    def _quicken(self, victim: Member) -> None:
        self._world.note(victim.id, "disk is quick")
        victim.faults.slowness = 1.0

    def _fill(self, victim: Member) -> None:
        self._fill_for(victim, self._rng.expovariate(1 / self._swarm.sick_s))

    def _fill_for(self, victim: Member, for_s: float) -> None:
        left = self._rng.choice((0, 0, 4096, 2 * self._swarm.segment_bytes))
        self._world.note(victim.id, "disk is full", f"but for {left} bytes")
        victim.fill_disk(left)
        self._later(for_s, self._free, victim)

    def _free(self, victim: Member) -> None:
        self._world.note(victim.id, "disk is free")
        victim.free_disk()

    # One at a time, and nothing else.

    def _make_sick(self) -> None:
        if self._is_over:
            return
        victim = self._pick()
        for_s = HANDOVER_S + ENDURED_S
        if self._rng.random() < 0.5:
            self._fill_for(victim, for_s)
        else:
            self._hang(victim, for_s)
        self._later(HANDOVER_S, self._begin_watch, victim)
        self._later(for_s + 1.0, self._make_sick)

    def _begin_watch(self, victim: Member) -> None:
        self._later(0.99 * ENDURED_S, self._end_watch, victim, len(self._acknowledged))

    def _end_watch(self, victim: Member, acknowledged: int) -> None:
        if self._is_over:
            return
        self._world.counts["endured a sick disk"] += 1
        if len(self._acknowledged) == acknowledged:
            raise Violation(
                f"no write was acknowledged for {ENDURED_S} s, though only the disk of node "
                f"{victim.id} is sick"
            )
