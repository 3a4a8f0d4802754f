"""Restores to a moment: the data directory, its tokens, a crash at each step, and the command."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import pytest
from typer.testing import CliRunner

from raftha.cli.app import app
from raftha.config import HaConfig
from raftha.entry import EntryKind
from raftha.errors import ConfigError, InvalidRequest, UpgradeRequired
from raftha.membership import Member
from raftha.recovery import DrillReport
from raftha.runtime.quorum_recovery import open_stopped
from raftha.storage.backup.drill import write_report
from raftha.storage.backup.local import LocalDestination
from raftha.storage.backup.planner import plan_recovery
from raftha.storage.backup.pool import thread_pool
from raftha.storage.backup.recovery import Target
from raftha.storage.backup.replay import ReplayHooks
from raftha.storage.backup.restore import RestoreResult, run_restore
from raftha.storage.backup.restore_plan import RestorePlan, RestoreTarget, plan_recovered
from raftha.storage.backup.shelves import describe_fork
from raftha.storage.backup.timeline import SEQUENCE_STEP
from raftha.storage.state.catalog import MarkNow, encode_change
from tests.support.recovery_history import CLUSTER, History
from tests.support.state_bench import Kit

MIB = 1 << 20
MEMBERS = {i: Member(f"127.0.0.1:{9000 + i}") for i in (1, 2, 3)}
MACHINE = "tests.support.state_bench:Kit"


@pytest.fixture
def history(tmp_path: Path) -> History:
    """A full backup, an incremental one, and log behind each."""
    history = History(Random(3), destination=LocalDestination("local", tmp_path / "backups"))
    history.write(3)
    history.backup()
    for _ in range(5):
        history.write(4)
    history.backup("incremental")
    for _ in range(10):
        history.write(4)
    history.entry(EntryKind.ADMIN, encode_change(MarkNow("before the deploy")))
    for _ in range(5):
        history.write(4)
    history.archive(5)
    return history


def plan(
    history: History, path: Path, target: Target, node_id: int = 1, **more: Any
) -> RestorePlan:
    recovery = plan_recovery(history.repository, target)
    made = RestoreTarget(
        data_dir=path,
        cluster_name="raftha",
        node_id=node_id,
        own=MEMBERS[node_id],
        segment_bytes=16 * MIB,
        **more,
    )
    return plan_recovered(history.repository, recovery, made)


def restore(
    history: History, path: Path, target: Target, node_id: int = 1, **more: Any
) -> RestoreResult:
    hooks = ReplayHooks(pool=thread_pool, buffer_bytes=400)
    return run_restore(
        plan(history, path, target, node_id, **more), history.repository, hooks, Kit()
    )


def config_of(path: Path, node_id: int = 1) -> HaConfig:
    addresses = {i: member.address for i, member in MEMBERS.items()}
    return HaConfig(node_id=node_id, data_dir=path, members=addresses)


def pairs_in(path: Path, node_id: int = 1) -> dict[bytes, bytes]:
    with open_stopped(config_of(path, node_id)) as stopped:
        found = stopped.state.iterate(None, None, reverse=False)
        return {key: value for key, value in found if value is not None}


def inside(history: History) -> Target:
    """A sequence within an entry."""
    return Target(sequence=history.entries[-3].last_sequence - 2)


def test_a_node_has_the_state_of_the_moment_in_a_new_history(
    history: History, tmp_path: Path
) -> None:
    target, path = inside(history), tmp_path / "data"
    made = plan(history, path, target)
    result = run_restore(made, history.repository, None, Kit())
    assert pairs_in(path) == history.at(target).pairs
    assert result.is_proven
    assert made.position.last_sequence == target.sequence
    with open_stopped(config_of(path)) as stopped:
        state, membership = stopped.state, stopped.log.membership
        assert state.applied == stopped.wal.base == made.beginning
        assert state.applied.last_sequence == 2 * SEQUENCE_STEP
        assert membership.cluster_id == CLUSTER
        assert membership.lineage == made.lineage != history.lineage
        assert state.membership == membership.encode()
    record = json.loads((path / "RESTORED").read_text())
    assert record["target"] == {"sequence": target.sequence}
    assert record["commands"] > 0
    assert [found.name for found in tmp_path.iterdir() if found.name != "backups"] == ["data"]
    assert sorted(found.name for found in path.iterdir() if found.is_dir()) == ["state", "wal"]


def test_the_membership_is_that_of_the_moment_and_not_of_the_backup(
    history: History, tmp_path: Path
) -> None:
    gone = replace(history.membership(), removed=frozenset({3}))
    history.entry(EntryKind.MEMBERSHIP, gone.encode())
    history.archive()
    restore(history, tmp_path / "1", Target())
    with open_stopped(config_of(tmp_path / "1")) as stopped:
        assert stopped.log.membership.removed == {3}
    with pytest.raises(ConfigError, match="node 3 was removed"):
        restore(history, tmp_path / "3", Target(), 3)
    assert not (tmp_path / "3").exists()


def test_members_that_are_restored_to_one_moment_have_one_log(
    history: History, tmp_path: Path
) -> None:
    target = inside(history)
    others = {2: MEMBERS[2], 3: MEMBERS[3]}
    token = restore(history, tmp_path / "1", target, others=others).token
    history.backup("incremental")  # A newer backup makes no difference.
    restore(history, tmp_path / "2", target, 2, token=token)
    entries = []
    for node_id in (1, 2):
        assert pairs_in(tmp_path / str(node_id), node_id) == history.at(target).pairs
        with open_stopped(config_of(tmp_path / str(node_id), node_id)) as stopped:
            entries.append(stopped.wal.read(stopped.wal.first_index, MIB)[0])
    assert entries[0] == entries[1]
    with pytest.raises(InvalidRequest, match="another moment"):
        plan(history, tmp_path / "3", Target(), 3, token=token)
    assert target.sequence is not None
    with pytest.raises(InvalidRequest, match="another moment"):
        plan(history, tmp_path / "3", Target(sequence=target.sequence + 1), 3, token=token)


def test_without_the_state_machine_nothing_is_begun(history: History, tmp_path: Path) -> None:
    made = plan(history, tmp_path / "data", Target())
    with pytest.raises(UpgradeRequired, match="commands") as caught:
        run_restore(made, history.repository)
    assert "module:Class" in caught.value.hint
    assert [found.name for found in tmp_path.iterdir()] == ["backups"]


class Killed(BaseException):
    """The process ends."""


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_a_crash_at_any_step_leaves_no_directory_and_the_next_try_succeeds(
    history: History, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_step(reached: int) -> None:
        if reached == step:
            raise Killed

    path, target = tmp_path / "data", inside(history)
    with monkeypatch.context() as killed:
        # A process that is killed removes nothing.
        killed.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
        with pytest.raises(Killed):
            run_restore(
                plan(history, path, target),
                history.repository,
                ReplayHooks(on_step=on_step),
                Kit(),
            )
    assert not path.exists()
    assert (tmp_path / ".data.restoring").exists()
    restore(history, path, target)
    assert pairs_in(path) == history.at(target).pairs
    assert not (tmp_path / ".data.restoring").exists()


def test_recoveries_on_the_way_leave_nothing_behind(history: History, tmp_path: Path) -> None:
    before = history.last.last_sequence
    history.go_back(Target(sequence=before - 20))
    history.write(3)
    history.go_back(Target(sequence=before))
    history.write(3)
    history.go_back(Target(sequence=before - 20))
    history.write(3)
    history.archive()
    restore(history, tmp_path / "data", Target())
    assert pairs_in(tmp_path / "data") == history.model
    folders = sorted(found.name for found in (tmp_path / "data").iterdir() if found.is_dir())
    assert folders == ["state", "wal"]


def test_what_a_restored_cluster_writes_is_recovered_through_the_fork(
    history: History, tmp_path: Path
) -> None:
    """The description that `describe_fork` writes is enough to go on from it."""
    target = inside(history)
    made = plan(history, tmp_path / "data", target)
    run_restore(made, history.repository, None, Kit())
    describe_fork(history.repository, made)
    record = history.repository.read_lineages()[made.lineage]
    assert (record.parent, record.fork_sequence) == (history.lineage, target.sequence)
    assert record.fork_hash == made.position.hash.hex()


# --- The command ----------------------------------------------------------------------------------


def command(tmp_path: Path, *args: str) -> tuple[int, str, str]:
    settings = tmp_path / "node.toml"
    settings.write_text(
        'node_id = 1\ndata_dir = "data"\n[members]\n1 = "127.0.0.1:9001"\n'
        '[backup.destinations]\nlocal = "backups"\n'
    )
    result = CliRunner().invoke(app, ["restore", *args[:1], "--config", str(settings), *args[1:]])
    return result.exit_code, result.stdout, result.stderr


def test_the_command_restores_to_a_time(history: History, tmp_path: Path) -> None:
    entry = history.entries[-4]
    text = datetime.fromtimestamp(entry.time_us // 10**6, UTC).replace(
        microsecond=entry.time_us % 10**6
    )
    to_time = ("--to-time", text.isoformat())
    code, out, _ = command(tmp_path, "plan", *to_time)
    assert code == 0, out
    for expected in ("state", "left out", "replays", "next write"):
        assert expected in out
    code, out, _ = command(tmp_path, "plan", *to_time, "--json")
    target = Target(time_us=entry.time_us)
    assert json.loads(out)["sequence"] == history.at(target).sequence
    code, _, err = command(tmp_path, "run", *to_time)
    assert (code, "--machine" in err or "module:Class" in err) == (2, True), err
    code, out, err = command(tmp_path, "run", *to_time, "--machine", MACHINE)
    assert code == 0, err
    assert "and the log up to sequence" in out
    assert pairs_in(tmp_path / "data") == history.at(target).pairs


@pytest.mark.parametrize("which", ["sequence", "mark", "latest"])
def test_the_command_restores_to_a_sequence_a_mark_and_the_end(
    history: History, tmp_path: Path, which: str
) -> None:
    target, args = {
        "sequence": (inside(history), ("--to-sequence", str(inside(history).sequence))),
        "mark": (mark_of(history), ("--to-mark", "before the deploy")),
        "latest": (Target(), ("--to-latest",)),
    }[which]
    code, out, err = command(tmp_path, "run", *args, "--machine", MACHINE, "--json")
    assert code == 0, err
    shown = json.loads(out)
    assert shown["sequence"] == history.at(target).sequence
    assert shown["is_proven"] and shown["new_lineage"]
    assert pairs_in(tmp_path / "data") == history.at(target).pairs


def test_the_estimate_goes_by_the_last_drill(history: History, tmp_path: Path) -> None:
    def estimated() -> float:
        code, out, _ = command(tmp_path, "plan", "--to-latest", "--json")
        assert code == 0
        return float(json.loads(out)["seconds"])

    assert estimated() == 0.0
    slow = DrillReport(
        is_ok=True, started_us=5, lineage=history.lineage, commands=10**6, replay_s=10**6
    )
    write_report(history.repository, slow)
    replayed = history.last.last_sequence - history.newest_position.last_sequence
    assert round(estimated()) == replayed


def mark_of(history: History) -> Target:
    marked = next(e for e in history.entries if b"before the deploy" in e.data)
    return Target(sequence=marked.last_sequence)


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("--to-time", "2025-10-09T08:53:20"), 2, "no offset from UTC"),
        (("--to-time", "yesterday"), 2, "not a time"),
        (("--to-time", "2125-10-09T08:53:20Z"), 1, "nothing as new"),
        (("--to-time", "2005-10-09T08:53:20Z"), 1, "as old as"),
        (("--to-sequence", "1"), 1, "as old as"),
        (("--to-sequence", "0"), 2, "to-sequence"),
        (("--to-mark", "never"), 1, "no mark"),
        (("--to-latest", "--to-sequence", "7"), 2, "give one of"),
        (("--to-latest", "--before", "2025-10-09T08:53:20Z"), 2, "give one of"),
        (("--to-latest", "--lineage", "ef" * 16), 1, "lineage"),
    ],
)
def test_the_command_says_what_is_wrong_before_anything_is_changed(
    history: History, tmp_path: Path, args: tuple[str, ...], code: int, said: str
) -> None:
    for verb in ("plan", "run"):
        found, out, err = command(tmp_path, verb, *args)
        assert (found, said in err + out) == (code, True), (out, err)
        assert not (tmp_path / "data").exists()


def test_the_command_skips_what_the_cluster_skipped(history: History, tmp_path: Path) -> None:
    entry = history.entries[-1]
    args = ("--to-latest", "--machine", MACHINE)
    skip = ("--skip-entry", f"{entry.index}:{entry.hash.hex()}")
    assert command(tmp_path, "run", *args, *skip)[0] == 0
    before = Target(sequence=history.entries[-2].last_sequence)
    assert pairs_in(tmp_path / "data") == history.at(before).pairs
    for bad in ("5", "x:00", "5:zz"):
        code, _, err = command(tmp_path, "run", *args, "--skip-entry", bad)
        assert (code, "--skip-entry" in err) == (2, True), err
