"""What a node does with a repository: it takes, lists, adopts and deletes backups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from raftha.config import BackupConfig
from raftha.entry import LogPosition
from raftha.errors import DeletionDenied, RepositoryConflict, RepositoryUnavailable
from raftha.node.backup_work import BackupOrder, Listing, TakenBackup
from raftha.runtime.backup_jobs import BackupJobs, Owner
from raftha.storage.backup import names
from raftha.storage.backup.memory import MemoryDestination
from raftha.storage.backup.repository import Repository, open_repository
from raftha.storage.backup.shelves import list_shelves
from raftha.storage.backup.source import StoreSource
from raftha.storage.backup.spool import Spool
from raftha.storage.backup.take import TakeHooks
from raftha.storage.backup.uploads import Waits
from raftha.storage.state.catalog import COMPLETED, FAILED, RETIRED, BackupRecord
from raftha.storage.state.state import State
from tests.sim.store import DictStore

LINEAGE, OTHER = "a" * 32, "b" * 32
T0 = 1_764_288_000_000_000
WAITS = Waits(lambda: 0.0, lambda seconds: None)


class Flaky(MemoryDestination):
    """A destination that fails as the test wants."""

    is_away = False
    is_locked = False
    ignores_conditions = False
    hides: frozenset[str] = frozenset()

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.deletions: list[str] = []

    def get(self, name: str, *, size_max: int) -> bytes:
        self._check()
        return super().get(name, size_max=size_max)

    def create(self, name: str, data: bytes | memoryview) -> None:
        self._check()
        if self.ignores_conditions:
            super().delete(name)
        super().create(name, data)

    def list(self, prefix: str) -> list[Any]:
        self._check()
        return [info for info in super().list(prefix) if info.name not in self.hides]

    def delete(self, name: str) -> None:
        self._check()
        self.deletions.append(name)
        if self.is_locked:
            raise DeletionDenied("object lock", destination=self.name, object_name=name)
        super().delete(name)

    def _check(self) -> None:
        if self.is_away:
            raise RepositoryUnavailable("no route", destination=self.name)


class Node:
    """A node's store, spool and repository."""

    def __init__(self, spool: Spool | None = None) -> None:
        self.places = {name: Flaky(name) for name in ("local", "s3")}
        self.store = DictStore()
        self.index = 0
        config = BackupConfig(
            destinations={name: f"memory://{name}" for name in self.places}, retry_s=1
        )
        owner = Owner(node_id=1, cluster_name="c")
        self.errors: list[Exception] = []
        self.spool = spool
        source = StoreSource(self.store, spool)
        self.jobs = BackupJobs(config, owner, source, self.open, on_error=self.errors.append)
        self.repository: Repository | None = None

    def open(self) -> Repository:
        if self.repository is None:
            places = list(self.places.values())
            self.repository = open_repository(places, may_create=True, now_us=T0)
        return self.repository

    def checkpoint(self, pairs: Mapping[bytes, bytes | None]) -> None:
        self.index += 10
        state = State(self.store)
        state.applied = LogPosition(self.index, 1, T0 + self.index, 3 * self.index, bytes(16))
        frozen = state.freeze()
        self.store.write(list(pairs.items()), frozen.meta)

    def take(self, record: BackupRecord, parent: BackupRecord | None = None) -> TakenBackup:
        hooks = TakeHooks(waits=WAITS, now_us=lambda: T0 + 5, on_out=self.errors.append)
        return self.jobs.take(BackupOrder(record, parent), hooks)

    def completed(self, backup_id: int = 5, pairs: int = 3) -> BackupRecord:
        """Have a full backup taken; return its record."""
        self.checkpoint({b"key %d" % i: b"%d" % backup_id for i in range(pairs)})
        record = begun(backup_id)
        return ended(record, self.take(record))

    def listed(self, *known: BackupRecord) -> Listing:
        return self.jobs.list(LINEAGE, known, WAITS)

    def objects(self, place: str, record: BackupRecord) -> list[str]:
        folder = names.backup_folder(record.lineage, record.label)
        return [info.name for info in MemoryDestination.list(self.places[place], folder)]


def begun(backup_id: int, **others: Any) -> BackupRecord:
    record = BackupRecord(
        backup_id, "full", 0, backup_id, LINEAGE, 1, "running", ("local", "s3"), T0
    )
    return record._replace(**others)


