"""Linearizable reads without writing to the log: ReadIndex, one round shared by all that wait.

Thesis 6.4: the leader notes its commit index, makes sure that it still is the leader by hearing
from a quorum, and may then answer from state that has applied that index. All reads that arrive
while a round is under way join the next one, so the cost of a round is shared by however many reads
there are.
"""

from __future__ import annotations

from typing import NamedTuple


class Read(NamedTuple):
    """A read that waits: `node` asked, under its own `read_id`."""

    node: int
    read_id: int


class ReadRounds:
    """The leader's reads: those in the current round, and those waiting for the next."""

    def __init__(self) -> None:
        self.round = 0
        self._index = 0
        self._asking: list[Read] = []
        self._waiting: list[Read] = []
        self._replied: set[int] = set()

    @property
    def is_asking(self) -> bool:
        """Whether a round is under way."""
        return bool(self._asking)

    @property
    def has_waiting(self) -> bool:
        return bool(self._waiting)

    def add(self, read: Read) -> None:
        """Queue a read for the next round."""
        self._waiting.append(read)

    def begin(self, commit: int) -> None:
        """Start a round for all that wait, at this commit index."""
        assert self._waiting, "a round is for reads that wait"
        assert not self._asking, "one round at a time"
        assert commit >= self._index, "a read index never goes back"
        self.round += 1
        self._index = commit
        self._asking, self._waiting = self._waiting, []
        self._replied = set()

    def record_reply(
        self, peer: int, read_round: int, needed: int
    ) -> tuple[int, list[Read]] | None:
        """Record a reply; the index and the reads it answers if `needed` peers have now replied."""
        if read_round != self.round or not self._asking:
            return None
        self._replied.add(peer)
        return self.finish() if len(self._replied) >= needed else None

    def finish(self) -> tuple[int, list[Read]]:
        """End the round as confirmed."""
        assert self._asking, "a round ends after it began"
        reads, self._asking = self._asking, []
        return self._index, reads
