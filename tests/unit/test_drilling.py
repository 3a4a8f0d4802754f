"""When drills are done, and by which member; and what the rates that they measure decide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from raftha.config import BackupConfig, HaConfig, PitrConfig
from raftha.events import HaEvent, RestoreDrillCompleted
from raftha.membership import Member, Membership
from raftha.node.backup.choosing import Candidate, choose, is_slow
from raftha.node.backup.drilling import ASK_S, Drilling
from raftha.node.statistics import Statistics
from raftha.recovery import DrillReport
from raftha.storage.backup.drill import DrillOrder
from raftha.storage.backup.recovery import Rates
from raftha.storage.state.catalog import COMPLETED, BackupRecord, Catalog

DAY_US, DAY_S = 86_400 * 10**6, 86_400
T0_US = 1_764_288_000_000_000
LINEAGE = "a" * 32


class Drills:
    """A `DrillWork` that a test answers for."""

    def __init__(self) -> None:
        self.asked: Callable[[DrillReport | None], None] | None = None
        self.order: DrillOrder | None = None
        self.done: Callable[[DrillReport], None] | None = None

    def last(self, lineage: str, done: Callable[[DrillReport | None], None]) -> None:
        assert lineage == LINEAGE and self.asked is None
        self.asked = done

    def run(self, order: DrillOrder, done: Callable[[DrillReport], None]) -> None:
        assert self.order is None
        self.order, self.done = order, done

    def answer(self, report: DrillReport | None) -> None:
        assert self.asked is not None
        asked, self.asked = self.asked, None
        asked(report)

    def finish(self, **fields: Any) -> None:
        assert self.order is not None and self.done is not None
        report = DrillReport(is_ok=True, started_us=self.order.started_us, lineage=LINEAGE)
        self.order = None
        self.done(replace(report, **fields))


class Scene:
    """Node 1, which archives the log or not."""

    def __init__(self, **pitr: Any) -> None:
        config = HaConfig(
            node_id=1,
            data_dir="unused",
            members={1: "127.0.0.1:7001"},
            backup=BackupConfig(),
            enable_pitr=True,
            pitr=PitrConfig(**pitr),
        )
        self.id, self.is_leader = 1, False
        member = Member("127.0.0.1:7001")
        self.membership = Membership({1: member}, frozenset(), "c" * 32, LINEAGE)
        self.events: list[HaEvent] = []
        self.emit = self.events.append
        self.work = self.drills = Drills()
        self.backups = self
        self.archiver: int | None = 1
        self.now_us = T0_US
        self.catalog = Catalog()
        self.catalog._records[5] = _backup(5)
        self.applied = self
        self.statistics = Statistics()
        self.index = 77
        scene: Any = self
        self.drilling = Drilling(
            config,
            scene,
            scene,
            scene,
            now_us=lambda: self.now_us,
            archiver=lambda: self.archiver,
        )

    def passes(self, days: float) -> None:
        """Time passes, and the node ticks."""
        self.now_us += round(days * DAY_US)
        self.drilling.on_tick((self.now_us - T0_US) / 10**6)


def _backup(number: int, parent: int = 0, **others: Any) -> BackupRecord:
    record = BackupRecord(
        id=number,
        mode="incremental" if parent else "full",
        parent=parent,
        base=5,
        lineage=LINEAGE,
        node=1,
        state=COMPLETED,
        destinations=("local",),
        began_us=T0_US,
        ended_us=T0_US,
        position_sequence=1000,
        size_bytes=1_000_000_000,
    )
    return record._replace(**others)


def test_the_first_drill_is_a_day_after_the_first_backup() -> None:
    scene = Scene()
    scene.passes(0.9)
    assert scene.work.asked is None
    scene.passes(0.2)
    scene.work.answer(None)
    scene.passes(0)
    order = scene.work.order
    assert order is not None
    assert (order.started_us, order.lineage, order.node_id) == (scene.now_us, LINEAGE, 1)
    scene.passes(1)
    assert scene.work.asked is None, "one at a time"
    scene.work.finish(sequence=7, restore_s=1.0, digest_s=0.5, replay_s=2.0)
    (event,) = scene.events
    assert isinstance(event, RestoreDrillCompleted)
    assert scene.statistics.drill == scene.drilling.last
    assert (event.is_ok, event.restore_s, event.replay_s) == (True, 1.5, 2.0)
    for _ in range(5):
        scene.passes(1)
        if scene.work.asked is not None:
            scene.work.answer(scene.drilling.last)
        scene.passes(0.001)
        assert scene.work.order is None
    scene.passes(1)
    scene.work.answer(scene.drilling.last)
    scene.passes(0.001)
    assert scene.work.order is not None


def test_another_members_drill_counts() -> None:
    scene = Scene()
    scene.passes(3)
    scene.work.answer(DrillReport(is_ok=True, started_us=T0_US + DAY_US))
    scene.passes(0.01)
    assert scene.work.order is None
    scene.passes(5.1)
    assert scene.work.asked is not None, "it may have been another member's turn meanwhile"
    scene.work.answer(DrillReport(is_ok=True, started_us=scene.now_us))
    scene.passes(0.01)
    assert scene.work.order is None


def test_one_that_fails_is_repeated_earlier() -> None:
    scene = Scene(drill_every_days=4)
    scene.passes(2)
    scene.work.answer(None)
    scene.passes(0)
    scene.work.finish(is_ok=False, error="it rots")
    assert isinstance(scene.events[0], RestoreDrillCompleted) and not scene.events[0].is_ok
    scene.passes(0.9)
    assert scene.work.order is None
    scene.passes(0.2)
    if scene.work.asked is not None:
        scene.work.answer(None)
        scene.passes(0)
    assert scene.work.order is not None


def test_only_the_member_that_archives_does_them_and_the_leader_asks_for_rates() -> None:
    scene = Scene()
    scene.archiver = 2
    scene.passes(5)
    assert scene.work.asked is None
    scene.is_leader = True
    scene.passes(0.1)
    measured = DrillReport(
        is_ok=True, started_us=T0_US, size_bytes=100 << 20, restore_s=2.0, commands=10**6,
        replay_s=10.0,
    )  # fmt: skip
    scene.work.answer(measured)
    assert scene.drilling.rates == (50 << 20, 100_000)
    scene.passes(0.1)
    assert scene.work.order is None and scene.work.asked is None
    scene.passes(ASK_S / DAY_S)
    assert scene.work.asked is not None


def test_none_is_done_without_settings_or_backups() -> None:
    scene = Scene(drill_every_days=0)
    scene.passes(30)
    assert scene.work.asked is None
    scene = Scene()
    scene.catalog._records.clear()
    scene.passes(30)
    assert scene.work.asked is None


def test_a_backup_is_due_early_when_a_restore_would_take_too_long() -> None:
    catalog = Catalog()
    catalog._records[5] = _backup(5)
    config = BackupConfig(rto_target_s=100)
    rates = Rates(restore_bytes_per_s=20_000_000, replay_commands_per_s=10_000)
    # 50 s for the backup, and what the log takes.
    assert not is_slow(config, catalog, LINEAGE, 1000 + 490_000, rates)
    assert is_slow(config, catalog, LINEAGE, 1000 + 510_000, rates)
    assert not is_slow(config, catalog, "b" * 32, 10**9, rates)
    assert not is_slow(BackupConfig(rto_target_s=0), catalog, LINEAGE, 10**9, rates)
    # No backup helps when it is the backup itself that takes too long.
    slower = rates._replace(restore_bytes_per_s=1_000_000)
    assert not is_slow(config, catalog, LINEAGE, 1000 + 50_000, slower)


def test_a_full_backup_is_taken_when_the_chain_takes_too_long_at_the_measured_rate() -> None:
    catalog = Catalog()
    catalog._records[5] = _backup(5)
    catalog._records[6] = _backup(6, 5, size_bytes=300_000_000)
    config = BackupConfig(rto_target_s=100, destinations={"local": "x"})
    candidates = [Candidate(1, "leader", 0, 0)]
    for bytes_per_s, mode in ((20_000_000, "incremental"), (12_000_000, "full")):
        choice = choose(
            config, catalog, LINEAGE, T0_US, "incremental", candidates, rates=Rates(bytes_per_s)
        )
        assert choice is not None and choice.mode == mode
