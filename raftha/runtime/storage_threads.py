"""The threads of a node that write, sync and read its files.

Theory of operation. One thread appends to the log, one write after the other. Three more do the
long jobs: checkpoints and digests, reading old log for lagging followers, and preallocating the
next log segment and the reserve. Jobs come from the node's thread, and each result goes back as a
call there (`call`). An exception ends the node (`fail`), but a full disk does not: the same work is
retried until there is space, and the node is notified when that starts and ends. A full disk takes
the spool back first (`storage/backup/spool.py`); after that a checkpoint may use the reserve.

`close` waits until all jobs have ended. A write to a hanging disk can't be cancelled; then `close`
gives up, and log and state must stay open until the process ends.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from raftha.core import Write
from raftha.entry import Entry, LogPosition
from raftha.errors import Compacted, Stopped, StorageError, StorageFull
from raftha.node.checkpoints import LogCut
from raftha.storage.backup.spool import Spool
from raftha.storage.directory.replay import read_from
from raftha.storage.directory.reserve import Reserve, require_space
from raftha.storage.log.spares import SparePacer
from raftha.storage.log.wal import Wal
from raftha.storage.state.checkpoint import CheckpointStore
from raftha.storage.state.state import Frozen, StateDigest

WORKERS = 3
FULL_RETRY_S = 0.5
HUNG_DISK_S = 5.0
"""How long `close` waits for the last write of the log."""

log = logging.getLogger(__name__)


class Checkpointed(NamedTuple):
    """A completed checkpoint: its position and the keys written; the log's first index."""

    position: LogPosition
    keys: int
    first_index: int


class Digested(NamedTuple):
    """A digest as of entry `index`; None if it had to be given up."""

    index: int  # type: ignore[assignment]  # shadows tuple.index, which is never called
    digest: StateDigest | None


def start_workers(pool: ThreadPoolExecutor, count: int) -> None:
    """Start the threads of a pool, which would start with its first jobs.

    A host that has used up its threads by then must not fail its node.
    """
    ready = threading.Barrier(count + 1)
    try:
        for _ in range(count):
            pool.submit(ready.wait)
        ready.wait()
    finally:
        ready.abort()  # No effect on those that have passed.


