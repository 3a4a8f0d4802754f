"""Workers that backups hand work to, as a seam: threads in a node, none in the simulator."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, Protocol


class Pool(Protocol):
    """Runs functions, in the order of their submission or at the same time."""

    def submit(self, work: Callable[..., Any], /, *args: Any) -> Future[Any]:
        """Have `work` called; the future gets its result or exception."""
        ...

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work, and wait for what runs."""
        ...


class SerialPool:
    """Does all work at once, on the calling thread."""

    def submit(self, work: Callable[..., Any], /, *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*args))
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to the future's reader
            future.set_exception(error)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        pass  # Nothing runs.


def serial_pool(name: str, threads: int) -> Pool:
    """Return a pool without threads."""
    return SerialPool()


class _Work(NamedTuple):
    future: Future[Any]
    run: Callable[..., Any]
    arguments: tuple[Any, ...]


class ThreadPool:
    """Threads that the end of the process doesn't wait for.

    Python waits at its end for those of a `ThreadPoolExecutor`, and a call of a destination may
    hang for a minute.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._work: SimpleQueue[_Work | None] = SimpleQueue()
        self._is_open = True
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Callable[..., Any], /, *args: Any) -> Future[Any]:
        assert self._is_open, "nothing is submitted after the end"
        future: Future[Any] = Future()
        self._work.put(_Work(future, work, args))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._is_open = False
        while cancel_futures:
            try:
                work = self._work.get_nowait()
            except Empty:
                break
            if work is not None:
                work.future.cancel()
        for _ in self._threads:
            self._work.put(None)
        if wait:
            self.join(None)

    def join(self, timeout_s: float | None) -> bool:
        """Wait for the threads, after `shutdown`; False if some still run."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            if not work.future.set_running_or_notify_cancel():
                continue
            try:
                result = work.run(*work.arguments)
            except BaseException as error:  # noqa: BLE001 - it belongs to the future's reader
                work.future.set_exception(error)
            else:
                work.future.set_result(result)
            del work  # Its arguments hold objects of up to 16 MiB.


def thread_pool(name: str, threads: int) -> ThreadPool:
    """Return a pool of threads."""
    return ThreadPool(threads, f"raftha-backup-{name}")
