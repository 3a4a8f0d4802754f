"""Backups on their own threads: the real `BackupWork` of a node.

Theory of operation. One thread takes backups, with workers of its own for compression and for each
destination (`storage/backup/take.py`), and one lists and deletes. Both run for minutes, and use no
other thread of the node. Results go back as calls on the node's thread. An error of a destination,
a repository or a disk is a result, and never ends the node; an exception that isn't raftha's does.

The repository is opened by the first job: a node starts without its destinations.

`close` has the jobs under way give up, and waits for them; if a destination doesn't answer, for
`HANG_S` only, since its calls may take a minute. Threads that are left then use nothing of the node
any more: none reads store or spool while it calls a destination, and what they report is dropped.
They end with their call, or with the process.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from raftha.config.backup import BackupConfig
from raftha.errors import RepositoryConflict
from raftha.events import (
    HaEvent,
    RepositoryConflicted,
    UploadCompleted,
    UploadStarted,
    VerificationFailed,
    VerificationPassed,
)
from raftha.node.backup_work import (
    BackupOrder,
    BackupProgress,
    Deletion,
    Listing,
    TakenBackup,
)
from raftha.node.statistics import Statistics
from raftha.runtime.archive_thread import ArchiveThreads
from raftha.runtime.backup_jobs import BackupJobs, Owner
from raftha.runtime.backup_pace import BackupPace
from raftha.runtime.drill_thread import DrillThread
from raftha.storage.backup.opening import open_configured
from raftha.storage.backup.pool import ThreadPool, thread_pool
from raftha.storage.backup.repository import Repository
from raftha.storage.backup.source import Source, SourceReading
from raftha.storage.backup.spool import Spool
from raftha.storage.backup.take import TakeHooks
from raftha.storage.backup.uploads import BackupCancelled, Waits
from raftha.storage.directory import skips
from raftha.storage.log.wal import Wal
from raftha.storage.state.catalog import BackupRecord
from raftha.storage.state.machine import StateMachine
from raftha.types import BackupState

log = logging.getLogger(__name__)

T = TypeVar("T")
PROGRESS_S = 0.2
"""The node is told of progress this often at most."""
HANG_S = 3.0
"""How long `close` waits for destinations that don't answer."""


