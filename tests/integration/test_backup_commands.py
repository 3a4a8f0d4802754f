"""`raftha backup` and `raftha restore` on real processes, and the calls of `ha.backup` behind them.

One cluster of one node, with encrypted backups in two places. The tests run in their order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from raftha.cli.app import app
from raftha.client.call import call
from raftha.testing import LocalCluster
from tests.support.conditions import wait_until

pytestmark = pytest.mark.slow


class Operator:
    """A cluster, the key of its backups, and the command line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = folder / "key"
        self.places = {"far": folder / "far", "near": folder / "near"}
        self.run("backup", "key", "new", self.key)
        backup = {
            "destinations": {name: str(place) for name, place in self.places.items()},
            "encryption": True,
            "encryption_key_file": str(self.key),
            "retention": {"keep_last": 2, "keep_daily_days": 0, "keep_weekly_weeks": 0},
        }
        self.cluster = LocalCluster(1, settings={"backup": backup})
        self.cluster.start()

    @property
    def config(self) -> Path:
        return self.cluster.folder / "node-1" / "node.toml"

    def run(self, *args: object, exit_code: int = 0) -> str:
        """Run a command; return what it printed, on stderr if it is to fail."""
        done = CliRunner().invoke(app, [str(arg) for arg in args])
        assert done.exit_code == exit_code, (args, done.stdout, done.stderr)
        return done.stdout if exit_code == 0 else done.stderr

    def run_any(self, *args: object) -> int:
        """Run a command; return its exit code."""
        return CliRunner().invoke(app, [str(arg) for arg in args]).exit_code

    def ask(self, verb: str, *args: object, exit_code: int = 0) -> str:
        address = self.cluster.addresses[1]
        return self.run("backup", verb, *args, "--connect", address, exit_code=exit_code)

    def read(self, verb: str, *args: object, exit_code: int = 0) -> str:
        place, key = self.places["near"], self.key
        where = ("--repository", place, "--key-file", key)
        return self.run("backup", verb, *args, *where, exit_code=exit_code)

    def told(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ask("info", "--json"))
        return found

    def has_backup(self) -> bool:
        told = json.loads(self.cluster.call(1, "RAFTHA", "BACKUPS"))
        return bool(told["state"] == "completed")

    def set(self, key: str, value: str) -> None:
        self.cluster.call(1, "SET", key, value)


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    operator = Operator(tmp_path_factory.mktemp("backups"))
    try:
        # The first one is due at once, and would be in the way of one that a test asks for.
        wait_until(operator.has_backup, "the scheduled one isn't done")
        yield operator
    finally:
        operator.cluster.close()


def test_backups_are_taken_listed_and_shown(operator: Operator) -> None:
    for number in range(100):
        operator.set(f"k{number:02}", f"v{number}")
    full = json.loads(operator.ask("run", "--mode", "full", "--json"))
    assert (full["mode"], full["state"], full["keys"]) == ("full", "completed", 100)
    assert full["destinations"] == {"far": "ok", "near": "ok"}
    operator.set("k00", "new")
    operator.cluster.call(1, "DEL", "k01")
    assert ": incremental, 2 keys, " in operator.ask("run")
    told = operator.told()
    assert [each["mode"] for each in told["backups"]][-2:] == ["full", "incremental"]
    assert (told["state"], told["is_due"]) == ("completed", False)
    assert told["backups"][-1]["parent"] == full["id"]
    shown = operator.ask("show", full["label"])
    assert full["digest"] in shown
    assert "1 builds on it" not in shown
    assert "20" in operator.ask("list")
    assert operator.ask("show", 10**9, exit_code=2).startswith("error: there is no backup")
    assert "--mode must be one of" in operator.ask("run", "--mode", "half", exit_code=2)


def test_backups_are_read_without_the_cluster(operator: Operator) -> None:
    mine = operator.told()["backups"]
    found = json.loads(operator.read("list", "--json"))
    assert [each["label"] for each in found] == [each["label"] for each in mine]
    assert found[-1]["size_compressed"] == mine[-1]["size_compressed"]
    assert operator.read("get", "k00") == "new"
    assert operator.read("get", "k02") == "v2"
    assert operator.read("get", "k00", found[-2]["id"]) == "v0"
    assert "has no such key" in operator.read("get", "k01", exit_code=1)
    assert operator.read("get", "k01", found[-2]["label"]) == "v1"
    assert operator.read("get", "6b3032", "--hex") == "v2"
    assert operator.read("scan", "--limit", 3) == "k00\tnew\nk02\tv2\nk03\tv3\n"
    assert operator.read("scan", "--start", "k98", "--end", "k99") == "k98\tv98\n"
    where = ("--repository", operator.places["far"])
    assert "encrypted" in operator.run("backup", "list", *where, exit_code=1)
    assert "say where" in operator.run("backup", "get", "k00", exit_code=2)


