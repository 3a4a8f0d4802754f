"""Exactly once: remembers the outcomes of groups, so that a repetition isn't applied again.

Theory of operation. A client opens a *session* and numbers its groups 1, 2, 3 ... It sends a group
in doubt again under the same number, through any node. This table, a part of the replicated state,
recognizes the repetition and answers it with the first outcome.

A group's *floor* states that every number below it is finished, so the table drops those outcomes.
The rules that bound the table depend on the log only, because all replicas must drop the same
outcomes at the same entry:

- a session expires after an hour of log time without a group; beyond 10,000 sessions, the client
  that has the most loses the one that was idle longest (`owners.py`);
- outcomes take at most 8 MiB in a session and 64 MiB in all. Beyond that, floors rise, the lowest
  number first. In all sessions together, that makes room for 8 MiB, and at the cost of the hosts
  with the most, until none has more than its fair share; each one's longest idle session first. A
  repetition below the floor is not applied and has no outcome: `Verdict.FORGOTTEN`.

Dropping an outcome takes a step, however many there are and whatever their numbers. A checkpoint
copies the table on the node's thread (`freeze`), and packs it elsewhere: a full one takes most of a
second.

The message of an exception may differ between replicas: it may hold an object's address, a set in
any order, or other words in another version of Python. So sizes count it as a constant, and digests
leave it out.
"""

from __future__ import annotations

import enum
import time
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from heapq import heappop, heappush
from typing import Any, NamedTuple

import msgpack

from raftha.config import MIB
from raftha.entry import Entry, Group
from raftha.errors import CommandFailed, Indeterminate, SessionExpired
from raftha.storage.state.commands import pack_result, unpack_result
from raftha.storage.state.machine import FAILED, REFUSED, Result
from raftha.storage.state.owners import HOST_BYTES, OWNER_BYTES, Owners
from raftha.types import UNACKNOWLEDGED, Acknowledgement, Receipt

SESSION_TTL_US = 3600 * 1_000_000
SESSIONS_MAX = 10_000
SESSION_BYTES_MAX = 8 * MIB
OUTCOMES_BYTES_MAX = 64 * MIB
SHRUNK_TO = 7 / 8
"""The share of `OUTCOMES_BYTES_MAX` that is left when outcomes of all sessions are dropped."""

PACKED_PIECE, PACKED_PAUSE_S = 2000, 0.0002
"""The table is packed in pieces of so many outcomes, between which other threads get the GIL."""

_OUTCOME_BYTES = 256  # Approximate memory of an outcome without results.
_FAILURE_BYTES = 1024
_PACKED_FAILURE = b"\x93" + bytes([FAILED])
"""How a packed failure begins: an array of three, and its first item."""


class Verdict(enum.IntEnum):
    """The verdict on a group."""

    APPLIED = 0
    """The group was applied, now or before: each command has its own result."""
    SESSION_EXPIRED = 1
    """The session is unknown: not applied now, but perhaps earlier if the group is a repetition."""
    FORGOTTEN = 2
    """The number is below the session's floor: not applied now, the first outcome is dropped."""


class Outcome(NamedTuple):
    """The outcome of a group of `count` commands, numbered from `first_sequence`.

    `results` has one item a command (see `raftha.storage.state.machine`); None means all None.
    `session` is the id of the session that the group opened, 0 if it opened none. The node whose
    caller waits fills in `acknowledgement`.
    """

    first_sequence: int
    index: int  # type: ignore[assignment]  # shadows tuple.index, which is never called
    term: int
    time_us: int
    count: int  # type: ignore[assignment]  # shadows tuple.count, which is never called
    results: Sequence[Result | None] | None = None
    session: int = 0
    verdict: Verdict = Verdict.APPLIED
    acknowledgement: Acknowledgement = UNACKNOWLEDGED


class Applied(NamedTuple):
    """An applied group: its session and number, and its outcome."""

    session: int
    number: int
    outcome: Outcome


def receipts(outcome: Outcome) -> list[Receipt | CommandFailed]:
    """Return a receipt or an error for each command of a group.

    Raises SessionExpired or Indeterminate if the whole group was refused. SessionExpired is right
    only for a group that was never sent before; for a repetition the caller must treat it as
    Indeterminate.
    """
    if outcome.verdict is Verdict.SESSION_EXPIRED:
        raise SessionExpired("the session is unknown: it has expired, or was never opened")
    if outcome.verdict is Verdict.FORGOTTEN:
        raise Indeterminate("this number of the session is finished, and its outcome was dropped")
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
    """An outcome in the table: `results` is packed, `size` is the same on all replicas."""

    first_sequence: int
    index: int  # type: ignore[assignment]  # shadows tuple.index, which is never called
    term: int
    time_us: int
    count: int  # type: ignore[assignment]  # shadows tuple.count, which is never called
    results: bytes | None
    size: int


