"""The checks of members and of the own disk, and a leader that must hand over or resign."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest

from raftha.config import HaConfig
from raftha.core import Raft
from raftha.core.progress import Mode
from raftha.events import HaEvent, HealthCheckFailed, HealthRecovered
from raftha.node.messages import HealthMessage, HealthReply, HealthRequest
from raftha.node.watch.health import (
    CHECKS_UNTIL_RECOVERED,
    CHECKS_UNTIL_UNHEALTHY,
    HANG_UP_S,
    SEAL_AFTER_S,
    HealthMonitor,
)
from raftha.types import Health
from tests.support.core import acknowledge, become_leader, core, follow

CHECK_S = 0.25
INTERVAL_S = 5.0
STALL_S = 2.0


class Surroundings:
    """A monitor of node 1, on a clock that the test moves; all but `silent` members send."""

    def __init__(self, raft: Raft) -> None:
        self.core = raft
        self.now = 100.0
        self.sent: list[HealthMessage] = []
        self.events: list[HaEvent] = []
        self.handed_to: list[set[int]] = []
        self.hung_up: list[int] = []
        self.seals = 0
        self.silent: set[int] = set()
        self.applied = 0
        self.disk_s: float | None = 0.001
        config = HaConfig(
            node_id=1,
            data_dir=Path("data"),
            members={i: f"127.0.0.1:{7100 + i}" for i in (1, 2, 3)},
            health_check_interval_sec=INTERVAL_S,
            max_replication_lag_ms=int(1000 * STALL_S),
        )
        self.monitor = HealthMonitor(
            config, raft, self, self._hand_over, lambda: self.applied, self.now
        )

    def _hand_over(self, candidates: Collection[int]) -> None:
        self.handed_to.append(set(candidates))

    def send(self, message: HealthMessage) -> None:
        self.sent.append(message)
        if isinstance(message, HealthRequest) and message.to not in self.silent:
            self.monitor.record_contact(message.to, self.now)
            self.monitor.on_message(HealthReply(1, message.to, True))

    def emit(self, event: HaEvent) -> None:
        self.events.append(event)

    def hang_up(self, peer: int) -> None:
        self.hung_up.append(peer)

    def seal_log(self, commit: int) -> None:
        self.seals += 1
        if self.disk_s is not None:
            self.monitor.write_ended(self.now + self.disk_s)

    def check(self, times: int = 1, *, writes: bool = True) -> None:
        """Let so many checks pass, each after a write of the log and a message of each peer."""
        for _ in range(times):
            if writes and self.disk_s is not None:
                self.monitor.write_begun(self.now)
                self.monitor.write_ended(self.now + self.disk_s)
            self.now += CHECK_S
            if self.core.is_leader or self.core.leader is not None:
                speaking = {2, 3} if self.core.is_leader else {self.core.leader}
                for peer in speaking - self.silent:
                    assert peer is not None
                    self.monitor.record_contact(peer, self.now)
            self.monitor.on_tick(self.now)

    def health(self) -> tuple[Health, ...]:
        return tuple(self.monitor.health(node_id) for node_id in (1, 2, 3))

    def failures(self) -> list[tuple[int, int, str]]:
        """The reported failures: the node, their number, and the health."""
        failed = [event for event in self.events if isinstance(event, HealthCheckFailed)]
        return [(e.node_id, e.consecutive_failures, e.health.value) for e in failed]


@pytest.fixture
def leader() -> Surroundings:
    raft = core(1)
    become_leader(raft)
    acknowledge(raft, 2)
    acknowledge(raft, 3)
    surroundings = Surroundings(raft)
    surroundings.applied = raft.log.last_index
    surroundings.check()
    return surroundings


@pytest.fixture
def follower() -> Surroundings:
    raft = core(1)
    follow(raft, leader=2)
    surroundings = Surroundings(raft)
    surroundings.check()
    return surroundings


def test_members_that_are_not_silent_are_healthy_and_not_asked(leader: Surroundings) -> None:
    leader.check(int(INTERVAL_S / CHECK_S) - 2)
    assert leader.health() == (Health.HEALTHY,) * 3
    assert not leader.events
    assert not leader.sent


def test_a_silent_member_is_suspect_then_unhealthy_and_well_in_two_checks(
    leader: Surroundings,
) -> None:
    leader.silent = {3}
    leader.check(3)
    assert leader.health() == (Health.HEALTHY, Health.HEALTHY, Health.SUSPECT)
    leader.check(CHECKS_UNTIL_UNHEALTHY)
    assert leader.monitor.health(3) is Health.UNHEALTHY
    assert leader.failures() == [(3, 1, "suspect"), (3, 3, "unhealthy")]
    leader.silent = set()
    leader.check()
    assert leader.monitor.health(3) is Health.UNHEALTHY
    leader.check()
    assert leader.health() == (Health.HEALTHY,) * 3
    assert leader.events[-1] == HealthRecovered(reporter=1, node_id=3)


def test_one_good_check_clears_a_suspect_in_silence(leader: Surroundings) -> None:
    leader.silent = {3}
    leader.check(3)
    leader.silent = set()
    leader.check()
    assert leader.monitor.health(3) is Health.HEALTHY
    assert leader.failures() == [(3, 1, "suspect")]
    assert not any(isinstance(event, HealthRecovered) for event in leader.events)


def test_a_member_that_stays_away_is_reported_once_an_interval(leader: Surroundings) -> None:
    leader.silent = {3}
    leader.check(int(3 * INTERVAL_S / CHECK_S))
    counts = [count for _, count, _ in leader.failures()]
    assert counts[:2] == [1, 3]
    assert len(counts) == 2 + 3
    assert counts == sorted(counts)


def test_a_follower_checks_its_leader_by_the_messages_it_gets(follower: Surroundings) -> None:
    follower.silent = {2}
    follower.check(3)
    assert follower.health() == (Health.HEALTHY, Health.SUSPECT, Health.HEALTHY)


def test_a_follower_asks_once_an_interval_and_often_when_others_are_silent(
    follower: Surroundings,
) -> None:
    follower.silent = {3}
    follower.check(int(INTERVAL_S / CHECK_S) - 2)
    assert not follower.sent
    follower.check(3)
    asked = [m.to for m in follower.sent if isinstance(m, HealthRequest)]
    assert sorted(asked[:2]) == [2, 3]
    follower.check(CHECKS_UNTIL_UNHEALTHY + 2)
    assert follower.health() == (Health.HEALTHY, Health.HEALTHY, Health.UNHEALTHY)
    follower.silent = set()
    follower.check(1 + CHECKS_UNTIL_RECOVERED)  # It is asked at the first.
    assert follower.monitor.health(3) is Health.HEALTHY


def test_an_asked_node_says_how_its_disk_is(leader: Surroundings) -> None:
    leader.monitor.on_message(HealthRequest(1, 2))
    assert leader.sent == [HealthReply(2, 1, True)]
    leader.disk_s = 0.6
    leader.check()
    leader.monitor.on_message(HealthRequest(1, 2))
    assert leader.sent[-1] == HealthReply(2, 1, False)


def test_after_a_pause_of_its_own_a_node_blames_no_other(leader: Surroundings) -> None:
    leader.now += 60
    leader.monitor.on_tick(leader.now)
    leader.check()
    assert leader.health() == (Health.HEALTHY,) * 3
    assert not leader.events


def test_one_slow_write_among_many_is_no_sick_disk(leader: Surroundings) -> None:
    for duration in (0.001, 0.9, 0.002):
        leader.monitor.write_begun(leader.now)
        leader.monitor.write_ended(leader.now + duration)
    leader.check(writes=False)
    assert leader.monitor.health(1) is Health.HEALTHY


def test_a_leader_whose_writes_are_slow_hands_over_at_the_third_check(
    leader: Surroundings,
) -> None:
    leader.disk_s = 0.6
    leader.check(CHECKS_UNTIL_UNHEALTHY - 1)
    assert not leader.handed_to
    leader.check()
    assert leader.monitor.health(1) is Health.UNHEALTHY
    assert leader.handed_to == [{2, 3}]
    assert leader.failures() == [(1, 1, "suspect"), (1, 3, "unhealthy")]


def test_a_leader_whose_write_hangs_hands_over(leader: Surroundings) -> None:
    leader.monitor.write_begun(leader.now)
    leader.disk_s = None
    leader.check(CHECKS_UNTIL_UNHEALTHY + 1)
    assert leader.handed_to[0] == {2, 3}


def test_a_leader_hands_over_to_no_node_that_is_not_better(leader: Surroundings) -> None:
    leader.silent = {3}
    leader.check(6)
    leader.monitor.on_message(HealthReply(1, 2, False))
    leader.silent = {2, 3}
    leader.disk_s = 0.6
    leader.check(2)
    leader.monitor.record_contact(2, leader.now)
    leader.check(4)
    assert not leader.handed_to


def test_a_member_whose_disk_was_sick_is_asked_until_it_says_it_is_well(
    leader: Surroundings,
) -> None:
    """It is never silent, so no silence would cause a request; a round may be an hour away."""
    leader.monitor.on_message(HealthReply(1, 2, False))
    assert not leader.monitor.may_lead(2)
    leader.sent.clear()
    leader.check()
    assert leader.sent == [HealthRequest(2, 1)]
    assert leader.monitor.may_lead(2), "its answer was that it is well"
    leader.check()
    assert len(leader.sent) == 1, "and then it is asked no more"


def test_an_idle_disk_is_sealed_once_and_tried_once_an_interval(leader: Surroundings) -> None:
    leader.check(int(SEAL_AFTER_S / CHECK_S) + 1, writes=False)
    assert leader.seals == 1
    leader.check(int(INTERVAL_S / CHECK_S), writes=False)
    seals = leader.seals
    leader.check(int(2 * INTERVAL_S / CHECK_S), writes=False)
    assert leader.seals == seals + 2
    assert leader.monitor.health(1) is Health.HEALTHY


def test_an_idle_disk_that_hangs_is_found(leader: Surroundings) -> None:
    leader.check(8, writes=False)
    leader.disk_s = None
    leader.check(int(2 * INTERVAL_S / CHECK_S), writes=False)
    assert leader.monitor.health(1) is Health.UNHEALTHY
    assert leader.handed_to


def test_a_leader_that_commits_nothing_in_time_hands_over_and_then_resigns(
    leader: Surroundings,
) -> None:
    leader.core.propose(b"", 1, 1)
    leader.check(int(STALL_S / CHECK_S) - 1)
    assert not leader.handed_to
    leader.check(2)
    assert leader.handed_to == [{2, 3}]
    leader.check(4)
    assert leader.core.is_leader
    leader.check(2)
    assert not leader.core.is_leader
    assert len(leader.handed_to) == 1


def test_a_leader_that_applies_what_it_took_is_healthy_however_much_comes(
    leader: Surroundings,
) -> None:
    for _ in range(int(3 * STALL_S / CHECK_S)):
        leader.core.propose(b"", 1, 1)
        leader.applied += 1
        leader.core.propose(b"", 1, 1)
        leader.check()
    assert not leader.handed_to


def test_a_leader_without_any_answers_does_not_resign_for_that(leader: Surroundings) -> None:
    leader.core.propose(b"", 1, 1)
    leader.silent = {2, 3}
    leader.check(int(3 * STALL_S / CHECK_S))
    assert not leader.handed_to
    assert leader.core.is_leader


def test_a_leader_does_not_resign_while_those_it_needs_lack_its_entries(
    leader: Surroundings,
) -> None:
    """Each new leader would send a snapshot from the beginning, and none would arrive."""
    leader.core.propose(b"", 1, 1)
    for peer in (2, 3):
        leader.core.progress[peer].mode = Mode.SNAPSHOT
    leader.check(int(3 * STALL_S / CHECK_S))
    assert not leader.handed_to
    assert leader.core.is_leader


def test_a_member_that_is_silent_for_long_is_disconnected(leader: Surroundings) -> None:
    leader.silent = {3}
    leader.check(int(HANG_UP_S / CHECK_S) - 1)
    assert leader.hung_up == []
    leader.check(2)
    assert set(leader.hung_up) == {3}
    # It is connected again, which counts as contact too.
    leader.monitor.record_contact(3, leader.now)
    leader.hung_up.clear()
    leader.check(3)
    assert leader.hung_up == []


def test_a_follower_disconnects_peers_that_do_not_answer(
    follower: Surroundings,
) -> None:
    follower.silent = {3}
    # Asked after one interval.
    follower.check(int((INTERVAL_S + HANG_UP_S) / CHECK_S) - 2)
    assert follower.hung_up == []
    follower.check(4)
    assert set(follower.hung_up) == {3}


def test_a_node_that_was_away_itself_closes_no_connection(leader: Surroundings) -> None:
    leader.silent = {3}
    leader.check(8)
    leader.now += 2 * HANG_UP_S
    leader.check(8)
    assert leader.hung_up == []
