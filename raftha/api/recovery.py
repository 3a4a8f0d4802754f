"""`ha.pitr`: recovery of the cluster to an earlier moment, for both managers.

Theory of operation. As with backups (`backup.py`): which moments have names, and which recoveries
there were, the cluster's log says, so any node answers from its own copy. A call that changes
something goes to the leader. What reads a repository runs on the calling thread, or on one of
asyncio's, and never on the node's.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from raftha.api.backup import Run, check_name
from raftha.api.calls import Read
from raftha.config import HaConfig, PitrConfig
from raftha.errors import InvalidRequest
from raftha.node.backup.results import points_of, recovery_of
from raftha.node.messages import BackupAction
from raftha.node.node import Node
from raftha.node.operations import BackupOperation, ReadOperation
from raftha.node.recovery.wanted import SEQUENCE, TIME, RecoveryWanted, pack_abort
from raftha.recovery import (
    DrillReport,
    RecoveryMoment,
    RecoveryPlan,
    RecoveryPoint,
    RecoveryPointKind,
    RecoveryResult,
    RecoveryState,
    RecoveryWindow,
)
from raftha.runtime.drill import run_in_process
from raftha.storage.backup import recovery
from raftha.storage.backup.drill import DrillOrder
from raftha.storage.backup.opening import open_configured
from raftha.storage.backup.planner import plan_recovery, window
from raftha.storage.backup.recovery import Target
from raftha.storage.backup.repository import Repository
from raftha.storage.backup.timeline import Moment
from raftha.storage.state.catalog import MarkNow, encode_change
from raftha.storage.state.machine import StateMachine
from raftha.storage.state.recoveries import TIMEOUT_MAX_S

FREEZES = ("switch", "now")
"""When writes wait: at the end of a recovery, or from its beginning on."""
DRILL_FOLDER = "drill-asked"
"""Where a drill that a caller asks for builds its state, in the data directory."""
ANSWER_S = 60.0
"""How much longer than its own time limit a caller waits for a recovery."""

T = TypeVar("T")
Wanted: TypeAlias = datetime | int | str | RecoveryPoint
"""A target: a time, a sequence, the name of a mark, or a point."""


class RecoveryCalls:
    """The calls of `ha.pitr`, checked and packed once for both managers."""

    def __init__(self, config: HaConfig, machine: StateMachine | None = None) -> None:
        """A drill replays commands with the class of `machine`."""
        self._config = config
        self._machine = machine

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
        return _read(_recoveries)

    def lineage(self) -> Read[str]:
        return _read(lambda node: node.core.membership.lineage)

    def target(self, wanted: Wanted, points: Iterable[RecoveryPoint]) -> Target:
        """What is asked for; `points` are those known, for a name."""
        if isinstance(wanted, RecoveryPoint):
            return Target(sequence=wanted.sequence)
        if isinstance(wanted, datetime):
            return Target(time_us=microseconds("target", wanted))
        if type(wanted) is int and wanted >= 0:
            return Target(sequence=wanted)
        if type(wanted) is not str:
            raise InvalidRequest(
                f"a target is a time, a sequence or the name of a mark, got {wanted!r:.80}"
            )
        marks = [p for p in points if p.kind is RecoveryPointKind.MARK and p.name == wanted]
        if not marks:
            raise InvalidRequest(f"there is no mark {wanted!r:.110}", hint="`raftha backup points`")
        return Target(sequence=marks[0].sequence)

    def before_last(self, recoveries: Sequence[RecoveryResult]) -> Target:
        """The moment before the last recovery."""
        restored = [each for each in recoveries if each.state is RecoveryState.RESTORED]
        if not restored:
            raise InvalidRequest("there was no recovery that could be undone")
        return Target(sequence=restored[-1].sequence - 1)

    def plan(self, target: Target, lineage: str) -> RecoveryPlan:
        """Blocks until all names are read."""
        with self._repository() as repository:
            return _shown_plan(plan_recovery(repository, target, lineage=lineage))

    def window(self, lineage: str) -> RecoveryWindow:
        """Blocks until all names are read."""
        with self._repository() as repository:
            found = window(repository, lineage)
        gaps = tuple((_moment(before), _moment(after)) for before, after in found.gaps)
        earliest, latest = _moment(found.earliest), _moment(found.latest)
        return RecoveryWindow(lineage=found.lineage, earliest=earliest, latest=latest, gaps=gaps)

    def _repository(self) -> closing[Repository]:
        assert self.config is not None, "it raises without settings"
        backup = self._config.backup
        assert backup is not None, "there is no recovery without backups"
        now_us = time.time_ns() // 1000
        return closing(open_configured(backup, may_create=False, now_us=now_us))

    def recover(self, wanted: Target, freeze: str, timeout: float | None) -> BackupOperation:
        """Have the cluster taken back."""
        limit_s = self.config.restore_timeout_s if timeout is None else timeout
        if freeze not in FREEZES:
            raise InvalidRequest(f"freeze must be one of {', '.join(FREEZES)}, got {freeze!r:.80}")
        if not isinstance(limit_s, int | float) or not 0 < limit_s <= TIMEOUT_MAX_S:
            raise InvalidRequest(f"a timeout must be over 0 and at most {TIMEOUT_MAX_S:g} seconds")
        kind, number = _packed(wanted)
        request = RecoveryWanted(
            request=1 + secrets.randbelow((1 << 62) - 1),
            kind=kind,
            number=number,
            lineage="",
            is_frozen=freeze == FREEZES[1],
            timeout_s=max(round(limit_s), 1),
            reason=str(wanted),
        )
        call = BackupOperation(None, 0.0, BackupAction.RECOVER, request.pack(), waits=True)
        call.deadline = time.monotonic() + limit_s + ANSWER_S
        return call

    def before_drill(self) -> Read[tuple[str, Mapping[int, bytes]]]:
        """The lineage, and the entries that are passed over."""
        return _read(lambda node: (node.core.membership.lineage, dict(node.state.skips)))

    def drill(self, target: Target | None, lineage: str, skips: Mapping[int, bytes]) -> DrillReport:
        """Blocks until it is done."""
        folder = Path(self._config.data_dir).absolute() / DRILL_FOLDER
        assert self.config is not None, "it raises without settings"
        backup = self._config.backup
        assert backup is not None, "there is no recovery without backups"
        order = DrillOrder(
            started_us=time.time_ns() // 1000,
            lineage=lineage,
            target=target,
            seed=secrets.randbelow(1 << 62),
            node_id=self._config.node_id,
        )
        with _alone(folder):
            return run_in_process(order, backup, folder, self._machine, skips)

    def last_drill(self) -> Read[DrillReport | None]:
        return _read(lambda node: node.backups.drilling.last)

    def after_drill(self, report: DrillReport) -> Read[DrillReport]:
        """Have the node tell of a drill."""

        def read(node: Node) -> DrillReport:
            node.backups.drilling.record(report)
            return report

        return _read(read)

    def abort(self) -> BackupOperation:
        return BackupOperation(None, 0.0, BackupAction.ABORT_RECOVERY, pack_abort(0))

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

    def window(self) -> RecoveryWindow:
        """The moments that can be restored, as the destinations tell; this process lists them.

        Raises TargetUnreachable if there are none, and RepositoryError if no destination can be
        reached.
        """
        return self._calls.window(self._ask(self._calls.lineage()))

    def plan(self, target: datetime | int | str | RecoveryPoint) -> RecoveryPlan:
        """What a recovery to a time, a sequence, a mark or a point would read. Changes nothing.

        A time is inclusive: all commands stamped at or before it stay. Raises TargetUnreachable if
        there is no such moment in the window, ArchiveGap if log is missing on the way, ChainBroken
        if a backup is, and KeyMissing if it can't be opened.
        """
        wanted = self._calls.target(target, self.list_recovery_points())
        return self._calls.plan(wanted, self._ask(self._calls.lineage()))

    def recover_to_timestamp(
        self, timestamp: datetime, *, freeze: str = "switch", timeout: float | None = None
    ) -> RecoveryResult:
        """Take the whole cluster back to a time. Returns once this node has the state of then.

        All commands stamped at or before it stay, and those after it are undone: on every member,
        at one entry of the log. The members build the state of then beside their own, while reads
        and writes go on. At the end writes wait for a moment, until the log is in a destination, so
        that `undo` is possible; with `freeze="now"` they wait from the beginning on.

        Sessions stay: a write that was acknowledged and is undone isn't applied again when its
        client repeats it. So do the membership and the backups. Sequence numbers go on.

        `timeout`: for all of it, by default `restore_timeout_s`. The recovery goes on if this call
        is given up; `list_recoveries` tells what comes of it.

        Raises what `plan` raises, RecoveryAborted if it is given up, and RequestTimeout. Nothing
        has changed then but for RequestTimeout, after which it may still come. Raises
        InvalidRequest if the leader has no settings for recovery, or another one is under way.
        """
        target = self._calls.target(timestamp, ())
        return self._recover(target, freeze, timeout)

    def recover_to_sequence(
        self, sequence: int, *, freeze: str = "switch", timeout: float | None = None
    ) -> RecoveryResult:
        """As `recover_to_timestamp`; `sequence` is the last command that stays."""
        return self._recover(self._calls.target(sequence, ()), freeze, timeout)

    def recover_to_point(
        self, point: RecoveryPoint, *, freeze: str = "switch", timeout: float | None = None
    ) -> RecoveryResult:
        """As `recover_to_timestamp`, to a point of `list_recovery_points`."""
        return self._recover(self._calls.target(point, ()), freeze, timeout)

    def recover_to_mark(
        self, name: str, *, freeze: str = "switch", timeout: float | None = None
    ) -> RecoveryResult:
        """As `recover_to_timestamp`, to the moment with this name."""
        target = self._calls.target(name, self.list_recovery_points())
        return self._recover(target, freeze, timeout)

    def undo(self, *, freeze: str = "switch", timeout: float | None = None) -> RecoveryResult:
        """Take back the last recovery: as `recover_to_timestamp`, to the moment before it.

        What was written since that recovery is undone in turn. Raises InvalidRequest if there was
        none.
        """
        target = self._calls.before_last(self.list_recoveries())
        return self._recover(target, freeze, timeout)

    def _recover(self, target: Target, freeze: str, timeout: float | None) -> RecoveryResult:
        return recovery_of(self._run(self._calls.recover(target, freeze, timeout), timeout))

    def abort_recovery(self, *, timeout: float | None = None) -> None:
        """Give up the recovery that the members prepare; nothing has changed then.

        Raises InvalidRequest if none is under way, or if it is about to be completed.
        """
        self._run(self._calls.abort(), timeout)

    def drill(self, target: datetime | int | str | RecoveryPoint | None = None) -> DrillReport:
        """Restore a moment for proof, by default a random one of the window. Changes nothing.

        Another process of this machine does so at low priority, in the data directory of this
        node, which needs room for a second state. It makes the state machine again from its class,
        without arguments. Digests are compared on the way, and with `StateMachine.on_drill` your
        own code may look at the restored contents. The report tells what was wrong; it goes to the
        repository too. The member that archives the log does this every `drill_every_days`.

        Raises InvalidRequest if such a drill is running on this node.
        """
        wanted = (
            self._calls.target(target, self.list_recovery_points()) if target is not None else None
        )
        report = self._calls.drill(wanted, *self._ask(self._calls.before_drill()))
        return self._ask(self._calls.after_drill(report))

    def get_last_drill(self) -> DrillReport | None:
        """The last drill that was ok, as far as this node knows; None if it knows of none.

        The leader, and the member that archives the log, know it from the repository.
        """
        return self._ask(self._calls.last_drill())

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

    async def window(self) -> RecoveryWindow:
        """As `raftha.PitrManager.window`; a thread reads."""
        return await asyncio.to_thread(self._calls.window, await self._ask(self._calls.lineage()))

    async def plan(self, target: datetime | int | str | RecoveryPoint) -> RecoveryPlan:
        """As `raftha.PitrManager.plan`; a thread reads."""
        wanted = self._calls.target(target, await self.list_recovery_points())
        lineage = await self._ask(self._calls.lineage())
        return await asyncio.to_thread(self._calls.plan, wanted, lineage)

    async def recover_to_timestamp(
        self, timestamp: datetime, *, freeze: str = "switch", timeout: float | None = None
    ) -> RecoveryResult:
        """As `raftha.PitrManager.recover_to_timestamp`."""
        return await self._recover(self._calls.target(timestamp, ()), freeze, timeout)

    async def recover_to_sequence(
        self, sequence: int, *, freeze: str = "switch", timeout: float | None = None
    ) -> RecoveryResult:
        """As `raftha.PitrManager.recover_to_sequence`."""
        return await self._recover(self._calls.target(sequence, ()), freeze, timeout)

    async def recover_to_point(
        self, point: RecoveryPoint, *, freeze: str = "switch", timeout: float | None = None
    ) -> RecoveryResult:
        """As `raftha.PitrManager.recover_to_point`."""
        return await self._recover(self._calls.target(point, ()), freeze, timeout)

    async def recover_to_mark(
        self, name: str, *, freeze: str = "switch", timeout: float | None = None
    ) -> RecoveryResult:
        """As `raftha.PitrManager.recover_to_mark`."""
        target = self._calls.target(name, await self.list_recovery_points())
        return await self._recover(target, freeze, timeout)

    async def undo(self, *, freeze: str = "switch", timeout: float | None = None) -> RecoveryResult:
        """As `raftha.PitrManager.undo`."""
        target = self._calls.before_last(await self.list_recoveries())
        return await self._recover(target, freeze, timeout)

    async def _recover(self, target: Target, freeze: str, timeout: float | None) -> RecoveryResult:
        return recovery_of(await self._run(self._calls.recover(target, freeze, timeout), timeout))

    async def abort_recovery(self, *, timeout: float | None = None) -> None:
        """As `raftha.PitrManager.abort_recovery`."""
        await self._run(self._calls.abort(), timeout)

    async def drill(
        self, target: datetime | int | str | RecoveryPoint | None = None
    ) -> DrillReport:
        """As `raftha.PitrManager.drill`; a thread waits for the process."""
        wanted = (
            self._calls.target(target, await self.list_recovery_points())
            if target is not None
            else None
        )
        known = await self._ask(self._calls.before_drill())
        report = await asyncio.to_thread(self._calls.drill, wanted, *known)
        return await self._ask(self._calls.after_drill(report))

    async def get_last_drill(self) -> DrillReport | None:
        """As `raftha.PitrManager.get_last_drill`."""
        return await self._ask(self._calls.last_drill())

    async def list_recoveries(self) -> tuple[RecoveryResult, ...]:
        """As `raftha.PitrManager.list_recoveries`."""
        return await self._ask(self._calls.recoveries())


_LOCK = threading.Lock()
_DRILLING: set[Path] = set()
"""The folders of drills that run, in this process."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NOTED = (RecoveryPointKind.CHECKPOINT, RecoveryPointKind.MARK)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep out other drills that want the same folder. InvalidRequest."""
    with _LOCK:
        if folder in _DRILLING:
            raise InvalidRequest("a drill that was asked for is running on this node")
        _DRILLING.add(folder)
    try:
        yield
    finally:
        with _LOCK:
            _DRILLING.discard(folder)


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


