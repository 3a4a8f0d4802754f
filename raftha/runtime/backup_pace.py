"""How fast a backup is read next to writes: as snapshots are (`node/snapshot_rate.py`).

Theory of operation. A backup shares a disk and processors with the node that takes it, whatever the
node's role. So what it must not slow down is that node's log: the mean time of its writes and syncs
in each interval takes the place of the batches' times. They are read from the node's counters, so a
write does nothing for this. While nothing is written, there is only the configured limit.
"""

from __future__ import annotations

from collections.abc import Callable

from raftha.node.snapshot_rate import SnapshotRate
from raftha.node.statistics import Histogram

MIN_SLEEP_S = 0.005
"""Shorter waits are saved up: a sleep takes longer than it was asked for."""
IDLE_S = 1.0
"""Without a write for this long, there are none to slow down."""


class BackupPace:
    """The rate of one backup. One thread at a time calls it."""

    def __init__(
        self,
        log_write: Histogram,
        bytes_per_s_max: int,
        monotonic: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        """`log_write` counts the node's writes of its log. `bytes_per_s_max`: 0 for no limit."""
        self._log_write = log_write
        self._monotonic = monotonic
        self._sleep = sleep
        self._rate = SnapshotRate(monotonic(), bytes_per_s_max)
        self._limit = bytes_per_s_max
        self._seen = self._counted()
        self._written_at = float("-inf")
        """When a write was seen last."""
        self._owed_s = 0.0

    def __call__(self, size: int) -> None:
        """Wait as long as the rate requires after a piece of `size` bytes."""
        now = self._monotonic()
        writes, seconds = self._counted()
        before_writes, before_seconds = self._seen
        if writes > before_writes:
            self._rate.record_batch((seconds - before_seconds) / (writes - before_writes))
            self._seen, self._written_at = (writes, seconds), now
        self._rate.on_tick(now)
        if now - self._written_at < IDLE_S:
            self._owed_s += self._rate.copied(size)
        elif self._limit:
            self._owed_s += size / self._limit
        if self._owed_s >= MIN_SLEEP_S:
            before = self._monotonic()
            self._sleep(self._owed_s)
            self._owed_s -= self._monotonic() - before

    def _counted(self) -> tuple[int, float]:
        return sum(self._log_write.counts), self._log_write.sum
