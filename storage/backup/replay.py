"""Builds the state as of a moment: a chain of backups, and the log behind it, applied again.

Theory of operation. `build_image` does what a plan says (`planner.py`):

    1  the pairs of the base, the full backup's and those of each delta
    2  all entries up to the target, in order, by the very `State` that a node has, with the user's
       state machine; checkpoints keep its memory bounded
    3  the digest of all pairs, as they are in the store then

What is checked on the way: every entry's hash follows the one before it, beginning with the
position of the base; the digest of the full backup; the digest of each backup that the plan has
among its checks, when the replay is at its position; the digest of each source.

A target within an entry ends with the entry's first commands: the rest is cut off, and the groups
before the cut have their outcomes as ever.

A restore into a new lineage on the way moves the state to where that lineage begins, as the restore
did. A RESTORE entry replaces all pairs by those of its source, and leaves the meta as it is.

All of this blocks, and gets workers and time from its caller.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import NamedTuple

from raftha.entry import Entry, EntryKind, LogPosition, follows
from raftha.errors import BackupDamaged, ObjectMissing, RafthaError, UpgradeRequired
from raftha.storage.backup import names
from raftha.storage.backup.chain import Shelf, read_backup
from raftha.storage.backup.cut import cut_entry, cut_position
from raftha.storage.backup.hashing import ParallelHasher, hash_store
from raftha.storage.backup.image_stores import STATE, FolderStores, ImageBuilder, ImageStores
from raftha.storage.backup.log_reader import LogReader
from raftha.storage.backup.manifest import Manifest
from raftha.storage.backup.pairs import Piece
from raftha.storage.backup.pool import Pool, serial_pool
from raftha.storage.backup.recovery import RecoveryPlan, Source
from raftha.storage.backup.repository import Repository
from raftha.storage.backup.runs import MetaParts
from raftha.storage.backup.timeline import Part, begin_lineage, read_timeline
from raftha.storage.backup.uploads import BackupCancelled
from raftha.storage.state.catalog_changes import Restore
from raftha.storage.state.machine import StateMachine
from raftha.storage.state.meta import move_meta, read_meta
from raftha.storage.state.recoveries import RecoveryRecord
from raftha.storage.state.restored import meta_behind, wanted_restore
from raftha.storage.state.state import State
from raftha.storage.state.store import StoreDigest

BUFFER_BYTES = 128 << 20
"""Changes in memory, after which they are written."""
FETCHERS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayHooks:
    """What a recovery needs of its surroundings.

    `on_progress` gets how much was done of how much there is to do, in bytes of pairs and of
    segments; `on_step` each step of the module's docstring once it is done. `skips` are the entries
    that operators had the cluster skip, hashes by index.
    """

    on_progress: Callable[[int, int], None] = lambda done, total: None
    on_step: Callable[[int], None] = lambda step: None
    is_wanted: Callable[[], bool] = lambda: True
    pool: Callable[[str, int], Pool] = serial_pool
    monotonic: Callable[[], float] = monotonic
    skips: Mapping[int, bytes] = field(default_factory=dict)
    buffer_bytes: int = BUFFER_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What was built: the digest of all pairs and their number, and where in the log it is.

    `checked` are the labels of the backups whose digests were compared with that of this state or
    of an earlier one on the way. `seconds` has what each phase took.
    """

    digest: str
    keys: int
    position: LogPosition
    membership: bytes | None
    checked: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def last_sequence(self) -> int:
        """The last command that is in it."""
        return self.position.last_sequence


def build_image(
    plan: RecoveryPlan,
    repository: Repository,
    place: Path | ImageStores,
    machine: StateMachine | None = None,
    hooks: ReplayHooks | None = None,
) -> Image:
    """Build the state that a plan leads to, as `state` in this folder, durable on return.

    UpgradeRequired: this build, or this state machine, doesn't support what the log uses.
    BackupDamaged and other RepositoryErrors; StorageFull, StorageFailed; BackupCancelled. After an
    error there may be anything in the folder.
    """
    stores = FolderStores(place) if isinstance(place, Path) else place
    building = _Building(plan, repository, stores, machine, hooks or ReplayHooks())
    return building.run()


def check_machine(plan: RecoveryPlan, machine: StateMachine | None) -> None:
    """UpgradeRequired if the plan replays log, and there is no state machine for its commands."""
    if machine is None:
        for each in plan.all_plans():
            if each.needs_replay and each.backup.commands:
                raise UpgradeRequired(
                    "the log has commands of a state machine", hint=_machine_hint(each)
                )


