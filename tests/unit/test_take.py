"""Taking a backup: what it holds, what it proves, and what destinations may do to it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random

import pytest

from raftha.errors import BackupFailed, Corrupt
from raftha.storage.backup import take as take_module
from raftha.storage.backup.chain import Shelf, load_chain, read_state
from raftha.storage.backup.crypto import OperatorKey
from raftha.storage.backup.local import LocalDestination
from raftha.storage.backup.manifest import StoredManifest
from raftha.storage.backup.pool import thread_pool
from raftha.storage.backup.repository import Repository
from raftha.storage.backup.source import SourceBehind, SourceReading, StoreSource
from raftha.storage.backup.spool import Spool, SpoolLost
from raftha.storage.backup.take import take
from raftha.storage.backup.uploads import BackupCancelled
from raftha.storage.backup.verify import read_verified, verify_in
from raftha.storage.state.blocks import Block
from raftha.storage.state.checkpoint import CheckpointStore
from raftha.storage.state.store import Hasher, ReadInterrupted
from raftha.types import BackupState
from tests.sim.store import DictStore
from tests.support.backups import LINEAGE, BackedUpNode, memory, repository_of
from tests.support.faulty_destination import Fault, FaultyDestination

KEY = OperatorKey(bytes(range(32)))


def state_in(repository: Repository, label: str) -> dict[bytes, bytes | None]:
    """The pairs that a backup restores."""
    shelf = Shelf(repository.destinations, repository.id, repository.keys)
    links = load_chain(shelf, LINEAGE, label)
    return {key: value for piece in read_state(shelf, links) for key, value in piece}


def digest_of(pairs: dict[bytes, bytes]) -> str:
    hasher = Hasher()
    for key, value in sorted(pairs.items()):
        hasher.add(key, value)
    return hasher.finish().hex


@pytest.fixture
def node() -> BackedUpNode:
    node = BackedUpNode()
    node.write({b"%03d" % i: b"%d" % (i * i) for i in range(300)})
    return node


@pytest.mark.parametrize("operator", [None, KEY])
def test_a_full_backup_holds_the_state_and_its_digest(
    node: BackedUpNode, operator: OperatorKey | None
) -> None:
    repository = repository_of(memory("a"), memory("b"), operator=operator)
    result = node.take(repository)
    manifest = result.manifest
    assert (result.completed, result.errors) == (("a", "b"), {})
    assert (manifest.mode, manifest.parent, manifest.start) == ("full", 0, 0)
    assert manifest.base_label == manifest.label
    assert manifest.position == node.state.applied
    assert manifest.membership == node.state.membership
    assert (manifest.keys, manifest.digest) == (300, digest_of(node.model))
    assert (manifest.node, manifest.started_us, manifest.finished_us) == (1, 1_000_000, 77)
    assert state_in(repository, manifest.label) == node.model
    for destination in repository.destinations.values():
        verified = read_verified(destination, LINEAGE, manifest.label)
        assert verified is not None
        assert (verified.manifest_sha256, verified.level) == (result.manifest_sha256, 1)
        assert verified.digest == manifest.digest
        waits = node.time.waits
        report = verify_in(destination, repository, LINEAGE, manifest.label, 3, waits)
        assert report.findings == ()
        assert report.digest == manifest.digest


def test_incremental_and_differential_backups_hold_what_has_changed(node: BackedUpNode) -> None:
    repository = repository_of(memory())
    full = node.take(repository)
    node.write({b"000": None, b"001": b"new", b"x": b"1"})
    node.checkpoint()
    node.write({b"x": b"2"})
    first = node.take(repository, "incremental", full)
    assert first.manifest.keys == 3
    assert (first.manifest.parent_label, first.manifest.base) == (full.manifest.label, 7 - 3)
    assert state_in(repository, first.manifest.label) == node.model
    node.write({b"y": b"3", b"x": None})
    second = node.take(repository, "incremental", first)
    assert second.manifest.keys == 2
    assert second.manifest.base_label == full.manifest.label
    assert state_in(repository, second.manifest.label) == node.model
    differential = node.take(repository, "differential", full)
    assert differential.manifest.keys == 4
    assert differential.manifest.parent == full.manifest.id
    assert state_in(repository, differential.manifest.label) == node.model
    for result in (first, second, differential):
        report = verify_in(
            repository.destinations["memory"],
            repository,
            LINEAGE,
            result.manifest.label,
            3,
            node.time.waits,
        )
        assert report.findings == ()


def test_another_node_takes_the_next_incremental(node: BackedUpNode) -> None:
    """Its checkpoints are at other entries, and it began to record before the parent."""
    repository = repository_of(memory())
    other = BackedUpNode()
    other.write({b"%03d" % i: b"%d" % (i * i) for i in range(300)})
    full = node.take(repository)
    other.state.apply(other.log.noop())
    node.write({b"a": b"1"})
    other.write({b"a": b"1"})
    result = other.take(repository, "incremental", full)
    assert result.manifest.start < full.manifest.position.index
    assert state_in(repository, result.manifest.label) == node.model == other.model


def test_an_empty_state_is_backed_up_too() -> None:
    node = BackedUpNode()
    repository = repository_of(memory())
    result = node.take(repository)
    assert len(result.manifest.runs) == 1
    assert state_in(repository, result.manifest.label) == {}
    assert result.manifest.digest == Hasher().finish().hex


def test_the_real_store_and_real_folders_do_the_same(tmp_path: Path) -> None:
    node = BackedUpNode(CheckpointStore(tmp_path / "state"), spool_bytes=64 << 20)
    random = Random(5)
    node.write({b"%06d" % i: random.randbytes(500) for i in range(5000)})
    repository = repository_of(
        LocalDestination("here", tmp_path / "here"), LocalDestination("there", tmp_path / "there")
    )
    order = node.order(destinations=("here", "there"))
    result = take(order, node.source, repository, node.hooks(pool=thread_pool))
    assert result.completed == ("here", "there")
    assert state_in(repository, order.label) == node.model
    assert result.manifest.digest == digest_of(node.model)
    for path in ("here", "there"):
        files = sorted(found.name for found in (tmp_path / path).rglob("*") if found.is_file())
        assert files == ["manifest", "repository.json", "run-0000", "verified"]
    node.store.close()


# --- What a node can't give -----------------------------------------------------------------------


def test_a_checkpoint_before_the_beginning_is_none_of_this_backup(node: BackedUpNode) -> None:
    repository = repository_of(memory())
    order = node.order()
    with pytest.raises(SourceBehind):
        take(replace(order, id=order.id + 1), node.source, repository, node.hooks())
    assert list(repository.destinations["memory"].list(LINEAGE + "/")) == []


def test_a_spool_with_a_gap_makes_no_incremental(node: BackedUpNode) -> None:
    repository = repository_of(memory())
    full = node.take(repository)
    node.write({b"a": b"1"})
    node.checkpoint()
    node.spool.drop()
    node.write({b"b": b"1"})
    with pytest.raises(SpoolLost):
        node.take(repository, "incremental", full)
    order = node.order("incremental", full)
    with pytest.raises(SpoolLost, match="no spool"):
        take(order, StoreSource(node.store, None), repository, node.hooks())


def test_a_damaged_state_is_not_backed_up(node: BackedUpNode) -> None:
    repository = repository_of(memory())
    order = node.order()
    assert isinstance(node.store, DictStore)
    node.store.rot(b"123")
    with pytest.raises(Corrupt):
        take(order, node.source, repository, node.hooks())
    assert not any("manifest" in info.name for info in repository.destinations["memory"].list(""))


class Interrupted(StoreSource):
    """A store whose read has to begin again, `times` times."""

    times = 1

    @contextmanager
    def full(self, index: int) -> Iterator[SourceReading]:
        with super().full(index) as reading:
            if not self.times:
                yield reading
                return
            self.times -= 1
            yield reading._replace(blocks=self._some(reading))

    def _some(self, reading: SourceReading) -> Iterator[Block]:
        yield from islice(reading.blocks, 15)
        raise ReadInterrupted("the map grew")


def test_a_read_that_is_interrupted_begins_again_under_other_names(
    node: BackedUpNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = Random(1)
    node.write({b"k%06d" % i: random.randbytes(3000) for i in range(1500)})
    monkeypatch.setattr(take_module, "OBJECT_BYTES", (1 << 20) + 300_000)
    repository = repository_of(memory())
    order = node.order()
    source = Interrupted(node.store, node.spool)
    result = take(order, source, repository, node.hooks())
    assert state_in(repository, order.label) == node.model
    assert result.manifest.digest == digest_of(node.model)
    assert result.manifest.first_run > 0
    source.times = 9
    again = node.order()
    with pytest.raises(ReadInterrupted):
        take(again, source, repository, node.hooks())


# --- What destinations do -------------------------------------------------------------------------


PASSING = [
    Fault("create", "fails", "*/run-*", 2),
    Fault("create", "lost_answer", "*/run-*", 2),
    Fault("create", "late", "*/run-*", 1),
    Fault("create", "conflict", "*/run-*", 2),
    Fault("create", "fails", "*/manifest", 2),
    Fault("create", "lost_answer", "*/manifest", 1),
    Fault("create", "lost_answer", "*/verified", 1),
    Fault("get", "fails", "*/run-*", 2),
    Fault("get", "stale", "*/run-*", 2),
    Fault("get", "lost_answer", "*/manifest", 2),
    Fault("list", "stale", "*", None),
]


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: f"{fault.operation} {fault.kind}")
def test_what_passes_is_tried_again(node: BackedUpNode, fault: Fault) -> None:
    destination = FaultyDestination(memory("bad"))
    repository = repository_of(destination)
    destination.freeze()
    destination.plan(replace(fault))
    result = node.take(repository)
    assert (result.completed, result.errors) == (("bad",), {})
    destination.plan()
    assert state_in(repository, result.manifest.label) == node.model


LASTING = [
    Fault("create", "fails", "*/run-*", None),
    Fault("create", "fails", "*/manifest", None),
    Fault("create", "fails", "*/verified", None),
    Fault("create", "conflict", "*/run-*", None),
    Fault("get", "fails", "*/run-*", None),
    Fault("get", "rotten", "*/run-*", None),
    Fault("get", "truncated", "*/run-*", None),
    Fault("get", "rotten", "*/manifest", None),
    Fault("list", "fails", "*/backups/*", None),
]


@pytest.mark.parametrize("fault", LASTING, ids=lambda fault: f"{fault.operation} {fault.kind}")
def test_a_destination_that_fails_does_so_alone(node: BackedUpNode, fault: Fault) -> None:
    bad = FaultyDestination(memory("bad"))
    repository = repository_of(bad, memory("good"))
    bad.freeze()
    bad.plan(replace(fault))
    result = node.take(repository)
    assert result.completed == ("good",)
    assert list(result.errors) == ["bad"]
    assert node.time.now < 1000 + 90
    good = repository.destinations["good"]
    assert read_verified(good, LINEAGE, result.manifest.label) is not None
    assert read_verified(bad.inner, LINEAGE, result.manifest.label) is None
    bad.plan()
    assert state_in(repository, result.manifest.label) == node.model


@pytest.mark.parametrize("fault", LASTING, ids=lambda fault: f"{fault.operation} {fault.kind}")
def test_a_backup_that_no_destination_has_has_failed(node: BackedUpNode, fault: Fault) -> None:
    bad = FaultyDestination(memory("bad"))
    repository = repository_of(bad)
    bad.freeze()
    bad.plan(replace(fault))
    with pytest.raises(BackupFailed, match="bad: "):
        node.take(repository)
    assert not any(info.name.endswith("verified") for info in bad.inner.list(""))


def test_an_object_that_vanishes_is_noticed_before_the_end(node: BackedUpNode) -> None:
    bad = FaultyDestination(memory("bad"))
    repository = repository_of(bad, memory("good"))

    def on_step(step: int, what: str) -> None:
        if step == 6:
            for info in bad.inner.list(""):
                if "run-" in info.name:
                    bad.inner.delete(info.name)

    order = node.order(destinations=("bad", "good"))
    result = take(order, node.source, repository, node.hooks(on_step=on_step))
    assert result.completed == ("good",)
    assert "missing" in result.errors["bad"]


def test_a_destination_that_is_not_open_is_reported(node: BackedUpNode) -> None:
    good, bad = memory("good"), FaultyDestination(memory("bad"))
    repository_of(good, bad)
    bad.plan(Fault("get", "fails", "repository.json", None))
    repository = repository_of(good, bad)
    order = node.order(destinations=("good", "bad", "other"))
    result = take(order, node.source, repository, node.hooks())
    assert result.completed == ("good",)
    assert "503" in result.errors["bad"]
    assert "settings" in result.errors["other"]


def test_other_bytes_under_a_name_are_never_replaced(node: BackedUpNode) -> None:
    destination = memory()
    repository = repository_of(destination)
    order = node.order()
    destination.create(f"{LINEAGE}/backups/{order.label}/run-0000", b"another cluster's")
    with pytest.raises(BackupFailed, match="other bytes"):
        take(order, node.source, repository, node.hooks())


def test_a_backup_is_never_completed_before_it_was_read_back(node: BackedUpNode) -> None:
    destination = FaultyDestination(memory("bad"))
    repository = repository_of(destination)
    destination.calls.clear()
    result = node.take(repository)
    run, manifest, verified = (
        f"{LINEAGE}/backups/{result.manifest.label}/{part}"
        for part in ("run-0000", "manifest", "verified")
    )
    calls = [call for call in destination.calls if "backups" in call[1]]
    assert calls[:4] == [("create", run), ("get", run), ("create", manifest), ("get", manifest)]
    assert calls[-2:] == [("create", verified), ("get", verified)]


# --- Hooks ----------------------------------------------------------------------------------------


def test_states_steps_and_progress_are_told(node: BackedUpNode) -> None:
    states: list[BackupState] = []
    steps: list[int] = []
    progress: list[tuple[int, int]] = []
    paced: list[int] = []
    repository = repository_of(memory())
    order = node.order()
    hooks = node.hooks(
        on_state=states.append,
        on_step=lambda step, what: steps.append(step),
        on_progress=lambda done, total: progress.append((done, total)),
        pace=paced.append,
    )
    result = take(order, node.source, repository, hooks)
    assert states[:2] == [BackupState.PREPARING, BackupState.BACKING_UP]
    assert states[-2:] == [BackupState.UPLOADING, BackupState.VERIFYING]
    assert steps == [3, 4, 5, 5, 6, 7]
    assert progress[-1] == (result.manifest.size_bytes - len(node.store.meta() or b""),) * 2
    assert sum(paced) == progress[-1][0]


@pytest.mark.parametrize("step", [3, 4, 5, 6])
def test_a_backup_that_is_not_wanted_any_more_ends(node: BackedUpNode, step: int) -> None:
    repository = repository_of(memory())

    def on_step(reached: int, what: str) -> None:
        if reached == step:
            node.time.is_wanted = False

    with pytest.raises(BackupCancelled):
        take(node.order(), node.source, repository, node.hooks(on_step=on_step))
    found = repository.destinations["memory"].list("")
    assert not any(info.name.endswith("verified") for info in found)


def test_threads_end_with_the_backup(node: BackedUpNode) -> None:
    pools: list[ThreadPoolExecutor] = []

    def pool(name: str, threads: int) -> ThreadPoolExecutor:
        pools.append(ThreadPoolExecutor(threads))
        return pools[-1]

    bad = FaultyDestination(memory("bad"))
    repository = repository_of(bad)
    bad.plan(Fault("create", "fails", "*", None))
    with pytest.raises(BackupFailed):
        take(node.order(destinations=("bad",)), node.source, repository, node.hooks(pool=pool))
    assert len(pools) == 3
    for each in pools:
        with pytest.raises(RuntimeError):
            each.submit(print)


def test_a_verification_can_be_part_of_it(node: BackedUpNode) -> None:
    repository = repository_of(memory())
    order = replace(node.order(), verify_level=3)
    result = take(order, node.source, repository, node.hooks())
    verified = read_verified(repository.destinations["memory"], LINEAGE, order.label)
    assert verified is not None
    assert (verified.level, verified.digest) == (3, result.manifest.digest)
    stored = StoredManifest(result.manifest, result.manifest_sha256)
    assert replace(order, parent=stored).parent == stored


def test_a_spool_at_another_position_than_its_meta_is_not_used(node: BackedUpNode) -> None:
    repository = repository_of(memory())
    full = node.take(repository)
    order = node.order("incremental", full)
    other = Spool(node.disk, "/other", 1 << 20, full.manifest.position)
    other.add(node.state.applied._replace(index=99), node.store.meta() or b"", [(b"a", b"1")])
    other.commit(node.state.applied._replace(index=99))
    with pytest.raises(SpoolLost, match="position"):
        take(order, StoreSource(node.store, other), repository, node.hooks())
