"""`HaManager` for asyncio: the methods of the blocking one, awaited.

    async with raftha.aio.HaManager(config) as ha:
        receipt = await ha.put(b"key", b"value")

The node runs on a thread of its own, so a busy event loop delays its own calls, but not the
cluster. Several event loops may use one manager. Cancelling a call doesn't undo what was submitted.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar, overload

from raftha.api.backup import AsyncBackupOrchestrator, BackupCalls
from raftha.api.calls import AdminOperation, Calls, Read, read_by_lease
from raftha.api.lifecycle import NOT_STARTED, check_asserts, last_status, learners_of
from raftha.api.recovery import AsyncPitrManager, RecoveryCalls
from raftha.config import HaConfig, ReplicationConfig
from raftha.errors import Forked, InvalidRequest, Stopped
from raftha.node.arguments import Consistency
from raftha.node.lease_reads import MISSED, Missed
from raftha.node.modes import Mode
from raftha.node.operations import DigestOperation, GroupOperation, WriteOperation
from raftha.node.statistics import Statistics
from raftha.recovery import RecoveryResult
from raftha.runtime import forks
from raftha.runtime.callers import FireForgetCounter, LoopBatches, refuse_on_node_thread
from raftha.runtime.event_bus import AsyncEventStream, EventBus
from raftha.runtime.runtime import Runtime
from raftha.storage.state import commands
from raftha.storage.state.commands import Condition
from raftha.storage.state.commands import Operation as TransactionOperation
from raftha.storage.state.machine import StateMachine
from raftha.storage.state.sessions import Outcome
from raftha.types import RELEASED, Digest, HaStatus, Receipt, ReplicaStatus, ReplicationState

T = TypeVar("T")


class HaManager:
    """A node of the cluster, inside this process; `raftha.HaManager` describes each method."""

    def __init__(self, config: HaConfig, *, state_machine: StateMachine | None = None) -> None:
        self.config = config
        self._calls = Calls(config)
        self._machine = state_machine
        self._runtime: Runtime | None = None
        self._events = EventBus(config.on_event)
        self._batches: LoopBatches | None = None
        self._renew_locks()
        forks.renew_in_child(self, HaManager._renew_locks)

    def _renew_locks(self) -> None:
        self._starting = asyncio.Lock()
        self._fire_forget = FireForgetCounter()

    async def start(self) -> None:
        """As `raftha.HaManager.start`. Another thread opens the data directory."""
        check_asserts()
        async with self._starting:
            if self._runtime is not None and self._runtime.has_ended:
                await self.stop()
            if self._runtime is None or not self._runtime.is_alive:
                opening = asyncio.create_task(asyncio.to_thread(self._start))
                try:
                    runtime = self._runtime = await asyncio.shield(opening)
                    self._batches = LoopBatches(runtime.submit, runtime.unanswered)
                except asyncio.CancelledError:
                    # The thread can't be cancelled, so the node stops as soon as it runs.
                    opening.add_done_callback(_stop_orphan)
                    raise
            self._events.start()

    def _start(self) -> Runtime:
        runtime = Runtime(self.config, self._machine, self._events)
        runtime.start()
        return runtime

    async def stop(self) -> None:
        """As `raftha.HaManager.stop`."""
        refuse_on_node_thread()
        runtime = self._runtime
        if runtime is not None and runtime.is_alive:
            await asyncio.to_thread(runtime.stop)
        if self._runtime is runtime:
            self._events.stop()
            await asyncio.to_thread(self._events.join)

    async def __aenter__(self) -> HaManager:
        await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stop()

    async def get_status(self) -> HaStatus:
        """As `raftha.HaManager.get_status`."""
        try:
            status = await self._run(self._calls.status(), None)
        except Stopped:  # The node was not started, or has ended, perhaps during this call.
            status = last_status(self._runtime, self.config)
        return self._events.add_counts(replace(status, fire_forget=self._fire_forget.counts))

    def events(self) -> AsyncEventStream:
        """As `raftha.HaManager.events`. Only the stream's events are awaited."""
        if self._runtime is not None and self._runtime.is_inherited:
            raise Forked
        return AsyncEventStream(self._events.subscribe())

    def observe(self) -> tuple[HaStatus, Statistics]:
        """As `raftha.HaManager.observe`. Blocks the event loop until the node's thread answers."""
        if self._runtime is None:
            return last_status(None, self.config), Statistics()
        return self._runtime.observe()

    # ---------------------------------------------------------------- writes

    async def put(
        self,
        key: bytes,
        value: bytes,
        *,
        mode: Mode = None,
        write_quorum: int | None = None,
        timeout: float | None = None,
    ) -> Receipt:
        """As `raftha.HaManager.put`."""
        return await self._run(self._calls.put(key, value, mode, write_quorum), timeout)

    async def delete(
        self,
        key: bytes,
        *,
        mode: Mode = None,
        write_quorum: int | None = None,
        timeout: float | None = None,
    ) -> Receipt:
        """As `raftha.HaManager.delete`."""
        return await self._run(self._calls.delete(key, mode, write_quorum), timeout)

    async def compare_and_set(
        self,
        key: bytes,
        expected: bytes | None,
        value: bytes | None,
        *,
        mode: Mode = None,
        write_quorum: int | None = None,
        timeout: float | None = None,
    ) -> Receipt:
        """As `raftha.HaManager.compare_and_set`."""
        call = self._calls.compare_and_set(key, expected, value, mode, write_quorum)
        return await self._run(call, timeout)

    async def transaction(
        self,
        conditions: Sequence[Condition],
        operations: Sequence[TransactionOperation],
        otherwise: Sequence[TransactionOperation] = (),
        *,
        mode: Mode = None,
        write_quorum: int | None = None,
        timeout: float | None = None,
    ) -> Receipt:
        """As `raftha.HaManager.transaction`."""
        call = self._calls.transaction(conditions, operations, otherwise, mode, write_quorum)
        return await self._run(call, timeout)

    async def execute(
        self,
        name: str,
        *args: Any,
        mode: Mode = None,
        write_quorum: int | None = None,
        timeout: float | None = None,
    ) -> Receipt:
        """As `raftha.HaManager.execute`."""
        return await self._run(self._calls.execute(name, args, mode, write_quorum), timeout)

    def submit(
        self,
        packed: bytes,
        *,
        mode: Mode = None,
        write_quorum: int | None = None,
        timeout: float | None = None,
    ) -> asyncio.Future[Receipt]:
        """Submit a command packed by `raftha.storage.state.commands`, without waiting.

        Commands submitted in sequence by one task are applied in that order. Raises InvalidRequest
        if it isn't a command. With `async_fire_forget`, Overloaded and Stopped are raised at once.
        """
        return self._run(self._calls.submit(packed, mode, write_quorum), timeout)

    # ---------------------------------------------------------------- sessions of outside clients

    async def open_session(self, client: str = "", *, timeout: float | None = None) -> int:
        """Open a session for a client outside this process. Returns the session's id.

        With it, `submit_once` through any node applies each of the client's groups once, however
        often the client sends it. A session ends after an hour without use. `client`: its host, a
        space, and what names its connection; one with too many sessions loses its own.
        """
        return (await self._run(self._calls.open_session(client), timeout)).session

    def submit_once(
        self,
        session: int,
        number: int,
        floor: int,
        packed: Sequence[bytes],
        *,
        timeout: float | None = None,
    ) -> asyncio.Future[Outcome]:
        """Submit commands as group `number` (1, 2, 3 ...) of a client's session, without waiting.

        A group that is sent again under the same number, through any node, is not applied again.
        Its first outcome is returned (`raftha.storage.state.sessions.receipts` reads it). The
        client will not send numbers below `floor` again.

        Raises InvalidRequest for more than 65,536 commands, more than 4 MiB, or a non-command.
        """
        call = self._calls.submit_once(session, number, floor, packed)
        return self._run(call, timeout)

    # ---------------------------------------------------------------- reads

    async def get(
        self,
        key: bytes,
        *,
        consistency: Consistency = "linearizable",
        max_staleness_ms: float | None = None,
        timeout: float | None = None,
    ) -> bytes | None:
        """As `raftha.HaManager.get`. A read by lease doesn't yield to the event loop."""
        value = read_by_lease(self._runtime, key, consistency, max_staleness_ms, timeout)
        if isinstance(value, Missed):
            value = await self._run(self._calls.get(key, consistency, max_staleness_ms), timeout)
        return value

    def get_by_lease(self, key: bytes) -> bytes | Missed | None:
        """As `get`, at once, if this node leads with a lease; else return `lease_reads.MISSED`."""
        commands.check_key(key)
        return MISSED if self._runtime is None else self._runtime.node.lease_reads.get(key)

    async def get_many(
        self,
        keys: Sequence[bytes],
        *,
        consistency: Consistency = "linearizable",
        max_staleness_ms: float | None = None,
        timeout: float | None = None,
    ) -> list[bytes | None]:
        """As `raftha.HaManager.get_many`."""
        return await self._run(self._calls.get_many(keys, consistency, max_staleness_ms), timeout)

    def submit_get_many(
        self,
        keys: Sequence[bytes],
        *,
        consistency: Consistency = "linearizable",
        max_staleness_ms: float | None = None,
        timeout: float | None = None,
    ) -> asyncio.Future[list[bytes | None]]:
        """As `get_many`, without waiting."""
        return self._run(self._calls.get_many(keys, consistency, max_staleness_ms), timeout)

    def submit_get_each(
        self, groups: Sequence[Sequence[bytes]], *, bytes_max: int, timeout: float | None = None
    ) -> asyncio.Future[list[list[bytes | None] | InvalidRequest]]:
        """Read several groups of keys, without waiting. The list has a result for each group read.

        A group's values are as of one moment. A group over 16 MiB has an InvalidRequest as its
        result. Reading ends with the group that brings the total to `bytes_max` bytes, so the list
        may be shorter than `groups`; it has at least one item.
        """
        return self._run(self._calls.get_each(groups, bytes_max), timeout)

    async def scan(
        self,
        start: bytes | None = None,
        end: bytes | None = None,
        *,
        limit: int = 1000,
        reverse: bool = False,
        consistency: Consistency = "linearizable",
        max_staleness_ms: float | None = None,
        timeout: float | None = None,
    ) -> list[tuple[bytes, bytes]]:
        """As `raftha.HaManager.scan`."""
        call = self._calls.scan(start, end, limit, reverse, consistency, max_staleness_ms)
        return await self._run(call, timeout)

    async def count(
        self,
        *,
        consistency: Consistency = "linearizable",
        max_staleness_ms: float | None = None,
        timeout: float | None = None,
    ) -> int:
        """As `raftha.HaManager.count`."""
        return await self._run(self._calls.count(consistency, max_staleness_ms), timeout)

    async def digest(self, sequence: int | None = None, *, timeout: float | None = None) -> Digest:
        """As `raftha.HaManager.digest`."""
        return await self._run(self._calls.digest(sequence), timeout)

    async def failover_to(self, node_id: int, *, timeout: float | None = None) -> None:
        """As `raftha.HaManager.failover_to`."""
        await self._run(self._calls.failover_to(node_id), timeout)

    async def add_replica(
        self,
        node_id: int,
        address: str,
        *,
        region: str = "",
        voter: bool = True,
        timeout: float | None = None,
    ) -> None:
        """As `raftha.HaManager.add_replica`."""
        await self._run(self._calls.add_replica(node_id, address, region, voter), timeout)

    async def promote_replica(self, node_id: int, *, timeout: float | None = None) -> None:
        """As `raftha.HaManager.promote_replica`."""
        await self._run(self._calls.promote_replica(node_id), timeout)

    async def move_replica(
        self, node_id: int, address: str = "", region: str = "", *, timeout: float | None = None
    ) -> None:
        """As `raftha.HaManager.move_replica`."""
        await self._run(self._calls.move_replica(node_id, address, region), timeout)

    async def promote_region(self, region: str, *, timeout: float | None = None) -> tuple[int, ...]:
        """As `raftha.HaManager.promote_region`."""
        learners = learners_of(await self.get_status(), region)
        for node_id in learners:
            await self.promote_replica(node_id, timeout=timeout)
        return learners

    async def remove_replica(self, node_id: int, *, timeout: float | None = None) -> None:
        """As `raftha.HaManager.remove_replica`."""
        await self._run(self._calls.remove_replica(node_id), timeout)

    @property
    def replication(self) -> AsyncReplicationManager:
        """As `raftha.HaManager.replication`."""
        return AsyncReplicationManager(self)

    @property
    def backup(self) -> AsyncBackupOrchestrator:
        """As `raftha.HaManager.backup`."""
        return AsyncBackupOrchestrator(BackupCalls(self.config), self._run)

    async def trigger_backup(self, mode: str | None = None, *, wait: bool = False) -> int:
        """As `raftha.HaManager.trigger_backup`."""
        return await self.backup.trigger_backup(mode, wait=wait)

    @property
    def pitr(self) -> AsyncPitrManager:
        """As `raftha.HaManager.pitr`."""
        return AsyncPitrManager(RecoveryCalls(self.config, self._machine), self._run)

    async def recover_to_point(
        self, timestamp: datetime, *, freeze: str = "switch", timeout: float | None = None
    ) -> RecoveryResult:
        """As `PitrManager.recover_to_timestamp`."""
        return await self.pitr.recover_to_timestamp(timestamp, freeze=freeze, timeout=timeout)

    async def recover_to_sequence(
        self, sequence: int, *, freeze: str = "switch", timeout: float | None = None
    ) -> RecoveryResult:
        """As `PitrManager.recover_to_sequence`."""
        return await self.pitr.recover_to_sequence(sequence, freeze=freeze, timeout=timeout)

    # ---------------------------------------------------------------- how a call is made

    @overload
    def _run(self, call: WriteOperation, timeout: float | None) -> asyncio.Future[Receipt]: ...
    @overload
    def _run(self, call: GroupOperation, timeout: float | None) -> asyncio.Future[Outcome]: ...
    @overload
    def _run(self, call: Read[T], timeout: float | None) -> asyncio.Future[T]: ...
    @overload
    def _run(self, call: DigestOperation, timeout: float | None) -> asyncio.Future[Digest]: ...
    @overload
    def _run(self, call: AdminOperation, timeout: float | None) -> asyncio.Future[None]: ...

    def _run(self, call: Any, timeout: float | None) -> asyncio.Future[Any]:
        refuse_on_node_thread()
        call.deadline = call.deadline or self._calls.deadline(timeout)
        batches = self._batches
        if batches is None:
            raise Stopped(NOT_STARTED)
        if call.waiter is not RELEASED:
            return batches.add(call)
        loop = asyncio.get_running_loop()
        batches.flush(loop)  # Earlier calls must stay before this one.
        self._fire_forget.submit(call, batches.submit)
        future = loop.create_future()
        future.set_result(RELEASED)
        return future


