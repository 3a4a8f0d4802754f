"""How fast snapshots are made and sent next to callers' writes: as fast as the writes allow.

Theory of operation. A snapshot takes disk, network and processor time from concurrent writes. How
much there is of these is unknown, but their effect is visible: the leader measures each batch of
writes from its proposal until it is applied. The time that takes while no snapshot is sent is the
base. In each `INTERVAL_S` in which a snapshot is sent, the rate falls if the batches took longer
than `TOLERANCE` times the base, and rises otherwise. Every `CYCLE_S`, sending pauses for a few
intervals. The later ones renew the base, since the load may have changed. Making a snapshot, a copy
on the leader's own disk, goes at the same rate (`copied`).

If there are no writes, or snapshots don't slow them down, the rate rises to what the followers
accept. It never falls below `RATE_MIN`, so a snapshot arrives under any load. The configured limit
applies on top of all this, to making and sending alike.
"""

from __future__ import annotations

INTERVAL_S = 0.2
CYCLE_S = 4.0
QUIET_INTERVALS = 3
"""Length of a pause; chunks in transit still affect its first interval."""
TOLERANCE, SLACK_S = 1.25, 0.0003
RATE_MIN, RATE_FIRST, RATE_MAX = 2 << 20, 8 << 20, 1 << 30
BURST_S = 0.05
"""The time behind schedule that may be made up for."""


class SnapshotRate:
    """The rate of one leader's snapshots, over all receivers."""

    def __init__(self, now: float, bytes_per_s_max: int) -> None:
        """`bytes_per_s_max` limits the rate; 0 for no such limit."""
        self._limit = bytes_per_s_max or RATE_MAX
        self.bytes_per_s = float(RATE_FIRST)
        """The rate that writes are expected to tolerate, without the configured limit."""
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
        """A batch of writes was applied `took_s` after it was proposed."""
        self._waited_s += took_s
        self._answers += 1

    def may_send(self, now: float, size: int) -> bool:
        """True if `size` bytes may be sent now; they then count as sent."""
        if self._quiet_intervals or now < self._free_at:
            return False
        self._free_at = max(self._free_at, now - BURST_S) + size / min(
            self.bytes_per_s, self._limit
        )
        self._sent_bytes += size
        return True

    def copied(self, size: int) -> float:
        """Count `size` bytes added to a snapshot being made; return the seconds to wait after them.

        Only the thread that makes snapshots calls this; all other calls come from the node's.
        """
        self._copied_bytes += size
        return size / min(self.bytes_per_s, self._limit) + INTERVAL_S * self._quiet_intervals

    def on_tick(self, now: float) -> None:
        """A tick has passed."""
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
            self._base_s = took_s  # No writes before this; the next pause renews the base.
        if took_s is not None and took_s > TOLERANCE * (self._base_s or 0.0) + SLACK_S:
            self.bytes_per_s = max(0.6 * self.bytes_per_s, RATE_MIN)
        elif self._sent_bytes > 0.5 * self.bytes_per_s * seconds:
            # Raise only a rate that was used: an unused one proves nothing.
            self.bytes_per_s = min(1.25 * self.bytes_per_s, RATE_MAX)
        self._busy_intervals += 1
        if self._busy_intervals * INTERVAL_S >= CYCLE_S:
            self._busy_intervals, self._quiet_intervals = 0, QUIET_INTERVALS