class _Session:
    __slots__ = ("_order", "floor", "kept", "owner", "size", "used_us")

    def __init__(self, floor: int, used_us: int, owner: bytes) -> None:
        self.floor = floor
        self.owner = owner
        self.used_us = used_us
        self.kept: dict[int, _Kept] = {}
        self.size = 0
        self._order: list[int] = []
        """A heap that has all numbers in `kept`, and perhaps others; empty until it is needed."""

    def add(self, number: int, kept: _Kept) -> None:
        """Keep an outcome."""
        self.kept[number] = kept
        self.size += kept.size
        if len(self._order) > 2 * len(self.kept):
            self._order.clear()  # Most of them are gone.
        elif self._order:
            heappush(self._order, number)

    def lowest(self) -> int:
        """The lowest number of an outcome; there must be one."""
        assert self.kept, "a session has outcomes"
        if not self._order:
            self._order = sorted(self.kept)  # A sorted list is a heap.
        while self._order[0] not in self.kept:
            heappop(self._order)
        return self._order[0]


class FrozenSessions:
    """The table at one entry, which any thread may pack."""

    def __init__(self, sessions: Iterable[tuple[int, _Session]]) -> None:
        self._sessions = [
            (number, session.floor, session.used_us, session.kept.copy(), session.owner)
            for number, session in sessions
        ]

    def pack(self, packer: msgpack.Packer, *, is_comparable: bool = False) -> None:
        """Pack the table, in the format that `Sessions.load` reads. Takes long if it is full.

        With `is_comparable`, leave out what may differ between replicas: exceptions' messages.
        """
        left = PACKED_PIECE
        packer.pack_array_header(len(self._sessions))
        for number, floor, used_us, kept, owner in self._sessions:
            packer.pack_array_header(5)
            packer.pack(number)
            packer.pack(floor)
            packer.pack(used_us)
            packer.pack_array_header(len(kept))
            for group_number, outcome in kept.items():
                packed = outcome.results
                if is_comparable and packed is not None:
                    packed = _without_messages(packed)
                packer.pack((group_number, *outcome[:5], packed, outcome.size))
                left -= 1
                if left <= 0:
                    left = PACKED_PIECE
                    time.sleep(PACKED_PAUSE_S)
            packer.pack(owner)


