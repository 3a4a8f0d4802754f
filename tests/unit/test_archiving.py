"""Which member archives, what members keep for it, and what they know: three nodes, one log."""

from __future__ import annotations

from typing import Any

import pytest

from raftha.config import BackupConfig, PitrConfig, RetentionPolicy
from raftha.events import ArchiveGapRecorded, ArchiveLagging, ArchiveResumed
from raftha.node.backup import archive_leading
from raftha.node.backup.archive_leading import AVOID_S, FAILED_S, LOST_S, MARK_AGAIN_S, MARK_S
from raftha.node.backup.archiving import CONFLICT_S, ORDERED_S, RETRY_MAX_S, TIDY_S
from raftha.node.checkpoints import LogCut
from raftha.storage.backup.archive import Place
from raftha.storage.backup.segments import SEGMENT_RAW_BYTES
from raftha.types import ArchiveStatus
from tests.support.backup_scene import T0_US, Archive, Scene, with_first


def make(**others: Any) -> Scene:
    """A cluster that archives, and has its first backup; nothing is archived yet."""
    scene = with_first(archives=True, protocol=8, **others)
    scene.pass_time(2)
    assert work(scene).orders
    return scene


def archiver(scene: Scene) -> int:
    """The member that has an order."""
    (found,) = [n.id for n in scene.nodes.values() if n.work.archive.orders]
    return found


def work(scene: Scene) -> Archive:
    return scene.nodes[archiver(scene)].work.archive


def write(scene: Scene, count: int = 1, *, size: int = 100) -> None:
    """Have so many entries committed, and applied by all."""
    for _ in range(count):
        core = scene.nodes[scene.leader or 1].core
        scene.append(core, b"", scene.time_us)
        scene.settle()
        for node in scene.nodes.values():
            node.checkpoints.applied_bytes += size


def status(scene: Scene, node_id: int = 1) -> ArchiveStatus:
    found = scene.nodes[node_id].backups.archiving.status
    assert found is not None
    return found


def archive_all(scene: Scene, **result: Any) -> None:
    """Have all archived, and what that leads to; then nothing is ordered."""
    for _ in range(5):
        scene.pass_time(1.5)
        for node in scene.nodes.values():
            for name in list(node.work.archive.orders):
                node.work.archive.finish(name, **result)
    assert status(scene).archived_index == scene.index


# ---------------------------------------------------------------- which member archives


def test_a_follower_archives_and_all_members_know_how_far_it_is() -> None:
    scene = make()
    assert archiver(scene) == 2
    order = work(scene).orders["local"]
    assert (order.is_new, order.lineage) == (True, "a" * 32)
    archive_all(scene)
    for node_id in scene.nodes:
        found = status(scene, node_id)
        assert (found.archiver, found.archived_index, found.rpo_ms) == (2, scene.index, 0)
        archiving = scene.nodes[node_id].backups.archiving
        assert archiving.is_archived(scene.index) and not archiving.is_archived(scene.index + 1)


def test_the_preferred_kind_of_member_archives() -> None:
    assert archiver(make(standby=3)) == 3
    assert archiver(make(config=BackupConfig(backup_from=("leader",)))) == 1


@pytest.mark.parametrize("change", [{"protocol": 7}, {"enable_pitr": False}, {"config": None}])
def test_nothing_is_archived_before_all_know_it_or_without_settings(change: Any) -> None:
    scene = Scene(**{"archives": True, "protocol": 8, **change})
    scene.pass_time(5)
    for node in scene.nodes.values():
        archiving = node.backups.archiving
        assert not node.work.archive.orders
        assert (archiving.status, archiving.held_index, archiving.archived_index) == (None,) * 3


def test_another_member_archives_when_the_archiver_is_gone() -> None:
    scene = make()
    archive_all(scene)
    scene.down.add(2)
    write(scene)
    scene.pass_time(6)
    assert archiver(scene) == 3
    assert work(scene).orders["local"].is_new, "the one before may have archived more"
    work(scene).finish()
    scene.down.clear()
    scene.pass_time(3)
    assert status(scene).archiver == 3, "it stays: each change costs a listing"


