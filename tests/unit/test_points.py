"""Recovery points: when the leader notes one, what it says, and what a caller gets."""

from __future__ import annotations

from typing import Any

import pytest

from raftha.config import BackupConfig, PitrConfig
from raftha.errors import InvalidRequest, UpgradePending
from raftha.events import PitrCheckpoint
from raftha.node.backup.points import REQUEST_S, TRIES
from raftha.node.comparison import Outcome
from raftha.node.messages import BackupAction
from raftha.storage.state.catalog import Point
from tests.support.backup_scene import Scene

DIGEST = bytes([1]) * 32
LEADER = 1


def make(**fields: Any) -> Scene:
    scene = Scene(**{"protocol": 8, "sequence": 0, "config": BackupConfig(backup_from=("leader",)),
                     **fields})  # fmt: skip
    scene.pass_time(5)  # The first backup begins, and ends at the test's pleasure.
    return scene


def points(scene: Scene) -> list[Point]:
    return list(scene.catalog.points())


def end_comparison(scene: Scene, agreed: int = 3, *, after_s: float = 0.5) -> int:
    """The comparison under way ends; return its entry."""
    (index,) = scene.comparing
    scene.pass_time(after_s)
    scene.comparing.clear()
    node = scene.nodes[scene.leader or LEADER]
    position = node.state.applied._replace(index=index)
    node.outcome = Outcome(position, DIGEST if agreed else b"", agreed, 3)
    scene.pass_time(1)
    return index


def write(scene: Scene, log_bytes: int = 100) -> None:
    """A command is committed everywhere."""
    scene.sequence = (scene.sequence or 0) + 1
    scene.index += 1
    for node in scene.nodes.values():
        applied = node.state.applied
        node.state.applied = applied._replace(index=scene.index, last_sequence=scene.sequence)
        node.checkpoints.applied_bytes += log_bytes


# ---------------------------------------------------------------- on request


def test_a_caller_gets_a_point_at_which_the_states_were_compared() -> None:
    scene = make()
    write(scene)
    waiter = scene.ask(2, BackupAction.CHECKPOINT)
    scene.pass_time(1)
    assert waiter.result is None
    index = end_comparison(scene)
    (point,) = points(scene)
    assert waiter.result == point.noted > point.index == index
    assert (point.sequence, point.digest, point.agreed, point.voters) == (1, DIGEST, 3, 3)
    for node in scene.nodes.values():
        (event,) = node.events(PitrCheckpoint)
        assert (event.index, event.sequence, event.is_consistent) == (index, 1, True)


def test_an_older_comparison_is_no_answer() -> None:
    """The caller wants what it has written before the call to be in the point."""
    scene = make()
    write(scene)
    scene.ask(2, BackupAction.CHECKPOINT)
    scene.pass_time(1)
    second = scene.ask(3, BackupAction.CHECKPOINT)
    end_comparison(scene)
    assert second.result is None
    index = end_comparison(scene)
    assert second.result == points(scene)[-1].noted
    assert points(scene)[-1].index == index


def test_a_comparison_without_a_majority_is_tried_again_and_then_told() -> None:
    scene = make()
    waiter = scene.ask(2, BackupAction.CHECKPOINT)
    scene.pass_time(1)
    for left in range(TRIES, 0, -1):
        assert waiter.result is None, left
        end_comparison(scene, agreed=1)
        scene.pass_time(2)
    (point,) = points(scene)
    assert (waiter.result, point.is_consistent) == (point.noted, False)


def test_a_point_waits_for_the_archive() -> None:
    scene = make(archived=0)
    waiter = scene.ask(2, BackupAction.CHECKPOINT)
    scene.pass_time(1)
    index = end_comparison(scene)
    assert points(scene) == []
    scene.archived = index - 1
    scene.pass_time(1)
    assert points(scene) == []
    scene.archived = index
    scene.pass_time(1)
    assert [point.index for point in points(scene)] == [index]
    assert waiter.result == points(scene)[0].noted


def test_a_request_that_is_never_served_is_forgotten() -> None:
    """Its sender repeats it as long as it waits; else it would stand in the way for ever."""
    scene = make(archived=0)
    waiter = scene.ask(2, BackupAction.CHECKPOINT)
    scene.pass_time(1)
    end_comparison(scene)
    scene.nodes[2].backups._requests._operations.clear()
    scene.pass_time(REQUEST_S + 2)
    assert not scene.nodes[LEADER].backups._leading._queue
    assert waiter.result is None


