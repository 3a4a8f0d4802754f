"""Reads on the calling thread itself, on a leader that holds a lease.

Theory of operation. `LeaseReads.get` may be called from any thread. It reads from the node without
involving the node's thread:

    1. take the lease, if there is one
    2. check that everything committed here is applied here
    3. read the value
    4. check that the lease of step 1 still holds

If all steps succeed, the value is that of a linearizable read, wherever the thread was paused. The
commit index of step 2 covers every write that was complete when the read began: the lease
guarantees that no other leader was elected before step 4, and that this leader's commit index is of
its own term (L4). Step 2 is needed because a follower may answer its callers before this leader has
applied the entry. Step 4 must check the lease of step 1: between two leases, another node may have
led.

If any step fails, the caller gets `MISSED`, and reads as if there were no leases.

docs/internals/reads-and-leases.md explains why any thread may read the state (`State.get`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from threading import get_ident

from raftha.core import Lease, Raft
from raftha.errors import StorageError
from raftha.storage.state.state import State


class Missed:
    """The type of `MISSED`: there is no lease, or not everything is applied."""


MISSED = Missed()


class LeaseReads:
    """The lease reads of one node. `counts` counts the answered ones by calling thread."""

    def __init__(
        self,
        core: Raft,
        state: State,
        clock_ns: Callable[[], int],
        counts: defaultdict[int, int],
    ) -> None:
        self._counts = counts
        self._leases = core.leases
        self._log = core.log
        self._state = state
        self._clock_ns = clock_ns

    def get(self, key: bytes) -> bytes | Missed | None:
        """Return the value of `key`, which must be valid; or `MISSED`."""
        # Steps 1 to 4 in one piece: their calls would take a tenth of the time of a read.
        lease, state = self._leases.current, self._state
        if lease is None or state.applied.index < self._log.commit:
            return MISSED
        try:
            value = state.get(key)
        except StorageError:
            return MISSED  # As in `read_applied`.
        if self._clock_ns() >= lease.until_ns:
            return MISSED
        # No other thread writes to this count, so none is lost.
        self._counts[get_ident()] += 1
        return value

    def take(self) -> Lease | None:
        """Step 1, for callers that take the steps one by one."""
        return self._leases.current

    def read_applied(self, key: bytes) -> bytes | Missed | None:
        """Steps 2 and 3: return the value, if everything committed is applied."""
        state = self._state
        if state.applied.index < self._log.commit:
            return MISSED
        try:
            return state.get(key)
        except StorageError:
            # The node is closing or its state is damaged: the node's own thread reports that.
            return MISSED

    def holds(self, lease: Lease) -> bool:
        """Step 4: return True if no other node can have led since `lease` was taken."""
        return self._clock_ns() < lease.until_ns
