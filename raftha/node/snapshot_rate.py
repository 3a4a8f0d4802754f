"""How fast snapshots are sent beside callers' writes: as fast as writes bear.

Theory of operation. A snapshot takes disk, network and processors from the writes that go on. How
much of these there is nobody knows beforehand, but one sees how long writes take: the leader
measures each batch from its proposal until it is applied. What that takes while no snapshot is sent
is the base. In each `INTERVAL_S` in which one is sent, the rate is cut if the batches took longer
than `TOLERANCE` times the base, and raised otherwise. Every `CYCLE_S` the sending pauses for a few
intervals, of which the later ones renew the base: the load may be another one by now. The making of
a snapshot, a copy on the leader's own disk, goes at the same rate (`copied`).

Without writes, or with none that are slowed down, the rate rises up to what the followers take. It
never falls below `RATE_MIN`, so that a snapshot arrives some time whatever goes on beside it.
"""

from __future__ import annotations

INTERVAL_S = 0.2
CYCLE_S = 4.0
QUIET_INTERVALS = 3
"""Length of a pause; its first interval still feels what was on its way."""
TOLERANCE, SLACK_S = 1.25, 0.0003
RATE_MIN, RATE_FIRST, RATE_MAX = 2 << 20, 8 << 20, 1 << 30
BURST_S = 0.05
"""What wasn't sent in time may be made up for, up to this much of it."""


class SnapshotRate:
    """The rate of one leader's snapshots, all receivers together."""

    def __init__(self, now: float, bytes_per_s_max: int) -> None:
        """At most `bytes_per_s_max`; 0 for no such limit."""
        self._limit = bytes_per_s_max or RATE_MAX
        self.bytes_per_s = float(RATE_FIRST)
        """Bytes a second that writes are thought to bear."""
        self._base_s: float | None = None
        self._free_at = now - BURST_S
        self._began_at = now
        self._waited_s = 0.0
        self._answers = 0
        self._sent_bytes = 0
        self._copied_bytes = self._copied_seen = 0
        self._busy_intervals = 0
        self._quiet_intervals = 0

    def record_batch(self, took_s: float) -> None:
        """A batch of writes was applied, so long after it was proposed."""
        self._waited_s += took_s
        self._answers += 1

    def may_send(self, now: float, size: int) -> bool:
        """Whether `size` bytes may go out now; then they count as sent."""
        if self._quiet_intervals or now < self._free_at:
            return False
        self._free_at = max(self._free_at, now - BURST_S) + size / min(
            self.bytes_per_s, self._limit
        )
        self._sent_bytes += size
        return True

    def copied(self, size: int) -> float:
        """A snapshot in the making has grown by `size`: how many seconds to wait behind that.

        For the one thread that makes snapshots; all else is for the node's.
        """
        self._copied_bytes += size
        return size / min(self.bytes_per_s, self._limit) + INTERVAL_S * self._quiet_intervals

    def on_tick(self, now: float) -> None:
        """Time has passed."""
        if now - self._began_at < INTERVAL_S:
            return
        copied_bytes = self._copied_bytes
        self._sent_bytes += copied_bytes - self._copied_seen
        self._copied_seen = copied_bytes
        took_s = self._waited_s / self._answers if self._answers else None
        if self._quiet_intervals:
            self._quiet_intervals -= 1
            if self._quiet_intervals < QUIET_INTERVALS - 1:
                self._renew_base(took_s, 0.5)
        elif self._sent_bytes:
            self._adjust_rate(took_s, now - self._began_at)
        else:
            self._busy_intervals = 0
            self._renew_base(took_s, 0.1)
        self._began_at = now
        self._waited_s, self._answers, self._sent_bytes = 0.0, 0, 0

    def _renew_base(self, took_s: float | None, weight: float) -> None:
        if took_s is not None:
            base_s = took_s if self._base_s is None else self._base_s
            self._base_s = base_s + weight * (took_s - base_s)

    def _adjust_rate(self, took_s: float | None, seconds: float) -> None:
        if took_s is not None and self._base_s is None:
            self._base_s = took_s  # Nothing was written before; the next pause will tell.
        if took_s is not None and took_s > TOLERANCE * (self._base_s or 0.0) + SLACK_S:
            self.bytes_per_s = max(0.6 * self.bytes_per_s, RATE_MIN)
        elif self._sent_bytes > 0.5 * self.bytes_per_s * seconds:
            # Only what was made use of has been shown to do no harm.
            self.bytes_per_s = min(1.25 * self.bytes_per_s, RATE_MAX)
        self._busy_intervals += 1
        if self._busy_intervals * INTERVAL_S >= CYCLE_S:
            self._busy_intervals, self._quiet_intervals = 0, QUIET_INTERVALS
