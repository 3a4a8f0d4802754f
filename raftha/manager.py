"""`HaManager`: the blocking way in, for any thread of a server process.

    with raftha.HaManager(config) as ha:
        receipt = ha.put(b"key", b"value")

Every call has a deadline (`timeout`, in seconds; by default the config's) and ends in one of three
ways: it returns, and what it says has happened; it raises `Rejected`, and the request did not and
will not happen; it raises `Indeterminate`, and it may have. `raftha.aio.HaManager` has the same
names, awaited.

A write returns once a majority has it on disk, unless `HaConfig.replication`, or `mode` and
`write_quorum` of the call, say otherwise. With more than a majority it may raise
`AcknowledgementTimeout` after `ack_timeout_ms`: then it is committed all the same.

Any node takes any call: what only the leader can do is sent there. Reads are linearizable unless
`consistency="stale"` asks for whatever this node has at once, or `max_staleness_ms` for what it has
if that isn't older. A leader with a lease (`HaConfig.lease_ms`) answers `get` by the calling thread
itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from types import TracebackType
from typing import Any, Literal, NoReturn

from raftha.api.modes import RELEASED, Mode, acks_of, make_write
from raftha.api.replication import ReplicationManager
from raftha.api.unavailable import no_backups, no_recovery
from raftha.config import DAY_MS, HaConfig
from raftha.errors import (
    ConfigError,
    Forked,
    InvalidRequest,
    Overloaded,
    Stopped,
)
from raftha.node.lease_reads import MISSED, Missed
from raftha.node.node import Node
from raftha.node.operations import (
    AT_ONCE,
    DigestOperation,
    MembershipOperation,
    Operation,
    ReadOperation,
    TransferOperation,
    WriteOperation,
)
from raftha.node.statistics import Statistics
from raftha.runtime import forks
from raftha.runtime.callers import GRACE_S, Tally, ThreadWaiter, no_answer
from raftha.runtime.event_bus import EventBus, EventStream
from raftha.runtime.runtime import Runtime
from raftha.storage.state import commands
from raftha.storage.state.commands import Condition
from raftha.storage.state.commands import Operation as TransactionOperation
from raftha.storage.state.machine import SCAN_BYTES_MAX, StateMachine
from raftha.types import Digest, HaStatus, Receipt

Consistency = Literal["linearizable", "stale"]


class HaManager:
    """A node of the cluster, inside this process. All methods may be called from any thread."""

    def __init__(self, config: HaConfig, *, state_machine: StateMachine | None = None) -> None:
        """`state_machine` adds commands of your own; all nodes need the same."""
        self.config = config
        self._machine = state_machine
        self._runtime: Runtime | None = None
        self._events = EventBus(config.on_event)
        self._renew_locks()
        forks.renew_in_child(self, HaManager._renew_locks)

    def _renew_locks(self) -> None:
        self._lock = threading.Lock()
        self._tally = Tally()

    def start(self) -> None:
        """Open the data directory and join the cluster; does nothing if it runs already.

        A node that has failed is started anew.

        Returns once peers can connect; there may not be a leader yet, and calls wait for one.
        Raises ConfigError or StorageError if it can't start, and Forked if it runs already in the
        process that this one was forked from.
        """
        check_asserts()
        with self._lock:
            runtime = self._runtime
            if runtime is not None and not runtime.is_inherited:
                if runtime.has_ended:
                    runtime.stop()
                if runtime.is_alive:
                    self._events.start()
                    return
            runtime = Runtime(self.config, self._machine, self._events)
            runtime.start()
            self._runtime = runtime
            self._events.start()

    def stop(self) -> None:
        """Leave, handing leadership over first if this node has it; does nothing if stopped.

        Nor does it in a process that was forked after `start`: the node isn't there.
        """
        check_asserts()
        with self._lock:
            if self._runtime is not None and self._runtime.is_alive:
                self._runtime.stop()
            self._events.stop()
        self._events.join()

    def __enter__(self) -> HaManager:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def get_status(self) -> HaStatus:
        """This node's role, term, leader, log pointers, members. Works on a failed node too."""
        status = replace(self._status(), fire_forget=self._tally.counts)
        return self._events.add_counts(status)

    def _status(self) -> HaStatus:
        runtime = self._runtime
        if runtime is None:
            return unstarted_status(self.config)
        if runtime.is_inherited:
            raise Forked
        if runtime.has_ended:
            return runtime.node.status()
        try:
            status: HaStatus = self._read(Node.status, "stale", None, None)
        except Stopped:
            return runtime.node.status()  # It ended while it was asked.
        return status

    def events(self) -> EventStream:
        """A stream of this node's events from now on, in order; also before `start`.

        It goes on when the node is stopped and started again, until it is closed.
        """
        if self._runtime is not None and self._runtime.is_inherited:
            raise Forked
        return EventStream(self._events.subscribe())

    def observe(self) -> tuple[HaStatus, Statistics]:
        """Status and statistics, for `raftha.metrics.Collector`, from any thread.

        Waits for the node's thread; RequestTimeout if that doesn't answer within 2 s.
        """
        if self._runtime is None:
            return unstarted_status(self.config), Statistics()
        return self._runtime.observe()

    # ---------------------------------------------------------------- writes

    def put(
        self,
        key: bytes,
        value: bytes,
        *,
        mode: Mode = None,
        write_quorum: int | None = None,
        timeout: float | None = None,
    ) -> Receipt:
        """Set `key` (1 to 511 bytes) to `value` (up to `value_bytes_max`)."""
        packed = commands.pack_put(key, value, self.config.value_bytes_max)
        return self._write(packed, timeout, mode, write_quorum)

    def delete(
        self,
        key: bytes,
        *,
        mode: Mode = None,
        write_quorum: int | None = None,
        timeout: float | None = None,
    ) -> Receipt:
        """Remove `key`; the receipt's `result` says whether it was there."""
        return self._write(commands.pack_delete(key), timeout, mode, write_quorum)

    def compare_and_set(
        self,
        key: bytes,
        expected: bytes | None,
        value: bytes | None,
        *,
        mode: Mode = None,
        write_quorum: int | None = None,
        timeout: float | None = None,
    ) -> Receipt:
        """If `key` is `expected`, set it to `value`; None means «not there» in both places.

        The receipt is true if it was set, false if something else was there.
        """
        packed = commands.pack_compare_and_set(key, expected, value, self.config.value_bytes_max)
        return self._write(packed, timeout, mode, write_quorum)

    def transaction(
        self,
        conditions: Sequence[Condition],
        operations: Sequence[TransactionOperation],
        otherwise: Sequence[TransactionOperation] = (),
        *,
        mode: Mode = None,
        write_quorum: int | None = None,
        timeout: float | None = None,
    ) -> Receipt:
        """If all `conditions` hold, do all `operations`, else all of `otherwise`; atomically.

        The receipt is true if the conditions held; `result` has one item for each operation done.
        """
        packed = commands.pack_transaction(
            conditions, operations, otherwise, self.config.value_bytes_max
        )
        return self._write(packed, timeout, mode, write_quorum)

    def execute(
        self,
        name: str,
        *args: Any,
        mode: Mode = None,
        write_quorum: int | None = None,
        timeout: float | None = None,
    ) -> Receipt:
        """Run a command of the state machine; `result` is what it returned.

        CommandFailed if it raised: then it changed nothing.
        """
        return self._write(commands.pack_call(name, args), timeout, mode, write_quorum)

    # ---------------------------------------------------------------- reads

    def get(
        self,
        key: bytes,
        *,
        consistency: Consistency = "linearizable",
        max_staleness_ms: float | None = None,
        timeout: float | None = None,
    ) -> bytes | None:
        """The value of `key`; None if it isn't there.

        With `max_staleness_ms`, as of at most so long ago: answered by this node at once, if it
        knows that it is as fresh, and as a linearizable read if it doesn't. The age is exact: the
        time since the node last began to ask a leader how far to apply, and then did.
        """
        commands.check_key(key)
        if consistency == "linearizable" and max_staleness_ms is None:
            leased = read_leased(self._runtime, self.config, key, timeout)
            if not isinstance(leased, Missed):
                return leased
        value: bytes | None = self._read(
            lambda node: node.state.get(key), consistency, max_staleness_ms, timeout
        )
        return value

    def get_many(
        self,
        keys: Sequence[bytes],
        *,
        consistency: Consistency = "linearizable",
        max_staleness_ms: float | None = None,
        timeout: float | None = None,
    ) -> list[bytes | None]:
        """The values of all `keys`, as of one moment."""
        read = many_reader(keys)
        values: list[bytes | None] = self._read(read, consistency, max_staleness_ms, timeout)
        return values

    def scan(
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
        """Up to `limit` pairs with keys in [start, end), None meaning unbounded, in key order.

        `reverse`: from the end of the range backwards. For more, go on after the last key.
        """
        read = scan_reader(start, end, limit, reverse)
        pairs: list[tuple[bytes, bytes]] = self._read(read, consistency, max_staleness_ms, timeout)
        return pairs

    def count(
        self,
        *,
        consistency: Consistency = "linearizable",
        max_staleness_ms: float | None = None,
        timeout: float | None = None,
    ) -> int:
        """How many keys there are."""
        count: int = self._read(
            lambda node: node.state.count(), consistency, max_staleness_ms, timeout
        )
        return count

    def digest(self, sequence: int | None = None, *, timeout: float | None = None) -> Digest:
        """A hash over this node's own contents, as they were after a certain command.

        That is the first end of a log entry at or after `sequence`, the same on every node that is
        asked before it gets there; the current one if it has passed, or `sequence` is None. Compare
        digests of equal `sequence` only. Writes go on meanwhile. Unavailable if it takes too long.
        """
        check_count("sequence", sequence)
        waiter, deadline = self._waiter(timeout)
        digest: Digest = self._run(DigestOperation(waiter, deadline, sequence or 0))
        return digest

    def failover_to(self, node_id: int, *, timeout: float | None = None) -> None:
        """Make `node_id` the leader, in order: returns once it is.

        Where no leader is known, the node is asked to campaign; that needs a majority. This is how
        an operator promotes without `auto_failover`.

        TransferFailed if it isn't a voter or can't be reached, or if nobody leads by the deadline.
        RequestTimeout if it hasn't happened by the deadline; it still may.
        """
        check_count("node_id", node_id)
        waiter, deadline = self._waiter(timeout)
        self._run(TransferOperation(waiter, deadline, node_id))

    def add_replica(
        self,
        node_id: int,
        address: str,
        *,
        region: str = "",
        voter: bool = True,
        timeout: float | None = None,
    ) -> None:
        """Add a node, which listens for peers at `address`: returns once it is a voter.

        The node is started with its own `address` and the `members` that the cluster began with. It
        gets the log as a learner first. MembershipChangePending: one change at a time.
        ReplicaTooSlow: it doesn't catch up. RequestTimeout: ask again, it goes on. Unavailable: no
        leader was known, so nobody was asked. `node_id` must be new. Without a `region` it is in
        the first of this node's `regions`, for good.

        With `voter=False` it stays a learner, a warm standby, until `promote_replica`: it gets
        everything, and counts for no quorum. Returns as soon as it is a member.
        """
        check_member(node_id, address, region)
        waiter, deadline = self._waiter(timeout)
        self._run(
            MembershipOperation(
                waiter,
                deadline,
                node_id,
                adds=True,
                address=address,
                region=region or self.config.regions[0],
                is_standby=not voter,
            )
        )

    def promote_replica(self, node_id: int, *, timeout: float | None = None) -> None:
        """Make a standby a voter, once it has caught up; returns as `add_replica` does."""
        check_count("node_id", node_id)
        waiter, deadline = self._waiter(timeout)
        self._run(MembershipOperation(waiter, deadline, node_id, adds=True))

    def promote_region(self, region: str, *, timeout: float | None = None) -> tuple[int, ...]:
        """Make all learners of a region voters, one after the other; return their ids.

        `timeout` is for each. If it raises, those before are voters; call it again for the rest.
        """
        learners = learners_of(self.get_status(), region)
        for node_id in learners:
            self.promote_replica(node_id, timeout=timeout)
        return learners

    def remove_replica(self, node_id: int, *, timeout: float | None = None) -> None:
        """Remove a node for good, the leader after it has handed over: returns once that is so."""
        check_count("node_id", node_id)
        waiter, deadline = self._waiter(timeout)
        self._run(MembershipOperation(waiter, deadline, node_id, adds=False))

    @property
    def replication(self) -> ReplicationManager:
        """How the replicas are, and who is one."""
        return ReplicationManager(self)

    # ---------------------------------------------------------------- not in this version

    @property
    def backup(self) -> NoReturn:
        """Raises NotAvailable: backups come with a later version."""
        raise no_backups()

    @property
    def pitr(self) -> NoReturn:
        """Raises NotAvailable: point-in-time recovery comes with a later version."""
        raise no_recovery()

    def trigger_backup(self, mode: str | None = None, *, wait: bool = False) -> NoReturn:
        """Raises NotAvailable."""
        raise no_backups()

    def recover_to_point(self, timestamp: datetime) -> NoReturn:
        """Raises NotAvailable."""
        raise no_recovery()

    def recover_to_sequence(self, sequence: int) -> NoReturn:
        """Raises NotAvailable."""
        raise no_recovery()

    # ---------------------------------------------------------------- how a call is made

    def _write(
        self, packed: bytes, timeout: float | None, mode: Mode, write_quorum: int | None
    ) -> Receipt:
        acks = acks_of(self.config.replication, mode, write_quorum)
        deadline = deadline_of(self.config, timeout)
        if acks == AT_ONCE:
            with self._tally.submitting():
                self._submit(WriteOperation(self._tally, deadline, packed))
            return RELEASED
        receipt: Receipt = self._run(make_write(ThreadWaiter(), deadline, packed, acks))
        return receipt

    def _read(
        self,
        read: Callable[[Node], Any],
        consistency: Consistency,
        max_staleness_ms: float | None,
        timeout: float | None,
    ) -> Any:
        waiter, deadline = self._waiter(timeout)
        is_linearizable, max_age_s = check_consistency(consistency, max_staleness_ms)
        operation = ReadOperation(
            waiter, deadline, read, is_linearizable=is_linearizable, max_age_s=max_age_s
        )
        return self._run(operation)

    def _waiter(self, timeout: float | None) -> tuple[ThreadWaiter, float]:
        return ThreadWaiter(), deadline_of(self.config, timeout)

    def _submit(self, operation: Operation) -> None:
        runtime = self._runtime
        if runtime is None:
            raise Stopped("the node was not started")
        if runtime.submit((operation,)):
            raise overloaded()

    def _run(self, operation: Operation) -> Any:
        waiter: ThreadWaiter = operation.waiter
        self._submit(operation)
        if not waiter.wait(max(0.0, operation.deadline - time.monotonic() + GRACE_S)):
            raise no_answer()
        if isinstance(waiter.result, Exception):
            raise waiter.result
        return waiter.result


def check_asserts() -> None:
    """Raise ConfigError if Python was told to leave asserts out."""
    if not __debug__:
        raise ConfigError(
            "raftha does not run under python -O",
            hint="its asserts stop a node before it damages data",
        )


def overloaded() -> Overloaded:
    """What a caller gets whose operation found no room."""
    return Overloaded("too many calls wait on this node", hint="try again a little later")


def deadline_of(config: HaConfig, timeout: float | None) -> float:
    """The moment, on the monotonic clock, at which a call made now ends at the latest."""
    if timeout is None:
        timeout = config.request_timeout_s
    elif not isinstance(timeout, int | float) or not 0 < timeout <= 600:
        raise InvalidRequest(f"a timeout must be over 0 and at most 600 seconds, got {timeout!r}")
    return time.monotonic() + timeout


def check_count(name: str, value: int | None) -> None:
    """Raise InvalidRequest unless it is a whole number that fits in a message, or None."""
    if value is not None and (type(value) is not int or not 0 <= value < 1 << 63):
        raise InvalidRequest(f"{name} must be a whole number of at least 0, got {value!r}")


def check_member(node_id: int, address: str, region: str) -> None:
    """Raise InvalidRequest unless these have the types of a member."""
    check_count("node_id", node_id)
    for name, value in (("address", address), ("region", region)):
        if type(value) is not str or len(value) > 512:
            raise InvalidRequest(f"{name} must be text of at most 512 characters")


def learners_of(status: HaStatus, region: str) -> tuple[int, ...]:
    """The learners of a region; InvalidRequest if it has no members at all."""
    if not status.is_running:
        raise Stopped("the node is not running")
    members = [replica for replica in status.replicas if replica.region == region]
    if not members:
        raise InvalidRequest(f"no member is in region {region!r}")
    return tuple(replica.node_id for replica in members if not replica.is_voter)


def check_consistency(
    consistency: Consistency, max_staleness_ms: float | None
) -> tuple[bool, float]:
    """Whether a read is to be linearizable, and with what age in seconds it is content.

    InvalidRequest if it is neither linearizable nor stale, or stale and bounded at once.
    """
    if consistency == "linearizable" and max_staleness_ms is None:
        return True, 0.0
    if consistency not in ("linearizable", "stale"):
        raise InvalidRequest(f'consistency is "linearizable" or "stale", got {consistency!r}')
    is_linearizable = consistency == "linearizable"
    if max_staleness_ms is None:
        return is_linearizable, 0.0
    is_number = isinstance(max_staleness_ms, int | float) and max_staleness_ms is not True
    if not is_number or not 0 <= max_staleness_ms <= DAY_MS:
        raise InvalidRequest(f"max_staleness_ms must be from 0 to {DAY_MS}")
    if not is_linearizable:
        raise InvalidRequest("a stale read has no bound; leave consistency out")
    return True, max_staleness_ms / 1000


def read_leased(
    runtime: Runtime | None, config: HaConfig, key: bytes, timeout: float | None
) -> bytes | Missed | None:
    """A linearizable read by this thread, if the node holds a lease."""
    if timeout is not None:
        deadline_of(config, timeout)  # Refuses a wrong one.
    return MISSED if runtime is None else runtime.node.leased.get(key)


def many_reader(keys: Sequence[bytes]) -> Callable[[Node], list[bytes | None]]:
    """A read of several keys, as of one moment; InvalidRequest if their values are over 16 MiB."""
    keys = list(keys)
    for key in keys:
        commands.check_key(key)
    return lambda node: _read_group(node, keys)[0]


def each_reader(
    groups: Sequence[Sequence[bytes]], bytes_max: int
) -> Callable[[Node], list[list[bytes | None] | InvalidRequest]]:
    """A read of several groups of keys, a result for each, until they have `bytes_max` bytes."""
    for keys in groups:
        for key in keys:
            commands.check_key(key)

    def read(node: Node) -> list[list[bytes | None] | InvalidRequest]:
        results: list[list[bytes | None] | InvalidRequest] = []
        size = 0
        for keys in groups:
            try:
                values, group_size = _read_group(node, keys)
            except InvalidRequest as error:
                results.append(error)
                continue
            results.append(values)
            size += group_size
            if size >= bytes_max:
                break
        return results

    return read


def _read_group(node: Node, keys: Sequence[bytes]) -> tuple[list[bytes | None], int]:
    """The values of `keys` and their size in bytes; InvalidRequest if that is over 16 MiB."""
    values, size = [], 0
    for key in keys:
        value = node.state.get(key)
        size += len(value or b"")
        if size > SCAN_BYTES_MAX:
            raise InvalidRequest(
                f"the values are over {SCAN_BYTES_MAX} bytes in all", hint="ask for fewer keys"
            )
        values.append(value)
    return values, size


def scan_reader(
    start: bytes | None, end: bytes | None, limit: int, reverse: bool
) -> Callable[[Node], list[tuple[bytes, bytes]]]:
    """A read of a range; the state checks its bounds."""
    return lambda node: node.state.scan(start, end, limit=limit, reverse=reverse)


def unstarted_status(config: HaConfig) -> HaStatus:
    """The status of a node that was never started here."""
    return HaStatus(
        is_running=False,
        is_primary=False,
        node_id=config.node_id,
        cluster_id=config.cluster_id,
        role="stopped",
        term=0,
        leader_id=None,
        first_index=0,
        last_index=0,
        persisted_index=0,
        commit_index=0,
        applied_index=0,
        checkpoint_index=0,
        sequence=0,
        failure="",
        replicas=(),
    )
