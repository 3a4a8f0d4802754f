"""Leases: how long a leader can be sure, without asking, that no other node leads.

Theory of operation. A follower that handles a heartbeat *promises*: for the promised time, by its
own clock, it votes only for this leader and doesn't ask for votes itself. The promise holds even if
the connection to the leader breaks, and in any later term. The reply carries the promised time, and
echoes when the heartbeat was *sent*, by the leader's clock. With promises from a majority, a leader
holds a lease until those promises may end. It counts from the sending, which precedes the promise,
and shortens the time by how much faster the other clocks may run. The proof, and what breaks it,
are in docs/internals/reads-and-leases.md.

L1  A follower gives a promise before the reply with it leaves, and keeps it by its own clock from
    the moment it handled the heartbeat.
L2  A node that has just started doesn't know what it has promised. From its start on it keeps the
    longest promise that it may ever have given. A follower never promises more than that.
L3  A lease counts from the sending of the heartbeats, and is never longer than was promised.
L4  A leader has no lease before an entry of its own term is committed, and none while it hands
    over. Once it may have sent a `TimeoutNow`, it has none for the rest of its term: the election
    that this starts ignores promises, and may come late.
L5  A lease that has ended early, for any reason, never becomes valid again: a new one replaces it.

Other threads than the core's read a lease (`raftha/node/lease_reads.py`). It is one number, which
only the core's thread sets.

Times are nanoseconds on a clock that keeps running while the machine sleeps. The caller provides
the clock; without leases the core never reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

MS = 1_000_000
FOR_EVER = 1 << 62
"""The end of a promise without a time limit: a leader's own ends with its leadership."""


class Lease:
    """A time in which this node leads and no other does; it can be extended."""

    __slots__ = ("until_ns",)

    def __init__(self, until_ns: int) -> None:
        self.until_ns = until_ns


class Leases:
    """The lease of this node, while it leads."""

    def __init__(self, lease_ms: int, drift_max: float, clock_ns: Callable[[], int]) -> None:
        """`lease_ms`: the promise that followers are asked for, 0 for none."""
        self.current: Lease | None = None
        self.lease_ms = lease_ms
        self.clock_ns = clock_ns
        self._drift_max = drift_max

    def end_of(self, sent_ns: int, promised_ms: int) -> int:
        """Until when a promise given for a heartbeat sent at `sent_ns` surely holds (L3)."""
        promised_ns = min(promised_ms, self.lease_ms) * MS
        return sent_ns + int(promised_ns * (1 - self._drift_max))

    def renew(self, ends: Iterable[int], quorum: int) -> None:
        """Hold a lease until the promises of a quorum end; `ends` has all voters' promises."""
        voters = sorted(ends)
        assert 0 < quorum <= len(voters), "a quorum is some of the voters"
        until_ns = voters[-quorum]
        if self.current is None:
            self.current = Lease(until_ns)
        else:
            self.current.until_ns = until_ns

    def withdraw(self) -> None:
        """End the lease now (L5)."""
        if self.current is not None:
            self.current.until_ns = 0
            self.current = None

    def holds(self) -> bool:
        """Whether the lease rules out another leader now."""
        return self.current is not None and self.clock_ns() < self.current.until_ns


class Promise:
    """What this node has promised to a leader, or may have promised before its start."""

    def __init__(self, lease_ms: int, promised_ms: int, clock_ns: Callable[[], int]) -> None:
        """`lease_ms`: the longest promise from now on; `promised_ms`: the longest one ever."""
        assert lease_ms <= promised_ms, "a node records the longest promise before it gives one"
        self._most_ms = lease_ms
        self._clock_ns = clock_ns
        self._leader = 0
        self._until_ns = clock_ns() + promised_ms * MS if promised_ms else 0

    def give(self, leader: int, asked_ms: int) -> int:
        """Promise to `leader`, from now on, what it asks for; return the milliseconds promised.

        A promise to an earlier leader is void: if that still had a lease, this one couldn't lead.
        """
        promised_ms = min(asked_ms, self._most_ms)
        if promised_ms:
            self._leader, self._until_ns = leader, self._clock_ns() + promised_ms * MS
        return promised_ms

    def forbids(self, candidate: int) -> bool:
        """Whether a vote for `candidate`, or its campaign, would break the promise."""
        return (
            self._until_ns > 0 and candidate != self._leader and self._clock_ns() < self._until_ns
        )
