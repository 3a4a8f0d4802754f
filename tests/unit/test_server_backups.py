"""RAFTHA BACKUP and RAFTHA BACKUPS: what a request asks of the manager, and what it replies."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

import raftha
from raftha.client.resp import ReplyError
from raftha.server.backups import backup, backups
from raftha.types import (
    BackupMode,
    BackupResult,
    BackupState,
    BackupVerification,
    DestinationCheck,
    RetentionDecision,
    RetentionFate,
)

RESULT = BackupResult(
    id=7, label="b7", mode=BackupMode.FULL, state=BackupState.COMPLETED, destinations={"far": "ok"}
)
DECISION = RetentionDecision(7, "b7", "far", RetentionFate.KEPT, ("last 1 of 10",))


class Asked:
    """An `ha.backup` that notes its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    async def trigger_backup(
        self, mode: str | None, *, wait: bool = False, timeout: float | None = None
    ) -> int:
        self.calls.append((mode, wait, timeout))
        return 7

    async def verify_backup(self, backup_id: int, level: int) -> tuple[BackupVerification, ...]:
        self.calls.append((backup_id, level))
        return (BackupVerification(label="b7", destination="far", level=level),)

    async def apply_retention(self) -> tuple[RetentionDecision, ...]:
        return (DECISION,)

    async def pin(self, backup_id: int, name: str, *, until: datetime | None) -> None:
        self.calls.append((backup_id, name, until))

    async def unpin(self, backup_id: int, name: str) -> None:
        self.calls.append((backup_id, name))

    async def check(self) -> tuple[DestinationCheck, ...]:
        return (DestinationCheck(destination="far", is_usable=True),)

    async def get_state(self) -> BackupState:
        return BackupState.COMPLETED

    async def is_backup_due(self) -> bool:
        return False

    async def get_lineage(self) -> str:
        return "ab"

    async def list_backups(self) -> tuple[BackupResult, ...]:
        return (RESULT,)

    async def explain(self) -> tuple[RetentionDecision, ...]:
        return (DECISION,)


def ask(text: str, config: raftha.BackupConfig | None = None) -> tuple[Any, Asked]:
    asked = Asked()
    service: Any = SimpleNamespace(
        ha=SimpleNamespace(backup=asked, config=SimpleNamespace(backup=config))
    )
    words = [word.encode() for word in text.split()]
    run = backups if words[1] == b"BACKUPS" else backup
    return asyncio.run(run(service, words)), asked


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("RUN", (None, False, None)),
        ("run - ", (None, False, None)),
        ("RUN full", ("full", False, None)),
        ("RUN FULL WAIT 60", ("full", True, 60)),
        ("RUN - WAIT 0", (None, True, 1)),
        (f"RUN - WAIT {10**9}", (None, True, 604_800)),
        ("VERIFY 7", (7, 1)),
        ("VERIFY 7 3", (7, 3)),
        ("PIN 7 audit", (7, "audit", None)),
        ("PIN 7 audit 1000000", (7, "audit", datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC))),
        ("UNPIN 7", (7, "")),
        ("UNPIN 7 audit", (7, "audit")),
    ],
)
def test_an_action_asks_the_manager(text: str, call: tuple[Any, ...]) -> None:
    _, asked = ask(f"RAFTHA BACKUP {text}")
    assert asked.calls == [call]


@pytest.mark.parametrize(
    "text",
    [
        "FROB", "RUN full WAIT", "RUN full FOR 60", "VERIFY", "VERIFY 7 3 3", "PIN 7", "UNPIN",
        "EXPIRE now", "CHECK far", "VERIFY x", "PIN 7 audit x", f"PIN 7 audit {10**18}",
    ],
)  # fmt: skip
def test_a_wrong_action_is_refused(text: str) -> None:
    with pytest.raises(ReplyError, match="ERR"):
        ask(f"RAFTHA BACKUP {text}")


def test_reports_are_json() -> None:
    (report,) = json.loads(ask("RAFTHA BACKUP VERIFY 7 2")[0])
    assert (report["destination"], report["level"], report["findings"]) == ("far", 2, [])
    (check,) = json.loads(ask("RAFTHA BACKUP CHECK")[0])
    assert (check["destination"], check["is_usable"]) == ("far", True)
    (decision,) = json.loads(ask("RAFTHA BACKUP EXPIRE")[0])
    assert (decision["fate"], decision["reasons"]) == ("kept", ["last 1 of 10"])


def test_the_overview_has_everything_a_table_needs() -> None:
    told = json.loads(ask("RAFTHA BACKUPS", raftha.BackupConfig())[0])
    assert (told["state"], told["is_due"], told["lineage"]) == ("completed", False, "ab")
    assert told["backups"][0]["destinations"] == {"far": "ok"}
    assert told["decisions"][0]["backup_id"] == 7


def test_a_node_without_settings_knows_the_backups_and_no_decisions() -> None:
    told = json.loads(ask("RAFTHA BACKUPS")[0])
    assert (told["is_due"], told["decisions"], len(told["backups"])) == (None, [], 1)
