"""Bugs to plant in how a leader makes log time of wall clocks. See `bugs.py`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from raftha.core.clocks import ClockReading, ClockReadings
from raftha.node.log_clock import LogClock
from raftha.node.watch.clocks import ClockWatch
from tests.sim.planting import Bug, Patch


def own_clock_believed() -> list[Patch]:
    """A leader stamps entries with its own wall clock, whatever the others' show (T2)."""

    def stamp(self: LogClock, last_us: int) -> int:
        return max(self._clock.time_us(), last_us)

    return [(LogClock, "stamp", stamp)]


def step_noticed_late() -> list[Patch]:
    """A step of the own clock shows with the next heartbeat's replies, not at the next stamp."""
    original = LogClock.stamp

    def stamp(self: LogClock, last_us: int) -> int:
        if self._good_us != -(1 << 62) and self._term == self._core.term:
            self._good_us = self._own_base_us()
        return original(self, last_us)

    return [(LogClock, "stamp", stamp)]


def furthest_clock_believed() -> list[Patch]:
    """Log time follows the clock that is furthest ahead (T1)."""

    def find_reference(self: LogClock, clocks: list[ClockReading], now_us: int) -> ClockReading:
        return max(clocks)

    return [(LogClock, "_find_reference", find_reference)]


def votes_bring_no_clock() -> list[Patch]:
    """A leader begins without a reading, and so with its own clock."""
    original = ClockReadings.record

    def record(self: ClockReadings, member: int, asked_ns: int, time_us: int) -> None:
        self.__dict__.setdefault("_since", {}).setdefault(member, self.boottime_ns())
        if self.boottime_ns() - self.__dict__["_since"][member] > 1_000_000_000:
            original(self, member, asked_ns, time_us)

    return [(ClockReadings, "record", record)]


def wrong_clock_leads_on() -> list[Patch]:
    """A leader reports that its clock is wrong, and goes on leading (T3)."""
    original = ClockWatch.on_tick

    def on_tick(self: ClockWatch, may_lead: Callable[[int], bool]) -> None:
        hand_over: Any = self._hand_over

        def keep(candidates: Collection[int]) -> None:
            pass

        self._hand_over = keep
        original(self, may_lead)
        self._hand_over = hand_over

    return [(ClockWatch, "on_tick", on_tick)]


BUGS: tuple[Bug, ...] = (
    own_clock_believed,
    step_noticed_late,
    furthest_clock_believed,
    votes_bring_no_clock,
    wrong_clock_leads_on,
)