class StorageThreads:
    """The storage threads of one life of a node, from `start` until `close`."""

    def __init__(
        self,
        node_id: int,
        wal: Wal,
        store: CheckpointStore,
        reserve: Reserve,
        call: Callable[..., None],
        fail: Callable[[BaseException], None],
        *,
        spool: Spool | None = None,
        on_full: Callable[[str, str], None],
        on_space: Callable[[str], None],
        on_checkpoint: Callable[[Checkpointed], None],
        on_digest: Callable[[Digested], None],
    ) -> None:
        """`call` calls a function on the node's thread, unless the node has ended.

        `fail` ends the node, from any thread. `on_full` (reason, place), `on_space` (place) and
        the others run on the node's thread. Each checkpoint is also written to the `spool`.
        """
        self._node_id = node_id
        self._wal = wal
        self._store = store
        self._reserve = reserve
        self._spool = spool
        self.state_bytes = store.sizes()
        """The size of the state's file after the last checkpoint."""
        self._last_cut: LogCut | None = None
        self._is_in_a_hurry = threading.Event()
        """Set while a thread waits for the lock below, or for all work to end."""
        self._space_lock = threading.Lock()
        """Held to preallocate, to use the reserve, and to change the spare segments."""
        self._flag_lock = threading.Lock()
        self._is_preallocating = False
        self._call = call
        self._fail = fail
        self._on_full = on_full
        self._on_space = on_space
        self._on_checkpoint = on_checkpoint
        self._on_digest = on_digest
        self._is_ending = threading.Event()
        name = f"raftha-{node_id}"
        self._writes: queue.SimpleQueue[tuple[Callable[[], None], Callable[[], None]] | None]
        self._writes = queue.SimpleQueue()
        self._workers = ThreadPoolExecutor(WORKERS, thread_name_prefix=f"{name}-storage")
        self._wal_thread = threading.Thread(target=self._run_wal, name=f"{name}-wal", daemon=True)

    def start(self) -> None:
        """Start the threads."""
        self._wal_thread.start()
        start_workers(self._workers, WORKERS)

    def close(self) -> bool:
        """Wait until all work has ended; late results are dropped. False if the disk hangs."""
        self._is_ending.set()
        self._is_in_a_hurry.set()
        self._writes.put(None)
        self._wal_thread.join(HUNG_DISK_S)
        if self._wal_thread.is_alive():
            # Its system call can't be cancelled; the files stay open until the process ends.
            log.critical("node=%d the disk hangs: files stay open", self._node_id)
            return False
        self._workers.shutdown()
        return True

    def write(self, write: Write, done: Callable[[Write], None]) -> None:
        """Make `write` durable, then call `done` with it on the node's thread."""
        append = partial(self._wal.append, write.hard_state, write.entries)
        self._writes.put((append, partial(done, write)))

    def seal(self, commit: int, done: Callable[[], None]) -> None:
        """Seal the log, then call `done` on the node's thread."""
        self._writes.put((partial(self._wal.seal, commit), done))

    def preallocate(self) -> None:
        """Make the spare segment and the reserve if they are missing, once there is space."""
        with self._flag_lock:
            if self._is_preallocating or self._is_ending.is_set():
                return
            self._is_preallocating = True
        with contextlib.suppress(RuntimeError):  # The node is ending.
            self._workers.submit(self._preallocate)

    def read_log(
        self, index: int, done: Callable[[tuple[LogPosition, list[Entry]] | int], None]
    ) -> None:
        """Read entries from `index` on; `done` gets the log's first index if `index` is cut off."""
        self._job(partial(self._read_log, index), done)

    def checkpoint(self, frozen: Frozen, cut: LogCut, *, with_digest: bool) -> None:
        """Write `frozen` to the store and cut the log; then hash the store `with_digest`."""
        if with_digest:
            self._job(partial(self._digest, frozen, cut), self._on_digest)
        else:
            self._job(partial(self._checkpoint, frozen, cut), self._on_checkpoint)

    def _run_wal(self) -> None:
        while True:
            job = self._writes.get()
            if job is None:
                return
            work, done = job
            try:
                is_done = self._when_there_is_space("log", work)
            except Exception as error:  # noqa: BLE001 - a supervisor: whatever it is ends the node
                self._fail(error)
                return
            if is_done:
                self._call(done)
                if not self._wal.has_spare:
                    self.preallocate()

    def _when_there_is_space(self, place: str, work: Callable[[], None]) -> bool:
        """Do `work`, and retry it while the disk is full; False if the node ends before."""
        was_full = False
        while True:
            try:
                work()
            except StorageFull as error:
                was_full = True
                self._call(self._on_full, str(error), place)
            else:
                if was_full:
                    self._call(self._on_space, place)
                return True
            if self._is_ending.wait(FULL_RETRY_S):
                return False

    def _read_log(self, index: int) -> tuple[LogPosition, list[Entry]] | int:
        try:
            return read_from(self._wal, index)
        except Compacted as compacted:
            return compacted.first_index

    def _checkpoint(self, frozen: Frozen, cut: LogCut) -> Checkpointed:
        write = partial(self._write_checkpoint, frozen)
        if not self._when_there_is_space("checkpoint", write):
            raise Stopped("the node ended while the disk was full")
        with self._locking_space():
            cut.apply(self._wal)
            self._last_cut = cut
        self.preallocate()
        self.state_bytes = self._store.sizes()
        if self.state_bytes.is_wasteful:
            self._job(self._compact, lambda done: None)
        return Checkpointed(frozen.position, len(frozen.items), self._wal.first_index)

    def _is_going_on(self) -> bool:
        return not self._is_ending.is_set()

    def _compact(self) -> None:
        if self._store.compact_if_wasteful(time.monotonic(), self._is_going_on):
            before, self.state_bytes = self.state_bytes.file, self._store.sizes()
            after = self.state_bytes.file
            log.info("node=%d state compacted from=%d to=%d", self._node_id, before, after)

    def _digest(self, frozen: Frozen, cut: LogCut) -> Digested:
        """Write a checkpoint, and hash the store as of it while the node goes on."""
        written = self._checkpoint(frozen, cut)
        stored = self._store.digest(
            begun=lambda: self._call(self._on_checkpoint, written), is_wanted=self._is_going_on
        )
        return Digested(written.position.index, stored and frozen.digest_with(stored))

    def _write_checkpoint(self, frozen: Frozen) -> None:
        if self._spool is None:
            self._write_state(frozen)
            return
        self._spool.add(frozen.position, frozen.meta, frozen.items)
        self._write_state(frozen)
        self._spool.commit(frozen.position)

    def _write_state(self, frozen: Frozen) -> None:
        try:
            self._store.write(frozen.items, frozen.meta)
        except StorageFull:
            if self._give_up_spool():
                self._write_state(frozen)
                return
            with self._locking_space():
                if not self._reserve.give_up():
                    raise
                log.warning("node=%d a checkpoint uses the reserve: disk full", self._node_id)
                self._store.write(frozen.items, frozen.meta)

    @property
    def spool_bytes(self) -> int:
        """The space that the spool takes."""
        return 0 if self._spool is None else self._spool.size

    def _give_up_spool(self) -> bool:
        """Free the space of the spool; True if there was any."""
        return self._spool is not None and self._spool.drop()

    @contextlib.contextmanager
    def _locking_space(self) -> Iterator[None]:
        """Hold `_space_lock`; preallocation that holds it finishes without pauses."""
        self._is_in_a_hurry.set()
        with self._space_lock:
            self._is_in_a_hurry.clear()
            if self._is_ending.is_set():
                self._is_in_a_hurry.set()
            yield

    def _preallocate(self) -> None:
        try:
            self._when_there_is_space("ahead", self._preallocate_or_cut)
        except StorageError as error:
            # Not needed yet: the write that needs the space tries again, and its failure counts.
            log.warning("node=%d preallocation failed: %s", self._node_id, error)
        finally:
            with self._flag_lock:
                self._is_preallocating = False

    def _preallocate_or_cut(self) -> None:
        with self._space_lock:
            try:
                self._take_space_or_spool()
            except StorageFull:
                if self._last_cut is None:
                    raise
                # Cut the log kept for lagging members: they can get a snapshot instead.
                self._last_cut.at_once().apply(self._wal)
                self._take_space()

    def _take_space_or_spool(self) -> None:
        try:
            self._take_space()
        except StorageFull:
            if not self._give_up_spool():
                raise
            self._take_space()

    def _take_space(self) -> None:
        if not self._wal.has_spare:
            require_space(self._reserve.folder, self._wal.segment_bytes)
            pacer = SparePacer(lambda: self._wal.used, self._is_in_a_hurry.wait)
            self._wal.prepare_spare(pacer.on_part)
        self._reserve.take()

    def _job(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Do `work` on a storage thread, then call `done` with its result on the node's."""

        def run() -> None:
            try:
                result = work()
            except Exception as error:  # noqa: BLE001 - a supervisor: whatever it is ends the node
                self._fail(error)
            else:
                self._call(done, result)

        self._workers.submit(run)
