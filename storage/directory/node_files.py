"""A node's log and state on the real disk: the `NodeFiles` of a data directory."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from raftha.entry import LOG_START, LogPosition
from raftha.errors import Corrupt
from raftha.storage.directory import restoring, skips
from raftha.storage.directory.datadir import DataDirectory
from raftha.storage.directory.snapshot import Incoming, install
from raftha.storage.log.disk import Disk
from raftha.storage.log.wal import Wal
from raftha.storage.state.checkpoint import CheckpointStore
from raftha.storage.state.machine import StateMachine
from raftha.storage.state.state import State


class DirectoryNodeFiles:
    """The `NodeFiles` of a data directory, for one start; the caller owns what this opens."""

    def __init__(
        self,
        data: DataDirectory,
        disk: Disk,
        segment_bytes: int,
        machine: StateMachine | None,
        has_others: Callable[[bytes | None], bool],
        report: Callable[[Collection[str], Corrupt], None],
    ) -> None:
        """`report` receives the parts that are about to be set aside, and the damage.

        Corrupt if the list of entries to skip is damaged: that is no damage to log or state.
        """
        self.has_others = has_others
        self._skips = skips.load(data.path)
        self._data = data
        self._disk = disk
        self._segment_bytes = segment_bytes
        self._machine = machine
        self._report = report
        self._wal: Wal | None = None
        self._store: CheckpointStore | None = None

    @property
    def store(self) -> CheckpointStore:
        """The store of the open state."""
        assert self._store is not None, "the state is open"
        return self._store

    @property
    def lost(self) -> Mapping[str, str]:
        return self._data.lost

    def finish_restore(self) -> None:
        restoring.finish(self._data.path)

    @property
    def _state_folder(self) -> Path:
        return self._data.path / "state"

    def open_log(self) -> Wal:
        assert self._wal is None, "one log is open at a time"
        self._wal = Wal.open(
            self._disk,
            str(self._data.path / "wal"),
            segment_bytes=self._segment_bytes,
            salt=lambda: secrets.randbits(64),
        )
        self._data.record_log()
        return self._wal

    def open_state(self, wal: Wal) -> State:
        self._check_recorded_damage()
        install(self._data.path, wal)
        assert self._store is None, "one state is open at a time"
        self._store = CheckpointStore(self._state_folder)
        state = State(self._store, self._machine)
        state.skips = self._skips
        state.check_supported()
        return state

    def peek(self) -> tuple[LogPosition, bytes | None]:
        if not self._state_folder.exists():
            return LOG_START, None
        self._check_recorded_damage()
        store = CheckpointStore(self._state_folder)
        try:
            state = State(store)
            return state.applied, state.membership
        finally:
            store.close()

    def _check_recorded_damage(self) -> None:
        # Checking the whole state takes as long as reading it, so a running node finds damage when
        # it reads a damaged value, and records it for its next start.
        if self._data.damage:
            raise Corrupt(self._state_folder, 0, self._data.damage)

    def record_loss(self, parts: Collection[str], found: Corrupt) -> None:
        self._data.record_loss(parts)
        self._report(parts, found)

    def set_aside(self, part: str) -> None:
        self._data.set_aside(part)

    def drop_snapshot(self) -> None:
        Incoming(self._data.path / "incoming").discard()

    def record_replaced(self) -> None:
        self._data.record_replaced()

    def close(self) -> None:
        if self._wal is not None:
            self._wal.close()
        if self._store is not None:
            self._store.close()
        self._wal = self._store = None
