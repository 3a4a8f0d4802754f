"""Takes a backup: from a node's store or spool into all destinations, and proves that it is there.

Theory of operation. A backup has nine steps. The first, second, eighth and ninth (begin in the log,
a checkpoint, end in the log, retention) are the orchestrator's; this module does the others:

    3  open the source: the whole state, or what the spool has since the parent
    4  read, compress, seal and put objects, to all destinations at once
    5  read each object back
    6  put the manifest: from here on the backup exists
    7  read it back, list the objects once more, verify as far as is wanted, put `verified`

A crash before step 6 leaves objects without a manifest, which are no backup; one after it leaves a
backup that is verified later. A destination that fails is out, and the backup goes on without it;
it fails when none is left. If the source must begin again, new objects get the next numbers, and
those from before stay behind, until the folder goes.

All of this blocks, and knows no clock, thread or randomness but what `TakeHooks` gives it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from hashlib import sha256
from typing import NamedTuple

from raftha.errors import BackupFailed, ObjectMissing, RafthaError
from raftha.storage.backup import names
from raftha.storage.backup.crypto import SALT_BYTES
from raftha.storage.backup.destination import Destination
from raftha.storage.backup.hashing import ParallelHasher
from raftha.storage.backup.manifest import FULL, Manifest, StoredManifest, encode_manifest
from raftha.storage.backup.pool import Pool, serial_pool
from raftha.storage.backup.repository import Repository
from raftha.storage.backup.runs import (
    DELTA_OBJECT_BYTES,
    OBJECT_BYTES,
    ObjectFacts,
    write_run,
)
from raftha.storage.backup.source import Source, SourceReading
from raftha.storage.backup.uploads import BackupCancelled, Uploads, Waits
from raftha.storage.backup.verify import Verified, verify_in, write_verified
from raftha.storage.state.blocks import Block
from raftha.storage.state.store import ReadInterrupted
from raftha.types import BackupState
from raftha.version import VERSION

ENCODERS_MAX = 4
FAST_LEVEL = 3
"""Up to this level of compression, reading takes about as long as encoding."""
LIST_PAUSE_S = 1.0
"""Pauses between looks whether a destination lists what it has."""
SOURCE_TRIES = 3
"""How often a source is read that says it must begin again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeOrder:
    """A backup to take: what its `begin` entry says, and the settings.

    `started_us` is the log's time in `begin`, and `level` one of ours, 0 to 9. `parent` is None for
    a full backup, and `base_label` "".
    """

    id: int
    label: str
    mode: str
    lineage: str
    node: int
    started_us: int
    destinations: tuple[str, ...]
    parent: StoredManifest | None = None
    level: int = 6
    retry_s: float = 30.0
    verify_level: int = 1
    machine: str = ""
    commands: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeHooks:
    """What a backup needs of its surroundings.

    `on_state` gets each state as it becomes true, `on_progress` the bytes read and an estimate of
    all. `pace` is called with the bytes of each block, and returns when the next may be read.
    `on_step` gets each step and what it was done with, once it is done, on any worker. `on_out`
    gets the error for which a destination has no part in the backup any more.
    """

    waits: Waits
    now_us: Callable[[], int]
    on_state: Callable[[BackupState], None] = lambda state: None
    on_progress: Callable[[int, int], None] = lambda done, total: None
    pace: Callable[[int], None] = lambda size: None
    on_step: Callable[[int, str], None] = lambda step, what: None
    on_out: Callable[[Exception], None] = lambda error: None
    pool: Callable[[str, int], Pool] = serial_pool
    random: Callable[[int], bytes] = os.urandom


class TakeResult(NamedTuple):
    """A backup that was taken: `completed` destinations have it, verified; the others failed."""

    manifest: Manifest
    manifest_sha256: str
    completed: tuple[str, ...]
    errors: dict[str, str]


