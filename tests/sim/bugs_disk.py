"""Bugs to plant in what keeps data on a disk, and in how nodes bear its troubles. See `bugs.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from raftha.entry import Entry, HardState
from raftha.errors import StorageFull
from raftha.node.administration import Administration
from raftha.node.checkpoints import LogCut
from raftha.node.node import Node
from raftha.storage.log import wal as wal_module
from raftha.storage.log.wal import Wal
from tests.sim.planting import Bug, Patch
from tests.sim.store import DictStore


class _DeafDisk:
    """A disk that doesn't do `operation`."""

    def __init__(self, disk: Any, operation: str) -> None:
        self._disk = disk
        self._operation = operation

    def __getattr__(self, name: str) -> Any:
        if name == self._operation:
            return lambda _: None
        return getattr(self._disk, name)


class _StubbornDisk(_DeafDisk):
    """A disk that does `operation` once more if it fails."""

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._disk, name)
        if name != self._operation:
            return method

        def again(argument: Any) -> None:
            try:
                method(argument)
            except OSError:
                method(argument)

        return again


def acknowledge_before_fsync() -> list[Patch]:
    """The log writes, and says that it is durable, without waiting for the disk."""
    return [(Wal, "_write", _deaf(Wal._write, "fdatasync"))]


def rename_not_synced() -> list[Patch]:
    """A new segment's name isn't made durable before what is in it is acknowledged (W2)."""
    return [(Wal, "_roll", _deaf(Wal._roll, "sync_dir"))]


def _deaf(method: Callable[..., None], operation: str) -> Callable[..., None]:
    return _with_disk(method, lambda disk: _DeafDisk(disk, operation))


def torn_tail_not_cut() -> list[Patch]:
    """Recovery goes on behind the last whole write without making it durable, or cutting."""
    return [(wal_module, "cut_tail", lambda disk, segment, last_write: None)]


def sync_tried_again() -> list[Patch]:
    """A sync that failed is done again, and believed (W6)."""

    def stubborn(disk: Any) -> _StubbornDisk:
        return _StubbornDisk(disk, "fdatasync")

    return [(Wal, "_write", _with_disk(Wal._write, stubborn))]


def _with_disk(method: Callable[..., None], make: Callable[[Any], Any]) -> Callable[..., None]:
    """`method` of something that has a disk, on a disk that isn't what it was."""

    def replacement(self: Any, *args: Any, **options: Any) -> None:
        disk = self._disk
        self._disk = make(disk)
        try:
            method(self, *args, **options)
        finally:
            self._disk = disk

    return replacement


def full_disk_acknowledged() -> list[Patch]:
    """A write that finds no space is taken for written."""
    original = Wal.append

    def append(self: Wal, hard_state: HardState | None, entries: Sequence[Entry]) -> None:
        with suppress(StorageFull):
            original(self, hard_state, entries)

    return [(Wal, "append", append)]


def full_disk_for_good() -> list[Patch]:
    """A node whose disk was full refuses writes even when there is space again."""
    return [(Node, "on_storage_space", lambda self, *places: None)]


def sick_leader_stays() -> list[Patch]:
    """A leader whose disk hangs or is full goes on leading."""
    return [(Administration, "hand_over", lambda self, *reasons: None)]


def checkpoint_not_atomic() -> list[Patch]:
    """A checkpoint's contents become durable before the position that they are at."""
    original = DictStore.write

    def write(self: DictStore, items: Any, meta: bytes) -> None:
        late = getattr(self, "_late", None)
        original(self, items, meta)
        self._meta, self._late = late, meta  # type: ignore[attr-defined]

    return [(DictStore, "write", write)]


def log_cut_too_far() -> list[Patch]:
    """The log gives up what no checkpoint has yet (N4)."""
    return [(LogCut, "apply", lambda self, wal: wal.compact(wal.last_index))]


BUGS: tuple[Bug, ...] = (
    acknowledge_before_fsync,
    rename_not_synced,
    torn_tail_not_cut,
    sync_tried_again,
    full_disk_acknowledged,
    full_disk_for_good,
    sick_leader_stays,
    checkpoint_not_atomic,
    log_cut_too_far,
)
