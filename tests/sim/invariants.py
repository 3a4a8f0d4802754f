"""What must hold after every event, whatever happens.

Theory of operation. The invariants see what no member can: all of them at once, and the past. They
keep what has been shown to be true (which hash an entry of a certain index and term has, which
member leads a term or has a vote, what is committed, what each disk must hold) and compare each
member with it whenever an event has touched the member, a message is sent, or a write is durable.
Chained hashes make this cheap: two logs that agree on one hash agree on all before it.

    election safety        at most one leader a term
    vote                   a member never votes for two candidates in a term, restarts or not
    persisted first        what a message says of term, vote and log is on the sender's disk
    log matching           one hash for an index and term; leaders send only what their log holds
    acknowledged           a follower keeps what it has acknowledged to the leader of the same term
    leader completeness    a leader has all that was committed in earlier terms
    commitment             what is committed is on the disks of a majority of the voters in the
                           leader's log, and never changes
    membership             see `memberships.py` state machine safety   what a member has applied is
    the committed log monotonic              term, commit and applied never go back; votes don't
    change receipts               a node named in a receipt has the write on disk; they are a
    majority while
                           the leader that wrote it is the last one
    durability             a restarted member finds what it had made durable
    snapshots              a snapshot takes the place only of a log that doesn't hold what is in it
    log time               never goes back along the log, whatever the clocks of leaders do; and see
                           `wrong_clocks.py`
    failovers              see `failovers.py`
    silent leaders         see `contact.py`
    removed                who knows that it was removed neither leads nor campaigns
    healing                a healing member gives no vote, and a leader that knows doesn't count it;
                           what it did before it lost its log was then on its disk

A member that loses its log begins another *era*: its healing generation tells them apart.
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence

from raftha.core import Append, AppendReply, Raft, RaftLog, Role, VoteReply, VoteRequest, Write
from raftha.entry import LOG_START, Entry, EntryKind, HardState, LogPosition
from raftha.membership import Membership
from raftha.node.messages import PeerMessage
from raftha.storage.log.wal import Wal
from tests.sim.failovers import Failovers
from tests.sim.member import Member
from tests.sim.memberships import Memberships, voters
from tests.sim.oracle import Oracle
from tests.sim.world import Violation


class DurableLog:
    """What a member's disk must hold: everything that was appended and not superseded."""

    def __init__(self) -> None:
        self.hard_state = HardState(0, 0, 0)
        self._hashes: list[bytes] = []

    def lose(self, hashes: list[bytes], position: LogPosition) -> None:
        """The log was set aside; another one begins after the last applied entry."""
        self.hard_state = HardState(position.term, 0, position.index)
        self._hashes = hashes

    def begin_anew(self, hashes: list[bytes], term_reached: int) -> None:
        """A snapshot replaced the log, whose entries would have these hashes."""
        term, vote, commit = self.hard_state
        if term_reached > term:
            term, vote = term_reached, 0
        self.hard_state = HardState(term, vote, max(commit, len(hashes)))
        self._hashes = hashes

    @property
    def last(self) -> tuple[int, bytes]:
        """Index and hash of the last entry."""
        return len(self._hashes), self._hashes[-1] if self._hashes else LOG_START.hash

    def hash_at(self, index: int) -> bytes | None:
        """The hash of an entry; None if it isn't there."""
        if index == 0:
            return LOG_START.hash
        return self._hashes[index - 1] if index <= len(self._hashes) else None

    def append(self, hard_state: HardState | None, entries: Sequence[Entry]) -> None:
        """A write is durable."""
        if hard_state is not None:
            self.hard_state = hard_state
        if entries:
            del self._hashes[entries[0].index - 1 :]
            self._hashes += [entry.hash for entry in entries]


