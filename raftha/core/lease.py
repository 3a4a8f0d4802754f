"""Leases: for how long a leader knows, without asking, that nobody else leads.

Theory of operation. A follower that handles a heartbeat *promises*: for so long, by its own clock,
it gives no vote to anybody but this leader, nor asks for votes itself; not if the connection to the
leader breaks, and not in any later term. Its reply says what it has promised, and echoes when the
heartbeat was *sent*, by the leader's clock. A leader whom a majority has promised holds a lease
until the majority's promises may end: counted from the sending, which comes before the promise, and
shortened by how much faster than its own the others' clocks may run. The proof, and what breaks it,
are in docs/internals/reads-and-leases.md.

L1  A promise is given before the reply that says so leaves, and kept by this node's own clock from
    the moment at which the heartbeat was handled.
L2  A node that has just started doesn't know what it has promised: it keeps, from its start on, the
    longest promise that it may ever have given. A follower promises no more than that, whatever it
    is asked for.
L3  A lease is counted from when the heartbeats were sent, and never longer than was promised.
L4  A leader has none before an entry of its own term is committed, none while it hands over, and
    none any more in this term once it may have told somebody to campaign: such an election needs no
    regard for promises, and may come late.
L5  A lease that has ended early, for whatever reason, is not valid again: another takes its place.

A lease is read by other threads than the core's (`raftha/node/lease_reads.py`): it is one number,
which only the core's thread sets.

Times are nanoseconds on a clock that goes on while the machine sleeps; it comes from the outside.
Without leases it is never asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

MS = 1_000_000
FOR_EVER = 1 << 62
"""The end of what isn't bounded by time: a leader's own promise ends with its leadership."""


class Lease:
    """A stretch of time in which this node leads, and nobody else; it may be made longer."""

    __slots__ = ("until_ns",)

    def __init__(self, until_ns: int) -> None:
        self.until_ns = until_ns


class Leases:
    """The lease of this node, while it leads."""

    def __init__(self, lease_ms: int, drift_max: float, clock_ns: Callable[[], int]) -> None:
        """`lease_ms`: what followers are asked to promise, 0 for none."""
        self.current: Lease | None = None
        self.lease_ms = lease_ms
        self.clock_ns = clock_ns
        self._drift_max = drift_max

    def end_of(self, sent_ns: int, promised_ms: int) -> int:
        """Until when a promise surely holds that was given upon what was sent then (L3)."""
        promised_ns = min(promised_ms, self.lease_ms) * MS
        return sent_ns + int(promised_ns * (1 - self._drift_max))

    def renew(self, ends: Iterable[int], quorum: int) -> None:
        """Hold a lease for as long as a quorum's promises do; `ends` are all voters'."""
        voters = sorted(ends)
        assert 0 < quorum <= len(voters), "a quorum is some of the voters"
        until_ns = voters[-quorum]
        if self.current is None:
            self.current = Lease(until_ns)
        else:
            self.current.until_ns = until_ns

    def withdraw(self) -> None:
        """From this moment on there is no lease (L5)."""
        if self.current is not None:
            self.current.until_ns = 0
            self.current = None

    def holds(self) -> bool:
        """Whether nobody else leads now."""
        return self.current is not None and self.clock_ns() < self.current.until_ns


class Promise:
    """What this node has promised to a leader, or may have before its start."""

    def __init__(self, lease_ms: int, promised_ms: int, clock_ns: Callable[[], int]) -> None:
        """`lease_ms`: the most that it promises. `promised_ms`: the most that it ever has."""
        assert lease_ms <= promised_ms, "what may be promised is noted before"
        self._most_ms = lease_ms
        self._clock_ns = clock_ns
        self._leader = 0
        self._until_ns = clock_ns() + promised_ms * MS if promised_ms else 0

    def give(self, leader: int, asked_ms: int) -> int:
        """Promise to `leader`, from now on, what it asks for; for how long, in milliseconds.

        The promise to an earlier one is void: had that still a lease, this one couldn't lead.
        """
        promised_ms = min(asked_ms, self._most_ms)
        if promised_ms:
            self._leader, self._until_ns = leader, self._clock_ns() + promised_ms * MS
        return promised_ms

    def forbids(self, candidate: int) -> bool:
        """Whether to help `candidate` into leadership would break it."""
        return (
            self._until_ns > 0 and candidate != self._leader and self._clock_ns() < self._until_ns
        )
