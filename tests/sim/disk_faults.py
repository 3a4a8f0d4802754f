"""What goes wrong with one member's disk: crashes in the middle, errors, delays, no space."""

from __future__ import annotations

import errno
from random import Random

from tests.sim.disk import SimulatedDisk
from tests.sim.swarm import Swarm
from tests.sim.world import World


class SimulatedCrash(BaseException):
    """The machine stops in the middle of a disk operation; nothing may catch this but its host."""


class DiskFaults:
    """The faults of one member, whatever disk it has: `wipe` gives it another."""

    def __init__(self, world: World, swarm: Swarm, rng: Random) -> None:
        self.disk: SimulatedDisk
        self.stalled_until = 0.0
        self.slowness = 1.0
        """How many times as long as usual the disk takes."""
        self._world = world
        self._swarm = swarm
        self._rng = rng
        self._countdown: int | None = None
        self._has_error = False
        self._is_broken = False

    @property
    def is_armed(self) -> bool:
        """Whether a crash is about to come."""
        return self._countdown is not None

    @property
    def is_due(self) -> bool:
        """Whether the crash that is about to come has no operation left before it."""
        return self._countdown == 0

    def arm(self, operations: int) -> None:
        """Crash when the disk has done this many more operations."""
        self._countdown = operations
        self.disk.fault = self._on_operation

    def break_disk(self, *, is_for_good: bool) -> None:
        """Make the next sync fail; if `is_for_good`, all writes and syncs until a restart."""
        self._has_error = True
        self._is_broken = is_for_good
        self.disk.fault = self._on_operation

    def end(self) -> None:
        """Make the disk work again, and cancel a pending crash."""
        self._countdown = None
        self._has_error = False
        self.disk.fault = None

    def hasten(self) -> None:
        """Make the disk as fast as it can be."""
        self.stalled_until = 0.0
        self.slowness = 1.0

    def pick_time(self) -> float:
        """How long the disk takes for something."""
        stall = max(0.0, self.stalled_until - self._world.now)
        return stall + self._swarm.disk_s * self.slowness * (0.2 + self._rng.expovariate(1.25))

    def _on_operation(self, operation: str, path: str) -> None:
        if self._countdown is not None:
            self._countdown -= 1
            if self._countdown < 0:
                raise SimulatedCrash
        failing = ("pwrite", "fdatasync") if self._is_broken else ("fdatasync",)
        if self._has_error and operation in failing:
            self._has_error = self._is_broken
            raise OSError(errno.EIO, "input/output error", path)
