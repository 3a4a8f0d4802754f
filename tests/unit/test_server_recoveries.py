"""RAFTHA PITR and RAFTHA RECOVER: what a request asks of the manager, and what it replies."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from raftha.client.resp import ReplyError
from raftha.recovery import (
    DrillReport,
    RecoveryMoment,
    RecoveryPlan,
    RecoveryPoint,
    RecoveryPointKind,
    RecoveryResult,
    RecoveryState,
    RecoveryWindow,
)
from raftha.server.recoveries import pitr, recover

POINT = RecoveryPoint(
    kind=RecoveryPointKind.MARK, sequence=7, time_us=1000, index=9, name="before deploy 17"
)
RESULT = RecoveryResult(
    id=20, state=RecoveryState.RESTORED, to_sequence=7, time_us=1000, sequence=12, undone=4
)
WINDOW = RecoveryWindow(
    lineage="ab",
    earliest=RecoveryMoment(1, 10),
    latest=RecoveryMoment(9, 90),
    gaps=((RecoveryMoment(3, 30), RecoveryMoment(5, 50)),),
)
PLAN = RecoveryPlan(
    target="sequence 7", lineage="ab", moment=RecoveryMoment(7, 70),
    following=RecoveryMoment(8, 80), backups=("b1", "b2"), segments=3, objects=5, commands=6,
    size_bytes=100, size_compressed=40, seconds=0.5,
)  # fmt: skip


class Asked:
    """An `ha.pitr` that notes its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    async def get_current_sequence(self) -> int:
        return 12

    async def list_recovery_points(self) -> tuple[RecoveryPoint, ...]:
        return (POINT,)

    async def list_recoveries(self) -> tuple[RecoveryResult, ...]:
        return (RESULT,)

    async def mark(self, name: str) -> RecoveryPoint:
        self.calls.append(("mark", name))
        return POINT

    async def capture_checkpoint(self, *, timeout: float) -> RecoveryPoint:
        self.calls.append(("checkpoint", timeout))
        return POINT

    async def window(self) -> RecoveryWindow:
        return WINDOW

    async def plan(self, target: datetime | int | str) -> RecoveryPlan:
        self.calls.append(("plan", target))
        return PLAN

    async def recover_to_timestamp(self, timestamp: datetime, **options: Any) -> RecoveryResult:
        return self._note("time", timestamp, **options)

    async def recover_to_sequence(self, sequence: int, **options: Any) -> RecoveryResult:
        return self._note("sequence", sequence, **options)

    async def recover_to_mark(self, name: str, **options: Any) -> RecoveryResult:
        return self._note("mark", name, **options)

    async def undo(self, **options: Any) -> RecoveryResult:
        return self._note("undo", **options)

    async def abort_recovery(self) -> None:
        self.calls.append(("abort",))

    def _note(self, *what: Any, freeze: str, timeout: float | None) -> RecoveryResult:
        self.calls.append((*what, freeze, timeout))
        return RESULT

    async def get_last_drill(self) -> DrillReport:
        return DrillReport(is_ok=True, started_us=5, keys=3)

    async def get_status(self) -> Any:
        return SimpleNamespace(pitr_sequence=11, rpo_ms=400, archive=None)


def ask(*words: str) -> tuple[Any, Asked]:
    asked = Asked()
    config = SimpleNamespace(archive=None)
    service: Any = SimpleNamespace(
        ha=SimpleNamespace(pitr=asked, get_status=asked.get_status, config=config)
    )
    run = pitr if words == ("PITR",) else recover
    return asyncio.run(run(service, [b"RAFTHA", *(word.encode() for word in words)])), asked


MOMENT = datetime(1970, 1, 1, 0, 0, 1, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("MARK nightly", ("mark", "nightly")),
        ("CHECKPOINT", ("checkpoint", 60)),
        ("checkpoint 5", ("checkpoint", 5)),
        ("CHECKPOINT 100000", ("checkpoint", 600)),
        ("PLAN TIME 1000005", ("plan", MOMENT)),
        ("PLAN SEQUENCE 7", ("plan", 7)),
        ("PLAN MARK 7", ("plan", "7")),
        ("TO TIME 1000005", ("time", MOMENT, "switch", None)),
        ("TO SEQUENCE 7 NOW", ("sequence", 7, "now", None)),
        ("to mark nightly switch 60", ("mark", "nightly", "switch", 60)),
        ("TO SEQUENCE 7 SWITCH 0", ("sequence", 7, "switch", None)),
        (f"TO SEQUENCE 7 SWITCH {10**9}", ("sequence", 7, "switch", 604_800)),
        ("UNDO", ("undo", "switch", None)),
        ("UNDO NOW 60", ("undo", "now", 60)),
        ("ABORT", ("abort",)),
    ],
)
def test_an_action_asks_the_manager(text: str, call: tuple[Any, ...]) -> None:
    _, asked = ask("RECOVER", *text.split())
    assert asked.calls == [call]


@pytest.mark.parametrize(
    "text",
    [
        "FROB", "MARK", "MARK a b", "CHECKPOINT x", "CHECKPOINT 5 5", "WINDOW now", "PLAN",
        "PLAN TIME", "PLAN TIME x", "PLAN INDEX 7", f"PLAN TIME {1 << 62}", "TO SEQUENCE",
        "TO SEQUENCE 7 NOW 5 5", "UNDO NOW 5 5", "PLAN SEQUENCE seven", "ABORT 5",
    ],
)  # fmt: skip
def test_a_wrong_action_is_refused(text: str) -> None:
    with pytest.raises(ReplyError, match="ERR"):
        ask("RECOVER", *text.split())


def test_answers_are_json() -> None:
    assert json.loads(ask("RECOVER", "MARK", "m")[0])["name"] == "before deploy 17"
    assert json.loads(ask("RECOVER", "UNDO")[0])["undone"] == 4
    window = json.loads(ask("RECOVER", "WINDOW")[0])
    assert (window["latest"], window["gaps"][0][1]["time_us"]) == (
        {"sequence": 9, "time_us": 90},
        50,
    )
    plan = json.loads(ask("RECOVER", "PLAN", "SEQUENCE", "7")[0])
    assert (plan["moment"]["sequence"], plan["following"]["time_us"]) == (7, 80)
    assert plan["backups"] == ["b1", "b2"]


def test_the_overview_has_moments_and_recoveries() -> None:
    told = json.loads(ask("PITR")[0])
    assert (told["sequence"], told["pitr_sequence"], told["rpo_ms"]) == (12, 11, 400)
    assert told["has_settings"] is False
    assert (told["drill"]["is_ok"], told["drill"]["keys"]) == (True, 3)
    assert [point["kind"] for point in told["points"]] == ["mark"]
    assert [each["state"] for each in told["recoveries"]] == ["restored"]
