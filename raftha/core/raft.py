"""Raft as a pure state machine: inputs in, `Ready` out. It does no I/O and knows no time.

Theory of operation
===================

The outside (`node.py`, or the simulator) drives one `Raft`:

    raft.step(message)      a message arrived            raft.tick()        a tick has passed
    raft.propose(...)       append an entry              raft.read_index()  ask for a read index
    raft.connected(peer)    raft.disconnected(peer)      what the transport noticed

and after any of these takes what is to be done:

    ready = raft.ready()
    1. send ready.messages, apply ready.committed, answer ready.read_states, fetch ready.log_reads
    2. make ready.write durable, as one write and one sync; only then
    3. send ready.write.messages and call raft.advance(ready.write)

Steps 1 and 2 run at the same time, and turns go on while a write is under way; there is at most one
write at a time, and what arrives meanwhile is in the next one: that is group commit.

Rules that keep it safe
-----------------------

R1  Term and vote are durable before any message of that term leaves: `_send` holds messages back
    (`_held`) while the current (term, vote) is not the durable one, and they leave with the write that
    makes it so. A candidate counts its own vote only then.
R2  An `AppendReply(ok, index)` leaves only when everything up to `index` is durable.
R3  A leader counts itself for an entry only when it is durable here (`log.persisted`). Its appends
    leave at once, in parallel with its own write (thesis 10.2.1).
R4  Only entries of the leader's own term are committed by counting (paper 5.4.2); older ones go along.
R5  A node applies what is both committed and durable here, so state never runs ahead of the log.
R6  Entries are cut off only where a term really differs, and never at or below commit.
R7  A leader that hasn't heard from a quorum for an election timeout steps down (check-quorum), and
    a node that has heard from a leader within one grants no votes (lease), except for a transfer.
R8  Reads need a round of replies from a quorum, begun after the read arrived, and a commit index from
    the leader's own term.

Election: a node first asks for pre-votes without touching its term (thesis 9.6), so a node that was cut
off can't depose a leader when it returns. The first entry of a leader is a no-op.

A lost connection to the leader is a strong hint that its process is gone: the follower drops its lease
and asks for pre-votes after a short delay, staggered by node id and randomised, instead of the
election timeout. If only its own link broke, the others' leases refuse it and nothing happens.

Learners, membership changes and snapshots have their places: `voters` is where a configuration will
be, `_voter_quorum` where it counts, and `_send_append` notes a follower that needs more than the log.

Sources: Ongaro & Ousterhout, «In Search of an Understandable Consensus Algorithm»; Ongaro's thesis;
the division of labour is that of etcd's raft library.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import assert_never

from raftha.core.log import LogMismatch, RaftLog
from raftha.core.messages import (
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    Message,
    ReadReply,
    ReadRequest,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from raftha.core.progress import Mode, Progress
from raftha.core.reads import Read, ReadRounds
from raftha.core.ready import CoreConfig, LogRead, Ready, ReadState, Write
from raftha.entry import Entry, EntryKind, HardState, LogPosition, make_entry
from raftha.errors import NotLeader, TransferFailed
from raftha.events import Event, LeaderElected, LeaderLost, ReplicaBehindLog, RoleChanged


class Role(enum.StrEnum):
    """What a node is at the moment."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre_candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class Raft:
    """One node's part in the protocol. Not thread-safe; one owner drives it."""

    def __init__(
        self,
        config: CoreConfig,
        hard_state: HardState,
        log: RaftLog,
        random_below: Callable[[int], int],
    ) -> None:
        """Begin as a follower with what is on disk; `random_below(n)` gives 0 to n-1."""
        assert config.node_id in config.voters
        assert hard_state.term >= log.last_term, "an entry of a term implies that term"
        self.id = config.node_id
        self.config = config
        self.voters = config.voters
        self.peers = tuple(voter for voter in config.voters if voter != config.node_id)
        self.log = log
        self.term, self.vote = hard_state.term, hard_state.vote
        log.commit = max(log.commit, min(hard_state.commit, log.last_index))
        self.role = Role.FOLLOWER
        self.leader: int | None = None
        self.progress: dict[int, Progress] = {}
        self.transfer_target: int | None = None
        self.compact_index = 0
        self._random_below = random_below
        self._votes: dict[int, bool] = {}
        self._reads = ReadRounds()
        self._elapsed_ticks = 0
        self._heartbeat_elapsed_ticks = 0
        self._timeout_ticks = 0
        # A node that starts knows of no leader. Asking for pre-votes early does no harm if there is one.
        self._is_suspecting = True
        self._announced_term = 0
        self._durable = hard_state
        self._taken = hard_state
        self._write: Write | None = None
        self._messages: list[Message] = []
        self._held: list[Message] = []
        self._read_states: list[ReadState] = []
        self._log_reads: list[LogRead] = []
        self._events: list[Event] = []
        self._set_timeout()

    # ---------------------------------------------------------------- what the outside may ask

    @property
    def is_leader(self) -> bool:
        return self.role is Role.LEADER

    @property
    def can_propose(self) -> bool:
        return self.role is Role.LEADER and self.transfer_target is None

    @property
    def is_writing(self) -> bool:
        """Whether a write was handed out and not yet advanced over."""
        return self._write is not None

    @property
    def can_read(self) -> bool:
        """Whether this leader's commit index is from its own term (R8)."""
        return self.is_leader and self.log.term(self.log.commit) == self.term

    # ---------------------------------------------------------------- inputs

    def tick(self) -> None:
        """One tick has passed."""
        self._elapsed_ticks += 1
        if self.role is not Role.LEADER:
            if self._elapsed_ticks >= self._timeout_ticks:
                if self.role is Role.FOLLOWER and self.leader is not None:
                    self._lose_leader("timeout")
                self._campaign(pre=True)
            return
        self._heartbeat_elapsed_ticks += 1
        if self._heartbeat_elapsed_ticks >= self.config.heartbeat_ticks:
            self._heartbeat_elapsed_ticks = 0
            self._send_heartbeats()
        if self._elapsed_ticks >= self.config.election_ticks:
            self._elapsed_ticks = 0
            self._check_quorum()

    def step(self, message: Message) -> None:
        """A message arrived. Stale, repeated and reordered messages are all fine."""
        assert message.to == self.id and message.sender != self.id
        if message.sender not in self.peers:
            return
        if message.term > self.term:
            if not self._adopt_term(message):
                return
        elif message.term < self.term:
            self._answer_stale(message)
            return
        match message:
            case VoteRequest():
                self._on_vote_request(message)
            case VoteReply():
                self._on_vote_reply(message)
            case Append():
                self._on_append(message)
            case AppendReply():
                self._on_append_reply(message)
            case Heartbeat():
                self._on_heartbeat(message)
            case HeartbeatReply():
                self._on_heartbeat_reply(message)
            case ReadRequest():
                self._on_read_request(message)
            case ReadReply():
                self._read_states.append(ReadState(message.read_id, message.index))
            case TimeoutNow():
                if self.role is Role.FOLLOWER and message.sender == self.leader:
                    self._campaign(pre=False, transfer=True)
            case _:
                assert_never(message)

    def propose(self, payload: bytes, count: int, time_us: int) -> int | None:
        """Append a batch of `count` commands; its index, or None if this node can't take it now."""
        if not self.can_propose:
            return None
        return self._append_own(EntryKind.BATCH, payload, count, time_us)

    def notify_commit(self, peer: int, index: int) -> None:
        """Tell `peer` as soon as `index` commits, not with the next append or heartbeat."""
        if peer in self.progress:
            self.progress[peer].notify_index = max(self.progress[peer].notify_index, index)

    def read_index(self, read_id: int) -> bool:
        """Ask for a read index; it comes as a `ReadState`, or never: ask again then.

        False if there is no leader to ask.
        """
        if self.role is Role.LEADER:
            self._reads.add(Read(self.id, read_id))
            self._begin_reads()
            return True
        if self.leader is None:
            return False
        self._send(ReadRequest(self.leader, self.id, self.term, read_id))
        return True

    def transfer(self, target: int) -> None:
        """Hand leadership to `target` once its log is complete; no proposals meanwhile.

        Given up after an election timeout. NotLeader, TransferFailed if it can't even begin.
        """
        if self.role is not Role.LEADER:
            raise NotLeader(self.leader)
        if target == self.id:
            return
        if target not in self.progress:
            raise TransferFailed(f"node {target} is not a member")
        if not self.progress[target].is_active:
            raise TransferFailed(f"node {target} does not answer")
        self.transfer_target = target
        self._elapsed_ticks = 0
        if self.progress[target].match == self.log.last_index:
            self._send(TimeoutNow(target, self.id, self.term))
        else:
            self._send_append(target)

    def connected(self, peer: int) -> None:
        """The transport reached `peer`; whatever was on its way before is lost."""
        if self.role is Role.LEADER:
            self.progress[peer].probe()
            self._send_append(peer)

    def disconnected(self, peer: int) -> None:
        """The connection to `peer` broke, or a message to it was dropped."""
        if self.role is Role.LEADER:
            self.progress[peer].probe()
        elif peer == self.leader:
            self._lose_leader("disconnected")
            self._is_suspecting = True
            self._elapsed_ticks = 0
            others = [voter for voter in self.voters if voter != peer]
            self._timeout_ticks = 1 + 3 * others.index(self.id) + self._random_below(3)

    def log_read(self, peer: int, previous: LogPosition, entries: Sequence[Entry]) -> None:
        """What a `LogRead` asked for: entries that follow `previous`."""
        progress = self.progress.get(peer)
        if progress is None or progress.mode is not Mode.FETCH:
            return
        progress.mode = Mode.PROBE
        if progress.next != previous.index + 1 or not entries:
            self._send_append(peer)
            return
        self._send_entries(peer, progress, previous.index, previous.term, tuple(entries))

    def log_read_failed(self, peer: int, first_index: int) -> None:
        """The entries a `LogRead` asked for are gone; the log on disk begins at `first_index`."""
        progress = self.progress.get(peer)
        if progress is None or progress.mode is not Mode.FETCH:
            return
        progress.mode = Mode.PROBE
        # Paused until it is heard from again. Its place is a snapshot's: the log can't help it.
        progress.waits_for_reply = True
        if not progress.is_behind_log:
            progress.is_behind_log = True
            self._emit(
                ReplicaBehindLog(
                    node_id=self.id, peer=peer, needs_index=progress.next, first_index=first_index
                )
            )

    # ---------------------------------------------------------------- outputs

    def ready(self) -> Ready:
        """Take everything that is to be done now."""
        write = self._take_write()
        if write is None and self._write is None and self._held:
            # Nothing left to make durable that these could wait for.
            self._messages += self._held
            self._held = []
        committed = self._take_committed()
        ready = Ready(
            write, self._messages, committed, self._read_states, self._log_reads, self._events
        )
        self._messages, self._read_states, self._log_reads, self._events = [], [], [], []
        return ready

    def advance(self, write: Write) -> None:
        """`write` is durable and its messages are on their way."""
        assert write is self._write, "writes complete in the order they were taken"
        self._write = None
        if write.hard_state is not None:
            self._durable = write.hard_state
        self.log.mark_persisted(write.entries)
        if self.role is Role.CANDIDATE and self._is_hard_state_durable():
            self._count_vote(self.id, True)
        elif self.role is Role.LEADER:
            self._advance_commit()

    def _take_write(self) -> Write | None:
        if self._write is not None:
            return None
        hard_state = HardState(self.term, self.vote, self.log.commit)
        is_vote_dirty = (self.term, self.vote) != (self._durable.term, self._durable.vote)
        entries: tuple[Entry, ...] = ()
        if self.log.written < self.log.last_index:
            entries = self.log.slice(self.log.written + 1, self.config.write_bytes_max)
            self.log.written = entries[-1].index
        if not entries and not is_vote_dirty:
            return None
        # Replies that acknowledge entries beyond this write stay for the next one (R2).
        held = [m for m in self._held if _acknowledges(m) > self.log.written]
        messages = tuple(m for m in self._held if _acknowledges(m) <= self.log.written)
        self._held = held
        is_news = hard_state != self._taken
        self._taken = hard_state
        self._write = Write(hard_state if is_news else None, entries, messages)
        return self._write

    def _take_committed(self) -> tuple[Entry, ...]:
        last = min(self.log.commit, self.log.persisted)  # R5
        if last <= self.log.applied:
            return ()
        committed = self.log.between(self.log.applied, last)
        self.log.mark_applied(last)
        return committed

    def _send(self, message: Message) -> None:
        """Send now, or with the write that makes it true (R1, R2)."""
        if self._is_hard_state_durable() and _acknowledges(message) <= self.log.persisted:
            self._messages.append(message)
        else:
            self._held.append(message)

    def _is_hard_state_durable(self) -> bool:
        return self._durable.term == self.term and self._durable.vote == self.vote

    def _emit(self, event: Event) -> None:
        self._events.append(event)

    # ---------------------------------------------------------------- terms and roles

    def _adopt_term(self, message: Message) -> bool:
        """Deal with a term above ours; whether the message is to be looked at further."""
        match message:
            case VoteRequest():
                if not message.transfer and self._has_lease():
                    return False
                if message.pre:
                    return True
            case VoteReply() if message.pre and message.granted:
                return True  # Carries the term that was asked for, which is nobody's yet.
            case Append() | Heartbeat():
                self._become_follower(message.term, message.sender)
                return True
            case _:
                pass
        self._become_follower(message.term, None)
        return True

    def _answer_stale(self, message: Message) -> None:
        """Tell a node with an older term what the term is, where that helps it."""
        match message:
            case Append() | Heartbeat():
                # A leader of an earlier term learns from this that it isn't one any more.
                self._send(AppendReply(message.sender, self.id, self.term, False, 0, 0, 0))
            case VoteRequest():
                self._send(VoteReply(message.sender, self.id, self.term, False, message.pre))
            case _:
                pass

    def _has_lease(self) -> bool:
        """Whether a leader has been heard of so lately that no other may be elected (R7)."""
        return self.leader is not None and self._elapsed_ticks < self.config.election_ticks

    def _set_timeout(self) -> None:
        base = spread = self.config.election_ticks
        if not self.peers:
            base = spread = 1
        elif self._is_suspecting:
            # The leader is thought dead and a first attempt failed: try again well within the usual
            # time-out, spread widely enough that two candidates don't keep splitting the vote.
            base = max(base // 5, 2)
            spread = 2 * base
        self._timeout_ticks = base + self._random_below(spread)

    def _reset(self, term: int) -> None:
        if term != self.term:
            assert term > self.term
            self.term, self.vote = term, 0
            # What was acknowledged to an earlier leader is of no use to it any more.
            self._held = [m for m in self._held if not isinstance(m, AppendReply)]
        self._elapsed_ticks = self._heartbeat_elapsed_ticks = 0
        self._set_timeout()
        self._votes = {}
        self._reads.clear()
        self.progress = {}
        self.transfer_target = None

    def _set_role(self, role: Role) -> None:
        if role is not self.role:
            self.role = role
            self._emit(RoleChanged(node_id=self.id, role=role.value, term=self.term))

    def _set_leader(self, leader: int) -> None:
        # A leader found again, or in a new term, counts too: what was on its way may be lost.
        is_news = leader != self.leader or self.term != self._announced_term
        self.leader, self._announced_term = leader, self.term
        self._is_suspecting = False
        if is_news:
            self._emit(LeaderElected(node_id=self.id, leader=leader, term=self.term))

    def _lose_leader(self, reason: str) -> None:
        if self.leader is not None:
            lost, self.leader = self.leader, None
            self._emit(LeaderLost(node_id=self.id, leader=lost, term=self.term, reason=reason))

    def _become_follower(self, term: int, leader: int | None) -> None:
        if self.leader is not None and self.leader != leader:
            self._lose_leader("term")
        self._reset(term)
        self._set_role(Role.FOLLOWER)
        if leader is not None:
            self._set_leader(leader)

    def _become_leader(self) -> None:
        assert self.role is Role.CANDIDATE and self._is_hard_state_durable()
        self._reset(self.term)
        self._set_role(Role.LEADER)
        self._set_leader(self.id)
        for peer in self.peers:
            self.progress[peer] = Progress(
                self.log.last_index + 1,
                self.config.in_flight_messages_max,
                self.config.in_flight_bytes_max,
            )
        self._append_own(EntryKind.NOOP, b"", 0, 0)

    def _check_quorum(self) -> None:
        """Once an election timeout: give up a transfer, step down without a quorum (R7)."""
        self.transfer_target = None
        active = 1 + sum(progress.is_active for progress in self.progress.values())
        for progress in self.progress.values():
            progress.is_active = False
        if active < self._quorum():
            self._lose_leader("quorum")
            self._become_follower(self.term, None)

    # ---------------------------------------------------------------- elections

    def _quorum(self) -> int:
        return len(self.voters) // 2 + 1

    def _campaign(self, *, pre: bool, transfer: bool = False) -> None:
        self._lose_leader("transfer")
        self._reset(self.term if pre else self.term + 1)
        if pre:
            self._set_role(Role.PRE_CANDIDATE)
        else:
            self.vote = self.id
            self._set_role(Role.CANDIDATE)
        term = self.term + 1 if pre else self.term
        last_index, last_term = self.log.last_index, self.log.last_term
        for peer in self.peers:
            self._send(VoteRequest(peer, self.id, term, last_index, last_term, pre, transfer))
        if pre:
            # A pre-vote binds nobody; a real one counts once it is durable (R1), in `advance`.
            self._count_vote(self.id, True)

    def _on_vote_request(self, message: VoteRequest) -> None:
        is_free = self.vote in (0, message.sender) and self.leader is None
        may_vote = is_free or (message.pre and message.term > self.term)
        granted = may_vote and self.log.is_up_to_date(message.last_index, message.last_term)
        # A refusal carries our own term: a candidate that is behind learns of it.
        term = message.term if granted else self.term
        if granted and not message.pre:
            self.vote = message.sender
            self._elapsed_ticks = 0
            self._set_timeout()
        self._send(VoteReply(message.sender, self.id, term, granted, message.pre))

    def _on_vote_reply(self, message: VoteReply) -> None:
        wanted = Role.PRE_CANDIDATE if message.pre else Role.CANDIDATE
        if self.role is wanted:
            self._count_vote(message.sender, message.granted)

    def _count_vote(self, voter: int, granted: bool) -> None:
        self._votes.setdefault(voter, granted)
        granted_count = sum(self._votes.values())
        if granted_count >= self._quorum():
            if self.role is Role.PRE_CANDIDATE:
                self._campaign(pre=False)
            elif self._votes.get(self.id):
                self._become_leader()
        elif len(self._votes) - granted_count >= self._quorum():
            self._set_role(Role.FOLLOWER)

    # ---------------------------------------------------------------- replication, leader's side

    def _append_own(self, kind: EntryKind, payload: bytes, count: int, time_us: int) -> int:
        entry = make_entry(self.log.last, self.term, time_us, kind, payload, count)
        self.log.append(entry)
        for peer in self.peers:
            self._send_append(peer)
        return entry.index

    def _send_append(self, peer: int) -> None:
        """Send what the follower lacks, as far as its limits allow; a probe if that's nothing."""
        progress = self.progress[peer]
        while not progress.is_paused:
            previous_index = progress.next - 1
            previous_term = self.log.term(previous_index)
            if previous_term is None:
                progress.mode = Mode.FETCH
                if progress.next < self.log.first_index:
                    self.log_read_failed(peer, self.log.first_index)
                else:
                    self._log_reads.append(LogRead(peer, progress.next))
                return
            entries = self.log.slice(progress.next, self.config.append_bytes_max)
            if not entries and progress.mode is Mode.REPLICATE:
                return
            self._send_entries(peer, progress, previous_index, previous_term, entries)

    def _send_entries(
        self,
        peer: int,
        progress: Progress,
        previous_index: int,
        previous_term: int,
        entries: tuple[Entry, ...],
    ) -> None:
        size = sum(len(entry.data) for entry in entries)
        self._send(
            Append(
                peer,
                self.id,
                self.term,
                previous_index,
                previous_term,
                self.log.commit,
                self.compact_index,
                entries,
            )
        )
        progress.commit_sent = self.log.commit
        progress.sent(previous_index + len(entries), size)

    def _send_probe(self, peer: int, progress: Progress) -> None:
        """Send an append without entries: it carries commit, and its reply finds lost appends."""
        previous_index = progress.next - 1
        previous_term = self.log.term(previous_index)
        if previous_term is None:
            return
        commit, compact = self.log.commit, self.compact_index
        self._send(
            Append(peer, self.id, self.term, previous_index, previous_term, commit, compact, ())
        )
        progress.commit_sent = commit

    def _on_append_reply(self, message: AppendReply) -> None:
        if self.role is not Role.LEADER:
            return
        progress = self.progress[message.sender]
        progress.is_active = True
        if not message.ok:
            next_index = self.log.hint(message.hint_index, message.hint_term)[0] + 1
            if progress.reject(message.index, next_index):
                self._send_append(message.sender)
            return
        assert message.index <= self.log.last_index, "acknowledged what was never sent"
        if progress.acknowledge(message.index):
            self._advance_commit()
        if progress.mode is Mode.REPLICATE:
            self._send_append(message.sender)
        if message.sender == self.transfer_target and progress.match == self.log.last_index:
            self._send(TimeoutNow(message.sender, self.id, self.term))

    def _advance_commit(self) -> None:
        """Commit what a quorum has on disk, if it is of this term (R3, R4)."""
        matches = sorted(
            (self.log.persisted, *(progress.match for progress in self.progress.values())),
            reverse=True,
        )
        self.compact_index = max(self.compact_index, matches[-1])
        index = matches[self._quorum() - 1]
        if index <= self.log.commit or not self._may_commit(index):
            return
        self.log.commit = index
        for peer, progress in self.progress.items():
            if progress.commit_sent < progress.notify_index <= index:
                self._send_probe(peer, progress)
        self._begin_reads()

    def _may_commit(self, index: int) -> bool:
        return self.log.term(index) == self.term

    # ---------------------------------------------------------------- replication, follower's side

    def _on_append(self, message: Append) -> None:
        self._hear_leader(message.sender)
        try:
            agreed = self.log.merge(message)
        except LogMismatch:
            # Bytes that were changed on the way, or a leader gone wrong: nothing of it is kept.
            return
        if agreed is None:
            hint_index, hint_term = self.log.hint(message.prev_index, message.prev_term)
            self._send(
                AppendReply(
                    message.sender,
                    self.id,
                    self.term,
                    False,
                    message.prev_index,
                    hint_index,
                    hint_term,
                )
            )
            return
        self.log.commit = max(self.log.commit, min(message.commit, agreed))
        self.compact_index = max(self.compact_index, message.compact_index)
        self._send(AppendReply(message.sender, self.id, self.term, True, agreed, 0, 0))

    def _hear_leader(self, leader: int) -> None:
        """A message of this term's leader: there is exactly one, and it is alive."""
        assert self.role is not Role.LEADER, f"two leaders in term {self.term}"
        if self.role is Role.FOLLOWER and self.leader == leader:
            self._elapsed_ticks = 0
        else:
            self._become_follower(self.term, leader)

    # ---------------------------------------------------------------- heartbeats and reads

    def _send_heartbeats(self) -> None:
        for peer, progress in self.progress.items():
            # Beyond `match` the follower's log may differ, so no commit index may be taken over there.
            commit = min(progress.match, self.log.commit)
            self._send(Heartbeat(peer, self.id, self.term, commit, self._reads.round))

    def _on_heartbeat(self, message: Heartbeat) -> None:
        self._hear_leader(message.sender)
        self.log.commit = max(self.log.commit, min(message.commit, self.log.last_index))
        self._send(HeartbeatReply(message.sender, self.id, self.term, message.read_round))

    def _on_heartbeat_reply(self, message: HeartbeatReply) -> None:
        if self.role is not Role.LEADER:
            return
        progress = self.progress[message.sender]
        progress.is_active = True
        if progress.mode is Mode.PROBE:
            progress.waits_for_reply = False
            self._send_append(message.sender)
        elif progress.mode is Mode.REPLICATE and progress.match < self.log.last_index:
            # An append, or its reply, may be lost; the answer to this tells.
            self._send_probe(message.sender, progress)
        answered = self._reads.hear(message.sender, message.read_round, self._quorum() - 1)
        if answered is not None:
            self._answer_reads(*answered)

    def _on_read_request(self, message: ReadRequest) -> None:
        if self.role is Role.LEADER:
            self._reads.add(Read(message.sender, message.read_id))
            self._begin_reads()

    def _begin_reads(self) -> None:
        """Start a round for the reads that wait, unless one is under way or it is too early."""
        if not self._reads.has_waiting or self._reads.is_asking or not self.can_read:
            return
        self._reads.begin(self.log.commit)
        if self._quorum() == 1:
            self._answer_reads(*self._reads.finish())
            return
        self._heartbeat_elapsed_ticks = 0
        self._send_heartbeats()

    def _answer_reads(self, index: int, reads: list[Read]) -> None:
        for read in reads:
            if read.node == self.id:
                self._read_states.append(ReadState(read.read_id, index))
            else:
                self._send(ReadReply(read.node, self.id, self.term, read.read_id, index))
                # It waits until it has applied `index`; don't let it wait for the next heartbeat.
                if self.progress[read.node].commit_sent < index:
                    self._send_probe(read.node, self.progress[read.node])
        self._begin_reads()


def _acknowledges(message: Message) -> int:
    """The last entry whose being on disk this message asserts; 0 if none."""
    return message.index if isinstance(message, AppendReply) and message.ok else 0
