"""`ha.backup`: what there is of backups, and the calls that ask for more, for both managers.

Theory of operation. Which backups there are, the cluster's log says: any node answers from its own
copy of the catalog, so a call that only asks needs neither a leader nor a destination. A call that
changes something goes to the leader, as changes of members do. What reads a repository runs on the
calling thread, or on one of asyncio's, and never on the node's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import datetime
from typing import Any, TypeAlias, TypeVar

from raftha.api.calls import Read
from raftha.config import BackupConfig, HaConfig
from raftha.errors import InvalidRequest
from raftha.node.arguments import check_count
from raftha.node.backup.choosing import due_us
from raftha.node.backup.results import result_of
from raftha.node.messages import BackupAction
from raftha.node.node import Node
from raftha.node.operations import BackupOperation, ReadOperation
from raftha.storage.backup.inspection import check_places, verify_backup
from raftha.storage.backup.opening import open_configured
from raftha.storage.backup.retention import candidate_of, decide
from raftha.storage.backup.window import US_PER_HOUR, read_by
from raftha.storage.state.catalog import RETIRED, BackupRecord, Pin, Unpin, encode_change
from raftha.types import (
    BackupMode,
    BackupResult,
    BackupState,
    BackupVerification,
    DestinationCheck,
    RetentionDecision,
    RetentionFate,
)

WAIT_S = 7 * 86_400.0
"""How long a caller may wait for a backup."""
NAME_CHARACTERS_MAX = 100
"""The longest name of a pin or a mark."""

T = TypeVar("T")
LEADER_KNOWS = "whether its destination refuses that, the leader's explain says"
"""A reason of a deletion that is under way, on the nodes that don't carry it out."""
Run: TypeAlias = Callable[[Any, float | None], Any]
"""Submits an operation with a time-out; returns its result, or the future of it."""


class BackupCalls:
    """The calls of `ha.backup`, checked and packed once for both managers."""

    def __init__(self, config: HaConfig) -> None:
        self._config = config

    @property
    def config(self) -> BackupConfig:
        """The node's settings. InvalidRequest if it has none."""
        if self._config.backup is None:
            raise InvalidRequest(
                "this node has no settings for backups",
                hint="add the table [backup], in Python backup=BackupConfig()",
            )
        return self._config.backup

    def trigger(self, mode: str | None, wait: bool, timeout: float | None) -> BackupOperation:
        if mode is not None and mode not in tuple(BackupMode):
            raise InvalidRequest(f"mode must be one of {', '.join(BackupMode)}, got {mode!r:.80}")
        given = b"" if mode is None else str(mode).encode()
        call = BackupOperation(None, 0.0, BackupAction.TRIGGER, given, waits=wait)
        if wait:
            wait_s = WAIT_S if timeout is None else timeout
            if not isinstance(wait_s, int | float) or not 0 < wait_s <= WAIT_S:
                raise InvalidRequest(f"a timeout must be over 0 and at most {WAIT_S:g} seconds")
            call.deadline = time.monotonic() + wait_s
        return call

    def pin(self, backup_id: int, name: str, until: datetime | None) -> BackupOperation:
        check_name(name)
        until_us = 0
        if until is not None:
            if not isinstance(until, datetime) or until.tzinfo is None:
                raise InvalidRequest(
                    "until must be a datetime with a time zone", hint="datetime.UTC"
                )
            until_us = max(1, int(until.timestamp() * 1_000_000))
        return _change(Pin(_id(backup_id), name, until_us))

    def unpin(self, backup_id: int, name: str) -> BackupOperation:
        if name:
            check_name(name)
        return _change(Unpin(_id(backup_id), name))

    def retention(self) -> BackupOperation:
        return BackupOperation(None, 0.0, BackupAction.APPLY_RETENTION, b"")

    def state(self) -> Read[BackupState]:
        return _read(lambda node: node.backups.state)

    def lineage(self) -> Read[str]:
        return _read(lambda node: node.core.membership.lineage)

    def list(self) -> Read[tuple[BackupResult, ...]]:
        return _read(_results)

    def last(self) -> Read[BackupResult | None]:
        def read(node: Node) -> BackupResult | None:
            ended = [each for each in _results(node) if not each.state.is_running]
            return ended[-1] if ended else None

        return _read(read)

    def get(self, backup_id: int) -> Read[BackupResult]:
        wanted = _id(backup_id)

        def read(node: Node) -> BackupResult:
            record = node.state.catalog.get(wanted)
            if record is None:
                raise InvalidRequest(f"there is no backup {wanted}")
            return result_of(record, node.backups.progress)

        return _read(read)

    def decisions(self) -> Read[tuple[RetentionDecision, ...]]:
        config, pitr = self.config, self._config.archive
        window_us = 0 if pitr is None else pitr.retention_hours * US_PER_HOUR

        def read(node: Node) -> tuple[RetentionDecision, ...]:
            now_us, refused_by = _now_us(node), node.backups.refused_by
            records = node.state.catalog.records()
            decided = decide(
                [candidate_of(record, now_us, refused_by(record.id)) for record in records],
                config.retention,
                lineage=node.core.membership.lineage,
                destinations=config.destinations,
                now_us=now_us,
                window_us=window_us,
                needed=read_by(node.state.catalog.recoveries.records(), now_us - window_us),
            ).each
            return decided if node.core.is_leader else without_refusals(decided, records)

        return _read(read)

    def verify(self, backup: BackupResult, level: int) -> tuple[BackupVerification, ...]:
        """Blocks until all is read."""
        if level not in (0, 1, 2, 3):
            raise InvalidRequest(f"level must be a whole number from 0 to 3, got {level!r:.80}")
        if not backup.is_completed:
            raise InvalidRequest(f"backup {backup.label} is not complete")
        present = [name for name, found in backup.destinations.items() if found == "ok"]
        now_us = time.time_ns() // 1000
        with closing(open_configured(self.config, may_create=False, now_us=now_us)) as repository:
            return verify_backup(repository, backup.lineage, backup.label, level, present)

    def check(self) -> tuple[DestinationCheck, ...]:
        """Blocks until all is tried."""
        return check_places(self.config.destinations)

    def is_due(self) -> Read[bool]:
        config = self.config

        def read(node: Node) -> bool:
            catalog, lineage = node.state.catalog, node.core.membership.lineage
            return catalog.running is None and due_us(config, catalog, lineage) <= _now_us(node)

        return _read(read)


