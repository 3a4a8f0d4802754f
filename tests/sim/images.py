"""Images of the state in the simulation: `raftha.node.snapshots.SnapshotFiles`, made of events.

Theory of operation. An image is the bytes of a `DictStore`. Those that are sent live in memory and
are gone with the process; the one that is received survives whatever happens, as each of its chunks
is synced, and a restart finds it. A full disk takes neither. The chunks are packed and checked by
the code that packs and checks the real ones. A member that has a whole image stops, and installs it
when it starts again: the log is reset on the simulated disk, which may crash at each step, then the
store is another one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from raftha.core import SnapshotOffer
from raftha.entry import LogPosition
from raftha.node.snapshot_rate import Pace
from raftha.storage.directory import snapshot as real
from raftha.storage.directory.snapshot import Chunk, Image, pack_chunk, unpack_chunk
from raftha.storage.log.wal import Wal
from raftha.storage.state.state import State
from tests.sim.store import DictStore

CHECK_S = (0.0, 0.3, 1.0, 1.0)


class Owner(Protocol):
    """The member whose images these are."""

    store: DictStore

    def on_disk(self, work: Callable[[], Any], done: Callable[[Any], None], pause: float) -> None:
        """Do `work` when the disk gets to it, and `done` with its result `pause` later."""
        ...

    def pick_pause(self, pauses: tuple[float, ...]) -> float: ...
    def end_for_image(self) -> None: ...
    def on_reset(self, wal: Wal, position: LogPosition) -> None: ...
    def may_crash(self) -> None: ...


@dataclass(slots=True)
class Inbox:
    """The image that is being received; `ready` once it is whole."""

    snapshot: int = 0
    data: bytearray = field(default_factory=bytearray)
    ready: LogPosition | None = None


class SimulatedFiles:
    """The images of one member."""

    def __init__(self, owner: Owner, chunk_bytes: int) -> None:
        self.chunk_bytes = chunk_bytes
        self._owner = owner
        self._outgoing: dict[int, bytes] = {}
        self._inbox = Inbox()

    def crash(self) -> None:
        """Lose what was in memory only."""
        self._outgoing.clear()

    # ---------------------------------------------------------------- SnapshotFiles

    def make(self, snapshot: int, pace: Pace, done: Callable[[Image | None], None]) -> None:
        self._owner.on_disk(lambda: self._make(snapshot), done, self._owner.pick_pause(CHECK_S))

    def _make(self, snapshot: int) -> Image | None:
        if self._owner.store.is_full:
            return None
        data = self._outgoing[snapshot] = self._owner.store.image()
        position = State(DictStore.from_image(data)).applied
        return Image(snapshot, position, len(data), hashlib.sha256(data).digest())

    def read(self, image: Image, offset: int, done: Callable[[Chunk | None], None]) -> None:
        self._owner.on_disk(lambda: self._read(image, offset), done, 0.0)

    def _read(self, image: Image, offset: int) -> Chunk | None:
        data = self._outgoing.get(image.snapshot)
        return (
            None if data is None else pack_chunk(offset, data[offset : offset + self.chunk_bytes])
        )

    def drop(self, snapshot: int) -> None:
        self._outgoing.pop(snapshot, None)

    def begin(self, offer: SnapshotOffer, done: Callable[[int | None], None]) -> None:
        self._owner.on_disk(lambda: self._begin(offer), done, 0.0)

    def _begin(self, offer: SnapshotOffer) -> int | None:
        if self._owner.store.is_full:
            return None
        if self._inbox.snapshot != offer.snapshot:
            self._inbox = Inbox(offer.snapshot)
        return len(self._inbox.data)

    def write(self, chunk: Chunk, done: Callable[[int | None], None]) -> None:
        self._owner.on_disk(lambda: self._write(chunk), done, 0.0)

    def _write(self, chunk: Chunk) -> int | None:
        if self._owner.store.is_full:
            return None
        data = unpack_chunk(chunk)
        assert data is not None, "this network damages nothing"
        assert chunk.offset == len(self._inbox.data)
        self._inbox.data += data
        return len(self._inbox.data)

    def check(self, offer: SnapshotOffer, done: Callable[[bool], None]) -> None:
        self._owner.on_disk(lambda: self._check(offer), done, self._owner.pick_pause(CHECK_S))

    def _check(self, offer: SnapshotOffer) -> bool:
        data = bytes(self._inbox.data)
        position = State(DictStore.from_image(data)).applied
        assert hashlib.sha256(data).digest() == offer.sha256 and position.index == offer.index
        self._inbox.ready = position
        return True

    def discard(self) -> None:
        self._inbox = Inbox()

    def install(self) -> None:
        self._owner.end_for_image()

    # ---------------------------------------------------------------- at the start

    def install_if_ready(self, wal: Wal) -> bool:
        """Do what `storage.directory.snapshot.install` does; whether there is another store now."""
        owner, inbox, position = self._owner, self._inbox, self._inbox.ready
        if position is None:
            return False
        is_needed = real.is_needed(wal, State(owner.store).applied, position)
        if is_needed:
            if wal.base != position:
                owner.on_reset(wal, position)
                wal.reset(position)
            owner.may_crash()
            is_full = owner.store.is_full
            owner.store = DictStore.from_image(bytes(inbox.data))
            owner.store.is_full = is_full
        self._inbox = Inbox()
        return is_needed
