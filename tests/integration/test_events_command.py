"""`raftha events` and RAFTHA EVENTS, against real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raftha.cli.app import app
from raftha.testing import LocalCluster

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(3) as cluster:
        cluster.wait_ready()
        yield cluster


def test_all_nodes_events_are_shown_in_order_from_one_address(cluster: LocalCluster) -> None:
    result = CliRunner().invoke(app, ["events", cluster.addresses[1], "--json"])
    assert result.exit_code == 0
    shown = [json.loads(line) for line in result.stdout.splitlines()]
    assert {event["reporter"] for event in shown} == {1, 2, 3}
    assert [event["time_us"] for event in shown] == sorted(event["time_us"] for event in shown)
    for node_id in cluster.node_ids:
        numbers = [event["number"] for event in shown if event["reporter"] == node_id]
        assert numbers == list(range(1, len(numbers) + 1))


def test_events_can_be_chosen_by_kind_and_are_readable_lines(cluster: LocalCluster) -> None:
    address = cluster.addresses[1]
    result = CliRunner().invoke(app, ["events", address, "--kind", "leader_elected"])
    lines = result.stdout.splitlines()
    assert len(lines) >= 3
    assert all("leader_elected" in line and "leader=" in line for line in lines)


def test_a_caller_that_is_up_to_date_waits_for_the_next_event(cluster: LocalCluster) -> None:
    leader = cluster.wait_leader()
    known = json.loads(cluster.call(leader, "RAFTHA", "EVENTS", "", 0, 0))
    last = known["events"][-1]["number"]
    nothing = json.loads(cluster.call(leader, "RAFTHA", "EVENTS", known["journal"], last, 1))
    assert nothing["events"] == []
    target = next(node_id for node_id in cluster.node_ids if node_id != leader)
    cluster.call(leader, "RAFTHA", "FAILOVER", target)
    reply = json.loads(cluster.call(leader, "RAFTHA", "EVENTS", known["journal"], last, 10_000))
    assert reply["lost"] == 0
    assert reply["events"][0]["number"] == last + 1


def test_a_failover_is_followed_as_it_happens_on_all_nodes(cluster: LocalCluster) -> None:
    cluster.wait_ready()
    command = ("events", cluster.addresses[1], "-f", "--json", "--kind", "failover_completed")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "raftha", *command],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            leader = cluster.wait_ready()
            status = cluster.status(leader)
            assert status is not None
            target = next(node_id for node_id in cluster.node_ids if node_id != leader)
            cluster.call(leader, "RAFTHA", "FAILOVER", target)
            reporters: set[int] = set()
            while reporters != {1, 2, 3}:
                event = json.loads(process.stdout.readline())
                if event["new_primary"] == target and event["term"] > status["term"]:
                    reporters.add(event["reporter"])
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 0
    assert "Traceback" not in errors
