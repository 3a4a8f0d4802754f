"""Wall clocks that are wrong by years, in real nodes: log time, events, status, hand-over."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

import raftha
from raftha.clock import SystemClock
from tests.support.conditions import wait_until
from tests.support.nodes import found_once, free_addresses, wait_leader

YEARS_US = 50 * 365 * 86_400_000_000


def set_wrong(ha: raftha.HaManager, monkeypatch: pytest.MonkeyPatch, wrong_us: int) -> None:
    """Have this node's wall clock be wrong from now on."""
    runtime: Any = ha._runtime
    wrong = SystemClock()
    monkeypatch.setattr(wrong, "time_us", lambda: time.time_ns() // 1000 + wrong_us)
    for owner in (runtime, runtime.node, runtime.node._watch._clocks._log_clock):
        monkeypatch.setattr(owner, "_clock", wrong)
    monkeypatch.setattr(runtime.node.core.clocks, "_time_us", wrong.time_us)


def age_s(receipt: raftha.Receipt) -> float:
    """How far a stamp is from this machine's time."""
    return abs(receipt.time_us / 1e6 - time.time())


@pytest.mark.slow
def test_a_leader_whose_clock_jumps_ahead_moves_no_time_and_hands_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = dict(enumerate(free_addresses(3), 1))
    found_once(tmp_path, members)
    nodes = {
        i: raftha.HaManager(raftha.HaConfig(node_id=i, data_dir=tmp_path / str(i), members=members))
        for i in members
    }
    try:
        for ha in nodes.values():
            ha.start()
        assert age_s(nodes[1].put(b"a", b"1")) < 1
        leader = wait_leader(nodes)
        with nodes[leader].events() as events:
            set_wrong(nodes[leader], monkeypatch, YEARS_US)
            assert age_s(nodes[leader].put(b"a", b"2")) < 1
            assert any(isinstance(event, raftha.events.ClockWrong) for event in _until(events))
        wait_until(lambda: _leader(nodes[leader]) not in (None, leader), "it still leads")
        wait_until(lambda: _offset_ms(nodes[leader], leader) > YEARS_US // 2000, "no offset")
        assert age_s(nodes[leader].put(b"a", b"3")) < 1
    finally:
        for ha in nodes.values():
            ha.stop()


@pytest.mark.slow
def test_a_sole_node_whose_clock_was_a_day_ahead_for_a_moment_keeps_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = dict(enumerate(free_addresses(1), 1))
    config = raftha.HaConfig(node_id=1, data_dir=tmp_path, members=members, replication_factor=1)
    with raftha.HaManager(config) as ha:
        first = ha.put(b"a", b"1")
        set_wrong(ha, monkeypatch, 86_400_000_000)
        assert age_s(ha.put(b"a", b"2")) < 1
        set_wrong(ha, monkeypatch, 0)
        last = ha.put(b"a", b"3")
        assert first.time_us < last.time_us
        assert age_s(last) < 1


def _until(events: Any) -> Any:
    """The events of the next seconds, up to a wrong clock."""
    while (event := events.next(timeout=5)) is not None:
        yield event


def _leader(ha: raftha.HaManager) -> int | None:
    return ha.get_status().leader_id


def _offset_ms(ha: raftha.HaManager, node_id: int) -> int:
    return next(r.clock_offset_ms for r in ha.get_status().replicas if r.node_id == node_id)
