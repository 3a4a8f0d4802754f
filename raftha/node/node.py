"""One member of the cluster: the one place where core, state, callers and time meet.

Theory of operation. A `Node` is driven by its host: messages, ticks, operations and finished disk
work come in as calls, each of which asks the host for a turn (`Host.wake`); in `turn` the node
takes everything that came since the last one and acts on it at once. It never waits and never
touches a disk, a socket or a clock by itself, so the same node runs on an event loop with real
threads (`runtime.py`) and in the simulator, under a clock and a disk that a seed decides.

A turn: groups that wait become one batch if no write is under way -> the core says what to write,
send, apply and read -> all of it goes out -> futures are completed, all together.

Rules:
  N1  All calls come from one thread, the node's; but what `leased` reads, it reads from any.
  N2  What is applied is committed and on this node's disk (core, R5).
  N3  A checkpoint freezes the write buffer between two entries; the host writes it out, meanwhile
      the next buffer fills. At most one is under way.
  N4  The log gives up what is in the checkpoint before last, and on the disk of every member unless
      that would keep too much of it.
  N5  The first storage error or broken invariant ends the node for good: it answers nothing more
      and tells every caller. The process it lives in goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, cast

from raftha.clock import Clock
from raftha.config import HaConfig
from raftha.core import Append, LogRead, Raft, Write
from raftha.entry import Entry, EntryKind, LogPosition, decode_groups
from raftha.errors import (
    Disconnected,
    InvalidRequest,
    StorageError,
    StorageFull,
    Unavailable,
)
from raftha.events import (
    CheckpointCompleted,
    HaEvent,
    LeaderElected,
    ReplicaConnected,
    ReplicaDisconnected,
    StorageFailure,
    StorageHasSpace,
    StorageIsFull,
)
from raftha.membership import Membership
from raftha.node.acknowledgements import Acknowledgements, check_wanted
from raftha.node.administration import Administration
from raftha.node.bootstrap import applied_membership
from raftha.node.checkpoints import Checkpoints
from raftha.node.host import Host
from raftha.node.lease_reads import LeasedReads
from raftha.node.messages import (
    Forward,
    ForwardReply,
    HealthReply,
    HealthRequest,
    MembershipReply,
    MembershipRequest,
    PeerMessage,
    ReplicaReport,
    SnapshotChunk,
    SnapshotReply,
    SpaceReport,
    TransferReply,
    TransferRequest,
)
from raftha.node.operations import (
    DigestOperation,
    GroupOperation,
    MembershipOperation,
    Operation,
    ReadOperation,
    TransferOperation,
    WriteOperation,
)
from raftha.node.pending import Undelivered
from raftha.node.proposals import BATCH_BYTES_MAX, Inbox, Waiting
from raftha.node.reads import Readings
from raftha.node.snapshot_rate import Pace
from raftha.node.snapshots import SnapshotReceiver, SnapshotSender
from raftha.node.submissions import FORWARDED_MAX, GROUP_BYTES_MAX, InFlight, Submissions, is_proper
from raftha.node.watch.disk_space import Space
from raftha.node.watch.failover import FailoverWatch
from raftha.node.watch.health import HealthMonitor
from raftha.node.watch.lag import Lags
from raftha.node.watch.placement import Preference
from raftha.storage.state.sessions import Outcome
from raftha.storage.state.state import NotYet, State
from raftha.types import Acknowledgement, HaStatus, Receipt, ReplicationState

EXPIRY_TICKS = 5
STOPPED = "stopped"
REMOVED = "this node was removed from the cluster"


class Node:
    """A member. See the module's docstring for who may call it and when."""

    def __init__(
        self,
        config: HaConfig,
        cluster_id: str,
        core: Raft,
        state: State,
        host: Host,
        clock: Clock,
        random_below: Callable[[int], int],
    ) -> None:
        self.config = config
        self.cluster_id = cluster_id
        self.core = core
        self.state = state
        self.failure = ""
        self.client_addresses = {config.node_id: config.client_address}
        self.leased = LeasedReads(core, state, clock.boottime_ns, host.statistics.leased)
        self._host = host
        self._clock = clock
        self._random_below = random_below
        self._statistics = host.statistics
        self._proposed: deque[tuple[int, float]] = deque()
        self._undelivered = Undelivered(host.deliver, host.deliver_each, self._statistics.errors)
        self._submissions = Submissions(self)
        self._acknowledgements = Acknowledgements(
            core, self.deliver, config.replication.ack_timeout_ms / 1000
        )
        self._inbox = Inbox(core)
        self._readings = Readings(
            core, self._run_reads, random_below(1 << 32), config.election_timeout_ms / 1000
        )
        self._administration = Administration(
            core, applied_membership(state, config), host.send, self.deliver, clock.monotonic
        )
        self._pace = Pace(clock.monotonic(), config.snapshot_bytes_per_s)
        self._sender = SnapshotSender(
            core,
            host.snapshots,
            host.send,
            host.emit,
            random_below,
            clock.monotonic,
            self._pace,
        )
        self._receiver = SnapshotReceiver(core, host.snapshots, host.send, host.emit)
        self._checkpoints = Checkpoints(
            config,
            state,
            core.log,
            host,
            self.deliver,
            clock.monotonic(),
            self._sender.kept_index,
        )
        self.health = HealthMonitor(
            config,
            core,
            host,
            self._administration.hand_over,
            lambda: state.applied.index,
            clock.monotonic(),
        )
        self._space = Space(
            core,
            host.send,
            self._administration.hand_over,
            config.election_timeout_ms / 1000,
        )
        self._failover = FailoverWatch(core, clock.monotonic())
        self._preference = Preference(core, config.regions, self._administration.hand_over)
        self.lags = Lags(
            config,
            core,
            host,
            self.health.heard_times,
            lambda: (state.applied.index, state.applied.last_sequence),
            clock.monotonic(),
        )
        self._committed_before = core.log.commit
        self._turn_at = clock.monotonic()
        self._next_expiry = float("inf")
        self._ticks = 0

    # ---------------------------------------------------------------- operations

    @property
    def write_bytes_held(self) -> int:
        """Writes that have no outcome yet, and their groups; who submits keeps the bound on it."""
        return self._undelivered.write_bytes + self._submissions.in_flight_bytes

    @property
    def asked_bytes_held(self) -> int:
        """All else that callers wait for."""
        return self._undelivered.asked_bytes

    def unanswered(self) -> list[Operation]:
        """The operations that have no result yet; from any thread."""
        return self._undelivered.all()

    def submit(self, operations: Sequence[Operation]) -> None:
        """Take in callers' operations, in order."""
        self._undelivered.add(operations)
        self._next_expiry = min([self._next_expiry, *(o.deadline for o in operations)])
        refusal = self._space.refusal()
        takes_writes = not refusal and not self.core.is_removed
        for kind, alike in groupby(operations, type):
            if kind is WriteOperation and takes_writes:
                self._submissions.add(*cast(Iterator[WriteOperation], alike))
            elif kind is ReadOperation and not self.core.is_removed:
                self._submit_reads(list(cast(Iterator[ReadOperation], alike)))
            else:
                for operation in alike:
                    self._submit_other(operation, refusal)
        self._host.wake()

    def _submit_other(self, operation: Operation, refusal: str) -> None:
        match operation:
            case ReadOperation(is_linearizable=False):
                self._statistics.reads["stale"] += operation.read is not Node.status
                self._run_reads((operation,))
            case DigestOperation():
                self._checkpoints.add(operation)
            case _ if self.core.is_removed:
                self.deliver(operation, Unavailable(REMOVED))
            case WriteOperation() | GroupOperation() if refusal:
                self.deliver(operation, StorageFull(refusal))
            case WriteOperation() | GroupOperation() if operation.acks:
                self._submit_wanting(operation)
            case WriteOperation():
                self._submissions.add(operation)
            case GroupOperation():
                self._submissions.add_group(operation)
            case TransferOperation():
                self._administration.begin_transfer(operation)
            case MembershipOperation():
                self._administration.begin_change(operation)
            case _:
                raise AssertionError(f"unknown operation {operation!r}")

    def _submit_reads(self, operations: list[ReadOperation]) -> None:
        reads, now = self._statistics.reads, self._clock.monotonic()
        at_once: list[ReadOperation] = []
        asking: list[ReadOperation] = []
        for operation in operations:
            if not operation.is_linearizable:
                at_once.append(operation)
                reads["stale"] += operation.read is not Node.status
            elif operation.max_age_s:
                is_fresh = self._readings.is_fresh(operation.max_age_s, now)
                (at_once if is_fresh else asking).append(operation)
                reads["bounded"] += 1
            else:
                asking.append(operation)
                reads["linearizable"] += 1
        self._readings.add(*asking)
        self._run_reads(at_once)

    def _submit_wanting(self, operation: WriteOperation | GroupOperation) -> None:
        """A write whose caller wants more than a majority to have it."""
        try:
            check_wanted(operation.acks, self.core.membership)
        except InvalidRequest as error:
            self.deliver(operation, error)
            return
        if isinstance(operation, GroupOperation):
            self._submissions.add_group(operation)
        else:
            self._submissions.add(operation)

    def deliver(self, operation: Operation, result: Any) -> None:
        """Give an operation its result; the caller is released at the end of the turn."""
        self._undelivered.deliver(operation, result)

    def deliver_each(self, operations: Sequence[Operation], results: Sequence[Any]) -> None:
        """As `deliver`, a result for each that still waits."""
        self._undelivered.deliver_each(operations, results)

    # ---------------------------------------------------------------- what comes in

    def on_message(self, message: PeerMessage) -> None:
        """A peer said something."""
        now = self._clock.monotonic()
        self.health.heard(message.sender, now)
        match message:
            case Forward():
                self._on_forward(message)
            case ForwardReply():
                self._submissions.on_refused(
                    message.session, message.number, is_full=message.is_full
                )
            case TransferRequest() | TransferReply() | MembershipRequest() | MembershipReply():
                self._administration.on_message(message)
            case SnapshotChunk():
                self._receiver.on_chunk(message)
            case SnapshotReply():
                self._sender.on_reply(message)
            case HealthRequest() | HealthReply():
                self.health.on_message(message)
            case SpaceReport():
                self._space.on_message(message, self._clock.monotonic())
            case ReplicaReport():
                self.lags.on_report(message, self._clock.monotonic())
            case Append() if self._is_behind:
                pass  # As if it were lost: the leader asks again until there is an answer.
            case _:
                self.core.step(message)
        self._failover.look(now, message)
        self._host.wake()

    def on_connected(self, peer: int, client_address: str) -> None:
        """A peer is there (again)."""
        self.client_addresses[peer] = client_address
        self.health.heard(peer, self._clock.monotonic())
        self._host.emit(ReplicaConnected(reporter=self.core.id, node_id=peer))
        self.core.connected(peer)
        now = self._clock.monotonic()
        self.health.heard(peer, now)
        self.lags.on_connection(now)
        self._sender.on_connected(peer)
        if peer == self.core.leader:
            self._on_leader()
        self._host.wake()

    def on_disconnected(self, peer: int, reason: str) -> None:
        """The connection to a peer is gone, and what was on its way with it."""
        event = ReplicaDisconnected(reporter=self.core.id, node_id=peer, reason=reason)
        self._host.emit(event)
        self.core.disconnected(peer)
        self.lags.on_connection(self._clock.monotonic())
        self._host.wake()

    def on_removed(self) -> None:
        """Another member says that this node was removed: nobody is to wait for it any more."""
        if self.core.is_removed:
            return
        self.core.removed()
        self._administration.on_removed()
        self._submissions.abort(Unavailable(REMOVED), Disconnected(REMOVED))
        self._acknowledgements.abort()
        for operation in (*self._readings.pending(), *self._administration.pending()):
            self.deliver(operation, Unavailable(REMOVED))
        self._readings.forget_expired()
        self._administration.forget_expired()
        self._host.wake()

    @property
    def membership(self) -> Membership:
        """The membership that this node's state has applied."""
        return self._administration.applied

    def on_tick(self) -> None:
        """A tick has passed: a fifth of a heartbeat interval."""
        self.core.tick()
        self._sender.on_tick()
        self._ticks += 1
        if self._ticks % EXPIRY_TICKS == 0:
            now = self._clock.monotonic()
            if now >= self._next_expiry:
                self._expire(now)
            if not self.core.is_leader:
                # What a leader has routed to itself is in its log, or in its inbox.
                self._submissions.send_overdue()
            self._acknowledgements.expire(now)
            self._readings.ask_again_if_overdue(now)
            self._checkpoints.on_tick(now)
            self._administration.on_tick()
            self.health.on_tick(now)
            self._preference.on_tick(now, self.health.may_lead)
            self._space.on_tick(now, self.health.may_lead)
            self.lags.on_tick(now)
        self._host.wake()

    def on_sealed(self) -> None:
        """The log, which had nothing else to write, is sealed."""
        self.health.write_ended(self._clock.monotonic())

    def on_storage_full(self, reason: str, place: str = "log") -> None:
        """There is no space for what is written at `place`; the host goes on trying."""
        if self._space.has_own:
            self._host.emit(StorageIsFull(reporter=self.core.id, reason=reason))
        self._space.on_full(place, reason)

    def on_storage_space(self, place: str = "log") -> None:
        """What had no space has been written."""
        was_full = not self._space.has_own
        self._space.on_space(place)
        if was_full and self._space.has_own:
            self._host.emit(StorageHasSpace(reporter=self.core.id))

    def on_written(self, write: Write) -> None:
        """A write is durable."""
        self._statistics.log_write.observe(self.health.write_ended(self._clock.monotonic()))
        for message in write.messages:
            self._host.send(message)
        self.core.advance(write)
        self._host.wake()

    def on_log_read(
        self, request: LogRead, previous: LogPosition, entries: Sequence[Entry]
    ) -> None:
        """Entries for a follower that lags came from the disk."""
        self.core.log_read(request, previous, entries)
        self._host.wake()

    def on_log_compacted(self, request: LogRead, first_index: int) -> None:
        """Entries for a follower that lags are not on the disk any more."""
        self.core.log_read_failed(request, first_index)
        self._host.wake()

    def on_healed(self, epoch: int) -> None:
        """It is durable that this node, which had lost its log, has healed."""
        self.core.healed(epoch)
        self._host.wake()

    # ---------------------------------------------------------------- the turn

    def turn(self) -> None:
        """Act on everything that came in since the last turn."""
        if self.failure:
            return
        self._form_batch()
        self._turn_at = self.now()
        self._readings.ask(self._turn_at)
        ready = self.core.ready()
        self._emit_events(ready.events)
        self.lags.note(self._turn_at)
        for message in ready.messages:
            self._host.send(message)
        if ready.write is not None:
            self.health.write_begun(self._turn_at)
            if ready.write.entries and self.core.is_leader:
                self._proposed.append((ready.write.entries[-1].index, self._turn_at))
            self._host.write(ready.write)
        for request in ready.log_reads:
            self._host.read_log(request)
        for wanted in ready.snapshot_requests:
            self._sender.begin(wanted, self._checkpoints.last.index)
        for offer in ready.snapshot_offers:
            self._receiver.on_offer(offer)
        if ready.healed is not None:
            self._host.end_healing(ready.healed)
        for entry in ready.committed:
            self._apply(entry)
        while self._proposed and self._proposed[0][0] <= self.state.applied.index:
            _, proposed_at = self._proposed.popleft()
            if self.core.is_leader:
                took_s = self._clock.monotonic() - proposed_at
                self._statistics.commit.observe(took_s)
                self._pace.answered(took_s)
        if self._readings.answer(ready.read_states):
            self._host.wake()
        self._readings.run_confirmed(self.state.applied.index)
        if self._readings.has_unready:
            self.state.prepare()
        self._acknowledgements.check()
        self._host.flush()

    def _emit_events(self, events: Sequence[HaEvent]) -> None:
        self._failover.look(self._turn_at)
        started = self._failover.take_started()
        completed = self._failover.take_completed(self._turn_at)
        for event in (started, *events, completed):
            if event is not None:
                self._host.emit(event)
        self.lags.on_events(events, self._turn_at)
        if any(isinstance(event, LeaderElected) for event in events):
            self._on_leader()

    def _apply(self, entry: Entry) -> None:
        applied = self.state.apply(entry)
        for group in applied:
            self._inbox.on_group_applied((group.session, group.number))
            self._submissions.on_applied(group)
        self._inbox.on_applied(entry.index)
        self._checkpoints.on_applied(entry, self._turn_at)
        if entry.kind == EntryKind.MEMBERSHIP:
            membership = Membership.decode(bytes(entry.payload))
            if entry.index > self._committed_before:
                self.lags.on_membership(self.membership, membership)
            self._administration.on_membership(membership)
            self._host.set_members(membership)

    # ---------------------------------------------------------------- writes

    def route(self, group: InFlight) -> bool:
        """Send a group towards the leader; False if there is none to send it to."""
        if self.core.is_leader:
            key = group.session, group.number
            self._inbox.put(key, Waiting(self.core.id, group.count, group.encoded))
            self._host.wake()
            return True
        leader = self.core.leader
        if leader is None or not self._host.is_connected(leader):
            return False
        self._host.send(Forward(leader, self.core.id, group.encoded))
        return True

    def acknowledged(self, index: int) -> Acknowledgement:
        return self._acknowledgements.of(index)

    def await_acknowledgements(
        self, operation: WriteOperation | GroupOperation, result: Receipt | Outcome
    ) -> None:
        self._acknowledgements.add(operation, result, self._turn_at)

    def now(self) -> float:
        return self._clock.monotonic()

    def random_below(self, limit: int) -> int:
        return self._random_below(limit)

    def _on_forward(self, message: Forward) -> None:
        try:
            (group,) = decode_groups(memoryview(message.group))
        except ValueError:
            group = None
        if group is None or not is_proper(group):
            return  # No correct node sends it, and in the log every node would trip over it.
        if not self.core.is_leader:
            return  # The sender will hear of the leader there is, and send it there.
        key = group.session, group.number
        is_full = self._space.is_majority_full and not self._inbox.knows(key)
        if is_full or not self._inbox.has_room(key, len(message.group)):
            self._host.send(
                ForwardReply(
                    message.sender, self.core.id, group.session, group.number, is_full=is_full
                )
            )
            return
        self._inbox.put(key, Waiting(message.sender, group.count, message.group))

    def _on_leader(self) -> None:
        """A leader is known: everything that may have been lost on its way goes there again."""
        self.health.on_leader(self._clock.monotonic())
        self.lags.on_leader(self._clock.monotonic())
        self._inbox.clear()
        self._administration.on_leader()
        self._submissions.send_again()
        self._readings.ask_again()
        self._host.wake()

    def _form_batch(self) -> None:
        """On the leader, one batch at most per write; elsewhere, groups for the leader."""
        if self._is_behind:
            return
        if not self.core.is_leader:
            leader = self.core.leader
            if leader is not None and self._host.is_connected(leader):
                self._submissions.form_groups(BATCH_BYTES_MAX, FORWARDED_MAX)
            return
        if self._inbox.can_propose:
            # Some room for this node's own callers, however much the others forward.
            room = max(BATCH_BYTES_MAX - self._inbox.waiting_bytes, GROUP_BYTES_MAX)
            self._submissions.form_groups(room, 1 << 30)
            self._inbox.propose(self._clock.time_us())

    # ---------------------------------------------------------------- reads

    def _run_reads(self, operations: Sequence[ReadOperation]) -> None:
        done: list[ReadOperation] = []
        results: list[Any] = []
        try:
            for operation in operations:
                if operation.waiter is None:
                    continue
                try:
                    result = operation.read(self)
                except NotYet:
                    self._readings.add_unready(operation)
                    self._host.wake()
                    continue
                except StorageError as error:
                    self.deliver(operation, error)
                    raise
                except Exception as error:  # noqa: BLE001 - changes nothing; its caller hears of it
                    result = error
                done.append(operation)
                results.append(result)
        finally:
            self.deliver_each(done, results)

    # ---------------------------------------------------------------- checkpoints

    @property
    def _is_behind(self) -> bool:
        """Whether this node takes in no more until the checkpoint under way is done.

        On a full disk that may be never, and a new leader may need this node's log to begin. What
        the log still has room for, which isn't more than its spare segments, bounds memory then.
        """
        return self._checkpoints.is_behind and self._space.has_own

    def on_checkpoint(
        self, position: LogPosition, keys: int, digest: str, first_index: int
    ) -> None:
        """What was frozen at `position` is durable; `digest` is "" unless one was asked for."""
        self._checkpoints.done(position, keys, digest, first_index)
        duration_s = self.now() - self._checkpoints.began_at
        self._statistics.checkpoint.observe(duration_s)
        self._host.emit(
            CheckpointCompleted(
                reporter=self.core.id,
                index=position.index,
                sequence=position.last_sequence,
                keys=keys,
                duration_ms=1000 * duration_s,
            )
        )
        self._host.wake()

    # ---------------------------------------------------------------- deadlines, status, the end

    def _expire(self, now: float) -> None:
        earliest = min(self._submissions.expire(now), self._administration.expire(now))
        for operations, error in (
            (self._readings.pending(), "no leader confirmed the read before its deadline"),
            (self._checkpoints.pending(), "the digest was not ready before its deadline"),
        ):
            for operation in operations:
                if operation.deadline > now:
                    earliest = min(earliest, operation.deadline)
                else:
                    self.deliver(operation, Unavailable(error))
        self._readings.forget_expired()
        self._checkpoints.forget_expired()
        self._next_expiry = earliest

    def fail(self, reason: str, unsent: Exception, sent: Exception) -> None:
        """End this node for good (N5); `reason` is "" if it was asked to stop."""
        if self.failure:
            return
        self.failure = reason or STOPPED
        self.core.leases.withdraw()
        if reason:
            self._host.emit(StorageFailure(reporter=self.core.id, reason=reason))
        self._submissions.abort(unsent, sent)
        self._acknowledgements.abort()
        for operation in (
            *self._readings.pending(),
            *self._checkpoints.pending(),
            *self._administration.pending(),
        ):
            self.deliver(operation, unsent)
        # What was just being worked on when an error ended the turn is in none of these.
        for operation in self._undelivered.all():
            self.deliver(operation, sent)
        self._host.flush()

    def status(self) -> HaStatus:
        """This node's state now."""
        core, log, now = self.core, self.core.log, self._clock.monotonic()
        rpo_commands, rpo_bytes = self._submissions.unfinished()
        return HaStatus(
            is_running=not self.failure,
            is_primary=core.is_leader and not self.failure,
            has_lease=core.leases.holds(),
            node_id=core.id,
            cluster_id=self.cluster_id,
            role=self._role(),
            term=core.term,
            leader_id=core.leader,
            first_index=log.first_index,
            last_index=log.last_index,
            persisted_index=log.persisted,
            commit_index=log.commit,
            applied_index=self.state.applied.index,
            checkpoint_index=self._checkpoints.last.index,
            sequence=self.state.applied.last_sequence,
            is_healing=core.is_healing,
            failure="" if self.failure == STOPPED else self.failure,
            replicas=self.lags.statuses(now, self.client_addresses, self.health.health),
            removed=tuple(sorted(core.membership.removed)),
            replication_state=(ReplicationState.FAILED if self.failure else self.lags.state(now)),
            replication_lag_ms=self.lags.max_lag_ms(now),
            rpo_commands=rpo_commands,
            rpo_bytes=rpo_bytes,
        )

    def _role(self) -> str:
        if not self.failure:
            return "removed" if self.core.is_removed else self.core.role.value
        return STOPPED if self.failure == STOPPED else "failed"
