"""The comparison of members' states: which have diverged, what follows, when it is repeated."""

from __future__ import annotations

from typing import Any, cast

import pytest

from raftha.config import HaConfig
from raftha.entry import LogPosition
from raftha.events import HaEvent, ReplicaDiverged
from raftha.membership import Membership
from raftha.node.messages import DigestReport, DigestRequest, DigestVerdict
from raftha.node.watch.divergence import RETRY_S, ROUND_S, DivergenceWatch
from raftha.storage.state.state import StateDigest

HOUR_S = 3600.0
INDEX = 8
SAME, OTHER, THIRD = (bytes([n]) * 32 for n in (1, 2, 3))
FORM = StateDigest("", 0, SAME).form


class Core:
    """A leader, or a follower of node 2, whose log ends at entry 7."""

    id = 1
    is_leader = True
    can_propose = True

    def __init__(self, size: int) -> None:
        addresses = {n: f"127.0.0.1:{7100 + n}" for n in range(1, size + 1)}
        self.membership = Membership.first(addresses, {})
        self.log = self
        self.last_index = INDEX - 1
        self.leader = 1

    @property
    def last(self) -> LogPosition:
        return LogPosition(self.last_index, 1, 1000, 70, bytes(16))

    def propose(self, payload: bytes, count: int, time_us: int) -> int:
        self.last_index += 1
        return self.last_index


