"""Any moment of the window is what the committed log says: checked when a run has ended (I2).

The real planner and replay read the buckets as they are then, without faults. What rot has hit may
be missing; all else in the window leads to the oracle's state, and a hole is where a gap's record
says that there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from raftha.errors import (
    ArchiveGap,
    BackupDamaged,
    ChainBroken,
    ObjectMissing,
    RafthaError,
    TargetUnreachable,
)
from raftha.storage.backup.planner import plan_recovery, window
from raftha.storage.backup.recovery import Target, Window
from raftha.storage.backup.replay import ReplayHooks, build_image
from raftha.storage.backup.repository import Repository, open_repository
from raftha.storage.backup.timeline import Timeline, read_timeline
from raftha.storage.state.machine import StateMachine
from tests.sim.oracle import Oracle
from tests.sim.repository import Bucket, TrueClient
from tests.sim.world import Violation, World
from tests.support.dict_stores import DictStores

MOMENTS = 3
"""How many are recovered after a run."""
_ROTTEN = (BackupDamaged, ChainBroken, ObjectMissing)


def check_moments(
    world: World,
    rng: Random,
    buckets: Sequence[Bucket],
    oracle: Oracle,
    machine: StateMachine | None,
    lineage: str,
) -> None:
    """Recover some moments of a lineage, from all buckets together."""
    try:
        repository = open_repository(
            [TrueClient(bucket) for bucket in buckets],
            is_encrypted=False,
            may_create=False,
            now_us=0,
            random=rng.randbytes,
        )
        timeline = read_timeline(repository)
        found = window(repository, lineage, timeline=timeline)
    except RafthaError:
        return  # There is no backup yet, or rot has hit what says what this is.
    has_rot = any(bucket.damaged for bucket in buckets)
    for _ in range(MOMENTS):
        check_moment(world, rng, repository, timeline, found, oracle, machine, has_rot=has_rot)


def check_moment(
    world: World,
    rng: Random,
    repository: Repository,
    timeline: Timeline,
    found: Window,
    oracle: Oracle,
    machine: StateMachine | None,
    *,
    has_rot: bool,
) -> None:
    """Recover one moment of the window."""
    sequence = rng.randint(found.earliest.sequence, found.latest.sequence)
    target = Target(sequence=sequence)
    stores = DictStores()
    hooks = ReplayHooks(
        monotonic=lambda: world.now,
        skips=oracle.skips,
        buffer_bytes=rng.choice((1, 1000, 1 << 20)),
    )
    try:
        plan = plan_recovery(repository, target, lineage=found.lineage, timeline=timeline)
        build_image(plan, repository, stores, machine, hooks)
    except ArchiveGap as gap:
        check_gap(timeline, gap, has_rot=has_rot)
        world.counts["moment in a gap"] += 1
        return
    except TargetUnreachable as error:
        if not has_rot and not any(timeline.gaps.values()):
            raise Violation(f"{target} is in the window, and unreachable: {error}") from error
        return
    except _ROTTEN as error:
        if not has_rot:
            raise Violation(f"{target} can't be recovered: {error}") from error
        return
    pairs, expected = stores.pairs(), oracle.values_at(sequence)
    if pairs != expected:
        keys = pairs.keys() | expected.keys()
        wrong = {key for key in keys if pairs.get(key) != expected.get(key)}
        raise Violation(f"{target} leads to {len(wrong)} wrong values, such as {min(wrong)!r}")
    world.counts["moment recovered"] += 1


def check_gap(timeline: Timeline, gap: ArchiveGap, *, has_rot: bool) -> None:
    """What is missing is what was recorded, unless it has rotted or was too old to be kept."""
    recorded = [each for gaps in timeline.gaps.values() for each in gaps]
    if has_rot or any(each.first <= gap.last and gap.first <= each.last for each in recorded):
        return
    oldest = min(own[0].name.first for own in timeline.segments.values())
    if gap.last >= oldest:
        raise Violation(f"entries {gap.first} to {gap.last} are missing, and no record says so")
