"""Drills on a thread of their own, which waits for another process: the real `DrillWork`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from raftha.config.backup import BackupConfig
from raftha.errors import RafthaError
from raftha.recovery import DrillReport
from raftha.runtime.drill import run_in_process
from raftha.storage.backup.drill import DrillOrder, last_report
from raftha.storage.backup.pool import ThreadPool
from raftha.storage.backup.repository import Repository
from raftha.storage.state.machine import StateMachine

FOLDER = "drill"
"""Where a drill builds its state, in the data directory; removed at its end."""


class DrillThread:
    """The drills of one life of a node, until `end`."""

    def __init__(
        self,
        name: str,
        config: BackupConfig,
        data: Path,
        machine: StateMachine | None,
        skips: Callable[[], Mapping[int, bytes]],
        *,
        opened: Callable[[], Repository],
        call: Callable[..., None],
        fail: Callable[[BaseException], None],
    ) -> None:
        """`opened` returns the repository; `call` calls a function on the node's thread."""
        self._config = config
        self._folder = data / FOLDER
        self._machine = machine
        self._skips = skips
        self._opened = opened
        self._call_node = call
        self._fail = fail
        self._closing = threading.Event()
        self._thread = ThreadPool(1, f"{name}-drill")

    def end(self) -> list[ThreadPool]:
        """End the process under way; return the thread, which a destination may hold up.

        On return nothing calls the node any more.
        """
        self._closing.set()
        self._thread.shutdown(wait=False, cancel_futures=True)
        return [self._thread]

    def last(self, lineage: str, done: Callable[[DrillReport | None], None]) -> None:
        def work() -> None:
            try:
                found = last_report(self._opened(), lineage)
            except RafthaError:
                found = None  # It is asked again tomorrow.
            self._call(done, found)

        self._run(work)

    def run(self, order: DrillOrder, done: Callable[[DrillReport], None]) -> None:
        def work() -> None:
            report = run_in_process(
                order,
                self._config,
                self._folder,
                self._machine,
                self._skips(),
                lambda: not self._closing.is_set(),
            )
            self._call(done, report)

        self._run(work)

    def _run(self, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - a supervisor: whatever it is ends the node
                if not self._closing.is_set():
                    self._fail(error)

        if not self._closing.is_set():
            self._thread.submit(run)

    def _call(self, function: Callable[..., None], *args: Any) -> None:
        """Call on the node's thread, unless the node has ended by now."""
        if not self._closing.is_set():
            self._call_node(function, *args)
