"""Restores into a new data directory, as the beginning of another history.

Theory of operation. `restore_plan.py` says what a restore reads and makes. `run_restore` does the
work in a folder beside the directory, and renames it last. So after a crash there is no directory,
or the whole one, and the next try removes what is left:

    1  the pairs of the backups, in a new LMDB file
    2  the log behind them up to the target, if that isn't the backup itself (`replay.py`)
    3  all pairs are read again from the disk, for the digest
    4  the meta, moved to the new position; the log, which begins behind it with one entry, the new
       membership
    5  identity and `RESTORED`; sync; rename; sync
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

from raftha.entry import HardState
from raftha.errors import ConfigError, StorageFull
from raftha.storage.backup.image_stores import STATE
from raftha.storage.backup.replay import ReplayHooks, build_image, check_machine
from raftha.storage.backup.repository import Repository
from raftha.storage.backup.restore_plan import RestorePlan, check_empty, settle
from raftha.storage.directory.datadir import DataDirectory
from raftha.storage.files import sync_folder
from raftha.storage.log.disk import RealDisk
from raftha.storage.log.wal import Wal
from raftha.storage.state.checkpoint import CheckpointStore
from raftha.storage.state.machine import StateMachine
from raftha.storage.state.meta import move_meta
from raftha.version import VERSION

RESTORED = "RESTORED"
"""The file in the data directory that says what it was restored from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreResult:
    """What was restored: the digest of all pairs as they are on the disk, and their number.

    `is_proven`: a digest was compared with one that a node computed: of this state or, if there is
    none, of the full backup that it builds on.
    """

    digest: str
    keys: int
    is_proven: bool
    token: str


def run_restore(
    plan: RestorePlan,
    repository: Repository,
    hooks: ReplayHooks | None = None,
    machine: StateMachine | None = None,
) -> RestoreResult:
    """Carry out a plan: on return the data directory is there, durable and complete.

    StorageFull, StorageFailed: the disk. BackupDamaged: the backup is not what it should be.
    UpgradeRequired: the log has commands that `machine` doesn't know. BackupCancelled. After any
    error there is no data directory.
    """
    hooks = hooks or ReplayHooks()
    data_dir = plan.target.data_dir.absolute()
    check_empty(data_dir)
    if plan.free_bytes < plan.disk_bytes:
        raise StorageFull(
            f"{data_dir}: a restore may need {plan.disk_bytes} bytes, {plan.free_bytes} are free"
        )
    check_machine(plan.recovery, machine)
    data_dir.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _scratch_of(data_dir) as scratch:
        result = _Restoring(plan, repository, hooks, machine, scratch).build()
        sync_folder(scratch)
        check_empty(data_dir)
        scratch.rename(data_dir)
        sync_folder(data_dir.parent)
    hooks.on_step(5)
    return result


@contextmanager
def _scratch_of(data_dir: Path) -> Iterator[Path]:
    """Make an empty folder beside a data directory; it is gone at the end, unless renamed.

    Its lock keeps out another restore. A folder that was renamed meanwhile is another one.
    """
    scratch = data_dir.with_name(f".{data_dir.name}.restoring")
    scratch.mkdir(mode=0o700, exist_ok=True)
    handle = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            flock(handle, LOCK_EX | LOCK_NB)
        except OSError as error:
            raise ConfigError(f"another restore into {data_dir} is running") from error
        if not scratch.exists() or not os.path.samestat(os.fstat(handle), scratch.stat()):
            raise ConfigError(f"another restore into {data_dir} has just ended")
        for left in scratch.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    finally:
        os.close(handle)


@dataclass(slots=True)
class _Restoring:
    """One restore, in its scratch folder."""

    plan: RestorePlan
    repository: Repository
    hooks: ReplayHooks
    machine: StateMachine | None
    scratch: Path

    def build(self) -> RestoreResult:
        """Steps 1 to 5, but for the rename."""
        target = self.plan.target
        with ExitStack() as opened:
            # First, because a folder with a log and without an identity is a damaged one.
            data = DataDirectory(self.scratch, target.cluster_name, target.node_id)
            opened.callback(data.close)
            image = build_image(
                self.plan.recovery, self.repository, self.scratch, self.machine, self.hooks
            )
            self.plan = settle(self.plan, image.membership)
            self._move_state()
            self._begin_log()
            self.hooks.on_step(4)
            data.renew_incarnation(self.plan.incarnation)
            data.record_log()
            data.join(self.plan.membership.cluster_id, heals=False)
            result = RestoreResult(
                digest=image.digest,
                keys=image.keys,
                is_proven=bool(image.checked),
                token=self.plan.token,
            )
            self._write_record(result)
            return result

    def _move_state(self) -> None:
        """Step 4, the meta: with the new membership, else its snapshots were of the old lineage."""
        store = CheckpointStore(self.scratch / STATE, is_verified=True)
        try:
            meta = store.meta()
            assert meta is not None, "the state was restored with its meta"
            membership = bytes(self.plan.entry.payload)
            store.write((), move_meta(meta, self.plan.beginning, membership))
        finally:
            store.close()

    def _begin_log(self) -> None:
        """Step 4, the log."""
        plan, entry = self.plan, self.plan.entry
        wal = Wal.open(
            RealDisk(),
            str(self.scratch / "wal"),
            segment_bytes=plan.target.segment_bytes,
            salt=lambda: int.from_bytes(os.urandom(8), "little") or 1,
        )
        try:
            wal.reset(plan.beginning)
            vote = 0 if plan.target.token else plan.target.node_id
            wal.append(HardState(entry.term, vote, entry.index), (entry,))
        finally:
            wal.close()

    def _write_record(self, result: RestoreResult) -> None:
        path = self.scratch / RESTORED
        document = {
            "raftha_version": VERSION,
            **self.plan.as_dict(),
            "restored_digest": result.digest,
            "keys": result.keys,
        }
        path.touch(0o600)
        with path.open("w", encoding="utf-8") as file:
            json.dump(document, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
