"""Recoveries of the live cluster in the simulation.

Theory of operation. In some seeds an operator has the cluster go back to an earlier moment, now and
then, through any member, also while others are asked for or backups are taken; undoes that, or
gives it up. Members crash at every step of it. The node's part is real. In seeds with an archive
the states are built from the buckets by the real code, and must be the oracle's; in others they are
made of the oracle's, slowly, and not always.

What must hold:

    restored      behind a RESTORE the state of each member is that of the target, whenever it is
                  looked at: when a member starts, when it answers a read, and in the end
    goes on       the RESTORE is one command; numbers, terms and sessions go on: no client's write
                  is applied twice, though it was undone
    promised      what a member has prepared stays until the recovery has ended
    agreed        a RESTORE follows a `prepare` that wasn't given up, and a majority of the voters
                  had the state on their disks then
    certain       all of the log before the RESTORE is archived, so that an undo finds it
    undo          a recovery to the command before a RESTORE leads to the state before it
    answers       a caller that is told that its recovery is done, or was given up, finds it so
    ends          no recovery is under way for ever
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any, Protocol

from raftha.entry import Entry
from raftha.errors import RafthaError
from raftha.events import HaEvent, RecoveryCompleted, RecoveryPrepared, RecoveryStarted
from raftha.node.backup import backups as backups_module
from raftha.node.messages import BackupAction
from raftha.node.operations import BackupOperation
from raftha.node.recovery import leading as leading_module
from raftha.node.recovery import member as member_module
from raftha.node.recovery.wanted import SEQUENCE, RecoveryWanted, pack_abort
from raftha.node.recovery_work import BuiltState, PairsProgress, PlannedRecovery, RecoveryTarget
from raftha.storage.backup.planner import plan_recovery
from raftha.storage.backup.recovery import Target
from raftha.storage.backup.replay import ReplayHooks, build_image
from raftha.storage.directory.restoring import PreparedState
from raftha.storage.state import catalog
from raftha.storage.state.catalog import Abort, Prepare, Restore
from raftha.storage.state.recoveries import RESTORED, RecoveryRecord
from raftha.storage.state.state import State
from tests.sim.backups import SimulatedBackups
from tests.sim.ledger import Ledger
from tests.sim.oracle import Oracle
from tests.sim.planting import Patch
from tests.sim.recovery_swarm import RecoverySwarm
from tests.sim.repository import draw_backups
from tests.sim.store import DictStore
from tests.sim.swarm import Swarm, undisturbed
from tests.sim.world import Violation, World
from tests.support.dict_stores import DictStores

if TYPE_CHECKING:
    from tests.sim.member import Member

CHANCE = 0.2
QUIET_CHANCE = 0.5
"""How often nothing goes wrong but what a recovery has to do with."""
BUCKET_CHANCE = 0.4
"""How often a seed with recoveries has backups because of them."""
HASTE: list[Patch] = [
    (member_module, "REPORT_S", 0.1),
    (leading_module, "REPORT_S", 0.1),
    (member_module, "RETRY_S", 0.1),
    (member_module, "LEADER_WAIT_S", 0.4),
    (backups_module, "FREEZE_S", 1.0),
]
FREEZE_S = 1.0
TIMEOUT_S = 4


def with_recoveries(swarm: Swarm, rng: Random) -> Swarm:
    """Have recoveries in some seeds, beside all else; drawn from a stream of its own."""
    is_unfit = swarm.is_only_sick or not swarm.campaigns or swarm.alter_every_s > 0
    is_unfit = is_unfit or swarm.is_poisoned or swarm.loses_majority
    is_unfit = is_unfit or swarm.rollback_every_s > 0 or swarm.lapse_every_s > 0
    if rng.random() >= CHANCE or is_unfit:
        return swarm
    if rng.random() < QUIET_CHANCE:
        swarm = replace(
            undisturbed(swarm), size=rng.choice((3, 3, 5)), chaos_s=6.0, upgrade_every_s=0.0,
            checkpoint_s=rng.choice((0.1, 0.3, 60.0)), retention_bytes=rng.choice((0, 1 << 40)),
        )  # fmt: skip
    # A single voter has no other to compare its state with.
    is_firm = swarm.size > 1 and not swarm.change_every_s
    drawn = RecoverySwarm(
        every_s=rng.choice((0.1, 0.3, 0.8)),
        build_s=rng.choice((0.01, 0.05, 0.3)),
        failure_chance=rng.choice((0.0, 0.0, 0.1, 0.3)),
        wrong_chance=rng.choice((0.0, 0.0, 0.1)) if is_firm else 0.0,
        strike_chance=rng.choice((0.0, 0.1, 0.4)),
        undo_chance=rng.choice((0.1, 0.5)),
        abort_chance=rng.choice((0.0, 0.1)),
        archive_s=rng.choice((0.0, 0.03, 0.2)),
    )
    if swarm.backups is None and rng.random() < BUCKET_CHANCE:
        swarm = replace(swarm, backups=draw_backups(rng))
    return replace(swarm, chaos_s=max(swarm.chaos_s, 5.0), recoveries=drawn)


class Owner(Protocol):
    """The member whose disk it is."""

    store: DictStore

    def may_crash(self) -> None: ...


@dataclass(slots=True)
class RestoringDisk:
    """What a member has in `restoring`: durable from the moment on in which it is there."""

    prepared: PreparedState | None = None
    pairs: Mapping[bytes, bytes] | None = None
    ready: bytes | None = None
    """The meta of the state that is to take the place of the state."""

    def finish(self, member: Owner) -> None:
        """As `storage.directory.restoring.finish`."""
        if self.ready is None:
            return
        assert self.pairs is not None
        member.may_crash()
        store = DictStore()
        store.write(sorted(self.pairs.items()), self.ready)
        store.is_full = member.store.is_full
        member.store = store
        member.may_crash()
        self.prepared = self.pairs = self.ready = None


class SimulatedRecovery:
    """One member's `RecoveryWork`, in one life."""

    def __init__(
        self,
        member: Member,
        world: World,
        swarm: RecoverySwarm,
        oracle: Oracle,
        ledger: Ledger,
    ) -> None:
        self._ledger = ledger
        self._member = member
        self._world = world
        self._swarm = swarm
        self._oracle = oracle
        self._rng = member.rng
        self._building = 0
        self._pairs: Mapping[bytes, bytes] | None = None

    @property
    def prepared(self) -> PreparedState | None:
        return self._member.restoring.prepared

    @property
    def _backups(self) -> SimulatedBackups | None:
        """What reads the buckets, if the archive is in them."""
        backups = self._member.backups
        has_archive = self._member.config.archive is not None
        return backups if has_archive and isinstance(backups, SimulatedBackups) else None

    def plan(self, target: RecoveryTarget, done: Callable[[PlannedRecovery], None]) -> None:
        backups = self._backups
        if backups is not None:
            backups._start(lambda job: self._plan_from(backups, target), done)
            return
        planned = PlannedRecovery("RepositoryUnavailable", "it is away")
        if self._rng.random() >= self._swarm.failure_chance:
            sources = self._sources(target.sequence)
            planned = PlannedRecovery("", "", target.lineage, target.sequence, 1, sources)
        self._member.later(self._rng.expovariate(1 / self._swarm.build_s), done, planned)

    def _plan_from(self, backups: SimulatedBackups, target: RecoveryTarget) -> PlannedRecovery:
        """As `RecoveryThread.plan`."""
        try:
            repository = backups._make(may_create=False)
            wanted = Target(sequence=target.sequence)
            plan = plan_recovery(repository, wanted, lineage=target.lineage)
        except RafthaError as error:
            return PlannedRecovery(type(error).__name__, str(error))
        sources = tuple(link.manifest.id for link in plan.links)
        position = plan.position
        return PlannedRecovery(
            "", "", plan.lineage, position.last_sequence, position.time_us, sources
        )

    def _build_from(self, backups: SimulatedBackups, record: RecoveryRecord) -> BuiltState:
        """As `RecoveryThread.build`."""
        stores = DictStores()
        try:
            repository = backups._make(may_create=False)
            wanted = Target(sequence=record.to_sequence)
            plan = plan_recovery(repository, wanted, lineage=record.lineage)
            hooks = ReplayHooks(
                monotonic=lambda: self._world.now, buffer_bytes=self._rng.choice((1, 1000, 1 << 20))
            )
            image = build_image(plan, repository, stores, self._member.machine, hooks)
        except RafthaError as error:
            return BuiltState(str(error))
        pairs, expected = stores.pairs(), self._oracle.values_at(record.to_sequence)
        if pairs != expected or image.digest != digest_of(expected):
            raise Violation(f"the buckets lead to another state than {record} goes back to")
        self._world.counts["state built from a bucket"] += 1
        return self._keep(record, pairs)

    def _sources(self, sequence: int) -> tuple[int, ...]:
        """The newest chain of backups from before the target."""
        assert self._member.node is not None
        known = self._member.node.state.catalog
        whole = [
            r for r in known.records()
            if known.is_whole(r.id) and r.position_sequence <= sequence
        ]  # fmt: skip
        return tuple(r.id for r in known.chain(whole[-1].id)) if whole else ()

    def build(
        self, record: RecoveryRecord, on_progress: PairsProgress, done: Callable[[BuiltState], None]
    ) -> None:
        self._building += 1
        number, backups = self._building, self._backups
        self._give_up()
        self._check_sources(record)

        def built(state: BuiltState) -> None:
            if number == self._building:
                disk = self._member.restoring
                disk.prepared, disk.pairs = state.prepared, self._pairs
                done(state)

        def finish() -> None:
            built(self._build(record))

        if backups is not None:
            backups._start(lambda job: self._build_from(backups, record), built)
            return
        self._member.later(self._rng.expovariate(1 / self._swarm.build_s), finish)

    def _build(self, record: RecoveryRecord) -> BuiltState:
        if self._rng.random() < self._swarm.failure_chance or self._member.store.is_full:
            return BuiltState("the repository is away")
        self._check_sources(record)
        pairs = self._oracle.values_at(record.to_sequence)
        if self._rng.random() < self._swarm.wrong_chance:
            pairs[b"\xfealien %d" % self._member.id] = b"1"
            self._world.counts["state that differs"] += 1
        return self._keep(record, pairs)

    def _keep(self, record: RecoveryRecord, pairs: Mapping[bytes, bytes]) -> BuiltState:
        self._pairs = pairs
        return BuiltState("", PreparedState(record.id, digest_of(pairs), len(pairs)))

    def _check_sources(self, record: RecoveryRecord) -> None:
        if self._ledger.recoveries.get(record.id) == "aborted":
            return  # A member that comes late hasn't applied this yet, and builds in vain.
        for backup_id in record.backups:
            source = self._ledger.backups.get(backup_id)
            if source is None or source.state == "retired":
                raise Violation(f"backup {backup_id}, which a recovery reads, has expired")

    def discard(self) -> None:
        self._building += 1
        self._give_up()

    def _give_up(self) -> None:
        """What is prepared is no longer: the leader must not count on it."""
        disk, under_way = self._member.restoring, self._ledger.prepared
        promised = 0 if disk.prepared is None else disk.prepared.recovery_id
        if under_way is not None and promised == under_way[0]:
            raise Violation(f"node {self._member.id} gives up what it has promised")
        disk.prepared = disk.pairs = None

    def restore(self, recovery_id: int, meta: bytes) -> None:
        member = self._member
        assert member.restoring.prepared is not None
        assert member.restoring.prepared.recovery_id == recovery_id
        self._world.note(member.id, "goes back", f"recovery {recovery_id}")
        member.later(0.0, member.run, self._end, meta)

    def _end(self, meta: bytes) -> None:
        self._member.may_crash()
        self._member.restoring.ready = meta
        self._member.crash(is_power_loss=False, is_silent=False)


