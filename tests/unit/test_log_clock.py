"""Log time: which clock stamps entries, and when a leader doesn't believe its own."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from raftha.core import HeartbeatReply, Raft, VoteReply
from raftha.core.clocks import KEPT_US, ClockReadings
from raftha.events import ClockRight, ClockWrong, HaEvent
from raftha.node.log_clock import BELIEVED_AFTER_S, READING_S, LogClock
from raftha.node.watch.clocks import ClockWatch
from tests.support.core import become_leader, core, finish

NOW_US = 1_700_000_000_000_000
YEARS_US = 50 * 365 * 86_400_000_000
MAX_MS = 5_000


class Scene:
    """A leader's clocks: `wrong_us` is how wrong its wall clock is."""

    def __init__(self, voters: int = 3) -> None:
        self.passed_us = 1_000_000
        self.wrong_us = 0
        self.core: Raft = core(voters=voters, clock_ns=self.boottime_ns)
        if voters > 1:
            become_leader(self.core)
        while not self.core.is_leader:
            self.core.tick()
            finish(self.core, self.core.ready())
        self.clock = LogClock(self.core, self, MAX_MS)
        self.events: list[HaEvent] = []
        self.asked: list[Collection[int]] = []
        self.watch = ClockWatch(self.core, self.clock, self.events.append, self.ask, MAX_MS)

    def monotonic(self) -> float:
        return self.passed_us / 1e6

    def boottime_ns(self) -> int:
        return 1000 * self.passed_us

    def time_us(self) -> int:
        return NOW_US + self.passed_us + self.wrong_us

    def ask(self, candidates: Collection[int]) -> None:
        self.asked.append(candidates)

    def reply(self, peer: int, wrong_us: int = 0, round_trip_us: int = 1000) -> None:
        """A heartbeat's reply arrives from a member whose clock is this wrong."""
        sent_ns = self.boottime_ns()
        self.passed_us += round_trip_us
        their_us = NOW_US + self.passed_us - round_trip_us // 2 + wrong_us
        self.core.step(
            HeartbeatReply(1, peer, self.core.term, 0, sent_ns=sent_ns, time_us=their_us)
        )

    def stamp(self, last_us: int = 0) -> int:
        """How wrong the next entry's stamp is."""
        return self.clock.stamp(last_us) - NOW_US - self.passed_us


def test_a_leader_that_agrees_with_the_others_stamps_with_its_own_clock() -> None:
    scene = Scene()
    scene.reply(2, wrong_us=-40_000)
    scene.reply(3, wrong_us=70_000)
    assert scene.stamp() == 0
    scene.wrong_us = 90_000
    assert scene.stamp() == 90_000


