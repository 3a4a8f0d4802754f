"""The member's side of a backup: it takes the one that the catalog gives it, and reports.

Theory of operation. A `begin` that names this node starts a task. It waits for a checkpoint at or
after that entry, then the host does the work. While it runs, the leader gets a report each
`REPORT_S`; the result goes to it as an `end`, again and again until the catalog has one. If the
catalog gives the backup up before, the work is cancelled.

A node that finds itself as the taker of a backup that it doesn't take has been started again, or
got its state from another node. What it had begun is lost, and it says so at once: objects have the
backup's id in their names, and are not written twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from raftha.core import Raft
from raftha.events import BackupProgress as BackupProgressEvent
from raftha.node.backup_work import BackupOrder, BackupProgress, TakenBackup
from raftha.node.checkpoints import Checkpoints
from raftha.node.host import Host
from raftha.storage.state.catalog import BackupRecord, End
from raftha.storage.state.state import State
from raftha.types import BackupState

RESTARTED = "the member that took it was started again"
_NOTHING = BackupProgress(BackupState.PREPARING, 0, 0)


@dataclass(slots=True)
class _Task:
    """A backup that this node takes: whether the host is at work, and how it ended."""

    record: BackupRecord
    is_at_work: bool = False
    progress: BackupProgress = _NOTHING
    end: End | None = None


class Taker:
    """The backups that this node takes, one at a time. All calls come from the node's thread."""

    def __init__(
        self,
        core: Raft,
        state: State,
        host: Host,
        checkpoints: Checkpoints,
        propose: Callable[[End], None],
        *,
        is_able: bool,
    ) -> None:
        """`propose` has the leader propose the end of a backup; it may get lost."""
        self._core = core
        self._state = state
        self._host = host
        self._checkpoints = checkpoints
        self._propose = propose
        self._is_able = is_able
        self._task: _Task | None = None

    @property
    def progress(self) -> tuple[int, BackupProgress]:
        """The id of the backup that this node takes, and how far it is; 0 for none."""
        if self._task is None:
            return 0, _NOTHING
        return self._task.record.id, self._task.progress

    def on_begun(self, record: BackupRecord, *, is_new: bool) -> None:
        """The catalog has a backup that begins; `is_new`: it wasn't there before a start."""
        if record.node == self._core.id and is_new and self._is_able:
            self._task = _Task(record)
            self._checkpoints.want(record.id)

    def on_tick(self) -> None:
        """Start what can start, and send what was not answered."""
        running = self._state.catalog.running
        task = self._task
        if task is not None and (running is None or running.id != task.record.id):
            self._task = None
            if task.is_at_work and task.end is None:
                self._host.backups.cancel()
        elif running is not None and running.node == self._core.id:
            if task is None:
                self._propose(_failed(running.id, RESTARTED))
            elif task.end is not None:
                self._propose(task.end)
            elif not task.is_at_work and self._checkpoints.last.index >= running.id:
                self._begin(task)

    def _forked_from(self, lineage: str) -> BackupRecord | None:
        """The newest complete backup of another lineage: this state knows only of its own past."""
        records = (r for r in self._state.catalog.records() if r.lineage != lineage)
        complete = (r for r in records if r.position_index)
        return max(complete, key=lambda record: record.position_index, default=None)

    def _begin(self, task: _Task) -> None:
        task.is_at_work = True
        parent = self._state.catalog.get(task.record.parent)
        order = BackupOrder(task.record, parent, self._forked_from(task.record.lineage))

        def on_progress(progress: BackupProgress) -> None:
            if self._task is task and task.end is None:
                self._on_progress(task, progress)

        def done(taken: TakenBackup) -> None:
            if self._task is task:
                task.end = _end(task.record.id, taken)
                self._propose(task.end)

        self._host.backups.take(order, on_progress, done)

    def _on_progress(self, task: _Task, progress: BackupProgress) -> None:
        before, task.progress = task.progress, progress
        if before.state is progress.state and _tenths(before) == _tenths(progress):
            return
        self._host.emit(
            BackupProgressEvent(
                reporter=self._core.id,
                backup_id=task.record.id,
                state=progress.state,
                done_bytes=progress.done_bytes,
                total_bytes=progress.total_bytes,
            )
        )


def _tenths(progress: BackupProgress) -> int:
    return 10 * progress.done_bytes // max(progress.total_bytes, 1)


def _failed(backup_id: int, error: str) -> End:
    return _end(backup_id, TakenBackup(error))


def _end(backup_id: int, taken: TakenBackup) -> End:
    return End(
        id=backup_id,
        destinations=taken.destinations,
        position_index=taken.position_index,
        position_sequence=taken.position_sequence,
        position_us=taken.position_us,
        keys=taken.keys,
        size_bytes=taken.size_bytes,
        size_compressed=taken.size_compressed,
        digest=taken.digest,
        manifest=taken.manifest,
        verify_level=taken.verify_level,
        errors=tuple(error[:400] for error in taken.errors),
        error=taken.error[:400],
    )
