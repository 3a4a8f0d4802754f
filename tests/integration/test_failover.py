"""Failovers of real processes, as a node that lives through them reports them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

import pytest

import raftha
from raftha.events import FailoverCompleted, FailoverStarted, HaEvent
from raftha.server.machine import RedisMachine
from raftha.testing import LocalCluster
from tests.support.conditions import wait_until
from tests.support.nodes import read_config

pytestmark = pytest.mark.slow

OWN = 1


class Observed(NamedTuple):
    """Node 1 is in this process, 2 and 3 in their own."""

    cluster: LocalCluster
    ha: raftha.HaManager
    stream: raftha.EventStream

    def lead(self, node_id: int) -> None:
        """Make a node the leader, and drop the reports until then."""

        def leads() -> bool:
            with suppress(raftha.TransferFailed, raftha.RequestTimeout):
                self.ha.failover_to(node_id, timeout=2)  # It may only just have been started.
            return self.ha.get_status().leader_id == node_id

        wait_until(leads, f"node {node_id} leads")
        self.ha.put(b"leader", b"here")
        while self.stream.next(timeout=0.2) is not None:
            pass

    def one_failover(self) -> tuple[FailoverStarted, FailoverCompleted]:
        """Wait for the failover under way; check that it is the only one."""
        told: list[HaEvent] = []
        while not any(isinstance(event, FailoverCompleted) for event in told):
            event = self.stream.next(timeout=20)
            assert event is not None, told
            told.append(event)
        self.ha.put(b"after", b"failover")
        while (event := self.stream.next(timeout=0.2)) is not None:
            told.append(event)
        started, completed = (e for e in told if isinstance(e, FailoverStarted | FailoverCompleted))
        assert isinstance(started, FailoverStarted)
        assert isinstance(completed, FailoverCompleted)
        assert started.number < completed.number
        phases = (completed.detect_ms, completed.elect_ms, completed.first_commit_ms)
        assert min(phases) >= 0
        assert completed.duration_ms == pytest.approx(sum(phases))
        return started, completed


@pytest.fixture(scope="module")
def observed() -> Iterator[Observed]:
    with LocalCluster(3) as cluster:
        cluster.terminate(OWN)
        with (
            raftha.HaManager(
                read_config(cluster.config_of(OWN)), state_machine=RedisMachine()
            ) as ha,
            ha.events() as stream,
        ):
            yield Observed(cluster, ha, stream)


def test_a_killed_leader_is_one_failover(observed: Observed) -> None:
    observed.lead(2)
    observed.cluster.kill(2)
    started, completed = observed.one_failover()
    assert started.from_node == 2
    assert completed.new_primary in (1, 3)
    assert not completed.is_planned
    observed.cluster.start_node(2)


def test_a_paused_leader_is_one_failover_and_its_return_none(observed: Observed) -> None:
    observed.lead(2)
    observed.cluster.pause(2)
    started, completed = observed.one_failover()
    assert started.from_node == 2
    assert completed.new_primary in (1, 3)
    assert completed.detect_ms >= 400, "it is silent for an election timeout"
    observed.cluster.resume(2)
    observed.ha.put(b"all", b"back")
    while (event := observed.stream.next(timeout=0.5)) is not None:
        assert not isinstance(event, FailoverStarted | FailoverCompleted)


def test_a_planned_transfer_is_one_failover(observed: Observed) -> None:
    observed.lead(2)
    observed.ha.failover_to(3)
    started, completed = observed.one_failover()
    assert (started.from_node, started.to_node, completed.new_primary) == (2, 3, 3)
    assert completed.is_planned


def test_a_leader_that_is_restarted_in_order_is_one_failover(observed: Observed) -> None:
    observed.lead(2)
    observed.cluster.restart(2)
    started, completed = observed.one_failover()
    assert started.from_node == 2
    assert completed.is_planned, "it hands over before it stops"


def test_the_new_leader_reports_the_failover_as_well(observed: Observed) -> None:
    observed.lead(2)
    observed.ha.failover_to(OWN)
    started, completed = observed.one_failover()
    assert (started.from_node, started.to_node, completed.new_primary) == (2, OWN, OWN)
    assert completed.is_planned
    observed.ha.failover_to(3)
    started, completed = observed.one_failover()
    assert (started.from_node, started.to_node, completed.new_primary) == (OWN, 3, 3)
    assert completed.is_planned
