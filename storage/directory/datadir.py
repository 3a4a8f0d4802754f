"""The data directory: its lock, and its identity.

    data_dir/LOCK        held with flock for as long as a process uses the directory
    data_dir/identity    JSON: format, cluster_id, node_id, incarnation, peers {id: incarnation},
                         has_log: whether there must be a log; epoch, lost, damage, promised_ms:
                         see below
    data_dir/wal/        the log (`wal.py`)
    data_dir/state/      LMDB (`checkpoint.py`)
    data_dir/outgoing/   the snapshot that is being sent to members that lag (`snapshot.py`)
    data_dir/incoming/   the snapshot that is being received
    data_dir/quarantine/ damaged logs and states; only the operator removes them

The incarnation is a random number made with the directory. A member that returns with another one
has lost its disk, and with it votes and acknowledged entries. Its peers remember the first
incarnation that they saw, and refuse another one under the same id.

Damaged parts are replaced (`healing.py`) under a record in the identity, so that a start after a
crash continues. `epoch` is the healing generation (`core/raft.py`). `lost` has the parts, log or
state, that the node sets aside, each with its name in the quarantine. `damage` describes the damage
that a running node found in its state.

`promised_ms` is the longest promise that this node may ever have given to a leader
(`core/lease.py`). The node keeps it after a restart, even with other settings.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raftha.errors import ConfigError, Corrupt

FORMAT = 1
FOLDERS = {"log": "wal", "state": "state"}
"""The folder of each part that may be lost."""


def is_same(peers: Mapping[str, int], peer: int, incarnation: int) -> bool:
    """Whether `peer` has the incarnation that `peers`, from the identity, has for it."""
    return peers[str(peer)] == incarnation


class DataDirectory:
    """A locked data directory that belongs to this node of this cluster."""

    def __init__(self, path: Path, cluster_id: str, node_id: int) -> None:
        """Lock and check the directory, or make it; ConfigError if it is in use or another's."""
        self.path = path
        self.cluster_id = cluster_id
        self.node_id = node_id
        self.incarnation = secrets.randbits(63)
        self.healing_generation = 0
        self.lost: dict[str, str] = {}
        self.damage = ""
        self.promised_ms = 0
        self._peers: dict[str, int] = {}
        self._has_log = False
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(f"can't use data_dir {path}: {error.strerror}") from error
        try:
            self._take_lock()
            self._read_or_make()
        except BaseException:
            os.close(self._lock)
            raise

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"data_dir {self.path} is in use by another process",
                hint="give each process a directory of its own",
            ) from error
        except OSError as error:
            raise ConfigError(
                f"can't lock {self.path / 'LOCK'}: {error.strerror}",
                hint="data_dir must be on a file system that supports flock, such as a local disk",
            ) from error

    def close(self) -> None:
        """Release the lock; idempotent."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def check_peer(self, peer: int, incarnation: int) -> bool:
        """Whether `peer` is the one seen before; the first incarnation seen is recorded."""
        if str(peer) not in self._peers:
            self._save(peers={**self._peers, str(peer): incarnation})
        return is_same(self._peers, peer, incarnation)

    def record_log(self) -> None:
        """Record that the log exists: from now on, a missing log is a loss."""
        if not self._has_log:
            self._save(has_log=True)

    def renew_incarnation(self) -> None:
        """Take another incarnation: members that knew the earlier one refuse this node.

        This also ends healing, because those members can't restore anything.
        """
        self._save(
            incarnation=secrets.randbits(63), epoch=self.healing_generation + self.is_healing
        )

    @property
    def is_healing(self) -> bool:
        """Whether this node may lack entries that it has acknowledged."""
        return self.healing_generation % 2 == 1

    def record_damage(self, detail: str) -> None:
        """Record that the state is damaged: the next start replaces it."""
        self._save(damage=detail)

    def record_loss(self, parts: Collection[str]) -> None:
        """Record the parts that are about to be set aside; losing the log begins healing."""
        assert parts and set(parts) <= set(FOLDERS), "what is lost is a part of a node"
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        lost = {part: f"{FOLDERS[part]}-{stamp}" for part in sorted(parts)}
        generation = self.healing_generation
        if "log" in parts:
            generation += 2 if self.is_healing else 1
        self._save(epoch=generation, lost=lost)

    def set_aside(self, part: str) -> None:
        """Move a lost part into the quarantine, durably; or remove its unfinished replacement."""
        assert part in self.lost, "only what is noted as lost is set aside"
        folder, target = self.path / FOLDERS[part], self.path / "quarantine" / self.lost[part]
        if target.exists():
            shutil.rmtree(folder, ignore_errors=True)
        elif folder.exists():
            target.parent.mkdir(exist_ok=True)
            folder.rename(target)
            sync_folder(target.parent)
        sync_folder(self.path)

    def record_replaced(self) -> None:
        """Record that all lost parts are replaced."""
        self._save(lost={}, damage="")

    def record_promise(self, promised_ms: int) -> None:
        """Record the longest promise that this node may give to a leader from now on."""
        if promised_ms > self.promised_ms:
            self._save(promised_ms=promised_ms)

    def end_healing(self, generation: int) -> None:
        """Record that this node holds again all that it may have acknowledged."""
        assert self.is_healing, "only a node that heals has healed"
        assert generation == self.healing_generation + 1, "healing ends in the next generation"
        self._save(epoch=generation)

    def _read_or_make(self) -> None:
        path = self.path / "identity"
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            # No identity: a crash while it was first made. With a log beside it, it was lost.
            if (self.path / "wal").exists():
                raise Corrupt(path, 0, "the file is missing, but there is a log") from None
            self._save()
            return
        try:
            found = json.loads(content)
            owner = (found["format"], found["cluster_id"], found["node_id"])
            self.incarnation = found["incarnation"]
            self._peers = found["peers"]
            self._has_log = found["has_log"]
            self.healing_generation = found["epoch"]
            self.lost = found["lost"]
            self.damage = found["damage"]
            self.promised_ms = found.get("promised_ms", 0)
            numbers = (self.incarnation, self.healing_generation, self.promised_ms)
            if not all(type(number) is int for number in (*numbers, *self._peers.values())):
                raise TypeError("incarnations, epoch and promised_ms must be whole numbers")
            if not all(part in FOLDERS and Path(n).name == n for part, n in self.lost.items()):
                raise ValueError("lost has a name that is not a part of a node")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise Corrupt(path, 0, f"not an identity: {error}") from error
        if owner[0] != FORMAT:
            raise ConfigError(
                f"{path} has format {owner[0]}; this version of raftha reads {FORMAT}"
            )
        if owner[1:] != (self.cluster_id, self.node_id):
            raise ConfigError(
                f"data_dir {self.path} belongs to node {owner[2]} of cluster {owner[1]}, "
                f"not to node {self.node_id} of cluster {self.cluster_id}",
                hint="check data_dir, node_id, cluster_name and members: at least one has changed",
            )
        if (
            self._has_log
            and "log" not in self.lost
            and not any((self.path / "wal").glob("[0-9a-f]*.seg"))
        ):
            raise Corrupt(self.path / "wal", 0, "the log is gone")

    def _save(self, **changes: Any) -> None:
        """Replace the file by rename, durably; memory changes only after the disk."""
        record: dict[str, Any] = {
            "format": FORMAT,
            "cluster_id": self.cluster_id,
            "node_id": self.node_id,
            "incarnation": self.incarnation,
            "peers": self._peers,
            "has_log": self._has_log,
            "epoch": self.healing_generation,
            "lost": self.lost,
            "damage": self.damage,
            "promised_ms": self.promised_ms,
            **changes,
        }
        assert record["epoch"] >= self.healing_generation, "a healing generation never goes back"
        assert record["promised_ms"] >= self.promised_ms, "what was promised isn't forgotten (L2)"
        draft = self.path / "identity.tmp"
        with draft.open("w", encoding="utf-8") as file:
            json.dump(record, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(self.path / "identity")
        sync_folder(self.path)
        self.incarnation, self._peers = record["incarnation"], record["peers"]
        self._has_log, self.healing_generation = record["has_log"], record["epoch"]
        self.lost, self.damage = record["lost"], record["damage"]
        self.promised_ms = record["promised_ms"]


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
