"""Healing epochs: this node's own, and what is known of the others'.

Theory of operation. A node that has lost its log begins with the log position of its state and
without a vote; what else it has acknowledged and whom it has voted for, it doesn't know. Until it
holds all that it may ever have acknowledged it *heals*: it takes entries like any follower, but
gives no vote, never campaigns, and its replies count for no quorum, while the quorum stays a
majority of all voters.

A node's *epoch* is 0 if it has never lost its log, odd while it heals, and even once it has healed.
It is durable, is in each of a follower's replies, and never goes back. So replies of an earlier
life are recognised, and ignored: they say what was on a disk that is lost.

`leader.py` decides when healing is over. docs/internals/healing.md has the proof.
"""

from __future__ import annotations

from raftha.core.messages import AppendReply, Healed, HeartbeatReply, Message, VoteReply


class Epochs:
    """The epochs that one node knows."""

    def __init__(self, own: int) -> None:
        """Begin with this node's own, which is durable."""
        self.own = own
        self._heard: dict[int, int] = {}
        self._is_healed = False
        self._is_ending = False

    @property
    def is_healing(self) -> bool:
        """Whether this node has lost its log, and may lack what it has acknowledged."""
        return self.own % 2 == 1

    def is_outdated(self, message: Message) -> bool:
        """Whether this is a reply that the sender gave before it lost its log, or healed."""
        if not isinstance(message, VoteReply | AppendReply | HeartbeatReply):
            return False
        latest = self._heard.get(message.sender, 0)
        self._heard[message.sender] = max(latest, message.epoch)
        return message.epoch < latest

    def on_healed(self, message: Healed) -> None:
        """A leader says that this node has healed; it may mean an earlier time."""
        if self.is_healing and message.epoch == self.own:
            self._is_healed = True

    def take_healed(self) -> int | None:
        """The epoch that is to be made durable because this node has healed; asked for once."""
        if not self._is_healed or self._is_ending:
            return None
        self._is_ending = True
        return self.own + 1

    def end(self, epoch: int) -> None:
        """The epoch in which this node has healed is durable."""
        assert self.is_healing, "only a node that heals has healed"
        assert epoch == self.own + 1, "healing ends in the next epoch"
        self.own, self._is_healed, self._is_ending = epoch, False, False
