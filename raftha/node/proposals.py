"""The leader's proposal queue: groups of all nodes, from their arrival until they are in the log.

Theory of operation. Groups wait here while a disk write is under way. Then they go into the log
together, as one batch. A group is queued once, however often it is sent, and not at all while this
leader's log holds a copy that is not yet applied. Copies from before this leadership may also be in
the log; the state machine drops the repetitions. The queue ends with the leadership: each node then
sends its groups to the next leader.

The bytes proposed and not yet applied are limited. At the limit the queue fills up, and a full
queue refuses forwarded groups.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import NamedTuple

from raftha.core import Raft

BATCH_BYTES_MAX = 4 << 20
BATCH_GROUPS_MAX = 4096
PROPOSAL_QUEUE_BYTES_MAX = 64 << 20
UNCOMMITTED_BYTES_MAX = 32 << 20
GROUP_BYTES = 256
"""What a group counts for in addition to its bytes: the records kept about it."""

GroupKey = tuple[int, int]
"""A group's session and number."""


class QueuedGroup(NamedTuple):
    """A queued group: the node that sent it, its number of commands, and its bytes."""

    sender: int
    count: int  # type: ignore[assignment]  # shadows tuple.count
    encoded: bytes


class ProposalQueue:
    """The groups that a leader has yet to propose, and those proposed and not yet applied."""

    def __init__(self, core: Raft) -> None:
        self.queued_bytes = 0
        self.is_held = False
        """Whether no batch is formed for now."""
        self._core = core
        self._queued: OrderedDict[GroupKey, QueuedGroup] = OrderedDict()
        self._proposed: dict[GroupKey, int] = {}
        self._unapplied: deque[tuple[int, int]] = deque()
        self._unapplied_bytes = 0

    @property
    def can_propose(self) -> bool:
        """True if the next batch may be formed: group commit is one batch per disk write."""
        return (
            self._core.can_propose
            and not self._core.is_writing
            and not self.is_held
            and self._unapplied_bytes <= UNCOMMITTED_BYTES_MAX
        )

    @property
    def has_queued(self) -> bool:
        """True if a group waits for the next batch."""
        return bool(self._queued)

    def has_room(self, key: GroupKey, size: int) -> bool:
        """True if the queue has room for a group from another node."""
        room = PROPOSAL_QUEUE_BYTES_MAX - self.queued_bytes
        return GROUP_BYTES + size <= room or key in self._queued

    def knows(self, key: GroupKey) -> bool:
        """True if a group is queued, or proposed in this leader's log and not yet applied."""
        return key in self._queued or key in self._proposed

    def put(self, key: GroupKey, group: QueuedGroup) -> None:
        """Queue a group for the next batch, unless a copy of it is queued or proposed."""
        if key in self._proposed:
            self._core.notify_commit(group.sender, self._proposed[key])
        elif key not in self._queued:
            self._queued[key] = group
            self.queued_bytes += GROUP_BYTES + len(group.encoded)

    def propose(self, stamp: Callable[[int], int]) -> None:
        """Propose a batch of the queued groups, if there are any.

        `stamp` returns the time of the batch, from that of the entry before it.
        """
        if not self._queued:
            return
        batch, size = self._take_batch()
        payload = b"".join([group.encoded for group in batch.values()])
        count = sum(group.count for group in batch.values())
        index = self._core.propose(payload, count, stamp(self._core.log.last.time_us))
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
        """The state has applied a group; from now on the state detects its repetitions."""
        self._proposed.pop(key, None)

    def on_applied(self, index: int) -> bool:
        """The state has applied the log up to `index`; True if that allows the next batch."""
        was_full = self._unapplied_bytes > UNCOMMITTED_BYTES_MAX
        while self._unapplied and self._unapplied[0][0] <= index:
            self._unapplied_bytes -= self._unapplied.popleft()[1]
        return was_full and self._unapplied_bytes <= UNCOMMITTED_BYTES_MAX

    def clear(self) -> None:
        """Leadership was won or lost: earlier proposals may never be applied."""
        self._queued.clear()
        self._proposed.clear()
        self._unapplied.clear()
        self.queued_bytes = self._unapplied_bytes = 0
