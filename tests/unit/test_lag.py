"""Lag and states by their rules, on a clock that the test moves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from raftha import HaConfig, ReplicaState, ReplicationState, events
from raftha.core import Raft
from raftha.node.messages import ReplicaReport, ReplicaRow
from raftha.node.watch.lag import APPEND_TIMES_MAX, STATES, AppendTimes, LagTracker
from tests.support.core import Net, core

CONFIG = HaConfig(
    node_id=1,
    data_dir=Path("unused"),
    members={i: f"127.0.0.1:{7100 + i}" for i in (1, 2, 3)},
    max_replication_lag_ms=1000,
)


class Leader:
    """Node 1, which leads, and its reports; the test lets time pass."""

    def __init__(self) -> None:
        self.now = 100.0
        self.net = Net(core(1), core(2), core(3))
        self.core: Raft = self.net.elect(1)
        self.connected = {2, 3}
        self.last_contact: dict[int, float] = {}
        self.sent: list[ReplicaReport] = []
        self.events: list[events.HaEvent] = []
        self.lag_tracker = LagTracker(
            CONFIG, self.core, self, self.last_contact, lambda: (self.core.log.applied, 0), self.now
        )
        self.lag_tracker.on_leader(self.now)
        self.pass_time(0.3)

    def send(self, message: ReplicaReport) -> None:
        self.sent.append(message)

    def is_connected(self, peer: int) -> bool:
        return peer in self.connected

    def emit(self, event: events.HaEvent) -> None:
        self.events.append(event)

    def pass_time(self, seconds: float, *, deaf: frozenset[int] = frozenset()) -> None:
        """Heartbeats go to all nodes every 50 ms, except to those in `deaf`."""
        self.net.cut_off = set(deaf)
        for _ in range(round(seconds / 0.05)):
            self.now += 0.05
            self.lag_tracker.record_appends(self.now)
            self.core.tick()
            self.core.tick()
            self.net.run()
            for peer in {2, 3} - deaf:
                self.last_contact[peer] = self.now
            self.lag_tracker.on_tick(self.now)

    def row(self, peer: int) -> ReplicaRow:
        return self.lag_tracker.rows(self.now)[peer]

    def state_of(self, peer: int) -> ReplicaState:
        return STATES[self.row(peer).state]


@pytest.fixture
def leader() -> Leader:
    return Leader()


def test_lag_is_zero_when_all_is_applied_and_no_member_is_silent(leader: Leader) -> None:
    assert [leader.row(i).lag_ms for i in (1, 2, 3)] == [0, 0, 0]
    assert leader.lag_tracker.state(leader.now) is ReplicationState.HEALTHY
    leader.pass_time(5)
    assert leader.lag_tracker.max_lag_ms(leader.now) == 0


def test_lag_is_the_age_of_the_oldest_entry_not_applied(leader: Leader) -> None:
    for _ in range(3):
        leader.core.propose(b"x", 1, 0)
        leader.pass_time(0.2, deaf=frozenset({3}))
    assert leader.row(2).lag_ms < 100
    assert 540 <= leader.row(3).lag_ms <= 650
    assert leader.row(3).lag_sequences == 3
    # It replies again and has still applied nothing: then silence doesn't count.
    leader.last_contact[3] = leader.now
    leader.lag_tracker.on_tick(leader.now)
    assert 540 <= leader.row(3).lag_ms <= 650
    leader.pass_time(0.5)
    assert (leader.row(3).lag_ms, leader.row(3).lag_sequences) == (0, 0)


def test_silence_is_lag_even_if_nothing_is_written(leader: Leader) -> None:
    leader.pass_time(0.15, deaf=frozenset({3}))
    assert leader.row(3).lag_ms == 0
    for seconds in (0.5, 1.0, 2.0):
        before = leader.row(3).lag_ms
        leader.pass_time(seconds, deaf=frozenset({3}))
        grown = leader.row(3).lag_ms - before
        assert grown >= 1000 * seconds - 60
    assert leader.state_of(3) is ReplicaState.LAGGING
    assert leader.lag_tracker.state(leader.now) is ReplicationState.DEGRADED


def test_a_replica_syncs_until_it_has_what_there_was_when_it_connected(leader: Leader) -> None:
    leader.connected.remove(3)
    leader.core.propose(b"x", 1, 0)
    leader.pass_time(0.1, deaf=frozenset({3}))
    assert leader.state_of(3) is ReplicaState.DISCONNECTED
    assert leader.lag_tracker.state(leader.now) is ReplicationState.DEGRADED
    leader.connected.add(3)
    leader.lag_tracker.on_tick(leader.now)
    assert leader.state_of(3) is ReplicaState.SYNCING
    assert leader.lag_tracker.state(leader.now) is ReplicationState.SYNCING
    leader.pass_time(0.5)
    assert leader.state_of(3) is ReplicaState.ACTIVE
    assert leader.lag_tracker.state(leader.now) is ReplicationState.HEALTHY


def test_a_learner_that_gets_an_old_log_syncs_without_a_warning(leader: Leader) -> None:
    leader.pass_time(3)
    leader.net.cores[4] = core(4)
    leader.net.applied[4], leader.net.reads[4] = [], []
    leader.core.change_membership(leader.core.membership.with_learner(4, "127.0.0.1:7104", "far"))
    leader.connected.add(4)
    leader.lag_tracker.record_appends(leader.now)
    leader.lag_tracker.on_tick(leader.now)
    assert leader.row(4).lag_ms > 3000
    assert leader.state_of(4) is ReplicaState.SYNCING
    assert leader.events == []
    for _ in range(10):
        leader.last_contact[4] = leader.now
        leader.pass_time(0.05)
    assert leader.core.membership.members[4].is_voter
    assert leader.state_of(4) is ReplicaState.ACTIVE
    assert leader.events == []
    # From now on it causes warnings like all others.
    leader.pass_time(2, deaf=frozenset({4}))
    assert leader.state_of(4) is ReplicaState.LAGGING
    assert [type(event) for event in leader.events] == [events.ReplicationLagWarning]


def test_a_learner_that_falls_silent_before_it_is_in_sync_lags(leader: Leader) -> None:
    leader.net.cores[4] = core(4)
    leader.net.applied[4], leader.net.reads[4] = [], []
    leader.core.change_membership(leader.core.membership.with_learner(4, "127.0.0.1:7104", "far"))
    leader.connected.add(4)
    leader.pass_time(2, deaf=frozenset({4}))
    assert leader.state_of(4) is ReplicaState.LAGGING
    assert [type(event) for event in leader.events] == [events.ReplicationLagWarning]


def test_a_leader_whose_commits_stall_has_lag_itself(leader: Leader) -> None:
    leader.net.cut_off = {2, 3}
    leader.core.propose(b"x", 1, 0)
    leader.lag_tracker.record_appends(leader.now)
    leader.net.run()
    leader.now += 0.7
    leader.lag_tracker.on_tick(leader.now)
    assert leader.row(1).lag_ms >= 690


def test_all_members_are_told_and_an_old_report_ages(leader: Leader) -> None:
    assert {report.to for report in leader.sent[-2:]} == {2, 3}
    report = leader.sent[-1]._replace(to=2)
    follower_core = leader.net.cores[2]
    follower = LagTracker(
        replace(CONFIG, node_id=2), follower_core, leader, {}, lambda: (0, 0), leader.now
    )
    follower.on_report(report._replace(term=report.term - 1), leader.now)
    assert STATES[follower.rows(leader.now)[3].state] is ReplicaState.CONNECTING
    follower.on_report(report, leader.now)
    assert follower.rows(leader.now) == {row.node_id: row for row in report.rows}
    aged = follower.rows(leader.now + 0.6)
    assert all(row.lag_ms >= 599 for row in aged.values())
    later = follower.rows(leader.now + 1.1)
    assert {STATES[row.state] for row in later.values()} == {ReplicaState.LAGGING}


def test_a_new_leader_continues_from_its_predecessors_report(leader: Leader) -> None:
    leader.pass_time(2, deaf=frozenset({3}))
    successor_core = leader.net.cores[2]
    successor = LagTracker(
        replace(CONFIG, node_id=2), successor_core, leader, {}, lambda: (0, 0), leader.now
    )
    successor.on_report(leader.sent[-1], leader.now)
    leader.core.transfer(2)
    leader.net.run()
    assert successor_core.is_leader
    successor.on_leader(leader.now)
    successor.on_tick(leader.now)
    assert successor.rows(leader.now)[3].lag_ms >= 1900


def test_one_warning_until_it_was_calm_for_a_while(leader: Leader) -> None:
    def warnings() -> int:
        return sum(isinstance(e, events.ReplicationLagWarning) for e in leader.events)

    deaf = frozenset({3})
    leader.pass_time(3, deaf=deaf)
    assert warnings() == 1
    leader.pass_time(0.5)
    leader.pass_time(3, deaf=deaf)
    assert warnings() == 1
    leader.pass_time(1.5)
    leader.pass_time(3, deaf=deaf)
    assert warnings() == 2


def test_stamps_are_thinned_out_and_never_make_an_entry_younger() -> None:
    times = AppendTimes(0, 0.0)
    for index in range(1, 3 * APPEND_TIMES_MAX):
        times.record_appends(index, float(index))
    assert all(times.time(index) <= index for index in range(1, 3 * APPEND_TIMES_MAX))
    assert times.time(3 * APPEND_TIMES_MAX - 1) == 3 * APPEND_TIMES_MAX - 1
    assert times.time(APPEND_TIMES_MAX) > 0.9 * APPEND_TIMES_MAX
