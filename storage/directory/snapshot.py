"""Snapshot files: a leader makes them, a follower behind the leader's log receives them.

Theory of operation. A snapshot is an LMDB file as of one checkpoint; its meta has the position. The
leader keeps it in `outgoing`, which is emptied at each start, and checks all its values before it
offers it: damage in the leader's state must not spread. The follower's copy grows in
`incoming`, and a restart continues it:

    outgoing/<id>/data.mdb        a copy of the last checkpoint, made while checkpoints go on
    incoming/OFFER                JSON: the snapshot's id, size and SHA-256
    incoming/image/data.mdb       the bytes received so far; each chunk is synced
    incoming/READY                JSON: the position. The snapshot is complete and was checked

The follower checks a complete snapshot: SHA-256, structure, meta. READY commits to nothing: the
next opening of the node (`install`) decides if the snapshot is still needed, while no other thread
uses log and state.

`install` replaces log and state. Each step is durable before the next:

    1  begin the log at the snapshot's position (`Wal.reset`), unless the log has that entry
    2  state -> state.old
    3  incoming/image -> state
    4  remove state.old and incoming, READY last

After a crash the next opening continues. Before step 2 it decides again if the snapshot is needed:
the log may have moved on since READY was written. After step 1 the snapshot is always needed: the
log's base is its position, or the state is missing. After step 3 the snapshot is in its place.

A log that has the snapshot's last entry needs no snapshot, with one exception: a state in front of
a RESTORE entry can't apply it without the pairs that were prepared for it
(`raftha/storage/directory/restoring.py`). Then the state alone is replaced, and the log stays.
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

from raftha.entry import LOG_START, LogPosition
from raftha.errors import Corrupt, RafthaError, StorageFailed
from raftha.storage.directory.replay import has_restore
from raftha.storage.files import replace_file, sync_folder
from raftha.storage.log.wal import Wal
from raftha.storage.state.checkpoint import CheckpointStore
from raftha.storage.state.lmdb_file import find_damage
from raftha.storage.state.state import State

CHUNK_BYTES = 128 * 1024
"""Small, because a chunk delays heartbeats, and its sync delays the log's."""
SYNC_BYTES = 1 << 20
"""Bytes written between two syncs while a snapshot is made."""
REMOVE_BYTES, REMOVE_PAUSE_S = 16 << 20, 0.01
"""A large file is removed in pieces; removing it at once would delay other files' syncs."""
CHECK_PAIRS, CHECK_PAUSE_S = 256, 0.0002
"""Values are checked in pieces, between which other threads get the GIL."""
_FILE = "data.mdb"
_READ_BYTES = 1 << 20


class SnapshotFile(NamedTuple):
    """A snapshot of the state as of `position`."""

    snapshot_id: int
    position: LogPosition
    size: int
    sha256: bytes


class Chunk(NamedTuple):
    """A compressed part of a snapshot; `crc` is that of the uncompressed bytes."""

    offset: int
    crc: int
    data: bytes


def pack_chunk(offset: int, data: bytes) -> Chunk:
    """Compress a part of a snapshot into a chunk."""
    return Chunk(offset, crc32c(data), zstandard.ZstdCompressor(level=1).compress(data))


def unpack_chunk(chunk: Chunk) -> bytes | None:
    """Return the bytes of a chunk; None if it is damaged."""
    try:
        # The decompressor allocates the size that the frame states.
        if not 0 < zstandard.frame_content_size(chunk.data) <= CHUNK_BYTES:
            return None
        data = zstandard.ZstdDecompressor().decompress(chunk.data)
    except zstandard.ZstdError:
        return None
    return data if crc32c(data) == chunk.crc else None