def test_an_archiver_without_a_leader_stops() -> None:
    scene = make()
    archive_all(scene)
    write(scene)
    scene.leader = None
    scene.pass_time(ORDERED_S + 1)
    work(scene).finish()
    write_index = scene.index
    scene.nodes[2].state.applied = scene.nodes[2].state.applied._replace(index=write_index + 5)
    scene.pass_time(5)
    assert not scene.nodes[2].work.archive.orders


def test_another_leader_keeps_the_archiver_and_knows_nothing_less() -> None:
    scene = make()
    archive_all(scene)
    before = status(scene, 3).archived_index
    scene.elect(3)
    assert status(scene, 3).archived_index == before
    write(scene)
    scene.pass_time(4)
    assert archiver(scene) == 2
    assert not work(scene).orders["local"].is_new


def test_an_archiver_that_gets_nothing_done_is_replaced() -> None:
    scene = make()
    for _ in range(round(2 * FAILED_S)):
        if not scene.nodes[2].work.archive.orders:
            break
        scene.nodes[2].work.archive.finish(archived=Place(0, 0, 0), error="no route")
        scene.pass_time(RETRY_MAX_S)
    assert archiver(scene) == 3
    assert AVOID_S > FAILED_S


# ---------------------------------------------------------------- when


def test_what_is_written_waits_no_longer_than_the_interval() -> None:
    scene = make(pitr=PitrConfig(archive_interval_ms=3000))
    archive_all(scene)
    write(scene)
    scene.pass_time(0.5)
    work(scene).finish()
    write(scene)
    scene.pass_time(2)
    assert not scene.nodes[2].work.archive.orders
    scene.pass_time(1)
    assert work(scene).orders["local"].through == scene.index


def test_much_log_does_not_wait() -> None:
    scene = make(pitr=PitrConfig(archive_interval_ms=60_000))
    work(scene).finish()
    write(scene)
    scene.pass_time(1)
    assert not scene.nodes[2].work.archive.orders
    write(scene, 2, size=SEGMENT_RAW_BYTES)
    scene.pass_time(1)
    assert archiver(scene) == 2


def test_what_one_job_has_left_follows_at_once() -> None:
    scene = make()
    work(scene).finish(archived=Place(5, 5, T0_US))
    assert work(scene).orders["local"].through == scene.index


def test_an_idle_cluster_archives_one_mark_an_hour() -> None:
    """One soon after the last write, and then one an hour, with the time in it."""
    scene = make(config=BackupConfig(interval_hours=8760))
    write(scene)
    scene.sequence = scene.index
    archive_all(scene)
    for expected in 2, 1:  # The first hour has a recovery point besides.
        index, puts = scene.index, 0
        for _ in range(round(MARK_AGAIN_S / 2)):
            scene.pass_time(2, step=2)
            for node in scene.nodes.values():
                if node.work.archive.orders:
                    node.work.archive.finish()
                    puts += 1
        assert scene.index - index == puts == expected
    assert scene.entries[-1].time_us > T0_US + (MARK_S + MARK_AGAIN_S) * 1e6


def test_an_error_is_tried_again_after_a_pause_and_a_conflict_after_a_longer_one() -> None:
    scene = make()
    for error, pause_s in ({"error": "no route"}, 3), ({"error": "x", "conflict": "x"}, CONFLICT_S):
        work(scene).finish(archived=Place(4, 4, T0_US), **error)
        assert status(scene, 3).destinations["local"].error == error["error"]
        assert status(scene, 3).archived_index == 4
        scene.pass_time(0.5)
        assert not scene.nodes[2].work.archive.orders
        scene.pass_time(pause_s)