def test_backups_are_verified_with_and_without_the_cluster(operator: Operator) -> None:
    newest = operator.told()["backups"][-1]
    reports = json.loads(operator.ask("verify", newest["id"], "--json"))
    assert [each["destination"] for each in reports] == ["far", "near"]
    assert {each["digest"] for each in reports} == {operator.cluster.digests()[1]["hex"]}
    assert "sound: " in operator.read("verify", newest["label"])
    (run,) = (operator.places["far"] / newest["lineage"] / "backups" / newest["label"]).glob("run*")
    good = run.read_bytes()
    run.chmod(0o600)
    run.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert "is not sound" in operator.ask("verify", newest["id"], exit_code=1)
    run.write_bytes(good)
    assert operator.ask("check") == "far: does all\nnear: does all\n"
    where = ("--repository", operator.places["far"])
    assert operator.run("backup", "check", *where) == "repository: does all\n"


def test_pins_and_rules_decide_what_stays(operator: Operator) -> None:
    first = operator.told()["backups"][0]["id"]
    assert operator.ask("pin", first, "--name", "audit") == f"pins of backup {first}: audit\n"
    assert "pinned: audit" in operator.ask("explain")
    until = ("--until", "2100-01-01T00:00:00+00:00", "--name", "later")
    assert "audit, later" in operator.ask("pin", first, *until)
    assert "no offset" in operator.ask("pin", first, "--until", "2100-01-01T00:00", exit_code=2)
    assert operator.ask("unpin", first) == f"pins of backup {first}: none\n"
    assert "has no pin" in operator.ask("unpin", first, exit_code=2)
    decisions = json.loads(operator.ask("explain", "--json"))
    gone = {each["backup_id"] for each in decisions if each["fate"] == "goes"}
    planned = json.loads(operator.ask("expire", "--dry-run", "--json"))
    assert planned == [each for each in decisions if each["backup_id"] in gone]
    assert json.loads(operator.ask("expire", "--json")) == planned


def test_the_key_changes_and_no_backup_is_lost(operator: Operator) -> None:
    other = operator.folder / "other"
    where = [arg for place in operator.places.values() for arg in ("--repository", place)]
    operator.run("backup", "key", "new", other)
    assert "exists" in operator.run("backup", "key", "new", other, exit_code=2)
    old, new = ("--key-file", operator.key), ("--key-file", other)
    operator.run("backup", "key", "change", other, *where, *old)
    operator.run("backup", "key", "forget", *where, *new)
    assert "opens none" in operator.run("backup", "get", "k02", *where, *old, exit_code=1)
    assert operator.run("backup", "get", "k02", *where, *new) == "v2"
    assert "key_id" in operator.run("backup", "key", "renew", *where, *new, "--json")
    operator.run("backup", "key", "change", operator.key, *where, *new)


def test_a_wiped_cluster_is_restored_with_an_equal_digest(operator: Operator) -> None:
    cluster = operator.cluster
    operator.set("later", "1")
    operator.ask("run")
    before = cluster.digests()[1]
    cluster.stop()
    restore = ("--config", operator.config)
    assert "is not empty" in operator.run("restore", "plan", *restore, exit_code=2)
    cluster.wipe(1)
    plan = operator.run("restore", "plan", *restore)
    assert "node 1 of members 1" in plan
    early = ("--before", "2020-01-01T00:00:00Z")
    assert "no backup is as old" in operator.run("restore", "plan", *restore, *early, exit_code=1)
    made = json.loads(operator.run("restore", "run", *restore, "--json"))
    assert (made["restored_digest"], made["is_proven"]) == (before["hex"], True)
    cluster.start()
    assert cluster.digests()[1]["hex"] == before["hex"]
    operator.set("after", "1")

    def is_backed_up() -> bool:  # A new history begins with a full one, by itself.
        told = operator.told()
        is_new = told["backups"][-1]["lineage"] == told["lineage"]
        return is_new and bool(told["state"] == "completed")

    wait_until(is_backed_up, "the new history has no backup", 30)
    assert ": incremental, " in operator.ask("run")
    assert operator.told()["lineage"] == made["new_lineage"]
    operator.places["near"].rename(operator.folder / "gone")  # At once: the archive goes on.
    where = ("--repository", operator.places["far"], "--key-file", operator.key)
    assert operator.run("backup", "get", "after", *where) == "1"


def test_a_wiped_cluster_is_restored_to_the_moment_before_a_mistake(operator: Operator) -> None:
    cluster = operator.cluster
    address = cluster.addresses[1]
    for _ in range(3):
        call(address, ("INCR", "visits"), 10)
    operator.set("price", "42")
    good = cluster.digests()[1]
    operator.set("price", "0")
    call(address, ("DEL", "visits"), 10)

    def is_archived() -> bool:
        plan = operator.run_any("restore", "plan", *restore, "--data-dir", operator.folder / "new")
        return plan == 0

    restore = ("--config", operator.config, "--to-sequence", good["sequence"] + 2)
    wait_until(is_archived, "the mistake is not archived", 30)
    cluster.stop()
    cluster.wipe(1)
    restore = ("--config", operator.config, "--to-sequence", good["sequence"])
    made = json.loads(operator.run("restore", "run", *restore, "--json"))
    assert made["restored_digest"] == good["hex"] and made["commands"] > 0
    cluster.start()
    assert call(address, ("GET", "price"), 10) == b"42"
    assert call(address, ("INCR", "visits"), 10) == 4
