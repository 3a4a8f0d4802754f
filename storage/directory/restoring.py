"""The state of an earlier moment, beside the present one: prepared, and put in its place.

Theory of operation. A recovery of a live cluster has each member build the state of the target
(`raftha/storage/state/recoveries.py`). It lies in `restoring` until the RESTORE entry is about to
be applied, or the recovery is given up:

    restoring/<id>/state/data.mdb   an LMDB file with the pairs of then, made by whatever builds it
    restoring/<id>/PREPARED         JSON: digest and number of pairs. The image is whole and durable
    restoring/READY                 JSON: id, and the meta behind the RESTORE entry (`meta_behind`)

READY is written when the node has ended in front of a committed RESTORE: from then on every opening
goes on from behind it. `finish`, which runs before log and state are opened, puts the image in the
place of the state. Each step is durable before the next:

    1  write the meta into the image
    2  state -> state.old
    3  image -> state
    4  remove state.old, then READY, then the rest

After a crash before READY the old state is replayed up to the RESTORE again, and the node does it
all again. After READY the next opening goes on with the step that was interrupted. The log is not
touched: it has the RESTORE, and what follows it is replayed.

An image that turns out to be damaged in step 1 is removed, and the node stands in front of the
RESTORE without one: it builds another, or gets the state of a member (`snapshot.py`).
"""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from raftha.errors import Corrupt
from raftha.storage.files import replace_file, sync_folder
from raftha.storage.state.checkpoint import CheckpointStore

FORMAT = 1
FOLDER, IMAGE, PREPARED, READY = "restoring", "state", "PREPARED", "READY"


class PreparedState(NamedTuple):
    """A state that was prepared for a recovery: the digest and the number of its pairs."""

    recovery_id: int
    digest: str
    keys: int


class Restoring:
    """The states that a node prepares. One thread at a time."""

    def __init__(self, data: Path) -> None:
        """`data` is the data directory."""
        self._data = data
        self._folder = data / FOLDER

    def found(self) -> PreparedState | None:
        """The state that is prepared, whole and durable; None if there is none."""
        for path in sorted(self._folder.glob(f"*/{PREPARED}")):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                content = json.loads(path.read_text(encoding="utf-8"))
                recovery_id = int(path.parent.name, 16)
                is_whole = (path.parent / IMAGE / "data.mdb").exists()
                if is_whole and content["format"] == FORMAT:
                    return PreparedState(recovery_id, str(content["digest"]), int(content["keys"]))
        return None

    def begin(self, recovery_id: int) -> Path:
        """Remove all that was prepared; return the empty folder in which the image is built."""
        self.discard()
        folder = self._of(recovery_id)
        for path in (self._folder, folder):
            path.mkdir(mode=0o700, exist_ok=True)
        sync_folder(self._data)
        return folder

    def complete(self, prepared: PreparedState) -> None:
        """The image is whole and durable, and has this digest."""
        folder = self._of(prepared.recovery_id)
        for path in folder.iterdir():
            if path.name != IMAGE:
                shutil.rmtree(path, ignore_errors=True)  # States on the way to it.
        content = {"format": FORMAT, "digest": prepared.digest, "keys": prepared.keys}
        sync_folder(folder)
        replace_file(folder / PREPARED, json.dumps(content))
        sync_folder(self._folder)

    def mark_ready(self, recovery_id: int, meta: bytes) -> None:
        """From the next opening on, the prepared state is the state, with this meta. Durable."""
        assert (self._of(recovery_id) / PREPARED).exists(), "what is put in place was prepared"
        content = {
            "format": FORMAT,
            "recovery": recovery_id,
            "meta": base64.b64encode(meta).decode(),
            "crc": zlib.crc32(meta),
        }
        replace_file(self._folder / READY, json.dumps(content))

    def discard(self) -> None:
        """Remove all that was prepared; READY first, because it vouches for the rest."""
        if self._folder.exists():
            (self._folder / READY).unlink(missing_ok=True)
            sync_folder(self._folder)
            shutil.rmtree(self._folder, ignore_errors=True)

    def _of(self, recovery_id: int) -> Path:
        return self._folder / f"{recovery_id:016x}"


class _Ready(NamedTuple):
    recovery_id: int
    meta: bytes


def finish(data: Path) -> bool:
    """Put the prepared state in the place of the state, if READY says so; True if it did.

    Log and state must be closed. The module's docstring has the steps.
    """
    folder, state, old = data / FOLDER, data / "state", data / "state.old"
    ready = _read_ready(folder / READY)
    if ready is None:
        return False
    image = folder / f"{ready.recovery_id:016x}" / IMAGE
    if image.exists():
        try:
            _write_meta(image, ready.meta)
        except Corrupt:
            if state.exists():
                Restoring(data).discard()
                return False
            # Without a state the damage is found where the state should be, and is healed.
        if state.exists():
            shutil.rmtree(old, ignore_errors=True)
            state.rename(old)
            sync_folder(data)
        image.rename(state)
        sync_folder(image.parent)
        sync_folder(data)
    shutil.rmtree(old, ignore_errors=True)
    Restoring(data).discard()
    return True


def _write_meta(image: Path, meta: bytes) -> None:
    """Write the meta; Corrupt if the image is damaged."""
    # Its builder has read all of it back, and closed it since.
    store = CheckpointStore(image, is_verified=True)
    try:
        store.write((), meta)
    finally:
        store.close()
    sync_folder(image)


def _read_ready(path: Path) -> _Ready | None:
    """Return what READY says; None if it is missing, or was never whole."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        meta = base64.b64decode(content["meta"])
        if content["format"] == FORMAT and content["crc"] == zlib.crc32(meta):
            return _Ready(int(content["recovery"]), meta)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        pass
    return None
