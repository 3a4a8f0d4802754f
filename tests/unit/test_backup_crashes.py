"""A backup whose node dies after each of its steps: what is left, and what becomes of it.

Steps 1, 2, 8 and 9 are entries of the log and a checkpoint: `test_backups.py` has them. Of the
others, each is done in three destinations, one of which dies in the middle.
"""

from __future__ import annotations

import pytest

from raftha.config import BackupConfig
from raftha.errors import RepositoryUnavailable
from raftha.node.backup_work import BackupOrder, TakenBackup
from raftha.runtime.backup_jobs import BackupJobs, Owner
from raftha.storage.backup import names
from raftha.storage.backup.chain import Shelf, load_chain, read_state
from raftha.storage.backup.crypto import NO_KEYS
from raftha.storage.backup.memory import MemoryDestination
from raftha.storage.backup.take import TakeHooks
from raftha.storage.state.catalog import COMPLETED, FAILED, FULL, MODES, RETIRED, BackupRecord
from tests.support.backups import LINEAGE, BackedUpNode, FakeTime, repository_of

STEPS = {
    3: "the source is open",
    4: "an object is made",
    5: "an object is stored and was read back",
    6: "the manifest is there",
    7: "a destination is verified",
}
PLACES = ("local", "s3", "tape")


class Died(BaseException):
    """The process is gone."""


class Place(MemoryDestination):
    """A destination that dies once it has so many objects of a backup more."""

    left = 1000

    def create(self, name: str, data: bytes | memoryview) -> None:
        if "/backups/" in name:
            self.left -= 1
            if self.left < 0:
                raise RepositoryUnavailable("no route", destination=self.name, object_name=name)
        super().create(name, data)


class Cluster:
    """A node that takes backups, and what the log says of them."""

    def __init__(self) -> None:
        self.node = BackedUpNode()
        self.places = {name: Place(name) for name in PLACES}
        self.repository = repository_of(*self.places.values())
        self.time = FakeTime()
        places = {name: f"memory://{name}" for name in PLACES}
        config = BackupConfig(destinations=places, retry_s=1)
        self.jobs = BackupJobs(
            config,
            Owner(node_id=1, cluster_name="c"),
            self.node.source,
            lambda: self.repository,
        )
        self.records: dict[int, BackupRecord] = {}

    def take(self, mode: str, parent: int = 0, dies_after: int = 0) -> BackupRecord:
        """Have a backup taken, unless the node dies after this step."""
        order = self.node.order("full")
        base = order.id if mode == FULL else self.records[parent].base
        record = BackupRecord(
            order.id, mode, parent, base, LINEAGE, 1, "running", PLACES, order.started_us
        )

        def on_step(step: int, what: str) -> None:
            if step == dies_after:
                raise Died

        hooks = TakeHooks(waits=self.time.waits, now_us=lambda: 77, on_step=on_step)
        try:
            taken = self.jobs.take(BackupOrder(record, self.records.get(parent)), hooks)
        except Died:
            taken = TakenBackup("it is silent")
        fields = taken._asdict()
        state = FAILED if taken.error else COMPLETED
        if taken.error:
            fields = {"error": taken.error}
        self.records[record.id] = record._replace(state=state, **fields)
        return self.records[record.id]

    def state_of(self, record: BackupRecord, place: str) -> dict[bytes, bytes]:
        """What a restore from one destination gives."""
        shelf = Shelf({place: self.places[place]}, self.repository.id, NO_KEYS)
        links = load_chain(shelf, LINEAGE, record.label)
        found = {key: value for piece in read_state(shelf, links) for key, value in piece}
        return {key: value for key, value in found.items() if value is not None}


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.node.write({b"key %d" % i: b"old" for i in range(50)})
    cluster.node.checkpoint()
    return cluster


def prepared(cluster: Cluster, mode: str) -> int:
    """Have what a backup of this mode builds on, and writes and deletions since; its id."""
    if mode == FULL:
        return 0
    parent = cluster.take(FULL)
    assert parent.state == COMPLETED, parent.error
    cluster.node.write({b"key 3": None, b"key 4": b"new", b"key 99": b"new"})
    return parent.id


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("step", STEPS, ids=STEPS.values())
def test_a_death_after_a_step_loses_that_try_and_nothing_else(
    cluster: Cluster, mode: str, step: int
) -> None:
    parent = prepared(cluster, mode)
    failed = cluster.take(mode, parent, dies_after=step)
    assert failed.state == FAILED

    # The next try is another backup, and is complete.
    again = cluster.take(mode, parent)
    assert again.state == COMPLETED, again.error
    for place in PLACES:
        assert cluster.state_of(again, place) == cluster.node.model

    # What is there of the first one is either all of it, and counts; or goes.
    listing = cluster.jobs.list(LINEAGE, list(cluster.records.values()), cluster.time.waits)
    assert listing.lost == {} and listing.leftovers == ()
    if step < 6:
        assert listing.adoptable == ()
    else:
        (adopted,) = listing.adoptable
        assert (adopted.id, adopted.label, adopted.mode) == (failed.id, failed.label, mode)
        assert adopted.destinations == PLACES
        for place in PLACES:
            assert cluster.state_of(adopted, place) == cluster.node.model
    retired = cluster.records[failed.id]._replace(state=RETIRED)
    deletion = cluster.jobs.delete({name: [retired] for name in PLACES})
    assert deletion.gone == {(failed.id, place) for place in PLACES}
    for destination in cluster.places.values():
        assert destination.list(names.backup_folder(LINEAGE, failed.label)) == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "objects", [0, 1, 2], ids=["at once", "before manifest", "before verified"]
)
def test_a_destination_that_dies_in_the_middle_is_out_and_the_others_go_on(
    cluster: Cluster, mode: str, objects: int
) -> None:
    parent = prepared(cluster, mode)
    cluster.places["s3"].left = objects
    record = cluster.take(mode, parent)
    assert (record.state, record.destinations) == (COMPLETED, ("local", "tape"))
    assert record.errors[0].startswith("s3: ")
    for place in record.destinations:
        assert cluster.state_of(record, place) == cluster.node.model
    known = list(cluster.records.values())
    listing = cluster.jobs.list(LINEAGE, known, cluster.time.waits)
    assert listing.found[record.id] == ("local", "tape")

    # Once it is back, a backup that is whole there is proven, and counts there too.
    cluster.places["s3"].left = 1000
    listing = cluster.jobs.list(LINEAGE, known, cluster.time.waits)
    expected = PLACES if objects == 2 else ("local", "tape")
    assert listing.found[record.id] == expected
