"""Which backups a restore reads: chosen by label, time and lineage."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from raftha.errors import SeveralLineages, TargetUnreachable
from raftha.storage.backup import names
from raftha.storage.backup.plan import Fork, Listed, find, listed_in

OLD, NEW, OTHER = "0" * 32, "1" * 32, "2" * 32
BASE_US = int(datetime(2026, 11, 27, tzinfo=UTC).timestamp()) * 1_000_000
MINUTE_US = 60_000_000


def listed(
    index: int, minute: int = -1, *, lineage: str = OLD, mode: str = "F", is_verified: bool = True
) -> Listed:
    minute = index if minute < 0 else minute
    return Listed(lineage, names.label(BASE_US + minute * MINUTE_US, mode, index), is_verified)


def test_a_backup_is_listed_once_its_manifest_is_there() -> None:
    label, other = listed(1).label, listed(2).label
    objects = [
        names.run_name(OLD, label, 0),
        names.manifest_name(OLD, label),
        names.verified_name(OLD, label),
        names.run_name(OLD, other, 0),
        names.manifest_name(OLD, listed(3).label),
        names.repository_name(),
        f"{OLD}/backups/../manifest",
    ]
    assert listed_in(objects) == [listed(1), listed(3, is_verified=False)]


def test_the_newest_verified_backup_is_chosen() -> None:
    backups = [listed(3, is_verified=False), listed(1), listed(2)]
    assert find(backups, {}) == listed(2)


def test_a_time_stands_for_the_last_backup_that_began_by_then() -> None:
    backups = [listed(1), listed(2), listed(3)]
    assert find(backups, {}, at_us=BASE_US + 2 * MINUTE_US) == listed(2)
    assert find(backups, {}, at_us=BASE_US + 3 * MINUTE_US - 1) == listed(2)
    assert find(backups, {}, at_us=BASE_US + 99 * MINUTE_US) == listed(3)


def test_a_time_before_the_first_backup_can_not_be_reached() -> None:
    with pytest.raises(TargetUnreachable, match="the first is 20261127T000100Z") as caught:
        find([listed(1), listed(2)], {}, at_us=BASE_US)
    assert caught.value.earliest == datetime(2026, 11, 27, 0, 1, tzinfo=UTC)
    assert caught.value.latest == datetime(2026, 11, 27, 0, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("backups", "message"),
    [([], "no backups"), ([listed(1, is_verified=False)], "none of 1 backups is verified")],
)
def test_without_a_verified_backup_there_is_nothing_to_restore(
    backups: list[Listed], message: str
) -> None:
    with pytest.raises(TargetUnreachable, match=message) as caught:
        find(backups, {})
    assert (caught.value.earliest, caught.value.latest) == (None, None)


def test_a_label_or_an_id_names_a_backup_verified_or_not() -> None:
    backups = [listed(1), listed(26, is_verified=False)]
    assert find(backups, {}, label=listed(26).label) == backups[1]
    assert find(backups, {}, label="26") == backups[1]
    with pytest.raises(TargetUnreachable, match="there is no backup 7"):
        find(backups, {}, label="7")


def test_a_history_goes_on_through_its_forks() -> None:
    """Restored to backup 2, then on as a new lineage; the old one's backup 3 is another history."""
    backups = [listed(1), listed(2), listed(3, 3), listed(4, 9, lineage=NEW)]
    forks = {NEW: Fork(OLD, 2)}
    assert find(backups, forks) == backups[3]
    assert find(backups, forks, at_us=BASE_US + 8 * MINUTE_US) == listed(2)
    assert find(backups, forks, lineage=OLD) == listed(3, 3)
    assert find(backups, forks, label="3") == listed(3, 3)


def test_two_clusters_in_one_place_have_to_be_told_apart() -> None:
    backups = [listed(1), listed(1, 5, lineage=OTHER)]
    with pytest.raises(SeveralLineages, match="last backup 2026-11-27T00:05:00Z") as caught:
        find(backups, {})
    assert caught.value.lineages == (OLD, OTHER)
    assert find(backups, {}, lineage=OTHER) == backups[1]
    with pytest.raises(SeveralLineages):
        find(backups, {}, label="1")


def test_two_forks_of_one_history_have_to_be_told_apart() -> None:
    backups = [listed(1), listed(5, lineage=NEW), listed(6, lineage=OTHER)]
    forks = {NEW: Fork(OLD, 2), OTHER: Fork(OLD, 3)}
    with pytest.raises(SeveralLineages) as caught:
        find(backups, forks)
    assert caught.value.lineages == (NEW, OTHER)


def test_a_lineage_without_backups_is_named_in_the_error() -> None:
    with pytest.raises(TargetUnreachable, match=f"no backups of lineage {NEW}"):
        find([listed(1)], {}, lineage=NEW)


def test_forks_in_a_circle_end() -> None:
    """Only damage makes one."""
    forks = {OLD: Fork(NEW, 9), NEW: Fork(OLD, 9)}
    backups = [listed(1), listed(2, lineage=NEW)]
    with pytest.raises(SeveralLineages, match="circle"):
        find(backups, forks)
    assert find(backups, forks, lineage=OLD) == listed(2, lineage=NEW)
