"""Which node should lead: timeouts by region, and the way back to the preferred region."""

from __future__ import annotations

from collections.abc import Collection

from raftha.core import CoreConfig, Raft, RaftLog, Role, TimeoutNow, VoteReply, VoteRequest
from raftha.entry import LOG_START, HardState
from raftha.membership import Membership
from raftha.node.watch.placement import CALM_FACTOR, RETURN_AFTER_S, LeaderPlacement
from tests.support.core import (
    ELECTION_TICKS,
    acknowledge,
    become_leader,
    chain,
    follow,
    only,
    settle,
)

REGIONS = ("near", "far")


def core_in(regions: dict[int, str], *terms: int, node_id: int = 1, campaigns: bool = True) -> Raft:
    """A core of a cluster whose members are in these regions."""
    config = CoreConfig(
        node_id=node_id,
        heartbeat_ticks=2,
        election_ticks=ELECTION_TICKS,
        campaigns=campaigns,
        regions=REGIONS,
    )
    membership = Membership.first({i: f"127.0.0.1:{7100 + i}" for i in regions}, regions)
    log = RaftLog(1, LOG_START, chain(*terms), 1 << 20, membership)
    return Raft(config, HardState(terms[-1] if terms else 0, 0, 0), log, lambda below: 0)


def ticks_until_it_campaigns(raft: Raft) -> int:
    for ticks in range(1, 10 * ELECTION_TICKS):
        raft.tick()
        if raft.role is not Role.FOLLOWER:
            return ticks
    raise AssertionError("it never campaigned")


def test_a_voter_of_a_less_preferred_region_campaigns_later() -> None:
    near = core_in({1: "near", 2: "near", 3: "far"})
    far = core_in({1: "far", 2: "near", 3: "near"})
    only_far = core_in({1: "far", 2: "far", 3: "far"})
    for raft in (near, far, only_far):
        follow(raft)
    assert ticks_until_it_campaigns(near) == ELECTION_TICKS
    assert ticks_until_it_campaigns(far) == ELECTION_TICKS + ELECTION_TICKS // 2
    assert ticks_until_it_campaigns(only_far) == ELECTION_TICKS, "no other region is better"


def test_a_lost_connection_is_alike_unless_only_the_leader_was_better() -> None:
    near = core_in({1: "near", 2: "near", 3: "far"})
    far = core_in({1: "far", 2: "near", 3: "near"})
    last = core_in({1: "far", 2: "near", 3: "far"})
    for raft in (near, far, last):
        follow(raft)
        raft.disconnected(2)
    assert ticks_until_it_campaigns(near) < ticks_until_it_campaigns(far)
    assert ticks_until_it_campaigns(last) == 1


def test_without_automatic_failover_a_follower_never_campaigns_by_itself() -> None:
    raft = core_in(dict.fromkeys((1, 2, 3), "near"), 1, campaigns=False)
    follow(raft, term=1)
    for _ in range(10 * ELECTION_TICKS):
        raft.tick()
        assert only(VoteRequest, settle(raft)) == []
    assert raft.leader is None
    assert raft.role is Role.FOLLOWER


def test_without_automatic_failover_the_first_leader_is_still_elected() -> None:
    raft = core_in(dict.fromkeys((1, 2, 3), "near"), campaigns=False)
    ticks_until_it_campaigns(raft)
    alone = core_in({1: "near"}, 1, campaigns=False)
    ticks_until_it_campaigns(alone)


def test_an_operator_makes_a_follower_campaign_until_it_gives_up() -> None:
    raft = core_in(dict.fromkeys((1, 2, 3), "near"), 1, campaigns=False)
    follow(raft, term=1)
    raft.campaign()
    assert only(VoteRequest, settle(raft)) == [], "it has a leader"
    raft.disconnected(2)
    raft.campaign()
    assert [request.pre for request in only(VoteRequest, settle(raft))] == [True, True]
    for _ in range(3 * ELECTION_TICKS):
        raft.tick()
    assert raft.role is Role.FOLLOWER
    raft.campaign()
    raft.step(VoteReply(1, 2, 2, True, True))
    settle(raft)
    raft.step(VoteReply(1, 2, 2, True, False))
    assert raft.is_leader


def test_without_automatic_failover_a_leader_still_hands_over() -> None:
    raft = core_in(dict.fromkeys((1, 2, 3), "near"), 1, campaigns=False)
    follow(raft, term=1)
    raft.step(TimeoutNow(1, 2, 1))
    assert raft.role is Role.CANDIDATE


class Watched:
    """A leader, node 1 in the far region, ticked twice a second by a clock that the test moves."""

    def __init__(self) -> None:
        self.raft = core_in({1: "far", 2: "near", 3: "far"})
        become_leader(self.raft)
        acknowledge(self.raft, 2)
        self.now = 1000.0
        self.unwell: set[int] = set()
        self.handed_at: list[float] = []
        self.preference = LeaderPlacement(self.raft, REGIONS, self._hand_over)

    def _hand_over(self, candidates: Collection[int]) -> None:
        assert list(candidates) == [2]
        self.handed_at.append(self.now)

    def run(self, seconds: float) -> None:
        for _ in range(int(2 * seconds)):
            self.now += 0.5
            self.preference.on_tick(self.now, lambda node: node not in self.unwell)


def test_leadership_returns_to_the_preferred_region_once_it_stays_fit() -> None:
    watched = Watched()
    watched.run(RETURN_AFTER_S)
    assert watched.handed_at == []
    watched.run(1)
    assert len(watched.handed_at) == 1


def test_a_preferred_voter_with_gaps_in_its_health_does_not_get_leadership() -> None:
    watched = Watched()
    for _ in range(5):
        watched.run(RETURN_AFTER_S - 1)
        watched.unwell = {2}
        watched.run(1)
        watched.unwell = set()
    assert watched.handed_at == []


def test_a_preferred_voter_that_lags_does_not_get_leadership() -> None:
    watched = Watched()
    watched.raft.propose(b"", 0, 0)
    settle(watched.raft)
    acknowledge(watched.raft, 3)
    assert watched.raft.log.commit == 2
    watched.run(3 * RETURN_AFTER_S)
    assert watched.handed_at == []


def test_failed_attempts_become_rarer_until_a_calm_period() -> None:
    watched = Watched()
    watched.run(16 * RETURN_AFTER_S)
    gaps = [b - a for a, b in zip(watched.handed_at, watched.handed_at[1:], strict=False)]
    assert len(gaps) == 3
    assert gaps == sorted(gaps)
    assert gaps[-1] > 3.5 * gaps[0]
    watched.unwell = {2}
    watched.run(CALM_FACTOR * 16 * RETURN_AFTER_S + 1)
    watched.unwell, before = set(), len(watched.handed_at)
    watched.run(RETURN_AFTER_S + 1)
    assert len(watched.handed_at) == before + 1


def test_a_leader_in_the_preferred_region_keeps_it() -> None:
    raft = core_in({1: "near", 2: "near", 3: "far"})
    become_leader(raft)
    preference = LeaderPlacement(raft, REGIONS, _refuse)
    for now in range(100):
        preference.on_tick(float(now), lambda node: True)


def _refuse(candidates: Collection[int]) -> None:
    raise AssertionError(f"it was handed over to {candidates}")
