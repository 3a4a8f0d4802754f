"""One member of the cluster: connects the core, the state, the callers and the clock.

Theory of operation. The host drives a `Node`. Messages, ticks, operations and completed disk work
arrive as calls, and each call asks the host for a turn (`Host.wake`). In `turn` the node acts on
everything that arrived since the last turn. It never waits, and it never touches a disk, a socket
or a clock itself. So the same code runs on an event loop with real threads (`raftha.runtime`) and
in the simulator, where a seed decides clock and disk.

A node has ten collaborators: the core and the state; writes, reads, checkpoints, snapshots,
administration, backups and upgrades, each with its operations or messages; and the watch. They
don't know the node. Results for callers go through `PendingOperations`.

A turn: queued groups become one batch if no write is under way -> the core decides what to write,
send, apply and read -> the host gets all of it -> futures are completed, all together.

Rules:
  N1  All calls come from one thread, the node's. Only `lease_reads` may be called from any thread.
  N2  An applied entry is committed and on this node's disk (core, R5).
  N3  A checkpoint freezes the write buffer between two entries. The host writes it out while the
      next buffer fills. At most one checkpoint is under way.
  N4  The log is cut up to the last checkpoint but one, and not beyond what every member has on
      disk, unless that would keep too much log.
  N5  The first storage error or broken invariant ends the node for good: every caller gets an
      error, and the node answers nothing more. Its process goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, cast

from raftha.clock import Clock
from raftha.config import HaConfig
from raftha.core import Append, AppendReply, HeartbeatReply, LogRead, Raft, Ready, Write
from raftha.entry import Entry, EntryKind, LogPosition
from raftha.errors import Disconnected, StorageFull, Unavailable
from raftha.events import (
    ReplicaConnected,
    ReplicaDisconnected,
    StorageFailure,
)
from raftha.membership import Membership
from raftha.node.administration import Administration
from raftha.node.backup.backups import Backups
from raftha.node.checkpoints import Checkpoints
from raftha.node.host import Host
from raftha.node.lease_reads import LeaseReads
from raftha.node.log_clock import LogClock
from raftha.node.messages import PeerMessage
from raftha.node.operations import (
    BackupOperation,
    CallOperation,
    DigestOperation,
    GroupOperation,
    MembershipOperation,
    Operation,
    ReadOperation,
    TransferOperation,
    WriteOperation,
)
from raftha.node.pending import PendingOperations, expire
from raftha.node.reads import ReadQueue
from raftha.node.routes import message_routes
from raftha.node.senders import SenderCheck
from raftha.node.snapshots import Snapshots
from raftha.node.status import STOPPED, StatusReport
from raftha.node.upgrades import Upgrades
from raftha.node.watch.watch import Watch
from raftha.node.writes import Writes
from raftha.storage.state.state import State, StateDigest
from raftha.types import HaStatus

EXPIRY_TICKS = 5
REMOVED = "this node was removed from the cluster"


class Node:
    """A member. The module's docstring says from which thread each call may come."""

    def __init__(
        self,
        config: HaConfig,
        core: Raft,
        state: State,
        host: Host,
        clock: Clock,
        random_below: Callable[[int], int],
    ) -> None:
        self.config, self.core, self.state = config, core, state
        self.failure = ""
        self.lease_reads = LeaseReads(core, state, clock.boottime_ns, host.statistics.lease_reads)
        self._client_addresses = {config.node_id: config.client_address}
        self._host = host
        self._clock = clock
        self._statistics = host.statistics
        now = clock.monotonic
        pending = PendingOperations(host.deliver, host.deliver_each, host.statistics.errors)
        self._pending = pending
        timeout_s = config.election_timeout_ms / 1000
        ack_timeout_s = config.replication.ack_timeout_ms / 1000
        self._senders = SenderCheck(core, timeout_s)
        log_clock = LogClock(core, clock, config.max_clock_offset_ms)
        self._writes = Writes(core, host, pending, clock, log_clock, random_below, ack_timeout_s)
        self._reads = ReadQueue(
            core,
            pending,
            lambda operation: operation.read(self),
            host.wake,
            random_below(1 << 32),
            timeout_s,
            host.statistics.reads,
            boottime_ns=clock.boottime_ns,
            uncounted=Node.status,
        )
        self._upgrades = Upgrades(core, state, host, self._writes, pending.deliver, clock)
        applied = core.log.first_membership
        self._administration = Administration(
            core, applied, host.send, pending.deliver, now, self._upgrades.why_unfit
        )
        rate = config.snapshot_bytes_per_s
        self._snapshots = Snapshots(
            core, host.snapshots, host.send, host.emit, random_below, now, rate
        )
        self._checkpoints = Checkpoints(
            config, state, core.log, host, pending.deliver, now(), self._snapshots.kept_index
        )
        hand_over, checkpoints = self._administration.hand_over, self._checkpoints
        parts = hand_over, self._position, checkpoints, log_clock
        self._watch = Watch(config, core, host, *parts, now=now())
        own = config, core, state, host, checkpoints
        self.backups = Backups(
            *own,
            deliver=pending.deliver,
            clock=clock,
            log_clock=log_clock,
            comparison=self._watch,
            waits_for=self._upgrades.waits_for,
            random_below=random_below,
            steer=(self._writes.hold, hand_over, self._send_state),
        )
        self._administration.why_not_now = self.backups.recovery.why_no_change
        handlers = self._writes, self._administration, self._snapshots, self.backups, self._upgrades
        self._routes = message_routes(*handlers, self._watch, now)
        self.report = StatusReport(
            core=core,
            state=state,
            writes=self._writes,
            checkpoints=self._checkpoints,
            watch=self._watch,
            upgrades=self._upgrades,
            backups=self.backups,
            client_addresses=self._client_addresses,
        )
        self._committed_before, self._turn_at = core.log.commit, now()
        self._next_expiry, self._ticks = float("inf"), 0

    def _position(self) -> tuple[int, int]:
        """The last index and sequence that the state has applied."""
        return self.state.applied.index, self.state.applied.last_sequence

    # ---------------------------------------------------------------- operations

    @property
    def write_bytes_held(self) -> int:
        """Bytes of the writes without an outcome, and of their groups; the host limits them."""
        return self._writes.bytes_held

    @property
    def read_bytes_held(self) -> int:
        """Bytes of all other operations without a result."""
        return self._pending.read_bytes

    def unanswered(self) -> list[Operation]:
        """Return the operations without a result; from any thread."""
        return self._pending.all()

    def submit(self, operations: Sequence[Operation], held: tuple[int, int] | None = None) -> None:
        """Accept callers' operations, in order; `held` is their `sizes`, if known."""
        self._pending.add(operations, held)
        self._next_expiry = min([self._next_expiry, *[o.deadline for o in operations]])
        refusal = self._watch.refusal()
        takes_writes = not refusal and not self.core.is_removed
        for kind, alike in groupby(operations, type):
            if kind is WriteOperation and takes_writes:
                self._writes.add(cast(Iterator[WriteOperation], alike))
            elif kind is CallOperation and takes_writes:
                self._upgrades.admit(cast(Iterator[CallOperation], alike))
            elif kind is ReadOperation and not self.core.is_removed:
                self._reads.submit(cast(Iterator[ReadOperation], alike))
            else:
                for operation in alike:
                    self._submit_other(operation, refusal)
        self._host.wake()

    def _submit_other(self, operation: Operation, refusal: str) -> None:
        match operation:
            case ReadOperation(is_linearizable=False):
                self._reads.submit((operation,))
            case DigestOperation():
                self._checkpoints.add(operation)
            case _ if self.core.is_removed:
                self.deliver(operation, Unavailable(REMOVED))
            case WriteOperation() | GroupOperation() if refusal:
                self.deliver(operation, StorageFull(refusal))
            case WriteOperation() | GroupOperation():
                self._upgrades.admit((operation,))
            case TransferOperation():
                self._administration.begin_transfer(operation)
            case MembershipOperation():
                self._administration.begin_change(operation)
            case BackupOperation():
                self.backups.submit(operation)
            case _:
                raise AssertionError(f"unknown operation {operation!r}")

    def deliver(self, operation: Operation, result: Any) -> None:
        """Deliver an operation's result; its caller is released at the end of the turn."""
        self._pending.deliver(operation, result)

    # ---------------------------------------------------------------- what comes in

    def on_message(self, message: PeerMessage) -> None:
        """A peer sent a message. WireError if its connection must be closed."""
        now = self._clock.monotonic()
        if not self._senders.admits(message, now):
            return
        self._watch.record_contact(message.sender, now)
        if type(message) is not Append:
            self._routes.get(type(message), self.core.step)(message)
        elif not self._is_behind:  # Else treated as lost: the leader repeats it.
            self.core.step(message)
        self._watch.on_stepped(message, now)
        if isinstance(message, (AppendReply, HeartbeatReply)):
            self._wake_if_due()  # Something follows one of the replies, and nothing the others.
        else:
            self._host.wake()

    def on_connected(self, peer: int, client_address: str, incarnation: int = 0) -> None:
        """A connection to a peer with this data directory was established."""
        self._client_addresses[peer] = client_address
        self._host.emit(ReplicaConnected(reporter=self.core.id, node_id=peer))
        self.core.connected(peer, incarnation)
        self._watch.on_connected(peer, self._clock.monotonic())
        self._snapshots.on_connected(peer)
        self._upgrades.on_connected(peer)
        if peer == self.core.leader:
            self._on_leader()
        self._host.wake()

    def on_disconnected(self, peer: int, reason: str) -> None:
        """The connection to a peer was lost, with every message in transit."""
        reporter = self.core.id
        self._host.emit(ReplicaDisconnected(reporter=reporter, node_id=peer, reason=reason))
        self.core.disconnected(peer)
        self._watch.on_disconnected(self._clock.monotonic())
        self._upgrades.on_disconnected(peer)
        self._host.wake()

    def on_removed(self) -> None:
        """Another member reports that this node was removed: reject its callers at once."""
        if self.core.is_removed:
            return
        self.core.removed()
        self._administration.on_removed()
        self._writes.abort(Unavailable(REMOVED), Disconnected(REMOVED))
        self._upgrades.abort(Unavailable(REMOVED))
        for part in (self._reads, self._administration, self.backups):
            for operation in part.pending():
                self.deliver(operation, Unavailable(REMOVED))
            part.forget_expired()
        self._host.wake()

    @property
    def membership(self) -> Membership:
        """The membership that this node's state has applied."""
        return self._administration.applied

    def on_tick(self) -> None:
        """A tick has passed: a fifth of a heartbeat interval."""
        self.core.tick()
        self._snapshots.on_tick()
        self._ticks += 1
        if self._ticks % EXPIRY_TICKS == 0:
            now = self._clock.monotonic()
            if now >= self._next_expiry:
                self._expire(now)
            self._writes.on_tick(now)
            self._reads.ask_again_if_overdue()
            self._checkpoints.on_tick(now)
            self._administration.on_tick()
            self._upgrades.on_tick(now)
            self._watch.on_tick(now)
            self.backups.on_tick(now)
        self._host.wake()

    def on_sealed(self) -> None:
        """The idle log is sealed."""
        self._watch.on_written(self._clock.monotonic())

    def on_storage_full(self, reason: str, place: str = "log") -> None:
        """A write at `place` found no space; the host retries it."""
        self._watch.on_full(place, reason)

    def on_storage_space(self, place: str = "log") -> None:
        """The write that found no space at `place` succeeded."""
        self._watch.on_space(place)

    def on_written(self, write: Write) -> None:
        """A write is durable."""
        self._statistics.log_write.observe(self._watch.on_written(self._clock.monotonic()))
        for message in write.messages:
            self._host.send(message)
        self.core.advance(write)
        self._wake_if_due()

    def on_log_read(
        self, request: LogRead, previous: LogPosition, entries: Sequence[Entry]
    ) -> None:
        """The host has read entries for a lagging follower from disk."""
        self.core.log_read(request, previous, entries)
        self._host.wake()

    def on_log_compacted(self, request: LogRead, first_index: int) -> None:
        """The log no longer holds the entries that a lagging follower needs."""
        self.core.log_read_failed(request, first_index)
        self._host.wake()

    def on_healed(self, generation: int) -> None:
        """The end of this node's healing from the loss of its log is durable."""
        self.core.healed(generation)
        self._host.wake()

    # ---------------------------------------------------------------- the turn

    def _wake_if_due(self) -> None:
        """Ask for a turn, unless it would find nothing to do."""
        if self.core.has_ready or self._writes.has_work or self._reads.has_work:
            self._host.wake()

    def turn(self) -> None:
        """Act on everything that arrived since the last turn."""
        if self.failure:
            return
        if self.state.versions is None:
            self._upgrades.propose_if_due()  # Before the first batch of the cluster.
        elif not self._is_behind:
            self._writes.form_batch()
        self._turn_at = self._clock.monotonic()
        self._reads.ask()
        ready = self.core.ready()
        if self._watch.on_events(ready.events, self._turn_at):
            self._on_leader()
        self._watch.on_log(self._turn_at)
        self._hand_out(ready)
        if ready.committed:
            self._apply_each(ready.committed)
        if ready.restore is not None:
            self.backups.recovery.on_restore(ready.restore)
        if self._reads.has_any:
            if self._reads.answer(ready.read_states):
                self._host.wake()
            self._reads.run_confirmed(self.state.applied.index)
            if self._reads.has_unready:
                self.state.prepare()
        self._writes.release_acknowledged()
        self._host.flush()

    def _hand_out(self, ready: Ready) -> None:
        """Pass the core's requests to the host and the snapshots."""
        for message in ready.messages:
            self._host.send(message)
        if ready.write is not None:
            self._watch.on_writing(self._turn_at)
            if ready.write.entries and self.core.is_leader:
                self._writes.on_proposed(ready.write.entries[-1].index, self._turn_at)
            self._host.write(ready.write)
        for request in ready.log_reads:
            self._host.read_log(request)
        for wanted in ready.snapshot_requests:
            self._snapshots.begin(wanted, self._checkpoints.snapshot_index)
        for offer in ready.snapshot_offers:
            self._snapshots.on_offer(offer)
        if ready.healed is not None:
            self._host.end_healing(ready.healed)
        if ready.lost_index:
            self._host.heal_log(ready.lost_index)

    def _apply_each(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            self._apply(entry)
        for took_s in self._writes.commit_times(self.state.applied.index, self._clock.monotonic()):
            self._statistics.commit.observe(took_s)
            self._snapshots.on_commit_time(took_s)

    def _apply(self, entry: Entry) -> None:
        self._writes.on_applied(entry, self.state.apply(entry), self._turn_at)
        self._checkpoints.on_applied(entry, self._turn_at)
        if entry.kind in (EntryKind.ADMIN, EntryKind.RESTORE):
            self._on_admin(entry)
        elif self.state.versions is None:
            self._host.wake()  # The leader's first entry lets it record the versions.
        if entry.kind == EntryKind.MEMBERSHIP:
            membership = Membership.decode(bytes(entry.payload))
            if self.membership.lineage not in ("", membership.lineage):
                self._checkpoints.on_lineage(entry.index)
            if entry.index > self._committed_before:
                self._watch.on_membership(self.membership, membership)
            self._administration.on_membership(membership)
            self._host.set_members(membership)

    def _on_admin(self, entry: Entry) -> None:
        is_new = entry.index > self._committed_before
        if self.state.catalog.verdict.index == entry.index:
            self.backups.on_applied(entry.index, is_new=is_new)
        else:
            self._upgrades.on_applied(is_new=is_new)

    def _send_state(self, peer: int) -> None:
        self._snapshots.send_state(peer, self.core.term, self._checkpoints.snapshot_index)

    def _on_leader(self) -> None:
        """A leader is known: send it everything that may have been lost in transit."""
        self._watch.on_leader(self._clock.monotonic())
        self._administration.on_leader()
        self.backups.on_leader()
        self._writes.on_leader()
        self._reads.ask_again()
        self._host.wake()

    # ---------------------------------------------------------------- checkpoints

    @property
    def _is_behind(self) -> bool:
        """True if this node accepts no more log until the checkpoint under way is done.

        On a full disk the checkpoint may never complete, and a new leader may need this node's log
        to commit its first entry. So a full node goes on. The room that is left in the log, its
        spare segments at most, then limits memory.
        """
        is_behind = self._checkpoints.is_behind and self._watch.has_space
        return is_behind or self.core.log.is_stuffed

    def on_checkpoint(self, position: LogPosition, keys: int, first_index: int) -> None:
        """The buffer frozen at `position` is durable."""
        event = self._checkpoints.done(position, keys, first_index, self._clock.monotonic())
        self._statistics.checkpoint.observe(event.duration_ms / 1000)
        self._host.emit(event)
        self._host.wake()

    def on_digest(self, index: int, digest: StateDigest | None) -> None:
        """The store as of entry `index` is hashed; None if that had to be given up."""
        self._checkpoints.digested(digest)
        self._watch.on_digest(index, digest)
        self._host.wake()

    # ---------------------------------------------------------------- deadlines, status, the end

    def _expire(self, now: float) -> None:
        parts = self._writes, self._administration, self.backups
        deadlines = [part.expire(now) for part in parts]
        late = "no leader confirmed the read before its deadline"
        deadlines.append(expire(self._reads, now, late, self.deliver))
        late = "the digest was not ready before its deadline"
        deadlines.append(expire(self._checkpoints, now, late, self.deliver))
        self._next_expiry = min(deadlines)

    def fail(self, reason: str, unsent: Exception, sent: Exception) -> None:
        """End this node for good (N5); `reason` is "" for a regular stop."""
        if self.failure:
            return
        self.failure = reason or STOPPED
        self.core.leases.withdraw()
        if reason:
            self._host.emit(StorageFailure(reporter=self.core.id, reason=reason))
        self._writes.abort(unsent, sent)
        self._upgrades.abort(unsent)
        for part in (self._reads, self._checkpoints, self._administration, self.backups):
            for operation in part.pending():
                self.deliver(operation, unsent)
        # An operation that was being processed when an error ended the turn is in none of these.
        for operation in self._pending.all():
            self.deliver(operation, sent)
        self._host.flush()

    def take_unharmed(self) -> Sequence[Operation]:
        """Give up reads and requests for recoveries, which the node's next life answers."""
        taken = [*self._reads.take(), *self.backups.take_recoveries()]
        self._pending.forget(taken)
        return taken

    def replace(self) -> Sequence[Operation]:
        """End this node, which never had a cluster; its operations are for the one after it."""
        self.failure = STOPPED
        return self._pending.all()

    def status(self) -> HaStatus:
        """Return this node's current status."""
        return self.report.make(self.failure, self._clock.monotonic())
