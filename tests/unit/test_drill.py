"""Drills: a random moment is restored, compared and reported; by itself, and in a process."""

from __future__ import annotations

import json
import os
import queue
import shutil
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from raftha.config.backup import BackupConfig
from raftha.errors import ConfigError
from raftha.recovery import DrillReport
from raftha.runtime.drill import run_in_process
from raftha.runtime.drill_thread import DrillThread
from raftha.runtime.machines import load_machine
from raftha.server.machine import RedisMachine
from raftha.storage.backup import names
from raftha.storage.backup.drill import (
    KEPT_MAX,
    DrillOrder,
    decode_report,
    last_report,
    rates_of,
    run_drill,
    write_report,
)
from raftha.storage.backup.local import LocalDestination
from raftha.storage.backup.recovery import Rates, Target
from raftha.storage.state.machine import Transaction
from tests.support.dict_stores import DictStores
from tests.support.recovery_history import KEYS, START_US, History
from tests.support.state_bench import Kit

NOW_US = START_US + 3600 * 10**6


def history_of(seed: int = 1) -> History:
    """Two full backups with log before, between and behind them."""
    history = History(Random(seed))
    for _ in range(2):
        history.backup()
        for _ in range(8):
            history.write(3)
    history.archive(4)
    return history


@pytest.mark.parametrize("seed", range(8))
def test_a_random_moment_is_restored_and_compared(seed: int) -> None:
    history = history_of()
    order = DrillOrder(NOW_US, seed=seed, node_id=3)
    report = run_drill(history.repository, order, DictStores(), Kit())
    assert report.is_ok and not report.error
    assert (report.node_id, report.lineage) == (3, history.lineage)
    # Before the second backup, it goes on up to that, and compares both.
    position = history.newest.manifest.position  # type: ignore[union-attr]
    assert len(report.checked) == (2 if report.sequence == position.last_sequence else 1)
    assert report.rpo_ms == (NOW_US - history.last.time_us) / 1000
    assert report.seconds == sum(
        (report.plan_s, report.restore_s, report.replay_s, report.digest_s)
    )
    assert report.target and report.backups and report.keys


def test_a_target_may_be_given() -> None:
    history = history_of()
    target = Target(sequence=history.last.last_sequence - 2)
    report = run_drill(history.repository, DrillOrder(NOW_US, target=target), DictStores(), Kit())
    assert (report.is_ok, report.sequence) == (True, target.sequence)
    assert report.target == str(target)
    assert report.keys == len(history.at(target).pairs)


def test_what_is_wrong_stands_in_the_report() -> None:
    history = history_of()
    for info in history.destination.list(names.backups_folder(history.lineage)):
        if "run-" in info.name:
            data = bytes(history.destination.get(info.name, size_max=1 << 30))
            history.destination.delete(info.name)
            history.destination.create(info.name, data[:-9] + bytes(9))
    report = run_drill(history.repository, DrillOrder(NOW_US), DictStores(), Kit())
    assert not report.is_ok and "run-0000" in report.error
    empty = History(Random(1))
    report = run_drill(empty.repository, DrillOrder(NOW_US), DictStores(), Kit())
    assert not report.is_ok and "nothing to restore" in report.error


class Looking(Kit):
    """Looks at the contents."""

    seen: dict[bytes, bytes]
    is_unhappy = False

    def on_drill(self, txn: Transaction) -> None:
        self.seen = {key: value for key in KEYS if (value := txn.get(key)) is not None}
        if self.is_unhappy:
            raise ValueError("it is bad")
        txn.put(b"key 01", b"thrown away")


def test_the_state_machine_may_look_at_the_contents() -> None:
    history, machine = history_of(), Looking()
    target = Target(sequence=history.last.last_sequence)
    stores = DictStores()
    report = run_drill(history.repository, DrillOrder(NOW_US, target=target), stores, machine)
    assert report.is_ok
    assert machine.seen == history.model == stores.pairs()
    machine.is_unhappy = True
    report = run_drill(history.repository, DrillOrder(NOW_US, target=target), stores, machine)
    assert not report.is_ok and "it is bad" in report.error


def test_a_drill_leaves_the_disk_to_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = history_of()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage())
    report = run_drill(history.repository, DrillOrder(NOW_US), tmp_path, Kit())
    assert not report.is_ok and "1000 are free" in report.error
    assert list(tmp_path.iterdir()) == []


class Usage:
    """A disk with little room."""

    free = 1000


# --- Reports --------------------------------------------------------------------------------------


REPORT = DrillReport(
    is_ok=True,
    started_us=NOW_US,
    lineage="ab" * 16,
    size_bytes=100 << 20,
    restore_s=1.0,
    digest_s=1.0,
    commands=1_000_000,
    replay_s=4.0,
    checked=("a", "b"),
)


