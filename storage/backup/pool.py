"""Workers that backups hand work to, as a seam: threads in a node, none in the simulator."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol


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


def thread_pool(name: str, threads: int) -> Pool:
    """Return a pool of threads."""
    return ThreadPoolExecutor(threads, thread_name_prefix=f"raftha-backup-{name}")