def test_an_error_before_the_destination_was_listed_takes_nothing_back() -> None:
    scene = make()
    archive_all(scene)
    done = status(scene).archived_index
    scene.down.add(2)
    write(scene)
    scene.pass_time(6)
    work(scene).finish(archived=Place(0, 0, 0), start=0, error="no route")
    scene.pass_time(1)
    assert (status(scene).archived_index, status(scene).destinations["local"].error) == (
        done,
        "no route",
    )


def test_segments_are_merged_and_deleted_beside() -> None:
    scene = make()
    archive_all(scene)
    scene.pass_time(TIDY_S + 1)
    assert scene.nodes[2].work.archive.tidied
    assert not scene.nodes[3].work.archive.tidied


def test_each_destination_has_its_own_pace() -> None:
    places = {"far": "/far", "near": "/near"}
    scene = make(config=BackupConfig(destinations=places))
    work(scene).finish("near", verified=4)
    write(scene)
    work(scene).finish("near", verified=4)
    scene.pass_time(2)
    assert work(scene).orders["near"].through == scene.index
    assert work(scene).orders["far"].through < scene.index
    assert list(status(scene).destinations) == ["near"]
    work(scene).finish("far", archived=Place(3, 3, T0_US), verified=2)
    assert status(scene).destinations["far"].index == 3
    assert scene.nodes[3].backups.archiving.held_index == 4, "the others copy what one has"


# ---------------------------------------------------------------- what members keep


def test_a_member_keeps_all_log_until_it_knows_what_is_verified() -> None:
    scene = make()
    assert {n.backups.archiving.held_index for n in scene.nodes.values()} == {0}
    archive_all(scene, verified=4)
    assert {n.backups.archiving.held_index for n in scene.nodes.values()} == {4}
    scene.nodes[3].restart()
    assert scene.nodes[3].backups.archiving.held_index == 0
    scene.pass_time(2)
    assert scene.nodes[3].backups.archiving.held_index == 4
    scene.elect(3)
    scene.pass_time(2)
    assert scene.nodes[1].backups.archiving.held_index == 4


