"""Retention: each rule by itself, the order of deletions, and what is said about it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import pytest

from raftha.config import RetentionPolicy
from raftha.storage.backup.retention import Candidate, Decisions, decide
from raftha.types import RetentionFate

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
NOW_US = int(datetime(2026, 11, 27, 12, tzinfo=UTC).timestamp()) * 1_000_000
ONE = RetentionPolicy(keep_last=1, keep_daily_days=0, keep_weekly_weeks=0, keep_monthly_months=0)
KEPT, WAITS, GOES, RETAINED = RetentionFate


def backup(backup_id: int, age_us: int, parent: int = 0, **fields: Any) -> Candidate:
    """A completed backup that is in `local`."""
    given: dict[str, Any] = {"lineage": "now", "state": "completed"}
    given |= {"destinations": frozenset({"local"}), "label": f"b{backup_id}", **fields}
    return Candidate(id=backup_id, parent=parent, time_us=NOW_US - age_us, **given)


def run(backups: Iterable[Candidate], policy: RetentionPolicy = ONE, **given: Any) -> Decisions:
    given = {"lineage": "now", "destinations": ("local",), "now_us": NOW_US, **given}
    return decide(backups, policy, **given)


def fates(decisions: Decisions, destination: str = "local") -> dict[int, RetentionFate]:
    return {each.backup_id: each.fate for each in decisions.each if each.destination == destination}


def reasons(decisions: Decisions, backup_id: int) -> list[str]:
    return [r for each in decisions.each if each.backup_id == backup_id for r in each.reasons]


def kept_ages(policy: RetentionPolicy, ages_us: Iterable[int]) -> list[int]:
    """The ages of the full backups that a policy keeps."""
    ages = sorted(ages_us, reverse=True)
    decided = fates(run([backup(i, age) for i, age in enumerate(ages, 1)], policy))
    return sorted(age for i, age in enumerate(ages, 1) if decided[i] is KEPT)


def test_without_backups_there_is_nothing_to_decide() -> None:
    assert run([]) == Decisions((), (), {})


def test_the_last_backups_stay_whatever_their_age() -> None:
    policy = RetentionPolicy(
        keep_last=3, keep_daily_days=0, keep_weekly_weeks=0, keep_monthly_months=0
    )
    ages = [number * 400 * DAY_US for number in range(6)]
    assert kept_ages(policy, ages) == ages[:3]


def test_the_newest_of_each_day_stays_today_included() -> None:
    policy = RetentionPolicy(
        keep_last=1, keep_daily_days=3, keep_weekly_weeks=0, keep_monthly_months=0
    )
    ages = [number * 6 * HOUR_US for number in range(20)]  # 12:00, 06:00, 00:00, 18:00 ...
    assert kept_ages(policy, ages) == [0, 18 * HOUR_US, 42 * HOUR_US]


def test_the_newest_of_each_week_stays_and_weeks_begin_on_monday() -> None:
    policy = RetentionPolicy(
        keep_last=1, keep_daily_days=0, keep_weekly_weeks=2, keep_monthly_months=0
    )
    ages = [number * DAY_US for number in range(20)]  # The 27th is a Friday, the 22nd a Sunday.
    assert kept_ages(policy, ages) == [0, 5 * DAY_US]


def test_the_newest_of_each_month_stays() -> None:
    policy = RetentionPolicy(
        keep_last=1, keep_daily_days=0, keep_weekly_weeks=0, keep_monthly_months=3
    )
    ages = [number * DAY_US for number in range(200)]
    assert kept_ages(policy, ages) == [0, 27 * DAY_US, 58 * DAY_US]  # 31 October, 30 September.


def test_a_backup_from_the_future_stays() -> None:
    """A clock was wrong once; that must not let go what is newest."""
    assert kept_ages(RetentionPolicy(), [-400 * DAY_US, 0]) == [-400 * DAY_US, 0]


def test_the_parents_of_a_kept_backup_stay() -> None:
    chain = [backup(1, 9 * DAY_US), backup(2, 8 * DAY_US, 1), backup(3, DAY_US, 2)]
    decisions = run(chain)
    assert set(fates(decisions).values()) == {KEPT}
    assert reasons(decisions, 1) == ["b2 builds on it"]
    assert reasons(decisions, 2) == ["b3 builds on it"]
    assert reasons(decisions, 3) == ["the newest that can be restored", "last 1 of 1"]


def test_a_pinned_backup_and_its_parents_stay() -> None:
    old = [backup(1, 9 * DAY_US), backup(2, 8 * DAY_US, 1, pins=("audit",))]
    decisions = run([*old, backup(3, 7 * DAY_US), backup(4, 0)])
    assert fates(decisions) == {1: KEPT, 2: KEPT, 3: GOES, 4: KEPT}
    assert "pinned: audit" in reasons(decisions, 2)


def test_what_is_under_way_keeps_what_it_reads() -> None:
    taken = backup(5, 0, 2, state="running", destinations=frozenset())
    decisions = run([backup(1, 9 * DAY_US), backup(2, 8 * DAY_US), backup(3, 0), taken], needed=[1])
    assert fates(decisions) == {1: KEPT, 2: KEPT, 3: KEPT}
    assert reasons(decisions, 5) == ["it is being taken"]
    assert reasons(decisions, 1) == ["it is being read"]


def test_the_base_of_the_window_stays() -> None:
    ages = [number * DAY_US for number in range(6)]
    backups = [backup(10 - number, age) for number, age in enumerate(ages)]
    decisions = run(backups, window_us=3 * DAY_US + HOUR_US)
    assert [i for i, fate in fates(decisions).items() if fate is KEPT] == [6, 10]
    assert reasons(decisions, 6) == ["restores to any moment begin with it"]


def test_a_window_that_is_longer_than_its_backups_begins_with_the_oldest() -> None:
    decisions = run([backup(1, 2 * DAY_US), backup(2, DAY_US), backup(3, 0)], window_us=9 * DAY_US)
    assert fates(decisions) == {1: KEPT, 2: GOES, 3: KEPT}


def test_nothing_goes_from_a_destination_that_has_nothing_newer() -> None:
    both = frozenset({"local", "far"})
    backups = [backup(1, 9 * DAY_US, destinations=both), backup(2, DAY_US, destinations=both)]
    decisions = run([*backups, backup(3, 0)], destinations=("local", "far"))
    assert fates(decisions) == {1: GOES, 2: KEPT, 3: KEPT}
    assert fates(decisions, "far") == {1: GOES, 2: KEPT}
    assert reasons(decisions, 2) == 2 * [
        "the newest that can be restored in far",
        "last 1 of 1 in far",
    ]


def test_a_backup_whose_parent_is_elsewhere_does_not_count_as_newer() -> None:
    """It can't be restored from this destination alone."""
    far = frozenset({"far"})
    backups = [backup(1, 9 * DAY_US, destinations=far), backup(2, DAY_US)]
    child = backup(3, 0, 2, destinations=frozenset({"local", "far"}))
    decisions = run([*backups, child], destinations=("local", "far"))
    assert fates(decisions, "far") == {1: KEPT, 3: KEPT}


