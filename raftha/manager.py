"""`HaManager`, blocking: for any thread of a server process.

    with raftha.HaManager(config) as ha:
        receipt = ha.put(b"key", b"value")

Every call has a deadline: `timeout` in seconds, by default `HaConfig.request_timeout_s`. A call
that returns has happened. A call that raises `Rejected` did not happen and will not. A call that
raises `Indeterminate` may have happened. `raftha.aio.HaManager` has the same methods, awaited.

A write returns once a majority has it on disk. `HaConfig.replication`, or `mode` and `write_quorum`
of the call, can change that. A write that waits for more than a majority may raise
`AcknowledgementTimeout` after `ack_timeout_ms`; it is committed nevertheless.

Any node accepts any call, and forwards to the leader what only the leader can do. Reads are
linearizable by default. `consistency="stale"` reads this node's own state. `max_staleness_ms` does
so only if that state is recent enough. On a leader with a lease (`HaConfig.lease_ms`) the calling
thread answers `get` itself.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar, overload

from raftha.api.backup import BackupCalls, BackupOrchestrator
from raftha.api.calls import AdminOperation, Calls, Read, read_by_lease
from raftha.api.lifecycle import NOT_STARTED, check_asserts, last_status, learners_of
from raftha.api.recovery import PitrManager, RecoveryCalls
from raftha.config import HaConfig, ReplicationConfig
from raftha.errors import Forked, Stopped
from raftha.node.arguments import Consistency
from raftha.node.lease_reads import Missed
from raftha.node.modes import Mode
from raftha.node.operations import DigestOperation, WriteOperation
from raftha.node.statistics import Statistics
from raftha.recovery import RecoveryResult
from raftha.runtime import forks
from raftha.runtime.callers import (
    FireForgetCounter,
    ThreadWaiter,
    overloaded,
    refuse_on_node_thread,
)
from raftha.runtime.event_bus import EventBus, EventStream
from raftha.runtime.runtime import Runtime
from raftha.storage.state.commands import Condition
from raftha.storage.state.commands import Operation as TransactionOperation
from raftha.storage.state.machine import StateMachine
from raftha.types import RELEASED, Digest, HaStatus, Receipt, ReplicaStatus, ReplicationState

T = TypeVar("T")


class HaManager:
    """A node of the cluster, inside this process. Any thread may call any method."""

    def __init__(self, config: HaConfig, *, state_machine: StateMachine | None = None) -> None:
        """`state_machine` adds commands of your own. All nodes need the same one."""
        self.config = config
        self._calls = Calls(config)
        self._machine = state_machine
        self._runtime: Runtime | None = None
        self._events = EventBus(config.on_event)
        self._renew_locks()
        forks.renew_in_child(self, HaManager._renew_locks)

    def _renew_locks(self) -> None:
        self._lock = threading.Lock()
        self._fire_forget = FireForgetCounter()

    def start(self) -> None:
        """Open the data directory and join the cluster. Does nothing if the node already runs.

        Returns once peers can connect. There may be no leader yet; calls wait for one. A node that
        has failed starts again. Raises ConfigError or StorageError if the node can't start, and
        Forked if it runs in the process that this one was forked from.
        """
        check_asserts()
        refuse_on_node_thread()
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
        """Stop the node; a leader hands over first. Does nothing if the node doesn't run here."""
        check_asserts()
        refuse_on_node_thread()
        with self._lock:
            if self._runtime is not None and self._runtime.is_alive:
                self._runtime.stop()
            self._events.stop()
        self._events.join()

    def __enter__(self) -> HaManager:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def get_status(self) -> HaStatus:
        """Return this node's role, term, leader, log pointers and members, even after a failure."""
        try:
            status = self._run(self._calls.status(), None)
        except Stopped:  # The node was not started, or has ended, perhaps during this call.
            status = last_status(self._runtime, self.config)
        return self._events.add_counts(replace(status, fire_forget=self._fire_forget.counts))

    def events(self) -> EventStream:
        """Return a stream of this node's events from now on, in order. Works before `start` too.

        The stream lasts until it is closed, even if the node stops and starts again.
        """
        if self._runtime is not None and self._runtime.is_inherited:
            raise Forked
        return EventStream(self._events.subscribe())

    def observe(self) -> tuple[HaStatus, Statistics]:
        """Return status and statistics, for `raftha.metrics.Collector`.

        Waits for the node's thread; raises RequestTimeout if it doesn't answer within 2 s.
        """
        if self._runtime is None:
            return last_status(None, self.config), Statistics()
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
        return self._run(self._calls.put(key, value, mode, write_quorum), timeout)

    def delete(
        self,
        key: bytes,
        *,
        mode: Mode = None,
        write_quorum: int | None = None,
        timeout: float | None = None,
    ) -> Receipt:
        """Remove `key`. The receipt's `result` is True if the key existed."""
        return self._run(self._calls.delete(key, mode, write_quorum), timeout)

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
        """Set `key` to `value` if its value is `expected`. None means that the key doesn't exist.

        The receipt is true if the key was set, and false if its value was a different one.
        """
        call = self._calls.compare_and_set(key, expected, value, mode, write_quorum)
        return self._run(call, timeout)

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
        """Do all `operations` if all `conditions` hold, else all of `otherwise`. Atomic.

        The receipt is true if the conditions held. `result` has an item for each operation done.
        """
        call = self._calls.transaction(conditions, operations, otherwise, mode, write_quorum)
        return self._run(call, timeout)

    def execute(
        self,
        name: str,
        *args: Any,
        mode: Mode = None,
        write_quorum: int | None = None,
        timeout: float | None = None,
    ) -> Receipt:
        """Run a command of the state machine. The receipt's `result` is its return value.

        Raises CommandFailed if the command raised; it then changed nothing.
        """
        return self._run(self._calls.execute(name, args, mode, write_quorum), timeout)

    # ---------------------------------------------------------------- reads

    def get(
        self,
        key: bytes,
        *,
        consistency: Consistency = "linearizable",
        max_staleness_ms: float | None = None,
        timeout: float | None = None,
    ) -> bytes | None:
        """Return the value of `key`, or None if the key doesn't exist.

        With `max_staleness_ms`, this node answers at once if its state is known to be no older;
        otherwise the read is linearizable. The age of the state counts from the start of the last
        linearizable round that the node has applied, so the bound is exact.
        """
        value = read_by_lease(self._runtime, key, consistency, max_staleness_ms, timeout)
        if isinstance(value, Missed):
            value = self._run(self._calls.get(key, consistency, max_staleness_ms), timeout)
        return value

    def get_many(
        self,
        keys: Sequence[bytes],
        *,
        consistency: Consistency = "linearizable",
        max_staleness_ms: float | None = None,
        timeout: float | None = None,
    ) -> list[bytes | None]:
        """Return the values of `keys`, in order, all as of one moment: at most 16 MiB in all."""
        return self._run(self._calls.get_many(keys, consistency, max_staleness_ms), timeout)

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
        """Return up to `limit` pairs with keys in [start, end), in key order. None means no bound.

        `reverse` reads backwards from the end of the range. To get more, continue from the last
        key returned.
        """
        call = self._calls.scan(start, end, limit, reverse, consistency, max_staleness_ms)
        return self._run(call, timeout)

    def count(
        self,
        *,
        consistency: Consistency = "linearizable",
        max_staleness_ms: float | None = None,
        timeout: float | None = None,
    ) -> int:
        """Return the number of keys."""
        return self._run(self._calls.count(consistency, max_staleness_ms), timeout)

    def digest(self, sequence: int | None = None, *, timeout: float | None = None) -> Digest:
        """Return a hash over this node's own contents, as they were after one command.

        With a `sequence` that is still to come, the command is the last one of the log entry that
        reaches it, which is the same on every node. With None, or a `sequence` that has passed, it
        is the last command applied. Compare only digests of equal `sequence`. Writes continue
        meanwhile. Raises Unavailable if the hash takes too long.
        """
        return self._run(self._calls.digest(sequence), timeout)

    def failover_to(self, node_id: int, *, timeout: float | None = None) -> None:
        """Transfer leadership to `node_id`. Returns once that node leads.

        If no leader is known, the node is asked to campaign; it needs a majority to win. Without
        `auto_failover`, operators promote a node in this way.

        Raises TransferFailed if the node isn't a voter or can't be reached, or if no node leads by
        the deadline, and RequestTimeout if another node still leads then; the transfer may yet
        happen.
        """
        self._run(self._calls.failover_to(node_id), timeout)

    def add_replica(
        self,
        node_id: int,
        address: str,
        *,
        region: str = "",
        voter: bool = True,
        timeout: float | None = None,
    ) -> None:
        """Add a node that listens for peers at `address` ("host:port"). Returns once it is a voter.

        Start the node with its own `address` and the `members` that the cluster began with. It
        receives the log as a learner first. `node_id` must never have been used before. Without a
        `region` the node is in the first of this node's `regions`.

        With `voter=False` the node stays a learner, a warm standby, until `promote_replica`: it
        receives everything and counts for no quorum. The call returns once the node is a member.

        Raises MembershipChangePending if another change is under way, ReplicaTooSlow if the node
        doesn't catch up, RequestTimeout if the change isn't seen by the deadline (call again to
        wait), and Unavailable if no leader is known, so that nothing was asked.
        """
        self._run(self._calls.add_replica(node_id, address, region, voter), timeout)

    def promote_replica(self, node_id: int, *, timeout: float | None = None) -> None:
        """Make a standby a voter once it has caught up. Returns and raises as `add_replica`."""
        self._run(self._calls.promote_replica(node_id), timeout)

    def move_replica(
        self, node_id: int, address: str = "", region: str = "", *, timeout: float | None = None
    ) -> None:
        """Change the address at which the others dial a member, or its region, or both.

        The node itself listens where its own settings say. Returns and raises as `add_replica`.
        """
        self._run(self._calls.move_replica(node_id, address, region), timeout)

    def promote_region(self, region: str, *, timeout: float | None = None) -> tuple[int, ...]:
        """Make all learners of a region voters, in turn. Returns their ids.

        `timeout` is for each of them. If one fails, those before it are voters; call again for the
        rest.
        """
        learners = learners_of(self.get_status(), region)
        for node_id in learners:
            self.promote_replica(node_id, timeout=timeout)
        return learners

    def remove_replica(self, node_id: int, *, timeout: float | None = None) -> None:
        """Remove a node for good. Returns once it is removed. A leader hands over first."""
        self._run(self._calls.remove_replica(node_id), timeout)

    @property
    def replication(self) -> ReplicationManager:
        """The state of the replicas, and the calls that change the membership."""
        return ReplicationManager(self)

    @property
    def backup(self) -> BackupOrchestrator:
        """Backups: taking, listing, keeping and verifying them."""
        return BackupOrchestrator(BackupCalls(self.config), self._run)

    def trigger_backup(self, mode: str | None = None, *, wait: bool = False) -> int:
        """As `BackupOrchestrator.trigger_backup`."""
        return self.backup.trigger_backup(mode, wait=wait)

    @property
    def pitr(self) -> PitrManager:
        """Recovery of the cluster to an earlier moment."""
        return PitrManager(RecoveryCalls(self.config, self._machine), self._run)

    def recover_to_point(
        self, timestamp: datetime, *, freeze: str = "switch", timeout: float | None = None
    ) -> RecoveryResult:
        """As `PitrManager.recover_to_timestamp`."""
        return self.pitr.recover_to_timestamp(timestamp, freeze=freeze, timeout=timeout)

    def recover_to_sequence(
        self, sequence: int, *, freeze: str = "switch", timeout: float | None = None
    ) -> RecoveryResult:
        """As `PitrManager.recover_to_sequence`."""
        return self.pitr.recover_to_sequence(sequence, freeze=freeze, timeout=timeout)

    # ---------------------------------------------------------------- how a call is made

    @overload
    def _run(self, call: WriteOperation, timeout: float | None) -> Receipt: ...
    @overload
    def _run(self, call: Read[T], timeout: float | None) -> T: ...
    @overload
    def _run(self, call: DigestOperation, timeout: float | None) -> Digest: ...
    @overload
    def _run(self, call: AdminOperation, timeout: float | None) -> None: ...

    def _run(self, call: Any, timeout: float | None) -> Any:
        refuse_on_node_thread()
        call.deadline = deadline = call.deadline or self._calls.deadline(timeout)
        runtime = self._runtime
        if runtime is None:
            raise Stopped(NOT_STARTED)
        if call.waiter is RELEASED:
            self._fire_forget.submit(call, runtime.submit)
            return RELEASED
        call.waiter = waiter = ThreadWaiter()
        if runtime.submit((call,)):
            raise overloaded()
        return waiter.result_by(deadline)


