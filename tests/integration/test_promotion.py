"""Which node leads: chosen by an operator, or by region. Three nodes in this process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import raftha
from raftha.events import EventKind
from tests.support.conditions import wait_until
from tests.support.nodes import found_once, free_addresses, make_config

pytestmark = pytest.mark.slow


@contextmanager
def running(folder: Path, **settings: Any) -> Iterator[dict[int, raftha.HaManager]]:
    members = dict(enumerate(free_addresses(3), start=1))
    found_once(folder, members, regions=settings.get("member_regions"))
    configs = [replace(make_config(folder, i, members), **settings) for i in members]
    nodes = {config.node_id: raftha.HaManager(config) for config in configs}
    with ExitStack() as stack:
        for node in nodes.values():
            stack.enter_context(node)
        yield nodes


def leader_of(node: raftha.HaManager) -> int:
    node.put(b"leader", b"wanted")
    leader = node.get_status().leader_id
    assert leader is not None
    return leader


def drop(node: raftha.HaManager) -> None:
    """End a node as a crash would, without handing over."""
    assert node._runtime is not None
    node._runtime._call(node._runtime._fail, RuntimeError("planned by the test"))
    wait_until(lambda: not node.get_status().is_running, "it failed")


def test_without_automatic_failover_an_operator_promotes_a_follower(tmp_path: Path) -> None:
    with running(tmp_path, auto_failover=False) as nodes:
        old = leader_of(nodes[1])
        first, second = (node for i, node in nodes.items() if i != old)
        with first.events() as events:
            drop(nodes[old])
            wait_until(lambda: first.get_status().leader_id is None, "its leader is gone")
            election_s = first.config.election_timeout_ms / 1000
            until = time.monotonic() + 6 * election_s
            while (left := until - time.monotonic()) > 0:
                event = events.next(timeout=left)
                assert event is None or event.kind is not EventKind.FAILOVER_STARTED
            assert first.get_status().leader_id is None
            target = second.config.node_id
            first.failover_to(target)  # Asked on one node, for another.
            assert leader_of(first) == target
            assert second.get_status().is_primary


def test_without_a_quorum_no_node_is_promoted_and_the_call_fails(tmp_path: Path) -> None:
    with running(tmp_path, auto_failover=False) as nodes:
        old = leader_of(nodes[1])
        first, second = (node for i, node in nodes.items() if i != old)
        drop(nodes[old])
        second.stop()
        for target in (first.config.node_id, second.config.node_id):
            with pytest.raises(raftha.TransferFailed, match="majority"):
                first.failover_to(target, timeout=2)
        assert first.get_status().leader_id is None


def test_leadership_returns_to_the_preferred_region_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftha.node.watch.placement.RETURN_AFTER_S", 0.5)
    regions = {"regions": ("near", "far"), "member_regions": {1: "near", 2: "far", 3: "far"}}
    with running(tmp_path, **regions) as nodes:
        wait_until(lambda: nodes[1].get_status().is_primary, "the preferred one leads")
        nodes[1].stop()
        assert leader_of(nodes[2]) in (2, 3)
        with nodes[2].events() as events:
            nodes[1].start()
            wait_until(lambda: nodes[1].get_status().is_primary, "leadership returned")
            while (event := events.next(timeout=20)) is not None:
                if event.kind is EventKind.FAILOVER_COMPLETED:
                    break
            assert event is not None
            assert event.details()["new_primary"] == 1
            assert event.details()["is_planned"]
