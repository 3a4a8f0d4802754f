"""What the log says of recoveries to an earlier moment: the one under way, and the last ones.

Theory of operation. A recovery of a live cluster has three entries, which the catalog accepts or
refuses like all changes (`catalog.py`):

    prepare   accepted if no recovery and no backup is under way, and the target is in the past
              -> prepared: all members build the state of then, beside their own. Until it ends
              no backup begins, and none is given up: the members read them
    restore   accepted if it is prepared -> restored: from this entry on, the state is that of then
    abort     accepted if it is prepared -> aborted

At a `restore` that is accepted, only the pairs of the state are replaced. Everything in the
checkpoint's meta goes on: position, membership, sessions, versions, catalog (`restored.py`). So
numbers are never given twice, and a write that was undone isn't applied again when its client
repeats it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from raftha.entry import LogPosition
from raftha.storage.state.catalog_changes import Abort, Prepare, Refused, Restore, build

RECOVERIES_MAX = 100
"""Recoveries that are remembered."""
TIMEOUT_MAX_S = 7 * 24 * 3600

PREPARED, RESTORED, ABORTED = "prepared", "restored", "aborted"


class RecoveryRecord(NamedTuple):
    """What the log says of one recovery.

    `id` is the index of its `prepare` entry; the next fields are those of that entry. `index` and
    `sequence` are those of its `restore` entry, which is a command of its own. Times are log time.
    """

    id: int
    state: str
    request: int
    lineage: str
    to_sequence: int
    to_us: int
    backups: tuple[int, ...]
    is_frozen: int
    timeout_s: int
    reason: str
    began_us: int
    ended_us: int = 0
    index: int = 0  # type: ignore[assignment]  # shadows tuple.index, which is never called
    sequence: int = 0
    digest: str = ""
    error: str = ""

    @property
    def undone(self) -> int:
        """How many commands it has taken back."""
        return max(self.sequence - 1 - self.to_sequence, 0)


class Recoveries:
    """See the module's docstring. All calls come from the node's thread."""

    def __init__(self, records: Iterable[RecoveryRecord] = ()) -> None:
        self._records = {record.id: record for record in records}

    def records(self) -> tuple[RecoveryRecord, ...]:
        """All that are remembered, the oldest first."""
        return tuple(self._records.values())

    def get(self, recovery_id: int) -> RecoveryRecord | None:
        """The record of a recovery, if it is remembered."""
        return self._records.get(recovery_id)

    def by_request(self, request: int) -> RecoveryRecord | None:
        """The recovery that this request has begun."""
        return next((r for r in reversed(self.records()) if r.request == request), None)

    @property
    def prepared(self) -> RecoveryRecord | None:
        """The recovery that is under way."""
        last = next(reversed(self._records.values()), None)
        return last if last is not None and last.state == PREPARED else None

    @property
    def last_restored(self) -> RecoveryRecord | None:
        """The last recovery that was carried out."""
        return next((r for r in reversed(self.records()) if r.state == RESTORED), None)

    def forget_prepared(self) -> None:
        """Forget the recovery that is under way: this state was restored elsewhere."""
        prepared = self.prepared
        if prepared is not None:
            del self._records[prepared.id]

    # ---------------------------------------------------------------- what changes it

    def apply(self, change: Prepare | Restore | Abort, at: LogPosition) -> None:
        """Apply the change of the entry at this position. Refused, and nothing has changed."""
        _APPLY[type(change)](self, change, at)

    def _prepare(self, change: Prepare, at: LogPosition) -> None:
        prepared = self.prepared
        if prepared is not None:
            raise Refused(f"a recovery to sequence {prepared.to_sequence} is under way")
        if not change.lineage or change.to_sequence > at.last_sequence:
            raise Refused("a recovery goes back to a moment of a lineage")
        if change.is_frozen > 1 or not 0 < change.timeout_s <= TIMEOUT_MAX_S:
            raise Refused("a recovery has a time limit of at most a week")
        record = RecoveryRecord(at.index, PREPARED, *change, began_us=at.time_us)
        self._records[record.id] = record
        for old in list(self._records)[:-RECOVERIES_MAX]:
            del self._records[old]

    def restorable(self, change: Restore) -> RecoveryRecord:
        """The recovery that this change carries out. Refused if it doesn't."""
        if not change.digest:
            raise Refused("a restored state has a digest")
        return self._open(change.id)

    def _restore(self, change: Restore, at: LogPosition) -> None:
        record = self.restorable(change)
        self._records[record.id] = record._replace(
            state=RESTORED,
            ended_us=at.time_us,
            index=at.index,
            sequence=at.last_sequence,
            digest=change.digest,
        )

    def _abort(self, change: Abort, at: LogPosition) -> None:
        record = self._open(change.id)
        self._records[record.id] = record._replace(
            state=ABORTED, ended_us=at.time_us, error=change.error
        )

    def _open(self, recovery_id: int) -> RecoveryRecord:
        prepared = self.prepared
        if prepared is None or prepared.id != recovery_id:
            raise Refused(f"recovery {recovery_id} is not under way")
        return prepared

    # ---------------------------------------------------------------- in the checkpoint's meta

    @classmethod
    def load(cls, rows: Iterable[Any]) -> Recoveries:
        """Return those in what `records` gave. ValueError if they are none."""
        loaded = [_load(row) for row in rows]
        if any(r.state == PREPARED for r in loaded[:-1]):
            raise ValueError("one recovery is under way at a time, the last one")
        return cls(loaded)


def _load(row: Any) -> RecoveryRecord:
    record: RecoveryRecord = build(RecoveryRecord, row)
    if record.state not in (PREPARED, RESTORED, ABORTED):
        raise ValueError("a recovery has no such state")
    if any(type(each) is not int for each in record.backups):
        raise ValueError("the ids of backups are numbers")
    return record


_APPLY: dict[type[Any], Callable[..., None]] = {
    Prepare: Recoveries._prepare,
    Restore: Recoveries._restore,
    Abort: Recoveries._abort,
}
