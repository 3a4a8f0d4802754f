"""When a node takes checkpoints and digests, and how far its log may be cut.

Theory of operation. A checkpoint freezes the write buffer between two entries. The host writes it
out (`Host.checkpoint`) while the next buffer fills. At most one checkpoint is under way. A
checkpoint is due by size, after so many bytes of log or buffered keys, or by age.

A digest is a checkpoint at a given command; the store is hashed once the checkpoint is durable.
That needs no second copy and stops no writes. While a digest waits for its command, no checkpoint
starts by age. A checkpoint that is due by size still starts, since the buffer must not grow without
limit; a digest that becomes due meanwhile starts after it, at a later command.

Entries applied while a checkpoint runs stay in memory for the next one. When they reach
`BEHIND_FACTOR` times the size that makes a checkpoint due, the disk is too slow for the load
(`is_behind`), and the node accepts no more log until the checkpoint is done (`node.py`).

The log may be cut up to the last entry that is both in an earlier checkpoint and on every member's
disk. If that leaves more than `log_retention_bytes`, the cut goes beyond what lagging members have:
they get a snapshot of the state (`snapshots.py`), and the log after a snapshot is kept until the
snapshot has arrived.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from raftha.config import HaConfig
from raftha.core import RaftLog
from raftha.entry import Entry, LogPosition
from raftha.node.operations import DigestOperation
from raftha.storage.log.wal import Wal
from raftha.storage.state.state import Frozen, State
from raftha.types import Digest

BUFFER_KEYS_MAX = 1 << 18
"""The number of buffered keys that makes a checkpoint due. With small keys and values, a buffer of
`max_wal_size` would take long to sort and to search."""
BEHIND_FACTOR = 2


class CheckpointWriter(Protocol):
    """Writes checkpoints and calls `Node.on_checkpoint` when one is durable."""

    def checkpoint(self, frozen: Frozen, cut: LogCut, *, with_digest: bool) -> None:
        """Write `frozen` to the store and cut the log."""
        ...


class LogCut(NamedTuple):
    """How much of the log may be cut: up to `index` in any case, and up to `limit_index` as far as
    more than `bytes_max` would stay.
    """

    index: int  # type: ignore[assignment]  # shadows tuple.index, which is never called
    limit_index: int
    bytes_max: int

    def apply(self, wal: Wal) -> None:
        """Cut the log."""
        wal.compact(max(self.index, min(self.limit_index, wal.index_within(self.bytes_max))))


class Checkpoints:
    """The checkpoints and digests of one node."""

    def __init__(
        self,
        config: HaConfig,
        state: State,
        log: RaftLog,
        writer: CheckpointWriter,
        deliver: Callable[[DigestOperation, Any], None],
        now: float,
        kept_index: Callable[[], int | None],
    ) -> None:
        """`kept_index` returns the index after which snapshots need the log; None if they don't."""
        self.last = state.applied
        """The position of the last durable checkpoint."""
        self.began_at = now
        self._config = config
        self._state = state
        self._log = log
        self._writer = writer
        self._deliver = deliver
        self._kept_index = kept_index
        self._log_bytes = 0
        self._is_running = False
        self._waiting: list[DigestOperation] = []
        self._running: list[DigestOperation] = []

    @property
    def is_behind(self) -> bool:
        """True if no more log should be accepted until the checkpoint under way is done."""
        limit = BEHIND_FACTOR * self._config.max_wal_size
        return self._is_running and max(self._log_bytes, self._state.buffer_bytes) >= limit

    def add(self, operation: DigestOperation) -> None:
        """Queue a digest; it may start at the next entry or tick."""
        self._waiting.append(operation)

    def on_applied(self, entry: Entry, now: float) -> None:
        """The state has applied another entry."""
        self._log_bytes += len(entry.data)
        if self._waiting:
            self._digest_if_due(now)

    def on_tick(self, now: float) -> None:
        """Start the digest or checkpoint that is due."""
        if self._waiting:
            self._digest_if_due(now)
        is_large = (
            max(self._log_bytes, self._state.buffer_bytes) >= self._config.max_wal_size
            or self._state.buffer_keys >= BUFFER_KEYS_MAX
        )
        is_old = now - self.began_at >= self._config.checkpoint_interval_sec
        if (
            (is_large or (is_old and not self._waiting))
            and not self._is_running
            and self._state.applied != self.last
        ):
            self._begin(now)

    def done(self, position: LogPosition, keys: int, digest: str, first_index: int) -> None:
        """The checkpoint at `position` is durable; the log on disk now begins at `first_index`."""
        self._state.checkpoint_done()
        self._is_running = False
        self.last = position
        self._log.first_index = first_index
        running, self._running = self._running, []
        for operation in running:
            if operation.waiter is not None:
                result = Digest(
                    sequence=position.last_sequence, index=position.index, hex=digest, keys=keys
                )
                self._deliver(operation, result)

    def pending(self) -> list[DigestOperation]:
        """Return the digests without a result."""
        return [o for o in (*self._running, *self._waiting) if o.waiter is not None]

    def forget_expired(self) -> None:
        """Drop the digests that have got an error."""
        self._waiting = [operation for operation in self._waiting if operation.waiter is not None]

    def _digest_if_due(self, now: float) -> None:
        if self._is_running:
            return
        sequence = self._state.applied.last_sequence
        self._running = [operation for operation in self._waiting if operation.sequence <= sequence]
        self._waiting = [operation for operation in self._waiting if operation.sequence > sequence]
        if self._running:
            self._begin(now)

    def _begin(self, now: float) -> None:
        self._is_running = True
        self.began_at = now
        self._log_bytes = 0
        kept_index = self._kept_index()
        limit = self.last.index if kept_index is None else min(self.last.index, kept_index)
        cut = LogCut(min(limit, self._log.compact_index), limit, self._config.log_retention_bytes)
        frozen = self._state.freeze()
        self._writer.checkpoint(frozen, cut, with_digest=bool(self._running))
