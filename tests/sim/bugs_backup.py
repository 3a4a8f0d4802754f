"""Bugs to plant in backups, from the log to the bucket. See `bugs.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from raftha.entry import LogPosition
from raftha.errors import ObjectMissing
from raftha.node.backup import choosing
from raftha.node.backup.leading import Leading
from raftha.node.backup.taking import _NOTHING, Taker
from raftha.node.backup.upkeep import Upkeep
from raftha.runtime import backup_jobs
from raftha.runtime.backup_jobs import _Listing
from raftha.storage.backup import retention, uploads
from raftha.storage.backup.spool import Spool, SpoolReading
from raftha.storage.backup.uploads import Uploads
from raftha.storage.state import catalog
from raftha.storage.state.catalog import (
    COMPLETED,
    RETIRED,
    Catalog,
    Deleted,
    Retire,
)
from raftha.storage.state.state import Frozen, State
from tests.sim.planting import Bug, Patch
from tests.sim.storage_work import StorageWork


def manifest_before_its_objects() -> list[Patch]:
    """A manifest is written first, and then what it names."""
    put = Uploads.put
    waiting: dict[int, list[tuple[str, bytes]]] = {}

    def put_late(self: Uploads, name: str, data: bytes) -> None:
        if not name.endswith("/manifest"):
            waiting.setdefault(id(self), []).append((name, data))
            return
        put(self, name, data)
        for each in waiting.pop(id(self), []):
            put(self, *each)

    return [(Uploads, "put", put_late)]


def completed_without_reading_back() -> list[Patch]:
    """What was written is taken for what is there."""
    return [(uploads, "_read_back", lambda destination, name, data: None)]


def incremental_over_a_hole() -> list[Patch]:
    """A spool that doesn't reach back to the parent is taken for one that does."""
    reading = Spool.reading

    @contextmanager
    def reading_anyway(self: Spool, index: int) -> Iterator[SpoolReading]:
        with reading(self, max(index, self.reach.index)) as found:
            start = found.start._replace(index=min(index, found.start.index))
            yield found._replace(start=start)

    return [
        (Spool, "reading", reading_anyway),
        (choosing, "_covers", lambda candidate, parent: candidate.spool_index is not None),
    ]


def delta_written_late_and_not_synced() -> list[Patch]:
    """A delta comes after its checkpoint and isn't synced, and a start takes over what it finds."""

    def write(self: StorageWork, frozen: Frozen) -> None:
        member = self._member
        member.store.write(frozen.items, frozen.meta)
        if member.faults.is_due:
            member.may_crash()
        if member.spool is not None:
            spool, sync = member.spool, member.disk.fdatasync
            member.disk.fdatasync = lambda handle: None  # type: ignore[method-assign]
            try:
                spool.add(frozen.position, frozen.meta, frozen.items)
            finally:
                member.disk.fdatasync = sync  # type: ignore[method-assign]
            spool.commit(frozen.position)

    return [(StorageWork, "_write_checkpoint", write), *spool_taken_over_as_it_is()]


def spool_taken_over_as_it_is() -> list[Patch]:
    """A start takes over all deltas, also if the state came from elsewhere since."""

    def take_over(self: Spool) -> None:
        found = [self._read_delta(name) for name in self._disk.listdir(self._folder)]
        known = [delta for delta in found if delta is not None]
        self._deltas = sorted(known, key=lambda delta: delta.end.index)

    return [(Spool, "_take_over", take_over)]


def retention_ignores_the_chain() -> list[Patch]:
    """A backup goes although one that stays builds on it."""

    def keep(*args: Any) -> Any:
        kept = keep_before(*args)
        return {
            backup_id: reasons
            for backup_id, reasons in kept.items()
            if not all("builds on it" in reason for reason in reasons)
        }

    def retire(self: Catalog, change: Retire, at: LogPosition) -> None:
        for backup_id in change.ids:
            record = self._records.get(backup_id)
            if record is not None and record != self.newest():
                self._put(record._replace(state=RETIRED))

    keep_before = retention._keep
    table = {**catalog._APPLY, Retire: retire}
    return [
        (retention, "_keep", keep),
        (retention, "_staying", lambda children, made: ""),
        (catalog, "_APPLY", table),
    ]


