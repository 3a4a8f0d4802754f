"""What the next backup builds on, which member takes it, and when a full one is due instead."""

from __future__ import annotations

from raftha.config import BackupConfig
from raftha.node.messages import BackupAction
from tests.support.backup_scene import HOUR_S, Scene, with_first

FULL, INCREMENTAL, DIFFERENTIAL = "full", "incremental", "differential"
DAY_S = 24 * HOUR_S


def test_without_the_changes_since_the_parent_it_is_full() -> None:
    scene = with_first()
    for node in scene.nodes.values():
        node.work.spool_index = None
    scene.pass_time(2)
    scene.trigger(1)
    assert scene.running.mode == FULL
    assert "has the changes since" in scene.running.reason


def test_a_member_that_has_the_changes_is_preferred() -> None:
    scene = with_first(standby=2)
    scene.nodes[2].work.spool_index = scene.index + 100
    scene.pass_time(2)
    scene.trigger(1)
    assert (scene.running.mode, scene.running.node) == (INCREMENTAL, 3)


def test_a_differential_one_builds_on_the_full_one() -> None:
    scene = with_first()
    (full,) = scene.catalog.records()
    for _ in range(2):
        scene.trigger(1, DIFFERENTIAL)
        assert (scene.running.parent, scene.running.mode) == (full.id, DIFFERENTIAL)
        scene.complete()


def test_a_full_one_is_due_every_week() -> None:
    scene = with_first(config=BackupConfig(interval_hours=24))
    modes = []
    for _ in range(8):
        scene.pass_time(DAY_S, step=600)
        record = scene.complete()
        scene.upkeep()
        modes.append(record.mode)
    assert modes == [INCREMENTAL] * 6 + [FULL, INCREMENTAL]
    assert "7 days old" in [r.reason for r in scene.catalog.records() if r.mode == FULL][-1]


def test_a_full_one_is_due_when_the_others_are_half_as_large() -> None:
    scene = with_first()
    for _ in range(2):
        scene.trigger(1)
        scene.complete(size_compressed=260)
    scene.trigger(1)
    assert (scene.running.mode, "half as large" in scene.running.reason) == (FULL, True)


def test_a_chain_has_at_most_28_links() -> None:
    scene = with_first()
    for _ in range(28):
        scene.trigger(1)
        assert scene.running.mode == INCREMENTAL
        scene.complete()
    scene.trigger(1)
    assert "28 backups build on" in scene.running.reason


def test_a_full_one_is_due_when_a_restore_would_take_too_long() -> None:
    scene = with_first()
    scene.trigger(1)
    scene.complete(size_bytes=400 * 150_000_000)
    scene.trigger(1)
    assert "a restore of the chain would take about 400 s" in scene.running.reason


BOTH = {"local": "backups/", "s3": "s3://bucket"}


def test_a_destination_that_was_away_gets_a_full_one_a_day_later() -> None:
    scene = Scene(config=BackupConfig(destinations=BOTH))
    scene.pass_time(3)
    first = scene.complete(destinations=("local",), errors=("s3: no route",))
    scene.upkeep()
    for _ in range(3):
        scene.trigger(1)
        assert (scene.running.mode, scene.running.destinations) == (INCREMENTAL, ("local",))
        second = scene.complete()
        scene.upkeep()
    assert second.base == first.id
    while scene.time_us < first.began_us + DAY_S * 1_000_000:
        scene.pass_time(600, step=60)
        scene.upkeep()
        if scene.catalog.running is not None and scene.running.mode == INCREMENTAL:
            second = scene.complete()
    scene.trigger(1)
    assert scene.running.mode == FULL
    assert scene.running.reason == f"s3 lacks what {second.label} builds on"
    assert scene.running.destinations == ("local", "s3")


def test_a_destination_that_stays_away_makes_no_backup_full() -> None:
    scene = with_first(config=BackupConfig(destinations=BOTH))
    (first,) = scene.catalog.records()
    scene.ask(1, BackupAction.APPLY_RETENTION)
    scene.pass_time(2)
    work = scene.nodes[1].work
    work.lists(found={first.id: ("local",)})
    scene.pass_time(2)
    scene.ask(1, BackupAction.APPLY_RETENTION)
    scene.pass_time(2)
    work.lists(errors={"s3": "no route"})
    scene.pass_time(2)
    scene.trigger(1)
    assert (scene.running.mode, scene.running.destinations) == (INCREMENTAL, ("local",))


def test_a_new_destination_gets_a_full_one_at_once() -> None:
    scene = with_first()
    (first,) = scene.catalog.records()
    leading = scene.nodes[1].backups._leading
    leading._config = leading._upkeep._config = BackupConfig(destinations=BOTH)
    scene.trigger(1)
    assert scene.running.reason == f"s3 lacks what {first.label} builds on"
