"""Backups in the simulation: the real code of a node's backup threads, in virtual time.

Theory of operation. Some seeds have backups, on members whose disks, network and processes fail as
in any other seed, and into buckets that fail in their own ways (`repository.py`). The node's part
is real, and so is all that takes, lists, deletes and reads backups; jobs run as `jobs.py` says.

What must hold, by the committed log (`ledger.py`):

    one at a time      no two backups run
    manifest           it is written after all objects of its backup
    completed          a backup that is called completed can be restored from each destination that
                       is said to have it: to the state that the oracle has at its position
    kept               so it stays, until it is retired, unless a fault of the bucket hit it
    missing            nothing is called missing that is there
    deletion           nothing is deleted of a backup that wasn't retired before
    forgotten          what is forgotten has no objects any more
    other lineages     nothing is done to what belongs to another cluster
    catalogs           all members have the same, and it is the ledger's
    recovery           when all faults are over, a new backup is completed
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

from raftha.config import BackupConfig, RetentionPolicy
from raftha.entry import Entry
from raftha.errors import BackupDamaged, RafthaError
from raftha.node.backup import backups as backups_module
from raftha.node.backup import choosing, leading, upkeep
from raftha.node.backup_work import (
    BackupOrder,
    BackupProgress,
    Deletion,
    DrillWork,
    Listing,
    TakenBackup,
)
from raftha.node.messages import BackupAction
from raftha.node.operations import BackupOperation
from raftha.runtime.backup_jobs import BackupJobs, Owner
from raftha.storage.backup import names, retention, uploads
from raftha.storage.backup.chain import Shelf, load_chain, read_state
from raftha.storage.backup.crypto import NO_KEYS
from raftha.storage.backup.manifest import load_manifest
from raftha.storage.backup.repository import Repository, open_repository, read_record
from raftha.storage.backup.source import StoreSource
from raftha.storage.backup.take import TakeHooks
from raftha.storage.backup.uploads import Waits
from raftha.storage.state import catalog
from raftha.storage.state.catalog import (
    Adopt,
    BackupRecord,
    Begin,
    Deleted,
    End,
    Found,
    NotePoint,
    Pin,
    encode_change,
    make_label,
)
from raftha.types import BackupMode
from tests.sim.archive import ArchiveWatch, SimulatedArchive
from tests.sim.jobs import Job
from tests.sim.ledger import Ledger
from tests.sim.moments import check_moments
from tests.sim.planting import Patch
from tests.sim.repository import Bucket, BucketClient, TrueClient, draw_backups
from tests.sim.swarm import Swarm
from tests.sim.world import Violation, World

if TYPE_CHECKING:
    from tests.sim.invariants import Invariants
    from tests.sim.member import Member

CHANCE = 0.2
States = dict[int, tuple[str, int, tuple[str, ...]]]
LATE_S = 0.2
"""The longest that an object isn't listed."""
FOREIGN = "f" * 32
HASTE: list[Patch] = [
    (leading, "REPORT_S", 0.1),
    (backups_module, "REPORT_S", 0.1),
    (backups_module, "END_AGAIN_S", 0.1),
    (leading, "SILENCE_S", 0.8),
    (upkeep, "FIRST_S", 0.3),
    (upkeep, "INTERVAL_S", 1.0),
    (upkeep, "ASK_AGAIN_S", 0.5),
    (upkeep, "LISTING_S", 1.0),
    (choosing, "RETRY_S", 0.1),
    (choosing, "RETRY_MAX_S", 0.5),
    (choosing, "AGAIN_S", 0.5),
    (choosing, "CHAIN_MAX", 6),
    (retention, "FAILED_STAYS_US", 500_000),
    (uploads, "PAUSE_S", 0.02),
    (uploads, "PAUSE_MAX_S", 0.1),
]


def with_backups(swarm: Swarm, rng: Random) -> Swarm:
    """Have backups in some seeds, beside all else; drawn from a stream of its own."""
    is_unfit = swarm.is_only_sick or not swarm.campaigns or swarm.alter_every_s > 0
    is_unfit = is_unfit or swarm.is_poisoned
    if rng.random() >= CHANCE or is_unfit:
        return swarm
    return replace(swarm, chaos_s=max(swarm.chaos_s, 5.0), backups=draw_backups(rng))


