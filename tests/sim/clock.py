"""Members' clocks: each has its own start and rate, and may be wrong.

Theory of operation. `monotonic` is what time-outs and deadlines are measured with. It never goes
back, but runs fast or slow while the clock drifts, and is comparable with no other member's. The
wall clock runs along with it, and may be stepped, back as well; log time is made from it.
"""

from __future__ import annotations

from random import Random

from tests.sim.world import World

EPOCH_US = 1_700_000_000_000_000
BEGINS_MAX_S = 1_000_000.0


class MemberClock:
    """`raftha.clock.Clock` in virtual time; `offset_us` is how wrong the wall clock is."""

    def __init__(self, world: World, rng: Random) -> None:
        self.offset_us = 0
        self.rate = 1.0
        self._world = world
        self._began = self._then = rng.uniform(0, BEGINS_MAX_S)
        self._since = 0.0
        self._rates: list[tuple[float, float, float]] = []
        """How it ran before: from when on, what it showed then, and its rate."""

    def monotonic(self) -> float:
        return self._then + (self._world.now - self._since) * self.rate

    def boottime_ns(self) -> int:
        return int(self.monotonic() * 1e9)

    def time_us(self) -> int:
        return EPOCH_US + int((self.monotonic() - self._began) * 1e6) + self.offset_us

    def run_at(self, rate: float) -> None:
        """From now on, go through `rate` seconds a second."""
        self._rates.append((self._since, self._then, self.rate))
        self._then, self._since = self.monotonic(), self._world.now
        self.rate = rate

    def at(self, now: float) -> float:
        """What `monotonic` was at a time of the world."""
        since, then, rate = next(
            period
            for period in ((self._since, self._then, self.rate), *reversed(self._rates))
            if period[0] <= now
        )
        return then + (now - since) * rate

    def world_time(self, monotonic: float) -> float:
        """At what time of the world this clock showed `monotonic`; it may be before its first."""
        since, then, rate = self._since, self._then, self.rate
        for period in reversed(self._rates):
            if then <= monotonic:
                break
            since, then, rate = period
        return since + (monotonic - then) / rate
