"""Commands that don't return: they are named, once, and no others are."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

import raftha
from raftha.runtime import slow_commands
from raftha.runtime.slow_commands import SEEN_MAX, SlowCommands
from raftha.storage.state.state import State
from tests.sim.store import DictStore
from tests.support.entries import Log
from tests.support.nodes import free_addresses, make_config

ENTRIES = [Log().batch(), Log().batch()]


def look(watch: SlowCommands, times: int) -> None:
    for _ in range(times):
        watch.look()


def test_an_entry_that_stays_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    state = State(DictStore())
    watch = SlowCommands(1, state, lambda: False)
    state.applying = ENTRIES[0]
    look(watch, SEEN_MAX)
    assert not caplog.messages
    look(watch, 3 * SEEN_MAX)
    (message,) = caplog.messages
    assert f"entry=1 hash={ENTRIES[0].hash.hex()} has not returned for 15 s" in message


def test_entries_that_follow_each_other_are_not_named(caplog: pytest.LogCaptureFixture) -> None:
    state = State(DictStore())
    watch = SlowCommands(1, state, lambda: False)
    for step in range(10 * SEEN_MAX):
        state.applying = ENTRIES[step % 2] if step % 5 else None
        watch.look()
    assert not caplog.messages


def test_the_entry_that_a_failed_node_was_applying_is_no_news(
    caplog: pytest.LogCaptureFixture,
) -> None:
    state = State(DictStore())
    watch = SlowCommands(1, state, lambda: True)
    state.applying = ENTRIES[0]
    look(watch, 3 * SEEN_MAX)
    assert not caplog.messages


def test_a_trial_that_does_not_end_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(slow_commands, "CHECK_S", 0.02)
    told = threading.Event()

    class Waiting(raftha.StateMachine):
        @raftha.command
        def wait(self, txn: raftha.Transaction) -> None:
            told.wait(10)

    config = make_config(tmp_path, 1, {1: free_addresses(1)[0]})
    with raftha.HaManager(config, state_machine=Waiting()) as ha:
        ha.put(b"a", b"1")
        caller = threading.Thread(target=ha.execute, args=("wait",))
        caller.start()
        deadline = time.monotonic() + 5
        while "a trial of command='wait' has not returned" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        told.set()
        caller.join()