def backup_config(swarm: Swarm) -> BackupConfig | None:
    """The settings of a node."""
    drawn = swarm.backups
    if drawn is None:
        return None
    return BackupConfig(
        mode=BackupMode(drawn.mode),
        destinations={f"d{i}": f"memory://{i}" for i in range(drawn.destinations)},
        retention=RetentionPolicy(
            keep_last=drawn.keep_last, keep_daily_days=0, keep_weekly_weeks=0, keep_monthly_months=0
        ),
        backup_from=drawn.backup_from,
        retry_s=1,
        compression_level=1,
    )


def hasten(config: BackupConfig | None, swarm: Swarm) -> None:
    """Have shorter times than the settings allow."""
    if config is not None and swarm.backups is not None:
        object.__setattr__(config, "interval_hours", swarm.backups.interval_s / 3600)
        object.__setattr__(config, "spool_bytes", swarm.backups.spool_bytes)


class SimulatedBackups:
    """One member's `BackupWork`, in one life."""

    def __init__(
        self, member: Member, world: World, buckets: Sequence[Bucket], watch: ArchiveWatch
    ) -> None:
        self._member = member
        self._world = world
        self._buckets = buckets
        self._jobs: list[Job] = []
        self._taking: Job | None = None
        self._repository: Repository | None = None
        config = member.config.backup
        assert config is not None
        source = StoreSource(member.store, member.spool)
        owner = Owner(node_id=member.id, cluster_name="simulated")
        self._work = BackupJobs(config, owner, source, self._open)
        self.archive = SimulatedArchive(
            member, world, lambda: self._make(may_create=False), self._start, watch
        )

    @property
    def drills(self) -> DrillWork:
        raise AssertionError("no run lasts until a drill is due")

    @property
    def spool_index(self) -> int | None:
        spool = self._member.spool
        return None if spool is None else spool.reach.index

    def take(
        self,
        order: BackupOrder,
        on_progress: Callable[[BackupProgress], None],
        done: Callable[[TakenBackup], None],
    ) -> None:
        def work(job: Job) -> TakenBackup:
            waits = Waits(lambda: self._world.now, job.sleep, lambda: not job.is_cancelled)
            hooks = TakeHooks(
                waits=waits,
                now_us=self._member.clock.time_us,
                random=self._member.rng.randbytes,
            )
            return self._work.take(order, hooks)

        self._taking = self._start(work, done)

    def cancel(self) -> None:
        if self._taking is not None:
            self._taking.is_cancelled = True

    def list(
        self, lineage: str, known: Sequence[BackupRecord], done: Callable[[Listing], None]
    ) -> None:
        def work(job: Job) -> Listing:
            return self._work.list(lineage, known, Waits(lambda: self._world.now, job.sleep))

        self._start(work, done)

    def delete(
        self, wanted: Mapping[str, Sequence[BackupRecord]], done: Callable[[Deletion], None]
    ) -> None:
        self._start(lambda job: self._work.delete(wanted), done)

    def end(self) -> None:
        """The process has died."""
        for job in self._jobs:
            job.end()
        self._jobs.clear()

    def _start(self, work: Callable[[Job], Any], done: Callable[[Any], None]) -> Job:
        self._jobs = [job for job in self._jobs if not job.is_over]
        job = Job(self._world, self._member, work, done)
        self._jobs.append(job)
        return job

    def _sleep(self, seconds: float) -> None:
        """Let time pass in the job whose thread this is."""
        (job,) = [each for each in self._jobs if each.is_current]
        job.sleep(seconds)

    def _open(self) -> Repository:
        if self._repository is None:
            self._repository = self._make(may_create=True)
        return self._repository

    def _make(self, *, may_create: bool) -> Repository:
        return open_repository(
            [BucketClient(bucket, self._sleep) for bucket in self._buckets],
            is_encrypted=False,
            may_create=may_create,
            now_us=self._member.clock.time_us(),
            random=self._member.rng.randbytes,
        )


