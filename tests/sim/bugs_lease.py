"""Bugs to plant in leases: in what is promised, how long a lease counts, and what is read by it.

See `bugs.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from raftha.core import Raft
from raftha.core.leader import Leadership
from raftha.core.lease import MS, Leases, Promise
from raftha.node.lease_reads import LeaseReads
from raftha.storage.state.state import State
from tests.sim.planting import Bug, Patch


def promise_ends_with_the_connection() -> list[Patch]:
    """A voter helps another leader once its connection to the one that it promised breaks (L1)."""
    original = Raft.disconnected

    def disconnected(self: Raft, peer: int) -> None:
        if peer == self.leader:
            self._election.promise._until_ns = 0
        original(self, peer)

    return [(Raft, "disconnected", disconnected)]


def restarted_node_votes_at_once() -> list[Patch]:
    """A node that has just started votes as if it had promised nothing (L2)."""
    original = Promise.__init__

    def init(self: Promise, lease_ms: int, promised_ms: int, clock_ns: Callable[[], int]) -> None:
        original(self, lease_ms, promised_ms, clock_ns)
        self._until_ns = 0

    return [(Promise, "__init__", init)]


def lease_counted_from_the_reply() -> list[Patch]:
    """A lease runs from when the reply arrives, not from when the heartbeat was sent (L3)."""
    original = Leases.end_of

    def end_of(self: Leases, sent_ns: int, promised_ms: int) -> int:
        return original(self, self.clock_ns(), promised_ms)

    return [(Leases, "end_of", end_of)]


def drift_ignored() -> list[Patch]:
    """A lease is as long as the promise, though the voter's clock may be the faster one (L3)."""

    def end_of(self: Leases, sent_ns: int, promised_ms: int) -> int:
        return sent_ns + min(promised_ms, self.lease_ms) * MS

    return [(Leases, "end_of", end_of)]


def lease_kept_in_a_transfer() -> list[Patch]:
    """A leader that hands over goes on with its lease (L4)."""
    original = Leadership._renew_lease

    def renew_lease(self: Leadership) -> None:
        kept = self.transfer_target, self._has_sent_timeout_now
        self.transfer_target, self._has_sent_timeout_now = None, False
        original(self)
        self.transfer_target, self._has_sent_timeout_now = kept

    return [(Leadership, "_renew_lease", renew_lease)]


def lease_before_own_commit() -> list[Patch]:
    """A leader takes a lease before an entry of its own term is committed (L4)."""
    original = Leadership._renew_lease
    can_read = Leadership.can_read

    def renew_lease(self: Leadership) -> None:
        Leadership.can_read = property(lambda self: True)  # type: ignore[assignment, method-assign]
        try:
            original(self)
        finally:
            Leadership.can_read = can_read  # type: ignore[method-assign]

    return [(Leadership, "_renew_lease", renew_lease)]


def lease_read_before_applied() -> list[Patch]:
    """A lease read doesn't wait until all that is committed is applied."""

    def read_applied(self: LeaseReads, key: bytes) -> bytes | None:
        state: State = self._state
        return state.get(key)

    return [(LeaseReads, "read_applied", read_applied)]


BUGS: tuple[Bug, ...] = (
    promise_ends_with_the_connection,
    restarted_node_votes_at_once,
    lease_counted_from_the_reply,
    drift_ignored,
    lease_kept_in_a_transfer,
    lease_before_own_commit,
    lease_read_before_applied,
)
