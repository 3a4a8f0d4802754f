"""`HaManager` for asyncio: the same names as the blocking one, awaited.

    async with raftha.aio.HaManager(config) as ha:
        receipt = await ha.put(b"key", b"value")

The node runs on a thread of its own, so a busy event loop here delays callers, never the cluster.
One manager may be used from several event loops. Cancelling a call doesn't take back what was
submitted.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from types import TracebackType
from typing import Any, NoReturn

from raftha.api.modes import RELEASED, Mode, acks_of, make_write
from raftha.api.replication import AsyncReplicationManager
from raftha.api.unavailable import no_backups, no_recovery
from raftha.config import HaConfig
from raftha.errors import Forked, InvalidRequest, RafthaError, Stopped
from raftha.manager import (
    Consistency,
    check_asserts,
    check_consistency,
    check_count,
    check_member,
    deadline_of,
    each_reader,
    learners_of,
    many_reader,
    overloaded,
    read_leased,
    scan_reader,
    unstarted_status,
)
from raftha.node.lease_reads import Missed
from raftha.node.node import Node
from raftha.node.operations import (
    AT_ONCE,
    MAJORITY,
    DigestOperation,
    GroupOperation,
    MembershipOperation,
    Operation,
    ReadOperation,
    TransferOperation,
    WriteOperation,
)
from raftha.node.statistics import Statistics
from raftha.runtime import forks
from raftha.runtime.callers import Overdue, Tally
from raftha.runtime.event_bus import AsyncEventStream, EventBus
from raftha.runtime.runtime import Runtime
from raftha.storage.state import commands
from raftha.storage.state.commands import Condition
from raftha.storage.state.commands import Operation as TransactionOperation
from raftha.storage.state.machine import StateMachine
from raftha.storage.state.sessions import Outcome
from raftha.types import Digest, HaStatus, Receipt


class HaManager:
    """A node of the cluster, inside this process; `raftha.HaManager` says what each method does."""

    def __init__(self, config: HaConfig, *, state_machine: StateMachine | None = None) -> None:
        self.config = config
        self._machine = state_machine
        self._runtime: Runtime | None = None
        self._events = EventBus(config.on_event)
        self._acks = acks_of(config.replication)
        self._batches: dict[asyncio.AbstractEventLoop, list[Operation]] = {}
        self._overdue: dict[asyncio.AbstractEventLoop, Overdue] = {}
        self._renew_locks()
        forks.renew_in_child(self, HaManager._renew_locks)

    def _renew_locks(self) -> None:
        self._starting = asyncio.Lock()
        self._tally = Tally()

    async def start(self) -> None:
        """As `raftha.HaManager.start`; the work of opening is done on another thread."""
        check_asserts()
        async with self._starting:
            if self._runtime is not None and self._runtime.has_ended:
                await self.stop()
            if self._runtime is None or not self._runtime.is_alive:
                opening = asyncio.create_task(asyncio.to_thread(self._start))
                try:
                    self._runtime = await asyncio.shield(opening)
                except asyncio.CancelledError:
                    # What has begun can't be called back; it is stopped as soon as it runs.
                    opening.add_done_callback(_stop_orphan)
                    raise
            self._events.start()

    def _start(self) -> Runtime:
        runtime = Runtime(self.config, self._machine, self._events)
        runtime.start()
        return runtime

    async def stop(self) -> None:
        """As `raftha.HaManager.stop`."""
        runtime = self._runtime
        if runtime is not None and runtime.is_alive:
            await asyncio.to_thread(runtime.stop)
        if self._runtime is runtime:
            self._events.stop()
            await asyncio.to_thread(self._events.join)

    async def __aenter__(self) -> HaManager:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def get_status(self) -> HaStatus:
        """As `raftha.HaManager.get_status`."""
        status = replace(await self._status(), fire_forget=self._tally.counts)
        return self._events.add_counts(status)

    async def _status(self) -> HaStatus:
        runtime = self._runtime
        if runtime is None:
            return unstarted_status(self.config)
        if runtime.is_inherited:
            raise Forked
        if runtime.has_ended:
            return runtime.node.status()
        try:
            status: HaStatus = await self._read(Node.status, "stale", None, None)
        except Stopped:
            return runtime.node.status()  # It ended while it was asked.
        return status

    def events(self) -> AsyncEventStream:
        """As `raftha.HaManager.events`; nothing is awaited to make the stream."""
        if self._runtime is not None and self._runtime.is_inherited:
            raise Forked
        return AsyncEventStream(self._events.subscribe())

    def observe(self) -> tuple[HaStatus, Statistics]:
        """Status and statistics, for `raftha.metrics.Collector`, from any thread.

        Waits for the node's thread; RequestTimeout if that doesn't answer within 2 s.
        """
        if self._runtime is None:
            return unstarted_status(self.config), Statistics()
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
        packed = commands.pack_put(key, value, self.config.value_bytes_max)
        return await self._submit(packed, mode, write_quorum, timeout)

    async def delete(
        self,
        key: bytes,
        *,
        mode: Mode = None,
        write_quorum: int | None = None,
        timeout: float | None = None,
    ) -> Receipt:
        """As `raftha.HaManager.delete`."""
        packed = commands.pack_delete(key)
        return await self._submit(packed, mode, write_quorum, timeout)

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
        value_bytes_max = self.config.value_bytes_max
        packed = commands.pack_compare_and_set(key, expected, value, value_bytes_max)
        return await self._submit(packed, mode, write_quorum, timeout)

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
        value_bytes_max = self.config.value_bytes_max
        packed = commands.pack_transaction(conditions, operations, otherwise, value_bytes_max)
        return await self._submit(packed, mode, write_quorum, timeout)

    async def execute(
        self,
        name: str,
        *args: Any,
        mode: Mode = None,
        write_quorum: int | None = None,
        timeout: float | None = None,
    ) -> Receipt:
        """As `raftha.HaManager.execute`."""
        packed = commands.pack_call(name, args)
        return await self._submit(packed, mode, write_quorum, timeout)

    def submit(
        self,
        packed: bytes,
        *,
        mode: Mode = None,
        write_quorum: int | None = None,
        timeout: float | None = None,
    ) -> asyncio.Future[Receipt]:
        """Submit a command packed by `raftha.storage.state.commands`, without waiting.

        Commands submitted one after the other by one task are applied in that order. InvalidRequest
        if it isn't a command. With `async_fire_forget`, Overloaded and Stopped are raised at once.
        """
        commands.check_packed(packed)
        return self._submit(packed, mode, write_quorum, timeout)

    def _submit(
        self, packed: bytes, mode: Mode, write_quorum: int | None, timeout: float | None
    ) -> asyncio.Future[Receipt]:
        acks = self._acks
        if mode is not None or write_quorum is not None:
            acks = acks_of(self.config.replication, mode, write_quorum)
        deadline = deadline_of(self.config, timeout)
        future: asyncio.Future[Receipt] = _future()
        if acks == AT_ONCE:
            self._submit_at_once(packed, deadline)
            future.set_result(RELEASED)
        else:
            self._hand_over(make_write(future, deadline, packed, acks))
        return future

    def _submit_at_once(self, packed: bytes, deadline: float) -> None:
        """Hand a write to the node now, behind all that came before it."""
        if self._runtime is None:
            raise Stopped("the node was not started")
        self._flush(asyncio.get_running_loop())
        operation = WriteOperation(self._tally, deadline, packed)
        with self._tally.submitting():
            if self._runtime.submit((operation,)):
                raise overloaded()

    # ---------------------------------------------------------------- exactly once, for others

    async def open_session(self, *, timeout: float | None = None) -> int:
        """Open a session for a client outside this process; return its id.

        It ends after an hour without use. With it, `submit_once` through any node applies each of
        the client's groups once, however often it is sent.
        """
        future: asyncio.Future[Outcome] = _future()
        deadline = deadline_of(self.config, timeout)
        self._hand_over(GroupOperation(future, deadline, 0, 0, 0, []))
        return (await future).session

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

        Sent again under the same number, also through another node, they are not applied again and
        have the first outcome (`raftha.storage.state.sessions.receipts` reads it). `floor`: every
        number below it is finished, the client will not ask for it again.

        InvalidRequest if they are more than 65,536, over 4 MiB together, or not commands.
        """
        for name, value in (("session", session), ("number", number), ("floor", floor)):
            check_count(name, value)
        if not (session and 0 < floor <= number):
            raise InvalidRequest("a session and a floor are over 0, a floor at most the number")
        for command in packed:
            commands.check_packed(command)
        size = sum(map(len, packed))
        if size > commands.COMMAND_BYTES_MAX or len(packed) > commands.ARRAY_MAX:
            raise InvalidRequest(
                f"a group has at most {commands.ARRAY_MAX} commands and "
                f"{commands.COMMAND_BYTES_MAX} bytes, got {len(packed)} and {size}"
            )
        future: asyncio.Future[Outcome] = _future()
        deadline = deadline_of(self.config, timeout)
        acks = acks_of(self.config.replication)
        if acks == AT_ONCE:
            acks = MAJORITY  # Who numbers groups wants their outcomes.
        group = GroupOperation(future, deadline, session, number, floor, list(packed), acks)
        self._hand_over(group)
        return future

    # ---------------------------------------------------------------- reads

    async def get(
        self,
        key: bytes,
        *,
        consistency: Consistency = "linearizable",
        max_staleness_ms: float | None = None,
        timeout: float | None = None,
    ) -> bytes | None:
        """As `raftha.HaManager.get`; what a lease lets it answer, without giving up the loop."""
        commands.check_key(key)
        if consistency == "linearizable" and max_staleness_ms is None:
            leased = read_leased(self._runtime, self.config, key, timeout)
            if not isinstance(leased, Missed):
                return leased
        value: bytes | None = await self._read(
            lambda node: node.state.get(key), consistency, max_staleness_ms, timeout, len(key)
        )
        return value

    def leased(self, key: bytes) -> bytes | Missed | None:
        """As `get`, at once, if this node leads and holds a lease; else `lease_reads.MISSED`."""
        commands.check_key(key)
        return read_leased(self._runtime, self.config, key, None)

    async def get_many(
        self,
        keys: Sequence[bytes],
        *,
        consistency: Consistency = "linearizable",
        max_staleness_ms: float | None = None,
        timeout: float | None = None,
    ) -> list[bytes | None]:
        """As `raftha.HaManager.get_many`."""
        return await self.submit_get_many(
            keys, consistency=consistency, max_staleness_ms=max_staleness_ms, timeout=timeout
        )

    def submit_get_many(
        self,
        keys: Sequence[bytes],
        *,
        consistency: Consistency = "linearizable",
        max_staleness_ms: float | None = None,
        timeout: float | None = None,
    ) -> asyncio.Future[list[bytes | None]]:
        """As `get_many`, without waiting."""
        return self._read(
            many_reader(keys),
            consistency,
            max_staleness_ms,
            timeout,
            64 * len(keys) + sum(map(len, keys)),
        )

    def submit_get_each(
        self, groups: Sequence[Sequence[bytes]], *, bytes_max: int, timeout: float | None = None
    ) -> asyncio.Future[list[list[bytes | None] | InvalidRequest]]:
        """Read several groups of keys, without waiting; a result for each of the first groups.

        A group's values are as of one moment. They are InvalidRequest if they are over 16 MiB. The
        reading ends with the group that brings all values to `bytes_max` bytes, so the list may be
        shorter than `groups`; it is never empty.
        """
        asked_bytes = sum(64 + sum(map(len, keys)) + 64 * len(keys) for keys in groups)
        return self._read(
            each_reader(groups, bytes_max), "linearizable", None, timeout, asked_bytes
        )

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
        read = scan_reader(start, end, limit, reverse)
        pairs: list[tuple[bytes, bytes]] = await self._read(
            read, consistency, max_staleness_ms, timeout
        )
        return pairs

    async def count(
        self,
        *,
        consistency: Consistency = "linearizable",
        max_staleness_ms: float | None = None,
        timeout: float | None = None,
    ) -> int:
        """As `raftha.HaManager.count`."""
        count: int = await self._read(
            lambda node: node.state.count(), consistency, max_staleness_ms, timeout
        )
        return count

    async def digest(self, sequence: int | None = None, *, timeout: float | None = None) -> Digest:
        """As `raftha.HaManager.digest`."""
        check_count("sequence", sequence)
        future: asyncio.Future[Digest] = _future()
        deadline = deadline_of(self.config, timeout)
        self._hand_over(DigestOperation(future, deadline, sequence or 0))
        return await future

    async def failover_to(self, node_id: int, *, timeout: float | None = None) -> None:
        """As `raftha.HaManager.failover_to`."""
        check_count("node_id", node_id)
        future: asyncio.Future[None] = _future()
        self._hand_over(TransferOperation(future, deadline_of(self.config, timeout), node_id))
        await future

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
        check_member(node_id, address, region)
        future: asyncio.Future[None] = _future()
        deadline = deadline_of(self.config, timeout)
        self._hand_over(
            MembershipOperation(
                future,
                deadline,
                node_id,
                adds=True,
                address=address,
                region=region or self.config.regions[0],
                is_standby=not voter,
            )
        )
        await future

    async def promote_replica(self, node_id: int, *, timeout: float | None = None) -> None:
        """As `raftha.HaManager.promote_replica`."""
        check_count("node_id", node_id)
        future: asyncio.Future[None] = _future()
        deadline = deadline_of(self.config, timeout)
        self._hand_over(MembershipOperation(future, deadline, node_id, adds=True))
        await future

    async def promote_region(self, region: str, *, timeout: float | None = None) -> tuple[int, ...]:
        """As `raftha.HaManager.promote_region`."""
        learners = learners_of(await self.get_status(), region)
        for node_id in learners:
            await self.promote_replica(node_id, timeout=timeout)
        return learners

    async def remove_replica(self, node_id: int, *, timeout: float | None = None) -> None:
        """As `raftha.HaManager.remove_replica`."""
        check_count("node_id", node_id)
        future: asyncio.Future[None] = _future()
        deadline = deadline_of(self.config, timeout)
        self._hand_over(MembershipOperation(future, deadline, node_id, adds=False))
        await future

    @property
    def replication(self) -> AsyncReplicationManager:
        """How the replicas are, and who is one."""
        return AsyncReplicationManager(self)

    # ---------------------------------------------------------------- not in this version

    @property
    def backup(self) -> NoReturn:
        """Raises NotAvailable: backups come with a later version."""
        raise no_backups()

    @property
    def pitr(self) -> NoReturn:
        """Raises NotAvailable: point-in-time recovery comes with a later version."""
        raise no_recovery()

    async def trigger_backup(self, mode: str | None = None, *, wait: bool = False) -> NoReturn:
        """Raises NotAvailable."""
        raise no_backups()

    async def recover_to_point(self, timestamp: datetime) -> NoReturn:
        """Raises NotAvailable."""
        raise no_recovery()

    async def recover_to_sequence(self, sequence: int) -> NoReturn:
        """Raises NotAvailable."""
        raise no_recovery()

    # ---------------------------------------------------------------- how a call is made

    def _read(
        self,
        read: Callable[[Node], Any],
        consistency: Consistency,
        max_staleness_ms: float | None,
        timeout: float | None,
        asked_bytes: int = 0,
    ) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = _future()
        deadline = deadline_of(self.config, timeout)
        is_linearizable, max_age_s = check_consistency(consistency, max_staleness_ms)
        self._hand_over(
            ReadOperation(
                future,
                deadline,
                read,
                is_linearizable=is_linearizable,
                max_age_s=max_age_s,
                asked_bytes=asked_bytes,
            )
        )
        return future

    def _hand_over(self, operation: Operation) -> None:
        """Hand over together what all tasks of this loop submit before it turns."""
        if self._runtime is None:
            raise Stopped("the node was not started")
        loop = operation.waiter.get_loop()
        batch = self._batches.get(loop)
        if batch is None:
            self._batches[loop] = [operation]
            loop.call_soon(self._flush, loop)
        else:
            batch.append(operation)

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        batch = self._batches.pop(loop, None)
        if batch is None:
            return  # Somebody couldn't wait for it.
        assert self._runtime is not None
        self._watch(loop)
        error: RafthaError = overloaded()
        try:
            refused = self._runtime.submit(batch)
        except RafthaError as ended:
            error, refused = ended, batch
        for operation in refused:
            if not operation.waiter.done():
                operation.waiter.set_exception(error)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        overdue = self._overdue.get(loop)
        if overdue is None:
            for other in [other for other in self._overdue if other.is_closed()]:
                del self._overdue[other]
            overdue = self._overdue[loop] = Overdue(self._unanswered)
        overdue.watch()

    def _unanswered(self) -> Sequence[Operation]:
        return () if self._runtime is None else self._runtime.unanswered()


def _stop_orphan(opening: asyncio.Task[Runtime]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        threading.Thread(target=opening.result().stop, daemon=True).start()


def _future() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()
