"""Rounds in which a learner catches up with the log, until it becomes a voter (thesis 4.2.1).

Theory of operation. A round sends everything that the log holds when the round begins. Once a
learner finishes a round within an election timeout, it is close enough: as a voter it delays the
cluster no longer than an election does. After `catch_up_rounds_max` slower rounds the leader gives
up on the learner, until an operator asks again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from raftha.core.ready import CoreConfig
from raftha.events import CatchUpGivenUp, HaEvent


@dataclass(slots=True)
class CatchUp:
    """A learner's current round; it ends when the learner has everything up to `end`."""

    end: int
    began_ticks: int
    rounds: int = 1
    is_given_up: bool = False


class CatchUps:
    """The rounds of all learners on their way to becoming voters, in one leader's term."""

    def __init__(self, config: CoreConfig, events: list[HaEvent]) -> None:
        self._id = config.node_id
        self._election_ticks = config.election_ticks
        self._rounds_max = config.catch_up_rounds_max
        self._events = events
        self._ticks = 0
        self._rounds: dict[int, CatchUp] = {}

    @property
    def learners(self) -> tuple[int, ...]:
        """The learners followed, in order."""
        return tuple(self._rounds)

    def follow(self, learners: Iterable[int], last_index: int) -> None:
        """Follow exactly these; the first round of a new learner ends at `last_index`."""
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
        """Whether this learner, which has all up to `match`, finished a round within an election.

        After a slower round the next one begins, or the leader gives up.
        """
        catch_up = self._rounds[peer]
        # One that has nothing yet may not even run, also where the round began with an empty log.
        if catch_up.is_given_up or match < max(catch_up.end, 1):
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
