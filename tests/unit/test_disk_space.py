"""Which disks are full, which node gets a report of it, and which writes are refused."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from raftha.node.messages import SpaceReport
from raftha.node.submissions import MAJORITY_FULL
from raftha.node.watch.disk_space import REPORTED_TICKS, DiskSpace
from tests.support.core import acknowledge, become_leader, core, follow

VALID_S = 0.5


class Surroundings:
    """A node of three, and the calls that it got."""

    def __init__(self, *, leads: bool) -> None:
        self.sent: list[SpaceReport] = []
        self.handed_to: list[list[int]] = []
        self.core = core(1)
        if leads:
            become_leader(self.core)
            acknowledge(self.core, 2)
            acknowledge(self.core, 3)
        else:
            follow(self.core, leader=2)
        self.disk_space = DiskSpace(self.core, self.sent.append, self._hand_over, VALID_S)
        for _ in range(REPORTED_TICKS):
            self.tick()

    def _hand_over(self, candidates: Collection[int]) -> None:
        self.handed_to.append(list(candidates))

    def tick(self, now: float = 0.0) -> None:
        self.disk_space.on_tick(now, lambda _: True)

    def report(self, peer: int, *, has_space: bool, now: float = 0.0) -> None:
        self.disk_space.on_message(SpaceReport(1, peer, has_space), now)


@pytest.fixture
def leader() -> Surroundings:
    return Surroundings(leads=True)


@pytest.fixture
def follower() -> Surroundings:
    return Surroundings(leads=False)


def test_a_node_with_space_refuses_no_writes_and_reports_nothing(
    leader: Surroundings, follower: Surroundings
) -> None:
    for node in (leader, follower):
        node.tick()
        assert node.disk_space.has_space
        assert node.disk_space.refusal() == ""
        assert (node.sent, node.handed_to) == ([], [])


def test_a_full_follower_refuses_callers_and_tells_the_leader_it_is_full(
    follower: Surroundings,
) -> None:
    follower.disk_space.on_full("log", "no room")
    assert follower.disk_space.refusal() == "no room"
    follower.tick()
    follower.tick()
    assert follower.sent == [SpaceReport(2, 1, False)] * 2
    follower.disk_space.on_space("log")
    assert follower.disk_space.refusal() == ""
    assert follower.sent[2:] == [SpaceReport(2, 1, True)]
    follower.tick()
    assert len(follower.sent) == 3


def test_a_node_is_full_until_everything_has_space(follower: Surroundings) -> None:
    follower.disk_space.on_full("checkpoint", "no room for a checkpoint")
    follower.disk_space.on_full("log", "no room for log")
    follower.disk_space.on_space("log")
    assert follower.disk_space.refusal() == "no room for a checkpoint"
    assert follower.sent == []
    follower.disk_space.on_space("checkpoint")
    assert follower.disk_space.has_space


def test_a_full_leader_hands_over_and_refuses_only_its_own_callers(
    leader: Surroundings,
) -> None:
    leader.report(3, has_space=False)
    leader.disk_space.on_space("log")
    assert not leader.disk_space.is_majority_full
    leader.disk_space.on_full("log", "no room")
    leader.tick()
    assert leader.handed_to == [[2]]
    assert leader.disk_space.refusal() == "no room"


def test_a_full_leader_first_learns_which_others_are_full(leader: Surroundings) -> None:
    follow(leader.core, leader=2, term=leader.core.term + 1)
    leader.tick()
    become_leader(leader.core)
    acknowledge(leader.core, 2)
    acknowledge(leader.core, 3)
    leader.disk_space.on_full("log", "no room")
    for _ in range(REPORTED_TICKS):
        leader.tick()
    assert leader.handed_to == []
    leader.report(2, has_space=False)
    leader.tick()
    assert leader.handed_to == [[3]]


def test_a_full_leader_does_not_hand_over_to_a_sick_node(leader: Surroundings) -> None:
    leader.disk_space.on_full("log", "no room")
    leader.disk_space.on_tick(0.0, lambda peer: peer == 3)
    leader.disk_space.on_tick(0.0, lambda _: False)
    assert leader.handed_to == [[3]]


def test_a_leader_refuses_writes_while_a_majority_is_full(leader: Surroundings) -> None:
    leader.report(2, has_space=False)
    assert leader.disk_space.refusal() == ""
    leader.report(3, has_space=False)
    assert leader.disk_space.refusal() == MAJORITY_FULL
    assert leader.disk_space.is_majority_full
    leader.report(2, has_space=True)
    assert leader.disk_space.refusal() == ""


def test_a_leader_that_is_full_counts_itself(leader: Surroundings) -> None:
    leader.report(2, has_space=False)
    leader.disk_space.on_full("log", "no room")
    assert leader.disk_space.is_majority_full
    leader.disk_space.on_space("log")
    assert not leader.disk_space.is_majority_full


def test_a_report_counts_until_it_is_no_longer_repeated(leader: Surroundings) -> None:
    for now in (0.0, VALID_S):
        leader.report(2, has_space=False, now=now)
        leader.report(3, has_space=False, now=now)
        leader.tick(now + VALID_S)
        assert leader.disk_space.is_majority_full
    leader.tick(2 * VALID_S + 0.01)
    assert not leader.disk_space.is_majority_full
