"""Bugs to plant in what a node keeps of its own: terms, pointers, writes, checkpoints, sessions.

Asserts guard these, and mostly notice first: before a message leaves, or an invariant of the whole
cluster is broken. See `bugs.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from raftha.core import Append, Heartbeat, Message, Raft, Role, Write
from raftha.core import leader as leader_module
from raftha.core.follower import Follower
from raftha.core.outbox import Outbox
from raftha.entry import Entry, EntryKind, Group, HardState, LogPosition, make_entry
from raftha.membership import Membership
from raftha.node.checkpoints import Checkpoints
from raftha.storage.state.owners import Owners
from raftha.storage.state.sessions import FrozenSessions, Outcome, Sessions
from tests.sim.planting import Bug, Patch


def stale_leader_followed() -> list[Patch]:
    """A node follows the leader of an earlier term, and so goes back to that term."""
    original = Raft._answer_stale

    def answer_stale(self: Raft, message: Message) -> None:
        if isinstance(message, Append | Heartbeat) and not self.is_leader:
            self._become_follower(message.term, message.sender)
        else:
            original(self, message)

    return [(Raft, "_answer_stale", answer_stale)]


def own_vote_before_durable() -> list[Patch]:
    """A candidate counts its own vote while that is on its way to the disk (R1)."""
    original = Raft.tick

    def tick(self: Raft) -> None:
        original(self)
        if self.role is Role.CANDIDATE and self._election.count_own_vote():
            self._become_leader()

    return [(Raft, "tick", tick)]


def commit_taken_as_told() -> list[Patch]:
    """A follower's commit index is what the last heartbeat said, be it less than before."""
    original = Follower.on_heartbeat

    def on_heartbeat(self: Follower, message: Heartbeat) -> None:
        self._log.commit_to(min(message.commit, self._log.last_index))
        original(self, message)

    return [(Follower, "on_heartbeat", on_heartbeat)]


def lease_outlives_leadership() -> list[Patch]:
    """A leader that steps down keeps its lease."""

    def end_leadership(self: Raft) -> None:
        self._leadership = None

    return [(Raft, "_end_leadership", end_leadership)]


def two_changes_in_one() -> list[Patch]:
    """All learners become voters when one of them has caught up."""
    original = Membership.with_voter

    def with_voter(self: Membership, node_id: int, incarnation: int = 0) -> Membership:
        grown = self
        for learner in sorted(self.members.keys() - set(self.voters)):
            grown = original(grown, learner, incarnation if learner == node_id else 0)
        return grown

    return [(Membership, "with_voter", with_voter)]


def writes_overlap() -> list[Patch]:
    """A write is handed out before the last one is done (O3)."""
    original = Outbox.take_write

    def take_write(self: Outbox, hard_state: HardState) -> Write | None:
        under_way, self._write = self._write, None
        write = original(self, hard_state)
        self._write = write or under_way
        return write

    return [(Outbox, "take_write", take_write)]


def written_marked_too_far() -> list[Patch]:
    """What didn't fit into a write counts as handed out with it."""
    original = Outbox.take_write

    def take_write(self: Outbox, hard_state: HardState) -> Write | None:
        write = original(self, hard_state)
        if write is not None:
            self._log.written = self._log.last_index
        return write

    return [(Outbox, "take_write", take_write)]


def commands_miscounted() -> list[Patch]:
    """A leader counts one command less than an entry has."""

    def miscount(
        previous: LogPosition, term: int, time_us: int, kind: EntryKind, payload: bytes, count: int
    ) -> Entry:
        return make_entry(previous, term, time_us, kind, payload, max(count - 1, 0))

    return [(leader_module, "make_entry", miscount)]


def checkpoints_overlap() -> list[Patch]:
    """A checkpoint begins while another is under way (N3)."""
    original = Checkpoints._begin

    def begin(self: Checkpoints, now: float, *, with_digest: bool = False) -> None:
        original(self, now, with_digest=with_digest)
        self._is_running = False

    return [(Checkpoints, "_begin", begin)]


def finished_group_applied() -> list[Patch]:
    """A group is applied although its number is below the session's floor."""
    original = Sessions.admit

    def admit(self: Sessions, group: Group, entry: Entry, first_sequence: int) -> Outcome | None:
        session: Any = self._sessions.get(group.session)
        if session is not None and group.number < session.floor:
            return None
        return original(self, group, entry, first_sequence)

    return [(Sessions, "admit", admit)]


def longest_idle_session_dropped() -> list[Patch]:
    """A full table drops the session that was idle longest, whichever client fills it (S1)."""

    def find_greediest(self: Owners, sessions: Iterable[tuple[int, bytes]]) -> int:
        return next(iter(sessions))[0]

    return [(Owners, "find_greediest", find_greediest)]


def owners_forgotten_at_restart() -> list[Patch]:
    """A replica that starts from a checkpoint doesn't know its sessions' owners."""
    original = Sessions.load.__func__  # type: ignore[attr-defined]

    def load(cls: type[Sessions], dumped: Sequence[Any]) -> Sessions:
        loaded: Sessions = original(cls, [[*row[:-1], b""] for row in dumped])
        return loaded

    return [(Sessions, "load", classmethod(load))]


def sessions_frozen_by_reference() -> list[Patch]:
    """A checkpoint has the outcomes of groups behind its position, whose writes it lacks."""

    def init(self: FrozenSessions, listed: Iterable[tuple[int, Any]]) -> None:
        self._sessions = [(n, s.floor, s.used_us, s.kept, s.owner) for n, s in listed]

    return [(FrozenSessions, "__init__", init)]


BUGS: tuple[Bug, ...] = (
    sessions_frozen_by_reference,
    longest_idle_session_dropped,
    owners_forgotten_at_restart,
    stale_leader_followed,
    own_vote_before_durable,
    commit_taken_as_told,
    lease_outlives_leadership,
    two_changes_in_one,
    writes_overlap,
    written_marked_too_far,
    commands_miscounted,
    checkpoints_overlap,
    finished_group_applied,
)