class BackupThread:
    """The backups of one life of a node, until `close`."""

    def __init__(
        self,
        config: BackupConfig,
        owner: Owner,
        source: Source,
        spool: Spool | None,
        *,
        call: Callable[..., None],
        fail: Callable[[BaseException], None],
        emit: Callable[[HaEvent], None],
        statistics: Statistics,
        wal: Wal,
        data: Path,
        machine: StateMachine | None = None,
    ) -> None:
        """`call` calls a function on the node's thread; `fail` ends the node, from any thread.

        `emit` is called on the node's thread. `statistics` are the node's: its writes of the log
        pace backups, and requests to destinations are counted there. The archive reads `wal`.
        Drills use `machine`, and a folder in `data`, the data directory.
        """
        self._config = config
        self._spool = spool
        self._node_id = owner.node_id
        self._call_node = call
        self._fail = fail
        self._emit = emit
        self._statistics = statistics
        self._closing = threading.Event()
        self._cancelled = threading.Event()
        """That of the backup under way; each has its own."""
        self._repository: Repository | None = None
        self._opening = threading.Lock()
        self._source = _OwnSource(source)
        self._jobs = BackupJobs(config, owner, self._source, self._open, on_error=self._on_error)
        self.archive = ArchiveThreads(
            config,
            owner.node_id,
            wal,
            call=call,
            fail=fail,
            on_request=self._on_request,
            on_error=self._on_error,
        )
        name = f"raftha-{owner.node_id}"
        self.drills = DrillThread(
            name,
            config,
            data,
            machine,
            partial(skips.load, data),
            opened=self._open,
            call=call,
            fail=fail,
        )
        self._taking = ThreadPool(1, f"{name}-backup")
        self._upkeep = ThreadPool(1, f"{name}-backup-upkeep")
        self._workers: list[ThreadPool] = []
        """Those of backups; of earlier ones those that a destination holds up."""

    def close(self) -> None:
        """Have the jobs under way give up. On return nothing reads or calls the node any more."""
        self._closing.set()
        self._cancelled.set()
        self._source.close()
        self.archive.close()
        self.drills.close()
        deadline = time.monotonic() + HANG_S
        for pool in (self._taking, self._upkeep):
            pool.shutdown(wait=False, cancel_futures=True)
        # Workers are made by the taking thread: those of a backup that it gives up are there.
        pools = [self._taking, self._upkeep, *self._workers]
        if not all(pool.join(max(0.0, deadline - time.monotonic())) for pool in pools):
            text = "node=%d a call of a backup destination hangs: its thread is left behind"
            log.warning(text, self._node_id)
        elif self._repository is not None:
            self._repository.close()

    @property
    def spool_index(self) -> int | None:
        return None if self._spool is None else self._spool.reach.index

    def take(
        self,
        order: BackupOrder,
        on_progress: Callable[[BackupProgress], None],
        done: Callable[[TakenBackup], None],
    ) -> None:
        cancelled = self._cancelled = threading.Event()
        reporter = _Reporter(order.record, self._node_id, self._call, self._emit, on_progress)

        def work() -> TakenBackup:
            waits = Waits(
                time.monotonic,
                _sleeper(cancelled),
                lambda: not (cancelled.is_set() or self._closing.is_set()),
            )
            hooks = TakeHooks(
                waits=waits,
                now_us=_now_us,
                on_state=reporter.on_state,
                on_progress=reporter.on_progress,
                pace=self._pace(cancelled),
                on_step=reporter.on_step,
                on_out=self._on_error,
                pool=self._make_workers,
            )
            taken = self._jobs.take(order, hooks)
            reporter.on_taken(taken)
            return taken

        def finish(taken: TakenBackup) -> None:
            if not cancelled.is_set():
                done(taken)

        self._run(self._taking, work, finish)

    def cancel(self) -> None:
        self._cancelled.set()

    def list(
        self, lineage: str, known: Sequence[BackupRecord], done: Callable[[Listing], None]
    ) -> None:
        is_wanted: Callable[[], bool] = lambda: not self._closing.is_set()  # noqa: E731
        waits = Waits(time.monotonic, _sleeper(self._closing), is_wanted)
        self._run(self._upkeep, partial(self._jobs.list, lineage, known, waits), done)

    def delete(
        self, wanted: Mapping[str, Sequence[BackupRecord]], done: Callable[[Deletion], None]
    ) -> None:
        is_wanted: Callable[[], bool] = lambda: not self._closing.is_set()  # noqa: E731
        self._run(self._upkeep, partial(self._jobs.delete, wanted, is_wanted), done)

    def _make_workers(self, name: str, threads: int) -> ThreadPool:
        self._workers = [pool for pool in self._workers if not pool.join(0)]
        self._workers.append(thread_pool(name, threads))
        return self._workers[-1]

    def _call(self, function: Callable[..., None], *args: Any) -> None:
        """Call on the node's thread, unless the node has ended by now."""
        if not self._closing.is_set():
            self._call_node(function, *args)

    def _pace(self, cancelled: threading.Event) -> Callable[[int], None]:
        limit = self._config.bytes_per_s
        return BackupPace(self._statistics.log_write, limit, time.monotonic, _sleeper(cancelled))

    def _open(self) -> Repository:
        with self._opening:
            if self._repository is None:
                self._repository = open_configured(
                    self._config, may_create=True, now_us=_now_us(), on_request=self._on_request
                )
            return self._repository

    def _on_request(self, *request: str) -> None:
        # Counted on the node's thread: several threads have requests.
        self._call(self._statistics.repository_requests.update, (request,))

    def _on_error(self, error: Exception) -> None:
        if isinstance(error, RepositoryConflict):
            event = RepositoryConflicted(
                reporter=self._node_id,
                destination=error.destination,
                object_name=error.object,
                reason=str(error),
            )
            self._call(self._emit, event)

    def _run(self, thread: ThreadPool, work: Callable[[], T], done: Callable[[T], None]) -> None:
        def run() -> None:
            try:
                result = work()
            except BackupCancelled:
                assert self._closing.is_set(), "only `close` cancels what is listed or deleted"
            except Exception as error:  # noqa: BLE001 - a supervisor: whatever it is ends the node
                if not self._closing.is_set():
                    self._fail(error)
            else:
                self._call(done, result)

        thread.submit(run)


