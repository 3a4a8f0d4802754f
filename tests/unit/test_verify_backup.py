"""Verification: each kind of damage is found, at the level that promises it."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from random import Random

import pytest

from raftha.errors import (
    BackupDamaged,
    ChainBroken,
    KeyMissing,
    ObjectMissing,
    RepositoryConflict,
    RepositoryUnavailable,
)
from raftha.storage.backup.crypto import OperatorKey
from raftha.storage.backup.manifest import Manifest, encode_manifest
from raftha.storage.backup.memory import MemoryDestination
from raftha.storage.backup.names import manifest_name, verified_name
from raftha.storage.backup.repository import Repository
from raftha.storage.backup.take import TakeResult
from raftha.storage.backup.uploads import BackupCancelled
from raftha.storage.backup.verify import (
    Verified,
    VerifyReport,
    read_verified,
    verify_in,
    write_verified,
)
from tests.support.backups import LINEAGE, BackedUpNode, memory, repository_of
from tests.support.faulty_destination import Fault, FaultyDestination


class Chain:
    """A full backup and two incremental ones, in one destination."""

    def __init__(self, operator: OperatorKey | None = None) -> None:
        self.node = BackedUpNode()
        self.node.write({b"%03d" % i: b"%d" % i for i in range(200)})
        self.destination: MemoryDestination = memory()
        self.repository: Repository = repository_of(self.destination, operator=operator)
        self.full = self.node.take(self.repository)
        self.node.write({b"001": None, b"a": b"1"})
        self.first = self.node.take(self.repository, "incremental", self.full)
        self.node.write({b"a": b"2", b"b": b"3"})
        self.last = self.node.take(self.repository, "incremental", self.first)

    def verify(self, level: int, result: TakeResult | None = None) -> VerifyReport:
        label = (result or self.last).manifest.label
        return verify_in(
            self.destination, self.repository, LINEAGE, label, level, self.node.time.waits
        )

    def replace(self, name: str, data: bytes) -> None:
        self.destination.delete(name)
        self.destination.create(name, data)

    def rewrite(self, manifest: Manifest) -> None:
        """Have another manifest under its name: its objects are the same."""
        data = encode_manifest(manifest, self.repository.key, salt=bytes(16))
        self.replace(manifest_name(LINEAGE, manifest.label), data)


@pytest.fixture
def chain() -> Chain:
    return Chain()


@pytest.mark.parametrize("level", [0, 1, 2, 3])
@pytest.mark.parametrize("operator", [None, OperatorKey(bytes(32))])
def test_a_sound_chain_has_no_findings(level: int, operator: OperatorKey | None) -> None:
    chain = Chain(operator)
    for result in (chain.full, chain.first, chain.last):
        report = chain.verify(level, result)
        assert report.is_sound
        assert report.objects >= 1
        assert bool(report.digest) is (level == 3)
    assert chain.verify(3, chain.full).digest == chain.full.manifest.digest


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_a_missing_object_is_found(chain: Chain, level: int) -> None:
    name = chain.last.manifest.run_name(0)
    chain.destination.delete(name)
    (finding,) = chain.verify(level).findings
    assert isinstance(finding, ObjectMissing)
    assert finding.object == name


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_an_object_of_another_size_is_found(chain: Chain, level: int) -> None:
    name = chain.last.manifest.run_name(0)
    chain.replace(name, bytes(chain.destination.get(name, size_max=9999))[:-1])
    assert all(isinstance(found, BackupDamaged) for found in chain.verify(level).findings)
    assert not chain.verify(level).is_sound


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_changed_byte_is_found_by_reading_back(chain: Chain, level: int) -> None:
    name = chain.last.manifest.run_name(0)
    data = bytearray(chain.destination.get(name, size_max=9999))
    data[70] ^= 1
    chain.replace(name, bytes(data))
    assert chain.verify(0).is_sound
    (finding,) = chain.verify(level).findings
    assert isinstance(finding, BackupDamaged)


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_a_manifest_that_is_gone_or_damaged_is_found(chain: Chain, level: int) -> None:
    name = manifest_name(LINEAGE, chain.last.manifest.label)
    data = bytearray(chain.destination.get(name, size_max=9999))
    data[-1] ^= 1
    chain.replace(name, bytes(data))
    (finding,) = chain.verify(level).findings
    assert isinstance(finding, BackupDamaged)
    chain.destination.delete(name)
    (finding,) = chain.verify(level).findings
    assert isinstance(finding, ObjectMissing)


@pytest.mark.parametrize("level", [2, 3])
def test_a_parent_that_is_gone_is_found(chain: Chain, level: int) -> None:
    chain.destination.delete(manifest_name(LINEAGE, chain.full.manifest.label))
    assert chain.verify(1).is_sound
    (finding,) = chain.verify(level).findings
    assert isinstance(finding, ChainBroken)


@pytest.mark.parametrize("level", [2, 3])
def test_an_object_of_a_parent_that_is_gone_is_found(chain: Chain, level: int) -> None:
    chain.destination.delete(chain.full.manifest.run_name(0))
    (finding,) = chain.verify(level).findings
    assert isinstance(finding, ObjectMissing)


@pytest.mark.parametrize("level", [2, 3])
def test_a_parent_that_is_another_one_is_found(chain: Chain, level: int) -> None:
    chain.rewrite(replace(chain.first.manifest, node=7))
    (finding,) = chain.verify(level).findings
    assert isinstance(finding, ChainBroken)


@pytest.mark.parametrize("level", [2, 3])
def test_a_delta_that_begins_behind_its_parent_is_found(chain: Chain, level: int) -> None:
    late = chain.first.manifest.position.index + 1
    chain.rewrite(replace(chain.last.manifest, start=late))
    (finding,) = chain.verify(level).findings
    assert isinstance(finding, ChainBroken)
    assert "lacks changes" in str(finding)


def test_facts_that_do_not_fit_are_found_by_rebuilding(chain: Chain) -> None:
    (run,) = chain.last.manifest.runs
    chain.rewrite(replace(chain.last.manifest, runs=(run._replace(last_key=b"bb"),)))
    assert chain.verify(1).is_sound
    (finding,) = chain.verify(2).findings
    assert isinstance(finding, BackupDamaged)


def test_a_state_with_another_digest_is_found(chain: Chain) -> None:
    chain.rewrite(replace(chain.full.manifest, digest="00" * 32))
    assert chain.verify(2, chain.full).is_sound
    (finding,) = chain.verify(3, chain.full).findings
    assert isinstance(finding, BackupDamaged)
    assert "digest" in str(finding)


def test_a_delta_is_compared_at_its_full_backup(chain: Chain) -> None:
    """The full one's digest is wrong, and the hashes of the whole chain were made to fit."""
    full = replace(chain.full.manifest, digest="00" * 32)
    chain.rewrite(full)
    hashed = encode_manifest(full, None)
    first = replace(chain.first.manifest, parent_sha256=sha256(hashed).hexdigest())
    chain.rewrite(first)
    (finding,) = chain.verify(3, chain.first).findings
    assert finding.object == manifest_name(LINEAGE, full.label)


