"""`raftha recover`, and the moments of `raftha backup`: what they ask, print and return."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner

from raftha.cli import recovery
from raftha.cli.app import app
from raftha.cli.recovery_tables import archive_line, drill_line, window_line
from raftha.errors import Disconnected, RafthaError, RecoveryAborted

T0 = 1_795_780_800_000_000  # 2026-11-27T12:00:00Z
PLAN = {
    "target": "2026-11-27T12:00:00.000000Z", "lineage": "ab",
    "moment": {"sequence": 700, "time_us": T0 - 129}, "following": None,
    "backups": ["F1", "I2"], "segments": 3, "objects": 9, "commands": 250,
    "size_bytes": 3 << 20, "size_compressed": 1 << 20, "seconds": 4.2,
}  # fmt: skip
POINTS = [
    {"kind": "backup", "sequence": 500, "time_us": T0 - 60_000_000, "name": "F1",
     "size_bytes": 1 << 20, "is_consistent": True, "agreed": 3, "voters": 3},
    {"kind": "mark", "sequence": 700, "time_us": T0 - 129, "name": "before\x1b[31m 17",
     "size_bytes": 1 << 20, "is_consistent": False, "agreed": 0, "voters": 0},
    {"kind": "checkpoint", "sequence": 800, "time_us": T0, "name": "",
     "size_bytes": 0, "is_consistent": False, "agreed": 1, "voters": 3},
    {"kind": "recovery", "sequence": 899, "time_us": T0 + 5, "name": "",
     "size_bytes": 0, "is_consistent": False, "agreed": 0, "voters": 0},
]  # fmt: skip
OLD = {"id": 40, "state": "restored", "sequence": 900, "to_sequence": 50, "time_us": T0}
DONE = {
    "id": 60, "state": "restored", "to_sequence": 700, "time_us": T0 - 129, "undone": 500,
    "sequence": 1201, "digest": "d1g", "duration_ms": 2345.0, "error": "",
}  # fmt: skip


class Node:
    """Answers as a node does, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.recoveries: list[dict[str, Any]] = []
        self.on_recover: Callable[[], dict[str, Any]] = lambda: DONE
        self.point = POINTS[1]

    def ask(self, _: Any, words: tuple[Any, ...], timeout_s: float) -> str:
        self.asked.append(words[1:])
        match words[1:]:
            case ("PITR",):
                told = {"sequence": 1000, "points": POINTS, "recoveries": self.recoveries}
                return json.dumps(told)
            case ("RECOVER", "PLAN", *_):
                return json.dumps(PLAN)
            case ("RECOVER", "TO" | "UNDO", *_):
                return json.dumps(self.on_recover())
        return json.dumps(self.point)

    @property
    def wanted(self) -> list[tuple[Any, ...]]:
        """What it was asked to change."""
        return [words for words in self.asked if words[1:2] in (("TO",), ("UNDO",))]


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    node = Node()
    monkeypatch.setattr(recovery, "ask", node.ask)
    monkeypatch.setattr(recovery, "POLL_S", 0.001)
    monkeypatch.setattr(recovery, "OUTCOME_S", 0.2)
    return node


def run(*args: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, args)
    return result.exit_code, " ".join(result.stdout.split()), result.stderr


# ------------------------------------------------------------------------------- recover


@pytest.mark.parametrize(
    ("options", "target"),
    [
        (("--to-time", "2026-11-27T12:00:00Z"), ("TIME", T0)),
        (("--to-time", "2026-11-27T13:00:00.000001+01:00"), ("TIME", T0 + 1)),
        (("--to-sequence", "0"), ("SEQUENCE", 0)),
        (("--to-mark", "before 17"), ("MARK", "before 17")),
    ],
)
def test_a_recovery_is_planned_shown_and_asked_for(
    node: Node, options: tuple[str, ...], target: tuple[Any, ...]
) -> None:
    code, out, err = run("recover", *options, "--yes")
    assert (code, err) == (0, "")
    assert ("RECOVER", "PLAN", *target) in node.asked
    assert node.wanted == [("RECOVER", "TO", *target, "SWITCH", 0)]
    assert "last kept sequence 700, stamped 2026-11-27T11:59:59.999871Z" in out
    assert "next nothing yet" in out
    assert "undone 300 commands, as of now" in out
    assert "500 commands undone in 2.3 s" in out
    assert "`raftha recover --undo` takes this back" in out


def test_a_dry_run_changes_nothing(node: Node) -> None:
    code, out, _ = run("recover", "--to-sequence", "700", "--dry-run")
    assert (code, node.wanted) == (0, [])
    assert "F1, I2, and 3 segments of log" in out
    code, out, _ = run("recover", "--to-sequence", "700", "--dry-run", "--json")
    assert (code, json.loads(out)["undone"], node.wanted) == (0, 300, [])


def test_without_yes_it_asks_and_a_script_is_refused(node: Node) -> None:
    code, _, err = run("recover", "--to-sequence", "700")
    assert (code, node.wanted) == (2, [])
    assert "say --yes" in err


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--to-sequence", "1", "--to-mark", "m"),
        ("--undo", "--to-sequence", "1"),
        ("--to-time", "2026-11-27T12:00:00"),
        ("--to-time", "yesterday"),
        ("--to-sequence", "-1"),
        ("--to-sequence", "1", "--timeout", "0"),
    ],
)
def test_a_wrong_target_is_refused_before_anything_is_asked(
    node: Node, options: tuple[str, ...]
) -> None:
    code, _, err = run("recover", *options, "--yes")
    assert (code, node.wanted) == (2, [])
    assert "error" in err.lower()


