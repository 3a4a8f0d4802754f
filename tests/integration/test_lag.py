"""Lag, states and quorum in real clusters: one node in this process, two in their own."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import raftha
from raftha import ReplicaState, ReplicationState, events
from raftha.core import Heartbeat
from raftha.net.transport import Transport
from raftha.node.messages import PeerMessage
from raftha.node.watch import health
from raftha.server.machine import RedisMachine
from raftha.testing import LocalCluster
from tests.support.conditions import wait_until
from tests.support.nodes import free_addresses, make_config, read_config

MAX_LAG_MS = 1500


class Watched:
    """Node 1, in this process, and all its events."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster
        self.seen: list[events.HaEvent] = []
        config = read_config(cluster.config_of(1))
        self.ha = raftha.HaManager(
            replace(config, on_event=self.seen.append), state_machine=RedisMachine()
        )

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.seen if isinstance(event, kind)]

    def warnings(self) -> list[events.ReplicationLagWarning]:
        """Of node 3."""
        return [w for w in self.of(events.ReplicationLagWarning) if w.node_id == 3]

    def row(self, node_id: int) -> raftha.ReplicaStatus:
        return next(r for r in self.ha.get_status().replicas if r.node_id == node_id)

    def is_state(self, state: ReplicationState) -> bool:
        return self.ha.replication.get_state() is state

    def wait_healthy(self) -> None:
        def is_well() -> bool:
            status = self.ha.get_status()
            rows = status.replicas
            is_still = status.replication_lag_ms == 0 and all(r.lag_ms == 0 for r in rows)
            # Not by the report of an earlier leader.
            is_still = is_still and {r.applied_index for r in rows} == {status.last_index}
            return is_still and status.replication_state is ReplicationState.HEALTHY

        wait_until(is_well, "healthy, and no lag")


@contextmanager
def watched(*, leads: bool = True) -> Iterator[Watched]:
    with LocalCluster(nodes=3, settings={"max_replication_lag_ms": MAX_LAG_MS}) as cluster:
        cluster.terminate(1)
        node = Watched(cluster)
        with node.ha:
            node.ha.put(b"a", b"write", timeout=30)
            node.ha.failover_to(1 if leads else 2, timeout=30)
            node.wait_healthy()
            # By its own view too: the leader knows nothing of the connection between followers.
            wait_until(lambda: all(node.row(i).connected for i in (2, 3)), "both connected")
            node.seen.clear()
            yield node


@pytest.mark.slow
@pytest.mark.parametrize("leads", [True, False])
def test_lag_grows_while_a_follower_is_stopped_even_without_writes(leads: bool) -> None:
    """The leader measures it, and a follower has it from the leader."""
    with watched(leads=leads) as node:
        sequence = node.ha.get_status().sequence
        node.cluster.pause(3)
        began = time.monotonic()
        wait_until(lambda: node.row(3).lag_ms > 300, "it lags")
        first = node.row(3)
        assert first.state is ReplicaState.ACTIVE
        wait_until(lambda: node.row(3).state is ReplicaState.LAGGING, "it lags too far")
        later = node.row(3)
        assert later.lag_ms > max(first.lag_ms, MAX_LAG_MS)
        assert later.lag_ms <= 1000 * (time.monotonic() - began) + 500
        assert later.last_heard_ms >= MAX_LAG_MS
        assert (later.lag_sequences, node.ha.get_status().sequence) == (0, sequence)
        assert node.is_state(ReplicationState.DEGRADED)
        assert node.ha.replication.get_max_lag() >= later.lag_ms
        assert node.row(2).state is ReplicaState.ACTIVE
        for number in range(5):
            node.ha.put(b"key", b"%d" % number)
        wait_until(lambda: node.row(3).lag_sequences == 5, "it lacks five commands")
        assert node.row(3).applied_sequence == sequence
        wait_until(lambda: node.row(2).applied_sequence == sequence + 5, "the other has them")
        (warning,) = node.warnings()
        assert (warning.node_id, warning.reporter) == (3, 1)
        assert warning.lag_ms > MAX_LAG_MS
        node.cluster.resume(3)
        node.wait_healthy()
        assert node.row(3).lag_sequences == 0


