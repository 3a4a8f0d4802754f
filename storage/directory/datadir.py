"""The data directory: its lock, and its identity.

    data_dir/LOCK        held with flock for as long as a process uses the directory, which is
                         locked itself, too: the file may be removed, as a supposed leftover
    data_dir/identity    JSON: format, cluster_id, cluster_name, node_id, incarnation,
                         is_founding: whether an operator has ordered this node to found a cluster,
                         has_log: whether there must be a log; epoch, lost, damage, promised_ms:
                         see below; checksum: SHA-256 over all the rest
    data_dir/wal/        the log (`wal.py`)
    data_dir/state/      LMDB (`checkpoint.py`)
    data_dir/spool/      what each checkpoint has changed, for backups (`backup/spool.py`)
    data_dir/outgoing/   the snapshot that is being sent to members that lag (`snapshot.py`)
    data_dir/incoming/   the snapshot that is being received
    data_dir/restoring/  the state of an earlier moment, for a recovery (`restoring.py`)
    data_dir/quarantine/ damaged logs and states; only the operator removes them

Only the owner may read and write all of this.

`cluster_id` is empty until the node founds a cluster or joins one (`raftha/node/founding.py`).
After that it never changes.

The incarnation is a random number made with the directory. A node that returns with another one
has lost its disk, and with it votes and acknowledged entries. The membership records the
incarnation of each voter (`raftha/membership.py`), so a directory that joins a cluster under an id
that had another one begins with healing.

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
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path
from typing import Any

from raftha.errors import ConfigError, Corrupt
from raftha.storage.files import describe, owner_hint, replace_file, sync_folder

FORMAT = 2
FOLDERS = {"log": "wal", "state": "state"}
"""The folder of each part that may be lost."""


_MISSING_HINT = (
    "put it back, or mount it; or remove the whole directory, and the node comes back empty"
    " and is healed by its cluster, if a majority of the others has its data"
)


class DataDirectory:
    """A locked data directory that belongs to this node."""

    def __init__(self, path: Path, cluster_name: str, node_id: int) -> None:
        """Lock and check the directory, or make it; ConfigError if it is in use or another's."""
        self.path = path
        self.cluster_name = cluster_name
        self.cluster_id = ""
        self.node_id = node_id
        self.incarnation = new_incarnation()
        self.is_founding = False
        self.healing_generation = 0
        self.lost: dict[str, str] = {}
        self.damage = ""
        self.promised_ms = 0
        self._has_log = False
        self._locks: list[int] = []
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._locks.append(os.open(path / "LOCK", flags, 0o600))
            self._locks.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            self._take_locks()
            self._read_or_make()
        except OSError as error:
            self.close()
            raise _unusable(error, path) from error
        except BaseException:
            self.close()
            raise

    def _take_locks(self) -> None:
        file, folder = self._locks
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _in_use(self.path) from error
        except OSError as error:
            raise ConfigError(
                f"can't lock {self.path / 'LOCK'}: {error.strerror}",
                hint="data_dir must be on a file system that supports flock, such as a local disk",
            ) from error
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if (self.path / "identity").exists():  # Else a restore is making this directory.
                raise _in_use(self.path) from error
        except OSError:
            pass  # Some network file systems lock only what is open for writing.

    def close(self) -> None:
        """Release the locks; idempotent."""
        while self._locks:
            os.close(self._locks.pop())

    def order_founding(self) -> None:
        """Record that an operator wants this node to found a cluster, at its next start."""
        assert not self.cluster_id, "only a node without a cluster founds one"
        self._save(is_founding=True)

    def join(self, cluster_id: str, *, heals: bool) -> None:
        """Belong to this cluster from now on.

        With `heals`, the cluster knows another directory of this node, whose promises are lost.
        """
        assert not self.cluster_id, "a node joins one cluster, once"
        generation = self.healing_generation
        if heals and not self.is_healing:
            generation += 1
        self._save(cluster_id=cluster_id, is_founding=False, epoch=generation)

    def record_log(self) -> None:
        """Record that the log exists: from now on, a missing log is a loss."""
        if not self._has_log:
            self._save(has_log=True)

    def renew_incarnation(self, incarnation: int) -> None:
        """Take the incarnation that a recovery has recorded in the log.

        This also ends healing, because no other member can restore anything.
        """
        self._save(incarnation=incarnation, epoch=self.healing_generation + self.is_healing)

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
            target.parent.mkdir(mode=0o700, exist_ok=True)
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
            # No identity: a crash while it was first made. With data beside it, it was lost.
            for folder, what in (("wal", "log"), ("state", "state")):
                if (self.path / folder).exists():
                    found = f"the file is missing, but there is a {what}"
                    raise Corrupt(path, 0, found, hint=_MISSING_HINT) from None
            self._save()
            return
        try:
            found_name, found_id = self._take(json.loads(content), path)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise Corrupt(path, 0, f"not an identity: {error}", hint=_MISSING_HINT) from error
        if (found_name, found_id) != (self.cluster_name, self.node_id):
            raise ConfigError(
                f"data_dir {self.path} belongs to node {found_id} of cluster {found_name!r}, "
                f"not to node {self.node_id} of cluster {self.cluster_name!r}",
                hint="check data_dir, node_id and cluster_name: at least one has changed",
            )
        if (
            self._has_log
            and "log" not in self.lost
            and not any(map(_is_segment, _names_in(self.path / "wal")))
        ):
            raise Corrupt(self.path / "wal", 0, "the log is gone", hint=_MISSING_HINT)

    def _take(self, found: dict[str, Any], path: Path) -> tuple[str, int]:
        """Take over what the file says; return the names of the owner that it was made for."""
        if type(found["format"]) is int and found["format"] != FORMAT:
            raise ConfigError(
                f"{path} has format {found['format']}; this version of raftha reads {FORMAT}"
            )
        if found.pop("checksum") != _checksum(found):
            raise ValueError("its checksum is wrong")
        self.cluster_id = found["cluster_id"]
        self.incarnation = found["incarnation"]
        self.is_founding = found["is_founding"]
        self._has_log = found["has_log"]
        self.healing_generation = found["epoch"]
        self.lost = found["lost"]
        self.damage = found["damage"]
        self.promised_ms = found["promised_ms"]
        numbers = (self.incarnation, self.healing_generation, self.promised_ms)
        if not all(type(number) is int for number in numbers):
            raise TypeError("incarnation, epoch and promised_ms must be whole numbers")
        if type(self.cluster_id) is not str or type(self.damage) is not str:
            raise TypeError("cluster_id and damage must be text")
        if not all(part in FOLDERS and Path(n).name == n for part, n in self.lost.items()):
            raise ValueError("lost has a name that is not a part of a node")
        return found["cluster_name"], found["node_id"]

    def _save(self, **changes: Any) -> None:
        """Replace the file by rename, durably; memory changes only after the disk."""
        record: dict[str, Any] = {
            "format": FORMAT,
            "cluster_id": self.cluster_id,
            "cluster_name": self.cluster_name,
            "node_id": self.node_id,
            "incarnation": self.incarnation,
            "is_founding": self.is_founding,
            "has_log": self._has_log,
            "epoch": self.healing_generation,
            "lost": self.lost,
            "damage": self.damage,
            "promised_ms": self.promised_ms,
            **changes,
        }
        assert record["epoch"] >= self.healing_generation, "a healing generation never goes back"
        assert record["promised_ms"] >= self.promised_ms, "what was promised isn't forgotten (L2)"
        content = json.dumps({**record, "checksum": _checksum(record)}, indent=2)
        replace_file(self.path / "identity", content)
        self.cluster_id, self.is_founding = record["cluster_id"], record["is_founding"]
        self.incarnation, self._has_log = record["incarnation"], record["has_log"]
        self.healing_generation, self.lost = record["epoch"], record["lost"]
        self.damage, self.promised_ms = record["damage"], record["promised_ms"]


def _in_use(path: Path) -> ConfigError:
    return ConfigError(
        f"data_dir {path} is in use by another process",
        hint="give each process a directory of its own",
    )


def _unusable(error: OSError, path: Path) -> ConfigError:
    return ConfigError(f"can't use data_dir {describe(error, path)}", hint=owner_hint(error))


def _names_in(folder: Path) -> list[str]:
    """The names in a folder that may be missing; OSError if that can't be known."""
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_segment(name: str) -> bool:
    return fnmatch(name, "[0-9a-f]*.seg")


def new_incarnation() -> int:
    """A random number for a data directory; never 0, which stands for an unknown one."""
    return secrets.randbits(62) + 1


def _checksum(record: Mapping[str, Any]) -> str:
    return sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
