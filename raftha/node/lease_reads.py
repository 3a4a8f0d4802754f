"""Reads straight from the calling thread, on a leader that holds a lease.

Theory of operation. `LeaseReads.get` is called from any thread, and touches the node without
asking its thread:

    1. take the lease, if there is one
    2. see that all that is committed here is applied here
    3. read the value
    4. see that the very lease of step 1 still holds

If all of this is so, the value is that of a linearizable read, wherever the thread was paused. The
commit index of step 2 covers every write that was complete when the read began: the lease says that
no other leader was elected until step 4, and that this one's commit index is of its own term
(L4). A follower may have answered its callers before this leader has applied what it committed;
hence step 2. A lease of another time than step 1's doesn't help in step 4: between the two others
may have led.

If any of it isn't so the caller gets `MISSED`, and asks as if there were no leases.

docs/internals/reads-and-leases.md says why the state may be read from here (`State.get`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from threading import get_ident

from raftha.core import Lease, Raft
from raftha.errors import StorageError
from raftha.storage.state.state import State


class Missed:
    """Its only instance stands for «there is no lease, or not everything is applied»."""


MISSED = Missed()


class LeaseReads:
    """Those of one node. `counts`: how many were answered, by the thread that asked."""

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
        """The value of `key`, which must be a proper one; or `MISSED`."""
        lease = self._leases.current
        if lease is not None:
            value = self.read_applied(key)
            if value is not MISSED and self.holds(lease):
                # No other thread counts under this key, so no count is lost.
                self._counts[get_ident()] += 1
                return value
        return MISSED

    def take(self) -> Lease | None:
        """Step 1, for who goes through them one by one."""
        return self._leases.current

    def read_applied(self, key: bytes) -> bytes | Missed | None:
        """Steps 2 and 3: the value, if all that is committed is applied."""
        state = self._state
        if state.applied.index < self._log.commit:
            return MISSED
        try:
            return state.get(key)
        except StorageError:
            # The node is being closed, or has lost its state: its own thread will say so.
            return MISSED

    def holds(self, lease: Lease) -> bool:
        """Step 4: whether nobody else has led since `lease` was taken."""
        return self._clock_ns() < lease.until_ns
