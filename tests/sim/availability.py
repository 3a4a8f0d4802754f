"""What a seed has beside faults: regions, standbys, promotions, reads with bounded staleness.

Theory of operation. Drawn from a stream of its own, on top of what `swarm.py` draws. So a seed that
gets none of it is the run that it would be without.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from tests.sim.swarm import Swarm

MANUAL_CHANCE = 0.08
REGIONS_CHANCE = 0.12
STANDBY_CHANCE = 0.5
AGED_CHANCE = 0.4
GROUPS_CHANCE = 0.3
CROWD_CHANCE = 0.12
REGIONS = ("east", "west", "north")


def widen(swarm: Swarm, rng: Random) -> Swarm:
    """Draw what else a swarm has."""
    swarm = replace(
        swarm,
        aged_chance=rng.choice((0.2, 0.6)) if rng.random() < AGED_CHANCE else 0.0,
        do_groups_wait=rng.random() < GROUPS_CHANCE,
    )
    if swarm.change_every_s and not swarm.is_wiping and rng.random() < STANDBY_CHANCE:
        swarm = replace(swarm, standby_chance=rng.choice((0.3, 0.8)))
    if swarm.size > 1 and rng.random() < REGIONS_CHANCE:
        count = rng.choice((2, 2, 3))
        swarm = replace(swarm, regions=REGIONS[:count], region_shift=rng.randrange(count))
    # Where one disk at a time is sick, members must be able to go on without help.
    if swarm.size > 1 and not swarm.is_only_sick and rng.random() < MANUAL_CHANCE:
        swarm = replace(swarm, campaigns=False, promotion_every_s=rng.choice((0.2, 0.5, 1.0)))
    return swarm


def with_crowds(swarm: Swarm, rng: Random) -> Swarm:
    """Have too many sessions in some seeds: clients that open them without end."""
    if not swarm.session_clients or rng.random() >= CROWD_CHANCE:
        return swarm
    # Each node has a session of its own, and each life of it opens another one.
    sessions_max = swarm.nodes + swarm.session_clients + rng.choice((2, 10))
    return replace(swarm, sessions_max=sessions_max, greedy_clients=rng.choice((1, 3)))