def ended(record: BackupRecord, taken: TakenBackup) -> BackupRecord:
    assert taken.error == "", taken.error
    return record._replace(
        state=COMPLETED, **{k: v for k, v in taken._asdict().items() if k != "error"}
    )


@pytest.fixture
def node() -> Node:
    return Node()


def test_the_first_backup_of_a_fork_says_which_history_it_continues(node: Node) -> None:
    """A restore without it would have to ask whether the older backups belong to it."""
    before = node.completed()
    fork = begun(15, lineage="cd" * 16)
    node.checkpoint({b"later": b"1"})
    hooks = TakeHooks(waits=WAITS, now_us=lambda: T0 + 5)
    assert node.jobs.take(BackupOrder(fork, None, before), hooks).error == ""
    described = node.open().read_lineages()
    assert described[LINEAGE].parent == ""
    forked = described[fork.lineage]
    assert (forked.parent, forked.fork_index) == (LINEAGE, before.position_index)
    shelves = list_shelves(node.open())
    assert shelves.find().lineage == fork.lineage
    assert shelves.find(before.label, lineage=fork.lineage).label == before.label


def test_a_backup_is_in_all_destinations_with_its_digest(node: Node) -> None:
    record = node.completed()
    stored = node.store.digest()
    assert stored is not None
    assert (record.destinations, record.errors) == (("local", "s3"), ())
    assert (record.keys, record.digest, record.position_index) == (3, stored.hex, 10)
    assert len(node.objects("s3", record)) == 3
    assert node.listed(record).found == {5: ("local", "s3")}


def test_the_backup_of_an_empty_state_has_its_manifest_proven_too(node: Node) -> None:
    record = node.completed(pairs=0)
    assert (record.keys, record.destinations) == (0, ("local", "s3"))
    assert record.manifest != b""
    assert node.listed(record).found == {5: ("local", "s3")}


def test_what_was_begun_before_is_not_taken_again(node: Node) -> None:
    """Where a store ignores conditions, that would replace a complete backup by another one."""
    record = node.completed()
    before = {
        name: node.places["s3"].get(name, size_max=1 << 20) for name in node.objects("s3", record)
    }
    node.checkpoint({b"later": b"1"})
    for place in node.places.values():
        place.ignores_conditions = True
    assert "it was begun before" in node.take(begun(5)).error
    assert node.listed(record).found == {5: ("local", "s3")}
    for name, data in before.items():
        assert node.places["s3"].get(name, size_max=1 << 20) == data


def test_a_destination_that_is_away_fails_alone(node: Node) -> None:
    node.open()
    node.places["s3"].is_away = True
    record = node.completed()
    assert record.destinations == ("local",)
    assert record.errors[0].startswith("s3: ")
    listing = node.listed(record)
    assert listing.found == {5: ("local",)}
    assert listing.lost == {} and "s3" in listing.errors


def test_without_any_destination_a_backup_fails(node: Node) -> None:
    for place in node.places.values():
        place.is_away = True
    node.checkpoint({})
    assert node.take(begun(5)).error != ""
    assert node.errors
    listing = node.listed()
    assert listing.errors.keys() == {"local", "s3"}


def test_a_state_from_before_the_begin_is_not_taken(node: Node) -> None:
    node.checkpoint({})
    assert "before 11" in node.take(begun(11)).error


def test_a_parent_that_was_replaced_is_not_built_upon(node: Node) -> None:
    record = node.completed()
    node.checkpoint({b"later": b"1"})
    child = begun(15, mode="incremental", parent=5)
    taken = node.take(child, record._replace(manifest=b"x" * 32))
    assert "the log says that it is another one" in taken.error


def test_what_a_destination_has_lost_is_named(node: Node) -> None:
    record = node.completed()
    run = next(name for name in node.objects("s3", record) if "run-" in name)
    node.places["s3"].delete(run)
    listing = node.listed(record)
    assert listing.found == {5: ("local",)}
    assert "missing" in listing.lost[5, "s3"]
    for name in node.objects("local", record):
        node.places["local"].delete(name)
    assert node.listed(record).found == {}


def test_an_object_that_is_not_listed_yet_is_not_lost(node: Node) -> None:
    record = node.completed()
    node.places["s3"].hides = frozenset(node.objects("s3", record))
    listing = node.listed(record)
    assert listing.found == {5: ("local", "s3")} and listing.lost == {}


