"""The archive of the log in one destination: the blocking work.

Theory of operation. The archiver, one member, puts each committed entry into each destination. Each
destination has a `DestinationArchive` of its own, at its own position, so that a slow one holds up
no other. Two jobs, on a thread each:

    put    reads the log behind the archived position, and puts segments of level 0, one after the
           other. The position moves once a put is confirmed.
    tidy   puts segments of level 1, reads each back, and deletes what they replace, and what the
           window needs no longer.

Rules:
  A1  Only committed entries are read: those up to `ArchiveOrder.through`.
  A2  The archived position moves only once a segment is confirmed: `create` succeeded, or the
      object was read and has the same entries.
  A3  Each segment follows the one before it, by index and by hash. What could not be archived is
      named by a record in `gaps/` before anything later is put. A RESTORE entry has its record in
      `restores/` before its segment is put.
  A4  A gap is recorded only if the order says that they are lost to the log (`lost_index`), and no
      other destination has them, or it has been away for `GIVE_UP_S`.
  A5  An object of level 0 goes only after level 1 has its entries, read back, and `STAYS_S` later:
      a plan that has just listed it may still read it. The *verified* position is where that ends.
  A6  Other entries in an object of ours are a RepositoryConflict: nothing more is put there. A
      damaged object is deleted and put again.

A new archiver lists the destination once, and reads the last segment: it must be one of this log.
Objects that the listing lacks yet are put again, so segments overlap; they hold the same entries.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from raftha.entry import Entry, LogPosition, follows
from raftha.errors import (
    Compacted,
    DeletionDenied,
    RafthaError,
    RepositoryConflict,
    RepositoryError,
)
from raftha.storage.backup.archive_listing import Listed
from raftha.storage.backup.archive_objects import Access, ArchiveObjects
from raftha.storage.backup.archive_records import RestoreRecord
from raftha.storage.backup.destination import Destination
from raftha.storage.backup.names import SegmentName
from raftha.storage.backup.segments import MERGED_RAW_BYTES, SEGMENT_RAW_BYTES

PUTS_MAX = 16
"""Segments that one job puts, so that its result is known soon."""
MERGE_S = 300.0
MERGE_COUNT = 8
"""A segment of level 1 is put when so many of level 0, with commands, have waited so long."""
MERGE_STORED_BYTES = 12 << 20
"""Or when they are this large."""
STAYS_S = 600.0
DENIED_S = 86_400.0
"""When a deletion that was denied is tried again."""
GIVE_UP_S = 600.0
"""How long a destination that is away is waited for, if it may have what the log lacks."""
DELETES_MAX = 100
"""Objects that one job deletes."""


class Place(NamedTuple):
    """An entry's place in the log and in time."""

    index: int  # type: ignore[assignment]  # shadows tuple.index, which has no callers
    sequence: int
    time_us: int


NOWHERE = Place(0, 0, 0)


class ArchiveOrder(NamedTuple):
    """What to archive. `through`: the last entry that this node knows to be committed.

    `is_new`: another member may have archived since this node's last order, so list. `lost_index`:
    the log has lost the entries up to there for good. `keep_from`: segments wholly before this
    entry may go. `restores`: the RESTORE entries up to `through` that the log remembers.
    """

    lineage: str
    through: int
    is_new: bool = False
    lost_index: int = 0
    keep_from: int = 0
    restores: tuple[RestoreRecord, ...] = ()


class ArchiveResult(NamedTuple):
    """How far the archive is. All entries from `start` up to `archived` are there.

    `verified`: those up to there were read back. `needs`: this node's log begins only there, and
    lacks what follows `archived`; 0 if it doesn't. `gaps`: the first and last entry of each gap
    that was recorded. `pending_us`: the time of the first entry that could not be put; 0 if there
    is none. `conflict`: the object that has other entries than ours.
    """

    archived: Place = NOWHERE
    verified: int = 0
    start: int = 0
    needs: int = 0
    gaps: tuple[tuple[int, int], ...] = ()
    pending_us: int = 0
    error: str = ""
    conflict: str = ""


class ArchiveHooks(NamedTuple):
    """What the work gets from its caller; the simulator gives virtual time and no threads.

    `read` returns entries from an index on, and the position before them, or raises Compacted.
    `others` returns the other destinations, which may have what this one lacks.
    """

    read: Callable[[int], tuple[LogPosition, Sequence[Entry]]]
    monotonic: Callable[[], float]
    is_wanted: Callable[[], bool] = lambda: True
    salt: Callable[[], bytes | None] = lambda: None
    others: Callable[[], Sequence[Destination]] = tuple


