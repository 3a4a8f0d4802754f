"""`ha.pitr`: what its calls check and pack, and how the log's records become points and results."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest

import raftha
from raftha.api.recovery import RecoveryCalls, microseconds, nearest
from raftha.entry import LogPosition
from raftha.errors import InvalidRequest
from raftha.node.backup.results import points_of, recovery_of
from raftha.node.messages import BackupAction
from raftha.recovery import RecoveryPoint, RecoveryPointKind, RecoveryResult, RecoveryState
from raftha.storage.state.catalog import (
    Begin,
    Catalog,
    Change,
    End,
    MarkNow,
    NotePoint,
    Prepare,
    Restore,
    decode_change,
)
from raftha.storage.state.versions import decode_admin

HERE = "a" * 32
DIGEST = b"d" * 32
T0 = 1_764_288_000_000_000
BACKUP, CHECKPOINT, MARK, RECOVERY = RecoveryPointKind


def calls(**settings: Any) -> RecoveryCalls:
    config = raftha.HaConfig(node_id=1, data_dir="x", members={1: "127.0.0.1:1"}, **settings)
    return RecoveryCalls(config)


# ------------------------------------------------------------------ calls


@pytest.mark.parametrize(
    ("settings", "hint"),
    [({}, "add the table"), ({"backup": raftha.BackupConfig(), "enable_pitr": False}, "enable")],
)
def test_without_settings_there_is_no_recovery(settings: dict[str, Any], hint: str) -> None:
    with pytest.raises(InvalidRequest, match=f"no settings for recovery.*{hint}"):
        _ = calls(**settings).config
    assert calls(backup=raftha.BackupConfig()).config == raftha.PitrConfig()


def test_a_mark_is_packed_as_a_change_of_the_catalog() -> None:
    call = calls().mark("before deploy 17")
    assert call.what == BackupAction.CHANGE
    assert decode_change(*decode_admin(call.payload)) == MarkNow("before deploy 17")


@pytest.mark.parametrize("name", ["", "x" * 101, "a\nb", 7])
def test_a_wrong_name_is_refused(name: Any) -> None:
    with pytest.raises(InvalidRequest, match="a name is printable text of 1 to 100 characters"):
        calls().mark(name)


@pytest.mark.parametrize(
    ("moment", "expected_us"),
    [
        (datetime(1970, 1, 1, tzinfo=UTC), 0),
        (datetime(2026, 11, 27, 12, 0, 0, 1, UTC), 1_795_780_800_000_001),
        (datetime(2026, 11, 27, 13, tzinfo=timezone(timedelta(hours=1))), 1_795_780_800_000_000),
        # The second 02:30 of the night on which clocks go back.
        (
            datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
            1_792_891_800_000_000,
        ),
    ],
)
def test_a_time_is_exact_in_any_time_zone(moment: datetime, expected_us: int) -> None:
    assert microseconds("t", moment) == expected_us


@pytest.mark.parametrize("moment", [datetime(2026, 11, 27), "2026-11-27T12:00:00Z", 0])  # noqa: DTZ001
def test_a_time_without_an_offset_is_refused(moment: Any) -> None:
    with pytest.raises(InvalidRequest, match="t must be a datetime with a time zone"):
        microseconds("t", moment)


# ------------------------------------------------------------------ points


class Log:
    """A catalog, and entries that change it: entry n is stamped n seconds after the first."""

    def __init__(self) -> None:
        self.catalog = Catalog()

    def add(self, index: int, sequence: int, change: Change) -> None:
        at = LogPosition(index, 1, T0 + index * 1_000_000, sequence, bytes(16))
        self.catalog.apply(change, at)
        assert not self.catalog.verdict.refusal

    def back_up(self, index: int, sequence: int, size: int, parent: int = 0) -> None:
        mode = "incremental" if parent else "full"
        self.add(index, sequence, Begin(1, mode, parent, HERE, ("local",), ""))
        end = End(
            index, ("local",), index, sequence, T0 + index * 1_000_000, 3, 2 * size, size, "ff",
            b"m" * 32, 1, (), "",
        )  # fmt: skip
        self.add(index + 1, sequence, end)

    def note(self, index: int, sequence: int, agreed: int, voters: int = 3) -> None:
        digest = DIGEST if agreed else b""
        point = NotePoint(index, sequence, T0 + index * 1_000_000, digest, agreed, voters)
        self.add(index + 1, sequence, point)

    def points(self) -> list[RecoveryPoint]:
        return list(points_of(self.catalog, HERE))


def test_points_are_in_the_order_of_the_log_with_what_a_recovery_reads() -> None:
    log = Log()
    log.note(2, 1, agreed=0, voters=0)
    log.back_up(10, 100, 5000)
    log.add(20, 150, MarkNow("before deploy 17"))
    log.back_up(30, 200, 70, parent=10)
    log.note(40, 300, agreed=3)
    rows = [(p.kind, p.index, p.sequence, p.name, p.size_bytes) for p in log.points()]
    assert rows == [
        (CHECKPOINT, 2, 1, "", 0),
        (BACKUP, 10, 100, "20251128T000010Z-F-00000000000a", 5000),
        (MARK, 20, 150, "before deploy 17", 5000),
        (BACKUP, 30, 200, "20251128T000030Z-I-00000000001e", 5070),
        (CHECKPOINT, 40, 300, "", 5070),
    ]
    assert log.points()[2].timestamp == datetime(2025, 11, 28, 0, 0, 20, tzinfo=UTC)


@pytest.mark.parametrize(("agreed", "is_consistent"), [(3, True), (2, True), (1, False)])
def test_a_point_is_consistent_only_if_a_majority_had_its_state(
    agreed: int, is_consistent: bool
) -> None:
    log = Log()
    log.back_up(10, 100, 5000)
    log.add(20, 150, MarkNow("m"))
    log.note(40, 150, agreed)
    assert [(p.kind, p.is_consistent, p.agreed, p.voters) for p in log.points()] == [
        (BACKUP, False, 0, 0),
        (MARK, is_consistent, agreed, 3),
        (CHECKPOINT, is_consistent, agreed, 3),
    ]
    assert log.points()[1].digest == DIGEST.hex()


def test_a_later_comparison_without_a_majority_takes_nothing_back() -> None:
    log = Log()
    log.note(10, 100, agreed=3)
    log.note(20, 100, agreed=1)
    assert [(p.is_consistent, p.agreed) for p in log.points()] == [(True, 3), (True, 3)]


def test_backups_of_another_lineage_or_that_are_gone_are_no_points() -> None:
    log = Log()
    log.back_up(10, 100, 5000)
    assert points_of(log.catalog, "b" * 32) == ()
    log.add(20, 100, Begin(1, "full", 0, HERE, ("local",), ""))
    assert [p.index for p in log.points()] == [10]


def test_the_moment_before_a_recovery_is_a_point_and_the_recovery_a_result() -> None:
    log = Log()
    log.add(10, 100, Prepare(5, HERE, 40, T0, (), 0, 60, "sequence 40"))
    assert log.points() == []
    (record,) = log.catalog.recoveries.records()
    assert recovery_of(record).state is RecoveryState.PREPARED
    log.add(12, 121, Restore(10, "ff"))
    (point,) = log.points()
    assert (point.kind, point.index, point.sequence) == (RECOVERY, 11, 120)
    (record,) = log.catalog.recoveries.records()
    assert recovery_of(record) == RecoveryResult(
        id=10, state=RecoveryState.RESTORED, to_sequence=40, time_us=T0, request="sequence 40",
        sequence=121, undone=80, digest="ff", duration_ms=2000.0,
    )  # fmt: skip


def test_the_nearest_point_is_the_last_one_up_to_a_time() -> None:
    log = Log()
    log.back_up(10, 100, 5000)
    log.add(20, 150, MarkNow("m"))
    points = points_of(log.catalog, HERE)
    at = points[1].timestamp
    assert nearest(points, at) == points[1]
    assert nearest(points, at - timedelta(microseconds=1)) == points[0]
    assert nearest(points, at - timedelta(hours=1)) is None
    with pytest.raises(InvalidRequest):
        nearest(points, at.replace(tzinfo=None))
