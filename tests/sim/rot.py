"""Rot: bits that turn over, sectors that hold another one's content, a state that can't be read.

Theory of operation. Only what a disk has durably is damaged, and what a later durable write
testifies to: damage to the last write of a log can't be told from a torn one, and what looks like
the last write but one may be the last when a power loss has taken an unsynced one. A damaged member
must notice at its next start, at the latest; from then on it heals. At any time a majority of the
voters is undamaged.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from random import Random

from raftha.errors import StorageError
from raftha.storage.log.recovery import close_all, live_ids, recover
from raftha.storage.log.segment import HEADER_BYTES, Segment, scan
from tests.sim.disk import SECTOR_BYTES, SimulatedDisk
from tests.sim.member import Member
from tests.sim.settings import WAL
from tests.sim.world import World

UNCERTAIN_WRITES = 2


class Rot:
    """Damages members' disks, a few at a time."""

    def __init__(self, world: World, members: Mapping[int, Member], rng: Random) -> None:
        self._world = world
        self._members = members
        self._rng = rng

    def strike(self, victim: Member) -> bool:
        """Damage this member's log or state, if that is allowed now; return True if it was."""
        hurt = {m.id for m in self._members.values() if m.is_rotten or m.node_files.is_healing}
        if len(hurt | {victim.id}) > (len(self._members) - 1) // 2:
            return False
        what = self._rng.choice(("log", "log", "state", "both"))
        if what != "state" and not self._damage_log(victim.disk):
            return False
        if what != "log":
            victim.store.is_damaged = True
        victim.is_rotten = True
        self._world.note(victim.id, "rot", what)
        return True

    def _damage_log(self, disk: SimulatedDisk) -> bool:
        fault, disk.fault = disk.fault, None  # This operation belongs to no member.
        try:
            sectors = _certain_sectors(disk)
        except (StorageError, OSError):
            return False  # It is damaged already, or there is none.
        finally:
            disk.fault = fault
        if not sectors:
            return False
        path, start = self._rng.choice(sectors)
        if self._rng.random() < 0.5:
            for _ in range(self._rng.choice((1, 1, 8))):
                offset = start + self._rng.randrange(SECTOR_BYTES)
                disk.flip(path, offset, self._rng.randrange(8))
        else:
            # A write that was meant for this sector went elsewhere, or the other way round.
            other, place = self._rng.choice(sectors)
            content = disk.contents(other)[place : place + SECTOR_BYTES]
            disk.overwrite(path, start, content)
        return True


def _certain_sectors(disk: SimulatedDisk) -> list[tuple[str, int]]:
    """Path and offset of sectors that hold only what a later durable write testifies to."""
    names = disk.listdir(WAL)
    log = recover(disk, WAL, live_ids(WAL, names))
    try:
        return list(itertools.chain.from_iterable(_limits(disk, log.segments)))
    finally:
        close_all(disk, log.segments)


def _limits(disk: SimulatedDisk, segments: list[Segment]) -> list[list[tuple[str, int]]]:
    uncertain = UNCERTAIN_WRITES
    found = []
    for segment in reversed(segments):
        offsets = [write.offset for write in scan(disk, segment, segment.end)]
        certain, taken = len(offsets) - uncertain, min(uncertain, len(offsets))
        uncertain -= taken
        limit = segment.end if not taken else offsets[certain] if certain > 0 else HEADER_BYTES
        whole = range(0, limit - SECTOR_BYTES + 1, SECTOR_BYTES)
        found.append([(segment.path, start) for start in whole])
    return found