class Sessions:
    """The table of sessions, longest idle first. The node's thread owns it."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[int, _Session] = OrderedDict()
        self._owners = Owners()
        self._size = 0

    def __len__(self) -> int:
        return len(self._sessions)

    def expire(self, time_us: int) -> None:
        """Drop the sessions that have expired as of `time_us`, the time of the next entry."""
        while self._sessions:
            oldest = next(iter(self._sessions))
            if self._sessions[oldest].used_us + SESSION_TTL_US >= time_us:
                return
            self._drop(oldest)

    def new_id(self, entry_hash: bytes, place: int) -> int:
        """Return the id, below 2**63, of the session that the group at this place opens.

        It is the same on all replicas. It can't be guessed, since the entry holds a random number
        of the client: a client that used another's id could use up its numbers, and the other's
        writes would be taken for repetitions.
        """
        digest = sha256(entry_hash + place.to_bytes(4, "little")).digest()
        session = int.from_bytes(digest[:8], "little") >> 1 or 1
        while session in self._sessions:
            session += 1
        return session

    def open(self, session: int, time_us: int, owner: bytes) -> None:
        """Begin `session`."""
        assert session not in self._sessions, "ids come from the log's positions, each used once"
        while len(self._sessions) >= SESSIONS_MAX:
            self._drop(self._owners.find_greediest(self._listed()))
        self._add(session, _Session(1, time_us, owner[:OWNER_BYTES]))
        assert len(self._sessions) <= SESSIONS_MAX, "there are only so many sessions"

    def admit(self, group: Group, entry: Entry, first_sequence: int) -> Outcome | None:
        """Return None if `group` must be applied, else its outcome."""
        session = self._sessions.get(group.session)
        refusal = Outcome(first_sequence, entry.index, entry.term, entry.time_us, group.count)
        if session is None:
            return refusal._replace(verdict=Verdict.SESSION_EXPIRED)
        session.used_us = entry.time_us
        self._sessions.move_to_end(group.session)
        self._owners.use(group.session, session.owner)
        if group.number < session.floor:
            return refusal._replace(verdict=Verdict.FORGOTTEN)
        kept = session.kept.get(group.number)
        if kept is None:
            return None
        self._raise_floor(session, group.floor)
        results = None if kept.results is None else unpack_result(kept.results)
        return Outcome(*kept[:5], results)

    def record(self, group: Group, outcome: Outcome) -> None:
        """Record the outcome of a group that was admitted and applied."""
        session = self._sessions[group.session]
        assert group.number >= session.floor, "what is below the floor isn't applied"
        assert group.number not in session.kept, "a number of a session is applied once"
        size, packed = _OUTCOME_BYTES, None
        if outcome.results is not None:
            packed = pack_result(outcome.results)
            size += _results_size(outcome.results)
        session.add(group.number, _Kept(*outcome[:5], packed, size))
        self._size += size
        self._raise_floor(session, group.floor)
        while session.size > SESSION_BYTES_MAX:
            self._drop_lowest(session)
        if self._size > OUTCOMES_BYTES_MAX:
            self._shrink()
        assert 0 <= session.size <= SESSION_BYTES_MAX, "a session's outcomes keep to their limit"
        assert 0 <= self._size <= OUTCOMES_BYTES_MAX, "all outcomes keep to their limit"

    def freeze(self) -> FrozenSessions:
        """Return the whole table as it is now."""
        return FrozenSessions(self._sessions.items())

    @classmethod
    def load(cls, dumped: Sequence[Any]) -> Sessions:
        """Load a packed table; ValueError or TypeError if it is malformed."""
        table = cls()
        for number, floor, used_us, outcomes, owner in dumped:
            if type(owner) is not bytes or len(owner) > OWNER_BYTES:
                raise ValueError("a session's owner is malformed")
            session = _Session(floor, used_us, owner)
            table._add(number, session)
            for group_number, *kept in outcomes:
                session.add(group_number, _Kept(*kept))
            table._size += session.size
        return table

    def _raise_floor(self, session: _Session, floor: int) -> None:
        if floor <= session.floor:
            return
        if floor - session.floor <= len(session.kept):
            for number in range(session.floor, floor):
                if number in session.kept:
                    self._forget(session, number)
        else:  # The numbers are far apart.
            while session.kept and session.lowest() < floor:
                self._forget(session, session.lowest())
        assert floor > session.floor, "a session's floor never goes back"
        session.floor = floor

    def _drop_lowest(self, session: _Session) -> None:
        """Raise the floor just above the lowest number that has an outcome."""
        number = session.lowest()
        assert number >= session.floor, "no outcome is below the floor"
        self._forget(session, number)
        session.floor = number + 1

    def _forget(self, session: _Session, number: int) -> None:
        size = session.kept.pop(number).size
        session.size -= size
        self._size -= size

    def _shrink(self) -> None:
        """Drop outcomes of the hosts with the most, until there is room."""
        sizes: defaultdict[bytes, int] = defaultdict(int)
        for session in self._sessions.values():
            sizes[session.owner[:HOST_BYTES]] += session.size
        share = _fair_share(sizes.values(), int(OUTCOMES_BYTES_MAX * SHRUNK_TO))
        for session in self._sessions.values():
            host, before = session.owner[:HOST_BYTES], session.size
            while session.kept and sizes[host] - before + session.size > share:
                self._drop_lowest(session)
            sizes[host] += session.size - before

    def _listed(self) -> Iterator[tuple[int, bytes]]:
        return ((number, session.owner) for number, session in self._sessions.items())

    def _add(self, number: int, session: _Session) -> None:
        self._sessions[number] = session
        self._owners.add(number, session.owner)

    def _drop(self, number: int) -> None:
        session = self._sessions.pop(number)
        self._owners.drop(number, session.owner)
        self._size -= session.size


def _fair_share(sizes: Iterable[int], total: int) -> int:
    """The largest share that keeps the sum of `sizes`, each cut to it, within `total`."""
    left, count = total, len(ascending := sorted(sizes))
    for place, size in enumerate(ascending):
        share = left // (count - place)
        if size > share:
            return share
        left -= size
    return total


def _without_messages(packed: bytes) -> bytes:
    """Packed results, whose failures have no messages."""
    if _PACKED_FAILURE not in packed:
        return packed
    results = unpack_result(packed)
    return pack_result([r if r is None or r[0] != FAILED else r[:2] for r in results])


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
