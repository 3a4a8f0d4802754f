"""Changes of leader, as one node sees them: when each began, when it was over, what it took.

Theory of operation. A failover begins for a node when the term rises beyond that of the last leader
it knew: by its own candidacy, by another's request for votes, or by any word of a later term. A
pre-vote that nobody follows changes no term, and is none. It is over once a leader is known and an
entry of that leader's term is committed, as far as is known here; elections in between that came to
nothing are part of it. So each node reports each change once, in one `FailoverStarted` and one
`FailoverCompleted`; if it stops in between it never says how it ended.

The election of a new cluster's first leader is no failover. Nor is what a node that has just
started hears of a leader that others know already: it wasn't there.

    last heard of the old leader |- detect -> election began |- elect -> a leader is known
                                 |- first commit -> an entry of its term is committed

The core knows no time, so this looks at it after whatever may have changed its term. What is
reported waits for the end of the turn, and stands in order with what the core itself has to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from raftha.core import Raft, TimeoutNow, VoteRequest
from raftha.events import FailoverCompleted, FailoverStarted
from raftha.node.messages import PeerMessage


@dataclass(slots=True)
class _Episode:
    """A failover under way; `leader` and `elected_at` are those of `elected_term`, 0 if none."""

    last_contact_at: float
    began_at: float
    started: FailoverStarted | None
    is_planned: bool = False
    leader: int = 0
    elected_term: int = 0
    elected_at: float = 0.0


class FailoverWatch:
    """What a node tells of changes of leader. All calls come from the node's thread."""

    def __init__(self, core: Raft, now: float) -> None:
        self._core = core
        self._term = core.term
        self._is_new_cluster = core.log.last_index == 0
        self._leader = 0
        self._last_contact_at = now
        self._episode: _Episode | None = None

    def observe(self, now: float, message: PeerMessage | None = None) -> None:
        """Look at the core after a change, caused by `message` if by one."""
        core = self._core
        if core.term != self._term:
            self._term = core.term
            self._on_term(now, message)
        if core.leader is None:
            return
        if core.leader == core.id or (message is not None and message.sender == core.leader):
            self._last_contact_at = now
        self._leader = core.leader
        episode = self._episode
        if episode is not None and episode.elected_term != core.term:
            episode.leader, episode.elected_term, episode.elected_at = core.leader, core.term, now

    def _on_term(self, now: float, message: PeerMessage | None) -> None:
        core = self._core
        is_candidate = core.vote == core.id and not isinstance(message, VoteRequest)
        is_asked = isinstance(message, VoteRequest)
        if self._episode is None:
            # Without a leader to compare with, only an election that is held now is a change.
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

    def take_started(self) -> FailoverStarted | None:
        """The beginning of a failover, once."""
        episode = self._episode
        if episode is None:
            return None
        started, episode.started = episode.started, None
        return started

    def take_completed(self, now: float) -> FailoverCompleted | None:
        """The end of a failover, once."""
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