class _OwnSource:
    """A node's source, from which nothing is read once it is closed."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._reading = threading.Lock()
        self._is_closed = False

    def full(self, index: int) -> AbstractContextManager[SourceReading]:
        return self._guarded(lambda: self._source.full(index))

    def delta(self, start: int, index: int) -> AbstractContextManager[SourceReading]:
        return self._guarded(lambda: self._source.delta(start, index))

    def close(self) -> None:
        """Wait until nothing reads; for as long as that takes, since the files are closed next."""
        self._is_closed = True
        with self._reading:
            pass

    @contextmanager
    def _guarded(
        self, read: Callable[[], AbstractContextManager[SourceReading]]
    ) -> Iterator[SourceReading]:
        with self._reading:
            if self._is_closed:
                raise BackupCancelled("the node ends")
            with read() as reading:
                yield reading


class _Reporter:
    """Tells the node how far a backup is. Any of the backup's threads calls it."""

    def __init__(
        self,
        record: BackupRecord,
        node_id: int,
        call: Callable[..., None],
        emit: Callable[[HaEvent], None],
        on_progress: Callable[[BackupProgress], None],
    ) -> None:
        self._record = record
        self._node_id = node_id
        self._call = call
        self._emit = emit
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self._progress = BackupProgress(BackupState.PREPARING, 0, 0)
        self._told_at = 0.0
        self._began: dict[str, float] = {}
        """When the first object was in a destination."""
        self._uploaded: set[str] = set()
        self._read_bytes = 0

    def on_state(self, state: BackupState) -> None:
        """It is busy with this from now on."""
        if state is not self._progress.state:
            self._progress = self._progress._replace(state=state)
            self._tell()

    def on_progress(self, done: int, total: int) -> None:
        """So many bytes are read."""
        self._read_bytes = done
        self._progress = self._progress._replace(done_bytes=done, total_bytes=total)
        if time.monotonic() - self._told_at >= PROGRESS_S:
            self._tell()

    def on_step(self, step: int, what: str) -> None:
        """A step is done."""
        destination, _, name = what.partition(": ")
        if step == STORED:
            self._on_stored(destination, name)
        elif step == VERIFIED:
            self._emit_soon(
                VerificationPassed, destination=what, level=max(1, self._record.verify_level)
            )

    def on_taken(self, taken: TakenBackup) -> None:
        """It has ended: report the destinations that had it and couldn't prove it."""
        for text in taken.errors:
            destination, _, reason = text.partition(": ")
            if destination in self._uploaded:
                self._emit_soon(VerificationFailed, destination=destination, level=1, reason=reason)

    def _on_stored(self, destination: str, name: str) -> None:
        with self._lock:
            is_first = destination not in self._began
            began = self._began.setdefault(destination, time.monotonic())
            is_last = name.endswith("/manifest")
            if is_last:
                self._uploaded.add(destination)
        if is_first:
            self._emit_soon(UploadStarted, destination=destination)
        if is_last:
            self._emit_soon(
                UploadCompleted,
                destination=destination,
                size_bytes=self._read_bytes,
                duration_ms=1000 * (time.monotonic() - began),
            )

    def _emit_soon(self, kind: Callable[..., HaEvent], **fields: Any) -> None:
        event = kind(reporter=self._node_id, backup_id=self._record.id, **fields)
        self._call(self._emit, event)

    def _tell(self) -> None:
        self._told_at = time.monotonic()
        self._call(self._on_progress, self._progress)


STORED, VERIFIED = 5, 7
"""Steps of `storage/backup/take.py`."""


def _sleeper(ended: threading.Event) -> Callable[[float], None]:
    """Make a function that sleeps until the time is over, or `ended` is set."""

    def sleep(seconds: float) -> None:
        ended.wait(seconds)

    return sleep


def _now_us() -> int:
    return time.time_ns() // 1000
