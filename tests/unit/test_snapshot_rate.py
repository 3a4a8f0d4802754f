"""The rate at which snapshots are sent: measured delays of writes decide."""

from __future__ import annotations

from raftha.node.snapshot_rate import INTERVAL_S, RATE_FIRST, RATE_MIN, SnapshotRate

CHUNK = 128 * 1024
TICK_S = 0.01
MIB = 1 << 20
FOLLOWER_TAKES = 400 * MIB


class Leader:
    """Sends chunks as fast as it may; writes take as long as `latency` says for the rate."""

    def __init__(self, bytes_per_s_max: int = 0) -> None:
        self.now = 0.0
        self.rate = SnapshotRate(0.0, bytes_per_s_max)
        self.base_s: float | None = 0.005
        """The time of a write if no snapshot is sent; None without writes."""
        self.harmless = 20.0 * MIB
        """The rate above which writes slow down."""
        self.sends = False
        self.latencies: list[float] = []
        self.sent = 0

    def run(self, seconds: float) -> float:
        """Let time pass; return how many bytes a second were sent."""
        self.latencies.clear()
        before = self.sent
        for _ in range(round(seconds / TICK_S)):
            self.now += TICK_S
            sent = 0
            while (
                self.sends
                and sent < FOLLOWER_TAKES * TICK_S
                and self.rate.may_send(self.now, CHUNK)
            ):
                sent += CHUNK
            self.sent += sent
            if self.base_s is not None:
                excess = max(sent / TICK_S / self.harmless - 1, 0.0)
                self.latencies.append(self.base_s * (1 + 2 * excess))
                self.rate.record_batch(self.latencies[-1])
            self.rate.on_tick(self.now)
        return (self.sent - before) / seconds

    def mean(self) -> float:
        return sum(self.latencies) / len(self.latencies)


def test_the_rate_stays_where_writes_notice_little() -> None:
    leader = Leader()
    leader.run(2)
    leader.sends = True
    leader.run(10)
    assert 10 * MIB < leader.run(20) < 40 * MIB
    assert leader.mean() < 2 * 0.005


def test_without_writes_the_rate_rises_to_what_the_follower_takes() -> None:
    leader = Leader()
    leader.base_s = None
    leader.sends = True
    leader.run(10)
    assert leader.run(5) > 200 * MIB


def test_writes_slow_for_another_reason_slow_it_down_only_for_a_while() -> None:
    """The pauses show that writes take as long without it."""
    leader = Leader()
    leader.harmless = 1e12
    leader.run(2)
    leader.sends = True
    leader.run(5)
    leader.base_s = 0.05
    leader.run(3)
    slow = leader.rate.bytes_per_s
    leader.run(30)
    assert leader.rate.bytes_per_s > 4 * slow


def test_a_limit_is_kept_while_a_snapshot_is_made() -> None:
    """The copy on the leader's own disk takes as long as sending it would."""
    limited = SnapshotRate(0.0, MIB)
    assert limited.copied(CHUNK) == CHUNK / MIB
    generous = SnapshotRate(0.0, 2 * RATE_FIRST)
    assert generous.copied(CHUNK) == CHUNK / RATE_FIRST


def test_the_rate_never_falls_to_nothing() -> None:
    leader = Leader()
    leader.harmless = 1000.0
    leader.run(2)
    leader.sends = True
    leader.run(20)
    assert leader.run(20) > RATE_MIN / 2


def test_the_configured_rate_is_not_exceeded() -> None:
    leader = Leader(bytes_per_s_max=MIB)
    leader.sends = True
    leader.run(5)
    assert leader.run(20) < 1.1 * MIB


def test_the_first_interval_sends_less_than_its_share() -> None:
    rate = SnapshotRate(100.0, 0)
    sent = 0
    while rate.may_send(100.0, CHUNK):
        sent += CHUNK
    assert sent < RATE_FIRST * INTERVAL_S
