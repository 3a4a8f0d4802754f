"""Time, as a seam: the real clock is here, and `tests/sim` has a simulated one.

There are three times, which never mix. `monotonic` is for durations and deadlines, and `time_us`
for the timestamps of entries. `boottime_ns` is for leases, since it advances while the machine
sleeps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Protocol


class Clock(Protocol):
    """The clocks that the engine uses."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment. Never goes backwards."""
        ...

    def time_us(self) -> int:
        """Microseconds since 1970 UTC. May jump, as wall clocks do."""
        ...

    @property
    def boottime_ns(self) -> Callable[[], int]:
        """Returns nanoseconds since some fixed moment, time in suspend included."""
        ...


class SystemClock:
    """The operating system's clocks."""

    # A partial, since each lease read calls it and a Python function would cost more. Static, since
    # from Python 3.14 on a partial in a class is a method, which gets the clock as an argument.
    boottime_ns = staticmethod(partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME))

    def monotonic(self) -> float:
        return time.monotonic()

    def time_us(self) -> int:
        return time.time_ns() // 1000
