"""What a node counts and times, for metrics: plain numbers, of one process, since it started.

Written by the node's thread only, but for `lease_reads`. Readers on other threads see each number
whole, and numbers that belong together perhaps a moment apart.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict

SECONDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0,
)  # fmt: skip
"""The buckets' upper bounds: from a fast disk's sync to a call's usual deadline."""


class Histogram:
    """How many values fell into each bucket, and their sum; values above all bounds count last."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Statistics:
    """`reads`, by consistency; `lease_reads`, those that their callers' threads answered, by
    thread, so that each number has one writer; `errors`, what callers got instead of a result, by
    class; `events`, by kind; `peers_refused`, those not let in or thrown out. Seconds: `log_write`,
    one write and sync of the log; `commit`, from when the leader took a batch until it had applied
    it; `checkpoint`."""

    def __init__(self) -> None:
        self.reads: Counter[str] = Counter()
        self.lease_reads: defaultdict[int, int] = defaultdict(int)
        self.errors: Counter[str] = Counter()
        self.events: Counter[str] = Counter()
        self.peers_refused = 0
        self.log_write = Histogram()
        self.commit = Histogram()
        self.checkpoint = Histogram()
