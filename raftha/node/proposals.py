"""The leader's proposal queue: groups of all nodes, from their arrival until they are in the log.

Theory of operation. Groups wait here while a write is under way, and then go into the log together,
as one batch. A group is here once, however often it was sent, and not again while a copy of it is
in this leader's log and not yet applied; of copies from before this leadership the log knows, and
the state machine drops them. All of it ends with the leadership: whoever waits sends again to the
next.

What is proposed and not yet applied is bounded; beyond the bound the queue fills, and when that is
full, forwarded groups are refused.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import NamedTuple

from raftha.core import Raft

BATCH_BYTES_MAX = 4 << 20
BATCH_GROUPS_MAX = 4096
PROPOSAL_QUEUE_BYTES_MAX = 64 << 20
UNCOMMITTED_BYTES_MAX = 32 << 20
GROUP_BYTES = 256
"""What a group counts for beside its bytes: the records that are kept of it."""

GroupKey = tuple[int, int]
"""A group's session and number."""


class QueuedGroup(NamedTuple):
    """A group that waits: who sent it, how many commands it has, and its bytes."""

    sender: int
    count: int  # type: ignore[assignment]  # shadows tuple.count
    encoded: bytes


class ProposalQueue:
    """What a leader has still to put into its log, and what of it isn't applied yet."""

    def __init__(self, core: Raft) -> None:
        self.queued_bytes = 0
        self._core = core
        self._queued: OrderedDict[GroupKey, QueuedGroup] = OrderedDict()
        self._proposed: dict[GroupKey, int] = {}
        self._unapplied: deque[tuple[int, int]] = deque()
        self._unapplied_bytes = 0

    @property
    def can_propose(self) -> bool:
        """Whether the next batch may be formed: group commit is one batch a write."""
        return (
            self._core.can_propose
            and not self._core.is_writing
            and self._unapplied_bytes <= UNCOMMITTED_BYTES_MAX
        )

    def has_room(self, key: GroupKey, size: int) -> bool:
        """Whether a group may come in from another node."""
        room = PROPOSAL_QUEUE_BYTES_MAX - self.queued_bytes
        return GROUP_BYTES + size <= room or key in self._queued

    def knows(self, key: GroupKey) -> bool:
        """Whether a group waits here, or is in this leader's log."""
        return key in self._queued or key in self._proposed

    def put(self, key: GroupKey, group: QueuedGroup) -> None:
        """Queue a group for the next batch, unless a copy of it is queued, or is in this log."""
        if key in self._proposed:
            self._core.notify_commit(group.sender, self._proposed[key])
        elif key not in self._queued:
            self._queued[key] = group
            self.queued_bytes += GROUP_BYTES + len(group.encoded)

    def propose(self, time_us: int) -> None:
        """Put a batch of queued groups into the log, if there are any."""
        if not self._queued:
            return
        batch, size = self._take_batch()
        payload = b"".join([group.encoded for group in batch.values()])
        count = sum(group.count for group in batch.values())
        index = self._core.propose(payload, count, time_us)
        assert index is not None, "can_propose was checked"
        self._proposed.update(dict.fromkeys(batch, index))
        self._unapplied.append((index, size))
        self._unapplied_bytes += size
        for sender in {group.sender for group in batch.values()}:
            self._core.notify_commit(sender, index)

    def _take_batch(self) -> tuple[dict[GroupKey, QueuedGroup], int]:
        batch: dict[GroupKey, QueuedGroup] = {}
        size = 0
        while self._queued and len(batch) < BATCH_GROUPS_MAX:
            key, group = next(iter(self._queued.items()))
            added = GROUP_BYTES + len(group.encoded)
            if batch and size + added > BATCH_BYTES_MAX:
                break
            del self._queued[key]
            batch[key] = group
            size += added
        self.queued_bytes -= size
        return batch, size

    def on_group_applied(self, key: GroupKey) -> None:
        """The state has applied a group; should it come again, that is for the state to see."""
        self._proposed.pop(key, None)

    def on_applied(self, index: int) -> bool:
        """The state has applied the log up to here; whether that makes room for what waits."""
        was_full = self._unapplied_bytes > UNCOMMITTED_BYTES_MAX
        while self._unapplied and self._unapplied[0][0] <= index:
            self._unapplied_bytes -= self._unapplied.popleft()[1]
        return was_full and self._unapplied_bytes <= UNCOMMITTED_BYTES_MAX

    def clear(self) -> None:
        """Leadership was won or lost: what was proposed before may never be applied."""
        self._queued.clear()
        self._proposed.clear()
        self._unapplied.clear()
        self.queued_bytes = self._unapplied_bytes = 0
