"""The system's clock, as an instance gives it."""

from __future__ import annotations

import time

from raftha.clock import SystemClock


def test_boot_time_is_the_systems() -> None:
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    now = SystemClock().boottime_ns()
    assert before <= now <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)