class Outgoing:
    """The snapshots that this node sends, in `folder`. Used by storage threads."""

    def __init__(self, folder: Path) -> None:
        """Remove the snapshots of an earlier run."""
        self._folder = folder
        shutil.rmtree(folder, ignore_errors=True)

    def make(
        self, store: CheckpointStore, snapshot_id: int, throttle: Callable[[int], None]
    ) -> SnapshotFile:
        """Make a snapshot of `store`; StorageError if that fails, Corrupt if `store` is damaged.

        `throttle` is called with the size of each piece, and returns when the next may follow.
        """
        path = self._path(snapshot_id)
        folder = path.parent
        hasher = hashlib.sha256()
        try:
            _make_folder(folder)
            path.touch(0o600)
            with path.open("wb", buffering=0) as file:

                def take(piece: bytes) -> None:
                    file.write(piece)
                    hasher.update(piece)
                    if file.tell() % SYNC_BYTES < len(piece):
                        # Not for durability: a crash discards the file. But the kernel would
                        # write all of it at once later, and the log's syncs would wait.
                        os.fdatasync(file.fileno())
                    if not store.is_copy_costly:
                        throttle(len(piece))

                store.copy(take)
                size = file.tell()
            position = _check_copy(folder, store)
        except OSError as error:
            self.drop(snapshot_id)
            raise StorageFailed(f"{folder}: {error.strerror}") from error
        except RafthaError:
            self.drop(snapshot_id)
            raise
        return SnapshotFile(snapshot_id, position, size, hasher.digest())

    def read(self, snapshot_id: int, offset: int) -> Chunk | None:
        """Return the chunk at `offset`; None if the snapshot is gone or can't be read."""
        try:
            with self._path(snapshot_id).open("rb") as file:
                file.seek(offset)
                return pack_chunk(offset, file.read(CHUNK_BYTES))
        except OSError:
            return None

    def drop(self, snapshot_id: int) -> None:
        """Remove a snapshot; if that fails, the next start removes it."""
        _remove(self._path(snapshot_id).parent)

    def _path(self, snapshot_id: int) -> Path:
        return self._folder / f"{snapshot_id:016x}" / _FILE


class Incoming:
    """The snapshot that this node receives, in `folder`. One thread at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "image" / _FILE

    def begin(self, snapshot_id: int, size: int, sha256: bytes) -> int:
        """Return how many bytes of this snapshot are there already; remove any other one."""
        offer = {"snapshot": snapshot_id, "size": size, "sha256": sha256.hex()}
        if _read_json(self._folder / "OFFER") == offer and self._file.exists():
            return min(self._file.stat().st_size, size)
        self.discard()
        _make_folder(self._file.parent)
        replace_file(self._folder / "OFFER", json.dumps(offer))
        self._file.touch(0o600)
        sync_folder(self._file.parent)
        sync_folder(self._folder)
        sync_folder(self._folder.parent)
        return 0

    def write(self, chunk: Chunk) -> int:
        """Add a chunk, durably; return the new size, which a damaged chunk leaves unchanged."""
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
        """Mark the snapshot READY if it is complete, sound and as of entry `index`."""
        try:
            with self._file.open("rb") as file:
                if hashlib.file_digest(file, "sha256").digest() != sha256:
                    return False
            if find_damage(self._file):
                return False
            position = _position(self._file.parent, is_verified=True)
        except RafthaError:
            return False
        if position.index != index:
            return False
        sync_folder(self._file.parent)
        ready = [*position[:-1], position.hash.hex()]
        replace_file(self._folder / "READY", json.dumps({"position": ready}))
        return True

    def discard(self) -> None:
        """Remove all files; READY first, because it vouches for the others."""
        (self._folder / "READY").unlink(missing_ok=True)
        if self._folder.exists():
            sync_folder(self._folder)
        shutil.rmtree(self._folder, ignore_errors=True)


def install(data: Path, wal: Wal) -> bool:
    """Replace log and state by the snapshot that is READY, if there is one and it is needed.

    The store must be closed. Return True if a snapshot was installed; one that isn't needed is
    removed. The module's docstring has the steps.
    """
    incoming, state, old = data / "incoming", data / "state", data / "state.old"
    position = _ready_position(incoming / "READY")
    received = incoming / "image"
    if position is None:
        if not received.exists():
            Incoming(incoming).discard()  # A crash interrupted the last step.
        return False
    is_installed = True
    if received.exists():
        applied = _position(state) if state.exists() else LOG_START
        is_installed = not state.exists() or is_needed(wal, applied, position)
        if is_installed:
            begin_log(wal, position)
            if state.exists():
                shutil.rmtree(old, ignore_errors=True)
                state.rename(old)
                sync_folder(data)
            received.rename(state)
            sync_folder(incoming)
            sync_folder(data)
    _remove(old)
    Incoming(incoming).discard()
    return is_installed


def is_needed(wal: Wal, applied: LogPosition, position: LogPosition) -> bool:
    """Whether a snapshot as of `position` has entries that this log and this state lack.

    A log that has the snapshot's last entry must stay: later entries may be acknowledged. If the
    log lacks that entry, none of its later entries can be committed.
    """
    if applied.index >= position.index:
        return False
    if wal.base == position:
        return True  # A crash interrupted an install.
    if has_entry(wal, position):
        return has_restore(wal, applied.index, position.index)
    return wal.hard_state.commit < position.index


def begin_log(wal: Wal, position: LogPosition) -> None:
    """Begin the log at a snapshot's position, unless it has that entry."""
    if wal.base != position and not has_entry(wal, position):
        wal.reset(position)
        assert wal.base == position, "the log begins behind the snapshot"


