"""Checkpoints and the spool on a storage thread: order, errors, full disks."""

from __future__ import annotations

import queue
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raftha.entry import LOG_START
from raftha.errors import StorageFull
from raftha.node.checkpoints import LogCut
from raftha.runtime.storage_threads import WORKERS, StorageThreads
from raftha.storage.backup.spool import Spool
from raftha.storage.directory.reserve import Reserve
from raftha.storage.log.disk import RealDisk
from raftha.storage.log.wal import Wal
from raftha.storage.state.checkpoint import CheckpointStore
from raftha.storage.state.commands import pack_put
from raftha.storage.state.state import State
from tests.support.entries import Log, group, opening

MIB = 1 << 20


class Threads:
    """Storage threads over real files; `calls` are those to the node's thread."""

    def __init__(self, path: Path) -> None:
        self.calls: queue.SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]]]
        self.calls = queue.SimpleQueue()
        self.wal = Wal.open(
            RealDisk(), str(path / "wal"), segment_bytes=MIB, salt=lambda: secrets.randbits(64)
        )
        self.store = CheckpointStore(path / "state")
        self.state = State(self.store)
        self.spool = Spool(RealDisk(), str(path / "spool"), MIB, self.state.applied)
        self.log = Log()
        self.failures: list[BaseException] = []
        self.full: list[str] = []
        self.threads = StorageThreads(
            1,
            self.wal,
            self.store,
            Reserve(path / "reserve", 0),
            lambda function, *args: self.calls.put((function, args)),
            self.failures.append,
            spool=self.spool,
            on_full=lambda reason, place: self.full.append(place),
            on_space=lambda place: None,
            on_checkpoint=lambda done: self.state.checkpoint_done(),
            on_digest=lambda done: None,
        )

    def put(self, key: bytes, value: bytes) -> None:
        if not self.log.entries:
            self.session = self.state.apply(self.log.batch(opening()))[0].outcome.session
        number = len(self.log.entries)
        entry = self.log.batch(group(self.session, number, [pack_put(key, value)]))
        self.state.apply(entry)

    def checkpoint(self) -> None:
        cut = LogCut(0, 0, 1 << 40, 0, 1 << 40)
        self.threads.checkpoint(self.state.freeze(), cut, with_digest=False)
        function, args = self.calls.get(timeout=10)
        function(*args)

    def close(self) -> None:
        self.threads.close()
        self.store.close()
        self.wal.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Threads]:
    node = Threads(tmp_path)
    node.threads.start()
    yield node
    node.close()
    assert node.failures == []


def pairs_of(spool: Spool, index: int) -> list[tuple[bytes, bytes | None]]:
    with spool.reading(index) as reading:
        return [pair for piece in reading.pieces for pair in piece]


def test_each_checkpoint_is_in_the_spool(node: Threads) -> None:
    node.put(b"a", b"1")
    node.checkpoint()
    first = node.spool.position
    node.put(b"b", b"2")
    node.checkpoint()
    assert node.spool.reach == LOG_START
    assert pairs_of(node.spool, 0) == [(b"a", b"1"), (b"b", b"2")]
    assert pairs_of(node.spool, first.index) == [(b"b", b"2")]
    with node.spool.reading(0) as reading:
        assert (reading.position, reading.meta) == (node.state.applied, node.store.meta())


def test_the_delta_is_there_before_the_checkpoint(
    node: Threads, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    node.put(b"a", b"1")
    seen = []
    write = CheckpointStore.write

    def watched(store: CheckpointStore, items: Iterable[Any], meta: bytes) -> None:
        seen.append([path.name for path in (tmp_path / "spool").iterdir()])
        write(store, items, meta)

    monkeypatch.setattr(CheckpointStore, "write", watched)
    node.checkpoint()
    assert seen == [[f"{0:016x}-{node.state.applied.index:016x}"]]


def test_a_full_disk_takes_the_spool_and_the_checkpoint_succeeds(
    node: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.put(b"a", b"1")
    node.checkpoint()
    write = CheckpointStore.write

    def full_while_spooled(store: CheckpointStore, items: Iterable[Any], meta: bytes) -> None:
        if node.spool.size:
            raise StorageFull("no space")
        write(store, items, meta)

    monkeypatch.setattr(CheckpointStore, "write", full_while_spooled)
    node.put(b"b", b"2")
    node.checkpoint()
    assert (node.full, node.store.get(b"b")) == ([], b"2")
    assert node.spool.reach == node.state.applied
    monkeypatch.undo()
    node.put(b"c", b"3")
    node.checkpoint()
    assert pairs_of(node.spool, node.spool.reach.index) == [(b"c", b"3")]


def test_preallocation_takes_the_spool_before_the_log(
    node: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.put(b"a", b"1")
    node.checkpoint()
    prepare = Wal.prepare_spare

    def full_while_spooled(wal: Wal, *args: Any) -> None:
        if node.spool.size:
            raise StorageFull("no space")
        prepare(wal, *args)

    monkeypatch.setattr(Wal, "has_spare", False)
    monkeypatch.setattr(Wal, "prepare_spare", full_while_spooled)
    node.threads._preallocate_or_cut()
    assert (node.spool.size, node.full) == (0, [])


def test_no_thread_is_started_after_the_first_moment(
    node: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that has used up its threads must not fail its node."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    entered = threading.Barrier(WORKERS + 1)
    for _ in range(WORKERS):
        node.threads._job(lambda: entered.wait(5), lambda _: None)
    entered.wait(5)
    assert not node.failures
