"""The threads of backups, and how fast they read."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raftha.config import BackupConfig
from raftha.events import (
    HaEvent,
    RepositoryConflicted,
    UploadCompleted,
    UploadStarted,
    VerificationPassed,
)
from raftha.node.backup_work import BackupOrder, BackupProgress, TakenBackup
from raftha.node.statistics import Histogram, Statistics
from raftha.runtime import backup_thread
from raftha.runtime.backup_jobs import Owner
from raftha.runtime.backup_pace import BackupPace
from raftha.runtime.backup_thread import BackupThread
from raftha.storage.backup import names
from raftha.storage.backup.destination import ObjectInfo
from raftha.storage.backup.memory import MemoryDestination
from raftha.storage.log.wal import Wal
from raftha.storage.state.catalog import BackupRecord
from raftha.types import BackupState
from tests.support.backups import LINEAGE, BackedUpNode, repository_of

WAIT_S = 20


class Bench:
    """A node's threads of backups; what they call is done by `run`."""

    def __init__(self, folder: Path, second: Path | None = None, **settings: Any) -> None:
        self.node = BackedUpNode()
        self.node.write({b"key %d" % i: bytes(1000) for i in range(300)})
        order = self.node.order()
        self.record = BackupRecord(
            order.id, "full", 0, order.id, LINEAGE, 1, "running", ("local",), order.started_us
        )
        places = {"local": str(folder)} | ({"second": str(second)} if second else {})
        self.calls: queue.SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]]]
        self.calls = queue.SimpleQueue()
        self.events: list[HaEvent] = []
        self.failures: list[BaseException] = []
        self.threads = BackupThread(
            BackupConfig(destinations=places, retry_s=1, **settings),
            Owner(node_id=1, cluster_name="c"),
            self.node.source,
            self.node.spool,
            call=lambda function, *args: self.calls.put((function, args)),
            fail=self.failures.append,
            emit=self.events.append,
            statistics=Statistics(),
            wal=Wal.open(self.node.disk, "/wal", segment_bytes=1 << 20, salt=lambda: 1),
            data=Path("unused"),
        )
        self.taken: list[TakenBackup] = []
        self.progress: list[BackupProgress] = []

    def take(self) -> None:
        order = BackupOrder(self.record, None)
        self.threads.take(order, self.progress.append, self.taken.append)

    def run(self, until: Callable[[], bool]) -> None:
        """Do what is called, until this holds."""
        while not until():
            function, args = self.calls.get(timeout=WAIT_S)
            function(*args)

    def kinds(self) -> list[type[HaEvent]]:
        return [type(event) for event in self.events]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "repository")
    yield bench
    bench.threads.close()
    assert not bench.failures


def test_a_backup_is_taken_and_reported(bench: Bench) -> None:
    bench.take()
    bench.run(lambda: bool(bench.taken))
    (taken,) = bench.taken
    assert (taken.error, taken.destinations, taken.keys) == ("", ("local",), 300)
    assert bench.kinds() == [UploadStarted, UploadCompleted, VerificationPassed]
    states = [progress.state for progress in bench.progress]
    assert states[0] in (BackupState.BACKING_UP, BackupState.PREPARING)
    assert states[-1] is BackupState.VERIFYING
    assert bench.progress[-1].done_bytes > 300_000


def test_listing_and_deleting_have_a_thread_of_their_own(bench: Bench) -> None:
    bench.take()
    bench.run(lambda: bool(bench.taken))
    completed = bench.record._replace(
        state="completed", manifest=bench.taken[0].manifest, destinations=("local",)
    )
    listings: list[Any] = []
    bench.threads.list(LINEAGE, [completed], listings.append)
    bench.run(lambda: bool(listings))
    assert listings[0].found == {completed.id: ("local",)}
    deletions: list[Any] = []
    retired = completed._replace(state="retired")
    bench.threads.delete({"local": [retired]}, deletions.append)
    bench.run(lambda: bool(deletions))
    assert deletions[0].gone == {(completed.id, "local")}


def test_a_cancelled_backup_reports_nothing_more(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "repository", bytes_per_s=65_536)
    bench.take()
    bench.run(lambda: any(p.state is BackupState.BACKING_UP for p in bench.progress))
    bench.threads.cancel()
    bench.threads.close()
    while not bench.calls.empty():
        function, args = bench.calls.get()
        function(*args)
    assert bench.taken == [] and not bench.failures


def test_a_node_that_stops_does_not_wait_for_a_slow_backup(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "repository", bytes_per_s=65_536)
    bench.take()
    bench.run(lambda: any(p.state is BackupState.BACKING_UP for p in bench.progress))
    closer = threading.Thread(target=bench.threads.close)
    closer.start()
    closer.join(WAIT_S)
    assert not closer.is_alive()


