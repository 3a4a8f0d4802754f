"""Snapshots of the state, as files: made by a leader, received by followers the log can't help.

Theory of operation. A snapshot is an LMDB file as of one checkpoint, whose meta says the position.
The leader's is in `outgoing`, which is emptied at each start. The follower's grows in `incoming`,
where a restart goes on with it:

    outgoing/<id>/data.mdb        a copy of the last checkpoint, made while checkpoints go on
    incoming/OFFER                JSON: which snapshot this is, how long, its SHA-256
    incoming/image/data.mdb       the first so many bytes of it; each chunk is synced
    incoming/READY                JSON: the position. The snapshot is whole, and was checked

Nothing of it is believed before it is whole; then its SHA-256, its structure as LMDB sees it, and
its meta are checked. READY commits to nothing: whether the snapshot is of use is decided when the
node opens (`install`), with nobody else at work on log and state.

Installing takes the place of log and state, in steps of which each is durable before the next:

    1  the log begins anew at the snapshot's position (`Wal.reset`)
    2  state -> state.old
    3  incoming/image -> state
    4  state.old and incoming are removed, READY last

Opening again after a crash goes on where it stopped. Before 1, it is decided anew whether the
snapshot is needed: the log may have moved on since READY was written. After 1 it always is: the
log's base is the position, and the state isn't there. After 3 there is no snapshot left but that in
its place.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import zstandard
from google_crc32c import value as crc32c
from lmdb.verify import verify

from raftha.entry import LOG_START, LogPosition
from raftha.errors import Corrupt, RafthaError, StorageFailed
from raftha.storage.log.wal import Wal
from raftha.storage.state.checkpoint import CheckpointStore
from raftha.storage.state.state import State

CHUNK_BYTES = 128 * 1024
"""Small: a chunk stands in front of heartbeats, and its sync in front of the log's."""
SYNC_BYTES = 1 << 20
"""Of a snapshot in the making, between two syncs."""
REMOVE_BYTES, REMOVE_PAUSE_S = 16 << 20, 0.01
"""A large file is removed in pieces: at once it would hold up other files' syncs."""
_FILE = "data.mdb"
_READ_BYTES = 1 << 20


class SnapshotFile(NamedTuple):
    """A snapshot of the state as of `position`."""

    snapshot_id: int
    position: LogPosition
    size: int
    sha256: bytes


class Chunk(NamedTuple):
    """A part of a snapshot, compressed; `crc` is that of the bytes before that."""

    offset: int
    crc: int
    data: bytes


def pack_chunk(offset: int, data: bytes) -> Chunk:
    """Compress a part of a snapshot."""
    return Chunk(offset, crc32c(data), zstandard.ZstdCompressor(level=1).compress(data))


def unpack_chunk(chunk: Chunk) -> bytes | None:
    """The bytes that `pack_chunk` was given; None if they were damaged on the way."""
    try:
        # What the frame says of its size is what would be allocated.
        if not 0 < zstandard.frame_content_size(chunk.data) <= CHUNK_BYTES:
            return None
        data = zstandard.ZstdDecompressor().decompress(chunk.data)
    except zstandard.ZstdError:
        return None
    return data if crc32c(data) == chunk.crc else None


class Outgoing:
    """The snapshots that this node sends, in `folder`. For storage threads."""

    def __init__(self, folder: Path) -> None:
        """Remove what an earlier run left."""
        self._folder = folder
        shutil.rmtree(folder, ignore_errors=True)

    def make(
        self, store: CheckpointStore, snapshot_id: int, throttle: Callable[[int], None]
    ) -> SnapshotFile:
        """Make a snapshot of `store`; StorageError if it can't be made.

        `throttle` is called with the size of each piece, and returns when the next may follow.
        """
        path = self._path(snapshot_id)
        folder = path.parent
        hasher = hashlib.sha256()
        try:
            folder.mkdir(parents=True)
            with path.open("wb", buffering=0) as file:

                def take(piece: bytes) -> None:
                    file.write(piece)
                    hasher.update(piece)
                    if file.tell() % SYNC_BYTES < len(piece):
                        # Nobody needs it after a crash. But what is left to the kernel goes out all
                        # at once some time later, and the log's syncs stand behind it.
                        os.fdatasync(file.fileno())
                    throttle(len(piece))

                store.copy(take)
                size = file.tell()
            position = _position(folder)
        except OSError as error:
            self.drop(snapshot_id)
            raise StorageFailed(f"{folder}: {error.strerror}") from error
        except RafthaError:
            self.drop(snapshot_id)
            raise
        return SnapshotFile(snapshot_id, position, size, hasher.digest())

    def read(self, snapshot_id: int, offset: int) -> Chunk | None:
        """The chunk at `offset`; None if the snapshot is gone or can't be read."""
        try:
            with self._path(snapshot_id).open("rb") as file:
                file.seek(offset)
                return pack_chunk(offset, file.read(CHUNK_BYTES))
        except OSError:
            return None

    def drop(self, snapshot_id: int) -> None:
        """Remove a snapshot; one that can't be removed now is at the next start."""
        _remove(self._path(snapshot_id).parent)

    def _path(self, snapshot_id: int) -> Path:
        return self._folder / f"{snapshot_id:016x}" / _FILE


