"""Snapshots of the state on this node's disk, on their own thread: the real `SnapshotFiles`.

Theory of operation. One thread does all the work in the order of the requests: copying, reading,
writing, hashing. A job may take minutes; checkpoints, log and heartbeats use other threads. A
failed disk operation costs a snapshot and never the node: an event reports it, and the snapshot is
tried again after a pause. Any other exception ends the node.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from raftha.core import SnapshotOffer
from raftha.errors import Corrupt, RafthaError, StorageFailed
from raftha.node.snapshot_rate import SnapshotRate
from raftha.runtime.storage_threads import start_workers
from raftha.storage.directory.snapshot import CHUNK_BYTES, Chunk, Incoming, Outgoing, SnapshotFile
from raftha.storage.state.checkpoint import CheckpointStore

T = TypeVar("T")


class SnapshotThread:
    """The snapshots of one life of a node, until `close`."""

    def __init__(
        self,
        name: str,
        data: Path,
        store: CheckpointStore,
        call: Callable[[Callable[[Any], None], Any], None],
        failed: Callable[[BaseException, bool], None],
        install: Callable[[], None],
    ) -> None:
        """`call` calls a function on the node's thread.

        `failed` gets, on any thread, an error and whether the node can go on after it.
        """
        self.chunk_bytes = CHUNK_BYTES
        self._store = store
        self._call = call
        self._failed = failed
        self._install = install
        self._outgoing = Outgoing(data / "outgoing")
        self._incoming = Incoming(data / "incoming")
        self._is_closing = threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-snapshots")
        start_workers(self._thread, 1)

    def close(self) -> None:
        """Wait for the job under way and drop the others; a snapshot being made is abandoned."""
        self._is_closing.set()
        self._thread.shutdown(cancel_futures=True)

    def make(
        self, snapshot_id: int, rate: SnapshotRate, done: Callable[[SnapshotFile | None], None]
    ) -> None:
        throttle = partial(self._throttle, rate)
        self._run(lambda: self._outgoing.make(self._store, snapshot_id, throttle), done, None)

    def _throttle(self, rate: SnapshotRate, size: int) -> None:
        """Wait as long as the rate requires after a piece of `size` bytes."""
        if self._is_closing.wait(rate.copied(size)):
            raise StorageFailed("a snapshot was not finished: the node ends")

    def read(
        self, snapshot: SnapshotFile, offset: int, done: Callable[[Chunk | None], None]
    ) -> None:
        self._run(lambda: self._outgoing.read(snapshot.snapshot_id, offset), done, None)

    def drop(self, snapshot_id: int) -> None:
        self._run(lambda: self._outgoing.drop(snapshot_id), _nothing, None)

    def begin(self, offer: SnapshotOffer, done: Callable[[int | None], None]) -> None:
        self._run(
            lambda: self._incoming.begin(offer.snapshot_id, offer.size, offer.sha256), done, None
        )

    def write(self, chunk: Chunk, done: Callable[[int | None], None]) -> None:
        self._run(lambda: self._incoming.write(chunk), done, None)

    def check(self, offer: SnapshotOffer, done: Callable[[bool], None]) -> None:
        self._run(lambda: self._incoming.check(offer.sha256, offer.index), done, False)

    def discard(self) -> None:
        self._run(self._incoming.discard, _nothing, None)

    def install(self) -> None:
        self._install()

    def _run(self, work: Callable[[], T], done: Callable[[T], None], otherwise: T) -> None:
        """Do `work`, then call `done` on the node's thread, with the result or with `otherwise`."""

        def run() -> None:
            try:
                result = work()
            except Corrupt as error:
                # The state that a snapshot was to be made of is damaged: the next start heals it.
                self._failed(error, False)
                return
            except (OSError, RafthaError) as error:
                self._failed(error, True)
                result = otherwise
            except Exception as error:  # noqa: BLE001 - a supervisor: whatever it is ends the node
                self._failed(error, False)
                return
            self._call(done, result)

        self._thread.submit(run)


def _nothing(result: object) -> None:
    """Ignore the result of a job that has none."""
