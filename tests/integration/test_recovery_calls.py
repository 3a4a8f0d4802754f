"""`ha.pitr` on three embedded nodes: any node takes any call, blocking and awaited."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import pytest

import raftha
from raftha import BackupConfig, EventKind, PitrConfig, RecoveryPointKind, RecoveryState
from tests.support.conditions import wait_until
from tests.support.nodes import free_addresses, make_config, wait_leader

pytestmark = pytest.mark.slow


class Tally(raftha.StateMachine):
    """A command of the user's, which a recovery and a drill replay."""

    @raftha.command
    def add(self, txn: raftha.Transaction, key: bytes, amount: int) -> int:
        total = int(txn.get(key) or 0) + amount
        txn.put(key, b"%d" % total)
        return total


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[dict[int, raftha.HaManager]]:
    members = dict(enumerate(free_addresses(3), 1))
    backup = BackupConfig(destinations={"local": str(tmp_path / "backups")})
    pitr = PitrConfig(archive_interval_ms=100)
    nodes = {
        i: raftha.HaManager(
            replace(make_config(tmp_path, i, members), backup=backup, pitr=pitr),
            state_machine=Tally(),
        )
        for i in members
    }
    for node in nodes.values():
        node.start()
    try:
        wait_leader(nodes)
        wait_until(
            lambda: nodes[1].get_status().last_backup is not None, "the scheduled one isn't done"
        )
        yield nodes
    finally:
        for node in nodes.values():
            node.stop()


T = TypeVar("T")


def settled(call: Callable[[], T]) -> T:
    """The result of a call, which a node refuses while it switches to the state of then."""
    found: list[T] = []

    def is_there() -> bool:
        with suppress(raftha.Unavailable, raftha.Disconnected, raftha.Stopped):
            found.append(call())
        return bool(found)

    wait_until(is_there, "the node has not switched")
    return found[0]


def test_a_cluster_is_taken_back_and_forth_through_any_node(
    nodes: dict[int, raftha.HaManager],
) -> None:
    leader = wait_leader(nodes)
    follower = next(node for i, node in nodes.items() if i != leader)
    events = follower.events()
    for _ in range(5):
        good = follower.execute("add", b"total", 3)
    mark = follower.pitr.mark("before release 17")
    assert (mark.sequence, mark.name) == (good.sequence, "before release 17")
    with pytest.raises(raftha.InvalidRequest, match="already"):
        follower.pitr.mark("before release 17")
    point = follower.pitr.capture_checkpoint()
    assert (point.sequence, point.is_consistent, point.voters) == (good.sequence, True, 3)
    bad = nodes[leader].execute("add", b"total", 1000)

    plan = nodes[leader].pitr.plan("before release 17")
    assert plan.moment.sequence == good.sequence
    result = follower.pitr.recover_to_mark("before release 17")
    assert result.state is RecoveryState.RESTORED
    assert (result.to_sequence, result.undone) == (good.sequence, bad.sequence - good.sequence)
    for node in nodes.values():
        assert settled(lambda n=node: n.get(b"total")) == b"15"  # type: ignore[misc]
        assert settled(lambda n=node: n.digest()).hex == result.digest  # type: ignore[misc]
    assert follower.pitr.get_current_sequence() >= result.sequence == bad.sequence + 1

    assert nodes[leader].pitr.undo().to_sequence == bad.sequence
    assert settled(lambda: follower.get(b"total")) == b"1015"
    back = follower.recover_to_point(good.time)
    assert back.to_sequence == good.sequence
    assert settled(lambda: follower.get(b"total")) == b"15"
    assert settled(lambda: follower.execute("add", b"total", 1)).result == 16

    kinds = [point.kind for point in follower.pitr.list_recovery_points()]
    assert kinds.count(RecoveryPointKind.RECOVERY) == 3
    assert {RecoveryPointKind.BACKUP, RecoveryPointKind.CHECKPOINT, RecoveryPointKind.MARK} < {
        *kinds
    }
    nearest = follower.pitr.find_nearest_recovery_point(mark.timestamp)
    assert nearest is not None and nearest.sequence <= mark.sequence
    assert [each.state for each in follower.pitr.list_recoveries()] == ["restored"] * 3
    seen = Counter(event.kind for event in iter(lambda: events.next(0.5), None))
    assert seen[EventKind.RECOVERY_STARTED] == seen[EventKind.RECOVERY_COMPLETED] == 3
    assert seen[EventKind.RECOVERY_FAILED] == 0
    assert seen[EventKind.PITR_CHECKPOINT] > 0


