"""What a simulated member does on its disk beside its node: writes, checkpoints, reads of the log.

Theory of operation. `StorageThreads` of a real node, made of events. A job is handed over, happens
a while later on the simulated disk, in one go, and its result reaches the node a while after that.
The member may crash in between (`Member.run`). A full disk ends nothing: the same job is tried
again, and the node is told.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from raftha.core import LogRead, Write
from raftha.entry import Entry, LogPosition
from raftha.errors import Compacted, StorageFull
from raftha.node.checkpoints import LogCut
from raftha.node.node import Node
from raftha.storage.directory.replay import read_from
from raftha.storage.log.wal import Wal
from raftha.storage.state.state import Frozen
from tests.sim.disk_faults import SimulatedCrash
from tests.sim.swarm import Swarm
from tests.sim.world import Violation, World

if TYPE_CHECKING:
    from tests.sim.member import Member

FULL_RETRY_S = 0.1


class StorageWork:
    """The jobs of one member, over all its lives."""

    def __init__(self, member: Member, world: World, swarm: Swarm) -> None:
        self._member = member
        self._world = world
        self._swarm = swarm
        self._is_preallocating = False
        self._last_cut: LogCut | None = None

    def begin(self) -> None:
        """A life begins: the jobs of the last one are gone."""
        self._is_preallocating = False
        self._last_cut = None

    @property
    def _wal(self) -> Wal:
        assert self._member.wal is not None
        return self._member.wal

    @property
    def _node(self) -> Node:
        assert self._member.node is not None
        return self._member.node

    def _on_disk(self, job: Callable[..., None], *args: object) -> None:
        """Do `job` when the disk gets to it."""
        self._member.later(self._member.faults.pick_time(), self._member.run, job, *args)

    def _report(self, function: Callable[..., None], *args: object) -> None:
        """Have the node's thread told, soon."""
        self._member.later(self._member.rng.uniform(0, 0.001), function, *args)

    # ---------------------------------------------------------------- the log

    def write(self, write: Write) -> None:
        """Make it durable."""
        self._on_disk(self._append, write, False)

    def _append(self, write: Write, was_full: bool) -> None:
        wal = self._wal
        append = partial(wal.append, write.hard_state, write.entries)
        if not self._has_space_for("log", append, was_full, self._append, write):
            return
        if not wal.has_spare:
            self.preallocate()
        self._member.watch.on_durable(self._member, write)
        if self._member.faults.is_due:
            raise SimulatedCrash
        self._report(self._written, write)

    def _has_space_for(
        self,
        place: str,
        work: Callable[[], None],
        was_full: bool,
        again: Callable[..., None],
        *args: object,
    ) -> bool:
        """As `StorageThreads._when_there_is_space`; False if `work` is tried again later."""
        member, node = self._member, self._node
        try:
            work()
        except StorageFull as error:
            self._world.note(member.id, "no space", str(error))
            member.later(0.0, node.on_storage_full, str(error), place)
            member.later(FULL_RETRY_S, member.run, again, *args, True)
            return False
        if was_full:
            self._world.note(member.id, "space again")
            member.later(0.0, node.on_storage_space, place)
        return True

    def _written(self, write: Write) -> None:
        self._world.note(self._member.id, "written", write.hard_state or "")
        self._node.on_written(write)

    def seal(self, commit: int) -> None:
        """Seal the log with this commit index."""
        self._on_disk(self._seal, commit)

    def _seal(self, commit: int) -> None:
        with contextlib.suppress(StorageFull):
            self._wal.seal(commit)
        self._report(self._sealed)

    def _sealed(self) -> None:
        self._node.on_sealed()

    def read_log(self, request: LogRead) -> None:
        """Read old entries."""
        self._on_disk(self._read_log, request)

    def _read_log(self, request: LogRead) -> None:
        result: tuple[LogPosition, list[Entry]] | int
        try:
            result = read_from(self._wal, request.index)
        except Compacted as compacted:
            result = compacted.first_index
        # Reads are slow now and then: much may happen until the node gets what it asked for.
        pause = self._member.pick_pause((0.0, 0.01, 0.1, 1.0))
        self._member.later(pause, self._on_log_read, request, result)

    def _on_log_read(self, request: LogRead, result: tuple[LogPosition, list[Entry]] | int) -> None:
        node_id = self._member.id
        if isinstance(result, int):
            detail = f"for {request.peer}: compacted up to {result}"
            self._world.note(node_id, "log read", detail)
            self._node.on_log_compacted(request, result)
        else:
            previous, entries = result
            detail = f"for {request.peer}: {len(entries)} entries after {previous.index}"
            self._world.note(node_id, "log read", detail)
            self._node.on_log_read(request, previous, entries)

    # ---------------------------------------------------------------- checkpoints

    def checkpoint(self, frozen: Frozen, cut: LogCut, *, with_digest: bool) -> None:
        """Write a checkpoint, then cut the log."""
        # Other members may have more space: which one helps a member that lags may change with the
        # leader.
        is_short = self._member.id % 2 == 1
        backups = self._swarm.backups
        cut = cut._replace(
            bytes_max=self._swarm.retention_bytes if is_short else 1 << 40,
            archive_bytes_max=backups.archive_backlog_bytes if backups is not None else 0,
        )
        self._on_disk(self._write_store, frozen, cut, with_digest, False)

    def _write_store(self, frozen: Frozen, cut: LogCut, with_digest: bool, was_full: bool) -> None:
        write = partial(self._write_checkpoint, frozen)
        again = self._write_store
        if not self._has_space_for("checkpoint", write, was_full, again, frozen, cut, with_digest):
            return
        self._world.note(self._member.id, "checkpoint", f"at {frozen.position.index}")
        self._on_disk(self._compact, frozen, cut, with_digest)

    def _write_checkpoint(self, frozen: Frozen) -> None:
        """As `StorageThreads._write_checkpoint`."""
        spool = self._member.spool
        if spool is not None:
            spool.add(frozen.position, frozen.meta, frozen.items)
        self._member.store.write(frozen.items, frozen.meta)
        if spool is not None:
            spool.commit(frozen.position)

    def _compact(self, frozen: Frozen, cut: LogCut, with_digest: bool) -> None:
        member, wal, node = self._member, self._wal, self._node
        first_index = wal.first_index
        cut.apply(wal)
        bytes_max = max(cut.bytes_max, cut.archive_bytes_max)
        if wal.base.index < wal.index_within(bytes_max) <= cut.limit_index:
            raise Violation(f"node {member.id} keeps more than {bytes_max} bytes of log")
        if wal.first_index > frozen.position.index + 1:
            raise Violation(
                f"node {member.id} has cut its log up to {wal.first_index}, its state is at "
                f"{frozen.position.index}"
            )
        self._last_cut = cut
        if wal.first_index != first_index:
            self._world.note(member.id, "compacted", f"to {wal.first_index}")
        self.preallocate()
        done = frozen.position, len(frozen.items), wal.first_index
        self._report(node.on_checkpoint, *done)
        if with_digest:
            stored = member.store.digest()
            digest = frozen.digest_with(stored) if stored else None
            took_s = 0.001 + member.faults.pick_time()
            member.later(took_s, node.on_digest, frozen.position.index, digest)

    def preallocate(self) -> None:
        """Make the next segment ahead of need: what `StorageThreads.preallocate` does."""
        if not self._is_preallocating:
            self._is_preallocating = True
            self._on_disk(self._preallocate_now, False)

    def _preallocate_now(self, was_full: bool) -> None:
        if self._has_space_for("ahead", self._take_space, was_full, self._preallocate_now):
            self._is_preallocating = False

    def _take_space(self) -> None:
        wal = self._wal
        try:
            wal.prepare_spare()
        except StorageFull:
            if self._last_cut is None:
                raise
            # Log that is kept for members that lag is freed first: they can be sent a snapshot.
            self._last_cut.at_once().apply(wal)
            wal.prepare_spare()