class BackupOrchestrator:
    """`ha.backup`: backups of the cluster, from any of its nodes."""

    def __init__(self, calls: BackupCalls, run: Run) -> None:
        self._calls = calls
        self._run = run

    @property
    def config(self) -> BackupConfig:
        """`HaConfig.backup`. Raises InvalidRequest if the node has none."""
        return self._calls.config

    def _ask(self, call: Read[T]) -> T:
        result: T = self._run(call, None)
        return result

    def get_state(self) -> BackupState:
        """What becomes of the backup that runs, or became of the last one."""
        return self._ask(self._calls.state())

    def get_lineage(self) -> str:
        """The id of the history that this cluster writes; a restore begins another one."""
        return self._ask(self._calls.lineage())

    def trigger_backup(
        self,
        mode: str | None = None,
        *,
        wait: bool = False,
        timeout: float | None = None,
    ) -> int:
        """Begin a backup. Returns its id at once, or with `wait` once it is verified.

        Without a mode it has the one of the leader's settings. The leader chooses the member that
        takes it. A backup that fails is tried again, by another member if there is one; with `wait`
        the id is that of the try that succeeded. `timeout`: without `wait` for the leader's answer;
        with it for all, by default 7 days.

        Raises BackupInProgress if one is running, InvalidRequest if the leader has no settings for
        backups, BackupFailed if all tries failed, and UpgradePending if the cluster doesn't use the
        protocol that has them yet.
        """
        record: BackupRecord = self._run(self._calls.trigger(mode, wait, timeout), timeout)
        return record.id

    def list_backups(self) -> tuple[BackupResult, ...]:
        """All backups that the cluster's log knows, the oldest first; failed and running ones too.

        One is forgotten when no destination has objects of it any more.
        """
        return self._ask(self._calls.list())

    def get_backup(self, backup_id: int) -> BackupResult:
        """One backup. Raises InvalidRequest if there is none with this id."""
        return self._ask(self._calls.get(backup_id))

    def get_last_backup(self) -> BackupResult | None:
        """The last backup that has ended, well or not; None before the first."""
        return self._ask(self._calls.last())

    def is_backup_due(self) -> bool:
        """Whether the schedule asks for a backup now, and none is running."""
        return self._ask(self._calls.is_due())

    def explain(self) -> tuple[RetentionDecision, ...]:
        """Why each backup is in each destination, and which would be deleted now.

        By the settings of this node. Only the leader knows which destinations have refused to
        delete one.
        """
        return self._ask(self._calls.decisions())

    def apply_retention(self, *, dry_run: bool = False) -> tuple[RetentionDecision, ...]:
        """Have the leader delete what no rule keeps, in the background. Returns `explain()`.

        It does so after each backup by itself, and once a day. Deletions that end raise the event
        `retention_applied`. With `dry_run` nothing is deleted.
        """
        decisions = self.explain()
        if not dry_run:
            self._run(self._calls.retention(), None)
        return decisions

    def verify_backup(self, backup_id: int, level: int = 1) -> tuple[BackupVerification, ...]:
        """Verify a backup now, in each destination that has it; this process reads all of it.

        Level 0 compares the list of objects with the manifest, 1 reads them back, 2 decodes them,
        and 3 computes the digest of the state that a restore would give, from the whole chain.

        Raises InvalidRequest for a backup that isn't complete, and RepositoryError if no
        destination can be reached, or the key is missing.
        """
        return self._calls.verify(self.get_backup(backup_id), level)

    def check(self) -> tuple[DestinationCheck, ...]:
        """Try what each configured destination really does, with objects of its own."""
        return self._calls.check()

    def pin(self, backup_id: int, name: str = "manual", *, until: datetime | None = None) -> None:
        """Keep a backup, and what it builds on, until then; without a time until it is unpinned.

        A backup may have 16 pins of different names. Raises InvalidRequest if it isn't complete.
        """
        self._run(self._calls.pin(backup_id, name, until), None)

    def unpin(self, backup_id: int, name: str = "") -> None:
        """Take away a pin, by default all. Raises InvalidRequest if there is none."""
        self._run(self._calls.unpin(backup_id, name), None)