class _Stored(NamedTuple):
    """A segment of level 0 that is there, and since when this node knows of it."""

    name: SegmentName
    size: int
    has_commands: bool
    since: float


@dataclass(slots=True)
class _Known:
    """What is known of a destination's archive since it was listed.

    `hash`: that of the archived entry, empty if there is none. `waiting`: level 0 that is not in
    level 1 yet, in order. `going`: level 0 that may be deleted, and when.
    """

    lineage: str
    archived: Place = NOWHERE
    hash: bytes = b""
    start: int = 0
    verified: int = 0
    needs: int = 0
    pending_us: int = 0
    lacking_since: float | None = None
    """Since when the log lacks what comes next."""
    waiting: deque[_Stored] = field(default_factory=deque)
    merged: deque[SegmentName] = field(default_factory=deque)
    going: deque[tuple[float, SegmentName]] = field(default_factory=deque)
    holes: list[tuple[int, int]] = field(default_factory=list)
    gaps: list[tuple[int, int]] = field(default_factory=list)


class DestinationArchive:
    """The archive in one destination. `put` and `tidy` may run at the same time, each once."""

    def __init__(
        self,
        opened: Callable[[], Access],
        hooks: ArchiveHooks,
        *,
        level: int = 3,
        on_error: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        """`opened` opens the destination; it may fail, and is called again.

        `level`: our level of compression. `on_error` gets each error that a job has met.
        """
        self._opened = opened
        self._hooks = hooks
        self._level = level
        self._on_error = on_error
        self._known: _Known | None = None
        self._lock = threading.Lock()
        """Held to change the lists of `_Known`, which both jobs do."""
        self._denied: dict[SegmentName, float] = {}

    # ---------------------------------------------------------------- jobs

    def put(self, order: ArchiveOrder) -> ArchiveResult:
        """Put what is due; all errors of raftha are in the result."""
        known = self._known
        try:
            objects = self._objects(order)
            if known is None or order.is_new or known.lineage != order.lineage:
                known = self._known = None
                known = self._known = self._resume(objects, order.through)
            known.needs = 0
            self._fill_holes(objects, known, order)
            self._put_all(objects, known, order)
        except RafthaError as error:
            self._on_error(error)
            if isinstance(error, RepositoryConflict):
                self._known = None  # An operator has to do something; then look again.
            return self._result(known, error)
        return self._result(known)

    def tidy(self, order: ArchiveOrder) -> ArchiveResult:
        """Put segments of level 1, delete what may go; all errors of raftha are in the result."""
        known = self._known
        if known is None or known.lineage != order.lineage:
            return self._result(None)
        try:
            objects = self._objects(order)
            while self._hooks.is_wanted() and self._is_merge_due(known):
                self._merge(objects, known, order.through)
            self._delete_all(objects, known, order.keep_from)
        except RafthaError as error:
            self._on_error(error)
            return self._result(known, error)
        return self._result(known)

    def _objects(self, order: ArchiveOrder) -> ArchiveObjects:
        return ArchiveObjects(
            self._opened(),
            order.lineage,
            level=self._level,
            salt=self._hooks.salt,
            others=self._hooks.others,
            restores=order.restores,
            on_error=self._on_error,
        )

    def _result(self, known: _Known | None, error: RafthaError | None = None) -> ArchiveResult:
        text = "" if error is None else str(error) or type(error).__name__
        conflict = error.object if isinstance(error, RepositoryConflict) else ""
        if known is None:
            return ArchiveResult(error=text, conflict=conflict)
        with self._lock:
            gaps, known.gaps = tuple(known.gaps), []
        return ArchiveResult(
            known.archived,
            known.verified,
            known.start,
            known.needs,
            gaps,
            known.pending_us,
            text,
            conflict,
        )

    # ---------------------------------------------------------------- where it stands

    def _resume(self, objects: ArchiveObjects, through: int) -> _Known:
        """List the destination, and read its last segment, which must be one of this log (A3)."""
        listed, bad = objects.find(), set[SegmentName]()
        while True:
            known = self._known_of(objects.lineage, listed)
            if listed.newest is None:
                if bad:  # All of it is damaged: put again what the log has, the rest is a gap.
                    known.start = min(name.first for name in bad)
                    known.archived = Place(known.start - 1, 0, 0)
                return known
            last = objects.read(listed.newest)
            if last:
                known.hash = last[-1].hash
                self._check_own(objects, known, through)
                return known
            bad.add(listed.newest)
            listed = listed.without(bad)

    def _known_of(self, lineage: str, listed: Listed) -> _Known:
        known = _Known(lineage)
        newest, now = listed.newest, self._hooks.monotonic()
        if newest is None:
            return known
        known.archived = Place(newest.last, newest.sequence, newest.time_us)
        known.start, known.verified = listed.start, listed.verified
        known.holes = list(listed.holes)
        known.merged.extend(listed.merged)
        known.waiting.extend(_Stored(*each, now - MERGE_S) for each in listed.waiting)
        known.going.extend((now + STAYS_S, name) for name in listed.replaced)
        return known

    def _check_own(self, objects: ArchiveObjects, known: _Known, through: int) -> None:
        """RepositoryConflict if the last archived entry is another one than this log has.

        RepositoryError if this member has yet to get it: until then nothing is known.
        """
        if known.archived.index > through:
            raise RepositoryError(f"entry {known.archived.index} is archived, and not here yet")
        try:
            position, _ = self._hooks.read(known.archived.index + 1)
        except Compacted:
            return
        if position.index == known.archived.index and position.hash != known.hash:
            raise objects.conflict(known.archived.index)

    # ---------------------------------------------------------------- level 0

    def _put_all(self, objects: ArchiveObjects, known: _Known, order: ArchiveOrder) -> None:
        for _ in range(PUTS_MAX):
            first = known.archived.index + 1
            if first > order.through or not self._hooks.is_wanted():
                return
            try:
                entries = _cut(self._hooks.read(first)[1], order.through)
            except Compacted as error:
                entries = []
                if known.start:
                    asks_all = self._asks_all(known)
                    found = objects.elsewhere(first, order.through, asks_all=asks_all)
                    entries = _cut(found, order.through)
                if not entries:
                    if not self._skip(objects, known, order.lost_index, error.first_index):
                        known.needs = error.first_index
                        return
                    continue
            if not entries:
                return
            self._put(objects, known, entries)

    def _asks_all(self, known: _Known) -> bool:
        """Whether a destination that is away has to be waited for: it may have what is missing."""
        now = self._hooks.monotonic()
        if known.lacking_since is None:
            known.lacking_since = now
        return now - known.lacking_since < GIVE_UP_S

    def _put(self, objects: ArchiveObjects, known: _Known, entries: Sequence[Entry]) -> None:
        """Put a segment of level 0 behind the archived position (A2, A3)."""
        known.pending_us = entries[0].time_us
        known.start = known.start or entries[0].index  # If this fails, what follows has a gap.
        if known.hash and not follows(entries[0], known.hash):
            raise objects.conflict(known.archived.index)
        name, size = objects.store(0, entries)
        last = entries[name.last - name.first]
        has_commands = last.last_sequence > known.archived.sequence
        with self._lock:
            known.waiting.append(_Stored(name, size, has_commands, self._hooks.monotonic()))
        known.archived = Place(last.index, last.last_sequence, last.time_us)
        known.hash = last.hash
        known.pending_us, known.lacking_since = 0, None

    def _skip(
        self, objects: ArchiveObjects, known: _Known, lost_index: int, first_index: int
    ) -> bool:
        """Begin at the log's first entry. What is missing before it is a gap (A3, A4).

        False if another member may have it. An archive that is empty begins there, without a gap.
        """
        if known.start:
            if first_index - 1 > lost_index:
                return False
            self._record_gap(objects, known, known.archived.index + 1, first_index - 1)
        previous, _ = self._hooks.read(first_index)
        known.archived = Place(previous.index, previous.last_sequence, previous.time_us)
        known.hash = previous.hash
        known.start, known.lacking_since = first_index, None
        return True

    def _record_gap(self, objects: ArchiveObjects, known: _Known, first: int, last: int) -> None:
        objects.record_gap(first, last)
        with self._lock:
            known.gaps.append((first, last))
        known.start = max(known.start, last + 1)

    def _fill_holes(self, objects: ArchiveObjects, known: _Known, order: ArchiveOrder) -> None:
        """Put what lies between segments and is not there, from the log or another destination."""
        for first, last in list(known.holes):
            at = first
            while at <= min(last, order.through) and self._hooks.is_wanted():
                try:
                    entries = _cut(self._hooks.read(at)[1], min(last, order.through))
                except Compacted:
                    entries = _cut(objects.elsewhere(at, last, asks_all=True), last)
                if not entries:
                    break
                name, _ = objects.store(0, entries)
                at = name.last + 1
            if at <= last and last > min(order.through, order.lost_index):
                continue  # This member or another one may have it yet.
            if at <= last:
                self._record_gap(objects, known, at, last)
            known.holes.remove((first, last))

    # ---------------------------------------------------------------- level 1

    def _is_merge_due(self, known: _Known) -> bool:
        with self._lock:
            waiting = list(known.waiting)
        if sum(stored.size for stored in waiting) >= MERGE_STORED_BYTES:
            return True
        written = [stored for stored in waiting if stored.has_commands]
        if len(written) < MERGE_COUNT:
            return False
        return self._hooks.monotonic() - written[0].since >= MERGE_S

    def _merge(self, objects: ArchiveObjects, known: _Known, through: int) -> None:
        """Put a segment of level 1 behind the verified position, and read it back (A5)."""
        with self._lock:
            waiting = list(known.waiting)
        first = max(known.verified + 1, waiting[0].name.first)
        entries = self._collect(self._behind(objects, waiting, first, through))
        if entries:
            name, _ = objects.store(1, entries)
            objects.compare(name, entries[name.last - name.first].hash)
            verified = name.last
        else:  # Level 0 has lost them, and nothing else has them.
            later = (stored.name.first - 1 for stored in waiting[1:])
            verified = min([waiting[0].name.last, *(index for index in later if index >= first)])
            self._record_gap(objects, known, first, verified)
        leaves_at = self._hooks.monotonic() + STAYS_S
        with self._lock:
            if entries:
                known.merged.append(name)
            known.verified = verified
            while known.waiting and known.waiting[0].name.last <= verified:
                known.going.append((leaves_at, known.waiting.popleft().name))

    def _collect(self, found: Iterator[Entry]) -> list[Entry]:
        """Take as many entries as a segment of level 1 holds."""
        entries: list[Entry] = []
        raw = 0
        for entry in found:
            raw += len(entry.data)
            if raw > MERGED_RAW_BYTES and entries:
                break
            entries.append(entry)
        return entries

    def _behind(
        self, objects: ArchiveObjects, waiting: Sequence[_Stored], at: int, through: int
    ) -> Iterator[Entry]:
        """Yield the entries from `at` on up to the archived one, or to where they are missing.

        They come from the log (A1), or else from level 0, or else from another destination.
        """
        archived, previous = waiting[-1].name.last, b""
        while at <= archived:
            found: Sequence[Entry] = ()
            try:
                if at <= through:
                    found = [e for e in self._hooks.read(at)[1] if e.index <= through]
            except Compacted:
                pass
            for stored in waiting:
                if not found and stored.name.first <= at <= stored.name.last:
                    found = objects.read(stored.name)
            found = found or objects.elsewhere(at, archived, asks_all=True)
            entries = [entry for entry in found if at <= entry.index <= archived]
            if not entries or (previous and not follows(entries[0], previous)):
                return
            yield from entries
            at, previous = entries[-1].index + 1, entries[-1].hash

    # ---------------------------------------------------------------- what may go

    def _delete_all(self, objects: ArchiveObjects, known: _Known, keep_from: int) -> None:
        now = self._hooks.monotonic()
        for name in self._deletable(known, now, keep_from)[:DELETES_MAX]:
            try:
                objects.delete(name)
            except DeletionDenied as error:
                self._on_error(error)
                self._denied[name] = now + DENIED_S
                continue
            self._denied.pop(name, None)
            with self._lock:
                known.merged = deque(n for n in known.merged if n != name)
                known.waiting = deque(s for s in known.waiting if s.name != name)
                known.going = deque(each for each in known.going if each[1] != name)

    def _deletable(self, known: _Known, now: float, keep_from: int) -> list[SegmentName]:
        """What the window needs no longer, but the last segment; what level 1 has replaced."""
        keep_from = min(keep_from, known.archived.index)
        with self._lock:
            names = [name for name in known.merged if name.last < keep_from]
            names += [stored.name for stored in known.waiting if stored.name.last < keep_from]
            names += [name for at, name in known.going if at <= now or name.last < keep_from]
        return [name for name in names if self._denied.get(name, now) <= now]


def _cut(entries: Sequence[Entry], through: int) -> list[Entry]:
    """The entries of one segment: those up to `through`, as many as fit, and at least one (A1)."""
    chosen: list[Entry] = []
    raw = 0
    for entry in entries:
        raw += len(entry.data)
        if entry.index > through or (raw > SEGMENT_RAW_BYTES and chosen):
            break
        chosen.append(entry)
    return chosen
