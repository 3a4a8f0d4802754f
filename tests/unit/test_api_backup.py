"""`ha.backup`: what its calls check and pack, and how a record of the catalog becomes a result."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

import raftha
from raftha.api.backup import LEADER_KNOWS, WAIT_S, BackupCalls, without_refusals
from raftha.errors import InvalidRequest
from raftha.node.backup.results import result_of
from raftha.node.backup_work import BackupProgress
from raftha.node.messages import BackupAction
from raftha.storage.state.catalog import BackupRecord, Pin, Unpin, decode_change
from raftha.storage.state.versions import decode_admin
from raftha.types import (
    BackupMode,
    BackupResult,
    BackupState,
    RetentionDecision,
    RetentionFate,
)

BEGAN_US = int(datetime(2026, 11, 27, 12, tzinfo=UTC).timestamp()) * 1_000_000


def calls(**settings: Any) -> BackupCalls:
    config = raftha.HaConfig(node_id=1, data_dir="x", members={1: "127.0.0.1:1"}, **settings)
    return BackupCalls(config)


def record(**fields: Any) -> BackupRecord:
    given: dict[str, Any] = {
        "id": 9, "mode": "incremental", "parent": 5, "base": 3, "lineage": "a" * 32, "node": 2,
        "state": "completed", "destinations": ("far", "local"), "began_us": BEGAN_US,
    }  # fmt: skip
    return BackupRecord(**(given | fields))


# ------------------------------------------------------------------ calls


@pytest.mark.parametrize(
    ("mode", "payload"), [(None, b""), ("full", b"full"), (BackupMode.INCREMENTAL, b"incremental")]
)
def test_a_trigger_carries_its_mode(mode: str | None, payload: bytes) -> None:
    call = calls().trigger(mode, False, None)
    assert (call.what, call.payload, call.waits) == (BackupAction.TRIGGER, payload, False)
    assert call.deadline == 0.0  # The manager gives it the usual one.


def test_a_caller_that_waits_may_do_so_for_days() -> None:
    soon = calls().trigger(None, True, 60.0).deadline
    assert calls().trigger(None, True, None).deadline - soon > WAIT_S - 120


@pytest.mark.parametrize(
    ("mode", "timeout", "message"),
    [
        ("half", None, "mode must be one of full"),
        (None, 0, "timeout"),
        (None, WAIT_S + 1, "604800"),
    ],
)
def test_a_wrong_trigger_is_refused(mode: str | None, timeout: float | None, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        calls().trigger(mode, True, timeout)


def test_a_pin_is_packed_as_a_change_of_the_catalog() -> None:
    until = datetime.fromtimestamp(BEGAN_US / 1e6, UTC)
    changes = [calls().pin(9, "audit", until), calls().pin(9, "x", None), calls().unpin(9, "")]
    unpacked = [decode_change(*decode_admin(call.payload)) for call in changes]
    assert unpacked == [Pin(9, "audit", BEGAN_US), Pin(9, "x", 0), Unpin(9, "")]
    assert {call.what for call in changes} == {BackupAction.CHANGE}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((-1, "x", None), "backup_id"),
        (("9", "x", None), "backup_id"),
        ((9, "", None), "name"),
        ((9, "x" * 101, None), "name"),
        ((9, "a\nb", None), "name"),
        ((9, "x", datetime(2026, 11, 27)), "time zone"),  # noqa: DTZ001
        ((9, "x", "tomorrow"), "time zone"),
    ],
)
def test_a_wrong_pin_is_refused(args: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        calls().pin(*args)


def test_without_settings_there_is_nothing_to_explain_verify_or_check() -> None:
    for call in (
        lambda: calls().decisions(),
        lambda: calls().is_due(),
        lambda: calls().check(),
        lambda: calls().verify(result_of(record(), None), 1),
    ):
        with pytest.raises(InvalidRequest, match="no settings for backups"):
            call()


def test_only_a_complete_backup_is_verified() -> None:
    mine = calls(backup=raftha.BackupConfig())
    with pytest.raises(InvalidRequest, match="is not complete"):
        mine.verify(result_of(record(state="failed"), None), 1)
    with pytest.raises(InvalidRequest, match="from 0 to 3, got 4"):
        mine.verify(result_of(record(), None), 4)


# ------------------------------------------------------------------ results


def test_a_complete_backup_as_callers_see_it() -> None:
    found = record(
        ended_us=BEGAN_US + 1_500_000, position_index=10, position_sequence=7,
        position_us=BEGAN_US + 1000, keys=3, size_bytes=100, size_compressed=40, digest="d",
        errors=("offsite: it can't be reached",), verify_level=1, pins=(("audit", 0),),
    )  # fmt: skip
    assert result_of(found, None) == BackupResult(
        id=9, label="20261127T120000Z-I-000000000009", mode=BackupMode.INCREMENTAL,
        state=BackupState.COMPLETED, parent=5, base=3, node_id=2, index=10, sequence=7,
        time_us=BEGAN_US + 1000, keys=3, size_bytes=100, size_compressed=40, duration_ms=1500.0,
        digest="d", verify_level=1, pins=("audit",), lineage="a" * 32,
        destinations={"far": "ok", "local": "ok", "offsite": "it can't be reached"},
    )  # fmt: skip
    assert result_of(found, None).timestamp == datetime(2026, 11, 27, 12, 0, 0, 1000, UTC)


def test_a_running_backup_has_the_state_of_its_taker_and_is_nowhere_yet() -> None:
    running = record(state="running")
    found = result_of(running, BackupProgress(BackupState.UPLOADING, 5, 50))
    assert (found.state, found.done_bytes, found.total_bytes) == (BackupState.UPLOADING, 5, 50)
    assert (found.destinations, found.is_completed, found.state.is_running) == ({}, False, True)
    assert result_of(running, None).state is BackupState.PREPARING


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"state": "failed", "error": "the disk is full"}, "the disk is full"),
        ({"state": "missing", "destinations": ()}, "no destination has it any more"),
    ],
)
def test_a_backup_that_is_nowhere_has_failed(fields: dict[str, Any], error: str) -> None:
    found = result_of(record(**fields), BackupProgress(BackupState.UPLOADING, 5, 50))
    assert (found.state, found.error, found.destinations) == (BackupState.FAILED, error, {})
    assert found.done_bytes == 0


def test_a_retired_backup_is_still_complete_and_a_full_one_has_no_parent() -> None:
    found = result_of(record(state="retired", mode="full", parent=0, base=9), None)
    assert (found.is_completed, found.is_retired) == (True, True)
    assert (found.parent, found.base) == (None, None)


def test_only_the_leader_knows_of_refused_deletions_and_the_others_say_so() -> None:
    decided = [
        RetentionDecision(i, f"label {i}", "local", RetentionFate(fate), ("no rule keeps it",))
        for i, fate in enumerate(("goes", "goes", "waits", "kept"), start=1)
    ]
    states = ("retired", "completed", "retired", "completed")
    records = [record(id=i)._replace(state=state) for i, state in enumerate(states, start=1)]
    first, *others = without_refusals(decided, records)
    assert first.reasons == ("no rule keeps it", LEADER_KNOWS)
    assert others == decided[1:]