def has_entry(wal: Wal, position: LogPosition) -> bool:
    """Whether the log has the entry of this position, beyond its base."""
    is_within = wal.base.index < position.index <= wal.last_index
    return is_within and wal.read(position.index, 1)[0].position == position


def _check_copy(folder: Path, original: CheckpointStore) -> LogPosition:
    """Return the position of a new snapshot, after checking all its values."""
    try:
        copy = CheckpointStore(folder, is_verified=True)
        try:
            _check_values(copy)
            return State(copy).applied
        finally:
            copy.close()
    except Corrupt as damage:
        original.digest()  # Corrupt, if the damage is there.
        raise StorageFailed(f"{folder}: the copy is damaged: {damage.detail}") from damage


def _check_values(store: CheckpointStore) -> None:
    """Read all values of a store that doesn't change; Corrupt if one is damaged or missing."""
    start: bytes | None = None
    found = 0
    while pairs := store.scan(start, None, limit=CHECK_PAIRS, reverse=False):
        start = pairs[-1][0] + b"\0"
        found += len(pairs)
        time.sleep(CHECK_PAUSE_S)
    expected = store.census([]).entries
    if found != expected:
        raise store.corrupt(f"it should have {expected} keys, and {found} are found")


def _position(folder: Path, *, is_verified: bool = False) -> LogPosition:
    """Return the position of the state in `folder`."""
    store = CheckpointStore(folder, is_verified=is_verified)
    try:
        return State(store).applied
    finally:
        store.close()


def _ready_position(path: Path) -> LogPosition | None:
    """The position in READY; None if it is missing or damaged.

    Damage there is none of log and state. The snapshot is checked once more, or sent again.
    """
    try:
        index, term, time_us, last_sequence, digest = _read_json(path)["position"]
        return LogPosition(index, term, time_us, last_sequence, bytes.fromhex(digest))
    except (KeyError, TypeError, ValueError):
        return None


def _read_json(path: Path) -> Any:
    """Return the file's content; None if it is missing or incomplete."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _remove(folder: Path) -> None:
    """Remove a folder with unused files in small steps, as far as possible."""
    try:
        for path in folder.iterdir():
            for size in reversed(range(0, path.stat().st_size, REMOVE_BYTES)):
                os.truncate(path, size)
                time.sleep(REMOVE_PAUSE_S)  # Other files' syncs come first.
    except OSError:
        pass  # `rmtree` removes what it can.
    shutil.rmtree(folder, ignore_errors=True)


def _make_folder(folder: Path) -> None:
    """Make a folder and its parents, for the owner only."""
    for path in (*reversed(folder.parents), folder):
        if not path.exists():
            path.mkdir(0o700)
