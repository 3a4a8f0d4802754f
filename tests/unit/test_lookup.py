"""Single keys and ranges out of a backup."""

from __future__ import annotations

from itertools import islice
from random import Random

import pytest

from raftha.errors import BackupDamaged, ChainBroken, KeyMissing, ObjectMissing
from raftha.storage.backup import take as take_module
from raftha.storage.backup.crypto import OperatorKey
from raftha.storage.backup.lookup import BackupReader
from raftha.storage.backup.names import manifest_name
from raftha.storage.backup.repository import Repository
from raftha.storage.backup.runs import SPARE_BYTES
from raftha.storage.backup.take import TakeResult
from tests.support.backups import LINEAGE, BackedUpNode, memory, repository_of
from tests.support.faulty_destination import Fault, FaultyDestination


def reader(repository: Repository, result: TakeResult) -> BackupReader:
    return BackupReader(repository, LINEAGE, result.manifest.label)


class Backups:
    """A chain of three, of which the full one has many objects and blocks."""

    def __init__(self, operator: OperatorKey | None = None) -> None:
        random = Random(11)
        self.random = random
        self.node = BackedUpNode()
        self.node.write({b"k%05d" % i: random.randbytes(400) for i in range(0, 6000, 2)})
        self.node.write({b"k00500": random.randbytes(1_000_000)})
        self.destination = FaultyDestination(memory())
        self.repository = repository_of(self.destination, operator=operator)
        self.states: list[dict[bytes, bytes]] = []
        self.results: list[TakeResult] = []
        self.take("full")
        self.node.write({b"k00002": None, b"k00003": b"new", b"k00004": b"other", b"z": b"1"})
        self.take("incremental")
        self.node.write({b"k00003": None, b"k00002": b"back", b"z": b"2", b"a": b""})
        self.take("incremental")

    def take(self, mode: str) -> None:
        parent = self.results[-1] if self.results else None
        self.results.append(self.node.take(self.repository, mode, parent))
        self.states.append(dict(self.node.model))


@pytest.fixture(scope="module", params=[None, OperatorKey(bytes(32))], ids=["plain", "encrypted"])
def backups(request: pytest.FixtureRequest) -> Backups:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(take_module, "OBJECT_BYTES", SPARE_BYTES + (500 << 10))
        made = Backups(request.param)
    assert len(made.results[0].manifest.runs) >= 3
    return made


def test_every_key_is_found_as_of_each_backup(backups: Backups) -> None:
    for result, state in zip(backups.results, backups.states, strict=True):
        found = reader(backups.repository, result)
        keys = [b"k%05d" % i for i in range(6000)]
        for key in (*backups.random.sample(keys, 300), *keys[:8], b"a", b"z", b"", b"zz", b"k"):
            assert found.get(key) == state.get(key)


def test_a_key_costs_a_few_small_reads(backups: Backups) -> None:
    found = reader(backups.repository, backups.results[0])
    backups.destination.calls.clear()
    assert found.get(b"k03000") is not None
    assert [operation for operation, _ in backups.destination.calls] == ["get_range"] * 3
    backups.destination.calls.clear()
    assert found.get(b"zzz") is None
    assert backups.destination.calls == []


def test_ranges_are_those_of_the_state(backups: Backups) -> None:
    bounds = [None, b"", b"a", b"k00001", b"k00002", b"k02501", b"k05998", b"k05999", b"z", b"zz"]
    for result, state in zip(backups.results, backups.states, strict=True):
        found = reader(backups.repository, result)
        for start in bounds:
            for end in bounds:
                expected = sorted(
                    pair
                    for pair in state.items()
                    if (start is None or pair[0] >= start) and (end is None or pair[0] < end)
                )
                assert list(found.scan(start, end)) == expected


def test_a_scan_reads_no_further_than_it_is_asked(backups: Backups) -> None:
    found = reader(backups.repository, backups.results[0])
    backups.destination.calls.clear()
    pairs = list(islice(found.scan(b"k03000", None), 5))
    assert [key for key, _ in pairs] == [b"k%05d" % i for i in range(3000, 3010, 2)]
    assert len(backups.destination.calls) <= 4


def test_damage_is_found_and_another_destination_is_asked(backups: Backups) -> None:
    label = backups.results[0].manifest.label
    backups.destination.plan(Fault("get_range", "rotten", "*", None))
    found = BackupReader(backups.repository, LINEAGE, label)
    with pytest.raises((BackupDamaged, KeyMissing)):
        found.get(b"k03000")
    backups.destination.plan()
    other = memory("other")
    for info in backups.destination.inner.list(""):
        other.create(info.name, backups.destination.inner.get(info.name, size_max=1 << 30))
    backups.repository.admit(other)
    backups.destination.plan(Fault("*", "rotten", f"{LINEAGE}/*", None))
    found = BackupReader(backups.repository, LINEAGE, label)
    assert found.get(b"k03000") == backups.states[0][b"k03000"]
    backups.destination.plan()
    del backups.repository.destinations["other"]


def test_a_chain_with_a_gap_is_refused(backups: Backups) -> None:
    middle = manifest_name(LINEAGE, backups.results[1].manifest.label)
    backups.destination.plan(Fault("get", "stale", middle, None))
    backups.destination.freeze()
    kept = backups.destination.inner.get(middle, size_max=1 << 20)
    backups.destination.inner.delete(middle)
    with pytest.raises(ChainBroken):
        reader(backups.repository, backups.results[2])
    with pytest.raises(ObjectMissing):
        reader(backups.repository, backups.results[1])
    assert reader(backups.repository, backups.results[0]).get(b"k00002") is not None
    backups.destination.inner.create(middle, kept)
    backups.destination.plan()
