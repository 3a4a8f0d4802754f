"""The catalog of backups: what the log says of each one, the same on all nodes.

Theory of operation. Which backups there are, which one is being taken, and which may be deleted is
decided by ADMIN entries of the log, and by nothing else: not by clocks, lock files, or the listing
of a repository. Each entry is accepted or refused by what the entries before it have led to, so all
replicas agree. A refused entry changes nothing, and its proposer learns why (`verdict`).

    begin     accepted if none is running, there is room, and the parent's chain is whole
              -> running; the id is the entry's index
    end       accepted if it is running
              -> completed, in at least one destination; or failed
    adopt     what a repository holds and the catalog doesn't: accepted if its id is unknown, or
              that of a failed backup, and its parent's chain is whole
    found     in which destinations a completed one is; in none: missing, and no parent any more
    retire    accepted if none of the ids is running, pinned, the newest that can be restored, or
              the parent of one that stays
              -> retired: no parent, no source; only now may its objects be deleted
    deleted   accepted if all are retired -> forgotten, but for their ids
    pin       accepted if it is completed: it can't be retired until then (0: until it is unpinned)
    unpin
    mark      names the moment of the entry
    point     makes an earlier moment a recovery point: accepted if it is after the last one
    prepare, restore, abort   see `recoveries.py`; meanwhile nothing begins, and nothing is retired

A chain is a backup, its parent, the parent's parent, up to a full backup. It is whole if all of
them are completed. A backup and its parent are of one lineage, and no RESTORE lies between them.

An adoption says as of which entry its node had applied the log when it listed the repository. It is
refused if backups were deleted after that: what was seen may be gone. What was once deleted is not
adopted as completed either, since a node that was away may still be deleting it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from raftha.entry import LogPosition
from raftha.storage.state.catalog_changes import (
    COMPLETED,
    DESTINATIONS_MAX,
    DIFFERENTIAL,
    FAILED,
    FULL,
    INCREMENTAL,
    MISSING,
    MODES,
    PINS_MAX,
    RETIRED,
    RUNNING,
    Abort,
    Adopt,
    BackupRecord,
    Begin,
    Change,
    Deleted,
    End,
    Found,
    Mark,
    MarkNow,
    NotePoint,
    Pin,
    Point,
    Prepare,
    Refused,
    Restore,
    Retire,
    Unpin,
    build,
    decode_change,
    encode_change,
    load_record,
    make_label,
)
from raftha.storage.state.recoveries import Recoveries

__all__ = [
    "COMPLETED",
    "DIFFERENTIAL",
    "FAILED",
    "FULL",
    "INCREMENTAL",
    "MISSING",
    "MODES",
    "RETIRED",
    "RUNNING",
    "Abort",
    "Adopt",
    "BackupRecord",
    "Begin",
    "Catalog",
    "Change",
    "Deleted",
    "End",
    "Found",
    "Mark",
    "MarkNow",
    "NotePoint",
    "Pin",
    "Point",
    "Prepare",
    "Restore",
    "Retire",
    "Unpin",
    "Verdict",
    "decode_change",
    "encode_change",
    "make_label",
]

PROTOCOL = 7
"""The first protocol with a catalog."""
RECOVERY_PROTOCOL = 8
"""The first protocol with an archive of the log, and with recovery to an earlier moment."""
RECORDS_MAX = 1000
MARKS_MAX = 1000
POINTS_MAX = 1000
FIELDS, FIELDS_BEFORE = 7, 5
"""With recovery points and recoveries, and without them: before the cluster uses the protocol that
has them."""
ROWS_MAX = max(RECORDS_MAX, MARKS_MAX, POINTS_MAX)
GONE_MAX = 1000
"""Ids of deleted backups that are remembered."""


class Verdict(NamedTuple):
    """What came of the `change` in entry `index`: "" if it was accepted, else why not.

    `before` are the records of the backups that it names, as they were.
    """

    index: int  # type: ignore[assignment]  # shadows tuple.index, which is never called
    refusal: str
    change: Change | None = None
    before: tuple[BackupRecord, ...] = ()


class Catalog:
    """See the module's docstring. All calls come from the node's thread."""

    def __init__(self) -> None:
        self.changed_index = 0
        """The entry of the last change that was accepted."""
        self.deleted_index = 0
        """The entry that last said that backups were deleted."""
        self.verdict = Verdict(0, "")
        """The last change of this life, and whether it was accepted."""
        self._records: dict[int, BackupRecord] = {}
        self._running = 0
        self._gone: tuple[int, ...] = ()
        self._marks: list[Mark] = []
        self._points: list[Point] = []
        self.recoveries = Recoveries()
        """The recoveries to earlier moments."""

    # ---------------------------------------------------------------- what it says

    def __len__(self) -> int:
        return len(self._records)

    def get(self, backup_id: int) -> BackupRecord | None:
        """The record of a backup, if there is one."""
        return self._records.get(backup_id)

    def records(self) -> tuple[BackupRecord, ...]:
        """All records, the oldest first."""
        return tuple(self._records[i] for i in sorted(self._records))

    def marks(self) -> tuple[Mark, ...]:
        """The named moments, the oldest first."""
        return tuple(self._marks)

    def points(self) -> tuple[Point, ...]:
        """The recovery points, the oldest first."""
        return tuple(self._points)

    @property
    def running(self) -> BackupRecord | None:
        """The backup that is being taken."""
        return self._records.get(self._running)

    def chain(self, backup_id: int) -> list[BackupRecord]:
        """The backup, its parent, and so on, as far as they are known."""
        found: list[BackupRecord] = []
        while backup_id in self._records and len(found) <= RECORDS_MAX:
            found.append(self._records[backup_id])
            backup_id = found[-1].parent
        return found

    def is_whole(self, backup_id: int) -> bool:
        """Whether a backup and all that it builds on are completed, so that it can be restored."""
        chain = self.chain(backup_id)
        return bool(chain) and chain[-1].parent == 0 and all(r.state == COMPLETED for r in chain)

    def newest(self, lineage: str | None = None) -> BackupRecord | None:
        """The newest backup that can be restored; of this lineage if one is given."""
        return next(
            (
                record
                for record in reversed(self.records())
                if lineage in (None, record.lineage) and self.is_whole(record.id)
            ),
            None,
        )

    # ---------------------------------------------------------------- what changes it

    def apply(self, change: Change, position: LogPosition) -> None:
        """Apply the change of the entry at `position`; `verdict` says what came of it."""
        named = change.ids if isinstance(change, Retire | Deleted) else (getattr(change, "id", 0),)
        before = tuple(self._records[i] for i in named if i in self._records)
        refusal = ""
        try:
            _APPLY[type(change)](self, change, position)
        except Refused as refused:
            refusal = str(refused)
        else:
            self.changed_index = position.index
        self.verdict = Verdict(position.index, refusal, change, before)

    def _recover(self, change: Prepare | Restore | Abort, at: LogPosition) -> None:
        running = self.running
        if isinstance(change, Prepare) and running is not None:
            raise Refused(f"backup {running.label} is running")
        for backup_id in change.backups if isinstance(change, Prepare) else ():
            record = self._records.get(backup_id)
            if record is None or record.state != COMPLETED:
                raise Refused(f"backup {backup_id}, which the plan reads, is not completed")
        self.recoveries.apply(change, at)

    def _begin(self, change: Begin, at: LogPosition) -> None:
        self._check_no_recovery()
        running = self.running
        if running is not None:
            raise Refused(f"backup {running.label} is running")
        if len(self._records) >= RECORDS_MAX or at.index in self._records:
            raise Refused(f"the catalog has {RECORDS_MAX} backups: retire some")
        if not 0 < len(change.destinations) <= DESTINATIONS_MAX or not change.lineage:
            raise Refused("a backup has a lineage and 1 to 4 destinations")
        record = BackupRecord(
            id=at.index,
            mode=change.mode,
            parent=change.parent,
            base=self._base(at.index, change.mode, change.parent, change.lineage, at.index),
            lineage=change.lineage,
            node=change.node,
            state=RUNNING,
            destinations=change.destinations,
            began_us=at.time_us,
            reason=change.reason,
        )
        self._put(record)

    def _base(self, backup_id: int, mode: str, parent_id: int, lineage: str, position: int) -> int:
        """The full backup at the end of the chain of one that builds on `parent_id`.

        It has the state as of entry `position`, or of a later one.
        """
        if mode not in MODES or (mode == FULL) is not (parent_id == 0):
            raise Refused("a full backup has no parent, and any other one has")
        if parent_id == 0:
            return backup_id
        parent = self._records.get(parent_id)
        if parent is None or parent_id >= backup_id:
            raise Refused(f"there is no backup {parent_id} to build on")
        if not self.is_whole(parent_id):
            raise Refused(f"the chain of backup {parent.label} is not whole")
        if parent.lineage != lineage:
            raise Refused(f"backup {parent.label} is of another lineage")
        restored = self.recoveries.last_restored
        if restored is not None and parent.position_index < restored.index <= position:
            raise Refused(f"the state that backup {parent.label} holds was replaced since")
        if mode == DIFFERENTIAL and parent.mode != FULL:
            raise Refused("a differential backup builds on a full one")
        return parent.base

    def _end(self, change: End, at: LogPosition) -> None:
        record = self._records.get(change.id)
        if record is None or record.state != RUNNING:
            raise Refused(f"backup {change.id} is not running")
        if change.error:
            self._put(record._replace(state=FAILED, ended_us=at.time_us, error=change.error))
            return
        known = change.destinations and set(change.destinations) <= set(record.destinations)
        if not known or not change.manifest or change.position_index < record.id:
            raise Refused("a completed backup has a manifest in one of its destinations")
        self._put(
            record._replace(
                state=COMPLETED,
                ended_us=at.time_us,
                destinations=change.destinations,
                position_index=change.position_index,
                position_sequence=change.position_sequence,
                position_us=change.position_us,
                keys=change.keys,
                size_bytes=change.size_bytes,
                size_compressed=change.size_compressed,
                digest=change.digest,
                manifest=change.manifest,
                verify_level=change.verify_level,
                errors=change.errors,
            )
        )

    def _adopt(self, change: Adopt, at: LogPosition) -> None:
        record = load_record(change.record)
        known = self._records.get(record.id)
        if change.as_of < self.deleted_index:
            raise Refused("backups were deleted since the repository was listed")
        if known is not None and known.state != FAILED:
            raise Refused(f"backup {known.label} is {known.state}")
        if known is not None and known.label != record.label:
            raise Refused(f"backup {record.id} is {known.label}, not {record.label}")
        if not 0 < record.id < at.index or record.state not in (COMPLETED, FAILED):
            raise Refused("only what has ended before can be adopted")
        if known is None and len(self._records) >= RECORDS_MAX:
            raise Refused(f"the catalog has {RECORDS_MAX} backups: retire some")
        if record.state == COMPLETED:
            if not record.destinations or not record.manifest:
                raise Refused("a completed backup has a manifest in a destination")
            if record.id in self._gone:
                raise Refused(f"backup {record.label} was deleted")
            position = record.position_index
            base = self._base(record.id, record.mode, record.parent, record.lineage, position)
            record = record._replace(base=base)
        self._put(record._replace(pins=()))

    def _found(self, change: Found, at: LogPosition) -> None:
        record = self._records.get(change.id)
        if record is None or record.state not in (COMPLETED, MISSING):
            raise Refused(f"backup {change.id} is not completed")
        if len(change.destinations) > DESTINATIONS_MAX:
            raise Refused("a backup has at most 4 destinations")
        state = COMPLETED if change.destinations else MISSING
        self._put(record._replace(state=state, destinations=change.destinations))

    def _check_no_recovery(self) -> None:
        prepared = self.recoveries.prepared
        if prepared is not None:
            raise Refused(f"a recovery to sequence {prepared.to_sequence} is under way")

    def _retire(self, change: Retire, at: LogPosition) -> None:
        self._check_no_recovery()
        going = set(change.ids)
        newest = self.newest()
        for backup_id in change.ids:
            record = self._records.get(backup_id)
            if record is None or record.state == RUNNING:
                raise Refused(f"backup {backup_id} can't be retired: it is running, or unknown")
            if record.lineage != change.lineage:
                raise Refused(f"backup {record.label} is of another lineage")
            if record.state == COMPLETED and record.is_pinned(at.time_us):
                raise Refused(f"backup {record.label} is pinned")
            if record == newest:
                raise Refused(f"backup {record.label} is the newest that can be restored")
        for child in self._records.values():
            stays = child.state in (RUNNING, COMPLETED, MISSING) and child.id not in going
            if stays and child.parent in going:
                parent = self._records[child.parent]
                raise Refused(f"backup {child.label} builds on {parent.label}")
        for backup_id in change.ids:
            self._put(self._records[backup_id]._replace(state=RETIRED))

    def _delete(self, change: Deleted, at: LogPosition) -> None:
        for backup_id in change.ids:
            record = self._records.get(backup_id)
            if record is None or record.state != RETIRED:
                raise Refused(f"backup {backup_id} is not retired")
        for backup_id in set(change.ids):
            del self._records[backup_id]
        self._gone = tuple(sorted({*self._gone, *change.ids})[-GONE_MAX:])
        self.deleted_index = at.index

    def _pin(self, change: Pin, at: LogPosition) -> None:
        record = self._records.get(change.id)
        if record is None or record.state != COMPLETED:
            raise Refused(f"backup {change.id} is not completed")
        held = [pin for pin in record.pins if pin[0] != change.name]
        held = [pin for pin in held if pin[1] == 0 or pin[1] > at.time_us]
        if not change.name or len(held) >= PINS_MAX:
            raise Refused(f"a pin has a name, and a backup has at most {PINS_MAX} pins")
        self._put(record._replace(pins=(*held, (change.name, change.until_us))))

    def _unpin(self, change: Unpin, at: LogPosition) -> None:
        record = self._records.get(change.id)
        kept = () if record is None else record.pins
        kept = tuple(pin for pin in kept if change.name not in ("", pin[0]))
        if record is None or kept == record.pins:
            raise Refused(f"backup {change.id} has no pin {change.name!r}")
        self._put(record._replace(pins=kept))

    def _mark(self, change: MarkNow, at: LogPosition) -> None:
        if not change.name or any(mark.name == change.name for mark in self._marks):
            raise Refused(f"there is a mark {change.name!r} already")
        self._marks.append(Mark(change.name, at.index, at.last_sequence, at.time_us))
        del self._marks[:-MARKS_MAX]

    def _point(self, change: NotePoint, at: LogPosition) -> None:
        last = self._points[-1].index if self._points else 0
        if not last < change.index < at.index or change.sequence > at.last_sequence:
            raise Refused("a recovery point is of an entry between the last one and its own")
        if change.agreed > change.voters or bool(change.digest) is not (change.agreed > 0):
            raise Refused("a recovery point has a digest if members agreed on one")
        self._points.append(Point(at.index, *change))
        del self._points[:-POINTS_MAX]

    def _put(self, record: BackupRecord) -> None:
        self._records[record.id] = record
        if record.state == RUNNING:
            self._running = record.id
        elif self._running == record.id:
            self._running = 0

    def forget_running(self) -> None:
        """Forget the backup that is being taken: this state was restored from it.

        A recovery was under way at most in the cluster that was backed up.
        """
        self._records.pop(self._running, None)
        self._running = 0
        self.recoveries.forget_prepared()

    # ---------------------------------------------------------------- in the checkpoint's meta

    def dump(self, *, has_recovery: bool = False) -> list[Any]:
        """Return the fields as msgpack can pack them, the same on all replicas. Any thread may.

        `has_recovery`: whether the cluster uses the protocol with recovery points.
        """
        fields = [
            self.changed_index,
            self.deleted_index,
            self._gone,
            self.records(),
            self.marks(),
        ]
        return [*fields, self.points(), self.recoveries.records()] if has_recovery else fields

    @classmethod
    def load(cls, fields: Any) -> Catalog:
        """Return the catalog in the result of `dump`. ValueError if it is none."""
        if type(fields) not in (list, tuple) or len(fields) not in (FIELDS, FIELDS_BEFORE):
            raise ValueError(f"a catalog has {FIELDS} fields")
        catalog = cls()
        catalog.changed_index, catalog.deleted_index, gone, records, marks, *rest = fields
        if type(catalog.changed_index) is not int or type(catalog.deleted_index) is not int:
            raise ValueError("a catalog begins with numbers")
        catalog._gone = tuple(_rows(gone))
        if any(type(each) is not int for each in catalog._gone):
            raise ValueError("the ids of backups are numbers")
        for each in _rows(records):
            catalog._put(load_record(each))
        catalog._marks = [build(Mark, each) for each in _rows(marks)]
        if rest:
            points, recoveries = rest
            catalog._points = [build(Point, each) for each in _rows(points)]
            catalog.recoveries = Recoveries.load(_rows(recoveries))
        return catalog


def _rows(fields: Any) -> Iterator[Any]:
    if type(fields) not in (list, tuple) or len(fields) > ROWS_MAX:
        raise ValueError("a catalog has lists of records, marks and points")
    yield from fields


_APPLY: dict[type[Any], Callable[..., None]] = {
    Begin: Catalog._begin,
    End: Catalog._end,
    Adopt: Catalog._adopt,
    Found: Catalog._found,
    Retire: Catalog._retire,
    Deleted: Catalog._delete,
    Pin: Catalog._pin,
    Unpin: Catalog._unpin,
    MarkNow: Catalog._mark,
    NotePoint: Catalog._point,
    Prepare: Catalog._recover,
    Restore: Catalog._recover,
    Abort: Catalog._recover,
}
