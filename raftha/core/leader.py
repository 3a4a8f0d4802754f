"""The leader's side of a term: created when an election is won, dropped when the leader steps down.

Theory of operation. `Leadership` adds entries to the log and sends them (`followers.py`). It counts
the disks that hold them and moves the commit index (R3, R4 in `raft.py`). It confirms for readers
that it still leads (R8), holds a lease if configured (`lease.py`), and hands over on request. It
shares the log with `Raft`, and sends through it.

Its first entry is a no-op: a leader knows how far the log is committed only once an entry of its
own term is committed (paper, section 8).

A follower that heals (`healing_generation.py`) receives entries like any other and counts for
nothing. It has healed when it holds a no-op that was appended after the leader learned of the loss,
and that a majority without it has on disk. If it has another data directory than the membership
records, the leader first records the new one in the log.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import assert_never

from raftha.core.catch_up import CatchUps
from raftha.core.clocks import ClockReadings
from raftha.core.followers import Followers
from raftha.core.incarnations import Incarnations
from raftha.core.lease import FOR_EVER, Leases
from raftha.core.log import RaftLog
from raftha.core.messages import (
    AppendReply,
    DurableIndexesRequest,
    Healed,
    Heartbeat,
    HeartbeatReply,
    Message,
    ReadReply,
    ReadRequest,
    TimeoutNow,
)
from raftha.core.progress import Mode, Progress
from raftha.core.reads import Read, ReadRounds
from raftha.core.ready import CoreConfig, LogRead, ReadState, Requests, SnapshotRequest
from raftha.entry import Entry, EntryKind, LogPosition, make_entry
from raftha.errors import MembershipChangePending, TransferFailed, Unavailable
from raftha.events import (
    HaEvent,
    ReplicaHealed,
    ReplicaHealing,
    ReplicaLostLog,
)
from raftha.membership import Membership


class Leadership:
    """The leader's side of one term."""

    def __init__(
        self,
        config: CoreConfig,
        term: int,
        log: RaftLog,
        send: Callable[[Message], None],
        events: list[HaEvent],
        read_states: list[ReadState],
        requests: Requests,
        *,
        leases: Leases,
        incarnations: Incarnations,
        clocks: ClockReadings,
    ) -> None:
        """The lists and `requests` are shared with the core, and are part of its next `Ready`.

        `incarnations`, also shared, has the data directory that answers for each node.
        """
        self.id = config.node_id
        self.term = term
        self.transfer_target: int | None = None
        self._has_sent_timeout_now = False
        self._leases = leases
        self._incarnations = incarnations
        self._clocks = clocks
        self._followers = Followers(config, term, log, send, events, requests)
        self.progress = self._followers.progress
        self._config = config
        self._log = log
        self._send = send
        self._events = events
        self._read_states = read_states
        self._reads = ReadRounds()
        self._catch_ups = CatchUps(config, events)
        assert log.last_term <= term, "an entry of a term implies that term"
        self._begins_at = log.last_index + 1
        """Its own first entry, which commits all earlier ones with it."""
        self._ends_at = log.last_index
        """The end of its log, which only this leader extends and which is never cut off."""
        self.on_membership()

    def step(
        self, message: AppendReply | HeartbeatReply | ReadRequest | DurableIndexesRequest
    ) -> None:
        """Handle a follower's reply or request of this term."""
        if message.sender not in self.progress:
            return  # It was removed in the meantime.
        if isinstance(message, AppendReply | HeartbeatReply):
            self._record_generation(message.sender, message.healing_generation)
        match message:
            case AppendReply():
                self._on_append_reply(message)
            case HeartbeatReply():
                self._on_heartbeat_reply(message)
            case ReadRequest():
                self.read(message.sender, message.read_id)
            case DurableIndexesRequest():
                self._followers.watch(message.sender, message.index)
            case _:
                assert_never(message)

    def append(self, kind: EntryKind, payload: bytes, count: int, time_us: int) -> int:
        """Add an entry of `count` commands to the log and send it on; return its index."""
        assert self._log.last_index == self._ends_at, (
            "only this leader changes its log, by appending"
        )
        if kind is EntryKind.MEMBERSHIP:
            is_pending = self._log.membership_index > self._log.commit
            assert not is_pending, "one change of membership at a time"
            assert self._has_committed, "a change of membership waits for an entry of this term"
        entry = make_entry(self._log.last, self.term, time_us, kind, payload, count)
        self._log.append(entry)
        self._ends_at = entry.index
        if kind is EntryKind.MEMBERSHIP:
            self.on_membership()
        for peer in self.progress:
            self._followers.send_append(peer)
        return entry.index

    @property
    def _has_committed(self) -> bool:
        """Whether one of its own entries is committed, judged by index rather than term."""
        return self._log.commit >= self._begins_at

    def check(self) -> None:
        """Assert the invariants that hold between any two inputs."""
        if self._leases.current is not None:
            assert self._has_committed, "no lease before an entry of this term is committed (L4)"
            assert self.transfer_target is None, "no lease in a transfer (L4)"
            assert not self._has_sent_timeout_now, "no lease once another may campaign (L4)"

    def has_quorum(self) -> bool:
        """Whether a quorum has replied since the last call (R7)."""
        membership = self._log.membership
        active = sum(
            voter == self.id
            or (self.progress[voter].is_active and not self.progress[voter].is_healing)
            for voter in membership.voters
        )
        for progress in self.progress.values():
            progress.was_active, progress.is_active = progress.is_active, False
        return active >= membership.quorum

    def transfer(self, target: int) -> None:
        """Begin to hand over to `target`, which campaigns once its log is complete."""
        progress = self.progress.get(target)
        if progress is None:
            raise TransferFailed(f"node {target} is not a member")
        if target not in self._log.membership.voters:
            raise TransferFailed(f"node {target} is a learner, and only voters lead")
        if not (progress.is_active or progress.was_active):
            raise TransferFailed(f"node {target} does not answer")
        if progress.is_healing:
            raise TransferFailed(f"node {target} heals from the loss of its log")
        self.transfer_target = target
        self._renew_lease()
        self._finish_transfer(target, progress)
        self._followers.send_append(target)

    # ---------------------------------------------------------------- followers

    def connected(self, peer: int, *, is_other_disk: bool = False) -> None:
        """Messages in flight to `peer` are lost; ask where its log ends.

        With another data directory than before, it holds nothing of what it acknowledged.
        """
        if is_other_disk:
            self._followers.forget(peer)
        self._followers.connected(peer)

    def disconnected(self, peer: int) -> None:
        self._followers.disconnected(peer)

    def log_read(self, request: LogRead, previous: LogPosition, entries: Sequence[Entry]) -> None:
        """The disk returned entries that follow `previous`."""
        self._followers.log_read(request, previous, entries)

    def log_read_failed(self, request: LogRead, first_index: int) -> None:
        """The requested entries are gone; the log on disk begins at `first_index`."""
        self._followers.log_read_failed(request, first_index)

    def snapshot_sent(self, request: SnapshotRequest, index: int) -> None:
        """The follower holds everything up to `index`; continue from there."""
        self._followers.snapshot_sent(request, index)

    def snapshot_failed(self, request: SnapshotRequest) -> None:
        """The follower got no snapshot. At its next reply, check again what it needs."""
        self._followers.snapshot_failed(request)

    # ---------------------------------------------------------------- members that heal

    def _record_generation(self, peer: int, generation: int) -> None:
        """Record a follower's healing generation, which never goes back."""
        progress = self.progress[peer]
        assert generation >= progress.healing_generation, "a healing generation never goes back"
        if generation == progress.healing_generation + 1 and progress.is_healing:
            # What it acknowledged while it healed counts from now on.
            progress.healing_generation, progress.heals_at = generation, None
            self._events.append(ReplicaHealed(reporter=self.id, node_id=peer))
            self.advance_commit()
        elif generation != progress.healing_generation:
            progress.lost(generation)
            self._followers.disks_changed()
        if progress.is_healing and progress.heals_at is None:
            self._events.append(ReplicaHealing(reporter=self.id, node_id=peer))
            progress.heals_at = self.append(EntryKind.NOOP, b"", 0, 0)

    def _confirm_healing(self, peer: int, progress: Progress) -> None:
        """Send `Healed` to a follower that has healed, until its replies show that it knows."""
        heals_at = progress.heals_at
        has_healed = heals_at is not None and heals_at <= min(progress.match, self._log.commit)
        if has_healed and self._is_disk_recorded(peer):
            self._send(
                Healed(
                    to=peer,
                    sender=self.id,
                    term=self.term,
                    healing_generation=progress.healing_generation,
                )
            )

    def _is_disk_recorded(self, peer: int) -> bool:
        """Whether the log records for good the data directory of `peer`; if not, begin to."""
        membership, incarnation = self._log.membership, self._incarnations.of(peer)
        if membership.knows(peer, incarnation):
            return self._log.membership_index <= self._log.commit
        with suppress(Unavailable, MembershipChangePending):
            self.change_membership(membership.with_incarnation(peer, incarnation))
        return False

    # ---------------------------------------------------------------- membership

    def change_membership(self, membership: Membership) -> int:
        """Append a membership that differs from the present one by one node; return its index.

        Raises Unavailable until an entry of this term is committed: before that, an earlier
        leader's change may still surface (the flaw in the thesis' first version of single-server
        changes, and its cure). Raises MembershipChangePending if the last change isn't committed.
        """
        if not self.can_read:
            raise Unavailable("no entry of this leader's term is committed yet; try again")
        if self._log.membership_index > self._log.commit:
            raise MembershipChangePending(
                "another change of membership is not committed yet; try again later"
            )
        changed = self._log.membership.changed(membership)
        assert len(changed) <= 1, "memberships differ by one node"
        return self.append(EntryKind.MEMBERSHIP, membership.encode(), 0, 0)

    def propose_admin(self, payload: bytes, time_us: int) -> int | None:
        """Append an administrative entry; None until an entry of this term is committed."""
        return self.append(EntryKind.ADMIN, payload, 0, time_us) if self.can_read else None

    def propose_restore(self, payload: bytes, time_us: int) -> int | None:
        """Append a RESTORE entry; None until an entry of this term is committed."""
        return self.append(EntryKind.RESTORE, payload, 1, time_us) if self.can_read else None

    def on_membership(self) -> None:
        """The log's membership has changed: follow new members, forget those that left."""
        members = self._log.membership.members
        self._followers.follow(members)
        assert self.progress.keys() == members.keys() - {self.id}, (
            "a leader follows all other members"
        )
        learners = {
            peer
            for peer in self.progress
            if not (members[peer].is_voter or members[peer].is_standby)
        }
        self._catch_ups.follow(learners, self._log.last_index)
        self._renew_lease()

    def catch_up_again(self, peer: int) -> None:
        """Give a learner that was too slow another set of rounds."""
        self._catch_ups.begin_again(peer, self._log.last_index)

    def has_given_up(self, peer: int) -> bool:
        """Whether a learner has used up its rounds."""
        return self._catch_ups.has_given_up(peer)

    def tick(self) -> None:
        """A tick has passed: make learners voters that have caught up."""
        self._catch_ups.tick()
        for peer in self._catch_ups.learners:
            match = self.progress[peer].counted
            if self._catch_ups.has_caught_up(peer, match, self._log.last_index):
                with suppress(Unavailable, MembershipChangePending):
                    incarnation = self._incarnations.of(peer)
                    self.change_membership(self._log.membership.with_voter(peer, incarnation))

    # ---------------------------------------------------------------- replication

    def _on_append_reply(self, message: AppendReply) -> None:
        """A follower has the entries on disk, or lacks the entries before them."""
        peer, progress = message.sender, self.progress[message.sender]
        progress.is_active = True
        progress.has_applied(message.applied, message.applied_sequence)
        if not message.ok:
            if progress.has_gone_back(message.index):
                self._events.append(
                    ReplicaLostLog(reporter=self.id, node_id=peer, acknowledged=progress.match)
                )
            next_index = self._log.hint(message.hint_index, message.hint_term)[0] + 1
            if progress.reject(message.index, next_index):
                self._followers.send_append(peer)
            return
        if message.index > self._log.last_index:
            return  # No correct node acknowledges entries that were never sent.
        if progress.acknowledge(message.index):
            self.advance_commit()
            self._followers.tell_watchers()
        if progress.mode is Mode.REPLICATE:
            self._followers.send_append(peer)
        if peer == self.transfer_target:
            self._finish_transfer(peer, progress)

    def _finish_transfer(self, target: int, progress: Progress) -> None:
        if progress.match == self._log.last_index:
            assert self._leases.current is None, "no lease once another may campaign (L4)"
            self._has_sent_timeout_now = True
            self._send(TimeoutNow(to=target, sender=self.id, term=self.term))

    def advance_commit(self) -> None:
        """A disk has more of the log: commit what a quorum holds, and record which disks do."""
        self._followers.disks_changed()
        before, matches = self._log.commit, self._followers.matches()
        self._commit(matches)
        commit = self._log.commit
        if commit != before:
            self._check_commit(before, commit, matches)
        self._log.durable_indexes.record(commit, matches)

    def _check_commit(self, before: int, commit: int, matches: Mapping[int, int]) -> None:
        """Assert the conditions that make a new commit index safe."""
        membership = self._log.membership
        holders = sum([matches[voter] >= commit for voter in membership.voters])
        assert commit > before, "commit never goes back"
        assert holders >= membership.quorum, "committed entries are on the disks of a quorum (R3)"
        assert self._has_committed, "only entries of this term are committed by counting (R4)"

    def _commit(self, matches: Mapping[int, int]) -> None:
        """Commit the entries that a quorum has on disk, if the last is of this term (R3, R4)."""
        log, membership = self._log, self._log.membership
        everywhere = min([log.persisted, *[p.match for p in self.progress.values()]])
        log.compact_index = max(log.compact_index, everywhere)
        ordered = sorted([matches[voter] for voter in membership.voters])
        index = ordered[-membership.quorum]
        if index <= log.commit or not self._may_commit(index):
            return
        assert ordered[-1] <= log.last_index, "no disk has more than the leader's log"
        log.commit_to(index)
        if self._leases.current is None:
            self._renew_lease()
        for peer, progress in self.progress.items():
            if progress.commit_sent < progress.notify_index <= index:
                self._followers.send_probe(peer, progress)
        self._begin_reads()

    def _may_commit(self, index: int) -> bool:
        """Whether entry `index` is of this term; figure 8 of the paper shows why it must be."""
        return self._log.term(index) == self.term

    # ---------------------------------------------------------------- heartbeats and reads

    def send_heartbeats(self) -> None:
        """Send a heartbeat to every follower; their replies confirm that this node leads."""
        # Read the clock before the heartbeats leave: a lease counts from here (L3).
        lease_ms, sent_ns = self._leases.lease_ms, self._clocks.boottime_ns()
        for peer, progress in self.progress.items():
            # Beyond `match` the follower's log may differ, so its commit index must end there.
            commit = min(progress.match, self._log.commit)
            self._send(
                Heartbeat(
                    to=peer,
                    sender=self.id,
                    term=self.term,
                    commit=commit,
                    read_round=self._reads.round,
                    behind=self._followers.behind(commit),
                    healing_generation=progress.healing_generation,
                    sent_ns=sent_ns,
                    lease_ms=lease_ms,
                )
            )

    def _on_heartbeat_reply(self, message: HeartbeatReply) -> None:
        """A follower confirms that this node leads."""
        peer, progress = message.sender, self.progress[message.sender]
        progress.is_active = True
        progress.has_fallen_back = False
        progress.has_applied(message.applied, message.applied_sequence)
        self._clocks.record(peer, message.sent_ns, message.time_us)
        self._confirm_healing(peer, progress)
        if message.promised_ms and message.sent_ns <= self._leases.clock_ns():
            # A time in the future can't be an echo of this leader's heartbeat.
            promised_until_ns = self._leases.end_of(message.sent_ns, message.promised_ms)
            progress.promised_until_ns = max(progress.promised_until_ns, promised_until_ns)
            self._renew_lease()
        if progress.mode is Mode.PROBE:
            self._followers.probe_again(peer, progress)
        elif progress.mode is Mode.REPLICATE and progress.match < self._log.last_index:
            # An append, or its reply, may be lost; the reply to this probe shows it.
            self._followers.send_probe(peer, progress)
        if peer in self._log.membership.voters and not progress.is_healing:
            answered = self._reads.record_reply(peer, message.read_round, self._others_needed())
            if answered is not None:
                self._answer_reads(*answered)

    def _renew_lease(self) -> None:
        """Hold a lease for as long as a quorum of the present voters has promised, if L4 allows."""
        if not self._leases.lease_ms:
            return
        is_handing_over = self.transfer_target is not None or self._has_sent_timeout_now
        if is_handing_over or not self.can_read:
            self._leases.withdraw()
            return
        assert self._has_committed, "no lease before an entry of this term is committed (L4)"
        membership = self._log.membership
        ends = [
            FOR_EVER if voter == self.id else self._promised_until(voter)
            for voter in membership.voters
        ]
        self._leases.renew(ends, membership.quorum)

    def _promised_until(self, voter: int) -> int:
        progress = self.progress[voter]
        return 0 if progress.is_healing else progress.promised_until_ns

    @property
    def can_read(self) -> bool:
        """Whether the commit index is from this term (R8)."""
        return self._log.term(self._log.commit) == self.term

    def read(self, node: int, read_id: int) -> None:
        """`node` asks for a read index for its reads `read_id`."""
        self._reads.add(Read(node, read_id))
        self._begin_reads()

    def _begin_reads(self) -> None:
        """Start a round for the waiting reads, unless one is under way or it is too early (R8)."""
        if not self._reads.has_waiting or self._reads.is_asking or not self.can_read:
            return
        assert self._has_committed, "a read index is of the leader's own term (R8)"
        self._reads.begin(self._log.commit)
        if self._others_needed() == 0 or self._leases.holds():
            self._answer_reads(*self._reads.finish())
        else:
            self.send_heartbeats()

    def _others_needed(self) -> int:
        """How many other voters must reply for a quorum."""
        membership = self._log.membership
        return membership.quorum - (self.id in membership.voters)

    def _answer_reads(self, index: int, reads: list[Read]) -> None:
        for read in reads:
            if read.node == self.id:
                self._read_states.append(ReadState(read.read_id, index))
                continue
            self._send(
                ReadReply(
                    to=read.node, sender=self.id, term=self.term, read_id=read.read_id, index=index
                )
            )
            # The node waits until it has applied `index`: send the commit index at once, rather
            # than with the next heartbeat.
            progress = self.progress.get(read.node)
            if progress is not None and progress.commit_sent < index:
                self._followers.send_probe(read.node, progress)
        self._begin_reads()
