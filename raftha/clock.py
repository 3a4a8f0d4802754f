"""Time, as a seam: the real clock here, a simulated one in `tests/sim`.

Three times, never mixed: `monotonic` measures durations and deadlines, `time_us` stamps entries,
`boottime_ns` is for leases: it goes on while the machine sleeps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Protocol


class Clock(Protocol):
    """What the engine asks of time."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never goes backwards."""
        ...

    def time_us(self) -> int:
        """Microseconds since 1970 UTC; may jump, as wall clocks do."""
        ...

    @property
    def boottime_ns(self) -> Callable[[], int]:
        """Says the nanoseconds since some fixed moment; those in which the machine slept count."""
        ...


class SystemClock:
    """The operating system's clocks."""

    # Called for each lease read: not through a function of Python's own. Static: from Python 3.14
    # on, a partial in a class is a method, and would be called with the clock as another argument.
    boottime_ns = staticmethod(partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME))

    def monotonic(self) -> float:
        return time.monotonic()

    def time_us(self) -> int:
        return time.time_ns() // 1000
