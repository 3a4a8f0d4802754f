"""How the command line shows backups: sizes, times, reasons, and names that a terminal obeys."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from raftha.cli.backup import parse_time
from raftha.cli.backup_tables import (
    backup_fields,
    backups_table,
    decisions_table,
    fields_table,
    moment,
    size,
)
from raftha.cli.status import backup_line
from raftha.errors import ConfigError
from raftha.types import (
    BackupMode,
    BackupResult,
    BackupState,
    RetentionDecision,
    RetentionFate,
)


def shown(table: Table) -> str:
    console = Console(width=300, file=io.StringIO())
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def backup(**fields: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "id": 7, "label": "20261127T120000Z-I-000000000007", "mode": BackupMode.INCREMENTAL,
        "state": BackupState.COMPLETED, "parent": 5, "destinations": {"local": "ok"},
        "sequence": 1234, "keys": 1000, "size_bytes": 5 << 20, "size_compressed": 2048,
        "duration_ms": 1500.0, "verify_level": 1,
    }  # fmt: skip
    return dataclasses.asdict(BackupResult(**(given | fields)))


def decision(fate: RetentionFate, *reasons: str, destination: str = "local") -> dict[str, Any]:
    return RetentionDecision(7, "b7", destination, fate, reasons)._asdict()


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1.0 KiB"), (10_240, "10.0 KiB"),
        (150 * 1024, "150 KiB"),
        (1 << 30, "1.0 GiB"), (1 << 60, "1024 PiB"),
    ],
)  # fmt: skip
def test_sizes_have_three_digits(count: int, text: str) -> None:
    assert size(count) == text


def test_times_are_utc_and_impossible_ones_are_numbers() -> None:
    assert moment(1_795_780_800_000_000) == "2026-11-27T12:00:00Z"
    assert moment(1 << 70) == f"{1 << 70} us"


def test_a_line_has_what_matters_of_a_backup() -> None:
    reasons = ("last 1 of 10", "b8 builds on it", "b9 builds on it")
    text = shown(backups_table([backup()], [decision(RetentionFate.KEPT, *reasons)]))
    for part in ("1,234", "1,000", "5.0 MiB", "2.0 KiB", "1.5 s", "read back", "local"):
        assert part in text
    assert "last 1 of 10, parent of 2" in text


def test_a_line_says_which_destination_failed_and_what_goes() -> None:
    found = backup(destinations={"local": "ok", "far": "no space"})
    text = shown(backups_table([found], [decision(RetentionFate.GOES, "no rule keeps it")]))
    assert "local (far: no space)" in text
    assert "goes: no rule keeps it" in text
    failed = backup(state=BackupState.FAILED, destinations={}, error="x" * 100, parent=None)
    assert f"{'x' * 40} " in shown(backups_table([failed], []))
    assert "retired" in shown(backups_table([backup(is_retired=True)], []))


def test_decisions_are_shown_with_the_place_and_the_fate() -> None:
    made = [decision(RetentionFate.RETAINED, "far refuses to delete it", destination="far")]
    assert "far refuses to delete it" in shown(decisions_table(made))
    assert "nowhere" in shown(decisions_table([decision(RetentionFate.KEPT, "x", destination="")]))


def test_all_fields_of_one_backup_are_in_words() -> None:
    found = backup(reason="asked for", error="it broke", pins=("audit",), digest="abc")
    fields = backup_fields(found, [decision(RetentionFate.KEPT, "last 1 of 10")])
    assert fields["mode"] == "incremental (asked for)"
    assert (fields["error"], fields["pins"], fields["digest"]) == ("it broke", "audit", "abc")
    assert (fields["in local"], fields["kept in local"]) == ("ok", "last 1 of 10")
    assert "audit" in shown(fields_table(fields))


def test_control_characters_of_a_repository_reach_no_terminal() -> None:
    hostile = backup(label="\x1b[2Jx", destinations={"local": "\x07bell"}, error="\x1b]0;t\x07")
    for table in (
        backups_table([hostile], []),
        fields_table(backup_fields(hostile, [decision(RetentionFate.KEPT, "\x1b[31m")])),
        decisions_table([decision(RetentionFate.KEPT, "\x1b[31m", destination="\x9b")]),
    ):
        assert not set(shown(table)) & {"\x1b", "\x07", "\x9b"}


def status(applied: int, **fields: Any) -> dict[str, Any]:
    return {"status": {"applied_index": applied, **fields}}


def test_the_status_names_the_newest_backup_by_the_node_that_knows_most() -> None:
    last = backup(time_us=1_795_780_800_000_000)
    knows = status(9, backup_state="completed", last_backup=last)
    behind = status(5, backup_state="idle", last_backup=None)
    expected = "newest backup: 2026-11-27T12:00:00Z (completed)\n"
    assert backup_line([behind, knows, {"status": None}]) == expected
    assert backup_line([behind, {"status": None}]) == backup_line([]) == ""
    failed = status(9, backup_state="failed", last_backup=None)
    assert backup_line([failed]) == "newest backup: none can be restored (failed)\n"


@pytest.mark.parametrize("text", ["2026-11-27T12:00:00", "2026-11-27", "noon", ""])
def test_a_time_needs_its_offset_from_utc(text: str) -> None:
    with pytest.raises(ConfigError, match="--before"):
        parse_time("--before", text)


def test_a_time_with_an_offset_is_that_moment() -> None:
    assert parse_time("--before", "2026-11-27T13:00:00+01:00") == parse_time(
        "--before", "2026-11-27T12:00:00Z"
    )