def test_a_manifest_that_was_replaced_does_not_count(node: Node) -> None:
    record = node.completed()
    other = record._replace(manifest=b"x" * 32)
    listing = node.listed(other)
    assert listing.found == {}
    assert "another one than the log says" in listing.lost[5, "local"]


def test_a_complete_backup_that_the_log_gave_up_is_adopted(node: Node) -> None:
    record = node.completed()
    failed = begun(5, state=FAILED, error="it is silent", reason="because")
    (adopted,) = node.listed(failed).adoptable
    assert adopted._replace(ended_us=0) == record._replace(reason="because", ended_us=0)
    (unknown,) = node.listed().adoptable
    assert unknown.label == record.label
    assert node.listed(record._replace(state=RETIRED)).adoptable == ()


def test_what_is_adopted_was_read_back(node: Node) -> None:
    record = node.completed()
    for place in node.places.values():
        folder = names.backup_folder(LINEAGE, record.label)
        place.delete(f"{folder}verified")
        run = f"{folder}run-0000"
        data = bytearray(place.get(run, size_max=1 << 20))
        place.delete(run)
        data[-1] ^= 1
        place.create(run, bytes(data))
    listing = node.listed(begun(5, state=FAILED))
    assert listing.adoptable == ()
    listing = node.listed()
    (leftover,) = listing.leftovers
    assert (leftover.id, leftover.state, leftover.label) == (5, FAILED, record.label)
    assert leftover.destinations == ("local", "s3")


def test_nothing_is_adopted_onto_a_parent_that_is_gone(node: Node) -> None:
    full = node.completed()
    child = full._replace(id=15, mode="incremental", parent=5, base=5, began_us=T0 + 1_000_000)
    for parent in (full, full._replace(state=RETIRED), full._replace(manifest=b"x" * 32)):
        assert node.listed(parent, child._replace(state=FAILED)).adoptable == ()


def test_other_lineages_are_not_looked_at(node: Node) -> None:
    node.completed()
    listing = node.jobs.list(OTHER, (), WAITS)
    assert (listing.adoptable, listing.leftovers, dict(listing.found)) == ((), (), {})


def test_a_backup_is_deleted_with_its_manifest_first(node: Node) -> None:
    record = node.completed()
    order = node.places["s3"].deletions
    retired = record._replace(state=RETIRED)
    deletion = node.jobs.delete({"s3": [retired]})
    assert deletion.gone == {(5, "s3")}
    assert order[0].endswith("/manifest")
    assert node.objects("s3", record) == []
    assert len(node.objects("local", record)) == 3
    assert node.jobs.delete({"s3": [retired]}).gone == {(5, "s3")}


def test_what_is_not_retired_is_never_deleted(node: Node) -> None:
    record = node.completed()
    with pytest.raises(AssertionError, match="before it is retired"):
        node.jobs.delete({"s3": [record]})
    assert len(node.objects("s3", record)) == 3


def test_locks_and_outages_leave_a_backup_where_it_is(node: Node) -> None:
    retired = node.completed()._replace(state=RETIRED)
    node.places["s3"].is_locked = True
    deletion = node.jobs.delete({"s3": [retired], "local": [retired]})
    assert deletion.gone == {(5, "local")}
    assert "object lock" in deletion.refused[5, "s3"]
    node.places["s3"].is_locked, node.places["s3"].is_away = False, True
    assert node.jobs.delete({"s3": [retired]}) == (frozenset(), {})
    assert node.jobs.delete({"gone": [retired]}) == (frozenset(), {})


def test_other_bytes_under_the_same_name_are_a_conflict(node: Node) -> None:
    """Two writers of one name: the second one is told, and nothing is overwritten."""
    record = begun(5)
    node.checkpoint({b"a": b"1"})
    node.open()
    run = names.run_name(LINEAGE, record.label, 0)
    for place in node.places.values():
        place.create(run, b"another cluster's")
        place.hides = frozenset({run})
    taken = node.take(record)
    assert "other bytes are stored under this name" in taken.error
    assert [type(error) for error in node.errors[:2]] == [RepositoryConflict] * 2
    for place in node.places.values():
        assert place.get(run, size_max=100) == b"another cluster's"


def test_a_repository_of_another_cluster_is_reported() -> None:
    one, other = Node(), Node()
    one.open(), other.open()
    one.places["s3"] = other.places["s3"]
    one.repository = None
    one.checkpoint({})
    assert one.take(begun(5)).error != ""
    assert isinstance(one.errors[0], RepositoryConflict)