def deleted_before_retire_is_committed() -> list[Patch]:
    """The leader proposes to retire backups, and deletes them without waiting for it."""
    retire = Upkeep._retire

    def retire_and_delete(self: Upkeep) -> None:
        retire(self)
        assert self._config is not None
        for change in self._todo:
            if isinstance(change, Retire):
                records = [self._state.catalog.get(i) for i in change.ids]
                going = [r._replace(state=RETIRED) for r in records if r is not None]
                wanted = dict.fromkeys(self._config.destinations, going)
                self._host.backups.delete(wanted, lambda deletion: None)

    return [(Upkeep, "_retire", retire_and_delete)]


def retired_parent_accepted() -> list[Patch]:
    """A backup may build on one that is given up."""

    def is_whole(self: Catalog, backup_id: int) -> bool:
        chain = self.chain(backup_id)
        states = {COMPLETED, RETIRED}
        return bool(chain) and chain[-1].parent == 0 and all(r.state in states for r in chain)

    return [(Catalog, "is_whole", is_whole)]


def forgotten_while_objects_exist() -> list[Patch]:
    """What is retired is forgotten, whether it could be deleted or not."""

    def forget(self: Upkeep) -> None:
        forget_before(self)
        gone = tuple(record.id for record in self._own() if record.state == RETIRED)
        self._todo.clear()
        if gone:
            self._todo.append(Deleted(gone))

    forget_before = Upkeep._forget
    return [(Upkeep, "_forget", forget)]


def adopted_without_verification() -> list[Patch]:
    """A backup that the log gave up counts again as soon as its manifest is seen."""
    return [(_Listing, "_is_verified", lambda self, destination, label, sha256: True)]


def lost_by_a_late_listing() -> list[Patch]:
    """An object that isn't listed counts as lost."""

    def check(destination: Any, folder: Any, objects: Any) -> None:
        for name in objects:
            if name not in folder.sizes:
                raise ObjectMissing("not listed", destination=destination.name, object_name=name)

    return [(backup_jobs, "_check_there", check)]


def dead_taker_is_waited_for() -> list[Patch]:
    """A backup whose taker is gone runs for ever."""
    return [(Leading, "_why_lost", lambda self, running, now: "")]


def lost_end_is_not_repeated() -> list[Patch]:
    """A taker tells the leader once how its backup ended."""
    on_tick: Callable[[Taker], None] = Taker.on_tick

    def tick(self: Taker) -> None:
        if self._task is None or self._task.end is None:
            on_tick(self)
        elif self._state.catalog.running is None:
            self._task = None

    return [(Taker, "on_tick", tick)]


def restarted_taker_says_nothing() -> list[Patch]:
    """A node that finds itself as the taker of a backup that it doesn't take keeps reporting."""
    return [
        (Taker, "progress", property(_claims_progress)),
        (Taker, "on_tick", _without_the_restarted(Taker.on_tick)),
    ]


def _claims_progress(self: Taker) -> Any:
    running = self._state.catalog.running
    if running is not None and running.node == self._core.id:
        return running.id, _NOTHING
    return 0, _NOTHING


def _without_the_restarted(on_tick: Callable[[Taker], None]) -> Callable[[Taker], None]:
    def tick(self: Taker) -> None:
        running = self._state.catalog.running
        if self._task is not None or running is None or running.node != self._core.id:
            on_tick(self)

    return tick


def backups_before_all_members_know_them() -> list[Patch]:
    """A node uses the catalog as soon as its own build has one."""
    return [(State, "has_catalog", property(lambda self: self.versions is not None))]


BUGS: tuple[Bug, ...] = (
    manifest_before_its_objects,
    completed_without_reading_back,
    incremental_over_a_hole,
    delta_written_late_and_not_synced,
    spool_taken_over_as_it_is,
    retention_ignores_the_chain,
    deleted_before_retire_is_committed,
    retired_parent_accepted,
    forgotten_while_objects_exist,
    adopted_without_verification,
    lost_by_a_late_listing,
    dead_taker_is_waited_for,
    lost_end_is_not_repeated,
    restarted_taker_says_nothing,
    backups_before_all_members_know_them,
)
