"""`ha.pitr`: recovery of the cluster to an earlier moment, for both managers.

Theory of operation. As with backups (`backup.py`): which moments have names, and which recoveries
there were, the cluster's log says, so any node answers from its own copy. A call that changes
something goes to the leader. What reads a repository runs on the calling thread, or on one of
asyncio's, and never on the node's.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from raftha.api.backup import Run, check_name
from raftha.api.calls import Read
from raftha.config import HaConfig, PitrConfig
from raftha.errors import InvalidRequest
from raftha.node.backup.results import points_of, recovery_of
from raftha.node.messages import BackupAction
from raftha.node.node import Node
from raftha.node.operations import BackupOperation, ReadOperation
from raftha.recovery import RecoveryPoint, RecoveryPointKind, RecoveryResult
from raftha.storage.state.catalog import MarkNow, encode_change

T = TypeVar("T")


class RecoveryCalls:
    """The calls of `ha.pitr`, checked and packed once for both managers."""

    def __init__(self, config: HaConfig) -> None:
        self._config = config

    @property
    def config(self) -> PitrConfig:
        """The node's settings. InvalidRequest if recovery is off."""
        if self._config.archive is None:
            hint = "add the table [backup], in Python backup=BackupConfig()"
            if self._config.backup is not None:
                hint = "set enable_pitr = true"
            raise InvalidRequest("this node has no settings for recovery", hint=hint)
        return self._config.archive

    def sequence(self) -> Read[int]:
        return _read(lambda node: node.state.applied.last_sequence)

    def checkpoint(self) -> BackupOperation:
        return BackupOperation(None, 0.0, BackupAction.CHECKPOINT, b"")

    def mark(self, name: str) -> BackupOperation:
        check_name(name)
        payload = encode_change(MarkNow(name))
        return BackupOperation(None, 0.0, BackupAction.CHANGE, payload)

    def points(self) -> Read[tuple[RecoveryPoint, ...]]:
        return _read(_points)

    def recoveries(self) -> Read[tuple[RecoveryResult, ...]]:
        return _read(lambda node: tuple(map(recovery_of, node.state.catalog.recoveries.records())))

    def noted(self, entry: int) -> Read[RecoveryPoint]:
        """The point that this entry has noted."""

        def read(node: Node) -> RecoveryPoint:
            catalog = node.state.catalog
            index = next((p.index for p in catalog.points() if p.noted == entry), entry)
            return next(p for p in _points(node) if p.index == index and p.kind in _NOTED)

        return _read(read)


class PitrManager:
    """`ha.pitr`: recovery of the cluster to an earlier moment, from any of its nodes."""

    def __init__(self, calls: RecoveryCalls, run: Run) -> None:
        self._calls = calls
        self._run = run

    @property
    def config(self) -> PitrConfig:
        """`HaConfig.pitr`. Raises InvalidRequest if recovery is off."""
        return self._calls.config

    def _ask(self, call: Read[T]) -> T:
        result: T = self._run(call, None)
        return result

    def get_current_sequence(self) -> int:
        """The last command that this node has applied."""
        return self._ask(self._calls.sequence())

    def mark(self, name: str, *, timeout: float | None = None) -> RecoveryPoint:
        """Give a name to this moment: after all writes that were acknowledged before the call.

        The last 1,000 names are kept. Raises InvalidRequest if the name is taken.
        """
        return self._ask(self._calls.noted(self._run(self._calls.mark(name), timeout)))

    def capture_checkpoint(self, *, timeout: float | None = None) -> RecoveryPoint:
        """Have the members' states compared now, and note a recovery point.

        It returns once the log up to the point is in a destination. The point has
        all writes that were acknowledged before the call, and tells whether a majority had the same
        state (`is_consistent`). Each member hashes its whole state, about 1 s for 1.5 million keys.

        Raises RequestTimeout if the comparison, or the archive, takes longer than the time-out;
        the point may yet be noted. Raises InvalidRequest if the leader has no settings for
        recovery, and UpgradePending if the cluster doesn't use the protocol that has it yet.
        """
        return self._ask(self._calls.noted(self._run(self._calls.checkpoint(), timeout)))

    def list_recovery_points(self) -> tuple[RecoveryPoint, ...]:
        """The moments that the log knows, oldest first: backups, checkpoints, marks, recoveries.

        Those that are no longer in the window are listed too, until the log forgets them.
        """
        return self._ask(self._calls.points())

    def find_nearest_recovery_point(self, timestamp: datetime) -> RecoveryPoint | None:
        """The last moment of `list_recovery_points` at or before this time; None if there is none.

        To go back to a later one would bring back what happened in between.
        """
        return nearest(self.list_recovery_points(), timestamp)

    def list_recoveries(self) -> tuple[RecoveryResult, ...]:
        """The recoveries of this cluster, the oldest first: up to 100."""
        return self._ask(self._calls.recoveries())


class AsyncPitrManager:
    """As `raftha.PitrManager`, awaited."""

    def __init__(self, calls: RecoveryCalls, run: Run) -> None:
        self._calls = calls
        self._run = run

    @property
    def config(self) -> PitrConfig:
        """As `raftha.PitrManager.config`."""
        return self._calls.config

    async def _ask(self, call: Read[T]) -> T:
        result: T = await self._run(call, None)
        return result

    async def get_current_sequence(self) -> int:
        """As `raftha.PitrManager.get_current_sequence`."""
        return await self._ask(self._calls.sequence())

    async def mark(self, name: str, *, timeout: float | None = None) -> RecoveryPoint:
        """As `raftha.PitrManager.mark`."""
        return await self._ask(self._calls.noted(await self._run(self._calls.mark(name), timeout)))

    async def capture_checkpoint(self, *, timeout: float | None = None) -> RecoveryPoint:
        """As `raftha.PitrManager.capture_checkpoint`."""
        entry = await self._run(self._calls.checkpoint(), timeout)
        return await self._ask(self._calls.noted(entry))

    async def list_recovery_points(self) -> tuple[RecoveryPoint, ...]:
        """As `raftha.PitrManager.list_recovery_points`."""
        return await self._ask(self._calls.points())

    async def find_nearest_recovery_point(self, timestamp: datetime) -> RecoveryPoint | None:
        """As `raftha.PitrManager.find_nearest_recovery_point`."""
        return nearest(await self.list_recovery_points(), timestamp)

    async def list_recoveries(self) -> tuple[RecoveryResult, ...]:
        """As `raftha.PitrManager.list_recoveries`."""
        return await self._ask(self._calls.recoveries())


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NOTED = (RecoveryPointKind.CHECKPOINT, RecoveryPointKind.MARK)


def nearest(points: tuple[RecoveryPoint, ...], timestamp: datetime) -> RecoveryPoint | None:
    """The last point at or before this time."""
    time_us = microseconds("timestamp", timestamp)
    return next((point for point in reversed(points) if point.time_us <= time_us), None)


def microseconds(name: str, moment: datetime) -> int:
    """A moment in microseconds since 1970 UTC. InvalidRequest unless it says of which time zone."""
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise InvalidRequest(f"{name} must be a datetime with a time zone", hint="datetime.UTC")
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _points(node: Node) -> tuple[RecoveryPoint, ...]:
    return points_of(node.state.catalog, node.core.membership.lineage)


def _read(read: Callable[[Node], Any]) -> ReadOperation:
    return ReadOperation(None, 0.0, read, is_linearizable=False)