def test_a_place_that_does_not_answer_is_no_finding(chain: Chain) -> None:
    destination = FaultyDestination(chain.destination)
    destination.plan(Fault("get", "fails", "*/run-*", None))
    label, waits = chain.last.manifest.label, chain.node.time.waits
    with pytest.raises(RepositoryUnavailable):
        verify_in(destination, chain.repository, LINEAGE, label, 1, waits)


def test_a_wrong_key_is_no_finding() -> None:
    chain = Chain(OperatorKey(bytes(32)))
    chain.repository.keys = type(chain.repository.keys)()
    with pytest.raises(KeyMissing):
        chain.verify(0)


def test_a_verification_that_is_not_wanted_ends(chain: Chain) -> None:
    chain.node.time.is_wanted = False
    with pytest.raises(BackupCancelled):
        chain.verify(1)


# --- The record -----------------------------------------------------------------------------------


def verified(chain: Chain, **changes: object) -> Verified:
    made = Verified(chain.full.manifest.label, chain.full.manifest_sha256, 3, "04" * 32, 2, 99)
    return made._replace(**changes)  # type: ignore[arg-type]


def test_the_record_of_a_verification_is_read_back(chain: Chain) -> None:
    label, waits = chain.full.manifest.label, chain.node.time.waits
    chain.destination.delete(verified_name(LINEAGE, label))
    assert read_verified(chain.destination, LINEAGE, label) is None
    write_verified(chain.destination, LINEAGE, verified(chain), waits, 1)
    assert read_verified(chain.destination, LINEAGE, label) == verified(chain)


def test_an_earlier_record_of_the_same_manifest_stays(chain: Chain) -> None:
    label, waits = chain.full.manifest.label, chain.node.time.waits
    before = read_verified(chain.destination, LINEAGE, label)
    write_verified(chain.destination, LINEAGE, verified(chain), waits, 1)
    assert read_verified(chain.destination, LINEAGE, label) == before
    other = verified(chain, manifest_sha256="00" * 32)
    with pytest.raises(RepositoryConflict):
        write_verified(chain.destination, LINEAGE, other, waits, 1)


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[]", bytes(5000), b'{"format": 1, "label": "x"}', Random(1).randbytes(100)],
)
def test_another_thing_in_the_place_of_a_record_is_damage(chain: Chain, data: bytes) -> None:
    label = chain.full.manifest.label
    chain.replace(verified_name(LINEAGE, label), data)
    with pytest.raises(BackupDamaged):
        read_verified(chain.destination, LINEAGE, label)
