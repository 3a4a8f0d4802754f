"""Snapshots of the state in the simulation: `raftha.node.snapshots.SnapshotFiles`, made of events.

Theory of operation. A snapshot is the bytes of a `DictStore`. Those that are sent live in memory
and are gone with the process; the one that is received survives whatever happens, as each of its
chunks is synced, and a restart finds it. A full disk takes neither. The chunks are packed and
checked by the code that packs and checks the real ones. A member that has a whole snapshot stops,
and installs it when it starts again: the log is reset on the simulated disk, which may crash at
each step, then the store is another one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from raftha.core import SnapshotOffer
from raftha.entry import LogPosition
from raftha.node.snapshot_rate import SnapshotRate
from raftha.storage.directory import snapshot as real
from raftha.storage.directory.snapshot import Chunk, SnapshotFile, pack_chunk, unpack_chunk
from raftha.storage.log.wal import Wal
from raftha.storage.state.state import State
from tests.sim.store import DictStore

CHECK_S = (0.0, 0.3, 1.0, 1.0)


class Owner(Protocol):
    """The member whose snapshots these are."""

    store: DictStore

    def on_disk(self, work: Callable[[], Any], done: Callable[[Any], None], pause: float) -> None:
        """Do `work` when the disk gets to it, and `done` with its result `pause` later."""
        ...

    def pick_pause(self, pauses: tuple[float, ...]) -> float: ...
    def end_for_snapshot(self) -> None: ...
    def on_reset(self, wal: Wal, position: LogPosition) -> None: ...
    def may_crash(self) -> None: ...


@dataclass(slots=True)
class IncomingSnapshot:
    """The snapshot that is being received; `ready` once it is whole."""

    snapshot_id: int = 0
    data: bytearray = field(default_factory=bytearray)
    ready: LogPosition | None = None


class SimulatedSnapshots:
    """The snapshots of one member."""

    def __init__(self, owner: Owner, chunk_bytes: int) -> None:
        self.chunk_bytes = chunk_bytes
        self._owner = owner
        self._outgoing: dict[int, bytes] = {}
        self._incoming = IncomingSnapshot()

    def crash(self) -> None:
        """Lose what was in memory only."""
        self._outgoing.clear()

    # ---------------------------------------------------------------- SnapshotFiles

    def make(
        self, snapshot_id: int, rate: SnapshotRate, done: Callable[[SnapshotFile | None], None]
    ) -> None:
        self._owner.on_disk(lambda: self._make(snapshot_id), done, self._owner.pick_pause(CHECK_S))

    def _make(self, snapshot_id: int) -> SnapshotFile | None:
        if self._owner.store.is_full:
            return None
        data = self._outgoing[snapshot_id] = self._owner.store.snapshot()
        position = State(DictStore.from_snapshot(data)).applied
        return SnapshotFile(snapshot_id, position, len(data), hashlib.sha256(data).digest())

    def read(
        self, snapshot: SnapshotFile, offset: int, done: Callable[[Chunk | None], None]
    ) -> None:
        self._owner.on_disk(lambda: self._read(snapshot, offset), done, 0.0)

    def _read(self, snapshot: SnapshotFile, offset: int) -> Chunk | None:
        data = self._outgoing.get(snapshot.snapshot_id)
        return (
            None if data is None else pack_chunk(offset, data[offset : offset + self.chunk_bytes])
        )

    def drop(self, snapshot_id: int) -> None:
        self._outgoing.pop(snapshot_id, None)

    def begin(self, offer: SnapshotOffer, done: Callable[[int | None], None]) -> None:
        self._owner.on_disk(lambda: self._begin(offer), done, 0.0)

    def _begin(self, offer: SnapshotOffer) -> int | None:
        if self._owner.store.is_full:
            return None
        if self._incoming.snapshot_id != offer.snapshot_id:
            self._incoming = IncomingSnapshot(offer.snapshot_id)
        return len(self._incoming.data)

    def write(self, chunk: Chunk, done: Callable[[int | None], None]) -> None:
        self._owner.on_disk(lambda: self._write(chunk), done, 0.0)

    def _write(self, chunk: Chunk) -> int | None:
        if self._owner.store.is_full:
            return None
        data = unpack_chunk(chunk)
        assert data is not None, "this network damages nothing"
        assert chunk.offset == len(self._incoming.data)
        self._incoming.data += data
        return len(self._incoming.data)

    def check(self, offer: SnapshotOffer, done: Callable[[bool], None]) -> None:
        self._owner.on_disk(lambda: self._check(offer), done, self._owner.pick_pause(CHECK_S))

    def _check(self, offer: SnapshotOffer) -> bool:
        data = bytes(self._incoming.data)
        position = State(DictStore.from_snapshot(data)).applied
        assert hashlib.sha256(data).digest() == offer.sha256 and position.index == offer.index
        self._incoming.ready = position
        return True

    def discard(self) -> None:
        self._incoming = IncomingSnapshot()

    def install(self) -> None:
        self._owner.end_for_snapshot()

    # ---------------------------------------------------------------- at the start

    def install_if_ready(self, wal: Wal) -> bool:
        """Do what `storage.directory.snapshot.install` does; whether there is another store now."""
        owner, incoming, position = self._owner, self._incoming, self._incoming.ready
        if position is None:
            return False
        is_needed = real.is_needed(wal, State(owner.store).applied, position)
        if is_needed:
            if wal.base != position and not real.has_entry(wal, position):
                owner.on_reset(wal, position)
            real.begin_log(wal, position)
            owner.may_crash()
            is_full = owner.store.is_full
            owner.store = DictStore.from_snapshot(bytes(incoming.data))
            owner.store.is_full = is_full
        self._incoming = IncomingSnapshot()
        return is_needed
