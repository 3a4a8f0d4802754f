"""Changes of leader, as one node observes them: start, end, and the time of each phase.

Theory of operation. For a node, a failover starts when its term rises above that of the last leader
it knew: through its own candidacy, another node's request for votes, or any message of a later
term. A pre-vote changes no term, so a failed one is no failover. The failover ends once a leader is
known and this node knows that an entry of that leader's term is committed. Failed elections in
between are part of it. So each node reports each change once, with one `FailoverStarted` and one
`FailoverCompleted`; a node that stops in between reports no end.

The election of a new cluster's first leader is no failover. Neither is it a failover when a node
that has just started learns of a leader that the others already know.

    last contact with the old leader |- detect -> election began |- elect -> a leader is known
                                     |- first commit -> an entry of its term is committed

The core has no clock, so the watch observes the core after every call that may have changed its
term. Events wait for the turn, so that they are emitted in order with the core's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from raftha.core import Raft, TimeoutNow, VoteRequest
from raftha.events import FailoverCompleted, FailoverStarted
from raftha.node.messages import PeerMessage


@dataclass(slots=True)
class _Episode:
    """A failover under way; `leader` and `elected_at` belong to `elected_term`, 0 if none."""

    last_contact_at: float
    began_at: float
    started: FailoverStarted | None
    is_planned: bool = False
    leader: int = 0
    elected_term: int = 0
    elected_at: float = 0.0


class FailoverWatch:
    """Detects and times changes of leader. All calls come from the node's thread."""

    def __init__(self, core: Raft, now: float) -> None:
        self._core = core
        self._term = core.term
        self._is_new_cluster = core.log.last_index == 0
        self._leader = 0
        self._last_contact_at = now
        self._episode: _Episode | None = None

    def observe(self, now: float, message: PeerMessage | None = None) -> None:
        """Observe the core after a possible change, caused by `message` if given."""
        core = self._core
        term, leader = core.term, core.leader
        if term != self._term:
            self._term = term
            self._on_term(now, message)
        if leader is None:
            return
        if leader == core.id or (message is not None and message.sender == leader):
            self._last_contact_at = now
        self._leader = leader
        episode = self._episode
        if episode is not None and episode.elected_term != term:
            episode.leader, episode.elected_term, episode.elected_at = leader, term, now

    def _on_term(self, now: float, message: PeerMessage | None) -> None:
        core = self._core
        is_candidate = core.vote == core.id and not isinstance(message, VoteRequest)
        is_asked = isinstance(message, VoteRequest)
        if self._episode is None:
            # Without a known leader, only an election that is under way now is a change.
            if not self._leader and (self._is_new_cluster or not (is_candidate or is_asked)):
                return
            candidate = core.id if is_candidate else core.leader or 0
            if is_asked and message is not None:
                candidate = message.sender
            started = FailoverStarted(
                reporter=core.id, from_node=self._leader, to_node=candidate, term=core.term
            )
            self._episode = _Episode(self._last_contact_at, now, started)
        is_transfer = isinstance(message, VoteRequest) and message.transfer
        self._episode.is_planned = is_transfer or isinstance(message, TimeoutNow)

    @property
    def is_under_way(self) -> bool:
        """True from the start of a failover until its end was taken."""
        return self._episode is not None

    def take_started(self) -> FailoverStarted | None:
        """Return the start of a failover, once."""
        episode = self._episode
        if episode is None:
            return None
        started, episode.started = episode.started, None
        return started

    def take_completed(self, now: float) -> FailoverCompleted | None:
        """Return the end of a failover, once."""
        episode, core = self._episode, self._core
        if episode is None or core.leader is None or core.log.term(core.log.commit) != core.term:
            return None
        self._episode = None
        times = (episode.last_contact_at, episode.began_at, episode.elected_at, now)
        detect, elect, commit = (1000 * (b - a) for a, b in pairwise(times))
        return FailoverCompleted(
            reporter=core.id,
            new_primary=core.leader,
            term=core.term,
            duration_ms=detect + elect + commit,
            detect_ms=detect,
            elect_ms=elect,
            first_commit_ms=commit,
            is_planned=episode.is_planned,
        )
