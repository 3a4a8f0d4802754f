"""A second, plain reading of what the log says of backups, to compare members' catalogs with.

It shares no code with `raftha/storage/state/catalog.py` but the parsing of entries.
"""

from __future__ import annotations

from dataclasses import dataclass

from raftha.entry import Entry
from raftha.storage.state.catalog import (
    Abort,
    Adopt,
    BackupRecord,
    Begin,
    Deleted,
    End,
    Found,
    Pin,
    Prepare,
    Restore,
    Retire,
    Unpin,
    decode_change,
)
from raftha.storage.state.versions import VERSIONS, decode_admin


@dataclass(slots=True)
class Backup:
    """What is known of one."""

    id: int
    mode: str
    parent: int
    lineage: str
    state: str
    destinations: tuple[str, ...]
    pins: set[str]
    position: int = 0
    """The entry as of which it has the state; 0 until it is completed."""


class Ledger:
    """All backups by the committed log."""

    def __init__(self) -> None:
        self.backups: dict[int, Backup] = {}
        self.retired: set[int] = set()
        """All that were ever given up."""
        self.deleted: set[int] = set()
        self.refused = 0
        self._deleted_index = 0
        self.prepared: tuple[int, Prepare] | None = None
        """The recovery under way, with its id."""
        self._restored_index = 0
        self.recoveries: dict[int, str] = {}
        """What has become of each recovery."""

    def apply(self, entry: Entry) -> object:
        """Take in the next committed administrative entry; return what it changed, if anything."""
        what, fields = decode_admin(bytes(entry.payload))
        if what == VERSIONS:
            return None
        change = decode_change(what, fields)
        is_accepted = self._apply(change, entry.index)
        self.refused += not is_accepted
        return change if is_accepted else None

    def states(self) -> dict[int, tuple[str, int, tuple[str, ...]]]:
        """What members' catalogs must say."""
        return {b.id: (b.state, b.parent, b.destinations) for b in self.backups.values()}

    def chain(self, backup_id: int) -> list[Backup]:
        """A backup and all that it builds on."""
        found = []
        while backup_id in self.backups:
            found.append(self.backups[backup_id])
            backup_id = found[-1].parent
        return found

    def is_whole(self, backup_id: int) -> bool:
        """Whether it can be restored."""
        chain = self.chain(backup_id)
        return bool(chain) and chain[-1].parent == 0 and {b.state for b in chain} == {"completed"}

    def newest(self) -> int:
        """The newest that can be restored; 0 if there is none."""
        return max((i for i in self.backups if self.is_whole(i)), default=0)

    def _fits(self, mode: str, parent: int, lineage: str, position: int) -> bool:
        if mode == "full" or parent == 0:
            return mode == "full" and parent == 0
        if not self.is_whole(parent) or self.backups[parent].lineage != lineage:
            return False
        if self.backups[parent].position < self._restored_index <= position:
            return False
        return mode == "incremental" or self.backups[parent].mode == "full"

    def _apply(self, change: object, index: int) -> bool:
        is_accepted = True
        match change:
            case Begin():
                is_accepted = self._begin(change, index)
            case End():
                is_accepted = self._end(change)
            case Adopt():
                is_accepted = self._adopt(BackupRecord(*change.record), change.as_of, index)
            case Found():
                is_accepted = self._find(change)
            case Retire():
                is_accepted = self._retire(change)
            case Deleted():
                is_accepted = self._delete(change, index)
            case Pin() | Unpin():
                is_accepted = self._pin(change)
            case Prepare():
                is_accepted = self._prepare(change, index)
            case Restore() | Abort():
                is_accepted = self._end_recovery(change, index)
        return is_accepted

    def _prepare(self, change: Prepare, index: int) -> bool:
        is_free = all(b.state != "running" for b in self.backups.values())
        sources = [self.backups.get(backup_id) for backup_id in change.backups]
        if self.prepared is not None or not is_free:
            return False
        if any(source is None or source.state != "completed" for source in sources):
            return False
        self.prepared = index, change
        self.recoveries[index] = "prepared"
        return True

    def _end_recovery(self, change: Restore | Abort, index: int) -> bool:
        if self.prepared is None or self.prepared[0] != change.id:
            return False
        self.prepared = None
        if isinstance(change, Restore):
            self._restored_index = index
        self.recoveries[change.id] = "restored" if isinstance(change, Restore) else "aborted"
        return True

    def _begin(self, change: Begin, index: int) -> bool:
        is_free = all(b.state != "running" for b in self.backups.values())
        if self.prepared is not None:
            return False
        if not is_free or not self._fits(change.mode, change.parent, change.lineage, index):
            return False
        self.backups[index] = Backup(
            index, change.mode, change.parent, change.lineage, "running", change.destinations, set()
        )
        return True

    def _find(self, change: Found) -> bool:
        backup = self.backups.get(change.id)
        if backup is None or backup.state not in ("completed", "missing"):
            return False
        backup.state = "completed" if change.destinations else "missing"
        backup.destinations = change.destinations
        return True

    def _end(self, change: End) -> bool:
        backup = self.backups.get(change.id)
        if backup is None or backup.state != "running":
            return False
        if change.error:
            backup.state = "failed"
            return True
        if not change.destinations or not set(change.destinations) <= set(backup.destinations):
            return False
        if not change.manifest or change.position_index < change.id:
            return False
        backup.state, backup.destinations = "completed", change.destinations
        backup.position = change.position_index
        return True

    def _adopt(self, record: BackupRecord, as_of: int, index: int) -> bool:
        known = self.backups.get(record.id)
        if as_of < self._deleted_index or record.id >= index:
            return False
        if known is not None and known.state != "failed":
            return False
        if record.state == "completed":
            if record.id in self.deleted or not record.destinations:
                return False
            if not self._fits(record.mode, record.parent, record.lineage, record.position_index):
                return False
        self.backups[record.id] = Backup(
            record.id,
            record.mode,
            record.parent,
            record.lineage,
            record.state,
            tuple(record.destinations),
            set(),
            record.position_index,
        )
        return True

    def _retire(self, change: Retire) -> bool:
        newest = self.newest()
        if self.prepared is not None:
            return False
        for backup_id in change.ids:
            backup = self.backups.get(backup_id)
            if backup is None or backup.state == "running" or backup.lineage != change.lineage:
                return False
            if backup_id == newest or (backup.state == "completed" and backup.pins):
                return False
        for child in self.backups.values():
            is_kept = child.state in ("running", "completed", "missing")
            if is_kept and child.id not in change.ids and child.parent in change.ids:
                return False
        for backup_id in change.ids:
            self.backups[backup_id].state = "retired"
        self.retired |= set(change.ids)
        return True

    def _delete(self, change: Deleted, index: int) -> bool:
        if any(i not in self.backups or self.backups[i].state != "retired" for i in change.ids):
            return False
        for backup_id in change.ids:
            del self.backups[backup_id]
        self.deleted |= set(change.ids)
        self._deleted_index = index
        return True

    def _pin(self, change: Pin | Unpin) -> bool:
        backup = self.backups.get(change.id)
        if isinstance(change, Pin):
            if backup is None or backup.state != "completed":
                return False
            backup.pins.add(change.name)
            return True
        if backup is None or change.name not in backup.pins:
            return False
        backup.pins.discard(change.name)
        return True
