"""Which data directory answers for each node, and whether it is the one that the log records.

Theory of operation. An incarnation is the random id of a data directory, and part of each Hello. A
node that lost its disk has lost its votes and entries with it, and comes back with another one.
Until it has healed and the log records its new directory, it grants nothing and acknowledges
nothing that counts. Nor does an old directory that comes back once another one is recorded.
"""

from __future__ import annotations

from raftha.core.log import RaftLog
from raftha.core.messages import AppendReply, HeartbeatReply, Message, VoteReply


class Incarnations:
    """The incarnation of each node's data directory, by its latest connection."""

    def __init__(self, log: RaftLog) -> None:
        self._log = log
        self._latest: dict[int, int] = {}

    def of(self, peer: int) -> int:
        """The incarnation of a node; 0 if it isn't known."""
        return self._latest.get(peer, 0)

    def connected(self, peer: int, incarnation: int) -> bool:
        """Record which directory answers for `peer`; True if another directory did before."""
        is_other = self._latest.get(peer, incarnation) != incarnation
        self._latest[peer] = incarnation
        return is_other

    def is_of_other_disk(self, message: Message) -> bool:
        """Whether this would count, and comes from a directory that isn't the recorded one."""
        if isinstance(message, AppendReply | HeartbeatReply):
            is_counted = message.healing_generation % 2 == 0
        else:
            is_counted = isinstance(message, VoteReply) and message.granted
        return is_counted and not self._log.membership.knows(
            message.sender, self.of(message.sender)
        )
