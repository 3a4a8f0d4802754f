"""A wall clock that is wrong by years: one member's, in some seeds.

Theory of operation. The clock of one member is stepped by decades, ahead and back, again and again;
all other wall clocks go right. Since most clocks do, log time must: no committed entry is ahead of
the right time by more than what the setting allows. And when all is calm, the member with the wrong
clock doesn't lead.

Where the one wrong clock is behind, a leader that knows two clocks can't tell which is right. So
entries may be behind for a while, which does no lasting harm, and isn't checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from random import Random

from raftha.entry import Entry
from tests.sim.clock import EPOCH_US
from tests.sim.member import Member
from tests.sim.swarm import Swarm
from tests.sim.world import Violation, World

CHANCE = 0.2
MAX_OFFSET_MS = 5_000
YEAR_US = 365 * 86_400_000_000
STEPS_US = (YEAR_US // 100, YEAR_US, 30 * YEAR_US, 200 * YEAR_US)
BACK_US = (YEAR_US // 100, YEAR_US, 30 * YEAR_US)
SLACK_US = 2 * MAX_OFFSET_MS * 1000


def with_wrong_clocks(swarm: Swarm, rng: Random) -> Swarm:
    """Have this in some seeds, beside other faults; drawn from a stream of its own."""
    is_fit = swarm.size >= 3 and not (swarm.is_wiping or swarm.change_every_s)
    if not is_fit or rng.random() >= CHANCE:
        return swarm
    return replace(
        swarm,
        clock_every_s=0.0,
        drift_every_s=0.0,
        wrong_clock_every_s=rng.choice((0.1, 0.3, 1.0)),
        crash_every_s=rng.choice((swarm.crash_every_s, 0.7)),
        max_clock_offset_ms=MAX_OFFSET_MS,
        regions=("primary",),  # Leadership doesn't return to a member with a wrong clock.
    )


class WrongClocks:
    """The member with the wrong clock, if the seed has one."""

    def __init__(self, world: World, swarm: Swarm, members: Mapping[int, Member]) -> None:
        self._world = world
        self._swarm = swarm
        self._rng = world.stream("wrong clocks strike")
        self._is_over = False
        self._victim: Member | None = None
        if swarm.wrong_clock_every_s:
            self._victim = self._rng.choice(list(members.values()))
            self._wait()

    def stop(self) -> None:
        """Leave the clock as it is."""
        self._is_over = True

    def check(self, entry: Entry) -> None:
        """An entry is committed."""
        if self._victim is None:
            return
        ahead_us = entry.time_us - EPOCH_US - int(self._world.now * 1e6)
        if ahead_us > SLACK_US:
            raise Violation(f"log time is {ahead_us / 1e6:.0f} s ahead at entry {entry.index}")

    def lacking(self) -> str:
        """What is not as it should be, once all is calm; "" if all is."""
        victim = self._victim
        if victim is None or victim.node is None or not victim.node.core.is_leader:
            return ""
        is_wrong = abs(victim.clock.offset_us) > SLACK_US
        return f"node {victim.id} leads with a wrong clock" if is_wrong else ""

    def _wait(self) -> None:
        self._world.at(self._rng.expovariate(1 / self._swarm.wrong_clock_every_s), self._strike)

    def _strike(self) -> None:
        if self._is_over:
            return
        assert self._victim is not None
        # Right half of the time: a member whose clock is wrong doesn't lead for long.
        steps = (0, 0, self._rng.choice(STEPS_US), -self._rng.choice(BACK_US))
        self._victim.clock.offset_us = self._rng.choice(steps)
        years = self._victim.clock.offset_us / YEAR_US
        self._world.note(self._victim.id, "clock wrong", f"by {years:.2f} years")
        self._wait()
