"""Raft as a pure state machine: inputs in, `Ready` out. No I/O, and no decision from a wall clock.

Theory of operation
===================

The caller (`node.py`, or the simulator) drives one `Raft`:

    raft.step(message)      a message arrived            raft.tick()        a tick has passed
    raft.propose(...)       append an entry              raft.read_index()  ask for a read index
    raft.connected(peer)    raft.disconnected(peer)      the transport's connections

After any of these it takes the resulting work:

    ready = raft.ready()
    1. send ready.messages, apply ready.committed, answer ready.read_states, fetch ready.log_reads,
       make and take the snapshots of ready.snapshot_requests and ready.snapshot_offers
    2. make ready.write durable, as one write and one sync; only then
    3. send ready.write.messages and call raft.advance(ready.write)

Steps 1 and 2 run at the same time, and turns continue while a write is under way. There is at most
one write at a time. Everything that arrives meanwhile goes into the next one: group commit.

Rules that keep it safe
-----------------------

R1  Term and vote are durable before any message of that term leaves, and a candidate counts its own
    vote only then.
R2  An `AppendReply(ok, index)` leaves only when everything up to `index` is durable. (`outbox.py`
    enforces R1 and R2 for messages.)
R3  A leader counts itself for an entry only when it is durable here (`log.persisted`). Its appends
    leave at once, in parallel with its own write (thesis 10.2.1).
R4  Only entries of the leader's own term are committed by counting (paper 5.4.2). They commit all
    older entries with them.
R5  A node applies only entries that are committed and durable here: state never leads the log.
R6  Entries are cut off only where a term really differs, and never at or below commit.
R7  A leader steps down after an election timeout without replies from a quorum (check-quorum). A
    node that has received from a leader within one grants no votes (lease), except for a transfer.
R8  Reads need a round of replies from a quorum, begun after the read arrived, or a lease that holds
    then (`lease.py`, L1 to L5), and a commit index from the leader's own term.

Election: `election.py` owns term, vote and role. The first entry of a leader is a no-op. The
follower's side of replication is in `follower.py`, the leader's in `leader.py`.

Membership is in the log (`membership.py`). All quorums are those of the latest membership in this
node's own log. A node that isn't a voter there never campaigns. It still votes, and accepts entries
from any sender: the sender may know a later membership.

Snapshots: if a follower needs entries that the log no longer has, the leader asks its caller to
send a snapshot of the state (`SnapshotRequest`). Until the caller reports the outcome, the leader
sends that follower no entries. A follower treats an offer like an append: it may be the first
message of a new leader. The receiver checks the need for a snapshot (`holds`) when it is offered
and again before it is installed. A log that has the snapshot's last entry agrees with the leader's
up to there, and may have acknowledged entries beyond it, which a snapshot would discard. A log that
lacks that entry has nothing behind it that could be committed.

Healing: a node that has lost its log takes entries like any follower. Until it holds everything
that it may have acknowledged, it gives no vote, never campaigns, and counts for no quorum
(`healing_generation.py`). A running node learns from a heartbeat that its log has lost entries that
it acknowledged (`follower.py`).

Sources: Ongaro & Ousterhout, «In Search of an Understandable Consensus Algorithm»; Ongaro's thesis.
The division of labour is that of etcd's raft library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import assert_never

from raftha.core.clocks import ClockReadings
from raftha.core.election import Election
from raftha.core.follower import Follower
from raftha.core.healing_generation import HealingGeneration
from raftha.core.incarnations import Incarnations
from raftha.core.leader import Leadership
from raftha.core.lease import Leases
from raftha.core.log import RaftLog, membership_changed
from raftha.core.messages import (
    Append,
    AppendReply,
    DurableIndexesReply,
    DurableIndexesRequest,
    Healed,
    Heartbeat,
    HeartbeatReply,
    Message,
    ReadReply,
    ReadRequest,
    SnapshotOffer,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from raftha.core.outbox import Outbox
from raftha.core.progress import Progress
from raftha.core.ready import (
    CoreConfig,
    LogRead,
    ReadState,
    Ready,
    Requests,
    SnapshotRequest,
    Write,
)
from raftha.core.role import Role
from raftha.entry import Entry, EntryKind, HardState, LogPosition
from raftha.errors import NotLeader
from raftha.events import HaEvent, HealingEnded, Removed, SecondLeader
from raftha.membership import Membership


class Raft:
    """One node's part in the protocol. Not thread-safe; one owner drives it."""

    def __init__(
        self,
        config: CoreConfig,
        hard_state: HardState,
        log: RaftLog,
        random_below: Callable[[int], int],
        healing_generation: int = 0,
        clock_ns: Callable[[], int] = lambda: 0,
        time_us: Callable[[], int] = lambda: 0,
    ) -> None:
        """Start as a follower with what is on disk; `random_below(n)` returns 0 to n-1.

        `clock_ns` is for leases (`lease.py`), `time_us` for replies (`clocks.py`).
        """
        assert hard_state.term >= log.last_term, "an entry of a term implies that term"
        self.id = config.node_id
        self.config = config
        self.log = log
        self._healing_generation = HealingGeneration(healing_generation)
        log.commit_to(max(log.commit, min(hard_state.commit, log.last_index)))
        self.clocks = ClockReadings(clock_ns, time_us)
        self.leases = Leases(config.lease_ms, config.clock_drift_max, clock_ns)
        self._events: list[HaEvent] = []
        self._outbox = Outbox(log, hard_state, config.write_bytes_max)
        self._election = Election(
            config,
            hard_state,
            log,
            self._outbox,
            self._healing_generation,
            self._events,
            random_below=random_below,
            clocks=self.clocks,
        )
        self._follower = Follower(log, self._election, self._healing_generation)
        self._send = self._election.send
        self._second_leader_reported_in = 0
        """The last term for which a second leader was reported."""
        self._membership = log.membership
        self._leadership: Leadership | None = None
        self._elapsed_ticks = self._heartbeat_elapsed_ticks = 0
        self._has_postponed = False
        self._read_states: list[ReadState] = []
        self._requests = Requests()
        self._snapshot_offers: list[SnapshotOffer] = []
        self._incarnations = Incarnations(log)
        self._outputs = self._events, self._read_states, self._snapshot_offers, *self._requests.all

    # ---------------------------------------------------------------- state

    @property
    def term(self) -> int:
        return self._election.term

    @property
    def vote(self) -> int:
        """The candidate this node voted for in this term, 0 for none."""
        return self._election.vote

    @property
    def role(self) -> Role:
        return self._election.role

    @property
    def leader(self) -> int | None:
        """The leader of this term, None if this node knows none."""
        return self._election.leader

    @property
    def is_leader(self) -> bool:
        return self._election.role is Role.LEADER

    @property
    def is_removed(self) -> bool:
        """Whether this node knows that it is no longer a member."""
        return self._election.is_removed

    @property
    def progress(self) -> Mapping[int, Progress]:
        """The followers, as this leader knows them; empty on any other node."""
        return self._leadership.progress if self._leadership else {}

    @property
    def can_propose(self) -> bool:
        return self._leadership is not None and self._leadership.transfer_target is None

    @property
    def membership(self) -> Membership:
        """The membership in force here: the latest in the log."""
        return self.log.membership

    @property
    def is_voter(self) -> bool:
        """Whether this node is fit to campaign, as far as it knows."""
        return self._election.is_voter

    @property
    def has_lost_log(self) -> bool:
        """Whether this node has ever healed from a loss, or heals now."""
        return self._healing_generation.current > 0

    @property
    def is_healing(self) -> bool:
        """Whether this node has lost its log and may lack entries that it has acknowledged."""
        return self._healing_generation.is_healing

    @property
    def mismatch(self) -> str:
        """Why the leader's last entries can't follow this node's log; "" if they can."""
        return self._follower.mismatch

    @property
    def is_writing(self) -> bool:
        """Whether a write was handed out and `advance` hasn't been called for it."""
        return self._outbox.is_writing

    # ---------------------------------------------------------------- inputs

    def tick(self) -> None:
        """One tick has passed."""
        if self._leadership is None:
            self._election.tick()
            return
        self._elapsed_ticks += 1
        self._leadership.tick()
        self._check_membership()
        self._heartbeat_elapsed_ticks += 1
        if self._heartbeat_elapsed_ticks >= self.config.heartbeat_ticks:
            self._heartbeat_elapsed_ticks = 0
            self._leadership.send_heartbeats()
        if self._elapsed_ticks >= self.config.election_ticks:
            self._check_quorum()

    def step(self, message: Message) -> None:
        """A message arrived. It may be stale, repeated or reordered."""
        assert message.to == self.id, "the transport delivers only messages for this node"
        assert message.sender != self.id, "the transport accepts no peer under this node's id"
        # A later membership may have added an unknown sender. None of this is about appends.
        if type(message) is Append or not (
            self._healing_generation.is_outdated(message)
            or self._election.breaks_promise(message)
            or self._incarnations.is_of_other_disk(message)
        ):
            self._step(message)
        self._check_membership()

    def _step(self, message: Message) -> None:
        term = self._election.term
        if message.term > term:
            if not self._adopt_term(message):
                return
        elif message.term < term:
            self._answer_stale(message)
            return
        match message:
            case VoteRequest():
                self._election.on_vote_request(message)
            case VoteReply():
                if self._election.on_vote_reply(message):
                    self._become_leader()
            case Append() | Heartbeat() | SnapshotOffer() if self._has_other(message.sender):
                self._on_second_leader(message.sender)
            case Append():
                self._on_append(message)
            case Heartbeat():
                self._follower.on_heartbeat(message)
            case AppendReply() | HeartbeatReply() | ReadRequest() | DurableIndexesRequest():
                if self._leadership is not None:
                    self._leadership.step(message)
            case ReadReply() | DurableIndexesReply():
                self._on_answer(message)
            case SnapshotOffer():
                self._election.on_leader_contact(message.sender)
                self._snapshot_offers.append(message)
            case Healed():
                self._healing_generation.on_healed(message)
            case TimeoutNow():
                self._election.on_timeout_now(message)
            case _:
                assert_never(message)

    def propose(self, payload: bytes, count: int, time_us: int) -> int | None:
        """Append a batch of `count` commands; its index, or None if this node can't take it now."""
        if self._leadership is None or not self.can_propose:
            return None
        return self._leadership.append(EntryKind.BATCH, payload, count, time_us)

    def propose_admin(self, payload: bytes, time_us: int = 0) -> int | None:
        """Append an administrative entry; its index, or None if this node can't take it now.

        Without a time it has that of the entry before it.
        """
        if self._leadership is None or not self.can_propose:
            return None
        return self._leadership.propose_admin(payload, time_us)

    def propose_restore(self, payload: bytes, time_us: int) -> int | None:
        """Append a RESTORE entry, which is one command; as `propose_admin`."""
        if self._leadership is None or not self.can_propose:
            return None
        return self._leadership.propose_restore(payload, time_us)

    def change_membership(self, membership: Membership) -> int:
        """Append a new membership; its index. NotLeader, MembershipChangePending."""
        if self._leadership is None:
            raise NotLeader(self.leader)
        assert self.id in membership.voters, "a leader hands over before it leaves"
        index = self._leadership.change_membership(membership)
        self._check_membership()
        return index

    def catch_up_again(self, peer: int) -> None:
        """Give a learner that was too slow to become a voter another set of rounds."""
        if self._leadership is not None:
            self._leadership.catch_up_again(peer)

    def has_given_up(self, peer: int) -> bool:
        """Whether this leader has given up making a learner a voter."""
        return self._leadership is not None and self._leadership.has_given_up(peer)

    def removed(self) -> None:
        """Other members report that this node was removed: it never campaigns again."""
        if not self.is_removed:
            self._election.is_removed = True
            self._events.append(Removed(reporter=self.id))
            if self.role is not Role.FOLLOWER:
                # A leader hands over before it is removed. But a node that was declared lost for
                # good may come back, still leading, and find itself replaced.
                self._election.lose_leader("removed")
                self._become_follower(self.term, None)

    def notify_commit(self, peer: int, index: int) -> None:
        """Tell `peer` as soon as `index` commits, not with the next append or heartbeat."""
        progress = self.progress.get(peer)
        if progress is not None:
            progress.notify_index = max(progress.notify_index, index)

    def read_index(self, read_id: int) -> bool:
        """Ask for a read index; it comes as a `ReadState`, or not at all: then ask again.

        False if there is no leader to ask.
        """
        if self._leadership is not None:
            self._leadership.read(self.id, read_id)
            return True
        if self.leader is None:
            return False
        self._send(ReadRequest(to=self.leader, sender=self.id, term=self.term, read_id=read_id))
        return True

    def watch_durable_indexes(self, index: int) -> None:
        """Ask the leader for a reply as soon as another member has entry `index` on its disk."""
        if self._leadership is None and self.leader is not None:
            self._send(
                DurableIndexesRequest(to=self.leader, sender=self.id, term=self.term, index=index)
            )

    def transfer(self, target: int) -> None:
        """Hand leadership to `target` once its log is complete; no proposals meanwhile.

        The leader gives up after an election timeout. Raises NotLeader, and TransferFailed if the
        transfer can't begin.
        """
        if self._leadership is None:
            raise NotLeader(self.leader)
        if target == self.id:
            return
        if self._leadership.transfer_target is None:
            # A second request doesn't delay the quorum check again.
            self._elapsed_ticks = 0
        self._leadership.transfer(target)

    def campaign(self) -> None:
        """An operator wants this node to lead: ask for votes if no leader is known."""
        self._election.campaign()

    def resign(self) -> None:
        """Step down without naming a successor, and let the other voters campaign first."""
        if self._leadership is not None:
            self._election.lose_leader("resigned")
            self._become_follower(self.term, None)
            self._election.stand_back()

    def connected(self, peer: int, incarnation: int = 0) -> None:
        """The transport reached `peer`; messages in flight before are lost.

        `incarnation` is that of its data directory; 0 if it isn't known.
        """
        is_other = self._incarnations.connected(peer, incarnation)
        if is_other:
            self._healing_generation.forget(peer)
        if self._leadership is not None:
            self._leadership.connected(peer, is_other_disk=is_other)

    def disconnected(self, peer: int) -> None:
        """The connection to `peer` broke."""
        if self._leadership is not None:
            self._leadership.disconnected(peer)
        elif peer == self.leader:
            self._election.disconnected(peer)

    def log_read(self, request: LogRead, previous: LogPosition, entries: Sequence[Entry]) -> None:
        """The result of a `LogRead`: entries that follow `previous`."""
        if self._leadership is not None:
            self._leadership.log_read(request, previous, entries)

    def log_read_failed(self, request: LogRead, first_index: int) -> None:
        """The entries of a `LogRead` are gone; the log on disk begins at `first_index`."""
        if self._leadership is not None:
            self._leadership.log_read_failed(request, first_index)

    def snapshot_sent(self, request: SnapshotRequest, index: int) -> None:
        """The follower of `request` holds everything up to `index`."""
        if self._leadership is not None:
            self._leadership.snapshot_sent(request, index)

    def snapshot_failed(self, request: SnapshotRequest) -> None:
        """The follower of `request` got no snapshot; the leader will request one again."""
        if self._leadership is not None:
            self._leadership.snapshot_failed(request)

    def healed(self, generation: int) -> None:
        """The end of healing is durable: from now on this node counts and votes."""
        self._healing_generation.end(generation)
        self._events.append(HealingEnded(reporter=self.id))

    # ---------------------------------------------------------------- outputs

    @property
    def has_ready(self) -> bool:
        """Whether `ready` would return any work."""
        return (
            self.log.has_unapplied
            or self._outbox.has_work(self._election.term, self._election.vote)
            or any(self._outputs)
            or self._healing_generation.has_healed
            or self._follower.has_lost_entries
        )

    def ready(self) -> Ready:
        """Take all work that is due now."""
        election = self._election
        self._check()
        write = self._outbox.take_write(HardState(election.term, election.vote, self.log.commit))
        messages = self._outbox.take_messages()
        # The leader waits for a follower's write, so that goes first. Applying would delay it, and
        # is put off for one turn: until the write is durable, at the latest.
        is_write_first = write is not None and self._leadership is None
        self._has_postponed = is_write_first and not self._has_postponed
        committed = () if self._has_postponed else self.log.take_committed()
        if committed or write is not None:
            self.log.check()
        ready = Ready(write, messages, committed)
        if any(self._outputs):
            ready.read_states = list(self._read_states)
            ready.log_reads = list(self._requests.log_reads)
            ready.snapshot_requests = list(self._requests.snapshots)
            ready.snapshot_offers = list(self._snapshot_offers)
            ready.events = list(self._events)
            for output in self._outputs:
                output.clear()
        ready.healed = self._healing_generation.take_healed()
        ready.lost_index = self._follower.take_lost()
        ready.restore = self.log.take_restore()
        return ready

    def advance(self, write: Write) -> None:
        """`write` is durable and its messages are sent."""
        self._outbox.wrote(write)
        election = self._election
        if election.role is Role.CANDIDATE and election.is_durable and election.count_own_vote():
            self._become_leader()
        elif self._leadership is not None:
            self._leadership.advance_commit()

    def _check(self) -> None:
        """Assert the invariants that hold between any two inputs."""
        leadership, term = self._leadership, self._election.term
        leads = self._election.role is Role.LEADER
        assert (leadership is not None) is leads, "a leader has a leadership, no other node has"
        if leadership is None:
            assert self.leases.current is None, "only a leader has a lease"
        else:
            assert leadership.term == term, "a leadership is for one term"
            leadership.check()

    def _check_membership(self) -> None:
        if self.log.membership is not self._membership:
            self._membership = self.log.membership
            self._events.append(membership_changed(self.id, self.log))
            if self.id in self._membership.removed:
                self.removed()

    # ---------------------------------------------------------------- terms and roles

    def _adopt_term(self, message: Message) -> bool:
        """Handle a term above this node's; True if the message needs further handling."""
        match message:
            case VoteRequest():
                if not message.transfer and self._election.has_lease:
                    return False
                if message.pre:
                    return True
            case VoteReply() if message.pre and message.granted:
                return True  # It carries the requested term, which no node has adopted yet.
            case Append() | Heartbeat() | SnapshotOffer():
                self._become_follower(message.term, message.sender)
                return True
        self._become_follower(message.term, None)
        return True

    def _answer_stale(self, message: Message) -> None:
        """Report this term to a node with an older one, where that helps it."""
        match message:
            case Append() | Heartbeat() | SnapshotOffer():
                # The reply makes a leader of an earlier term step down.
                self._follower.reject(message.sender, 0)
            case VoteRequest():
                self._election.refuse(message)

    def _has_other(self, leader: int) -> bool:
        """Whether this node knows another leader of this term than `leader`."""
        return self.leader not in (None, leader)

    def _on_second_leader(self, other: int) -> None:
        """A second node acts as leader of this term: an invariant is broken elsewhere.

        The message comes from the network, so this node doesn't stop. It reports the breach.
        """
        if self.leader is not None and self._second_leader_reported_in != self.term:
            self._second_leader_reported_in = self.term
            self._events.append(
                SecondLeader(reporter=self.id, term=self.term, leader=self.leader, other=other)
            )

    def _become_follower(self, term: int, leader: int | None) -> None:
        self._end_leadership()
        self._election.become_follower(term, leader)

    def _become_leader(self) -> None:
        self._election.become_leader()
        self._elapsed_ticks = self._heartbeat_elapsed_ticks = 0
        self._leadership = Leadership(
            self.config,
            self.term,
            self.log,
            self._send,
            self._events,
            self._read_states,
            self._requests,
            leases=self.leases,
            incarnations=self._incarnations,
            clocks=self.clocks,
        )
        self._leadership.append(EntryKind.NOOP, b"", 0, 0)

    def _end_leadership(self) -> None:
        self._leadership = None
        self.leases.withdraw()

    def _check_quorum(self) -> None:
        """Once an election timeout: give up a transfer, step down without a quorum (R7)."""
        assert self._leadership is not None, "only a leader needs a quorum"
        self._elapsed_ticks, self._leadership.transfer_target = 0, None
        if not self._leadership.has_quorum():
            self._election.lose_leader("quorum")
            self._become_follower(self.term, None)

    # ---------------------------------------------------------------- messages of the leader

    def _on_append(self, message: Append) -> None:
        assert self._leadership is None, "a leader only adds to its log"
        self._follower.on_append(message)

    def _on_answer(self, message: ReadReply | DurableIndexesReply) -> None:
        """The leader's answer to a request of this node."""
        if isinstance(message, DurableIndexesReply):
            self.log.durable_indexes.learn(message.commit, message.behind)
        elif message.sender == self.leader:  # Reads that an earlier leader answers are asked again.
            self._read_states.append(ReadState(message.read_id, message.index))