def test_each_destination_counts_by_what_it_has_itself() -> None:
    far = frozenset({"far"})
    backups = [backup(i, (9 - i) * DAY_US) for i in range(1, 9)]
    backups[2] = backups[2]._replace(destinations=far)
    decisions = run(backups, destinations=("local", "far"))
    assert fates(decisions, "far") == {3: KEPT}


def test_a_backup_of_another_lineage_stays_and_counts_for_nothing() -> None:
    """The cluster that took it may still run, and this one has other writes since the fork."""
    backups = [backup(1, 3 * DAY_US), backup(2, 2 * DAY_US), backup(9, DAY_US, lineage="before")]
    decisions = run(backups)
    assert fates(decisions) == {1: GOES, 2: KEPT, 9: KEPT}
    assert reasons(decisions, 9) == ["it is of another lineage"]
    assert fates(run(backups[1:])) == {2: KEPT, 9: KEPT}


def test_a_missing_backup_stays_in_the_catalog_as_long_as_the_policy_keeps_it() -> None:
    """A bucket that is listed wrongly for a while must not cost the backups in it."""
    policy = RetentionPolicy(
        keep_last=2, keep_daily_days=0, keep_weekly_weeks=0, keep_monthly_months=0
    )
    gone = frozenset[str]()
    backups = [
        backup(1, 3 * DAY_US, state="missing", destinations=gone),
        backup(2, 2 * DAY_US, state="missing", destinations=gone),
        backup(3, DAY_US),
    ]
    assert fates(run(backups, policy), "") == {1: GOES, 2: KEPT}
    assert run(backups, policy).retire == (1,)


