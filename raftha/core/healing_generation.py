"""Healing generations: this node's own, and the latest known of each other node.

Theory of operation. A node that has lost its log begins with the log position of its state and
without a vote. It doesn't know what else it has acknowledged, or which candidates it has voted for.
Until it holds everything that it may have acknowledged it *heals*: it takes entries like any
follower, but gives no vote, never campaigns, and its replies count for no quorum. The quorum stays
a majority of all voters.

A node's *healing generation* is 0 if it has never lost its log, odd while it heals, and even once
it has healed. The generation is durable, never goes back, and is part of each of a follower's
replies. So a node recognises replies from before a loss and ignores them: they describe a disk that
is gone.

A node that lost its whole data directory comes back with another *incarnation* and begins with
generation 1, so what was known of the earlier directory's generations is forgotten (`forget`).

`leader.py` decides when healing is over. docs/internals/healing.md has the proof.
"""

from __future__ import annotations

from raftha.core.messages import AppendReply, Healed, HeartbeatReply, Message, VoteReply


class HealingGeneration:
    """The healing generation of one node, and the latest it knows of each other node."""

    def __init__(self, current: int) -> None:
        """Start with this node's own generation, which is durable."""
        self.current = current
        self._latest: dict[int, int] = {}
        self._is_healed = False
        self._is_ending = False

    @property
    def is_healing(self) -> bool:
        """Whether this node has lost its log and may lack entries that it has acknowledged."""
        return self.current % 2 == 1

    def is_outdated(self, message: Message) -> bool:
        """Whether the sender replied this before it lost its log, or before it healed."""
        if not isinstance(message, VoteReply | AppendReply | HeartbeatReply):
            return False
        latest = self._latest.get(message.sender, 0)
        self._latest[message.sender] = max(latest, message.healing_generation)
        return message.healing_generation < latest

    def forget(self, peer: int) -> None:
        """Another data directory answers for `peer`, which counts its generations from 1."""
        self._latest.pop(peer, None)

    def on_healed(self, message: Healed) -> None:
        """A leader reports that this node has healed, in this generation or an earlier one."""
        if self.is_healing and message.healing_generation == self.current:
            self._is_healed = True

    @property
    def has_healed(self) -> bool:
        """Whether `take_healed` has a generation to return."""
        return self._is_healed and not self._is_ending

    def take_healed(self) -> int | None:
        """The generation to make durable because this node has healed; returned once."""
        if not self.has_healed:
            return None
        self._is_ending = True
        return self.current + 1

    def end(self, generation: int) -> None:
        """The generation in which this node has healed is durable."""
        assert self.is_healing, "only a node that heals has healed"
        assert generation == self.current + 1, "healing ends in the next generation"
        self.current, self._is_healed, self._is_ending = generation, False, False