@pytest.mark.slow
def test_a_warning_comes_again_only_after_the_lag_was_small_for_a_while() -> None:
    with watched() as node:
        node.cluster.pause(3)
        wait_until(lambda: bool(node.warnings()), "the first warning")
        # After a short recovery it lags again, without another warning.
        node.cluster.resume(3)
        wait_until(lambda: node.row(3).lag_ms == 0, "it is back")
        node.cluster.pause(3)
        wait_until(lambda: node.row(3).lag_ms > MAX_LAG_MS, "it lags again")
        node.ha.get_status()
        assert len(node.warnings()) == 1
        node.cluster.resume(3)
        node.wait_healthy()
        calm_until = time.monotonic() + 2 * MAX_LAG_MS / 1000
        wait_until(lambda: time.monotonic() > calm_until, "a while")
        node.cluster.pause(3)
        wait_until(lambda: len(node.warnings()) == 2, "the second warning")
        node.cluster.resume(3)


@pytest.mark.slow
def test_without_a_quorum_replication_has_failed_and_it_is_said_once() -> None:
    with watched() as node:
        for peer in (2, 3):
            node.cluster.pause(peer)
        wait_until(lambda: node.is_state(ReplicationState.FAILED), "failed")
        (lost,) = node.of(events.QuorumLost)
        assert lost.needed == 2
        assert not node.of(events.QuorumRestored)
        wait_until(lambda: node.row(1).lag_ms > MAX_LAG_MS, "cut off, it lags itself")
        for peer in (2, 3):
            node.cluster.resume(peer)
        node.wait_healthy()
        (restored,) = node.of(events.QuorumRestored)
        assert restored.duration_ms > 0
        assert len(node.of(events.QuorumLost)) == 1


@pytest.mark.slow
def test_a_change_of_leader_is_no_loss_of_the_quorum() -> None:
    with watched(leads=False) as node:
        node.cluster.kill(2)
        node.ha.put(b"after", b"it", timeout=30)
        wait_until(lambda: node.is_state(ReplicationState.DEGRADED), "one is gone")
        wait_until(lambda: node.row(2).state is ReplicaState.DISCONNECTED, "that one")
        assert node.of(events.QuorumLost) == []
        (gone,) = node.of(events.ReplicaDisconnected)
        assert (gone.node_id, gone.reason) == (2, "network_error")


@pytest.mark.slow
def test_the_end_of_a_connection_has_a_reason() -> None:
    with watched() as node:

        def has_gone(node_id: int, reason: str) -> bool:
            gone = [e for e in node.of(events.ReplicaDisconnected) if e.node_id == node_id]
            return bool(gone) and gone[-1].reason == reason

        node.cluster.terminate(2)
        wait_until(lambda: has_gone(2, "node_shutdown"), "2 is stopped")
        node.cluster.start_node(2)
        node.wait_healthy()
        node.cluster.kill(3)
        wait_until(lambda: has_gone(3, "network_error"), "3 is killed")
        node.cluster.start_node(3)
        node.wait_healthy()
        node.ha.remove_replica(3, timeout=30)
        wait_until(lambda: has_gone(3, "removed"), "3 is removed")
        (removed,) = node.of(events.ReplicaRemoved)
        assert (removed.node_id, removed.region) == (3, "primary")
        wait_until(lambda: node.is_state(ReplicationState.DEGRADED), "two are not three")