class _Seen:
    """The last observations of a member; the first half belongs to one life of it."""

    def __init__(self) -> None:
        self.term = self.vote = self.commit = self.applied = 0
        self.acknowledged = (0, 0)
        self.marks: tuple[object, ...] = ()
        self.durable = DurableLog()
        self.writing: Write | None = None
        self.reset: LogPosition | None = None
        self.wiped: list[DurableLog] = []
        """The entries on the disks that this member has lost, acknowledged in their time."""
        self.era = 0
        self.eras: dict[int, DurableLog] = {}
        """The entries of its log in earlier eras."""

    def has_had(self, entry: Entry) -> bool:
        """Whether the entry is, or was, on a disk of this member."""
        disks = (self.durable, *self.eras.values(), *self.wiped)
        return any(disk.hash_at(entry.index) == entry.hash for disk in disks)

    def had_in(self, era: int, entry: Entry) -> bool:
        """Whether the entry was on this member's disk in an era, or on one that was wiped.

        `durable` is the log of all eras since the last loss. A loss is recorded, and so begins an
        era, before the log is set aside.
        """
        log = self.durable if era >= self.era else self.eras.get(era)
        disks = (*self.wiped, log) if log is not None else self.wiped
        return any(disk.hash_at(entry.index) == entry.hash for disk in disks)


