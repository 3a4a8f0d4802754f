"""Leases in the swarm: some seeds have them beside all other faults, some try just them.

Theory of operation. What can go wrong with a lease needs several things at the right moment: a
leader that doesn't hear that others have elected another one, voters that could do so too early,
writes there and reads here. So there are families of seeds for each way to get there. All draws are
from a stream of their own: seeds without leases run as if there were none.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from raftha.core import HeartbeatReply, TimeoutNow
from tests.sim.swarm import Swarm, without_faults

LEASE_CHANCE = 0.35
DIRECTED_CHANCE = 0.7
FORGETFUL_CHANCE = 0.04


def with_leases(swarm: Swarm, rng: Random) -> Swarm:
    """Have leases in some seeds, but for those that are directed at what is rare enough."""
    if swarm.is_only_sick or swarm.is_wiping or rng.random() >= LEASE_CHANCE:
        return swarm
    if rng.random() < DIRECTED_CHANCE:
        directed = rng.choice(
            (
                _cut_off,
                _wrong_clocks,
                _wrong_clocks,
                _forgetful,
                _late_replies,
                _handing_over,
                _handing_over,
                _new_leaders,
                _slow_disks,
            )
        )
        return directed(_with_readers(without_faults(swarm), rng), rng)
    return replace(
        swarm,
        lease_ms=rng.choice((100, 150, 250)),
        is_lease_changing=rng.random() < 0.3,
        lease_readers=2,
        thread_pause_s=rng.choice((0.0, 0.05, 0.3)),
    )


def with_forgetful_voters(swarm: Swarm, rng: Random) -> Swarm:
    """Have voters forget their promises in some more seeds: it takes many to break a lease."""
    if swarm.is_only_sick or swarm.is_wiping or rng.random() >= FORGETFUL_CHANCE:
        return swarm
    return _forgetful(_with_readers(without_faults(swarm), rng), rng)


def _with_readers(swarm: Swarm, rng: Random) -> Swarm:
    """Three members, on which a few clients write a key and others read it by lease."""
    return replace(
        swarm,
        chaos_s=rng.uniform(5, 8),
        delay_s=0.001,
        lease_ms=250,
        lease_readers=4,
        clients=8,
        session_clients=0,
        keys=1,
        think_s=0.005,
        depth=1,
        timeout_s=0.2,
        is_majority_enough=True,
        isolate_chance=0.9,
        change_every_s=0.0,
        is_wiping=False,
        standby_chance=0.0,
        campaigns=True,
        promotion_every_s=0.0,
        regions=("primary",),
        rot_every_s=0.0,
        ghost_kinds=(),
        retention_bytes=1 << 40,
    )


def _cut_off(swarm: Swarm, rng: Random) -> Swarm:
    """The others notice at once that the leader is cut off."""
    return replace(
        swarm,
        partition_every_s=0.5,
        partition_s=0.5,
        one_way_chance=0.0,
        reset_chance=1.0,
        leader_chance=0.95,
        pause_every_s=rng.choice((0.0, 0.0, 0.5)),
        pause_s=0.15,
    )


def _wrong_clocks(swarm: Swarm, rng: Random) -> Swarm:
    """Leaders are paused and cut off, and clocks go as wrong as they may."""
    return replace(
        _cut_off(swarm, rng),
        pause_every_s=0.5,
        drift_every_s=0.1,
        drift_max=rng.choice((0.3, 0.5)),
        is_drift_extreme=True,
    )


def _forgetful(swarm: Swarm, rng: Random) -> Swarm:
    """As the leader is cut off, the others restart, in no time after they have promised."""
    return replace(
        swarm,
        redial_s=(0.002, 0.01),
        partition_every_s=0.4,
        partition_s=0.4,
        reset_chance=0.0,
        bereave_chance=0.8,
        restart_s=0.005,
        leader_chance=0.95,
    )


def _late_replies(swarm: Swarm, rng: Random) -> Swarm:
    """A voter's promise arrives when it has long ended."""
    return replace(
        swarm,
        is_fifo=False,
        straggler_chance=0.5,
        straggler_kinds=(HeartbeatReply,),
        partition_every_s=0.6,
        partition_s=0.6,
        reset_chance=0.0,
        leader_chance=0.95,
    )


def _handing_over(swarm: Swarm, rng: Random) -> Swarm:
    """Leaders begin to hand over and are cut off; the `TimeoutNow` may come late."""
    return replace(
        swarm,
        is_fifo=False,
        straggler_chance=rng.choice((0.7, 0.95)),
        straggler_kinds=(TimeoutNow,),
        transfer_every_s=rng.choice((0.15, 0.6)),
        partition_every_s=0.4,
        partition_s=0.5,
        reset_chance=0.0,
        leader_chance=0.95,
    )


def _new_leaders(swarm: Swarm, rng: Random) -> Swarm:
    """Leadership goes to and fro, and a leader's first entry may take a while."""
    return replace(
        swarm,
        disk_s=rng.choice((0.001, 0.04)),
        transfer_every_s=rng.choice((0.1, 0.3)),
        crash_every_s=rng.choice((0.0, 0.5)),
        leader_chance=0.95,
        thread_pause_s=0.3,
    )


def _slow_disks(swarm: Swarm, rng: Random) -> Swarm:
    """A leader's own disk is so slow that all others have applied what it can't apply yet."""
    return replace(
        swarm,
        disk_s=0.002,
        slow_every_s=0.4,
        sick_s=0.8,
        leader_chance=0.95,
        pause_every_s=rng.choice((0.0, 0.5)),
        pause_s=0.1,
    )