@pytest.mark.slow
def test_a_member_that_is_stopped_in_silence_is_disconnected_by_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By SIGSTOP: its kernel goes on acknowledging. The limit is lower than usual here."""
    monkeypatch.setattr(health, "HANG_UP_S", 1.0)
    with watched() as node:
        node.cluster.pause(3)

        def gone() -> list[str]:
            lost = node.of(events.ReplicaDisconnected)
            return [event.reason for event in lost if event.node_id == 3]

        wait_until(lambda: bool(gone()), "it is hung up on")
        assert gone() == ["timeout"]
        wait_until(lambda: node.row(3).state is ReplicaState.DISCONNECTED, "and known to be")
        node.ha.put(b"without", b"it")
        node.cluster.resume(3)
        node.wait_healthy()
        connected = [event for event in node.of(events.ReplicaConnected) if event.node_id == 3]
        assert len(connected) == 1, "it has spoken by being connected again"
        assert gone() == ["timeout"]


@pytest.mark.slow
def test_a_node_that_joins_is_announced_and_first_syncs(tmp_path: Path) -> None:
    members = {1: free_addresses(1)[0]}
    seen: list[events.HaEvent] = []
    one = raftha.HaManager(
        replace(make_config(tmp_path, 1, members), on_event=seen.append, replication_factor=2)
    )
    address = free_addresses(1)[0]
    two = raftha.HaManager(
        replace(one.config, node_id=2, address=address, data_dir=tmp_path / "2", on_event=None)
    )
    assert one.replication.get_state() is ReplicationState.INITIALIZING
    with one, two:
        one.put(b"key", b"value", timeout=30)
        wait_until(
            lambda: one.replication.get_state() is ReplicationState.DEGRADED, "one is not two"
        )
        one.replication.add_replica(2, "far", address, timeout=60)
        (added,) = [event for event in seen if isinstance(event, events.ReplicaAdded)]
        assert (added.node_id, added.region, added.reporter) == (2, "far", 1)
        for node in (one, two):
            wait_until(
                lambda node=node: node.replication.get_state() is ReplicationState.HEALTHY,  # type: ignore[misc]
                "two are enough",
            )
            assert node.replication.get_replica_count() == 2
            assert node.replication.get_quorum_size() == 2
            assert [replica.region for replica in node.replication.replicas()] == ["primary", "far"]
        one.replication.promote_to_primary(2)
        assert two.get_status().is_primary
        two.replication.remove_replica(1, timeout=60)


def test_a_node_that_finds_no_peer_is_initializing_and_then_failed(tmp_path: Path) -> None:
    members = dict(enumerate(free_addresses(3), start=1))
    config = replace(make_config(tmp_path, 1, members), max_replication_lag_ms=200)
    with raftha.HaManager(config) as alone:
        assert alone.replication.get_state() is ReplicationState.INITIALIZING
        assert [r.state for r in alone.replication.replicas()] == [ReplicaState.CONNECTING] * 3
        wait_until(lambda: alone.replication.get_state() is ReplicationState.FAILED, "no quorum")
    assert alone.replication.get_state() is ReplicationState.FAILED


def test_the_recovery_point_counts_commands_without_an_outcome(tmp_path: Path) -> None:
    members = dict(enumerate(free_addresses(3), start=1))
    with raftha.HaManager(make_config(tmp_path, 1, members)) as alone:
        assert alone.get_status().rpo_commands == 0
        for number in range(3):
            alone.put(b"key", bytes(1000 + number), mode="async_fire_forget")
        wait_until(lambda: alone.get_status().rpo_commands == 3, "three commands wait")
        assert 3000 < alone.get_status().rpo_bytes < 3500
    status = raftha.HaManager(make_config(tmp_path, 2, members)).get_status()
    assert (status.backup_state, status.pitr_sequence, status.rpo_bytes) == ("idle", None, 0)


def test_aio_has_the_same_replication_manager(tmp_path: Path) -> None:
    members = {1: free_addresses(1)[0]}

    async def use() -> None:
        config = replace(make_config(tmp_path, 1, members), replication_factor=1)
        async with raftha.aio.HaManager(config) as ha:
            await ha.put(b"key", b"value", timeout=30)
            manager = ha.replication
            while await manager.get_state() is not ReplicationState.HEALTHY:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert await manager.get_replica_count() == await manager.get_quorum_size() == 1
            assert await manager.get_max_lag() == 0
            (replica,) = await manager.replicas()
            assert replica.applied_sequence == replica.match_sequence == 1
            assert manager.config is config.replication
            await manager.promote_to_primary(1)
            with pytest.raises(raftha.InvalidRequest):
                await manager.remove_replica(1)
            with pytest.raises(raftha.InvalidRequest):
                await manager.add_replica(1, "far", "127.0.0.1:1")

    asyncio.run(use())


@pytest.mark.slow
def test_heartbeats_come_as_often_as_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two clusters side by side, so that both have the same load on the machine."""
    sent: Counter[int] = Counter()
    send = Transport.send

    def count(self: Transport, message: PeerMessage) -> None:
        if isinstance(message, Heartbeat):
            sent[message.sender // 10] += 1
        send(self, message)

    monkeypatch.setattr(Transport, "send", count)
    with ExitStack() as running:
        for first, interval_ms in ((11, 50), (21, 500)):
            members = dict(enumerate(free_addresses(2), start=first))
            for i in members:
                config = make_config(tmp_path, i, members)
                config = replace(config, election_timeout_ms=2000)
                ha = raftha.HaManager(replace(config, heartbeat_interval_ms=interval_ms))
                running.enter_context(ha)
            ha.put(b"led", b"by one", timeout=30)
        sent.clear()
        wait_until(lambda: sent[2] == 4, "four of the slow ones")
        assert sent[1] >= 15, "forty if nothing delays them"