def test_an_undo_goes_back_to_before_the_last_recovery(node: Node) -> None:
    node.recoveries = [OLD, {**OLD, "id": 50, "state": "aborted", "sequence": 0}]
    code, _, _ = run("recover", "--undo", "--yes", "--freeze-now", "--timeout", "60")
    assert code == 0
    assert ("RECOVER", "PLAN", "SEQUENCE", 899) in node.asked
    assert node.wanted == [("RECOVER", "UNDO", "NOW", 60)]


def test_without_a_recovery_there_is_nothing_to_undo(node: Node) -> None:
    code, _, err = run("recover", "--undo", "--yes")
    assert (code, node.wanted) == (2, [])
    assert "no recovery that could be undone" in err


def test_a_recovery_is_given_up_on_request(node: Node) -> None:
    code, out, _ = run("recover", "--abort")
    assert (code, node.asked) == (0, [("RECOVER", "ABORT")])
    assert out == "given up; nothing has changed"
    code, _, _ = run("recover", "--abort", "--undo")
    assert code == 2


def test_a_recovery_that_is_given_up_fails(node: Node) -> None:
    def give_up() -> dict[str, Any]:
        raise RecoveryAborted("no majority can build the state")

    node.on_recover = give_up
    code, _, err = run("recover", "--to-sequence", "700", "--yes")
    assert code == 1
    assert "no majority can build the state" in err


def lose_answer() -> dict[str, Any]:
    raise Disconnected("the node was reopened")


@pytest.mark.parametrize(("state", "code"), [("restored", 0), ("aborted", 1)])
def test_the_log_says_what_came_of_a_recovery_whose_answer_was_lost(
    node: Node, state: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.on_recover = lose_answer
    node.recoveries = [OLD]

    def ask(_: Any, words: tuple[Any, ...], timeout_s: float) -> str:
        if words[2:3] == ("TO",):
            node.recoveries = [OLD, {**DONE, "state": state, "error": "too slow"}]
        elif node.recoveries[1:] and len(node.asked) % 2:
            node.asked.append(("down",))
            raise RafthaError("down")
        return Node.ask(node, _, words, timeout_s)

    monkeypatch.setattr(recovery, "ask", ask)
    found, out, err = run("recover", "--to-sequence", "700", "--yes", "--json")
    assert found == code, err
    assert json.loads(out)["id"] == 60


def test_an_outcome_that_stays_unknown_is_told(node: Node) -> None:
    node.on_recover = lose_answer
    code, _, err = run("recover", "--to-sequence", "700", "--yes")
    assert code == 2
    assert "the log doesn't say yet" in err


# ------------------------------------------------------------------------------- moments


def test_moments_are_listed_the_newest_first(node: Node) -> None:
    node.recoveries = [OLD]
    code, out, _ = run("backup", "points")
    assert code == 0
    assert out.index("before a recovery to sequence 50") < out.index("only 1 of 3 the same")
    assert out.index("not compared") < out.index("3 of 3 the same")
    assert "before\\x1b[31m 17" in out
    code, out, _ = run("backup", "points", "--json")
    assert len(json.loads(out)["points"]) == len(POINTS)


def test_a_mark_says_which_moment_it_names(node: Node) -> None:
    code, out, _ = run("backup", "mark", "before 17")
    assert (code, node.asked) == (0, [("RECOVER", "MARK", "before 17")])
    assert out == "sequence 700, stamped 2026-11-27T11:59:59.999871Z"


@pytest.mark.parametrize(("is_consistent", "code"), [(True, 0), (False, 1)])
def test_a_checkpoint_without_a_majority_fails(node: Node, is_consistent: bool, code: int) -> None:
    node.point = {**POINTS[2], "is_consistent": is_consistent}
    found, out, _ = run("backup", "checkpoint", "--timeout", "5")
    assert (found, node.asked) == (code, [("RECOVER", "CHECKPOINT", 5)])
    assert "1 of 3 voters have the same state" in out


def test_what_can_be_restored_is_told_in_lines() -> None:
    earliest, latest = {"sequence": 4, "time_us": T0}, {"sequence": 12_000, "time_us": T0 + 10**7}
    window = {"earliest": earliest, "latest": latest, "gaps": []}
    span = "2026-11-27T12:00:00Z .. 2026-11-27T12:00:10Z"
    assert window_line(window) == f"{span} (sequence 4 .. 12,000), no gaps"
    gaps = [[earliest, latest]]
    assert window_line({**window, "gaps": gaps}).endswith(f"but not {span}")
    there = {"rpo_ms": 640, "error": ""}
    away = {"rpo_ms": 90_000, "error": "it can't be reached"}
    archive = {"destinations": {"far": there, "near": away}}
    assert archive_line(archive) == "far ok, rpo 0.6 s   near it can't be reached, rpo 90.0 s"
    assert archive_line(None) == "the log is not archived"
    assert drill_line(None) == "none that this node knows of"
    drill = {"started_us": T0, "keys": 1200, "restore_s": 41.0, "replay_s": 7.04}
    assert drill_line(drill) == "2026-11-27T12:00:00Z: ok, 1,200 keys in 41.0 s + replay 7.0 s"