def _machine_hint(plan: RecoveryPlan) -> str:
    return (
        f"name the class of the state machine, as module:Class; it was {plan.backup.machine}. "
        "Without it backups can be restored, but no moment between them"
    )


class _Built(NamedTuple):
    """A source that was built, and its name among the states."""

    name: str
    digest: str


class _Building:
    """One recovery: its sources, and then the state itself."""

    def __init__(
        self,
        plan: RecoveryPlan,
        repository: Repository,
        stores: ImageStores,
        machine: StateMachine | None,
        hooks: ReplayHooks,
    ) -> None:
        self._plans = plan.all_plans()
        self.repository = repository
        self.shelf = Shelf(repository.destinations, repository.id, repository.keys)
        self.stores = stores
        self.machine = machine
        self.hooks = hooks
        self._built: dict[int, _Built] = {}
        self._uses = Counter(id(s.plan) for each in self._plans for s in each.sources)
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._done = 0
        self._total = sum(
            each.log_bytes + sum(link.manifest.size_bytes for link in each.links)
            for each in self._plans
        )

    def run(self) -> Image:
        """Build all sources, each once, and the state."""
        for number, plan in enumerate(self._plans[:-1]):
            name = f"source-{number}"
            image = _Replay(self, plan, name).run()
            self._built[id(plan)] = _Built(name, image.digest)
        return _Replay(self, self._plans[-1], STATE).run()

    def use(self, source: Source, name: str) -> _Built:
        """Have the state of a source under this name."""
        built = self._built[id(source.plan)]
        self._uses[id(source.plan)] -= 1
        if self._uses[id(source.plan)]:
            self.stores.copy(built.name, name)
        else:
            self.stores.rename(built.name, name)
        return built

    def progress(self, size: int) -> None:
        """So many bytes more are done."""
        self.go_on()
        self._done += size
        self.hooks.on_progress(min(self._done, self._total), self._total)

    def go_on(self) -> None:
        """BackupCancelled if it is no longer wanted."""
        if not self.hooks.is_wanted():
            raise BackupCancelled("the recovery is no longer wanted")

    def spend(self, phase: str, since: float) -> float:
        """Note what a phase took; return the time."""
        now = self.hooks.monotonic()
        self._seconds[phase] += now - since
        return now

    @property
    def seconds(self) -> dict[str, float]:
        """What the phases took until now."""
        return dict(self._seconds)


