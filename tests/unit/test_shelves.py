"""What a repository holds, read without the cluster: lists, damage, forks, verifications."""

from __future__ import annotations

from pathlib import Path

import pytest

from raftha.errors import ObjectMissing, RepositoryUnavailable, SeveralLineages
from raftha.membership import Member
from raftha.storage.backup import names
from raftha.storage.backup.counting import CountingDestination
from raftha.storage.backup.destination import ObjectInfo
from raftha.storage.backup.inspection import check_places, verify_backup
from raftha.storage.backup.memory import MemoryDestination
from raftha.storage.backup.plan import Fork
from raftha.storage.backup.restore_plan import RestoreTarget, plan_restore
from raftha.storage.backup.shelves import describe_fork, list_shelves, read_results
from raftha.types import BackupMode, BackupState
from tests.support.backups import LINEAGE, BackedUpNode, memory, repository_of

MIB = 1 << 20


class Unlisted(MemoryDestination):
    """A destination that can't be listed."""

    def list(self, prefix: str) -> list[ObjectInfo]:
        raise RepositoryUnavailable("it is away", destination=self.name)


def test_the_backups_of_a_repository_are_read_from_their_manifests() -> None:
    node, repository = BackedUpNode(), repository_of(memory("near"), memory("far"))
    node.write({b"a": b"1", b"b": b"2"})
    full = node.take(repository)
    node.write({b"a": b"3"})
    delta = node.take(repository, "incremental", full)
    shelves = list_shelves(repository)
    assert [each.label for each in shelves.backups] == [full.manifest.label, delta.manifest.label]
    assert set(shelves.places.values()) == {("near", "far")}
    assert shelves.find().label == delta.manifest.label
    assert shelves.errors == {}
    read: list[int] = []
    first, last = read_results(repository, shelves, lambda: read.append(1))
    assert (first.mode, first.parent, first.keys) == (BackupMode.FULL, None, 2)
    assert (last.mode, last.parent, last.base) == (BackupMode.INCREMENTAL, first.id, first.id)
    assert (last.keys, last.destinations) == (1, {"near": "ok", "far": "ok"})
    assert (first.digest, last.state) == (full.manifest.digest, BackupState.COMPLETED)
    assert len(read) == 2


def test_a_manifest_that_can_not_be_read_is_shown_as_such() -> None:
    place = memory("near")
    node, repository = BackedUpNode(), repository_of(place)
    taken = node.take(repository)
    name = names.manifest_name(LINEAGE, taken.manifest.label)
    data = bytearray(place.get(name, size_max=MIB))
    data[-1] ^= 1
    place.delete(name)
    place.create(name, bytes(data))
    (found,) = read_results(repository, list_shelves(repository))
    assert (found.state, found.label) == (BackupState.FAILED, taken.manifest.label)
    assert found.error
    assert found.destinations == {"near": found.error}


def test_a_destination_that_can_not_be_listed_is_left_out() -> None:
    near, away = memory("near"), Unlisted("away")
    node, repository = BackedUpNode(), repository_of(near, memory("far"))
    taken = node.take(repository)
    repository.destinations["away"] = away
    shelves = list_shelves(repository)
    assert [each.label for each in shelves.backups] == [taken.manifest.label]
    assert "it is away" in shelves.errors["away"]
    repository.destinations = {"away": away}
    with pytest.raises(RepositoryUnavailable, match="it is away"):
        list_shelves(repository)


def test_a_described_fork_continues_its_history(tmp_path: Path) -> None:
    """Without the description a later restore would have to ask which history is meant."""
    node, repository = BackedUpNode(), repository_of(memory())
    node.write({b"a": b"1"})
    taken = node.take(repository)
    target = RestoreTarget(
        data_dir=tmp_path / "new",
        cluster_name="bank",
        node_id=1,
        own=Member("127.0.0.1:7001"),
        segment_bytes=16 * MIB,
    )
    plan = plan_restore(repository, LINEAGE, taken.manifest.label, target)
    describe_fork(repository, plan)
    describe_fork(repository, plan)  # As another member that is restored with the token does.
    shelves = list_shelves(repository)
    assert shelves.forks[plan.lineage] == Fork(LINEAGE, taken.manifest.position.index)
    later = shelves.backups[0]._replace(lineage=plan.lineage)
    both = shelves._replace(backups=(*shelves.backups, later))
    assert both.find().lineage == plan.lineage
    with pytest.raises(SeveralLineages):
        both._replace(forks={}).find()


def test_a_damaged_description_of_a_history_hides_no_backup() -> None:
    place = memory()
    node, repository = BackedUpNode(), repository_of(place)
    taken = node.take(repository)
    place.create(names.lineage_name(LINEAGE), b"{}")
    shelves = list_shelves(repository)
    assert shelves.find().label == taken.manifest.label
    assert "lineages" in shelves.errors


def test_a_verification_covers_each_destination_and_its_failures() -> None:
    near, far = memory("near"), memory("far")
    node, repository = BackedUpNode(), repository_of(near, far)
    node.write({b"a": b"1"})
    taken = node.take(repository).manifest
    far.delete(taken.run_name(0))
    repository.destinations["away"] = Unlisted("away")
    where = ("near", "far", "away", "unknown")
    away, gone, good, unknown = verify_backup(repository, LINEAGE, taken.label, 3, where)
    assert (good.is_sound, good.digest, good.objects) == (True, taken.digest, 1)
    assert not gone.is_sound
    assert "it is missing" in gone.findings[0]
    assert not away.is_sound
    assert unknown.findings == ("it is not configured here",)


def test_a_folder_does_all_that_backups_need(tmp_path: Path) -> None:
    (check,) = check_places({"local": str(tmp_path / "backups")})
    assert (check.destination, check.is_usable, check.findings) == ("local", True, ())


def test_a_place_that_can_not_be_written_is_not_usable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (check,) = check_places({"local": str(tmp_path / "file")})
    assert not check.is_usable
    assert check.findings[0].startswith("create: ")


def test_each_request_is_counted_with_its_result() -> None:
    counted: list[tuple[str, str, str]] = []
    place = CountingDestination(memory("near"), lambda *request: counted.append(request))
    place.create("a", b"12")
    assert bytes(place.get("a", size_max=10)) == b"12"
    assert bytes(place.get_range("a", 1, 1)) == b"2"
    assert [info.name for info in place.list("")] == ["a"]
    place.delete("a")
    with pytest.raises(ObjectMissing):
        place.get("a", size_max=10)
    place.close()
    operations = [operation for _, operation, _ in counted]
    assert operations == ["create", "get", "get_range", "list", "delete", "get"]
    assert [result for *_, result in counted] == ["ok"] * 5 + ["ObjectMissing"]
    assert {name for name, *_ in counted} == {"near"}