class AsyncReplicationManager:
    """As `raftha.ReplicationManager`, awaited."""

    def __init__(self, ha: HaManager) -> None:
        self._ha = ha
        self.promote_to_primary = ha.failover_to
        self.promote_replica = ha.promote_replica
        self.promote_region = ha.promote_region
        self.move_replica = ha.move_replica
        self.remove_replica = ha.remove_replica

    @property
    def config(self) -> ReplicationConfig:
        """As `raftha.ReplicationManager.config`."""
        return self._ha.config.replication

    async def get_state(self) -> ReplicationState:
        """As `raftha.ReplicationManager.get_state`."""
        return (await self._ha.get_status()).replication_state

    async def get_replica_count(self) -> int:
        """As `raftha.ReplicationManager.get_replica_count`."""
        return (await self._ha.get_status()).replica_count

    async def get_max_lag(self) -> int:
        """As `raftha.ReplicationManager.get_max_lag`."""
        return (await self._ha.get_status()).replication_lag_ms

    async def get_quorum_size(self) -> int:
        """As `raftha.ReplicationManager.get_quorum_size`."""
        return (await self._ha.get_status()).quorum_size

    async def replicas(self) -> tuple[ReplicaStatus, ...]:
        """As `raftha.ReplicationManager.replicas`."""
        return (await self._ha.get_status()).replicas

    async def add_replica(
        self,
        node_id: int,
        region: str,
        address: str,
        *,
        voter: bool = True,
        timeout: float | None = None,
    ) -> None:
        """As `raftha.ReplicationManager.add_replica`."""
        await self._ha.add_replica(node_id, address, region=region, voter=voter, timeout=timeout)


def _stop_orphan(opening: asyncio.Task[Runtime]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        threading.Thread(target=opening.result().stop, daemon=True).start()
