"""Where a simulated member keeps log, state and the record of what it lost: its `NodeFiles`.

Theory of operation. The real `healing.py` works on it. The note, which a real node has in its
identity, is replaced as a whole and durable at once; folders are moved and removed likewise. A
member that is about to crash in a disk operation may do so between any two steps.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from raftha.entry import LogPosition
from raftha.errors import Corrupt
from raftha.storage.directory.healing import LOG
from raftha.storage.log.wal import Wal
from raftha.storage.state.machine import StateMachine
from raftha.storage.state.state import State
from tests.sim.disk import SimulatedDisk
from tests.sim.recoveries import RestoringDisk
from tests.sim.snapshots import SimulatedSnapshots
from tests.sim.store import DictStore


class Keeper(Protocol):
    """The member whose files these are."""

    machine: StateMachine
    skips: dict[int, bytes]
    disk: SimulatedDisk
    store: DictStore
    snapshots: SimulatedSnapshots
    restoring: RestoringDisk

    def open_wal(self) -> Wal: ...
    def may_crash(self) -> None: ...
    def on_damage(self, parts: Collection[str], found: Corrupt) -> None: ...
    def on_loss(self, position: LogPosition) -> None: ...


class SimulatedNodeFiles:
    """The files of one member, over all its lives."""

    def __init__(self, keeper: Keeper, folder: str) -> None:
        self.healing_generation = 0
        self.lost: dict[str, str] = {}
        self._keeper = keeper
        self._folder = folder
        self._wal: Wal | None = None
        self._losses = 0

    @property
    def is_healing(self) -> bool:
        return self.healing_generation % 2 == 1

    def finish_restore(self) -> None:
        self._keeper.restoring.finish(self._keeper)

    def open_log(self) -> Wal:
        self._wal = None  # Whatever it was, it belongs to an earlier life.
        self._wal = self._keeper.open_wal()
        return self._wal

    def open_state(self, wal: Wal) -> State:
        self._keeper.snapshots.install_if_ready(wal)
        state = State(self._keeper.store, self._keeper.machine)
        state.skips = self._keeper.skips
        state.check_supported()
        return state

    def peek(self) -> tuple[LogPosition, bytes | None]:
        state = State(self._keeper.store)
        return state.applied, state.membership

    def has_others(self, membership: bytes | None) -> bool:
        return True  # A cluster of one is never damaged here.

    def record_loss(self, parts: Collection[str], found: Corrupt) -> None:
        self._keeper.may_crash()
        self._keeper.on_damage(parts, found)  # It asks about the time before the loss.
        self._losses += 1
        self.lost = {part: f"{part}-{self._losses}" for part in sorted(parts)}
        if LOG in parts:
            self.healing_generation += 2 if self.is_healing else 1
        self._keeper.may_crash()

    def set_aside(self, part: str) -> None:
        self._keeper.may_crash()
        if part == LOG:
            self._keeper.disk.set_aside(self._folder, f"quarantine/{self.lost[part]}")
        else:
            self._keeper.store.close()
            self._keeper.store = DictStore()
        self._keeper.may_crash()

    def drop_snapshot(self) -> None:
        self._keeper.snapshots.discard()

    def record_replaced(self) -> None:
        if LOG in self.lost:
            self._keeper.on_loss(self.peek()[0])
        self._keeper.may_crash()
        self.lost = {}

    def end_healing(self, generation: int) -> None:
        """This member holds again all that it may have acknowledged."""
        assert generation == self.healing_generation + 1
        self.healing_generation = generation

    def close(self) -> None:
        if self._wal is not None:
            self._wal.close()
        self._wal = None
