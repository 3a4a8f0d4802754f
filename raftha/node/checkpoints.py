"""When a node takes checkpoints and digests, and how far its log may be cut.

Theory of operation. A checkpoint freezes the write buffer between two entries. The host writes it
out (`Host.checkpoint`) while the next buffer fills. At most one checkpoint is under way. A
checkpoint is due by size, after so many bytes of log or buffered keys, or by age.

A digest is a checkpoint at a given command; the store is hashed once the checkpoint is durable
(`Node.on_digest`), while later checkpoints are written. That needs no second copy and stops no
writes. While a digest waits for its command, no checkpoint starts by age. A checkpoint that is due
by size still starts, since the buffer must not grow without limit; a digest that becomes due
meanwhile starts after it, at a later command. One digest is made at a time.

A comparison of replicas (`watch/divergence.py`) needs a digest as of exactly one entry. If a
checkpoint or a digest is under way when that entry is applied, there is none.

Entries applied while a checkpoint runs stay in memory for the next one. When they reach
`BEHIND_FACTOR` times the size that makes a checkpoint due, the disk is too slow for the load
(`is_behind`), and the node accepts no more log until the checkpoint is done (`node.py`).

The log may be cut up to the last entry that is both in an earlier checkpoint and on every member's
disk. If that leaves more than `log_retention_bytes`, the cut goes beyond what lagging members have:
they get a snapshot of the state (`snapshots.py`), and the log after a snapshot is kept until the
snapshot has arrived. The archive of the log (`backup/archiving.py`) counts as a member that lags,
with a limit of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from raftha.config import HaConfig
from raftha.core import RaftLog
from raftha.entry import Entry, LogPosition
from raftha.events import CheckpointCompleted
from raftha.node.operations import DigestOperation
from raftha.storage.log.wal import Wal
from raftha.storage.state.state import Frozen, State, StateDigest
from raftha.types import Digest

BUFFER_KEYS_MAX = 1 << 18
"""The number of buffered keys that makes a checkpoint due. With small keys and values, a buffer of
`max_wal_size` would take long to sort and to search."""
BEHIND_FACTOR = 2


class CheckpointWriter(Protocol):
    """Writes checkpoints."""

    def checkpoint(self, frozen: Frozen, cut: LogCut, *, with_digest: bool) -> None:
        """Write `frozen` to the store, cut the log, call `Node.on_checkpoint`.

        `with_digest`: then hash the store as of this checkpoint, and call `Node.on_digest`.
        """
        ...


class LogCut(NamedTuple):
    """How much of the log may be cut: never more than up to `limit_index`.

    Members have it up to `index`, the archive up to `archived_index`. What is behind that is kept
    for each of them, but no more than `bytes_max` and `archive_bytes_max`.
    """

    index: int  # type: ignore[assignment]  # shadows tuple.index, which is never called
    limit_index: int
    bytes_max: int
    archived_index: int
    archive_bytes_max: int

    def apply(self, wal: Wal) -> None:
        """Cut the log."""
        for_members = max(self.index, wal.index_within(self.bytes_max))
        for_archive = max(self.archived_index, wal.index_within(self.archive_bytes_max))
        wal.compact(min(self.limit_index, for_members, for_archive))

    def at_once(self) -> LogCut:
        """The cut on a full disk, which keeps nothing for members that lag, or for the archive."""
        return self._replace(bytes_max=0, archive_bytes_max=0)


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
        self.applied_bytes = 0
        """The log that was applied in this life."""
        self._log_bytes_before = 0
        """As `applied_bytes`, when the last checkpoint began."""
        self._is_running = False
        self._waiting: list[DigestOperation] = []
        self._running: list[DigestOperation] = []
        self._wanted_index = 0
        """A checkpoint at or after this entry is wanted soon."""
        self._compared_index = 0
        """The entry at which a comparison wants a digest, once it is applied."""
        self._is_digesting = False
        self._digested = state.applied
        self._lineage_index = 0
        """The entry that began another lineage in this life; 0 for none."""
        self._is_hurried = False
        self.archived_index: Callable[[], int | None] = lambda: None
        """Returns the index after which the archive needs the log; None if it needs none."""

    @property
    def snapshot_index(self) -> int | None:
        """The last checkpoint's entry; None if it is from before this lineage began.

        A node that got a snapshot of that would belong to the old lineage, and would be refused.
        """
        return self.last.index if self.last.index >= self._lineage_index else None

    @property
    def _log_bytes(self) -> int:
        """The log that was applied since the last checkpoint began."""
        return self.applied_bytes - self._log_bytes_before

    @property
    def is_behind(self) -> bool:
        """True if no more log should be accepted until the checkpoint under way is done."""
        limit = BEHIND_FACTOR * self._config.max_wal_size
        return self._is_running and max(self._log_bytes, self._state.buffer_bytes) >= limit

    def add(self, operation: DigestOperation) -> None:
        """Queue a digest; it may start at the next entry or tick."""
        self._waiting.append(operation)

    def want(self, index: int) -> None:
        """Have a checkpoint at or after this entry soon."""
        self._wanted_index = index

    def on_lineage(self, index: int) -> None:
        """Entry `index` began another lineage: have a checkpoint soon, for snapshots."""
        self._lineage_index = index
        self._is_hurried = True

    def compare_at(self, index: int) -> None:
        """Take a digest for a comparison once entry `index` is applied, if that is possible then.

        It takes the place of an earlier request.
        """
        self._compared_index = index

    def is_coming(self, index: int) -> bool:
        """Whether the digest that a comparison wants at `index` is still to be expected."""
        if self._is_digesting and self._digested.index == index:
            return True
        return index == self._compared_index > self._state.applied.index

    def on_applied(self, entry: Entry, now: float) -> None:
        """The state has applied another entry."""
        self.applied_bytes += len(entry.data)
        if self._waiting or entry.index == self._compared_index:
            self._digest_if_due(now)

    def on_tick(self, now: float) -> None:
        """Start the digest or checkpoint that is due."""
        if self._waiting:
            self._digest_if_due(now)
        is_large = (
            max(self._log_bytes, self._state.buffer_bytes) >= self._config.max_wal_size
            or self._state.buffer_keys >= BUFFER_KEYS_MAX
        )
        is_old = now - self.began_at >= self._config.checkpoint_interval_sec or self._is_hurried
        is_wanted = self.last.index < self._wanted_index <= self._state.applied.index
        if (
            (is_large or is_wanted or (is_old and not self._waiting))
            and not self._is_running
            and self._state.applied != self.last
        ):
            self._begin(now)

    def done(
        self, position: LogPosition, keys: int, first_index: int, now: float
    ) -> CheckpointCompleted:
        """The checkpoint at `position` is durable; the log on disk now begins at `first_index`."""
        self._state.checkpoint_done()
        self._is_running = False
        self.last = position
        self._log.first_index = first_index
        return CheckpointCompleted(
            reporter=self._config.node_id,
            index=position.index,
            sequence=position.last_sequence,
            keys=keys,
            duration_ms=1000 * (now - self.began_at),
        )

    def digested(self, digest: StateDigest | None) -> None:
        """The digest under way is made; None if it had to be given up, then it starts over."""
        position = self._digested
        self._is_digesting = False
        running, self._running = self._running, []
        if digest is None:
            self._waiting = running + self._waiting
            return
        for operation in running:
            if operation.waiter is not None:
                result = Digest(
                    sequence=position.last_sequence,
                    index=position.index,
                    hex=digest.hex,
                    keys=digest.keys,
                )
                self._deliver(operation, result)

    def pending(self) -> list[DigestOperation]:
        """Return the digests without a result."""
        return [o for o in (*self._running, *self._waiting) if o.waiter is not None]

    def forget_expired(self) -> None:
        """Drop the digests that have got an error."""
        self._waiting = [operation for operation in self._waiting if operation.waiter is not None]

    def _digest_if_due(self, now: float) -> None:
        if self._is_running or self._is_digesting:
            return
        applied = self._state.applied
        running = [o for o in self._waiting if o.sequence <= applied.last_sequence]
        if running or applied.index == self._compared_index:
            self._waiting = [o for o in self._waiting if o.sequence > applied.last_sequence]
            self._running = running
            self._is_digesting, self._digested = True, applied
            self._begin(now, with_digest=True)

    def _begin(self, now: float, *, with_digest: bool = False) -> None:
        self._is_running = True
        self._is_hurried = False
        self.began_at = now
        self._log_bytes_before = self.applied_bytes
        kept_index = self._kept_index()
        limit = self.last.index if kept_index is None else min(self.last.index, kept_index)
        archived, config = self.archived_index(), self._config
        cut = LogCut(
            min(limit, self._log.compact_index),
            limit,
            config.log_retention_bytes,
            limit if archived is None else archived,
            config.pitr.archive_backlog_bytes or config.log_retention_bytes,
        )
        self._writer.checkpoint(self._state.freeze(), cut, with_digest=with_digest)
