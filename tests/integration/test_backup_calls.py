"""`ha.backup` on three embedded nodes: any node takes any call, blocking and awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

import raftha
from raftha import BackupConfig, BackupMode, BackupState
from tests.support.conditions import wait_until
from tests.support.nodes import free_addresses, make_config, wait_leader

pytestmark = pytest.mark.slow


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[dict[int, raftha.HaManager]]:
    members = dict(enumerate(free_addresses(3), 1))
    backup = BackupConfig(destinations={"local": str(tmp_path / "backups")}, bytes_per_s=1 << 20)
    nodes = {
        i: raftha.HaManager(replace(make_config(tmp_path, i, members), backup=backup))
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


def test_backups_are_asked_for_and_seen_through_any_node(
    nodes: dict[int, raftha.HaManager],
) -> None:
    for number, node in nodes.items():
        node.put(b"key-%d" % number, b"value")
    leader = wait_leader(nodes)
    follower = next(node for i, node in nodes.items() if i != leader)
    full = follower.trigger_backup("full", wait=True)
    follower.put(b"later", b"value")
    delta = follower.backup.trigger_backup(wait=True, timeout=60)
    found = follower.backup.get_backup(delta)
    assert (found.mode, found.parent, found.is_completed) == (BackupMode.INCREMENTAL, full, True)
    assert found.destinations == {"local": "ok"}
    assert found.node_id != leader  # A follower is preferred.
    assert follower.get_status().backup_state is BackupState.COMPLETED
    for node in nodes.values():
        wait_until(lambda n=node: n.backup.get_last_backup() == found, "it isn't known")  # type: ignore[misc]
        assert node.backup.list_backups()[-2:] == (node.backup.get_backup(full), found)
        assert not node.backup.is_backup_due()
        assert node.get_status().last_backup == found
    assert [r.is_sound for r in follower.backup.verify_backup(delta, 3)] == [True]
    taker = nodes[found.node_id]
    metrics = CollectorRegistry()
    metrics.register(raftha.metrics.Collector(taker))

    def value(name: str, labels: dict[str, str] | None = None) -> float:
        return metrics.get_sample_value(name, labels) or 0.0

    created = {"destination": "local", "op": "create", "result": "ok"}
    assert value("raftha_repository_requests_total", created) >= 3
    assert value("raftha_backup_state", {"state": "completed"}) == 1
    assert value("raftha_backup_last_success_timestamp_seconds") == found.time_us / 1e6
    assert value("raftha_backup_bytes", {"kind": "stored"}) == found.size_compressed
    assert value("raftha_backup_in_destination", {"destination": "local"}) == 1
    assert value("raftha_spool_bytes") > 0
    follower.backup.pin(full, "audit")
    reasons = [d.reasons for d in nodes[leader].backup.explain() if d.backup_id == full]
    assert "pinned: audit" in reasons[0]
    with pytest.raises(raftha.InvalidRequest, match="there is no backup"):
        follower.backup.get_backup(1)


def test_a_second_trigger_is_refused_while_one_runs(nodes: dict[int, raftha.HaManager]) -> None:
    nodes[1].put(b"large", bytes(range(256)) * 4000)
    running = nodes[1].trigger_backup("full")
    with pytest.raises(raftha.BackupInProgress) as caught:
        nodes[2].trigger_backup("full")
    assert caught.value.backup_id >= running
    wait_until(lambda: not nodes[1].backup.get_state().is_running, "it isn't done")
    assert nodes[1].backup.get_backup(running).is_completed


def test_the_awaited_manager_has_the_same_calls(tmp_path: Path) -> None:
    backup = BackupConfig(destinations={"local": str(tmp_path / "backups")})
    config = raftha.HaConfig(
        node_id=1,
        data_dir=tmp_path / "1",
        members={1: free_addresses(1)[0]},
        wal_segment_bytes=16 << 20,
        backup=backup,
    )

    async def run() -> None:
        ha = raftha.aio.HaManager(config)
        events = ha.events()
        async with ha:
            await ha.put(b"k", b"v")
            await anext(e async for e in events if e.kind is raftha.EventKind.BACKUP_COMPLETED)
            made = await ha.trigger_backup("full", wait=True)
            found = await ha.backup.get_backup(made)
            assert found.keys == 1
            assert (await ha.backup.verify_backup(made))[0].is_sound
            assert (await ha.backup.check())[0].is_usable
            await ha.backup.pin(made)
            await ha.backup.unpin(made)
            kept = await ha.backup.apply_retention(dry_run=True)
            assert kept == await ha.backup.apply_retention()
            assert kept == await ha.backup.explain()
            assert await ha.backup.get_lineage() == found.lineage
            assert (await ha.backup.list_backups())[-1] == found
            assert await ha.backup.get_state() is BackupState.COMPLETED
            assert not await ha.backup.is_backup_due()

    asyncio.run(run())
