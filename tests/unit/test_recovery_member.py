"""A node in front of a RESTORE: with the prepared state, with another one, and without any."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from raftha.entry import Entry
from raftha.events import HaEvent
from raftha.membership import Membership
from raftha.node.messages import RecoveryReport
from raftha.node.recovery.member import LEADER_WAIT_S, REPORT_S, Member, Stage
from raftha.storage.directory.restoring import PreparedState
from raftha.storage.state.catalog import Abort
from raftha.storage.state.state import State
from tests.sim.store import DictStore
from tests.support.backup_scene import RecoveryWork
from tests.support.state_bench import Kit
from tests.unit import test_recoveries


@dataclass
class Progress:
    applied: int = 0
    is_active: bool = True
    was_active: bool = False


@dataclass
class Log:
    commit: int = 0
    known_commit: int = 0


@dataclass
class Core:
    """What a member sees of its core."""

    id: int = 1
    is_leader: bool = False
    leader: int | None = 2
    membership: Membership = field(
        default_factory=lambda: Membership.first({i: f"127.0.0.1:{7100 + i}" for i in (1, 2, 3)})
    )
    progress: dict[int, Progress] = field(default_factory=dict)
    log: Log = field(default_factory=Log)


class Scene:
    """A member whose state is about to apply a RESTORE."""

    def __init__(self) -> None:
        self.history = test_recoveries.Scene()
        self.recovery_id = self.history.prepare(1)
        self.core, self.work, self.now = Core(), RecoveryWork(), 100.0
        self.reports: list[RecoveryReport] = []
        self.events: list[HaEvent] = []
        self.handed_over: list[Collection[int]] = []
        self.member = Member(
            cast(Any, self.core),
            self.history.state,
            lambda: self.work,
            send=self.reports.append,
            emit=self.events.append,
            hand_over=self.handed_over.append,
            now=lambda: self.now,
        )

    def prepare(self, digest: str = "d") -> None:
        self.work.prepared = PreparedState(self.recovery_id, digest, 1)

    def meet(self, digest: str = "d") -> Entry:
        """The state stands in front of the RESTORE."""
        entry = self.history.restore(self.recovery_id, digest)
        assert self.member.on_restore(entry)
        return entry

    def pass_time(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now += 0.25
            self.member.on_tick(self.now)

    def lead(self, *others: int) -> None:
        """This node leads, and these other voters answer."""
        self.core.is_leader, self.core.leader = True, 1
        self.core.progress = {peer: Progress() for peer in others}

    @property
    def stages(self) -> list[Stage]:
        return [Stage(report.stage) for report in self.reports]


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_a_follower_goes_on_with_the_state_that_it_has_prepared(scene: Scene) -> None:
    scene.prepare()
    entry = scene.meet()
    ((recovery_id, meta),) = scene.work.restored
    assert recovery_id == scene.recovery_id
    image = DictStore()
    image.write((), meta)
    assert State(image, Kit()).applied == entry.position
    scene.pass_time(5)
    assert len(scene.work.restored) == 1
    assert scene.reports == [], "it is about to end"


def test_another_state_than_that_of_the_entry_is_not_used(scene: Scene) -> None:
    scene.prepare("another")
    scene.meet()
    scene.pass_time(1)
    assert (scene.work.restored, scene.work.discarded) == ([], 1)
    assert scene.stages[-1] is Stage.STOPPED
    assert scene.work.builds == 1, "it tries to build the right one"
    scene.work.built("d")
    assert len(scene.work.restored) == 1


def test_a_member_without_the_state_says_so_each_second(scene: Scene) -> None:
    scene.meet()
    scene.pass_time(5 * REPORT_S)
    assert scene.stages[-4:] == [Stage.STOPPED] * 4
    assert scene.reports[-1].recovery_id == scene.recovery_id


def test_a_restore_that_the_catalog_refuses_is_no_stop(scene: Scene) -> None:
    assert scene.history.admin(Abort(scene.recovery_id, "x")) == ""
    entry = scene.history.restore(scene.recovery_id)
    assert not scene.member.on_restore(entry)
    scene.pass_time(2)
    assert Stage.STOPPED not in scene.stages


def test_a_leader_lets_others_go_first_and_hands_over(scene: Scene) -> None:
    scene.prepare()
    scene.lead(2, 3)
    entry = scene.meet()
    scene.pass_time(1)
    assert (scene.work.restored, scene.handed_over) == ([], [])
    scene.core.progress[3].applied = entry.index
    scene.pass_time(0.25)
    assert scene.handed_over == [{3}]
    scene.core.is_leader = False
    scene.pass_time(0.25)
    assert len(scene.work.restored) == 1


def test_a_leader_waits_for_others_only_for_a_moment(scene: Scene) -> None:
    scene.prepare()
    scene.lead(2, 3)
    scene.meet()
    scene.pass_time(LEADER_WAIT_S - 0.25)
    assert scene.work.restored == []
    scene.pass_time(0.5)
    assert len(scene.work.restored) == 1


@pytest.mark.parametrize("others", [(), (2,)])
def test_a_leader_waits_for_none_that_is_silent(scene: Scene, others: tuple[int, ...]) -> None:
    scene.prepare()
    scene.lead(*others)
    for progress in scene.core.progress.values():
        progress.is_active = False
    scene.meet()
    assert len(scene.work.restored) == 1


def test_a_leader_without_the_state_hands_over_to_one_that_is_behind_the_entry(
    scene: Scene,
) -> None:
    scene.lead(2, 3)
    entry = scene.meet()
    scene.pass_time(2 * LEADER_WAIT_S)
    assert (scene.work.restored, scene.handed_over) == ([], [])
    scene.core.progress[2].applied = entry.index
    scene.pass_time(0.25)
    assert scene.handed_over == [{2}]


def test_a_learner_is_no_one_to_hand_over_to(scene: Scene) -> None:
    scene.prepare()
    scene.lead(2, 9)
    entry = scene.meet()
    scene.core.progress[9].applied = entry.index
    scene.pass_time(1)
    assert scene.handed_over == []
    assert scene.member.ahead(entry.index) == set()


def test_progress_is_shown_while_the_state_is_built(scene: Scene) -> None:
    scene.pass_time(1)
    assert scene.work.progress is not None
    scene.work.progress(5, 20)
    assert scene.member.progress == (Stage.BUILDING, 5, 20, "")
    scene.work.failed("no space")
    scene.pass_time(1)
    assert scene.member.progress == (Stage.BUILDING, 5, 20, "no space")
    assert scene.reports[-1].error == "no space"