class Invariants:
    """Everything that is known to be true of one cluster."""

    def __init__(
        self,
        members: Mapping[int, Member],
        first: Membership,
        sessions_max: int,
        check_time: Callable[[Entry], None] = lambda entry: None,
    ) -> None:
        """`check_time` is called with each entry as it is committed."""
        self.committed: list[Entry] = []
        self._committed_at_start = 0
        self.oracle = Oracle(sessions_max)
        self._commit_terms: list[int] = []
        self._members = members
        self._check_time = check_time
        self._first = first
        self.memberships = Memberships(first, self.committed)
        self.on_versions: Callable[[int, Collection[int]], None] = lambda used, members: None
        """Told the version of the machine that the log uses, and the members at that entry."""
        self.on_admin: Callable[[Entry], None] = lambda entry: None
        """Told each other administrative entry, and each that restores."""
        self._seen = {node_id: _Seen() for node_id in members}
        self.leaders: dict[int, int] = {}
        """The leader of each term."""
        self.failovers = Failovers(members, self.leaders)
        self._hashes: dict[tuple[int, int], bytes] = {}
        self._votes: dict[tuple[int, int], int] = {}
        self._eras: dict[tuple[int, int, int], int] = {}
        """The vote of a member in an era and a term."""

    # ---------------------------------------------------------------- after an event

    def check(self, member: Member) -> None:
        """An event has touched this member."""
        assert member.node is not None
        core, applied = member.node.core, member.node.state.applied
        log = core.log
        seen = self._seen[member.id]
        marks = (core.term, core.vote, core.role, log.commit, log.last_index, applied.index)
        if marks == seen.marks:
            return
        seen.marks = marks
        if core.term < seen.term:
            raise Violation(f"node {member.id} went from term {seen.term} back to {core.term}")
        if core.term == seen.term and seen.vote not in (0, core.vote):
            raise Violation(f"node {member.id} changed its vote in term {core.term}")
        term, index = seen.acknowledged
        if core.term == term and log.last_index < index:
            raise Violation(f"node {member.id} dropped entries that it acknowledged up to {index}")
        if core.term != seen.term:
            self.failovers.on_term(member, core.term)
        seen.term, seen.vote = core.term, core.vote
        if core.role is not Role.FOLLOWER and core.is_removed:
            raise Violation(f"node {member.id} was removed, knows it, and is {core.role.value}")
        if core.role is Role.LEADER:
            self._check_leader(core)
        if log.commit != seen.commit:
            self._check_commit(member, log, seen)
        if applied.index != seen.applied:
            self._check_applied(member.id, applied, log, seen)
        if member.founding is None:
            self.memberships.check(core)

    def _check_leader(self, core: Raft) -> None:
        node_id, term = core.id, core.term
        if term in self.leaders:
            if self.leaders[term] != node_id:
                other = self.leaders[term]
                raise Violation(f"term {term} has two leaders, {other} and {node_id}")
            return
        self.leaders[term] = node_id
        self.memberships.check_elected(core, self._votes)
        # A candidate may get its votes late, when a later leader has long been committing.
        index = bisect_right(self._commit_terms, term)
        if index and not _holds(core.log, self.committed[index - 1]):
            raise Violation(
                f"node {node_id} leads term {term} without entry {index}, "
                f"which was committed in term {self._commit_terms[index - 1]}"
            )

    def _check_commit(self, member: Member, log: RaftLog, seen: _Seen) -> None:
        if log.commit < seen.commit:
            raise Violation(f"node {member.id} took commit back from {seen.commit}")
        for entry in log.between(max(seen.commit, log.anchor.index), log.commit):
            if entry.index <= len(self.committed):
                if self.committed[entry.index - 1].hash != entry.hash:
                    raise Violation(
                        f"node {member.id} committed another entry {entry.index} "
                        f"than was committed before"
                    )
            else:
                self._commit(member, entry)
        seen.commit = log.commit

    def _record(self, entry: Entry, term: int) -> None:
        """An entry is committed in `term`, for the first time anywhere."""
        assert entry.index == len(self.committed) + 1
        assert not self._commit_terms or term >= self._commit_terms[-1]
        if self.committed and entry.time_us < self.committed[-1].time_us:
            raise Violation(f"entry {entry.index} is older than the one before it")
        self._check_time(entry)
        self.committed.append(entry)
        self._commit_terms.append(term)
        self.oracle.apply(entry)
        if entry.kind == EntryKind.ADMIN and self.oracle.admin == "versions":
            self.on_versions(self.oracle.machine_version, self.memberships.latest.members.keys())
        elif entry.kind in (EntryKind.ADMIN, EntryKind.RESTORE):
            self.on_admin(entry)

    def _commit(self, member: Member, entry: Entry) -> None:
        assert member.node is not None
        term = member.node.core.term
        self._record(entry, term)
        # The first to commit is the leader, so it is its membership that counts.
        electorate = voters(self.memberships.in_force(member.node.core.log))
        holders = [
            voter for voter in sorted(electorate) if self._is_holder(member.node.core, voter, entry)
        ]
        if 2 * len(holders) <= len(electorate):
            raise Violation(
                f"node {member.id} committed entry {entry.index} which is on the disks of "
                f"{holders}, the voters are {sorted(electorate)}"
            )
        self.memberships.commit(entry)
        for other in self._members.values():
            if other.node is not None and other.node.core.is_leader and not other.is_outcast:
                core = other.node.core
                if core.term >= term and not _holds(core.log, entry):
                    raise Violation(
                        f"node {other.id} leads term {core.term} without entry {entry.index}, "
                        f"which node {member.id} committed in term {term}"
                    )

    def _is_holder(self, leader: Raft, voter: int, entry: Entry) -> bool:
        """Whether `leader` may count this voter for an entry."""
        era = self._members[voter].node_files.healing_generation
        if voter != leader.id and leader.is_leader:
            # It relies on what the voter reported before it lost its log, if it doesn't know of the
            # loss.
            era = leader.progress[voter].healing_generation
        return era % 2 == 0 and self._seen[voter].had_in(era, entry)

    def _check_applied(self, node_id: int, applied: LogPosition, log: RaftLog, seen: _Seen) -> None:
        if applied.index < seen.applied or applied.index > log.commit:
            raise Violation(
                f"node {node_id} applied {applied.index} after {seen.applied}, with {log.commit} "
                f"committed"
            )
        if self.committed[applied.index - 1].hash != applied.hash:
            raise Violation(f"node {node_id} applied another entry {applied.index}")
        if seen.durable.hash_at(applied.index) != applied.hash:
            raise Violation(f"node {node_id} applied {applied.index} before it was durable there")
        seen.applied = applied.index
        node = self._members[node_id].node
        if node is not None and applied.index == len(self.committed):
            used, oracle = node.state.versions, self.oracle
            found = (0, frozenset()) if used is None else (used.machine, used.commands)
            if found != (oracle.machine_version, oracle.commands):
                raise Violation(f"node {node_id} uses {used} after entry {applied.index}")

    # ---------------------------------------------------------------- what is sent

    def on_send(self, member: Member, message: PeerMessage) -> None:
        """A message leaves."""
        match message:
            case VoteRequest() | VoteReply(granted=True) if member.node_files.is_healing:
                raise Violation(f"node {member.id} takes part in an election while it heals")
            case VoteRequest(pre=True) | VoteReply(pre=True):
                return
            case VoteRequest():
                self._check_vote(member, message.term, member.id)
            case VoteReply(granted=True):
                self._check_vote(member, message.term, message.to)
            case AppendReply(ok=True):
                self._check_acknowledgement(member.id, message)
            case Append():
                self._check_append(member, message)
            case _:
                pass
        term = getattr(message, "term", 0)
        durable = self._seen[member.id].durable.hard_state
        if term > durable.term:
            raise Violation(
                f"node {member.id} speaks for term {term}, its disk says {durable.term}"
            )

    def _check_vote(self, member: Member, term: int, candidate: int) -> None:
        node_id = member.id
        # A vote that was lost with the log may be given again: its first candidate can't win.
        self._votes[node_id, term] = candidate
        earlier = self._eras.setdefault(
            (node_id, member.node_files.healing_generation, term), candidate
        )
        if earlier != candidate:
            raise Violation(
                f"node {node_id} voted for {earlier} and for {candidate} in term {term}"
            )

    def _check_acknowledgement(self, node_id: int, message: AppendReply) -> None:
        seen = self._seen[node_id]
        if seen.durable.hash_at(message.index) is None:
            raise Violation(
                f"node {node_id} acknowledged {message.index}, "
                f"its disk goes up to {seen.durable.last[0]}"
            )
        seen.acknowledged = max(seen.acknowledged, (message.term, message.index))

    def _check_append(self, member: Member, message: Append) -> None:
        assert member.node is not None
        core, log = member.node.core, member.node.core.log
        for entry in message.entries:
            self._check_entry(entry)
            if core.term > message.term:
                continue  # It was made in the same turn, before the leader learned of a later term.
            if entry.index > log.last_index or log.term(entry.index) not in (None, entry.term):
                raise Violation(
                    f"node {member.id} sent entry {entry.index} of term {entry.term}, "
                    f"which is not in its log"
                )

    def _check_entry(self, entry: Entry) -> None:
        if self._hashes.setdefault((entry.index, entry.term), entry.hash) != entry.hash:
            raise Violation(f"two different entries {entry.index} of term {entry.term}")

    def check_acknowledged(self, index: int, acked_by: Sequence[int]) -> None:
        """A caller is told that entry `index` is on these disks, at this moment."""
        entry = self.committed[index - 1]
        for holder in acked_by:
            if not self._seen[holder].has_had(entry):
                raise Violation(f"node {holder} is said to have entry {index} on its disk")
        # A new leader must first hear from the others, and a restarted node from its leader: they
        # may know less than is true.
        if entry.term != max(self.leaders) or index <= self._committed_at_start:
            return
        first = voters(self._first)
        up = [member.node.core for member in self._members.values() if member.node is not None]
        # A node that the log has removed, committed or not, isn't named, although its disk counted.
        is_as_first = all(voters(core.membership) == first for core in up if not core.is_removed)
        if is_as_first and 2 * len(first & {*acked_by}) <= len(first):
            raise Violation(f"only {acked_by} are known to have entry {index}")

    def on_told_removed(self, member: Member) -> None:
        """Another member says that this one was removed, and is believed."""
        if member.id not in self.memberships.latest.removed:
            raise Violation(f"node {member.id} is told that it was removed, and is a member")

    # ---------------------------------------------------------------- what is durable

    def on_writing(self, member: Member, write: Write) -> None:
        """A write was handed to the disk."""
        for entry in write.entries:
            self._check_entry(entry)
        self._seen[member.id].writing = write

    def on_durable(self, member: Member, write: Write) -> None:
        """A write has come back from the disk."""
        seen = self._seen[member.id]
        seen.durable.append(write.hard_state, write.entries)
        seen.writing = None

    def on_start(self, member: Member) -> None:
        """A member has found its log again."""
        self._committed_at_start = len(self.committed)
        self.on_found(member)
        self._forget(member, self._seen[member.id])

    def on_found(self, member: Member) -> None:
        """A member's log has been opened."""
        assert member.wal is not None
        seen = self._seen[member.id]
        reset, seen.reset = seen.reset, None
        if reset is not None and member.wal.base == reset:
            hashes = [entry.hash for entry in self.committed[: reset.index]]
            seen.durable.begin_anew(hashes, reset.term)
        else:
            self._check_found(member, member.wal, seen)
        if seen.durable.hash_at(member.wal.base.index) != member.wal.base.hash:
            raise Violation(f"node {member.id} found another entry {member.wal.base.index}")
        seen.writing = None

    def on_recovered(self, member: Member, hard_state: HardState, entries: Sequence[Entry]) -> None:
        """An operator has made this member the whole cluster: its log, which ends so, counts."""
        new = entries[-1]
        if new.index <= len(self.committed):
            raise Violation(f"node {member.id} gives up entry {new.index}, which was committed")
        self._seen[member.id].durable.append(hard_state, [new])
        self.memberships.forks.add(new.hash)
        for entry in entries:
            if entry.index > len(self.committed):
                self._record(entry, hard_state.term)
                self.memberships.commit(entry)

    def has_all_committed(self, member: Member) -> bool:
        """Whether all that is committed is on this member's disk."""
        index, is_whole = len(self.committed), not member.node_files.is_healing
        found = self._seen[member.id].durable.hash_at(index)
        return is_whole and index > 0 and found == self.committed[-1].hash

    def on_loss(self, member: Member, position: LogPosition) -> None:
        """A member has set its log aside, and begun another one at `position`."""
        seen, era = self._seen[member.id], member.node_files.healing_generation
        if era != seen.era:
            seen.eras |= dict.fromkeys(range(seen.era, era), seen.durable)
            seen.durable, seen.era = DurableLog(), era
        hashes = [entry.hash for entry in self.committed[: position.index]]
        seen.durable.lose(hashes, position)
        seen.acknowledged, seen.writing, seen.reset = (0, 0), None, None

    def on_reset(self, member: Member, wal: Wal, position: LogPosition) -> None:
        """A member that starts is about to reset its log."""
        seen = self._seen[member.id]
        self._check_found(member, wal, seen)
        seen.writing, seen.reset = None, position
        if self.committed[position.index - 1].hash != position.hash:
            raise Violation(f"node {member.id} installs another entry {position.index}")
        if seen.durable.hash_at(position.index) == position.hash:
            raise Violation(f"node {member.id} installs a snapshot over entry {position.index}")

    def on_wipe(self, member: Member) -> None:
        """A member has lost its disk, and everything that it knew."""
        before = self._seen[member.id]
        seen = self._seen[member.id] = _Seen()
        seen.wiped = [*before.wiped, before.durable]

    def copy_durable(self, member: Member) -> DurableLog | None:
        """What is durable on this member's disk now; None if a write is under way, or a loss."""
        seen = self._seen[member.id]
        is_quiet = seen.writing is None and seen.reset is None and not member.node_files.lost
        return copy.deepcopy(seen.durable) if is_quiet else None

    def put_back(self, member: Member, durable: DurableLog) -> int:
        """Its directory is an earlier copy, in which this was durable; how many entries it lost."""
        seen = self._seen[member.id]
        lost = seen.durable.last[0] - durable.last[0]
        # It was acknowledged in its time, and the leader counts it until the loss is known.
        seen.wiped = [*seen.wiped, seen.durable]
        seen.durable, seen.writing, seen.reset = durable, None, None
        seen.acknowledged = (0, 0)
        return lost

    def _check_found(self, member: Member, wal: Wal, seen: _Seen) -> None:
        writing, durable = seen.writing, seen.durable
        found = (wal.last.index, wal.last.hash)
        sealed = wal.hard_state.commit
        if durable.hard_state.commit < sealed <= min(durable.last[0], len(self.committed)):
            # It was sealed meanwhile.
            durable.hard_state = durable.hard_state._replace(commit=sealed)
        is_old = wal.hard_state == durable.hard_state and found == durable.last
        if not is_old and writing is not None:
            # A crash in the middle of a write may leave any first part of it.
            kept = [entry for entry in writing.entries if entry.index <= wal.last.index]
            durable.append(writing.hard_state, kept)
        if wal.hard_state != durable.hard_state:
            raise Violation(
                f"node {member.id} found {wal.hard_state} on its disk instead of "
                f"{durable.hard_state}"
            )
        if found != durable.last:
            raise Violation(
                f"node {member.id} found a log that ends at {wal.last.index} instead of "
                f"{durable.last[0]}"
            )

    def _forget(self, member: Member, seen: _Seen) -> None:
        assert member.node is not None
        applied = member.node.state.applied
        if applied.index and self.committed[applied.index - 1].hash != applied.hash:
            raise Violation(f"node {member.id} starts from another entry {applied.index}")
        durable = seen.durable
        seen.marks = ()
        self.failovers.forget(member.id)
        seen.term, seen.vote = durable.hard_state.term, durable.hard_state.vote
        seen.commit = seen.applied = applied.index


def _holds(log: RaftLog, entry: Entry) -> bool:
    """Whether a leader's log has this committed entry; what it has applied was checked before."""
    place = entry.index - log.anchor.index - 1
    if place >= len(log.window):
        return False
    return place < 0 or log.window[place].hash == entry.hash
