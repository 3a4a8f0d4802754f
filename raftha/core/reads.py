"""Linearizable reads without a log write: ReadIndex, one round shared by all waiting reads.

Thesis 6.4: the leader records its commit index and confirms its leadership with replies from a
quorum. Then any state that has applied that index may answer. All reads that arrive during a round
join the next one, so any number of reads shares the cost of a round.
"""

from __future__ import annotations

from typing import NamedTuple


class Read(NamedTuple):
    """A waiting read: `node` asked for it under its own `read_id`."""

    node: int
    read_id: int


class ReadRounds:
    """The leader's reads: those in the current round, and those that wait for the next."""

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
        """Start a round for all waiting reads, at this commit index."""
        assert self._waiting, "a round has reads to answer"
        assert not self._asking, "one round at a time"
        assert commit >= self._index, "a read index never goes back"
        self.round += 1
        self._index = commit
        self._asking, self._waiting = self._waiting, []
        self._replied = set()

    def record_reply(
        self, peer: int, read_round: int, needed: int
    ) -> tuple[int, list[Read]] | None:
        """Record a reply; once `needed` peers have replied, return the index and its reads."""
        if read_round != self.round or not self._asking:
            return None
        self._replied.add(peer)
        return self.finish() if len(self._replied) >= needed else None

    def finish(self) -> tuple[int, list[Read]]:
        """End the round as confirmed; return the index and its reads."""
        assert self._asking, "a round ends after it began"
        reads, self._asking = self._asking, []
        return self._index, reads