def _packed(wanted: Target) -> tuple[str, int]:
    """The kind and the number of a target, as the leader takes it."""
    if wanted.time_us is not None:
        return TIME, wanted.time_us
    assert wanted.sequence is not None, "callers give a time or a sequence"
    return SEQUENCE, wanted.sequence


def _moment(moment: Moment) -> RecoveryMoment:
    return RecoveryMoment(moment.sequence, moment.time_us)


def _shown_plan(plan: recovery.RecoveryPlan) -> RecoveryPlan:
    at, following = plan.position, plan.following
    return RecoveryPlan(
        target=str(plan.target),
        lineage=plan.lineage,
        moment=RecoveryMoment(at.last_sequence, at.time_us),
        following=None if following is None else _moment(following),
        backups=tuple(link.manifest.label for link in plan.links),
        segments=len(plan.stretches),
        objects=plan.objects,
        commands=plan.commands,
        size_bytes=plan.size_bytes,
        size_compressed=plan.size_compressed,
        seconds=round(plan.seconds, 1),
    )


def _points(node: Node) -> tuple[RecoveryPoint, ...]:
    return points_of(node.state.catalog, node.core.membership.lineage)


def _recoveries(node: Node) -> tuple[RecoveryResult, ...]:
    found = [recovery_of(record) for record in node.state.catalog.recoveries.records()]
    progress = node.backups.recovery.progress
    if progress is not None:
        done, total = progress.done_bytes, progress.total_bytes
        found[-1] = replace(found[-1], done_bytes=done, total_bytes=total)
    return tuple(found)


def _read(read: Callable[[Node], Any]) -> ReadOperation:
    return ReadOperation(None, 0.0, read, is_linearizable=False)
