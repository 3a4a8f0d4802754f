"""Time, as a seam: the real clock here, a simulated one in `tests/sim`.

Two times, never mixed: `monotonic` measures durations and deadlines, `time_us` stamps entries.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What the engine asks of time."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never goes backwards."""
        ...

    def time_us(self) -> int:
        """Microseconds since 1970 UTC; may jump, as wall clocks do."""
        ...


class SystemClock:
    """The operating system's clocks."""

    def monotonic(self) -> float:
        return time.monotonic()

    def time_us(self) -> int:
        return time.time_ns() // 1000
