"""A node's counters and timings, for metrics: plain numbers of one process since its start.

Only the node's thread writes them, except `lease_reads` and, while the node is opened, `events`.
Readers on other threads see each number whole; related numbers may be a moment apart.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict

from raftha.recovery import DrillReport
from raftha.storage.state.lmdb_file import StoreSizes

SECONDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0,
)  # fmt: skip
"""The buckets' upper bounds, in seconds: from a fast disk's sync to a call's usual deadline."""


class Histogram:
    """Counts of values by bucket, and their sum; the last count is of values above all bounds."""

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
    """Counters: `reads` by consistency; `lease_reads`, answered on the callers' threads, by thread,
    so that each number has one writer; `errors` that callers got instead of a result, by class;
    `events` by kind; `peers_refused`, the connections refused or closed for a peer's fault.
    `state_bytes`: the size of the state's file, set by the runtime when metrics are read.
    `certificate_expires_at`, in seconds since 1970 UTC, is 0 without TLS between members.
    `repository_requests`: by destination, operation and result. `spool_bytes`: what this node keeps
    of changes since the last backup. `drill`: the last one that this node knows of.

    Histograms, in seconds: `log_write`, one write and sync of the log; `commit`, from the proposal
    of a batch until the leader has applied it; `checkpoint`.
    """

    def __init__(self) -> None:
        self.reads: Counter[str] = Counter()
        self.lease_reads: defaultdict[int, int] = defaultdict(int)
        self.errors: Counter[str] = Counter()
        self.events: Counter[str] = Counter()
        self.peers_refused = 0
        self.state_bytes = StoreSizes(0, 0)
        self.certificate_expires_at = 0.0
        self.repository_requests: Counter[tuple[str, str, str]] = Counter()
        self.spool_bytes = 0
        self.drill: DrillReport | None = None
        self.log_write = Histogram()
        self.commit = Histogram()
        self.checkpoint = Histogram()
