"""Each call, written once for both managers: its checks, its packing, and the operation it makes.

A method of `Calls` checks its arguments, raises `InvalidRequest` if one is wrong, and returns an
operation without waiter and deadline. A manager's `_run` adds both and submits the operation. An
`async_fire_forget` write already has the waiter `RELEASED`, since its caller doesn't wait.

Nothing here waits or keeps state, so any thread may call it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from raftha.config import HaConfig
from raftha.errors import InvalidRequest
from raftha.node.arguments import (
    Consistency,
    check_consistency,
    check_count,
    check_group,
    check_timeout,
)
from raftha.node.key_reads import KEY_RECORD_BYTES, check_keys, read_groups, read_keys
from raftha.node.lease_reads import MISSED, Missed
from raftha.node.modes import Mode, Quorum, acks_of
from raftha.node.node import Node
from raftha.node.operations import (
    AT_ONCE,
    MAJORITY,
    AcknowledgedWrite,
    CallOperation,
    DigestOperation,
    GroupOperation,
    MembershipOperation,
    ReadOperation,
    TransferOperation,
    WriteOperation,
)
from raftha.runtime.runtime import Runtime
from raftha.storage.state import commands
from raftha.storage.state.commands import Condition
from raftha.storage.state.commands import Operation as TransactionOperation
from raftha.storage.state.owners import make_owner
from raftha.types import RELEASED, HaStatus

AdminOperation = TransferOperation | MembershipOperation

T_co = TypeVar("T_co", covariant=True)


class Read(Protocol[T_co]):
    """A `ReadOperation` whose result is a `T_co`."""

    @property
    def read(self) -> Callable[[Any], T_co]:
        """Read from a node, on its thread."""


class Calls:
    """The calls of one manager; `raftha.HaManager` describes each."""

    def __init__(self, config: HaConfig) -> None:
        self._config = config
        self._timeout_s = config.request_timeout_s
        self._value_bytes_max = config.value_bytes_max
        self._acks = acks_of(config.replication)

    def deadline(self, timeout: float | None) -> float:
        """The moment, on the monotonic clock, by which a call made now ends."""
        if timeout is None:
            return time.monotonic() + self._timeout_s
        check_timeout(timeout)
        return time.monotonic() + timeout

    # ---------------------------------------------------------------- writes

    def put(self, key: bytes, value: bytes, mode: Mode, quorum: Quorum) -> WriteOperation:
        return self._write(commands.pack_put(key, value, self._value_bytes_max), mode, quorum)

    def delete(self, key: bytes, mode: Mode, quorum: Quorum) -> WriteOperation:
        return self._write(commands.pack_delete(key), mode, quorum)

    def compare_and_set(
        self, key: bytes, expected: bytes | None, value: bytes | None, mode: Mode, quorum: Quorum
    ) -> WriteOperation:
        packed = commands.pack_compare_and_set(key, expected, value, self._value_bytes_max)
        return self._write(packed, mode, quorum)

    def transaction(
        self,
        conditions: Sequence[Condition],
        operations: Sequence[TransactionOperation],
        otherwise: Sequence[TransactionOperation],
        mode: Mode,
        quorum: Quorum,
    ) -> WriteOperation:
        parts = conditions, operations, otherwise
        return self._write(commands.pack_transaction(*parts, self._value_bytes_max), mode, quorum)

    def execute(self, name: str, args: Sequence[Any], mode: Mode, quorum: Quorum) -> WriteOperation:
        return self._write(commands.pack_call(name, args), mode, quorum, name)

    def submit(self, packed: bytes, mode: Mode, quorum: Quorum) -> WriteOperation:
        name = commands.check_packed(packed)
        return self._write(packed, mode, quorum, name)

    def _write(self, packed: bytes, mode: Mode, quorum: Quorum, call: str = "") -> WriteOperation:
        """`call` names the command that it calls."""
        acks = self._acks
        if mode is not None or quorum is not None:
            acks = acks_of(self._config.replication, mode, quorum)
        if call:
            if acks == AT_ONCE:
                return CallOperation(RELEASED, 0.0, packed, call)
            return CallOperation(None, 0.0, packed, call, acks)
        if acks == MAJORITY:
            return WriteOperation(None, 0.0, packed)
        if acks == AT_ONCE:
            return WriteOperation(RELEASED, 0.0, packed)
        return AcknowledgedWrite(None, 0.0, packed, acks)

    # ---------------------------------------------------------------- sessions of outside clients

    def open_session(self, client: str) -> GroupOperation:
        owner = make_owner(self._config.node_id, client)
        return GroupOperation(None, 0.0, 0, 0, 0, [], owner=owner)

    def submit_once(
        self, session: int, number: int, floor: int, packed: Sequence[bytes]
    ) -> GroupOperation:
        names = check_group(session, number, floor, packed)
        # A client that numbers its groups needs their outcomes, whatever the config's mode.
        acks = MAJORITY if self._acks == AT_ONCE else self._acks
        return GroupOperation(None, 0.0, session, number, floor, list(packed), acks, names=names)

    # ---------------------------------------------------------------- reads

    def get(
        self, key: bytes, consistency: Consistency, max_staleness_ms: float | None
    ) -> Read[bytes | None]:
        """The caller has tried `read_by_lease` first, which checks `key`."""
        return _read(lambda node: node.state.get(key), consistency, max_staleness_ms, len(key))

    def get_many(
        self, keys: Sequence[bytes], consistency: Consistency, max_staleness_ms: float | None
    ) -> Read[list[bytes | None]]:
        keys, size = check_keys(keys)
        return _read(
            lambda node: read_keys(node.state, keys)[0], consistency, max_staleness_ms, size
        )

    def get_each(
        self, groups: Sequence[Sequence[bytes]], bytes_max: int
    ) -> Read[list[list[bytes | None] | InvalidRequest]]:
        checked = [check_keys(keys) for keys in groups]
        size = sum(KEY_RECORD_BYTES + size for _, size in checked)
        groups = [keys for keys, _ in checked]
        return _read(
            lambda node: read_groups(node.state, groups, bytes_max), "linearizable", None, size
        )

    def scan(
        self,
        start: bytes | None,
        end: bytes | None,
        limit: int,
        reverse: bool,
        consistency: Consistency,
        max_staleness_ms: float | None,
    ) -> Read[list[tuple[bytes, bytes]]]:
        def read(node: Node) -> list[tuple[bytes, bytes]]:
            return node.state.scan(start, end, limit=limit, reverse=reverse)  # Checks them too.

        return _read(read, consistency, max_staleness_ms)

    def count(self, consistency: Consistency, max_staleness_ms: float | None) -> Read[int]:
        return _read(lambda node: node.state.count(), consistency, max_staleness_ms)

    def status(self) -> Read[HaStatus]:
        return _read(Node.status, "stale", None)

    def digest(self, sequence: int | None) -> DigestOperation:
        check_count("sequence", sequence)
        return DigestOperation(None, 0.0, sequence or 0)

    # ---------------------------------------------------------------- leader and members

    def failover_to(self, node_id: int) -> TransferOperation:
        check_count("node_id", node_id)
        return TransferOperation(None, 0.0, node_id)

    def add_replica(
        self, node_id: int, address: str, region: str, voter: bool
    ) -> MembershipOperation:
        check_count("node_id", node_id)
        _check_place(address, region)
        region = region or self._config.regions[0]
        return MembershipOperation(
            None, 0.0, node_id, adds=True, address=address, region=region, is_standby=not voter
        )

    def move_replica(self, node_id: int, address: str, region: str) -> MembershipOperation:
        check_count("node_id", node_id)
        if not (address or region):
            raise InvalidRequest("move_replica needs an address, or a region, or both")
        _check_place(address, region)
        return MembershipOperation(
            None, 0.0, node_id, adds=False, address=address, region=region, moves=True
        )

    def promote_replica(self, node_id: int) -> MembershipOperation:
        check_count("node_id", node_id)
        return MembershipOperation(None, 0.0, node_id, adds=True)

    def remove_replica(self, node_id: int) -> MembershipOperation:
        check_count("node_id", node_id)
        return MembershipOperation(None, 0.0, node_id, adds=False)


def _check_place(address: str, region: str) -> None:
    for name, value in (("address", address), ("region", region)):
        if type(value) is not str or len(value) > 512:
            raise InvalidRequest(f"{name} must be text of at most 512 characters")


def read_by_lease(
    runtime: Runtime | None,
    key: bytes,
    consistency: Consistency,
    max_staleness_ms: float | None,
    timeout: float | None,
) -> bytes | Missed | None:
    """Read `key` on this thread; `MISSED` without a lease or if the call asks for another read.

    Raises InvalidRequest if `key` is wrong, in either case.
    """
    commands.check_key(key)
    if consistency != "linearizable" or max_staleness_ms is not None or runtime is None:
        return MISSED
    if timeout is not None:
        check_timeout(timeout)
    return runtime.node.lease_reads.get(key)


def _read(
    read: Callable[[Node], Any],
    consistency: Consistency,
    max_staleness_ms: float | None,
    read_bytes: int = 0,
) -> ReadOperation:
    exact, age_s = check_consistency(consistency, max_staleness_ms)
    return ReadOperation(
        None, 0.0, read, is_linearizable=exact, max_age_s=age_s, read_bytes=read_bytes
    )
