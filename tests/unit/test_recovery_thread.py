"""The thread that plans recoveries, and builds the state of then in the data directory."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raftha.config import BackupConfig
from raftha.node.recovery_work import BuiltState, PlannedRecovery, RecoveryTarget
from raftha.runtime import recovery_thread
from raftha.runtime.recovery_thread import RecoveryThread
from raftha.storage.backup.local import LocalDestination
from raftha.storage.directory.restoring import Restoring, finish
from raftha.storage.state.checkpoint import CheckpointStore
from raftha.storage.state.recoveries import PREPARED, RecoveryRecord
from raftha.storage.state.state import State
from tests.support.backups import LINEAGE, BackedUpNode, repository_of

WAIT_S = 20


class Bench:
    """A node's thread of recoveries; what it calls is done by `run`."""

    def __init__(self, folder: Path) -> None:
        self.node = BackedUpNode()
        self.node.write({b"key %d" % i: b"1" * 100 for i in range(300)})
        self.then = dict(self.node.model)
        self.taken = self.node.take(repository_of(LocalDestination("local", folder / "repository")))
        self.sequence = self.taken.manifest.position.last_sequence
        self.data = folder / "node"
        self.data.mkdir()
        CheckpointStore(self.data / "state").close()
        self.calls: queue.SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]]]
        self.calls = queue.SimpleQueue()
        self.failures: list[BaseException] = []
        self.restores: list[Callable[[], None]] = []
        self.planned: list[PlannedRecovery] = []
        self.built: list[BuiltState] = []
        self.progress: list[tuple[int, int]] = []
        self.begin(folder / "repository")

    def begin(self, repository: Path) -> None:
        """Begin another life."""
        self.thread = RecoveryThread(
            "test",
            BackupConfig(destinations={"local": str(repository)}),
            self.data,
            None,
            call=lambda function, *args: self.calls.put((function, args)),
            fail=self.failures.append,
            restore=self.restores.append,
        )

    def record(self, sequence: int, recovery_id: int = 50) -> RecoveryRecord:
        return RecoveryRecord(
            recovery_id, PREPARED, 7, LINEAGE, sequence, 1, (), 0, 60, "", began_us=1
        )

    def build(self, sequence: int, recovery_id: int = 50) -> None:
        def on_progress(done: int, total: int) -> None:
            self.progress.append((done, total))

        self.thread.build(self.record(sequence, recovery_id), on_progress, self.built.append)

    def run(self, until: Callable[[], bool]) -> None:
        """Do what is called, until this holds."""
        while not until():
            function, args = self.calls.get(timeout=WAIT_S)
            function(*args)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.thread.close()
    assert not bench.failures


def test_a_plan_says_which_moment_that_is_and_what_is_read(bench: Bench) -> None:
    bench.thread.plan(RecoveryTarget(LINEAGE, bench.sequence, 0), bench.planned.append)
    bench.run(lambda: bool(bench.planned))
    (planned,) = bench.planned
    assert (planned.kind, planned.to_sequence, planned.lineage) == ("", bench.sequence, LINEAGE)
    assert planned.backups == (bench.taken.manifest.id,)
    assert planned.to_us == bench.taken.manifest.position.time_us


def test_what_cannot_be_reached_is_an_answer(bench: Bench) -> None:
    bench.thread.plan(RecoveryTarget(LINEAGE, bench.sequence + 100, 0), bench.planned.append)
    bench.thread.plan(RecoveryTarget(LINEAGE, 0, 1), bench.planned.append)
    bench.run(lambda: len(bench.planned) == 2)
    assert {planned.kind for planned in bench.planned} == {"TargetUnreachable"}
    assert all(planned.error for planned in bench.planned)


def test_a_state_is_built_beside_the_present_one_and_takes_its_place(bench: Bench) -> None:
    assert bench.thread.prepared is None
    bench.build(bench.sequence)
    bench.run(lambda: bool(bench.built))
    prepared = bench.thread.prepared
    assert bench.built == [BuiltState("", prepared)] and prepared is not None
    assert (prepared.recovery_id, prepared.keys) == (50, 300)
    assert prepared.digest == bench.taken.manifest.digest
    assert Restoring(bench.data).found() == prepared
    assert bench.progress, "it takes a while"

    bench.thread.restore(50, bench.node.state.meta_now())
    (mark_ready,) = bench.restores
    assert not finish(bench.data), "the node has to end first"
    mark_ready()
    assert finish(bench.data)
    store = CheckpointStore(bench.data / "state")
    assert dict(State(store).scan(limit=1000)) == bench.then
    assert State(store).applied == bench.node.state.applied
    store.close()


def test_the_next_life_finds_what_is_prepared(bench: Bench, tmp_path: Path) -> None:
    bench.build(bench.sequence)
    bench.run(lambda: bool(bench.built))
    prepared = bench.thread.prepared
    bench.thread.close()
    bench.begin(tmp_path / "repository")
    assert bench.thread.prepared == prepared is not None
    bench.thread.discard()
    assert bench.thread.prepared is None
    bench.thread.close()
    assert Restoring(bench.data).found() is None


def test_another_recovery_takes_the_place_of_what_is_prepared(bench: Bench) -> None:
    bench.build(bench.sequence)
    bench.run(lambda: len(bench.built) == 1)
    bench.build(bench.sequence, 60)
    assert bench.thread.prepared is None
    bench.run(lambda: len(bench.built) == 2)
    assert bench.thread.prepared is not None
    assert bench.thread.prepared.recovery_id == 60


def test_a_build_that_fails_is_a_result(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.build(bench.sequence + 100)
    bench.run(lambda: len(bench.built) == 1)
    monkeypatch.setattr(recovery_thread, "SPARE_BYTES", 1 << 60)
    bench.build(bench.sequence)
    bench.run(lambda: len(bench.built) == 2)
    monkeypatch.undo()

    def fail(*args: Any) -> None:
        raise PermissionError(13, "Permission denied", "x")

    monkeypatch.setattr(recovery_thread, "build_image", fail)
    bench.build(bench.sequence)
    bench.run(lambda: len(bench.built) == 3)
    unreachable, full, denied = [built.error for built in bench.built]
    assert unreachable and "another state may need" in full and "x: Permission denied" in denied
    assert bench.thread.prepared is None


def test_a_build_that_is_given_up_has_no_result(bench: Bench) -> None:
    bench.build(bench.sequence)
    bench.thread.discard()
    bench.thread.close()
    while not bench.calls.empty():
        function, args = bench.calls.get()
        function(*args)
    assert bench.built == [] and bench.thread.prepared is None
    assert Restoring(bench.data).found() is None


def test_an_exception_that_is_not_ours_ends_the_node(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(recovery_thread, "build_image", fail)
    bench.build(bench.sequence)
    bench.thread.close()
    assert [type(error) for error in bench.failures] == [ZeroDivisionError]
    bench.failures.clear()
