"""Exactly once: which groups were applied already, and what came of them.

Theory of operation. Whoever submits groups opens a *session* and numbers its groups 1, 2, 3 ... A
group in doubt is sent again under the same number, through any node. The table kept here, part of
the replicated state, tells a repetition from a new group, and gives it the first one's outcome.

A group's *floor* says that every number below it is finished: nobody will ask again, so those
outcomes are dropped. What the table may hold is bounded, by rules that look only at the log,
because all replicas must drop the same things at the same entry:

- a session that was idle for an hour of log time is gone; beyond 10,000 sessions the one that was
  idle longest goes;
- outcomes take at most 8 MiB in a session and 64 MiB in all: beyond it, floors rise, the lowest
  number first, in the session that was idle longest. A repetition below the floor is not applied
  and finds no outcome: `Verdict.FORGOTTEN`.

Sizes count an exception's message as a constant: a message may show an object's address, which
isn't the same on all replicas, and sizes must be.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import sha256
from typing import Any, NamedTuple

from raftha.config import MIB
from raftha.entry import Entry, Group
from raftha.errors import CommandFailed, Indeterminate, SessionExpired
from raftha.storage.state.commands import pack_result, unpack_result
from raftha.storage.state.machine import FAILED, REFUSED, Result
from raftha.types import UNACKNOWLEDGED, Acknowledgement, Receipt

SESSION_TTL_US = 3600 * 1_000_000
SESSIONS_MAX = 10_000
SESSION_BYTES_MAX = 8 * MIB
OUTCOMES_BYTES_MAX = 64 * MIB

_OUTCOME_BYTES = 256  # What an outcome without results takes in memory, about.
_FAILURE_BYTES = 1024


class Verdict(enum.IntEnum):
    """What became of a group."""

    APPLIED = 0
    """It was applied, now or when it came first: each command has its own result."""
    SESSION_EXPIRED = 1
    """Its session is not known (any more): not applied now, perhaps earlier if sent before."""
    FORGOTTEN = 2
    """Its number is below the session's floor: not applied now, the first outcome is dropped."""


class Outcome(NamedTuple):
    """What came of a group of `count` commands, numbered from `first_sequence`.

    `results` has one item a command (see `raftha.storage.state.machine`); None stands for all None.
    `session` is the id of the session that the group opened, if that is what it did, else 0.
    `acknowledgement` is filled in by the node whose caller waits.
    """

    first_sequence: int
    index: int  # type: ignore[assignment]  # shadows tuple.index, which nobody calls
    term: int
    time_us: int
    count: int  # type: ignore[assignment]  # shadows tuple.count, which nobody calls
    results: Sequence[Result | None] | None = None
    session: int = 0
    verdict: Verdict = Verdict.APPLIED
    acknowledgement: Acknowledgement = UNACKNOWLEDGED


class Applied(NamedTuple):
    """A group of an applied entry, in order: who waits for it, and its outcome."""

    session: int
    number: int
    outcome: Outcome


def receipts(outcome: Outcome) -> list[Receipt | CommandFailed]:
    """Return what the callers of a group's commands get, one item a command.

    Raises SessionExpired or Indeterminate if the group as a whole was turned away. SessionExpired
    is true only for a group that was never sent before; for a repetition the truth is
    Indeterminate.
    """
    if outcome.verdict is Verdict.SESSION_EXPIRED:
        raise SessionExpired("the session is not known; it expired, or was never opened")
    if outcome.verdict is Verdict.FORGOTTEN:
        raise Indeterminate("this number of the session is finished and its outcome is forgotten")
    first, index, term, time_us, count, results, _, _, acknowledgement = outcome
    if results is None:
        # The hot path: plain puts. By position, since keywords take half as long again.
        return [
            Receipt(sequence, index, term, time_us, True, None, acknowledgement)
            for sequence in range(first, first + count)
        ]
    return [_receipt(outcome, first + place, result) for place, result in enumerate(results)]


def _receipt(outcome: Outcome, sequence: int, result: Result | None) -> Receipt | CommandFailed:
    value, succeeded = None, True
    if result is not None:
        if result[0] == FAILED:
            return CommandFailed(*result[1:])
        value, succeeded = result[1], result[0] != REFUSED
    return Receipt(
        sequence=sequence,
        index=outcome.index,
        term=outcome.term,
        time_us=outcome.time_us,
        succeeded=succeeded,
        result=value,
        acknowledgement=outcome.acknowledgement,
    )


class _Kept(NamedTuple):
    """An outcome as the table keeps it; `results` packed, `size` the same on all replicas."""

    first_sequence: int
    index: int  # type: ignore[assignment]  # shadows tuple.index, which nobody calls
    term: int
    time_us: int
    count: int  # type: ignore[assignment]  # shadows tuple.count, which nobody calls
    results: bytes | None
    size: int


class _Session:
    __slots__ = ("floor", "kept", "size", "used_us")

    def __init__(self, floor: int, used_us: int) -> None:
        self.floor = floor
        self.used_us = used_us
        self.kept: dict[int, _Kept] = {}
        self.size = 0


