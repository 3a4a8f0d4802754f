"""Any moment that the archive claims can be restored, and is the oracle's state of then (I2).

Theory of operation. In the end of a seed with an archive some sequences of the window are drawn,
planned and replayed by the real code, out of the buckets as they are, and compared. What rot, loss
or a wrong write has hit may fail; nothing may lead to another state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

from raftha.errors import RafthaError, TargetUnreachable
from raftha.storage.backup import planner
from raftha.storage.backup.recovery import Target
from raftha.storage.backup.replay import ReplayHooks, build_image
from raftha.storage.backup.repository import open_repository
from raftha.storage.state.machine import StateMachine
from tests.sim.oracle import Oracle
from tests.sim.repository import Bucket, TrueClient
from tests.sim.world import Violation, World
from tests.support.dict_stores import DictStores

DRAWN = 3
"""Moments that are restored in a seed."""


def check_moments(
    world: World,
    buckets: Sequence[Bucket],
    oracle: Oracle,
    lineage: str,
    machine: StateMachine,
    skips: Mapping[int, bytes],
) -> None:
    """Restore some moments of the window."""
    rng = world.stream("moments")
    is_hurt = any(bucket.damaged or bucket.bad_writes for bucket in buckets)
    repository = open_repository(
        [TrueClient(bucket) for bucket in buckets],
        is_encrypted=False,
        may_create=False,
        now_us=0,
        random=Random(1).randbytes,
    )
    try:
        found = planner.window(repository, lineage)
    except RafthaError as error:
        if is_hurt or isinstance(error, TargetUnreachable):
            return
        raise Violation(f"there is no window: {error}") from error
    for _ in range(DRAWN):
        sequence = rng.randint(found.earliest.sequence, found.latest.sequence)
        if any(before.sequence < sequence < after.sequence for before, after in found.gaps):
            continue
        stores = DictStores()
        try:
            plan = planner.plan_recovery(repository, Target(sequence=sequence), lineage=lineage)
            build_image(plan, repository, stores, machine, ReplayHooks(skips=skips))
        except RafthaError as error:
            if is_hurt:
                world.counts["moment lost to rot"] += 1
                continue
            raise Violation(f"sequence {sequence} can't be restored: {error}") from error
        pairs = stores.pairs()
        expected = oracle.values_at(sequence)
        if pairs != expected:
            wrong = {
                key for key in pairs.keys() | expected.keys() if pairs.get(key) != expected.get(key)
            }
            raise Violation(
                f"sequence {sequence} is restored with {len(wrong)} wrong values, such as "
                f"{min(wrong)!r}"
            )
        world.counts["moment restored"] += 1
