"""What is wrong with the places of backups of a real node: others' data, other keys, no space."""

from __future__ import annotations

import errno
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import raftha
from raftha import BackupConfig, BackupResult, BackupState
from raftha.config.backup import RetentionPolicy
from raftha.errors import BackupFailed
from raftha.storage.backup.chain import Shelf, load_chain, read_state
from raftha.storage.backup.opening import open_places
from tests.faultfs.faults import Fault
from tests.faultfs.mount import FaultFs, why_not
from tests.support.conditions import wait_until
from tests.support.nodes import free_addresses, make_config

pytestmark = pytest.mark.slow


def start(folder: Path, places: dict[str, Path], **settings: Any) -> raftha.HaManager:
    """A cluster of one node in `folder` that takes no backup by itself but the first."""
    destinations = {name: str(place) for name, place in places.items()}
    given: dict[str, Any] = {"destinations": destinations, "retry_s": 1}
    config = make_config(folder, 1, {1: free_addresses(1)[0]})
    # Without an archive no window of it keeps older backups.
    backup = BackupConfig(**given | settings)
    ha = raftha.HaManager(replace(config, backup=backup, enable_pitr=False))
    ha.start()
    return ha


def settled(ha: raftha.HaManager) -> BackupResult:
    """The first backup, which is due at once."""
    wait_until(lambda: ha.backup.get_last_backup() is not None, "the first one doesn't end")
    found = ha.backup.get_last_backup()
    assert found is not None
    return found


def failures(ha: raftha.HaManager) -> int:
    return sum(backup.state is BackupState.FAILED for backup in ha.backup.list_backups())


def restored(place: Path, backup: BackupResult) -> dict[bytes, bytes]:
    """What a restore of a backup gives."""
    with closing(open_places({"local": str(place)}, None)) as repository:
        shelf = Shelf(repository.destinations, repository.id, repository.keys)
        links = load_chain(shelf, backup.lineage, backup.label)
        found = {key: value for piece in read_state(shelf, links) for key, value in piece}
    return {key: value for key, value in found.items() if value is not None}


def test_clusters_in_one_place_and_one_made_again_leave_each_other_their_backups(
    tmp_path: Path,
) -> None:
    """Their names have the lineage; no rule of one deletes what is another's."""
    place = tmp_path / "backups"
    rules = {
        "retention": RetentionPolicy(
            keep_last=1, keep_daily_days=0, keep_weekly_weeks=0, keep_monthly_months=0
        )
    }
    made: dict[bytes, BackupResult] = {}
    for name in (b"first", b"made again", b"another"):
        folder = tmp_path / ("other" if name == b"another" else "one")
        if name == b"made again":
            shutil.rmtree(folder)
        with start(folder, {"local": place}, **rules) as ha:
            settled(ha)
            ha.put(b"whose", name)
            for _ in range(2):
                last = ha.trigger_backup("full", wait=True)
            made[name] = ha.backup.get_backup(last)
            ha.backup.apply_retention()
            wait_until(lambda h=ha: len(h.backup.list_backups()) == 1, "the older ones stay")  # type: ignore[misc]
    assert len({backup.lineage for backup in made.values()}) == 3
    for name, backup in made.items():
        assert name in restored(place, backup).values()


def test_another_key_than_the_places_takes_no_backup_and_says_so(tmp_path: Path) -> None:
    place, keys = tmp_path / "backups", [tmp_path / "key", tmp_path / "other"]
    for number, key in enumerate(keys):
        key.write_bytes(bytes([number]) * 32)
        key.chmod(0o600)
    sealed = {"encryption": True, "encryption_key_file": str(keys[0])}
    with start(tmp_path / "one", {"local": place}, **sealed) as ha:
        assert settled(ha).is_completed
    before = sorted(place.rglob("*"))
    wrong = {"encryption": True, "encryption_key_file": str(keys[1])}
    with start(tmp_path / "two", {"local": place}, **wrong) as ha:
        wait_until(
            lambda: failures(ha) >= 2, "it isn't tried twice"
        )  # The next one is a minute off.
        with pytest.raises(BackupFailed, match="the operator's key opens none"):
            ha.trigger_backup("full", wait=True)
        ha.put(b"key", b"value")
        assert ha.get(b"key") == b"value"
    assert sorted(place.rglob("*")) == before


def test_a_place_that_dies_in_the_middle_has_no_part_and_the_others_are_complete(
    tmp_path: Path,
) -> None:
    places = {name: tmp_path / name for name in ("far", "near", "tape")}
    with start(tmp_path / "one", places, bytes_per_s=1 << 20) as ha:
        settled(ha)
        for number in range(3):
            ha.put(b"large %d" % number, bytes(range(256)) * 4000)
        backup_id = ha.trigger_backup("full")
        wait_until(lambda: ha.backup.get_state() is not BackupState.PREPARING, "it doesn't begin")
        places["tape"].rename(tmp_path / "away")
        places["tape"].write_bytes(b"a file where the folder was")
        wait_until(lambda: not ha.backup.get_state().is_running, "it doesn't end")
        backup = ha.backup.get_backup(backup_id)
        assert backup.is_completed
        assert {name for name, said in backup.destinations.items() if said == "ok"} == {
            "far",
            "near",
        }
        assert backup.destinations["tape"]
        for name in ("far", "near"):
            assert restored(places[name], backup)
        places["tape"].unlink()
        (tmp_path / "away").rename(places["tape"])
        assert {report.destination for report in ha.backup.verify_backup(backup_id, 3)} == {
            "far",
            "near",
        }


@pytest.mark.skipif(bool(why_not()), reason=f"no FUSE: {why_not()}")
def test_a_spool_without_space_costs_a_full_backup_and_no_write(tmp_path: Path) -> None:
    place = tmp_path / "backups"
    config = make_config(tmp_path, 1, {1: free_addresses(1)[0]})
    with FaultFs(tmp_path / "1") as disk:
        backup = BackupConfig(destinations={"local": str(place)})
        with raftha.HaManager(replace(config, backup=backup)) as ha:
            first = settled(ha)
            disk.set_faults(Fault(operation="write", pattern="spool/*", code=errno.ENOSPC))
            ha.put(b"key", b"value")
            found = ha.backup.get_backup(ha.trigger_backup("incremental", wait=True))
            assert (found.mode, found.parent) == ("full", None)
            assert "no member that can take it has the changes" in found.reason
            assert b"value" in restored(place, found).values()
            disk.set_faults()
            ha.put(b"key", b"later")
            delta = ha.backup.get_backup(ha.trigger_backup("incremental", wait=True))
            assert first.id < found.id == delta.parent
