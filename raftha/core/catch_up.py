"""Rounds in which a learner catches up with the log, until it can be made a voter (thesis 4.2.1).

Theory of operation. A round sends what is in the log when it begins. A learner that took less than
an election timeout for one is so close that the cluster waits for the new voter no longer than for
an election. After so many rounds that took longer it is given up, until an operator asks again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from raftha.core.ready import CoreConfig
from raftha.events import CatchUpGivenUp, HaEvent


@dataclass(slots=True)
class CatchUp:
    """A learner's current round: it is over when the learner has everything up to `end`."""

    end: int
    began_ticks: int
    rounds: int = 1
    is_given_up: bool = False


class CatchUps:
    """The rounds of all learners that are to become voters, in one leader's term."""

    def __init__(self, config: CoreConfig, events: list[HaEvent]) -> None:
        self._id = config.node_id
        self._election_ticks = config.election_ticks
        self._rounds_max = config.catch_up_rounds_max
        self._events = events
        self._ticks = 0
        self._rounds: dict[int, CatchUp] = {}

    @property
    def learners(self) -> tuple[int, ...]:
        """Those that are followed, in order."""
        return tuple(self._rounds)

    def follow(self, learners: Iterable[int], last_index: int) -> None:
        """Follow these from now on, and no others; new ones begin a round that ends there."""
        self._rounds = {
            peer: self._rounds.get(peer) or CatchUp(last_index, self._ticks)
            for peer in sorted(learners)
        }

    def begin_again(self, peer: int, last_index: int) -> None:
        """Give a learner that was too slow another set of rounds."""
        if self.has_given_up(peer):
            self._rounds[peer] = CatchUp(last_index, self._ticks)

    def has_given_up(self, peer: int) -> bool:
        """Whether a learner has used up its rounds."""
        return peer in self._rounds and self._rounds[peer].is_given_up

    def tick(self) -> None:
        """A tick has passed."""
        self._ticks += 1

    def has_caught_up(self, peer: int, match: int, last_index: int) -> bool:
        """Whether a round took this learner, which has all up to `match`, less than an election.

        If one that is over took longer, the next begins, or it is given up.
        """
        catch_up = self._rounds[peer]
        if catch_up.is_given_up or match < catch_up.end:
            return False
        if self._ticks - catch_up.began_ticks <= self._election_ticks:
            return True
        if catch_up.rounds >= self._rounds_max:
            catch_up.is_given_up = True
            event = CatchUpGivenUp(reporter=self._id, node_id=peer, rounds=catch_up.rounds)
            self._events.append(event)
        else:
            catch_up.rounds += 1
            catch_up.end, catch_up.began_ticks = last_index, self._ticks
        return False