class FakeWal:
    """A log whose entries have 10 bytes each."""

    last, cut = 100, 0

    def index_within(self, bytes_max: int) -> int:
        return max(self.last - bytes_max // 10, 0)

    def compact(self, index: int) -> None:
        self.cut = index


@pytest.mark.parametrize(
    ("cut", "index"),
    [
        (LogCut(90, 90, 1000, 90, 1000), 90),
        (LogCut(90, 90, 1000, 40, 1000), 40),
        (LogCut(30, 90, 1000, 40, 1000), 30),
        (LogCut(90, 90, 1000, 40, 300), 70),
        (LogCut(30, 90, 1000, 40, 300), 30),
        (LogCut(30, 90, 500, 40, 300), 50),
        (LogCut(30, 90, 0, 40, 0), 90),
        (LogCut(30, 90, 1000, 40, 1000).at_once(), 90),
    ],
)
def test_the_log_is_kept_for_members_and_the_archive_each_within_its_limit(
    cut: LogCut, index: int
) -> None:
    wal: Any = FakeWal()
    cut.apply(wal)
    assert wal.cut == index


# ---------------------------------------------------------------- gaps


def test_a_member_whose_log_has_what_is_needed_archives_instead() -> None:
    scene = make()
    work(scene).finish(archived=Place(4, 4, T0_US))
    scene.first_index = {1: 8, 2: 8, 3: 5}
    scene.pass_time(0.6)
    scene.nodes[2].work.archive.finish(archived=Place(4, 4, T0_US), needs=8)
    scene.pass_time(3)
    assert archiver(scene) == 3
    assert work(scene).orders["local"].lost_index <= 4


def test_what_no_member_has_is_given_up_and_reported_by_all() -> None:
    scene = make()
    work(scene).finish(archived=Place(4, 4, T0_US))
    scene.first_index = {1: 9, 2: 8, 3: 9}
    scene.pass_time(0.6)
    scene.nodes[2].work.archive.finish(archived=Place(4, 4, T0_US), needs=8)
    scene.pass_time(2)
    assert work(scene).orders["local"].lost_index == 7
    work(scene).finish(archived=Place(10, 10, T0_US), start=8, gaps=((5, 7),))
    scene.pass_time(2)
    for node in scene.nodes.values():
        (event,) = node.events(ArchiveGapRecorded)
        assert (event.first_index, event.last_index) == (5, 7)
        found = node.backups.archiving.status
        assert found is not None and found.gaps == 1


def test_a_member_that_is_silent_may_have_it_for_a_while() -> None:
    scene = make()
    work(scene).finish(archived=Place(4, 4, T0_US))
    scene.down.add(3)
    scene.elect(1)
    scene.first_index = {1: 9, 2: 8}
    scene.pass_time(LOST_S - 2)
    assert work(scene).orders["local"].lost_index == 0
    for _ in range(3):
        work(scene).finish(archived=Place(4, 4, T0_US), needs=8)
        scene.pass_time(1.5)
    assert work(scene).orders["local"].lost_index == 7


def test_a_backup_begins_at_once_after_a_gap() -> None:
    scene = make()
    newest = scene.catalog.newest("a" * 32)
    assert newest is not None
    start = newest.position_index + 5
    work(scene).finish(start=start)
    scene.pass_time(3)
    assert scene.running.reason == f"the archive of the log has a gap before entry {start}"


# ---------------------------------------------------------------- how old it is


def test_the_age_is_that_of_the_oldest_command_that_is_not_archived() -> None:
    scene = make()
    archive_all(scene)
    write(scene)
    scene.pass_time(2)
    assert [status(scene, n).rpo_ms for n in scene.nodes] == [2000] * 3
    scene.pass_time(3)
    write(scene)
    assert status(scene, 3).rpo_ms == 5000
    assert status(scene).backlog_bytes == 200
    work(scene).finish()
    scene.pass_time(0.5)
    assert 0 <= status(scene).rpo_ms <= 1000


def test_entries_without_commands_make_nothing_old() -> None:
    scene = make()
    archive_all(scene)
    scene.sequence = scene.nodes[1].state.applied.last_sequence
    write(scene)
    scene.pass_time(60)
    assert status(scene).rpo_ms == 0


def test_an_archive_that_lags_is_reported_and_its_end_too() -> None:
    scene = make()
    archive_all(scene)
    done = status(scene)
    for node in scene.nodes.values():
        node.host.events.clear()
    write(scene)
    scene.pass_time(5)
    place = Place(done.archived_index, done.archived_sequence, T0_US)
    work(scene).finish(archived=place, error="no route")
    scene.pass_time(10)
    for node in scene.nodes.values():
        (event,) = node.events(ArchiveLagging)
        assert (event.reason, event.sequence) == ("no route", done.archived_sequence)
        assert event.rpo_ms >= 10_000
    work(scene).finish()
    scene.pass_time(2)
    assert all(len(node.events(ArchiveResumed)) == 1 for node in scene.nodes.values())


def test_members_report_each_second() -> None:
    assert archive_leading.REPORT_S == 1.0


# ---------------------------------------------------------------- the window


def test_the_first_backup_of_the_window_stays_whatever_the_policy_says() -> None:
    policy = RetentionPolicy(
        keep_last=1, keep_daily_days=0, keep_weekly_weeks=0, keep_monthly_months=0
    )
    scene = make(config=BackupConfig(retention=policy), pitr=PitrConfig(retention_hours=1))
    (first,) = scene.catalog.records()
    for waits_s, stays in (600, True), (7200, False):
        scene.pass_time(waits_s, step=2.5)
        scene.trigger(1, "full")
        scene.complete()
        scene.upkeep()
        scene.upkeep()
        record = scene.catalog.get(first.id)
        assert (record is not None and record.state == "completed") is stays
