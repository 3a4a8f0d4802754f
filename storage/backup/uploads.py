"""Puts a backup's objects into its destinations, and reads each one back.

Theory of operation. Each destination has workers and a short queue of its own, so a slow one holds
up the others only once its queue is full. An object counts once it was read back with the same
bytes. What fails is tried again for `retry_s`, then the destination is out of this backup, with the
error; the others go on. Objects are never replaced, so a put can be repeated (`create_or_compare`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from hashlib import sha256
from typing import NamedTuple

from raftha.errors import (
    BackupDamaged,
    ObjectMissing,
    ObjectTooLarge,
    RafthaError,
    RepositoryUnavailable,
)
from raftha.storage.backup.destination import Destination, create_or_compare
from raftha.storage.backup.pool import Pool, serial_pool

IN_FLIGHT_MAX = 4
"""Objects that a destination has in its queue: 64 MiB."""
THREADS = 2
"""Workers of a destination."""
TRIES_MIN = 3
LOOK_S = 0.1
"""How often it is seen that a backup is no longer wanted, while a destination doesn't answer."""
PAUSE_S, PAUSE_MAX_S = 0.2, 5.0
"""Pauses between tries: the first, and the longest; each is twice the one before."""


class BackupCancelled(RafthaError):
    """The backup is no longer wanted."""


class Waits(NamedTuple):
    """The time, as the uploads see it: in the simulator it is virtual."""

    monotonic: Callable[[], float]
    sleep: Callable[[float], object]
    is_wanted: Callable[[], bool] = lambda: True


@dataclass(slots=True)
class _Queue:
    """One destination's part."""

    destination: Destination
    pool: Pool
    pending: deque[Future[None]] = field(default_factory=deque)
    error: str = ""


class Uploads:
    """The destinations of one backup."""

    def __init__(
        self,
        destinations: Mapping[str, Destination],
        waits: Waits,
        retry_s: float,
        *,
        pool: Callable[[str, int], Pool] = serial_pool,
        on_stored: Callable[[str, str], None] = lambda destination, name: None,
        on_out: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        """`pool` makes workers; `on_stored` gets each object that was read back, on one of them.

        `on_out` gets the error for which a destination is out.
        """
        self._on_out = on_out
        self._waits = waits
        self._retry_s = retry_s
        self._on_stored = on_stored
        self._queues = {
            name: _Queue(destination, pool(name, THREADS))
            for name, destination in destinations.items()
        }

    @property
    def alive(self) -> dict[str, Destination]:
        """The destinations that have everything so far."""
        return {name: queue.destination for name, queue in self._queues.items() if not queue.error}

    @property
    def errors(self) -> dict[str, str]:
        """Why the others don't."""
        return {name: queue.error for name, queue in self._queues.items() if queue.error}

    def put(self, name: str, data: bytes) -> None:
        """Have an object stored everywhere. Waits while a destination's queue is full."""
        for queue in self._queues.values():
            if queue.error:
                continue
            while len(queue.pending) >= IN_FLIGHT_MAX:
                self._finish_oldest(queue)
            queue.pending.append(queue.pool.submit(self._store, queue, name, data))
            while queue.pending and queue.pending[0].done():
                self._finish_oldest(queue)

    def wait(self) -> None:
        """Wait until all that was put is stored, or its destination is out."""
        for queue in self._queues.values():
            while queue.pending:
                self._finish_oldest(queue)

    def fail(self, name: str, error: Exception) -> None:
        """Leave a destination out of this backup."""
        queue = self._queues[name]
        if not queue.error:
            queue.error = str(error)
            self._on_out(error)

    def close(self) -> None:
        """Drop what waits, and wait for the workers, unless the backup is no longer wanted."""
        for queue in self._queues.values():
            queue.pool.shutdown(wait=self._waits.is_wanted(), cancel_futures=True)

    def _finish_oldest(self, queue: _Queue) -> None:
        oldest = queue.pending.popleft()
        while not oldest.done():
            wait([oldest], LOOK_S)
            if not self._waits.is_wanted():
                raise BackupCancelled("the backup is no longer wanted")
        try:
            oldest.result()
        except BackupCancelled:
            raise
        except RafthaError as error:
            self.fail(queue.destination.name, error)

    def _store(self, queue: _Queue, name: str, data: bytes) -> None:
        if queue.error:
            return
        store_object(queue.destination, name, data, self._waits, self._retry_s)
        if not self._waits.is_wanted():
            return
        self._on_stored(queue.destination.name, name)


def store_object(
    destination: Destination, name: str, data: bytes, waits: Waits, retry_s: float
) -> None:
    """Store an object and read it back; what may pass is tried again for `retry_s`.

    RepositoryError if it isn't stored; BackupDamaged if other bytes come back; BackupCancelled.
    """
    deadline = waits.monotonic() + retry_s
    pause_s = PAUSE_S
    tries = 0
    while True:
        if not waits.is_wanted():
            raise BackupCancelled("the backup is no longer wanted")
        tries += 1
        try:
            create_or_compare(destination, name, data)
            if not waits.is_wanted():
                raise BackupCancelled("the backup is no longer wanted")
            _read_back(destination, name, data)
        except (RepositoryUnavailable, ObjectMissing):
            # Missing: a store that hides new objects for a while may be late, not wrong.
            if tries >= TRIES_MIN and waits.monotonic() + pause_s > deadline:
                raise
            waits.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_MAX_S)
        else:
            return


def _read_back(destination: Destination, name: str, data: bytes) -> None:
    try:
        found = destination.get(name, size_max=len(data))
    except ObjectTooLarge as error:
        raise _damaged(destination, name) from error
    if isinstance(found, bytes):
        is_equal = found == data
    else:  # A memoryview would be compared byte by byte; hashing doesn't hold Python's lock.
        is_equal = sha256(found).digest() == sha256(data).digest()
    if not is_equal:
        raise _damaged(destination, name)


def _damaged(destination: Destination, name: str) -> BackupDamaged:
    return BackupDamaged(
        "other bytes come back than were written",
        destination=destination.name,
        object_name=name,
        hint="the destination loses or changes data: check it",
    )