class ReplicationManager:
    """`ha.replication`: calls of the manager and fields of its status, grouped.

    `promote_to_primary` is the manager's `failover_to`; the other calls have the manager's names.
    Every node reports the same replicas: the leader measures them and sends its report to the rest.
    """

    def __init__(self, ha: HaManager) -> None:
        self._ha = ha
        self.promote_to_primary = ha.failover_to
        self.promote_replica = ha.promote_replica
        self.promote_region = ha.promote_region
        self.move_replica = ha.move_replica
        self.remove_replica = ha.remove_replica

    @property
    def config(self) -> ReplicationConfig:
        """Modes, quorums and limits: `HaConfig.replication`."""
        return self._ha.config.replication

    def get_state(self) -> ReplicationState:
        """`HaStatus.replication_state`."""
        return self._ha.get_status().replication_state

    def get_replica_count(self) -> int:
        """`HaStatus.replica_count`."""
        return self._ha.get_status().replica_count

    def get_max_lag(self) -> int:
        """`HaStatus.replication_lag_ms`."""
        return self._ha.get_status().replication_lag_ms

    def get_quorum_size(self) -> int:
        """`HaStatus.quorum_size`."""
        return self._ha.get_status().quorum_size

    def replicas(self) -> tuple[ReplicaStatus, ...]:
        """`HaStatus.replicas`."""
        return self._ha.get_status().replicas

    def add_replica(
        self,
        node_id: int,
        region: str,
        address: str,
        *,
        voter: bool = True,
        timeout: float | None = None,
    ) -> None:
        """As `HaManager.add_replica`, with `region` before `address`."""
        self._ha.add_replica(node_id, address, region=region, voter=voter, timeout=timeout)