def test_another_leader_makes_the_point() -> None:
    scene = make()
    waiter = scene.ask(3, BackupAction.CHECKPOINT)
    scene.pass_time(1)
    scene.comparing.clear()
    scene.elect(2)
    scene.pass_time(1)
    index = end_comparison(scene)
    assert waiter.result == points(scene)[-1].noted
    assert points(scene)[-1].index == index


def test_a_leader_without_settings_refuses() -> None:
    scene = make(config=None)
    waiter = scene.ask(1, BackupAction.CHECKPOINT)
    scene.pass_time(1)
    assert isinstance(waiter.result, InvalidRequest)
    assert "settings for recovery" in str(waiter.result)


def test_a_cluster_of_the_protocol_before_says_what_to_upgrade() -> None:
    scene = make(protocol=7)
    waiter = scene.ask(1, BackupAction.CHECKPOINT)
    assert isinstance(waiter.result, UpgradePending)
    assert waiter.result.nodes == (3,)


# ---------------------------------------------------------------- by the settings


def test_a_point_is_noted_each_interval_while_anything_is_written() -> None:
    scene = make()
    write(scene)
    scene.pass_time(50)
    assert not scene.comparing
    scene.pass_time(10)
    index = end_comparison(scene)
    assert [point.index for point in points(scene)] == [index]
    scene.pass_time(600)
    assert len(points(scene)) == 1, "nothing was written"
    write(scene)
    scene.pass_time(2)
    end_comparison(scene)
    assert len(points(scene)) == 2


def test_a_point_is_noted_after_so_much_log() -> None:
    scene = make()
    write(scene, PitrConfig().max_wal_size - 1)
    scene.pass_time(2)
    assert not scene.comparing
    write(scene, 1)
    scene.pass_time(2)
    end_comparison(scene)
    assert len(points(scene)) == 1


def test_the_settings_count(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = make(pitr=PitrConfig(checkpoint_interval_sec=5))
    write(scene)
    scene.pass_time(5)
    end_comparison(scene)
    assert len(points(scene)) == 1


def test_a_due_point_is_compared_only_if_that_takes_a_hundredth_of_the_time() -> None:
    scene = make()
    write(scene)
    scene.pass_time(56)
    end_comparison(scene, after_s=3)
    write(scene)
    scene.pass_time(61)
    assert not scene.comparing
    assert [point.is_consistent for point in points(scene)] == [True, False]
    assert points(scene)[-1].voters == 0
    for _ in range(7):
        write(scene)
        scene.pass_time(61)
    end_comparison(scene)
    assert [point.is_consistent for point in points(scene)].count(True) == 2


def test_without_comparisons_due_points_are_not_compared() -> None:
    scene = make(digest_interval_hours=0)
    write(scene)
    scene.pass_time(61)
    assert not scene.comparing
    assert [point.is_consistent for point in points(scene)] == [False]


def test_the_comparison_of_a_full_backup_is_a_point() -> None:
    scene = make()
    scene.complete()
    node = scene.nodes[LEADER]
    node.outcome = Outcome(node.state.applied, DIGEST, 3, 3)
    at = node.state.applied.index
    scene.pass_time(1)
    assert [(point.index, point.is_consistent) for point in points(scene)] == [(at, True)]


def test_a_comparison_without_a_majority_is_repeated_without_a_caller_too() -> None:
    """After a start or a recovery, members may be too busy to take a digest in time."""
    scene = make()
    write(scene)
    scene.pass_time(60)
    end_comparison(scene, agreed=1)
    assert points(scene) == []
    scene.pass_time(2)
    end_comparison(scene)
    assert [point.is_consistent for point in points(scene)] == [True]


@pytest.mark.parametrize("settings", [{"protocol": 7}, {"enable_pitr": False}])
def test_no_point_is_noted_where_recovery_is_off(settings: dict[str, Any]) -> None:
    scene = make(**settings)
    write(scene)
    scene.pass_time(200)
    assert not scene.comparing
    assert points(scene) == []
