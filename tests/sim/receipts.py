"""Checks that what a receipt says of disks is true at the moment in which its caller gets it.

Theory of operation. A named node has the entry, as far as the invariants know its disk. Now and
then one of the named nodes is treated as if it lost power at this very moment, with all unsynced
data, and its log is recovered from the rest. Members whose disks have rotted, or that have lost
their logs or directories since, or got back earlier copies of them, are no witnesses: a receipt
can't know of that.

A caller that wants more than a majority gets a receipt only if it names so many voters, by the
membership of the releasing node; and its regions are those of the named nodes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from random import Random

from raftha.core import Raft
from raftha.entry import Entry
from raftha.errors import StorageError
from raftha.node.operations import ALL_VOTERS, MAJORITY
from raftha.storage.log.wal import Wal
from raftha.types import Acknowledgement
from tests.sim.member import Member
from tests.sim.memberships import voters
from tests.sim.settings import WAL
from tests.sim.swarm import Swarm
from tests.sim.world import Violation, World

CHECK_CHANCE = 0.005
"""How often a disk is checked: that costs as much as a hundred events."""


class Receipts:
    """All receipts of one simulation."""

    def __init__(self, world: World, swarm: Swarm, members: Mapping[int, Member]) -> None:
        self._world = world
        self._swarm = swarm
        self._members = members
        self._rng: Random = world.stream("receipts")

    def check(
        self, asked: Member, acks: int, is_late: bool, entry: Entry, claimed: Acknowledgement
    ) -> None:
        """A caller of `asked` wanted `acks` and gets this; `is_late`: too few had it in time."""
        counts = self._world.counts
        if asked.node is not None:
            if len(self._swarm.regions) > 1:
                self._check_regions(asked.node.core, claimed)
            if acks != MAJORITY and not is_late:
                self._check_wanted(asked.node.core, acks, claimed.acked_by)
        counts["receipt too late"] += is_late
        if acks != MAJORITY and not is_late:
            counts["receipt of all voters" if acks == ALL_VOTERS else "receipt of a quorum"] += 1
        counts["receipt of several regions"] += len(claimed.regions) > 1
        if claimed.acked_by and self._rng.random() < CHECK_CHANCE:
            self._check_holder(self._members[self._rng.choice(claimed.acked_by)], entry)

    def _check_regions(self, core: Raft, claimed: Acknowledgement) -> None:
        # One that was removed is named, if it has the entry, but its region may be gone.
        members = core.membership.members
        regions = {i: self._swarm.region(i) for i in claimed.acked_by}
        least = {region for i, region in regions.items() if i in members}
        if not least <= {*claimed.regions} <= {*regions.values()}:
            raise Violation(f"{claimed} names other regions than {sorted(least)}")

    def _check_wanted(self, core: Raft, acks: int, acked_by: Sequence[int]) -> None:
        electorate = voters(core.membership)
        wanted = len(electorate) if acks == ALL_VOTERS else max(acks, len(electorate) // 2 + 1)
        # Where a voter has gone, fewer are left than a caller has asked for.
        if len(electorate & {*acked_by}) < min(wanted, len(electorate)):
            raise Violation(f"{acked_by} are not {wanted} of the voters {sorted(electorate)}")

    def _check_holder(self, holder: Member, entry: Entry) -> None:
        has_lost = holder.is_rotten or holder.is_put_back or holder.incarnation > 1
        if has_lost or holder.node_files.healing_generation:
            return
        disk = holder.disk.without_power()
        salts = itertools.count(1)
        try:
            wal = Wal.open(
                disk, WAL, segment_bytes=self._swarm.segment_bytes, salt=lambda: next(salts)
            )
        except StorageError as error:
            raise Violation(f"node {holder.id} could not recover now: {error}") from error
        self._world.counts["disk looked at"] += 1
        if wal.base.index >= entry.index:
            return  # It is in the state, which the invariants have compared.
        if wal.last_index < entry.index or wal.read(entry.index, 1)[0].hash != entry.hash:
            raise Violation(
                f"node {holder.id} is said to have entry {entry.index}, and would lose it now"
            )
