"""What a node knows of the other members' wall clocks.

Theory of operation. Voters and followers put their wall clock into the replies that they send
anyway: `VoteReply` and `HeartbeatReply`. A reply was made between the sending of the request and
its own arrival, so the round trip bounds the reading: the other clock showed `time_us` in the
middle of it, give or take half of it. Both ends are taken from this node's clock that runs on in
suspend, never from its wall clock. So a reading stays right when this node's own wall clock is
stepped: the *base* of a clock, its distance from the clock that is never stepped, changes only if
that clock itself is stepped.

The core only collects readings. It makes no decision from a wall clock; `raftha/node/log_clock.py`
does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

KEPT_US = 10_000_000
"""How long a reading is kept although a later one, with a longer round trip, is less exact."""


class ClockReading(NamedTuple):
    """One reading of a member's wall clock, in microseconds.

    `base_us`: its distance from this node's clock for leases; `error_us`: by how much that may be
    wrong; `taken_us`: when it was taken, by this node's clock for leases.
    """

    base_us: int
    error_us: int
    taken_us: int

    def agrees(self, other: ClockReading, tolerance_us: int) -> bool:
        """Whether two clocks may be within `tolerance_us` of each other."""
        most = tolerance_us + self.error_us + other.error_us
        return abs(self.base_us - other.base_us) <= most


class ClockReadings:
    """The last good reading of each member's wall clock, and this node's own clocks."""

    def __init__(self, boottime_ns: Callable[[], int], time_us: Callable[[], int]) -> None:
        """`time_us` is this node's wall clock."""
        self.by_member: dict[int, ClockReading] = {}
        self.boottime_ns = boottime_ns
        self._time_us = time_us

    def own_us(self) -> int:
        """This node's wall clock, for a reply; messages hold no negative numbers."""
        return max(self._time_us(), 0)

    def record(self, member: int, asked_ns: int, time_us: int) -> None:
        """A member's reply to what was sent at `asked_ns` says that its clock shows `time_us`."""
        now_ns = self.boottime_ns()
        if not time_us or not 0 < asked_ns <= now_ns:
            return  # A time in the future can't be an echo of this node's request.
        reading = ClockReading(
            base_us=time_us - (asked_ns + now_ns) // 2000,
            error_us=(now_ns - asked_ns) // 2000 + 1,
            taken_us=now_ns // 1000,
        )
        old = self.by_member.get(member)
        if (
            old is None
            or reading.error_us <= old.error_us
            or reading.taken_us - old.taken_us > KEPT_US
            or not reading.agrees(old, 0)
        ):
            self.by_member[member] = reading