def test_a_failed_backup_goes_after_a_day() -> None:
    young = backup(1, 23 * HOUR_US, state="failed")
    old = backup(2, 25 * HOUR_US, state="failed")
    decisions = run([young, old])
    assert fates(decisions) == {1: WAITS, 2: GOES}
    assert decisions.retire == (2,)


def test_children_are_deleted_before_their_parents() -> None:
    going = [backup(i, 9 * DAY_US - i, i - 1, state="retired") for i in range(1, 4)]
    decisions = run([*going, backup(4, 0)])
    assert decisions.retire == ()
    assert decisions.deletions == {"local": (3, 2, 1)}


def test_nothing_is_deleted_before_it_is_retired() -> None:
    decisions = run([backup(1, DAY_US), backup(2, 0)])
    assert (decisions.retire, decisions.deletions) == ((1,), {})


def test_a_parent_waits_for_a_child_that_waits() -> None:
    far = frozenset({"far"})
    old = [backup(1, 9 * DAY_US), backup(2, 8 * DAY_US, 1, destinations=far), backup(3, 0)]
    decisions = run(old, destinations=("local", "far"))
    assert fates(decisions, "far") == {2: WAITS}
    assert fates(decisions) == {1: WAITS, 3: KEPT}
    assert reasons(decisions, 1) == ["b2 builds on it"]


def test_a_retired_backup_that_is_needed_after_all_is_not_deleted() -> None:
    """The catalog doesn't allow it. If it happens, nothing must be lost."""
    for pins in ((), ("audit",)):
        decisions = run([backup(1, DAY_US, state="retired"), backup(2, 0, 1, pins=pins)])
        assert fates(decisions) == ({1: KEPT, 2: KEPT} if pins else {1: WAITS, 2: WAITS})
        assert decisions.deletions == {}


def test_a_refused_deletion_is_a_state_and_is_tried_again() -> None:
    locked = backup(1, DAY_US, state="retired", refused_by=frozenset({"local"}))
    decisions = run([locked, backup(2, 0)])
    assert fates(decisions) == {1: RETAINED, 2: KEPT}
    assert reasons(decisions, 1) == ["local refuses to delete it"]
    assert decisions.deletions == {"local": (1,)}


def test_a_backup_in_a_destination_that_is_no_longer_configured_keeps_its_record() -> None:
    gone = backup(1, 2 * DAY_US, destinations=frozenset({"former"}))
    assert fates(run([gone]), "") == {1: KEPT}
    assert fates(run([gone, backup(2, 0)]), "") == {1: GOES}


@pytest.mark.parametrize("parent", [1, 2])
def test_a_chain_that_is_a_circle_can_not_be_restored_and_ends(parent: int) -> None:
    """Only damage makes one."""
    circle = [backup(1, 2 * DAY_US, parent), backup(2, DAY_US, 1), backup(3, 0)]
    assert fates(run(circle))[3] is KEPT


def test_a_wrong_date_does_not_end_the_decision() -> None:
    assert fates(run([backup(1, -(1 << 62)), backup(2, 0)]))[1] is KEPT
