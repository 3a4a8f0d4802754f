"""`HaManager`, blocking: for any thread of a server process.

    with raftha.HaManager(config) as ha:
        receipt = ha.put(b"key", b"value")

Every call has a deadline (`timeout` in seconds; by default the config's) and ends in one of three
ways. If it returns, it has happened. If it raises `Rejected`, it did not and will not happen. If it
raises `Indeterminate`, it may have happened. `raftha.aio.HaManager` has the same names, awaited.

A write returns once a majority has it on disk, unless `HaConfig.replication`, or `mode` and
`write_quorum` of the call, say otherwise. A write that waits for more than a majority may raise
`AcknowledgementTimeout` after `ack_timeout_ms`: it is committed all the same.

Any node takes any call and forwards what only the leader can do. Reads are linearizable by default.
`consistency="stale"` reads what this node has; `max_staleness_ms` does so if that isn't older. On a
leader with a lease (`HaConfig.lease_ms`) the calling thread answers `get` itself.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, NoReturn, TypeVar, overload

from raftha.api.calls import AdminOperation, Calls, Consistency, Read, read_by_lease
from raftha.api.lifecycle import NOT_STARTED, check_asserts, last_status, learners_of
from raftha.api.modes import Mode
from raftha.api.unavailable import no_backups, no_recovery
from raftha.config import HaConfig, ReplicationConfig
from raftha.errors import Forked, Stopped
from raftha.node.lease_reads import Missed
from raftha.node.operations import DigestOperation, WriteOperation
from raftha.node.statistics import Statistics
from raftha.runtime import forks
from raftha.runtime.callers import FireForgetCounter, ThreadWaiter, overloaded
from raftha.runtime.event_bus import EventBus, EventStream
from raftha.runtime.runtime import Runtime
from raftha.storage.state.commands import Condition
from raftha.storage.state.commands import Operation as TransactionOperation
from raftha.storage.state.machine import StateMachine
from raftha.types import RELEASED, Digest, HaStatus, Receipt, ReplicaStatus, ReplicationState

T = TypeVar("T")


class HaManager:
    """A node of the cluster, inside this process. All methods may be called from any thread."""

    def __init__(self, config: HaConfig, *, state_machine: StateMachine | None = None) -> None:
        """`state_machine` adds commands of your own; all nodes need the same one."""
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
        """Open the data directory and join the cluster; does nothing if the node runs.

        A node that has failed starts again. Returns once peers can connect; there may not be a
        leader yet, and calls wait for one. ConfigError or StorageError if the node can't start,
        Forked if it runs in the process that this one was forked from.
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
        """Stop the node; a leader hands over first. Does nothing if the node doesn't run.

        In a process that was forked after `start` it does nothing: the node doesn't run there.
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

    def __exit__(self, *error: object) -> None:
        self.stop()

    def get_status(self) -> HaStatus:
        """This node's role, term, leader, log pointers, members. Works on a failed node too."""
        try:
            status = self._run(self._calls.status(), None)
        except Stopped:  # It was not started, or has ended, perhaps while it was asked.
            status = last_status(self._runtime, self.config)
        return self._events.add_counts(replace(status, fire_forget=self._fire_forget.counts))

    def events(self) -> EventStream:
        """A stream of this node's events from now on, in order; works before `start` too.

        The stream lasts until it is closed, also while the node is stopped and started again.
        """
        if self._runtime is not None and self._runtime.is_inherited:
            raise Forked
        return EventStream(self._events.subscribe())

    def observe(self) -> tuple[HaStatus, Statistics]:
        """Status and statistics, for `raftha.metrics.Collector`.

        Waits for the node's thread; RequestTimeout if that doesn't answer within 2 s.
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
        """Remove `key`; the receipt's `result` says whether it was there."""
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
        """Set `key` to `value` if it is `expected`; None means «not there» in both places.

        The receipt is true if it was set, false if something else was there.
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
        """Do all `operations` if all `conditions` hold, else all of `otherwise`; atomically.

        The receipt is true if the conditions held; `result` has one item for each operation done.
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
        """Run a command of the state machine; `result` is what it returned.

        CommandFailed if the command raised: it then changed nothing.
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
        """The value of `key`; None if it isn't there.

        With `max_staleness_ms`, this node answers at once if it knows that its state is no older
        than that; if not, the read is linearizable. The age of the state is exact: the time since
        the node began the last round of asking a leader how far to apply that it has applied.
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
        """The values of all `keys`, as of one moment."""
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
        """Up to `limit` pairs with keys in [start, end), in key order; None means unbounded.

        `reverse` reads from the end of the range backwards. For more, scan on from the last key.
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
        """The number of keys."""
        return self._run(self._calls.count(consistency, max_staleness_ms), timeout)

    def digest(self, sequence: int | None = None, *, timeout: float | None = None) -> Digest:
        """A hash over this node's own contents, as they were after one command.

        The command is the last one of the first log entry that ends at or after `sequence`: the
        same on every node that is asked before it gets there. It is the current one if `sequence`
        has passed or is None. Compare digests of equal `sequence` only. Writes continue meanwhile.
        Unavailable if it takes too long.
        """
        return self._run(self._calls.digest(sequence), timeout)

    def failover_to(self, node_id: int, *, timeout: float | None = None) -> None:
        """Transfer leadership to `node_id`; returns once that node leads.

        If no leader is known, the node is asked to campaign; it needs a majority to win. This is
        how an operator promotes a node without `auto_failover`.

        TransferFailed if the node isn't a voter or can't be reached, or if no node leads by the
        deadline. RequestTimeout if another still leads then; the transfer may yet happen.
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
        """Add a node that listens for peers at `address`; returns once it is a voter.

        Start the node with its own `address` and the `members` that the cluster began with. It
        receives the log as a learner first. `node_id` must be new. Without a `region` the node is
        in the first of this node's `regions`; a node never changes its region.

        With `voter=False` the node stays a learner, a warm standby, until `promote_replica`: it
        receives everything and counts for no quorum. The call returns once the node is a member.

        MembershipChangePending if another change is under way. ReplicaTooSlow if the node doesn't
        catch up. RequestTimeout if the change isn't seen by the deadline: call again to wait.
        Unavailable if no leader was known, so none was asked.
        """
        self._run(self._calls.add_replica(node_id, address, region, voter), timeout)

    def promote_replica(self, node_id: int, *, timeout: float | None = None) -> None:
        """Make a standby a voter once it has caught up; returns and raises as `add_replica`."""
        self._run(self._calls.promote_replica(node_id), timeout)

    def promote_region(self, region: str, *, timeout: float | None = None) -> tuple[int, ...]:
        """Make all learners of a region voters, one after the other; return their ids.

        `timeout` is for each of them. If one fails, those before it are voters: call again for the
        rest.
        """
        learners = learners_of(self.get_status(), region)
        for node_id in learners:
            self.promote_replica(node_id, timeout=timeout)
        return learners

    def remove_replica(self, node_id: int, *, timeout: float | None = None) -> None:
        """Remove a node for good; returns once it is removed. A leader hands over first."""
        self._run(self._calls.remove_replica(node_id), timeout)

    @property
    def replication(self) -> ReplicationManager:
        """The state of the replicas, and the calls that change which nodes are members."""
        return ReplicationManager(self)

    # ---------------------------------------------------------------- not in this version

    backup = property(no_backups)
    pitr = property(no_recovery)

    def trigger_backup(self, mode: str | None = None, *, wait: bool = False) -> NoReturn:
        """Raises NotAvailable."""
        no_backups()

    def recover_to_point(self, timestamp: datetime) -> NoReturn:
        """Raises NotAvailable."""
        no_recovery()

    def recover_to_sequence(self, sequence: int) -> NoReturn:
        """Raises NotAvailable."""
        no_recovery()

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
        call.deadline = deadline = self._calls.deadline(timeout)
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
    """`ha.replication`: the reference's names for what the manager itself says and does.

    `promote_to_primary` is the manager's `failover_to`; the others have the manager's names. Every
    node shows the same replicas: the leader measures them and tells the others.
    """

    def __init__(self, ha: HaManager) -> None:
        self._ha = ha
        self.promote_to_primary = ha.failover_to
        self.promote_replica = ha.promote_replica
        self.promote_region = ha.promote_region
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
        """As `HaManager.add_replica`, in the order of the reference's arguments."""
        self._ha.add_replica(node_id, address, region=region, voter=voter, timeout=timeout)