def digest_of(pairs: Mapping[bytes, bytes]) -> str:
    """The digest of a state with these pairs."""
    store = DictStore()
    store.write(sorted(pairs.items()), b"")
    digest = store.digest()
    assert digest is not None
    return digest.hex


class Recoveries:
    """The recoveries of a simulated cluster, and what must hold of them."""

    def __init__(
        self,
        world: World,
        swarm: Swarm,
        members: Mapping[int, Member],
        oracle: Oracle,
        ledger: Ledger,
    ) -> None:
        self._world = world
        self._members = members
        self._oracle = oracle
        self._ledger = ledger
        self._drawn = swarm.recoveries
        self._rng = world.stream("recoveries")
        self._is_over = False
        self._waiters: list[_Waiter] = []
        self._restored: list[tuple[int, int, int]] = []
        """Index, sequence and target of each RESTORE."""
        self._targets: dict[int, int] = {}
        self._committed_at: list[float] = []
        """When each entry was committed."""
        self._is_firm = not (swarm.change_every_s or swarm.is_wiping or swarm.rot_every_s)
        self._size = swarm.size
        self._is_faked = True
        """Whether no seed's bucket has the archive."""
        if self._drawn is None:
            return
        oracle.keeps_history = True
        for member in members.values():
            member.make_recovery = self._make
            if member.config.archive is not None:
                self._is_faked = False
                object.__setattr__(member.config.archive, "freeze_timeout_s", FREEZE_S)
        self._wait()

    def _make(self, member: Member) -> SimulatedRecovery:
        assert self._drawn is not None
        return SimulatedRecovery(member, self._world, self._drawn, self._oracle, self._ledger)

    # ---------------------------------------------------------------- what happens

    def _wait(self) -> None:
        assert self._drawn is not None
        self._world.at(self._rng.expovariate(1 / self._drawn.every_s), self._ask)

    def _ask(self) -> None:
        """An operator asks some node for a recovery, or has one given up."""
        if self._is_over:
            return
        self._wait()
        assert self._drawn is not None
        rng = self._rng
        member = rng.choice(list(self._members.values()))
        if not member.is_up or member.founding is not None:
            return
        deadline = member.deadline(rng.choice((0.5, 2.0, 5.0)))
        if rng.random() < self._drawn.abort_chance:
            what, payload = BackupAction.ABORT_RECOVERY, pack_abort(0)
            member.submit([BackupOperation(_Abandoned(), deadline, what, payload)])
            return
        to = rng.randint(0, self._oracle.sequence)
        if self._restored and rng.random() < self._drawn.undo_chance:
            to = self._restored[-1][1] - 1
        wanted = RecoveryWanted(
            request=rng.randrange(1 << 62),
            kind=SEQUENCE,
            number=to,
            lineage="",
            is_frozen=rng.random() < 0.3,
            timeout_s=TIMEOUT_S,
            reason=f"sequence {to}",
        )
        waiter = _Waiter(self, member, wanted)
        self._waiters.append(waiter)
        self._world.note(member.id, "recovery wanted", f"to {to}")
        operation = BackupOperation(
            waiter, deadline, BackupAction.RECOVER, wanted.pack(), waits=rng.random() < 0.8
        )
        member.submit([operation])

    def stop(self) -> None:
        """The chaos is over."""
        self._is_over = True

    def archived_index(self) -> int:
        """The last entry that is archived."""
        assert self._drawn is not None
        return bisect_right(self._committed_at, self._world.now - self._drawn.archive_s)

    # ---------------------------------------------------------------- what must hold

    def on_entry(self, entry: Entry) -> None:
        """An entry is committed."""
        if self._drawn is not None:
            self._committed_at.append(self._world.now)

    def on_change(self, entry: Entry, change: object) -> None:
        """An administrative entry is committed, which the ledger has accepted."""
        if isinstance(change, Prepare | Restore | Abort):
            if self._oracle.protocol < catalog.RECOVERY_PROTOCOL:
                raise Violation(f"entry {entry.index} is of a protocol that not all members speak")
            self._world.note(0, type(change).__name__.lower(), f"{entry.index} {change}")
            self._strike()
        match change:
            case Prepare():
                self._targets[entry.index] = change.to_sequence
            case Restore():
                self._on_restore(entry, change)
            case Abort():
                self._world.counts["recovery aborted"] += 1

    def _on_restore(self, entry: Entry, change: Restore) -> None:
        target = self._targets[change.id]
        expected = digest_of(self._oracle.values_at(target))
        if change.digest != expected:
            raise Violation(f"entry {entry.index} restores another state than that of {target}")
        holders = [m.id for m in self._members.values() if self._has(m, change)]
        if self._is_firm and 2 * len(holders) <= self._size:
            raise Violation(f"entry {entry.index} is committed, and only {holders} are ready")
        if self._is_faked and self.archived_index() < entry.index - 1:
            raise Violation(f"entry {entry.index} restores, and what is before it isn't archived")
        self._restored.append((entry.index, entry.last_sequence, target))
        self._oracle.restore(target)
        self._world.counts["recovery restored"] += 1

    def _has(self, member: Member, restore: Restore) -> bool:
        found = member.restoring.prepared
        return found == (restore.id, restore.digest, found.keys) if found is not None else False

    def _strike(self) -> None:
        """Have some member, or the leader, or all, end in the middle of the next steps."""
        assert self._drawn is not None
        if self._is_over or self._rng.random() >= self._drawn.strike_chance:
            return
        up = [member for member in self._members.values() if member.is_up]
        leaders = [m for m in up if m.node is not None and m.node.core.is_leader]
        chosen = self._rng.choice((up, leaders, [self._rng.choice(up)] if up else []))
        for member in chosen:
            delay = self._rng.choice((0.0, 0.002, 0.02, 0.1))
            is_power_loss = self._rng.random() < 0.5
            self._world.counts["crash in a recovery"] += 1
            self._world.at(delay, self._crash, member, is_power_loss)

    def _crash(self, member: Member, is_power_loss: bool) -> None:
        member.crash(is_power_loss=is_power_loss, is_silent=False)

    def on_event(self, member: Member, event: HaEvent) -> None:
        """A node says something of a recovery."""
        if isinstance(event, RecoveryStarted | RecoveryPrepared | RecoveryCompleted):
            self._world.note(member.id, event.kind.value)
            if self._drawn is not None:
                self._strike()

    def on_start(self, member: Member) -> None:
        """A member has started: its state is that of its position."""
        if self._drawn is None or member.node is None or member.is_outcast:
            return
        if member.config.archive is None:
            leading = member.node.backups.recovery._leading
            leading._around = leading._around._replace(archived_index=self.archived_index)
        self._check_contents(member, member.node.state)

    def _check_contents(self, member: Member, state: State) -> None:
        contents = dict(state.scan(limit=10_000))
        expected = self._oracle.values_at(state.applied.last_sequence)
        if contents != expected:
            raise Violation(
                f"node {member.id} starts at {state.applied.index} with another state than the log "
                f"leads to: {contents} instead of {expected}"
            )

    def answered(self, waiter: _Waiter, result: Any) -> None:
        """A caller has an answer."""
        if isinstance(result, RecoveryRecord):
            if result.request != waiter.wanted.request:
                raise Violation(f"a caller of {waiter.wanted} is answered with {result}")
            known = self._ledger.recoveries.get(result.id)
            if result.state == RESTORED and known != RESTORED:
                raise Violation(f"a caller is told of {result}, and the log says {known}")
            self._world.counts["recovery answered"] += 1
        elif not isinstance(result, RafthaError):
            raise Violation(f"a recovery is answered with {result!r}")

    def lacking(self) -> str:
        """What is still missing after the chaos; "" if nothing is."""
        if self._drawn is None:
            return ""
        return "" if self._ledger.prepared is None else "the end of a recovery"


class _Waiter:
    """A caller that waits for its recovery."""

    def __init__(self, recoveries: Recoveries, member: Member, wanted: RecoveryWanted) -> None:
        self._recoveries = recoveries
        self.member = member
        self.wanted = wanted

    def done(self, result: Any) -> None:
        self._recoveries.answered(self, result)


class _Abandoned:
    """An operator that doesn't wait for the answer."""

    def done(self, result: Any) -> None: ...