def take(order: TakeOrder, source: Source, repository: Repository, hooks: TakeHooks) -> TakeResult:
    """Take a backup: return once it is verified in at least one destination.

    BackupFailed if no destination has it; StorageError (SourceBehind, SpoolLost, Corrupt) if this
    node can't give the data; BackupCancelled.
    """
    present = {name: repository.destinations.get(name) for name in order.destinations}
    destinations = {name: found for name, found in present.items() if found is not None}
    errors = {
        name: str(repository.failed.get(name, "this node's settings don't have it"))
        for name in order.destinations
        if name not in destinations
    }
    uploads = Uploads(
        destinations,
        hooks.waits,
        order.retry_s,
        pool=hooks.pool,
        on_stored=lambda destination, name: hooks.on_step(5, f"{destination}: {name}"),
        on_out=hooks.on_out,
    )
    encoders = hooks.pool("encode", encoders_of(order.level))
    hasher = ParallelHasher(hooks.pool("digest", 1))
    try:
        taking = _Taking(order, source, repository, hooks, uploads, encoders, hasher, errors)
        manifest = taking.write_run()
        return taking.prove(manifest)
    finally:
        encoders.shutdown(cancel_futures=True)
        hasher.close()
        uploads.close()


def encoders_of(level: int) -> int:
    """How many workers compress and encrypt.

    As many as there are processors, but for the one that reads; with more, they only take turns.
    """
    processors = os.cpu_count() or 1
    return max(1, min(ENCODERS_MAX, processors - (level <= FAST_LEVEL)))