class _Replay:
    """The work on one plan, whose state is built under a name."""

    def __init__(self, building: _Building, plan: RecoveryPlan, name: str) -> None:
        self._building = building
        self._plan = plan
        self._name = name
        self._hooks = building.hooks
        self._checked: list[str] = []
        self._jumps = {part.after + 1: part for part in plan.history if part.is_jump}
        self._sources = {source.restore.index: source for source in plan.sources}
        self._checks = {check.manifest.position.index: check for check in plan.checks}
        self._cuts = {
            before.until: before.sequence_until
            for before, after in pairwise(plan.history)
            if after.is_jump
        }
        self._cuts[plan.position.index] = plan.position.last_sequence
        """What is behind this number in these entries is not part of the history."""
        joints = (stretch.first for stretch in plan.stretches)
        self._special = sorted({*self._jumps, *self._sources, *self._checks, *self._cuts, *joints})
        """Entries that are more than applied."""
        self._builder: ImageBuilder
        self._state: State

    def run(self) -> Image:
        """All steps of the module's docstring."""
        begun = self._hooks.monotonic()
        expected = self._plan.links[0].manifest.size_bytes
        self._builder = self._building.stores.build(self._name, expected)
        try:
            meta = self._restore_base()
            begun = self._done(1, "restore", begun)
            if self._plan.needs_replay:
                self._builder.write((), meta)
                self._open_state()
                self._replay()
                meta = self._flush()
            self._builder.finish(meta)
            begun = self._done(2, "replay", begun)
        finally:
            self._builder.close()
        digest = self._digest_of_disk()
        self._done(3, "digest", begun)
        facts = read_meta(meta)
        return Image(
            digest=digest.hex,
            keys=digest.keys,
            position=facts.position,
            membership=facts.membership,
            checked=tuple(dict.fromkeys(self._checked)),
            seconds=self._building.seconds,
        )

    def _digest_of_disk(self) -> StoreDigest:
        store = self._building.stores.open(self._name)
        try:
            digest = hash_store(store, self._hooks.pool, self._building.go_on)
        finally:
            store.close()
        if not self._plan.needs_replay:
            self._compare(digest, self._plan.backup)
        return digest

    def _done(self, step: int, phase: str, begun: float) -> float:
        if self._name == STATE:
            self._hooks.on_step(step)
        return self._building.spend(phase, begun)

    # ---------------------------------------------------------------- the base

    def _restore_base(self) -> bytes:
        """Step 1; return the meta."""
        plan, building, builder = self._plan, self._building, self._builder
        pool = self._hooks.pool("fetch", FETCHERS)
        try:
            for link in plan.links:
                meta, self._left = MetaParts(), link.manifest.size_bytes
                reading = partial(read_backup, building.shelf, link.manifest, meta.add, pool)
                if not link.manifest.is_full:
                    builder.change(reading(self._count))
                elif plan.needs_replay or not plan.backup.digest:
                    self._append_hashed(reading, link.manifest)
                else:  # The digest of what is on the disk in the end must be the same.
                    builder.append(reading(self._count))
                building.progress(self._left)  # What was no pairs: the meta.
            whole = meta.join()
            self._check_meta(whole)
            return whole
        finally:
            pool.shutdown(cancel_futures=True)

    def _count(self, raw: bytes, keys: int) -> None:
        self._left -= len(raw)
        self._building.progress(len(raw))

    def _append_hashed(
        self,
        reading: Callable[[Callable[[bytes, int], None]], Iterator[Piece]],
        manifest: Manifest,
    ) -> None:
        """Append the pairs of a full backup; BackupDamaged if they have another digest."""
        hasher = ParallelHasher(self._hooks.pool("digest", 1))

        def on_block(raw: bytes, keys: int) -> None:
            hasher.add(raw, keys)
            self._count(raw, keys)

        try:
            self._builder.append(reading(on_block))
            self._compare(hasher.finish(), manifest)
        finally:
            hasher.close()

    def _check_meta(self, meta: bytes) -> None:
        manifest = self._plan.backup
        name = names.manifest_name(manifest.lineage, manifest.label)
        try:
            if read_meta(meta).position != manifest.position:
                raise ValueError("its meta is of another position")
        except ValueError as error:
            raise BackupDamaged(str(error), object_name=name) from error

    def _compare(self, digest: StoreDigest, manifest: Manifest) -> None:
        if not manifest.digest:
            return
        if manifest.digest != digest.hex:
            raise BackupDamaged(
                f"the state that is restored has digest {digest.hex}, and the node that took it "
                f"computed {manifest.digest}",
                object_name=names.manifest_name(manifest.lineage, manifest.label),
            )
        self._checked.append(manifest.label)

    # ---------------------------------------------------------------- the replay

    def _open_state(self) -> None:
        self._state = State(self._builder, self._building.machine)
        self._state.skips = self._hooks.skips

    def _replay(self) -> None:
        plan = self._plan
        reader = LogReader(
            self._building.shelf,
            plan.history,
            plan.stretches,
            relist=lambda: read_timeline(self._building.repository),
            pool=self._hooks.pool,
        )
        sizes = deque((stretch.last, stretch.segment.size) for stretch in plan.stretches)
        try:
            with _explained(lambda: self._state, plan):
                self._state.check_supported()
                for piece in reader.pieces():
                    self._apply_all(piece)
                    while sizes and sizes[0][0] <= self._state.applied.index:
                        self._building.progress(sizes.popleft()[1])
                    self._building.go_on()
        finally:
            reader.close()
        if self._state.applied != plan.position:
            raise BackupDamaged(
                f"the log ends with entry {self._state.applied.index}, and the plan with "
                f"{plan.position.index}"
            )

    def _apply_all(self, piece: list[Entry]) -> None:
        limit, state = self._hooks.buffer_bytes, self._state
        at = bisect_left(self._special, piece[0].index)
        special = self._special[at] if at < len(self._special) else 0
        for entry in piece:
            if entry.index == special or entry.kind == EntryKind.RESTORE:
                self._apply_special(entry)
                at, state = at + (entry.index == special), self._state
                special = self._special[at] if at < len(self._special) else 0
            else:
                state.apply(entry)
            if state.buffer_bytes > limit:
                self._flush()

    def _apply_special(self, entry: Entry) -> None:
        index = entry.index
        if index in self._jumps:
            self._begin_lineage(self._jumps[index], entry)
        self._check_joint(entry)
        restored = None
        if entry.kind == EntryKind.RESTORE:
            restored = wanted_restore(self._state, entry)
        if restored is not None:
            self._replace_pairs(entry, *restored)
        else:
            before = self._state.applied.last_sequence
            last = self._cuts.get(index, entry.last_sequence)
            self._state.apply(cut_entry(entry, before, last))
            self._state.applied = cut_position(entry.position, last)
        if index in self._checks:
            self._check_digest(self._checks[index].manifest)

    def _check_joint(self, entry: Entry) -> None:
        """BackupDamaged unless an entry follows the one before, which may be of another segment."""
        applied = self._state.applied
        is_next = (
            entry.index == applied.index + 1
            and entry.term >= applied.term
            and entry.time_us >= applied.time_us
            and follows(entry, applied.hash)
        )
        if not is_next:
            raise BackupDamaged(
                f"entry {entry.index} of the log does not follow entry {applied.index}",
                hint="the log is another one than that of the backup; choose another backup",
            )

    def _begin_lineage(self, part: Part, first: Entry) -> None:
        """A restore moved the state to where its lineage begins."""
        fork, applied = part.fork, self._state.applied
        assert fork is not None, "a lineage that a restore began has a fork"
        found = (applied.index, applied.last_sequence, applied.hash.hex())
        if found != (fork.fork_index, fork.fork_sequence, fork.fork_hash):
            raise BackupDamaged(
                f"lineage {part.lineage} forked from another state than the one there",
                object_name=names.lineage_name(part.lineage),
            )
        beginning = begin_lineage(applied, part.lineage, first.last_sequence)
        if first.kind != EntryKind.MEMBERSHIP or not follows(first, beginning.hash):
            raise BackupDamaged(f"lineage {part.lineage} does not begin with entry {first.index}")
        self._builder.write((), move_meta(self._flush(), beginning, bytes(first.payload)))
        self._open_state()

    def _replace_pairs(self, entry: Entry, restore: Restore, record: RecoveryRecord) -> None:
        """An accepted RESTORE entry: the pairs of its source, and the meta behind it."""
        source = self._sources.get(entry.index)
        if source is None or source.restore.to_sequence != record.to_sequence:
            raise ObjectMissing(
                f"entry {entry.index} went back to sequence {record.to_sequence}, and the "
                "repository has no record of that",
                object_name=names.restores_folder(self._plan.lineage),
                hint="plan again; if that doesn't help, choose a moment behind the next backup",
            )
        meta = meta_behind(self._state, entry)
        self._builder.close()
        built = self._building.use(source, self._name)
        if built.digest != restore.digest:
            raise BackupDamaged(
                f"entry {entry.index} went back to a state with digest {restore.digest}, and the "
                f"one that was built for it has {built.digest}"
            )
        self._builder = self._building.stores.reopen(self._name)
        self._builder.write((), meta)
        self._open_state()

    def _check_digest(self, manifest: Manifest) -> None:
        """Compare with the backup that was taken at this position."""
        if self._state.applied != manifest.position:
            raise BackupDamaged(
                f"entry {manifest.position.index} is not the one that the backup was taken at",
                object_name=names.manifest_name(manifest.lineage, manifest.label),
            )
        self._flush()
        digest = hash_store(self._builder, self._hooks.pool, self._building.go_on)
        self._compare(digest, manifest)

    # ---------------------------------------------------------------- checkpoints

    def _flush(self) -> bytes:
        """Have all changes in the store; return the meta.

        Not beside the next entries: LMDB gives up Python's lock for each put, and a second busy
        thread makes both slower.
        """
        frozen = self._state.freeze()
        self._builder.change(frozen.items.pieces())
        self._state.checkpoint_done()
        return frozen.meta


def _without_hint(error: RafthaError) -> str:
    return str(error).removesuffix(f" ({error.hint})")


@contextmanager
def _explained(state: Callable[[], State], plan: RecoveryPlan) -> Iterator[None]:
    """Say what an entry that can't be applied means here."""
    try:
        yield
    except UpgradeRequired as error:
        raise UpgradeRequired(
            f"the log can't be applied: {_without_hint(error)}",
            hint=_machine_hint(plan) if plan.backup.machine else "use the build that wrote it",
        ) from error
    except (MemoryError, RecursionError, OSError, AssertionError, ValueError) as error:
        entry = state().applying
        if entry is None or isinstance(error, RafthaError):
            raise
        raise BackupDamaged(
            f"entry {entry.index} ({entry.hash.hex()}) of the log can't be applied: {error!r:.200}",
            hint="if the cluster was made to skip it, say so",
        ) from error