class Host:
    """Keeps what is sent; all members but the `lost` ones are connected."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.events: list[HaEvent] = []
        self.lost: set[int] = set()
        self.healed: list[str] = []

    def send(self, message: Any) -> None:
        self.sent.append(message)

    def emit(self, event: HaEvent) -> None:
        self.events.append(event)

    def is_connected(self, peer: int) -> bool:
        return peer not in self.lost

    def heal_state(self, detail: str) -> None:
        self.healed.append(detail)


class Checkpoints:
    """Digests of any entry are coming, unless they are missed."""

    is_missed = False

    def compare_at(self, index: int) -> None:
        pass

    def is_coming(self, index: int) -> bool:
        return not self.is_missed


class Scene:
    """Node 1 of a cluster, and the time."""

    def __init__(self, size: int = 3, hours: float = 24) -> None:
        self.core, self.host, self.checkpoints = Core(size), Host(), Checkpoints()
        config = HaConfig(
            node_id=1,
            data_dir="unused",
            members={n: f"127.0.0.1:{7100 + n}" for n in range(1, size + 1)},
            digest_interval_hours=hours,
        )
        parts = cast(Any, (config, self.core, self.host, self.checkpoints, 0.0))
        self.watch = DivergenceWatch(*parts)
        self.now = 0.0

    def compare(self, answers: dict[int, bytes], after_s: float = HOUR_S) -> list[DigestVerdict]:
        """Have a comparison after this time; return the verdicts sent."""
        self.now += after_s
        self.host.sent.clear()
        self.host.events.clear()
        self.watch.on_tick(self.now)
        index = self.core.last_index
        requests = [m for m in self.host.sent if isinstance(m, DigestRequest)]
        assert {m.to for m in requests} == self.core.membership.members.keys() - {
            1
        } - self.host.lost
        assert {m.index for m in requests} == {index}
        for node_id, digest in answers.items():
            self.answer(node_id, index, digest)
        self.watch.on_tick(self.now)
        return [m for m in self.host.sent if isinstance(m, DigestVerdict)]

    def answer(self, node_id: int, index: int, digest: bytes, kind: int = FORM) -> None:
        if node_id == 1:
            self.watch.on_digest(index, StateDigest("", 0, digest) if digest else None)
        else:
            self.watch.on_message(DigestReport(1, node_id, index, kind, digest), self.now)

    @property
    def is_due(self) -> bool:
        """Whether a comparison begins now."""
        before = self.core.last_index
        self.watch.on_tick(self.now)
        return self.core.last_index > before

    @property
    def event(self) -> ReplicaDiverged:
        (event,) = self.host.events
        assert isinstance(event, ReplicaDiverged)
        return event


def test_equal_states_are_compared_again_after_the_interval() -> None:
    scene = Scene()
    verdicts = scene.compare({1: SAME, 2: SAME, 3: SAME})
    assert {(v.to, v.digest, v.diverged, v.heals) for v in verdicts} == {
        (2, SAME, (), False),
        (3, SAME, (), False),
    }
    assert scene.watch.last == (INDEX, ())
    assert not scene.host.events
    scene.now += 23.9 * HOUR_S
    assert not scene.is_due
    scene.now += 0.2 * HOUR_S
    assert scene.is_due


def test_a_minority_replaces_its_state() -> None:
    scene = Scene()
    verdicts = scene.compare({1: SAME, 2: SAME, 3: OTHER})
    assert [(v.to, v.heals) for v in verdicts] == [(2, False), (3, True)]
    assert (scene.event.diverged, scene.event.heals) == ((3,), True)
    assert scene.watch.last.diverged == (3,)


def test_a_leader_in_the_minority_replaces_its_own_state() -> None:
    scene = Scene()
    scene.compare({1: OTHER, 2: SAME, 3: SAME})
    assert scene.event.diverged == (1,)
    assert scene.host.healed == [f"it differs from a majority's as of entry {INDEX}"]


@pytest.mark.parametrize("answers", [{1: SAME, 2: OTHER, 3: THIRD}, {1: SAME, 2: OTHER, 3: b""}])
def test_without_a_majority_nothing_is_replaced(answers: dict[int, bytes]) -> None:
    scene = Scene()
    verdicts = scene.compare(answers)
    assert not any(verdict.heals for verdict in verdicts)
    assert not scene.host.healed
    assert not scene.event.heals
    assert "no majority" in scene.event.detail
    assert scene.watch.last.diverged == tuple(n for n, digest in answers.items() if digest)


def test_two_voters_that_differ_are_no_majority() -> None:
    scene = Scene(size=2)
    scene.compare({1: SAME, 2: OTHER})
    assert not scene.event.heals


def test_a_node_alone_compares_nothing() -> None:
    scene = Scene(size=1)
    scene.now = HOUR_S
    assert not scene.is_due


def test_an_interval_of_zero_compares_nothing() -> None:
    scene = Scene(hours=0)
    scene.now = 1000 * HOUR_S
    assert not scene.is_due


def test_a_comparison_with_a_digest_that_was_missed_is_tried_again_later_and_later() -> None:
    scene = Scene()
    scene.compare({1: SAME, 2: SAME, 3: b""})
    assert not scene.host.events
    for pause_s in (RETRY_S, 2 * RETRY_S, 4 * RETRY_S):
        scene.now += pause_s - 1
        assert not scene.is_due
        scene.compare({1: SAME, 2: SAME, 3: b""}, after_s=1)


def test_a_member_that_is_not_connected_is_not_awaited() -> None:
    scene = Scene()
    scene.host.lost = {3}
    scene.compare({1: SAME, 2: SAME})
    assert scene.watch.last == (INDEX, ())


def test_a_comparison_ends_without_the_answer_of_a_member_that_stays_silent() -> None:
    scene = Scene()
    assert not scene.compare({1: SAME, 2: SAME})
    scene.now += ROUND_S
    scene.watch.on_tick(scene.now)
    assert scene.watch.last == (INDEX, ())


def test_states_in_different_formats_are_not_compared() -> None:
    scene = Scene()
    scene.compare({1: SAME, 2: SAME})
    scene.answer(3, INDEX, OTHER, kind=FORM + 1)
    scene.watch.on_tick(scene.now)
    assert scene.watch.last == (INDEX, ())
    assert not scene.host.events


def test_a_member_that_diverges_again_is_left_alone_until_the_interval_is_over() -> None:
    scene = Scene()
    scene.compare({1: SAME, 2: SAME, 3: OTHER})
    verdicts = scene.compare({1: SAME, 2: SAME, 3: OTHER}, after_s=RETRY_S)
    assert not any(verdict.heals for verdict in verdicts)
    assert "again" in scene.event.detail
    verdicts = scene.compare({1: SAME, 2: SAME, 3: OTHER}, after_s=24 * HOUR_S)
    assert verdicts[1].heals


def test_a_follower_that_can_take_no_digest_says_so_at_once() -> None:
    scene = Scene()
    scene.core.is_leader, scene.checkpoints.is_missed = False, True
    scene.watch.on_message(DigestRequest(1, 2, INDEX), 0.0)
    assert scene.host.sent == [DigestReport(2, 1, INDEX, 0, b"")]


@pytest.mark.parametrize(
    ("verdict", "heals"),
    [
        (DigestVerdict(1, 2, INDEX, OTHER, (1,), True), True),
        (DigestVerdict(1, 2, INDEX, OTHER, (1,), False), False),
        (DigestVerdict(1, 2, INDEX, SAME, (1,), True), False),
        (DigestVerdict(1, 2, INDEX - 1, OTHER, (1,), True), False),
        (DigestVerdict(1, 3, INDEX, OTHER, (1,), True), False),
    ],
)
def test_a_follower_obeys_its_leader_about_a_digest_that_it_took(
    verdict: DigestVerdict, heals: bool
) -> None:
    scene = Scene()
    scene.core.is_leader, scene.core.leader = False, 2
    scene.watch.on_message(DigestRequest(1, 2, INDEX), 0.0)
    scene.watch.on_digest(INDEX, StateDigest("", 0, SAME))
    scene.watch.on_message(verdict, 0.0)
    assert bool(scene.host.healed) is heals


# ---------------------------------------------------------------- on request


@pytest.mark.parametrize(
    ("answers", "digest", "agreed"),
    [
        ({1: SAME, 2: SAME, 3: SAME}, SAME, 3),
        ({1: SAME, 2: SAME, 3: OTHER}, SAME, 2),
        ({1: b"", 2: b"", 3: SAME}, SAME, 1),
        ({1: b"", 2: b"", 3: b""}, b"", 0),
    ],
)
def test_the_outcome_says_how_many_voters_agreed(
    answers: dict[int, bytes], digest: bytes, agreed: int
) -> None:
    scene = Scene()
    scene.compare(answers)
    outcome = scene.watch.outcome
    assert outcome is not None
    assert (outcome.position.index, outcome.position.last_sequence) == (INDEX, 70)
    assert (outcome.digest, outcome.agreed, outcome.voters) == (digest, agreed, 3)


def test_a_comparison_on_request_waits_for_the_one_under_way() -> None:
    scene = Scene(hours=0)
    propose = lambda: scene.core.propose(b"", 0, 0)  # noqa: E731
    assert scene.watch.compare_now(propose, 0.0) == INDEX
    assert scene.watch.compare_now(propose, 0.0) is None
    assert scene.core.last_index == INDEX
    for node_id in (1, 2, 3):
        scene.answer(node_id, INDEX, SAME)
    scene.watch.on_tick(1.0)
    assert scene.watch.compare_now(propose, 1.0) == INDEX + 1


def test_a_node_alone_has_an_outcome_on_request() -> None:
    scene = Scene(size=1)
    assert scene.watch.compare_now(lambda: scene.core.propose(b"", 0, 0), 0.0) == INDEX
    scene.answer(1, INDEX, SAME)
    scene.watch.on_tick(1.0)
    assert scene.watch.outcome is not None
    assert (scene.watch.outcome.agreed, scene.watch.outcome.voters) == (1, 1)
