"""What is open for one life of a node: its log, its state, its snapshots, and their threads.

Theory of operation. A life begins when the files in the data directory are opened, and ends when
they are closed: at a stop, or when the node is reopened, to install a snapshot or to heal. Its
owner (`runtime.py`) calls, once each and in this order:

1. `open`: the log and the state, or a node that heals from their damage.
2. `make_threads`, with the node that it made from them.
3. `end_threads`, which waits for the work under way.
4. `close`.

If no node can be made after step 1, `abandon` replaces the other steps.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable, Collection

from raftha.config import HaConfig
from raftha.entry import LogPosition
from raftha.errors import Corrupt, StorageError
from raftha.events import EntrySkipped, HaEvent, StorageDamaged
from raftha.node.backup_work import BackupWork, NoBackupWork
from raftha.node.bootstrap import decode_membership
from raftha.node.node import Node
from raftha.node.recovery_work import NoRecoveryWork, RecoveryWork
from raftha.node.statistics import Statistics
from raftha.runtime.backup_jobs import Owner
from raftha.runtime.backup_thread import BackupThread
from raftha.runtime.quorum_recovery import finish_recovery
from raftha.runtime.recovery_thread import RecoveryThread
from raftha.runtime.slow_commands import SlowCommands
from raftha.runtime.snapshot_thread import SnapshotThread
from raftha.runtime.storage_threads import StorageThreads
from raftha.storage.backup.source import StoreSource
from raftha.storage.backup.spool import Spool
from raftha.storage.directory.datadir import DataDirectory
from raftha.storage.directory.healing import LOG, OpenNode, open_or_heal
from raftha.storage.directory.node_files import DirectoryNodeFiles
from raftha.storage.directory.reserve import Reserve
from raftha.storage.files import system_errors_named
from raftha.storage.log.disk import Disk, RealDisk
from raftha.storage.log.wal import Wal
from raftha.storage.state.checkpoint import CheckpointStore
from raftha.storage.state.machine import StateMachine
from raftha.storage.state.state import State

log = logging.getLogger(__name__)


class NodeStorage:
    """The files and threads of one life of a node."""

    snapshots: SnapshotThread
    """From `open` on."""
    backups: BackupWork = NoBackupWork()
    recovery: RecoveryWork = NoRecoveryWork()
    _backup_thread: BackupThread | None = None
    _recovery_thread: RecoveryThread | None = None
    spool: Spool | None
    """From `open` on; None if the settings have no backups."""
    _threads: StorageThreads
    _slow_commands: SlowCommands
    _wal: Wal
    _store: CheckpointStore

    def __init__(
        self,
        config: HaConfig,
        data: DataDirectory,
        disk: Disk,
        call: Callable[..., None],
        fail: Callable[[BaseException], None],
        emit: Callable[[HaEvent], None],
        statistics: Statistics,
    ) -> None:
        """The log is on `disk`. `call` calls a function on the node's thread, unless it has ended.

        `fail` ends the node, from any thread. `emit` reports damage that `open` finds.
        """
        self._statistics = statistics
        self._config = config
        self._data = data
        self._disk = disk
        self._call = call
        self._fail = fail
        self._emit = emit

    def open(
        self,
        machine: StateMachine | None,
        *,
        on_snapshot_error: Callable[[BaseException, bool], None],
        install: Callable[[], None],
        restore: Callable[[Callable[[], None]], None],
        lost: Corrupt | None = None,
    ) -> OpenNode:
        """Open log and state, with the received snapshot if one is ready; or leave nothing open.

        `on_snapshot_error` and `install` are as in `SnapshotThread`, `restore` as in
        `RecoveryThread`. With `lost`, the log is set aside as damaged, and the node heals.
        """
        with system_errors_named(self._data.path), contextlib.ExitStack() as opened:
            node_files = DirectoryNodeFiles(
                self._data,
                self._disk,
                self._config.wal_segment_bytes,
                machine,
                self._has_others,
                self._on_damage,
            )
            opened.callback(node_files.close)
            if lost is not None:
                node_files.record_loss((LOG,), lost)
            open_node = open_or_heal(node_files)
            finish_recovery(self._data, open_node)
            self._wal, self._store = open_node.wal, node_files.store
            self.spool = self._open_spool(open_node.state.applied)
            self._report_skips(open_node.state)
            self._open_backups(machine, restore)
            self.snapshots = SnapshotThread(
                f"raftha-{self._config.node_id}",
                self._data.path,
                self._store,
                self._call,
                on_snapshot_error,
                install,
            )
            opened.pop_all()
            return open_node

    def _open_spool(self, position: LogPosition) -> Spool | None:
        """Open the spool of a state at this position; None, and no spool, without backups."""
        folder, backup = self._data.path / "spool", self._config.backup
        if backup is None or not backup.spool_bytes:
            shutil.rmtree(folder, ignore_errors=True)
            return None
        return Spool(
            RealDisk(),
            str(folder),
            backup.spool_bytes,
            position,
            free_bytes=lambda: shutil.disk_usage(folder).free,
        )

    def _open_backups(
        self, machine: StateMachine | None, restore: Callable[[Callable[[], None]], None]
    ) -> None:
        """Make the threads of backups and recoveries, if the settings have backups."""
        config, backup = self._config, self._config.backup
        if backup is None:
            return
        self.recovery = self._recovery_thread = RecoveryThread(
            f"raftha-{config.node_id}",
            backup,
            self._data.path,
            machine,
            call=self._call,
            fail=self._fail,
            restore=restore,
        )
        owner = Owner(
            node_id=config.node_id,
            cluster_name=config.cluster_name,
            machine="" if machine is None else type(machine).__qualname__,
            commands=() if machine is None else tuple(sorted(machine.commands)),
        )
        self.backups = self._backup_thread = BackupThread(
            backup,
            owner,
            StoreSource(self._store, self.spool),
            self.spool,
            call=self._call,
            fail=self._fail,
            emit=self._emit,
            statistics=self._statistics,
            wal=self._wal,
            data=self._data.path,
            machine=machine,
        )

    def _end_backups(self) -> None:
        if self._backup_thread is not None:
            self._backup_thread.close()
        if self._recovery_thread is not None:
            self._recovery_thread.close()

    def _report_skips(self, state: State) -> None:
        for index, digest in sorted(state.skips.items()):
            if index > state.applied.index:
                own = self._config.node_id
                self._emit(EntrySkipped(reporter=own, index=index, hash=digest.hex()))

    def _has_others(self, membership: bytes | None) -> bool:
        """True if there is another voter to heal from, as far as is known."""
        others = decode_membership(membership, self._config)
        known = others.voters if membership is not None else tuple(others.members)
        return any(voter != self._config.node_id for voter in known)

    def _on_damage(self, parts: Collection[str], found: Corrupt) -> None:
        """`open` found damage and is about to set these parts aside."""
        event = StorageDamaged(
            reporter=self._config.node_id,
            path=str(found.path),
            offset=found.offset,
            detail=found.detail,
            parts=tuple(sorted(parts)),
            quarantine=str(self._data.path / "quarantine"),
            heals=LOG in parts,
        )
        log.critical("node=%d %s", self._config.node_id, found)
        self._emit(event)

    @property
    def work(self) -> tuple[SnapshotThread, BackupWork, RecoveryWork]:
        """What does the node's work on snapshots, backups and recoveries."""
        return self.snapshots, self.backups, self.recovery

    def abandon(self) -> None:
        """Close what `open` opened: there is no node to use it."""
        self._end_backups()
        self.snapshots.close()
        self._wal.close()
        self._store.close()

    def make_threads(self, node: Node) -> StorageThreads:
        """Make the storage threads of `node`; they don't run yet. Watch its commands."""
        self._threads = StorageThreads(
            self._config.node_id,
            self._wal,
            self._store,
            Reserve(self._data.path / "reserve", self._config.disk_reserve_bytes),
            self._call,
            self._fail,
            spool=self.spool,
            on_full=node.on_storage_full,
            on_space=node.on_storage_space,
            on_checkpoint=lambda done: node.on_checkpoint(*done),
            on_digest=lambda done: node.on_digest(*done),
        )
        self._slow_commands = SlowCommands(
            self._config.node_id, node.state, lambda: bool(node.failure)
        )
        self._slow_commands.start()
        return self._threads

    def end_threads(self) -> bool:
        """Wait until all threads have finished; their late results are dropped.

        False if the disk hangs: then all files must stay open.
        """
        self._slow_commands.stop()
        if not self._threads.close():
            return False
        self._end_backups()
        self.snapshots.close()
        return True

    def close(self) -> None:
        """Close log and state."""
        try:
            self._wal.close()
        except (StorageError, OSError) as error:
            log.warning("node=%d closing the log failed: %s", self._config.node_id, error)
        self._store.close()