def test_reports_are_read_back_and_the_newest_one_counts() -> None:
    history = history_of()
    assert last_report(history.repository, history.lineage) is None
    for number in range(3):
        write_report(history.repository, replace(REPORT, started_us=NOW_US + number))
    assert last_report(history.repository, history.lineage) == replace(
        REPORT, started_us=NOW_US + 2
    )
    name = names.drill_name(history.lineage, NOW_US + 9)
    history.destination.create(name, b"{}")
    assert last_report(history.repository, history.lineage) == replace(
        REPORT, started_us=NOW_US + 2
    )


def test_only_so_many_reports_stay() -> None:
    history = history_of()
    for number in range(KEPT_MAX + 3):
        write_report(history.repository, replace(REPORT, started_us=NOW_US + number))
    assert len(history.destination.list(names.drills_folder(history.lineage))) == KEPT_MAX


def test_a_long_report_is_cut() -> None:
    history = history_of()
    long = replace(REPORT, backups=("x" * 40,) * 200, error="e" * 1000)
    write_report(history.repository, long)
    found = last_report(history.repository, history.lineage)
    assert found is not None and found.error and found.backups == ("x" * 40,)


@pytest.mark.parametrize(
    "change",
    [{"is_ok": 1}, {"commands": -1}, {"checked": [1]}, {"restore_s": "1"}, {"format": 2}, None],
)
def test_a_report_that_others_have_changed_is_refused(change: dict[str, object] | None) -> None:
    history = history_of()
    write_report(history.repository, REPORT)
    name = names.drill_name(REPORT.lineage, NOW_US)
    found = json.loads(bytes(history.destination.get(name, size_max=4096)))
    assert decode_report(json.dumps(found).encode()) == REPORT
    changed = b"[]" if change is None else json.dumps(found | change).encode()
    with pytest.raises(ValueError, match=r".+"):
        decode_report(changed)


def test_rates_are_measured_if_there_was_enough_to_do() -> None:
    assert rates_of(REPORT) == (50 << 20, 250_000)
    assert rates_of(None) == rates_of(replace(REPORT, is_ok=False)) == Rates()
    assert rates_of(replace(REPORT, size_bytes=1000, commands=10)) == Rates()


# --- In a process ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_process_does_it_and_puts_the_report(tmp_path: Path) -> None:
    place = tmp_path / "repository"
    history = History(Random(1), destination=LocalDestination("local", place))
    history.backup()
    history.write(3)
    history.archive()
    config = BackupConfig(destinations={"local": str(place)})
    order = DrillOrder(NOW_US, history.lineage, Target(time_us=history.last.time_us), node_id=2)
    report = run_in_process(order, config, tmp_path / "drill", Kit(), {})
    assert report.is_ok, report
    assert report.keys == len(history.model)
    assert last_report(history.repository, history.lineage) == report
    assert not (tmp_path / "drill").exists()
    report = run_in_process(order, config, tmp_path / "drill", None, {})
    assert not report.is_ok and "commands of a state machine" in report.error


@pytest.mark.slow
def test_a_process_that_fails_is_reported(tmp_path: Path) -> None:
    config = BackupConfig(destinations={"local": str(tmp_path / "nothing")})
    report = run_in_process(DrillOrder(NOW_US), config, tmp_path / "drill", Kit(), {})
    assert not report.is_ok and "repository" in report.error
    report = run_in_process(DrillOrder(NOW_US), config, tmp_path / "no" / "drill", Kit(), {})
    assert not report.is_ok and os.strerror(2) in report.error
    report = run_in_process(
        DrillOrder(NOW_US), config, tmp_path / "drill", Kit(), {}, lambda: False
    )
    assert not report.is_ok and "ended" in report.error


def test_machines_are_found_by_name() -> None:
    assert type(load_machine("raftha.server.machine:RedisMachine")) is RedisMachine
    for bad, said in (
        ("RedisMachine", "names no state machine"),
        ("raftha.server.machine:Nothing", "can't find"),
        ("raftha.nothing:Machine", "can't find"),
        ("raftha.server.machine:parse_int64", "no class"),
        (":x", "names no"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_machine(bad)


# --- On its thread --------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_thread_has_a_process_do_it_and_ends_it(tmp_path: Path) -> None:
    place = tmp_path / "repository"
    history = History(Random(1), destination=LocalDestination("local", place))
    history.backup()
    history.write(3)
    history.archive()
    calls: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
    failures: list[BaseException] = []
    thread = DrillThread(
        "test",
        BackupConfig(destinations={"local": str(place)}),
        tmp_path,
        Kit(),
        dict,
        opened=lambda: history.repository,
        call=lambda *call: calls.put(call),
        fail=failures.append,
    )
    results: list[Any] = []
    thread.last(history.lineage, results.append)
    order = DrillOrder(NOW_US, history.lineage, node_id=1)
    thread.run(order, results.append)
    thread.last(history.lineage, results.append)
    for _ in range(3):
        done, result = calls.get(timeout=60)
        done(result)
    before, report, after = results
    assert before is None and report.is_ok and after == report
    thread.run(order, results.append)
    (pool,) = thread.end()
    assert pool.join(60)
    assert calls.empty() and not failures
    assert not (tmp_path / "drill").exists()
