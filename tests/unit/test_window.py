"""Which log the window of point-in-time recovery needs, and which backups."""

from __future__ import annotations

from typing import Any

from raftha.storage.backup.window import keep_from, read_by
from raftha.storage.state.catalog import COMPLETED, BackupRecord
from raftha.storage.state.recoveries import ABORTED, PREPARED, RESTORED, RecoveryRecord

LINEAGE = "ab" * 16
HOUR = 3_600_000_000


def backup(number: int, parent: int = 0, destinations: tuple[str, ...] = ("a",)) -> BackupRecord:
    """A backup of hour `number`, whose position is entry and command 100 times that."""
    record = BackupRecord(
        100 * number,
        "incremental" if parent else "full",
        100 * parent,
        100 * (parent or number),
        LINEAGE,
        1,
        COMPLETED,
        destinations,
        number * HOUR,
    )
    at = 100 * number
    return record._replace(position_index=at, position_sequence=at, position_us=number * HOUR)


def recovery(index: int, to_sequence: int, **others: Any) -> RecoveryRecord:
    fields = {"state": RESTORED, "ended_us": index // 100 * HOUR, "backups": (100,), **others}
    return RecoveryRecord(
        index - 1, fields["state"], 7, LINEAGE, to_sequence, 0, fields["backups"], 0, 60, "", 0
    )._replace(index=index, sequence=index, ended_us=fields["ended_us"])


def test_the_log_behind_the_last_backup_before_the_window_is_needed() -> None:
    records = [backup(n) for n in (1, 2, 3, 4)]
    assert keep_from(records, [], "a", 3 * HOUR + 5) == 301
    assert keep_from(records, [], "a", 3 * HOUR) == 301
    assert keep_from(records, [], "a", 3 * HOUR - 1) == 201


def test_all_log_is_needed_if_no_backup_is_older() -> None:
    assert keep_from([], [], "a", HOUR) == 0
    assert keep_from([backup(2)], [], "a", HOUR) == 0
    assert keep_from([backup(1)], [], "elsewhere", 9 * HOUR) == 0


def test_a_backup_counts_with_its_whole_chain() -> None:
    records = [backup(1), backup(2, parent=1), backup(4, parent=3)]
    assert keep_from(records, [], "a", 9 * HOUR) == 201
    split = [backup(1), backup(2, parent=1, destinations=("b",))]
    assert keep_from(split, [], "a", 9 * HOUR) == 101


def test_a_recovery_in_the_window_needs_what_it_went_back_to() -> None:
    records = [backup(n) for n in range(1, 7)]
    assert keep_from(records, [recovery(550, 250)], "a", 5 * HOUR) == 201
    assert keep_from(records, [recovery(450, 250)], "a", 5 * HOUR) == 501, "it is before the window"
    chained = [recovery(350, 150), recovery(550, 360)]
    assert keep_from(records, chained, "a", 5 * HOUR) == 101, "on the way lies another one"
    assert keep_from(records, [recovery(550, 50)], "a", 5 * HOUR) == 0


def test_a_recovery_under_way_needs_it_too_and_one_given_up_does_not() -> None:
    records = [backup(n) for n in range(1, 7)]
    prepared = recovery(0, 250, state=PREPARED, ended_us=0)
    assert keep_from(records, [prepared], "a", 5 * HOUR) == 201
    assert keep_from(records, [recovery(0, 250, state=ABORTED)], "a", 5 * HOUR) == 501
    assert read_by([prepared], 5 * HOUR) == {100}
    assert read_by([recovery(550, 250), recovery(350, 9, backups=(7,))], 5 * HOUR) == {100}
    assert read_by([recovery(550, 250, state=ABORTED)], 5 * HOUR) == set()