class _Stopwatch:
    """How long a backup has been busy with each state."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._state = BackupState.BACKING_UP
        self._since = monotonic()
        self._spent = dict.fromkeys(BackupState, 0.0)

    def switch(self, state: BackupState) -> BackupState:
        """It is busy with this from now on; return what it was busy with."""
        now = self._monotonic()
        before, self._state = self._state, state
        self._spent[before] += now - self._since
        self._since = now
        return before

    def busiest(self) -> BackupState:
        """What it was busiest with since the last call."""
        self.switch(self._state)
        found = max(self._spent, key=lambda state: self._spent[state])
        self._spent = dict.fromkeys(BackupState, 0.0)
        return found if found.is_running else BackupState.BACKING_UP


@dataclass(slots=True)
class _Taking:
    """One backup that is being taken."""

    order: TakeOrder
    source: Source
    repository: Repository
    hooks: TakeHooks
    uploads: Uploads
    encoders: Pool
    digest: ParallelHasher
    errors: dict[str, str]
    """Of the destinations that take no part."""
    first_run: int = 0
    facts: list[ObjectFacts] = field(default_factory=list)
    read_bytes: int = 0
    read_keys: int = 0

    def write_run(self) -> Manifest:
        """Steps 3 to 5; return the manifest, which is not written yet."""
        self.hooks.on_state(BackupState.PREPARING)
        self._check()
        for tries_left in reversed(range(SOURCE_TRIES)):
            try:
                with self._open() as reading:
                    self.hooks.on_step(3, self.order.mode)
                    self._write_objects(reading)
                    return self._manifest(reading)
            except ReadInterrupted:
                if not tries_left:
                    raise
                self.first_run += len(self.facts)
                self.digest.begin_again()
                self.facts = []
                self.read_bytes = self.read_keys = 0
        raise AssertionError("unreachable")

    def _open(self) -> AbstractContextManager[SourceReading]:
        order = self.order
        if order.mode == FULL:
            return self.source.full(order.id)
        assert order.parent is not None, "a delta has a parent"
        return self.source.delta(order.parent.manifest.position.index, order.id)

    def _write_objects(self, reading: SourceReading) -> None:
        order, hooks = self.order, self.hooks
        watch = _Stopwatch(hooks.waits.monotonic)
        objects = write_run(
            self._watched(reading.blocks, watch),
            reading.meta,
            lambda number: names.run_name(order.lineage, order.label, self.first_run + number),
            key=self.repository.key,
            level=order.level,
            pool=self.encoders,
            object_bytes=OBJECT_BYTES if order.mode == FULL else DELTA_OBJECT_BYTES,
            on_block=lambda block: self._on_block(block, reading.keys_max),
            salt=lambda: hooks.random(SALT_BYTES),
        )
        hooks.on_state(BackupState.BACKING_UP)
        sealing = BackupState.COMPRESSING if order.level else BackupState.ENCRYPTING
        with closing(objects):
            watch.switch(sealing)
            for made in objects:
                self.facts.append(made.facts)
                hooks.on_step(4, made.name)
                watch.switch(BackupState.UPLOADING)
                self.uploads.put(made.name, made.data)
                self._check()
                hooks.on_state(watch.busiest())
                watch.switch(sealing)
        hooks.on_state(BackupState.UPLOADING)
        self.uploads.wait()
        self._check()

    def _watched(self, blocks: Iterator[Block], watch: _Stopwatch) -> Iterator[Block]:
        before = watch.switch(BackupState.BACKING_UP)
        for block in blocks:
            watch.switch(before)
            yield block
            before = watch.switch(BackupState.BACKING_UP)

    def _on_block(self, block: Block, keys_max: int) -> None:
        self.hooks.pace(len(block.raw))
        if not self.hooks.waits.is_wanted():
            raise BackupCancelled("the backup is no longer wanted")
        if self.order.mode == FULL:
            self.digest.add(block.raw, block.keys)
        self.read_bytes += len(block.raw)
        self.read_keys += block.keys
        total = self.read_bytes * max(keys_max, self.read_keys) // self.read_keys
        self.hooks.on_progress(self.read_bytes, total)

    def _manifest(self, reading: SourceReading) -> Manifest:
        order, parent = self.order, self.order.parent
        is_full = parent is None
        return Manifest(
            repository=self.repository.id,
            lineage=order.lineage,
            id=order.id,
            label=order.label,
            mode=order.mode,
            parent_label="" if parent is None else parent.manifest.label,
            parent_sha256="" if parent is None else parent.sha256,
            base_label=order.label if parent is None else parent.manifest.base_label,
            first_run=self.first_run,
            position=reading.position,
            start=reading.start,
            membership=reading.membership,
            runs=tuple(self.facts),
            digest=self.digest.finish().hex if is_full else "",
            node=order.node,
            raftha_version=VERSION,
            machine=order.machine,
            commands=order.commands,
            started_us=order.started_us,
            finished_us=self.hooks.now_us(),
        )

    def prove(self, manifest: Manifest) -> TakeResult:
        """Steps 6 and 7."""
        order, hooks = self.order, self.hooks
        data = encode_manifest(manifest, self.repository.key, salt=hooks.random(SALT_BYTES))
        stored = StoredManifest(manifest, sha256(data).hexdigest())
        self.uploads.put(names.manifest_name(order.lineage, order.label), data)
        self.uploads.wait()
        self._check()
        hooks.on_step(6, order.label)
        hooks.on_state(BackupState.VERIFYING)
        completed = []
        for name, destination in self.uploads.alive.items():
            try:
                self._verify(destination, stored)
            except BackupCancelled:
                raise
            except RafthaError as error:
                self.uploads.fail(name, error)
            else:
                completed.append(name)
                hooks.on_step(7, name)
        self._check()
        errors = self.errors | self.uploads.errors
        return TakeResult(manifest, stored.sha256, tuple(completed), errors)

    def _verify(self, destination: Destination, stored: StoredManifest) -> None:
        order, hooks = self.order, self.hooks
        # Step 5 was level 1 already; what is missing now has gone since.
        level = order.verify_level if order.verify_level > 1 else 0
        deadline = hooks.waits.monotonic() + order.retry_s
        while True:
            report = verify_in(
                destination, self.repository, order.lineage, order.label, level, hooks.waits
            )
            if not report.findings:
                break
            # A store may list new objects late; each was read back already.
            is_late = all(isinstance(finding, ObjectMissing) for finding in report.findings)
            if not is_late or hooks.waits.monotonic() + LIST_PAUSE_S > deadline:
                raise report.findings[0]
            hooks.waits.sleep(LIST_PAUSE_S)
        verified = Verified(
            label=order.label,
            manifest_sha256=stored.sha256,
            level=order.verify_level,
            digest=report.digest or stored.manifest.digest,
            node=order.node,
            time_us=hooks.now_us(),
        )
        write_verified(destination, order.lineage, verified, hooks.waits, order.retry_s)

    def _check(self) -> None:
        """Raise unless the backup goes on."""
        if not self.hooks.waits.is_wanted():
            raise BackupCancelled("the backup is no longer wanted")
        if not self.uploads.alive:
            errors = self.errors | self.uploads.errors
            listed = "; ".join(f"{name}: {error}" for name, error in errors.items())
            raise BackupFailed(f"no destination has the backup: {listed}", self.order.id)