class Sessions:
    """The table of sessions, the one that was idle longest first. Owned by the node's thread."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[int, _Session] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return len(self._sessions)

    def expire(self, time_us: int) -> None:
        """Drop the sessions that are idle too long as of `time_us`, the stamp of the next entry."""
        while self._sessions:
            oldest = next(iter(self._sessions))
            if self._sessions[oldest].used_us + SESSION_TTL_US >= time_us:
                return
            self._drop(oldest)

    def new_id(self, entry_hash: bytes, place: int) -> int:
        """An id for the session that a group, at this place of its entry, opens; below 2**63.

        The same on all replicas, and nothing that anybody could guess, since the entry holds a
        random number of the one who asked: whoever knew another's id could take its numbers, and
        its writes would be taken for repetitions.
        """
        digest = sha256(entry_hash + place.to_bytes(4, "little")).digest()
        session = int.from_bytes(digest[:8], "little") >> 1 or 1
        while session in self._sessions:
            session += 1
        return session

    def open(self, session: int, time_us: int) -> None:
        """Begin `session`."""
        assert session not in self._sessions, "ids come from the log's positions, each used once"
        self._sessions[session] = _Session(floor=1, used_us=time_us)
        if len(self._sessions) > SESSIONS_MAX:
            self._drop(next(iter(self._sessions)))
        assert len(self._sessions) <= SESSIONS_MAX, "there are only so many sessions"

    def admit(self, group: Group, entry: Entry, first_sequence: int) -> Outcome | None:
        """Return None if `group` is to be applied; else the outcome that it has without that."""
        session = self._sessions.get(group.session)
        refusal = Outcome(first_sequence, entry.index, entry.term, entry.time_us, group.count)
        if session is None:
            return refusal._replace(verdict=Verdict.SESSION_EXPIRED)
        session.used_us = entry.time_us
        self._sessions.move_to_end(group.session)
        if group.number < session.floor:
            return refusal._replace(verdict=Verdict.FORGOTTEN)
        kept = session.kept.get(group.number)
        if kept is None:
            return None
        self._raise_floor(session, group.floor)
        results = None if kept.results is None else unpack_result(kept.results)
        return Outcome(*kept[:5], results)

    def record(self, group: Group, outcome: Outcome) -> None:
        """Keep the outcome of a group that was admitted and applied."""
        session = self._sessions[group.session]
        assert group.number >= session.floor, "what is below the floor isn't applied"
        assert group.number not in session.kept, "a number of a session is applied once"
        size, packed = _OUTCOME_BYTES, None
        if outcome.results is not None:
            packed = pack_result(outcome.results)
            size += _results_size(outcome.results)
        session.kept[group.number] = _Kept(*outcome[:5], packed, size)
        session.size += size
        self._size += size
        self._raise_floor(session, group.floor)
        while session.size > SESSION_BYTES_MAX:
            self._raise_floor(session, min(session.kept) + 1)
        if self._size > OUTCOMES_BYTES_MAX:
            self._shrink()
        assert 0 <= session.size <= SESSION_BYTES_MAX, "a session's outcomes keep to their limit"
        assert 0 <= self._size <= OUTCOMES_BYTES_MAX, "all outcomes keep to their limit"

    def dump(self) -> list[Any]:
        """The whole table in what msgpack can carry."""
        return [
            [
                number,
                session.floor,
                session.used_us,
                [[n, *kept] for n, kept in session.kept.items()],
            ]
            for number, session in self._sessions.items()
        ]

    @classmethod
    def load(cls, dumped: Sequence[Any]) -> Sessions:
        """Make the table that was dumped; ValueError or TypeError if it can't be one."""
        table = cls()
        for number, floor, used_us, outcomes in dumped:
            session = table._sessions[number] = _Session(floor, used_us)
            for group_number, *kept in outcomes:
                session.kept[group_number] = _Kept(*kept)
            session.size = sum(kept.size for kept in session.kept.values())
            table._size += session.size
        return table

    def _raise_floor(self, session: _Session, floor: int) -> None:
        if floor <= session.floor:
            return
        span: Sequence[int] = range(session.floor, floor)
        if len(session.kept) < floor - session.floor:
            span = [number for number in session.kept if number < floor]
        for number in span:
            kept = session.kept.pop(number, None)
            if kept is not None:
                session.size -= kept.size
                self._size -= kept.size
        assert floor > session.floor, "a session's floor never goes back"
        session.floor = floor

    def _shrink(self) -> None:
        for session in self._sessions.values():
            while session.kept and self._size > OUTCOMES_BYTES_MAX:
                self._raise_floor(session, min(session.kept) + 1)

    def _drop(self, number: int) -> None:
        self._size -= self._sessions.pop(number).size


def _results_size(results: Sequence[Result | None]) -> int:
    size = 0
    for result in results:
        if result is None:
            size += 1
        elif result[0] == FAILED:
            size += _FAILURE_BYTES
        else:
            size += len(pack_result(result))
    return size