@pytest.mark.parametrize("years_us", [YEARS_US, -30 * YEARS_US // 50])
def test_a_leader_whose_clock_jumps_stamps_with_the_others_clocks(years_us: int) -> None:
    scene = Scene()
    scene.reply(2)
    scene.reply(3, wrong_us=20_000)
    before = scene.stamp()
    scene.wrong_us = years_us
    assert abs(scene.stamp(before) - before) <= 20_000
    scene.watch.on_tick(lambda node_id: True)
    assert scene.asked == [[2, 3]], "it hands over"
    assert [type(event) for event in scene.events] == [ClockWrong]
    assert not scene.watch.is_right(1)
    assert abs(scene.watch.offset_ms(1) - years_us // 1000) <= 20
    scene.wrong_us = 0
    scene.watch.on_tick(lambda node_id: True)
    assert type(scene.events[-1]) is ClockRight
    assert len(scene.asked) == 1
    assert scene.stamp() == 0


def test_a_follower_with_a_wrong_clock_is_reported_once_and_moves_nothing() -> None:
    scene = Scene()
    scene.reply(2)
    scene.reply(3, wrong_us=YEARS_US)
    for _ in range(3):
        scene.watch.on_tick(lambda node_id: True)
    (event,) = scene.events
    assert isinstance(event, ClockWrong)
    assert event.node_id == 3
    assert scene.stamp() == 0
    assert not scene.asked
    assert scene.watch.is_right(2)
    assert not scene.watch.is_right(3)


@pytest.mark.parametrize("wrong_us", [YEARS_US, -YEARS_US // 2])
def test_of_two_clocks_the_one_closer_to_log_time_is_believed(wrong_us: int) -> None:
    scene = Scene()
    scene.core.propose(b"", 1, NOW_US)
    scene.reply(2)
    scene.wrong_us = wrong_us
    assert abs(scene.stamp()) <= 1000
    scene.watch.on_tick(lambda node_id: True)
    assert not scene.asked, "one against one is no majority"


def test_of_two_clocks_in_a_new_cluster_the_one_behind_is_believed() -> None:
    scene = Scene()
    scene.reply(2, wrong_us=-YEARS_US // 2)
    assert scene.stamp() < -YEARS_US // 3


def test_a_sole_voter_believes_a_step_of_its_clock_only_once_it_has_lasted() -> None:
    scene = Scene(voters=1)
    assert scene.stamp() == 0
    scene.wrong_us = YEARS_US
    assert scene.stamp() == 0
    scene.wrong_us = 0
    scene.watch.on_tick(lambda node_id: True)
    scene.wrong_us = YEARS_US
    assert scene.stamp() == 0
    scene.watch.on_tick(lambda node_id: True)
    assert [type(event) for event in scene.events] == [ClockWrong]
    scene.passed_us += BELIEVED_AFTER_S * 1_000_000
    assert scene.stamp() == YEARS_US
    scene.watch.on_tick(lambda node_id: True)
    assert type(scene.events[-1]) is ClockRight


def test_log_time_that_is_ahead_runs_at_half_speed_and_never_stands_still() -> None:
    scene = Scene()
    scene.reply(2)
    ahead = last = NOW_US + YEARS_US
    scene.clock.begin()
    for _ in range(10):
        scene.passed_us += 1_000_000
        last = scene.clock.stamp(last)
    assert last == ahead + 5_000_000


def test_votes_bring_readings_before_the_first_entry() -> None:
    scene = Scene()
    raft = core(clock_ns=scene.boottime_ns)
    scene.passed_us += 1_000_000
    for _ in range(1000):
        raft.tick()
        if raft.role.value == "pre_candidate":
            break
    scene.passed_us += 2_000
    raft.step(VoteReply(1, 2, raft.term + 1, True, True, 0, NOW_US + YEARS_US))
    assert raft.clocks.by_member[2].error_us == 1_001
    assert raft.clocks.by_member[2].base_us == NOW_US + YEARS_US - 2_001_000


def test_a_new_leader_examines_its_clock_before_its_first_stamp() -> None:
    scene = Scene()
    scene.reply(2)
    scene.reply(3)
    assert scene.stamp() == 0
    for peer in (2, 3):
        scene.core.clocks.by_member[peer] = scene.core.clocks.by_member[peer]._replace(
            base_us=NOW_US - YEARS_US // 2
        )
    assert scene.stamp() == 0, "it goes by the last examination until the next tick"
    scene.core._election.term += 1
    assert scene.stamp() < 0


def test_a_reading_with_a_longer_round_trip_replaces_only_what_is_old_or_was_stepped() -> None:
    scene = Scene()
    scene.reply(2)
    first = scene.core.clocks.by_member[2]
    scene.reply(2, round_trip_us=400_000)
    assert scene.core.clocks.by_member[2] == first
    scene.reply(2, wrong_us=YEARS_US, round_trip_us=400_000)
    assert scene.core.clocks.by_member[2].base_us > first.base_us + YEARS_US // 2
    scene.passed_us += KEPT_US
    scene.reply(2, wrong_us=YEARS_US, round_trip_us=500_000)
    assert scene.core.clocks.by_member[2].error_us == 250_001


def test_old_readings_and_those_of_former_members_do_not_count() -> None:
    scene = Scene()
    scene.reply(2, wrong_us=YEARS_US)
    assert 2 in scene.clock.examine().offsets_us
    scene.passed_us += READING_S * 1_000_000 + 1
    assert 2 not in scene.clock.examine().offsets_us
    scene.core.clocks.record(77, scene.boottime_ns() - 1000, NOW_US)
    assert 77 not in scene.clock.examine().offsets_us


@pytest.mark.parametrize("asked_ns", [0, 10_001])
def test_an_echo_that_cannot_be_true_is_no_reading(asked_ns: int) -> None:
    readings = ClockReadings(lambda: 10_000, lambda: -5)
    readings.record(2, asked_ns, NOW_US)
    readings.record(2, 5_000, 0)
    assert not readings.by_member
    assert readings.own_us() == 0