class Backups:
    """The repository of a simulated cluster, and what must hold of its backups."""

    def __init__(
        self,
        world: World,
        swarm: Swarm,
        members: Mapping[int, Member],
        invariants: Invariants,
    ) -> None:
        self.ledger = Ledger()
        self.on_change: Callable[[Entry, object], None] = lambda entry, change: None
        """Told each change of the catalog that is accepted."""
        self.buckets: list[Bucket] = []
        self._world = world
        self._members = members
        self._oracle = oracle = invariants.oracle
        self._memberships = invariants.memberships
        self._rng = world.stream("backups")
        self._drawn = swarm.backups
        self._healed_index: int | None = None
        self._last_index = 0
        self._states: list[tuple[int, States]] = [(0, {})]
        """What the ledger said after each entry."""
        self._retired_at: dict[int, float] = {}
        self._labels: dict[int, str] = {}
        self._lineages: set[str] = set()
        self._sequences: dict[int, int] = {}
        """The position of each completed backup."""
        self._foreign: dict[str, bytes] = {}
        self._archives = self._drawn is not None and self._drawn.archives
        if self._drawn is None:
            return
        oracle.keeps_history = True
        for number in range(self._drawn.destinations):
            bucket = Bucket(world, self._drawn, f"d{number}")
            bucket.on_create, bucket.on_delete = self._on_create, self._on_delete
            self.buckets.append(bucket)
        self.archive = ArchiveWatch(world, self.buckets, invariants.committed, self._lineage)
        for member in members.values():
            member.make_backups = lambda of: SimulatedBackups(of, world, self.buckets, self.archive)
        if self._drawn.shares_prefix:
            world.at(2.0, self._fork)
        if self._drawn.trigger_every_s:
            self._wait()

    def _lineage(self) -> str:
        """The cluster's present lineage."""
        return self._memberships.latest.lineage

    # ---------------------------------------------------------------- what happens

    def _wait(self) -> None:
        assert self._drawn is not None
        self._world.at(self._rng.expovariate(1 / self._drawn.trigger_every_s), self._ask)

    def _ask(self) -> None:
        """An operator asks some node for a backup, or pins one."""
        if self._healed_index is not None:
            return
        self._wait()
        member = self._rng.choice(list(self._members.values()))
        completed = [b for b in self.ledger.backups.values() if b.state == "completed"]
        if not member.is_up or member.founding is not None:
            return
        deadline = member.deadline(self._rng.choice((0.3, 1.0, 3.0)))
        if completed and self._rng.random() < 0.3:
            backup = self._rng.choice(completed)
            payload = encode_change(Pin(backup.id, "kept", 0))
            operation = BackupOperation(_Waiter(), deadline, BackupAction.CHANGE, payload)
        else:
            mode = self._rng.choice(("", "", "full", "incremental", "differential"))
            waits = self._rng.random() < 0.5
            operation = BackupOperation(
                _Waiter(), deadline, BackupAction.TRIGGER, mode.encode(), waits=waits
            )
        member.submit([operation])

    def _fork(self) -> None:
        """Another cluster, restored from this one, has put its backups into the same place."""
        for bucket in self.buckets:
            own = {n: o for n, o in bucket.objects.items() if "/backups/" in n}
            for name, found in own.items():
                rest = name.partition("/")[2]
                bucket.objects[f"{FOREIGN}/{rest}"] = replace(found)
        self._foreign = self._foreign_objects()
        self._world.counts["other cluster in the repository"] += bool(self._foreign)

    def _foreign_objects(self) -> dict[str, bytes]:
        return {
            f"{bucket.name} {name}": found.data
            for bucket in self.buckets
            for name, found in bucket.objects.items()
            if name.startswith(FOREIGN) and name not in bucket.damaged
        }

    def heal(self) -> None:
        """The chaos is over: the buckets work."""
        for bucket in self.buckets:
            bucket.calm()
        if self._archives:
            self.archive.clean()
        self._healed_index = self._last_index

    def end(self) -> None:
        """The run is over."""
        for member in self._members.values():
            if isinstance(member.backups, SimulatedBackups):
                member.backups.end()

    # ---------------------------------------------------------------- what must hold

    def on_committed(self, entry: Entry) -> None:
        """An administrative entry is committed."""
        if self._oracle.protocol < catalog.PROTOCOL:
            raise Violation(f"entry {entry.index} is of a protocol that not all members speak")
        self._last_index = entry.index
        before = {b.id: b.destinations for b in self.ledger.backups.values()}
        change = self.ledger.apply(entry)
        self._states.append((entry.index, self.ledger.states()))
        running = [b.id for b in self.ledger.backups.values() if b.state == "running"]
        if len(running) > 1:
            raise Violation(f"backups {running} run at the same time")
        match change:
            case Begin():
                self._labels[entry.index] = make_label(entry.time_us, change.mode, entry.index)
                self._lineages.add(change.lineage)
            case End() if not change.error:
                self._world.counts["backup completed"] += 1
                mode = self.ledger.backups[change.id].mode
                self._world.counts[f"{mode} backup"] += 1
                self._check_restores(change.id, change.position_sequence)
            case End():
                self._world.counts["backup failed"] += 1
                self._world.note(0, "backup failed", change.error)
            case Adopt():
                record = BackupRecord(*change.record)
                self._labels[record.id] = record.label
                self._world.counts["backup adopted"] += record.state == "completed"
                self._world.counts["leftover found"] += record.state == "failed"
                if record.state == "completed":
                    self._check_restores(record.id, record.position_sequence)
            case Found():
                self._check_missing(before[change.id], change)
            case NotePoint():
                self.archive.check_point(change.index)
            case Deleted():
                self._world.counts["backup deleted"] += len(change.ids)
                self._check_forgotten(change.ids)
        self.on_change(entry, change)
        for backup_id in self.ledger.retired - self._retired_at.keys():
            self._retired_at[backup_id] = self._world.now

    def _check_restores(self, backup_id: int, sequence: int) -> None:
        """A completed backup restores to the oracle's state, from each destination alone."""
        self._sequences[backup_id] = sequence
        expected = self._oracle.values_at(sequence)
        for bucket in self.buckets:
            if bucket.name in self.ledger.backups[backup_id].destinations:
                self._restore(bucket, backup_id, expected)

    def _restore(self, bucket: Bucket, backup_id: int, expected: dict[bytes, bytes]) -> None:
        chain = self.ledger.chain(backup_id)
        folders = [self._folder(each.id) for each in chain]
        if any(name.startswith(f) for name in bucket.damaged for f in folders):
            return
        where = f"backup {backup_id} can't be restored from {bucket.name}"
        try:
            client = TrueClient(bucket)
            record = read_record(client)
            shelf = Shelf({bucket.name: client}, record.repository_id, NO_KEYS)
            links = load_chain(shelf, chain[0].lineage, self._labels[backup_id])
            found = {k: v for piece in read_state(shelf, links) for k, v in piece}
        except RafthaError as error:
            raise Violation(f"{where}: {error}") from error
        if found != expected:
            wrong = {k for k in found.keys() | expected.keys() if found.get(k) != expected.get(k)}
            raise Violation(f"{where}: {len(wrong)} wrong values, such as {min(wrong)!r}")
        self._world.counts["backup restored"] += 1

    def _folder(self, backup_id: int) -> str:
        return names.backup_folder(self.ledger.backups[backup_id].lineage, self._labels[backup_id])

    def _on_create(self, bucket: Bucket, name: str, data: bytes) -> None:
        """A manifest comes last: from then on the backup exists."""
        if "/log/" in name or "/gaps/" in name:
            self.archive.on_create(bucket, name, data, self._oracle.protocol)
        if not name.endswith("/manifest"):
            return
        lineage, _, label = name.split("/")[:3]
        client = TrueClient(bucket)
        with contextlib.suppress(BackupDamaged):  # A bad write of the manifest itself.
            repository = read_record(client).repository_id
            manifest = load_manifest(client, lineage, label, repository, NO_KEYS).manifest
            wanted = [manifest.run_name(number) for number in range(len(manifest.runs))]
            if not bucket.damaged.issuperset(set(wanted) - bucket.objects.keys()):
                raise Violation(f"{name} is in {bucket.name} before its objects")

    def _check_missing(self, before: tuple[str, ...], change: Found) -> None:
        """What is called missing is not there."""
        folder = self._folder(change.id)
        for bucket in self.buckets:
            is_dropped = bucket.name in before and bucket.name not in change.destinations
            if is_dropped and not any(name.startswith(folder) for name in bucket.damaged):
                raise Violation(f"backup {change.id} is in {bucket.name}, and is called missing")
        self._world.counts["backup missing"] += len(change.destinations) < len(before)

    def _on_delete(self, bucket: Bucket, name: str) -> None:
        if "/log/" in name:
            self.archive.on_delete(bucket, name)
        if "/backups/" not in name:
            return
        lineage, _, label = name.split("/")[:3]
        backup_id = names.parse_label(label).begin_index
        if lineage == FOREIGN:
            raise Violation(f"{name} of another cluster is deleted from {bucket.name}")
        if lineage not in self._lineages:
            return  # A member that was taken for the only survivor has a history of its own.
        if backup_id not in self.ledger.retired:
            raise Violation(f"{name} is deleted, and the backup was not retired")

    def _check_forgotten(self, ids: Sequence[int]) -> None:
        """No object is left of what is forgotten, but what a taker has put there since, or just
        before."""
        for bucket in self.buckets:
            for name, found in bucket.objects.items():
                if "/backups/" not in name or name.partition("/")[0] not in self._lineages:
                    continue
                backup_id = names.parse_label(name.split("/")[2]).begin_index
                is_late = found.written_at + LATE_S >= self._retired_at.get(backup_id, 0.0)
                if backup_id in ids and not is_late:
                    raise Violation(f"backup {backup_id} is forgotten, and {name} is there")

    def lacking(self) -> str:
        """What is still missing after the chaos; "" if nothing is."""
        if self._drawn is None or self._healed_index is None:
            return ""
        if self._oracle.protocol < catalog.PROTOCOL:
            return ""  # Some members run a build that has no backups.
        since = [
            backup
            for backup in self.ledger.backups.values()
            if backup.id > self._healed_index and self.ledger.is_whole(backup.id)
        ]
        if any(len(backup.destinations) == len(self.buckets) for backup in since):
            self._end_schedule()
            has_archive = self._archives and self._oracle.protocol >= catalog.RECOVERY_PROTOCOL
            return self.archive.lacking(self._newest_position()) if has_archive else ""
        return "a backup since the end of the faults"

    def _newest_position(self) -> int:
        """The position of the last backup, by any member."""
        nodes = [member.node for member in self._members.values() if member.node is not None]
        newest = [node.state.catalog.newest(self._lineage()) for node in nodes]
        return max((record.position_index for record in newest if record is not None), default=0)

    def _end_schedule(self) -> None:
        """Have no more backups: members that lag would never have all of the log."""
        for member in self._members.values():
            assert member.config.backup is not None
            object.__setattr__(member.config.backup, "interval_hours", 1000.0)

    def verdict(self, current: Sequence[Member]) -> None:
        """Check what must hold in the end."""
        if self._drawn is None:
            return
        for backup_id, sequence in self._sequences.items():
            backup = self.ledger.backups.get(backup_id)
            if backup is not None and self.ledger.is_whole(backup_id):
                self._check_restores(backup_id, sequence)
        for member in current:
            assert member.node is not None
            state = member.node.state
            records = state.catalog.records()
            found = {r.id: (r.state, r.parent, r.destinations) for r in records}
            expected = [said for at, said in self._states if at <= state.applied.index][-1]
            if found != expected:
                raise Violation(f"node {member.id} has {found}, and the log says {expected}")
        if self._archives and self._oracle.protocol >= catalog.RECOVERY_PROTOCOL:
            self.archive.verdict()
            machine = max((member.machine for member in current), key=lambda m: m.version)
            skips = self._oracle.skips
            check_moments(self._world, self.buckets, self._oracle, self._lineage(), machine, skips)
        if self._foreign.items() > self._foreign_objects().items():
            missing = self._foreign.keys() - self._foreign_objects().keys()
            still = {n for n in missing if n.partition(" ")[2] not in self._damaged()}
            if still:
                raise Violation(f"another cluster's objects have changed: {sorted(still)[:3]}")

    def _damaged(self) -> set[str]:
        return {name for bucket in self.buckets for name in bucket.damaged}


class _Waiter:
    """An operator that doesn't wait for the answer."""

    def done(self, result: Any) -> None: ...
