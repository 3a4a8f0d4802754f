"""Members report each change of leader once, with true measurements.

Theory of operation. A member reports each change of leader that it lived through once: first its
start, then its end. The simulator compares the member's measurements with its own observations, by
the member's clock: when its term rose, when it first reported a leader, when it last had a message
from the old one. A member looks at its own doings at the end of a turn, so a time is known here up
to the length of one: the phases must lie between, and add up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from raftha.events import FailoverCompleted, FailoverStarted, HaEvent, LeaderElected
from tests.sim.member import Member
from tests.sim.world import Violation

TOLERANCE_MS = 0.01


@dataclass(slots=True)
class _Seen:
    """Observations of a member in its present life; times are by its own clock."""

    started: tuple[int, float] | None = None
    """The term and the time of the report that a failover began, while it isn't over."""
    settled_term: int = 0
    completed_term: int = 0
    rises: dict[int, tuple[float, float]] = field(default_factory=dict)
    """When its term rose to this one, and when it had heard from a leader last by then."""
    elected: dict[int, float] = field(default_factory=dict)
    """When it reported the leader of this term."""


class Failovers:
    """Changes of leader, as members report them; `leaders` says which member really led a term."""

    def __init__(self, members: Mapping[int, Member], leaders: Mapping[int, int]) -> None:
        self._leaders = leaders
        self._seen = {node_id: _Seen() for node_id in members}

    def forget(self, node_id: int) -> None:
        """A member starts: it has forgotten its earlier reports."""
        self._seen[node_id] = _Seen()

    def on_term(self, member: Member, term: int) -> None:
        """A member's term has risen."""
        clock = member.clock
        last_contact_at = clock.at(member.contact.last_at)
        self._seen[member.id].rises[term] = (clock.monotonic(), last_contact_at)

    def check_turn(self, member: Member) -> None:
        """A turn is over: what it did was reported."""
        assert member.node is not None
        core, seen = member.node.core, self._seen[member.id]
        if core.leader is None or core.term == seen.settled_term:
            return
        if core.log.term(core.log.commit) != core.term:
            return
        if seen.settled_term and seen.completed_term != core.term:
            raise Violation(f"node {member.id} did not report the failover of term {core.term}")
        seen.settled_term = core.term

    def on_event(self, member: Member, event: HaEvent) -> None:
        """A member reports something."""
        seen = self._seen[member.id]
        match event:
            case LeaderElected():
                seen.elected.setdefault(event.term, member.clock.monotonic())
            case FailoverStarted():
                if seen.started is not None:
                    raise Violation(f"node {member.id} began a second failover amid one")
                seen.started = event.term, member.clock.monotonic()
            case FailoverCompleted():
                self._complete(member, event, seen)
            case _:
                pass

    def _complete(self, member: Member, event: FailoverCompleted, seen: _Seen) -> None:
        if seen.started is None:
            raise Violation(f"node {member.id} completed a failover that never began")
        if event.term <= max(seen.completed_term, seen.settled_term):
            raise Violation(f"node {member.id} reported the failover of {event.term} twice")
        if self._leaders.get(event.term) != event.new_primary:
            raise Violation(f"node {member.id} takes {event.new_primary} for a leader: {event}")
        self._measure(member.clock.monotonic(), event, seen, *seen.started)
        seen.started, seen.completed_term = None, event.term
        seen.rises = {term: rise for term, rise in seen.rises.items() if term >= event.term}
        seen.elected = {event.term: seen.elected[event.term]}

    def _measure(
        self, now: float, event: FailoverCompleted, seen: _Seen, began: int, reported_at: float
    ) -> None:
        """The election began when the term rose, or until this was told; and so on."""
        detect, elect, commit = event.detect_ms, event.elect_ms, event.first_commit_ms
        rose_at, last_contact_at = seen.rises[began]
        won_at = seen.rises[event.term][0]
        for what, value, low, high in (
            ("detection", detect, 0.0, reported_at - last_contact_at),
            ("election", elect, 0.0, now - rose_at),
            ("first commit", commit, now - seen.elected[event.term], now - won_at),
            ("election and commit", elect + commit, now - reported_at, now - rose_at),
            ("all", event.duration_ms, (detect + elect + commit) / 1000, now - last_contact_at),
        ):
            if not 1000 * low - TOLERANCE_MS <= value <= 1000 * high + TOLERANCE_MS:
                raise Violation(
                    f"{what} took from {1000 * low:.3f} to {1000 * high:.3f} ms, not {value:.3f}: "
                    f"{event}"
                )
        if abs(event.duration_ms - detect - elect - commit) > TOLERANCE_MS:
            raise Violation(f"the phases don't add up: {event}")
