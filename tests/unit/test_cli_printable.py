"""What nodes report reaches no terminal unescaped: a node may be hostile, or repeat a stranger."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from raftha.cli import membership
from raftha.cli.app import app
from raftha.cli.console import printable
from raftha.cli.events import Printer
from raftha.client.resp import error_line
from tests.unit.test_cli import fake_cluster, listening, status_reply

HOSTILE = "x\x1b]0;owned\x07\x1b[31mred\x9b2Jnode 9 leader\x7f"
ESCAPED = "x\\x1b]0;owned\\x07\\x1b[31mred\\x9b2Jnode 9 leader\\x7f"


def check(output: str) -> None:
    assert "owned" in output
    assert all(character.isprintable() or character == "\n" for character in output)


def hostile_replicas(address: str) -> list[dict[str, Any]]:
    reply = json.loads(status_reply(1, {1: address}).split(b"\r\n")[1])
    (replica,) = reply["replicas"]
    return [replica | {"region": HOSTILE}, replica | {"node_id": 2, "client_address": ""}]


def test_control_characters_are_escaped() -> None:
    assert printable(HOSTILE) == ESCAPED
    assert printable("Zürich 1") == "Zürich 1"


def test_status_escapes_what_nodes_report() -> None:
    with listening() as node:
        node.reply = status_reply(
            1, {}, replicas=hostile_replicas(node.address), role=HOSTILE, failure=HOSTILE
        )
        result = CliRunner().invoke(app, ["status", node.address])
    check(result.stdout)
    assert result.stdout.count("owned") >= 3, "the role, the region, the failure"


def test_members_and_errors_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    with fake_cluster() as addresses:
        rows = hostile_replicas(addresses[1])
    membership._show_members({r["node_id"]: r for r in rows}, "the members are", as_json=False)
    check(capsys.readouterr().out)
    with listening() as node:
        node.reply = error_line("ERR " + HOSTILE)
        result = CliRunner().invoke(app, ["failover", "1", "--connect", node.address])
    check(result.stderr)
    assert result.exit_code == 2


def test_events_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    Printer([], False)(
        {"kind": HOSTILE, "time_us": 1, "reporter": HOSTILE, "number": 1, "reason": HOSTILE}
    )
    output = capsys.readouterr().out
    check(output)
    assert output.count("owned") == 3