def test_what_cannot_be_reached_is_named_and_nothing_changes(
    nodes: dict[int, raftha.HaManager],
) -> None:
    node = nodes[1]
    receipt = node.put(b"key", b"value")
    before = node.digest().hex
    long_ago = datetime.now(UTC) - timedelta(days=400)
    for call in (node.pitr.plan, node.pitr.recover_to_timestamp):
        with pytest.raises(raftha.TargetUnreachable):
            call(long_ago)
    with pytest.raises(raftha.TargetUnreachable):
        node.pitr.recover_to_sequence(receipt.sequence + 1_000_000)
    with pytest.raises(raftha.InvalidRequest, match="no recovery that could be undone"):
        node.pitr.undo()
    with pytest.raises(raftha.InvalidRequest, match="no recovery is under way"):
        node.pitr.abort_recovery()
    assert node.digest().hex == before
    assert node.pitr.list_recoveries() == ()


def test_what_can_be_restored_is_known_and_proven(nodes: dict[int, raftha.HaManager]) -> None:
    node = nodes[2]
    receipt = node.execute("add", b"total", 7)
    wait_until(
        lambda: (node.get_status().pitr_sequence or 0) >= receipt.sequence, "it isn't archived"
    )
    status = node.get_status()
    assert status.archive is not None
    assert status.rpo_ms == status.archive.rpo_ms < 60_000
    window = node.pitr.window()
    assert window.gaps == ()
    assert window.earliest.sequence <= receipt.sequence <= window.latest.sequence
    report = node.pitr.drill(receipt.sequence)
    assert (report.is_ok, report.error) == (True, "")
    assert (report.sequence, report.node_id) == (receipt.sequence, 2)
    assert node.pitr.get_last_drill() == report


def test_the_awaited_manager_has_the_same_calls(tmp_path: Path) -> None:
    config = raftha.HaConfig(
        node_id=1,
        data_dir=tmp_path / "data",
        members={1: free_addresses(1)[0]},
        backup=BackupConfig(destinations={"local": str(tmp_path / "backups")}),
        pitr=PitrConfig(archive_interval_ms=100),
    )

    async def run() -> None:
        async with raftha.aio.HaManager(config) as ha:
            await ha.put(b"key", b"good")
            mark = await ha.pitr.mark("good")
            await ha.put(b"key", b"bad")
            while await ha.backup.get_last_backup() is None:  # noqa: ASYNC110 - poll
                await asyncio.sleep(0.05)
            point = await ha.pitr.capture_checkpoint()
            assert (point.agreed, point.voters, point.is_consistent) == (1, 1, True)
            while (await ha.get_status()).pitr_sequence != point.sequence:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            if (await ha.pitr.window()).earliest.sequence <= mark.sequence:
                assert (await ha.pitr.plan("good")).moment.sequence == mark.sequence
            assert (await ha.pitr.recover_to_point(point)).undone == 0
            assert await ha.get(b"key") == b"bad"
            assert (await ha.recover_to_sequence(point.sequence)).undone == 1
            assert (await ha.pitr.undo()).to_sequence == point.sequence + 1
            assert (await ha.pitr.drill()).is_ok
            points = await ha.pitr.list_recovery_points()
            assert await ha.pitr.find_nearest_recovery_point(points[-1].timestamp) == points[-1]
            assert len(await ha.pitr.list_recoveries()) == 3
            assert await ha.pitr.get_current_sequence() == point.sequence + 3

    asyncio.run(run())
