"""The archive on threads of its own: the real `ArchiveWork` of a node.

Theory of operation. Each destination has a thread that puts segments, and one that merges and
deletes them (`storage/backup/archive.py`). The repository is another one than that of the backups,
so that neither waits for the other's connections. It is opened by the first job; a destination that
could not be reached then is taken in by its own thread. It is the first backup that makes it: two
nodes that make one at the same time may not find out in a store that ignores conditions.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from raftha.config.backup import BackupConfig
from raftha.entry import Entry, LogPosition
from raftha.errors import RepositoryError
from raftha.storage.backup.archive import (
    ArchiveHooks,
    ArchiveOrder,
    ArchiveResult,
    DestinationArchive,
)
from raftha.storage.backup.archive_objects import Access
from raftha.storage.backup.destination import Destination
from raftha.storage.backup.opening import open_configured
from raftha.storage.backup.pool import ThreadPool
from raftha.storage.backup.repository import Repository
from raftha.storage.backup.uploads import BackupCancelled
from raftha.storage.directory.replay import read_from
from raftha.storage.log.wal import Wal


class ArchiveThreads:
    """The archive of one life of a node, until `end`."""

    def __init__(
        self,
        config: BackupConfig,
        node_id: int,
        wal: Wal,
        *,
        call: Callable[..., None],
        fail: Callable[[BaseException], None],
        on_request: Callable[..., None],
        on_error: Callable[[Exception], None],
    ) -> None:
        """`call` calls a function on the node's thread; `fail` ends the node, from any thread.

        `on_request` counts a request; `on_error` hears of the errors of jobs. Any thread calls
        them.
        """
        self._config = config
        self._call_node = call
        self._fail = fail
        self._on_request = on_request
        self._closing = threading.Event()
        self._opening = threading.Lock()
        self._repository: Repository | None = None
        self._archives: dict[str, DestinationArchive] = {}
        self._log = _OwnLog(wal)
        self._threads: dict[tuple[str, str], ThreadPool] = {}
        for name in config.destinations:
            hooks = ArchiveHooks(
                self._log.read,
                time.monotonic,
                is_wanted=self._is_wanted,
                others=partial(self._others, name),
            )
            self._archives[name] = DestinationArchive(
                partial(self._open, name), hooks, level=config.level, on_error=on_error
            )
            for job in ("put", "tidy"):
                self._threads[name, job] = ThreadPool(1, f"raftha-{node_id}-archive-{job}-{name}")

    def end(self) -> list[ThreadPool]:
        """Have the jobs under way give up; return their threads, which a destination may hold up.

        On return nothing reads the log or calls the node any more.
        """
        self._closing.set()
        self._log.close()
        for thread in self._threads.values():
            thread.shutdown(wait=False, cancel_futures=True)
        return list(self._threads.values())

    def close(self) -> None:
        """Close the repository, which none of the threads uses any more."""
        if self._repository is not None:
            self._repository.close()

    def put(
        self, destination: str, order: ArchiveOrder, done: Callable[[ArchiveResult], None]
    ) -> None:
        self._run(destination, "put", partial(self._archives[destination].put, order), done)

    def tidy(
        self, destination: str, order: ArchiveOrder, done: Callable[[ArchiveResult], None]
    ) -> None:
        self._run(destination, "tidy", partial(self._archives[destination].tidy, order), done)

    def _run(
        self,
        destination: str,
        job: str,
        work: Callable[[], ArchiveResult],
        done: Callable[[ArchiveResult], None],
    ) -> None:
        def run() -> None:
            try:
                result = work()
            except Exception as error:  # noqa: BLE001 - a supervisor: whatever it is ends the node
                if not self._closing.is_set():
                    self._fail(error)
            else:
                self._call(done, result)

        if not self._closing.is_set():
            self._threads[destination, job].submit(run)

    def _call(self, function: Callable[..., None], *args: Any) -> None:
        """Call on the node's thread, unless the node has ended by now."""
        if not self._closing.is_set():
            self._call_node(function, *args)

    def _is_wanted(self) -> bool:
        return not self._closing.is_set()

    def _open(self, name: str) -> Access:
        """Open the repository, or take in a destination that couldn't be reached before."""
        repository = self._repository
        if repository is None or name not in repository.destinations:
            with self._opening:
                repository = self._repository = self._repository or open_configured(
                    self._config,
                    may_create=False,
                    now_us=time.time_ns() // 1000,
                    on_request=self._on_request,
                    retries=0,  # The archiver repeats them itself, and a stop waits for one.
                )
                if name not in repository.destinations:
                    repository.retry_one(name)
        destination = repository.destinations.get(name)
        if destination is None:
            raise repository.failed.get(name) or RepositoryError("it is not open", destination=name)
        return Access(destination, repository.key, repository.keys)

    def _others(self, name: str) -> Sequence[Destination]:
        repository = self._repository
        if repository is None:
            return ()
        return [other for key, other in list(repository.destinations.items()) if key != name]


class _OwnLog:
    """A node's log, from which nothing is read once it is closed."""

    def __init__(self, wal: Wal) -> None:
        self._wal = wal
        self._reading = threading.Lock()
        self._is_closed = False

    def read(self, index: int) -> tuple[LogPosition, list[Entry]]:
        with self._reading:
            if self._is_closed:
                raise BackupCancelled("the node ends")
            return read_from(self._wal, index)

    def close(self) -> None:
        """Wait until nothing reads; for as long as that takes, since the files are closed next."""
        self._is_closed = True
        with self._reading:
            pass