class Hanging(MemoryDestination):
    """A destination whose calls of one kind hang until they are released."""

    def __init__(self, operation: str) -> None:
        super().__init__("local")
        self._operation = operation
        self.hangs, self.released = threading.Event(), threading.Event()
        self.deleted = 0

    def _wait(self, operation: str, name: str) -> None:
        if operation == self._operation and "/backups/" in f"{name}/":
            self.hangs.set()
            assert self.released.wait(WAIT_S)

    def create(self, name: str, data: bytes | memoryview) -> None:
        self._wait("create", name)
        super().create(name, data)

    def get(self, name: str, *, size_max: int) -> bytes:
        self._wait("get", name)
        return super().get(name, size_max=size_max)

    def list(self, prefix: str) -> list[ObjectInfo]:
        self._wait("list", prefix)
        return super().list(prefix)

    def delete(self, name: str) -> None:
        self._wait("delete", name)
        self.deleted += 1
        super().delete(name)


def has_hung(hanging: Hanging, job: str, folder: Path) -> tuple[Bench, list[object]]:
    """The threads of a node that is stopped while a job of it hangs, and what the job reports."""
    bench = Bench(folder)
    reported: list[object] = []
    if job == "take":
        bench.take()
    elif job == "list":
        bench.threads.list(LINEAGE, [], reported.append)
    else:
        retired = bench.record._replace(state="retired")
        bench.threads.delete({"local": [retired, retired]}, reported.append)
    assert hanging.hangs.wait(WAIT_S)
    bench.threads.close()
    return bench, reported


@pytest.mark.parametrize(
    ("job", "operation"),
    [("take", "create"), ("take", "get"), ("take", "list"), ("list", "list"), ("delete", "delete")],
)
def test_a_stop_does_not_wait_for_a_destination_that_hangs(
    job: str,
    operation: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its threads hold up no end of the process, and do nothing more once the call returns."""
    hanging = Hanging(operation)
    repository = repository_of(hanging)
    monkeypatch.setattr(backup_thread, "open_configured", lambda *_, **__: repository)
    monkeypatch.setattr(backup_thread, "HANG_S", 0.05)
    before = set(threading.enumerate())
    bench, reported = has_hung(hanging, job, tmp_path)
    left = set(threading.enumerate()) - before
    assert left and all(thread.daemon for thread in left)
    assert "a call of a backup destination hangs" in caplog.text
    calls = bench.calls.qsize()
    there = hanging.list("") if operation != "list" else []

    # Nothing of the node is used any more: its files are closed by now.
    monkeypatch.setattr(bench.node.store, "export", None)
    hanging.released.set()
    for thread in left:
        thread.join(WAIT_S)
        assert not thread.is_alive()
    assert (bench.calls.qsize(), bench.taken, reported, bench.failures) == (calls, [], [], [])
    if operation == "create":
        (made,) = set(hanging.list("")) - set(there)
        assert made.name == names.run_name(LINEAGE, bench.record.label, 0)
    elif operation == "delete":
        assert hanging.deleted == 1


def test_a_conflict_is_an_event(bench: Bench, tmp_path: Path) -> None:
    """Another repository lies where this one should."""
    name = names.repository_name()
    for folder, letter in (("repository", "a"), ("other", "b")):
        path = tmp_path / folder / name
        path.parent.mkdir()
        path.write_bytes(
            b'{"format": 1, "id": "%s", "encryption": "none", "created_us": 1}'
            % (letter.encode() * 32)
        )
    other = Bench(tmp_path / "repository", second=tmp_path / "other")
    other.take()
    other.run(lambda: bool(other.taken))
    other.threads.close()
    (event,) = [event for event in other.events if isinstance(event, RepositoryConflicted)]
    assert (event.destination, event.object_name) == ("second", name)


def test_a_mistake_in_the_code_ends_the_node(bench: Bench) -> None:
    bench.threads._jobs = None  # type: ignore[assignment]
    bench.take()
    closer = threading.Event()
    while not bench.failures:
        closer.wait(0.01)
    assert isinstance(bench.failures.pop(), AttributeError)


class Time:
    """Passes only when something sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def read(pace: BackupPace, time: Time, mib: int, log_write: Histogram, write_s: float) -> float:
    """How long it takes to read so much, while a write of the log takes `write_s`, 0 for none."""
    began = time.now
    for _ in range(16 * mib):
        if write_s:
            log_write.observe(write_s)
        pace(65_536)
    return time.now - began


@pytest.mark.parametrize("write_s", [0.0, 0.001])
def test_a_limit_is_kept(write_s: float) -> None:
    time, log_write = Time(), Histogram()
    pace = BackupPace(log_write, 1 << 20, lambda: time.now, time.sleep)
    assert read(pace, time, 10, log_write, write_s) >= 9.9


def test_where_nothing_is_written_nothing_is_slowed_down() -> None:
    time, log_write = Time(), Histogram()
    pace = BackupPace(log_write, 0, lambda: time.now, time.sleep)
    assert read(pace, time, 100, log_write, 0.0) == 0


def test_slow_writes_of_the_log_make_a_backup_slower() -> None:
    time, log_write = Time(), Histogram()
    pace = BackupPace(log_write, 0, lambda: time.now, time.sleep)
    quick = [read(pace, time, 4, log_write, 0.001) for _ in range(40)]
    slow = [read(pace, time, 4, log_write, 0.1) for _ in range(40)]
    assert sum(slow[20:]) > 2 * sum(quick[20:])
