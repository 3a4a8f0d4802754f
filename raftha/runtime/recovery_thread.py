"""Recoveries on a thread of their own: the real `RecoveryWork` of a node.

Theory of operation. One thread plans recoveries and builds states, with workers of its own. Both
may take minutes, and use no other thread of the node. Results go back as calls on the node's
thread. An error of a destination, a repository or the disk is a result; an exception that isn't
raftha's ends the node.

What is prepared lies in the data directory (`raftha/storage/directory/restoring.py`), and is found
there by the next life of the node. `close` has the job under way give up, and waits for it.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from raftha.config.backup import BackupConfig
from raftha.errors import RafthaError, StorageFailed, StorageFull
from raftha.node.recovery_work import BuiltState, PairsProgress, PlannedRecovery, RecoveryTarget
from raftha.storage.backup.opening import open_configured
from raftha.storage.backup.planner import plan_recovery
from raftha.storage.backup.pool import thread_pool
from raftha.storage.backup.recovery import RecoveryPlan, Target
from raftha.storage.backup.replay import ReplayHooks, build_image
from raftha.storage.backup.repository import Repository
from raftha.storage.backup.restore_plan import SPARE_BYTES, STATE_FACTOR
from raftha.storage.directory import skips
from raftha.storage.directory.restoring import PreparedState, Restoring
from raftha.storage.state.machine import StateMachine
from raftha.storage.state.recoveries import RecoveryRecord

T = TypeVar("T")
PROGRESS_S = 0.2
"""The node is told of progress this often at most."""


class RecoveryThread:
    """The recoveries of one life of a node, until `close`."""

    def __init__(
        self,
        name: str,
        config: BackupConfig,
        data: Path,
        machine: StateMachine | None,
        *,
        call: Callable[..., None],
        fail: Callable[[BaseException], None],
        restore: Callable[[Callable[[], None]], None],
    ) -> None:
        """`call` calls a function on the node's thread; `fail` ends the node, from any thread.

        `restore` ends the node, calls what it gets once all files are closed, and opens it again.
        """
        self._config = config
        self._data = data
        self._machine = machine
        self._call = call
        self._fail = fail
        self._restore = restore
        self._restoring = Restoring(data)
        self._prepared = self._restoring.found()
        self._repository: Repository | None = None
        self._is_closing = False
        self._cancelled = threading.Event()
        """That of the build under way; each has its own."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-recovery")

    def close(self) -> None:
        """Have the job under way give up, and wait for it."""
        self._is_closing = True
        self._cancelled.set()
        self._thread.shutdown(cancel_futures=True)
        if self._repository is not None:
            self._repository.close()

    # ---------------------------------------------------------------- RecoveryWork

    @property
    def prepared(self) -> PreparedState | None:
        return self._prepared

    def plan(self, target: RecoveryTarget, done: Callable[[PlannedRecovery], None]) -> None:
        def work() -> PlannedRecovery:
            try:
                plan = self._plan(target)
            except RafthaError as error:
                return PlannedRecovery(type(error).__name__, str(error) or type(error).__name__)
            return PlannedRecovery(
                lineage=plan.lineage,
                to_sequence=plan.position.last_sequence,
                to_us=plan.position.time_us,
                backups=tuple(link.manifest.id for link in plan.links),
            )

        self._run(work, done)

    def build(
        self, record: RecoveryRecord, on_progress: PairsProgress, done: Callable[[BuiltState], None]
    ) -> None:
        cancelled = self._cancelled = threading.Event()

        def work() -> BuiltState:
            try:
                return BuiltState("", self._build(record, cancelled, on_progress))
            except RafthaError as error:
                return BuiltState(str(error) or type(error).__name__)
            except OSError as error:
                return BuiltState(f"{error.filename or self._data}: {error.strerror}")

        def finish(built: BuiltState) -> None:
            if not cancelled.is_set():
                self._prepared = built.prepared
                done(built)

        self._prepared = None
        self._run(work, finish)

    def discard(self) -> None:
        self._cancelled.set()
        self._prepared = None
        self._run(self._restoring.discard, lambda result: None)

    def restore(self, recovery_id: int, meta: bytes) -> None:
        restoring = self._restoring
        self._restore(lambda: restoring.mark_ready(recovery_id, meta))

    # ---------------------------------------------------------------- on the thread

    def _open(self) -> Repository:
        if self._repository is None:
            now_us = time.time_ns() // 1000
            self._repository = open_configured(self._config, may_create=False, now_us=now_us)
        return self._repository

    def _plan(self, target: RecoveryTarget) -> RecoveryPlan:
        repository = self._open()
        repository.retry_failed()
        repository.refresh_keys()
        wanted = Target(sequence=target.sequence)
        if target.time_us:
            wanted = Target(time_us=target.time_us)
        return plan_recovery(repository, wanted, lineage=target.lineage)

    def _build(
        self, record: RecoveryRecord, cancelled: threading.Event, on_progress: PairsProgress
    ) -> PreparedState:
        folder = self._restoring.begin(record.id)
        plan = self._plan(RecoveryTarget(record.lineage, record.to_sequence, 0))
        needed = int(STATE_FACTOR * plan.size_bytes) + SPARE_BYTES
        free = shutil.disk_usage(self._data).free
        if free < needed:
            raise StorageFull(f"{folder}: another state may need {needed} bytes, {free} are free")
        told_at = 0.0

        def tell(done_bytes: int, total_bytes: int) -> None:
            nonlocal told_at
            if time.monotonic() - told_at >= PROGRESS_S:
                told_at = time.monotonic()
                self._call(on_progress, done_bytes, total_bytes)

        hooks = ReplayHooks(
            on_progress=tell,
            is_wanted=lambda: not (cancelled.is_set() or self._is_closing),
            pool=thread_pool,
            skips=skips.load(self._data),
        )
        image = build_image(plan, self._open(), folder, self._machine, hooks)
        if image.last_sequence != record.to_sequence:
            raise StorageFailed(f"{folder}: it was built up to sequence {image.last_sequence}")
        prepared = PreparedState(record.id, image.digest, image.keys)
        self._restoring.complete(prepared)
        return prepared

    def _run(self, work: Callable[[], T], done: Callable[[T], None]) -> None:
        def run() -> None:
            try:
                result = work()
            except Exception as error:  # noqa: BLE001 - a supervisor: whatever it is ends the node
                self._fail(error)
            else:
                self._call(done, result)

        self._thread.submit(run)