class Incoming:
    """The snapshot that this node receives, in `folder`. For one storage thread at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "image" / _FILE

    def begin(self, snapshot_id: int, size: int, sha256: bytes) -> int:
        """How much of this snapshot is there already; any other one is removed."""
        offer = {"snapshot": snapshot_id, "size": size, "sha256": sha256.hex()}
        if _read_json(self._folder / "OFFER") == offer and self._file.exists():
            return min(self._file.stat().st_size, size)
        self.discard()
        self._file.parent.mkdir(parents=True)
        _write_json(self._folder / "OFFER", offer)
        self._file.touch()
        _sync_folder(self._file.parent)
        _sync_folder(self._folder)
        _sync_folder(self._folder.parent)
        return 0

    def write(self, chunk: Chunk) -> int:
        """Add a chunk, durably; how much is there then: as much as before if it is damaged."""
        data = unpack_chunk(chunk)
        if data is None:
            return chunk.offset
        with self._file.open("r+b") as file:
            assert chunk.offset <= file.seek(0, os.SEEK_END), "a snapshot grows without gaps"
            file.seek(chunk.offset)
            file.write(data)
            file.flush()
            os.fdatasync(file.fileno())
        return chunk.offset + len(data)

    def check(self, sha256: bytes, index: int) -> bool:
        """Whether the snapshot is whole, sound, and as of entry `index`; then it is made READY."""
        try:
            with self._file.open("rb") as file:
                if hashlib.file_digest(file, "sha256").digest() != sha256:
                    return False
            if verify(str(self._file)):  # type: ignore[no-untyped-call]
                return False
            position = _position(self._file.parent)
        except RafthaError:
            return False
        if position.index != index:
            return False
        _sync_folder(self._file.parent)
        ready = [*position[:-1], position.hash.hex()]
        _write_json(self._folder / "READY", {"position": ready})
        return True

    def discard(self) -> None:
        """Remove whatever is there; READY first, since it speaks for the rest."""
        (self._folder / "READY").unlink(missing_ok=True)
        if self._folder.exists():
            _sync_folder(self._folder)
        shutil.rmtree(self._folder, ignore_errors=True)


def install(data: Path, wal: Wal) -> bool:
    """Put the snapshot that is READY, if there is one, in the place of log and state.

    For a node that opens: the store must be closed. Whether a snapshot is in its place now; if it
    isn't needed any more it is removed. See the module's docstring for the steps.
    """
    incoming, state, old = data / "incoming", data / "state", data / "state.old"
    ready = _read_json(incoming / "READY")
    received = incoming / "image"
    if ready is None:
        if not received.exists():
            Incoming(incoming).discard()  # What a crash left of the last step.
        return False
    is_installed = True
    if received.exists():
        position = _ready_position(incoming / "READY", ready)
        applied = _position(state) if state.exists() else LOG_START
        is_installed = not state.exists() or is_needed(wal, applied, position)
        if is_installed:
            if wal.base != position:
                wal.reset(position)
            assert wal.base == position, "the log begins behind the snapshot"
            if state.exists():
                shutil.rmtree(old, ignore_errors=True)
                state.rename(old)
                _sync_folder(data)
            received.rename(state)
            _sync_folder(incoming)
            _sync_folder(data)
    _remove(old)
    Incoming(incoming).discard()
    return is_installed


def is_needed(wal: Wal, applied: LogPosition, position: LogPosition) -> bool:
    """Whether a snapshot as of `position` holds what this log and this state don't.

    A log with the snapshot's last entry must be kept: it may have acknowledged what comes after it.
    A log without it holds nothing after it that could be committed.
    """
    if applied.index >= position.index:
        return False
    if wal.base == position:
        return True  # An interrupted install.
    if wal.hard_state.commit >= position.index:
        return False
    is_within = wal.base.index < position.index <= wal.last_index
    return not (is_within and wal.read(position.index, 1)[0].position == position)


def _position(folder: Path) -> LogPosition:
    """The position of the state in `folder`."""
    store = CheckpointStore(folder)
    try:
        return State(store).applied
    finally:
        store.close()


def _ready_position(path: Path, ready: Any) -> LogPosition:
    try:
        index, term, time_us, last_sequence, digest = ready["position"]
        return LogPosition(index, term, time_us, last_sequence, bytes.fromhex(digest))
    except (KeyError, TypeError, ValueError) as error:
        raise Corrupt(path, 0, f"not a position: {error}") from error


def _read_json(path: Path) -> Any:
    """What the file says; None if there is none, or none that was ever completed."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _write_json(path: Path, record: dict[str, Any]) -> None:
    """Make the file with one rename, durably."""
    draft = path.with_name(path.name + ".tmp")
    with draft.open("w", encoding="utf-8") as file:
        json.dump(record, file)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
    _sync_folder(path.parent)


def _remove(folder: Path) -> None:
    """Remove a folder whose files nobody needs, a little at a time; as far as that is possible."""
    try:
        for path in folder.iterdir():
            for size in reversed(range(0, path.stat().st_size, REMOVE_BYTES)):
                os.truncate(path, size)
                time.sleep(REMOVE_PAUSE_S)  # The disk is for others meanwhile.
    except OSError:
        pass  # Then all at once, if at all.
    shutil.rmtree(folder, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