class AsyncBackupOrchestrator:
    """As `raftha.BackupOrchestrator`, awaited."""

    def __init__(self, calls: BackupCalls, run: Run) -> None:
        self._calls = calls
        self._run = run

    @property
    def config(self) -> BackupConfig:
        """As `raftha.BackupOrchestrator.config`."""
        return self._calls.config

    async def _ask(self, call: Read[T]) -> T:
        result: T = await self._run(call, None)
        return result

    async def get_state(self) -> BackupState:
        """As `raftha.BackupOrchestrator.get_state`."""
        return await self._ask(self._calls.state())

    async def get_lineage(self) -> str:
        """As `raftha.BackupOrchestrator.get_lineage`."""
        return await self._ask(self._calls.lineage())

    async def trigger_backup(
        self,
        mode: str | None = None,
        *,
        wait: bool = False,
        timeout: float | None = None,
    ) -> int:
        """As `raftha.BackupOrchestrator.trigger_backup`."""
        record: BackupRecord = await self._run(self._calls.trigger(mode, wait, timeout), timeout)
        return record.id

    async def list_backups(self) -> tuple[BackupResult, ...]:
        """As `raftha.BackupOrchestrator.list_backups`."""
        return await self._ask(self._calls.list())

    async def get_backup(self, backup_id: int) -> BackupResult:
        """As `raftha.BackupOrchestrator.get_backup`."""
        return await self._ask(self._calls.get(backup_id))

    async def get_last_backup(self) -> BackupResult | None:
        """As `raftha.BackupOrchestrator.get_last_backup`."""
        return await self._ask(self._calls.last())

    async def is_backup_due(self) -> bool:
        """As `raftha.BackupOrchestrator.is_backup_due`."""
        return await self._ask(self._calls.is_due())

    async def explain(self) -> tuple[RetentionDecision, ...]:
        """As `raftha.BackupOrchestrator.explain`."""
        return await self._ask(self._calls.decisions())

    async def apply_retention(self, *, dry_run: bool = False) -> tuple[RetentionDecision, ...]:
        """As `raftha.BackupOrchestrator.apply_retention`."""
        decisions = await self.explain()
        if not dry_run:
            await self._run(self._calls.retention(), None)
        return decisions

    async def verify_backup(self, backup_id: int, level: int = 1) -> tuple[BackupVerification, ...]:
        """As `raftha.BackupOrchestrator.verify_backup`; a thread reads."""
        return await asyncio.to_thread(self._calls.verify, await self.get_backup(backup_id), level)

    async def check(self) -> tuple[DestinationCheck, ...]:
        """As `raftha.BackupOrchestrator.check`; a thread tries."""
        return await asyncio.to_thread(self._calls.check)

    async def pin(
        self, backup_id: int, name: str = "manual", *, until: datetime | None = None
    ) -> None:
        """As `raftha.BackupOrchestrator.pin`."""
        await self._run(self._calls.pin(backup_id, name, until), None)

    async def unpin(self, backup_id: int, name: str = "") -> None:
        """As `raftha.BackupOrchestrator.unpin`."""
        await self._run(self._calls.unpin(backup_id, name), None)


def without_refusals(
    decided: Sequence[RetentionDecision], records: Sequence[BackupRecord]
) -> tuple[RetentionDecision, ...]:
    """The decisions as a node sees them that deletes nothing: which are refused, it can't know."""
    retired = {record.id for record in records if record.state == RETIRED}
    return tuple(
        each._replace(reasons=(*each.reasons, LEADER_KNOWS))
        if each.fate is RetentionFate.GOES and each.backup_id in retired
        else each
        for each in decided
    )


def _results(node: Node) -> tuple[BackupResult, ...]:
    progress = node.backups.progress
    return tuple(result_of(record, progress) for record in node.state.catalog.records())


def _now_us(node: Node) -> int:
    """Log time never goes back, and rests while nothing is written."""
    return max(node.state.applied.time_us, time.time_ns() // 1000)


def _read(read: Callable[[Node], Any]) -> ReadOperation:
    return ReadOperation(None, 0.0, read, is_linearizable=False)


def _change(change: Pin | Unpin) -> BackupOperation:
    return BackupOperation(None, 0.0, BackupAction.CHANGE, encode_change(change))


def _id(backup_id: int) -> int:
    check_count("backup_id", backup_id)
    if backup_id is None:
        raise InvalidRequest("backup_id must be a whole number, got None")
    return backup_id


def check_name(name: str) -> None:
    """InvalidRequest unless this can be the name of a pin or a mark."""
    if type(name) is not str or not 0 < len(name) <= NAME_CHARACTERS_MAX or not name.isprintable():
        raise InvalidRequest(f"a name is printable text of 1 to {NAME_CHARACTERS_MAX} characters")
