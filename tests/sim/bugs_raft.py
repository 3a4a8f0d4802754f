"""Bugs to plant in consensus, membership, reads and sessions. See `bugs.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raftha.core import Append, Heartbeat, RaftLog, ReadState, Role, VoteReply, VoteRequest
from raftha.core import leader as leader_module
from raftha.core.durable_indexes import encode_behind
from raftha.core.election import Election
from raftha.core.followers import Followers
from raftha.core.leader import Leadership
from raftha.core.messages import Message
from raftha.core.outbox import Outbox
from raftha.core.reads import Read, ReadRounds
from raftha.entry import Entry, EntryKind, Group, HardState, LogPosition, make_entry
from raftha.errors import Unavailable
from raftha.membership import Membership
from raftha.node.log_clock import LogClock
from raftha.node.reads import ReadQueue
from raftha.node.submissions import InFlight, Submissions
from raftha.storage.log.wal import Wal
from raftha.storage.state.sessions import Outcome, Sessions
from tests.sim.planting import Bug, Patch


def vote_not_persisted() -> list[Patch]:
    """The term is written to the disk, but not the vote in it (R1)."""
    original = Wal.append

    def append(self: Wal, hard_state: HardState | None, entries: Sequence[Entry]) -> None:
        forgetful = hard_state._replace(vote=0) if hard_state is not None else None
        original(self, forgetful, entries)

    return [(Wal, "append", append)]


def commit_older_term_by_counting() -> list[Patch]:
    """An entry of an earlier term counts as committed once a majority has it (R4, figure 8)."""

    def may_commit(self: Leadership, index: int) -> bool:
        return True

    return [(Leadership, "_may_commit", may_commit)]


def truncate_without_conflict() -> list[Patch]:
    """A follower drops what is behind an append's entries, even if they match (R6)."""

    def merge(self: RaftLog, message: Append) -> int | None:
        prev_index, entries = message.prev_index, message.entries
        if prev_index < self.commit:
            entries = entries[self.commit - prev_index :]
            if not entries:
                return self.commit
        elif self.term(prev_index) != message.prev_term:
            return None
        if entries:
            self._extend(entries)
        return entries[-1].index if entries else prev_index

    return [(RaftLog, "merge", merge)]


def dedup_dropped() -> list[Patch]:
    """A group that comes again is applied again."""
    original = Sessions.admit

    def admit(self: Sessions, group: Group, entry: Entry, first_sequence: int) -> Outcome | None:
        session = self._sessions.get(group.session)
        if session is None or group.number < session.floor:
            return original(self, group, entry, first_sequence)
        kept = session.kept.pop(group.number, None)
        if kept is not None:
            session.size -= kept.size
            self._size -= kept.size
        return None

    return [(Sessions, "admit", admit)]


def reply_before_durable() -> list[Patch]:
    """A follower acknowledges entries that are on their way to its disk (R2)."""

    def send(self: Outbox, message: Message, term: int, vote: int) -> None:
        (self._now if self.is_durable(term, vote) else self._held).append(message)

    return [(Outbox, "send", send)]


def leader_counts_itself_early() -> list[Patch]:
    """A leader counts its own disk in before the write is done (R3)."""
    original = Leadership._commit

    def commit(self: Leadership, matches: Mapping[int, int]) -> None:
        persisted, self._log.persisted = self._log.persisted, self._log.last_index
        original(self, {**matches, self.id: self._log.last_index})
        self._log.persisted = persisted

    return [(Leadership, "_commit", commit)]


def receipts_name_who_was_only_sent_it() -> list[Patch]:
    """A leader says that an entry is on a follower's disk once it is on its way there."""

    def behind(self: Followers, commit: int) -> tuple[int, ...]:
        sent = {peer: progress.next - 1 for peer, progress in self.progress.items()}
        return encode_behind(commit, {self.id: self._log.persisted, **sent})

    return [(Followers, "behind", behind)]


def read_without_quorum() -> list[Patch]:
    """A leader answers reads without asking whether it still leads (R8)."""

    def begin_reads(self: Leadership) -> None:
        if self._reads.has_waiting and not self._reads.is_asking and self.can_read:
            self._reads.begin(self._log.commit)
            self._answer_reads(*self._reads.finish())

    return [(Leadership, "_begin_reads", begin_reads)]


def read_before_own_commit() -> list[Patch]:
    """A new leader answers reads from a commit index of an earlier term (R8)."""
    original = Leadership.change_membership

    def change_membership(self: Leadership, membership: Membership) -> int:
        if self._log.term(self._log.commit) != self.term:
            raise Unavailable("that is another bug")
        return original(self, membership)

    return [
        (Leadership, "can_read", property(lambda self: True)),
        (Leadership, "change_membership", change_membership),
    ]


def old_round_confirms_read() -> list[Patch]:
    """A reply to an earlier round of heartbeats confirms a later read (R8)."""
    original = ReadRounds.record_reply

    def record_reply(
        self: ReadRounds, peer: int, read_round: int, needed: int
    ) -> tuple[int, list[Read]] | None:
        return original(self, peer, self.round, needed)

    return [(ReadRounds, "record_reply", record_reply)]


def read_before_applied() -> list[Patch]:
    """A confirmed read runs before the state has applied the read index."""

    def answer(self: ReadQueue, answers: Sequence[ReadState]) -> bool:
        for read_id, _ in answers:
            if read_id == self._id and self._asking:
                self._confirmed.append((0, self._asking, self._asked_at))
                self._asking = []
        return False

    return [(ReadQueue, "answer", answer)]


def vote_for_shorter_log() -> list[Patch]:
    """A vote is given to a candidate whose log lacks what the voter has (paper 5.4.1)."""

    def is_up_to_date(self: RaftLog, last_index: int, last_term: int) -> bool:
        return True

    return [(RaftLog, "is_up_to_date", is_up_to_date)]


def vote_twice() -> list[Patch]:
    """A second candidate of the same term gets a vote, too."""

    def on_vote_request(self: Election, message: VoteRequest) -> None:
        granted = self._log.is_up_to_date(message.last_index, message.last_term)
        if granted and not message.pre:
            self.vote = message.sender
        term = message.term if granted else self.term
        self.send(VoteReply(message.sender, self.id, term, granted, message.pre))

    return [(Election, "on_vote_request", on_vote_request)]


def heartbeat_commits_unmatched() -> list[Patch]:
    """A heartbeat's commit index isn't limited to what the follower is known to have."""

    def send_heartbeats(self: Leadership) -> None:
        for peer, progress in self.progress.items():
            commit = self._log.commit
            self._send(
                Heartbeat(
                    to=peer,
                    sender=self.id,
                    term=self.term,
                    commit=commit,
                    read_round=self._reads.round,
                    behind=self._followers.behind(commit),
                    healing_generation=progress.healing_generation,
                )
            )

    return [(Leadership, "send_heartbeats", send_heartbeats)]


def sent_counts_as_unsent() -> list[Patch]:
    """A write that has left the node is called rejected when its deadline passes."""

    def send(self: Submissions, group: InFlight) -> None:
        group.sent_at = self._now()
        self._route(group)

    return [(Submissions, "_send", send)]


def changes_overlap() -> list[Patch]:
    """Members change while the last change, or the leader's own term, isn't committed."""

    def change_membership(self: Leadership, membership: Membership) -> int:
        return self.append(EntryKind.MEMBERSHIP, membership.encode(), 0, 0)

    return [(Leadership, "change_membership", change_membership)]


def learners_count() -> list[Patch]:
    """A learner's vote and disk count like a voter's."""
    return [(Membership, "voters", property(lambda self: tuple(sorted(self.members))))]


def quorum_of_the_old_members() -> list[Patch]:
    """A leader counts the disks of those who were voters when it was elected, too."""
    original, present = Leadership.on_membership, Leadership._commit

    def on_membership(self: Leadership) -> None:
        original(self)
        if not hasattr(self, "_first"):
            self._first = self._log.membership  # type: ignore[attr-defined]

    def commit(self: Leadership, counted: Mapping[int, int]) -> None:
        present(self, counted)
        first: Membership = self._first  # type: ignore[attr-defined]
        matches = {peer: progress.match for peer, progress in self.progress.items()}
        matches[self.id] = self._log.persisted
        index = sorted(matches.get(voter, 0) for voter in first.voters)[-first.quorum]
        if index > self._log.commit and self._may_commit(index):
            self._log.commit = index
            self._begin_reads()

    return [
        (Leadership, "on_membership", on_membership),
        (Leadership, "_commit", commit),
    ]


def removed_nodes_vote() -> list[Patch]:
    """Candidates ask removed nodes for votes, too, and count them."""
    campaign = Election._campaign

    def ask_more(self: Election, *, pre: bool, transfer: bool = False) -> None:
        campaign(self, pre=pre, transfer=transfer)
        term = self.term + 1 if pre else self.term
        last = self._log.last_index, self._log.last_term
        for peer in sorted(self._log.membership.removed - {self.id}):
            self.send(VoteRequest(peer, self.id, term, *last, pre, transfer))

    def count_vote(self: Election, voter: int, granted: bool) -> bool:
        self._votes.setdefault(voter, granted)
        if sum(self._votes.values()) < self._log.membership.quorum:
            return False
        if self.role is Role.CANDIDATE:
            return self._votes.get(self.id, False)
        self._campaign(pre=False)
        return False

    return [(Election, "_campaign", ask_more), (Election, "_count_vote", count_vote)]


def membership_outlives_its_entry() -> list[Patch]:
    """A membership still holds when its entry has been cut off."""
    original = RaftLog._extend

    def extend(self: RaftLog, entries: tuple[Entry, ...]) -> None:
        index, membership = self._memberships[-1]
        original(self, entries)
        if self.membership_index < entries[0].index <= index:
            self._memberships.append((self.last_index, membership))

    return [(RaftLog, "_extend", extend)]


def removed_node_campaigns() -> list[Patch]:
    """A node goes on asking for votes although it was told that it was removed."""

    def is_voter(self: Election) -> bool:
        is_whole = not self._healing_generation.is_healing
        return is_whole and self.id in self._log.membership.voters

    return [(Election, "is_voter", property(is_voter))]


def log_time_goes_back() -> list[Patch]:
    """An entry has the time of its leader's clock, even if that is before the last entry's."""

    def by_the_clock(
        previous: LogPosition, term: int, time_us: int, kind: EntryKind, payload: bytes, count: int
    ) -> Entry:
        earlier = previous._replace(time_us=0) if time_us else previous
        return make_entry(earlier, term, time_us, kind, payload, count)

    def stamp(self: LogClock, last_us: int) -> int:
        return self._clock.time_us()

    return [(leader_module, "make_entry", by_the_clock), (LogClock, "stamp", stamp)]


def applied_before_durable() -> list[Patch]:
    """A follower applies what is committed before its own disk has it (R5)."""

    def take_committed(self: RaftLog) -> tuple[Entry, ...]:
        last = self.commit
        if last <= self.applied:
            return ()
        committed = self.between(self.applied, last)
        persisted, self.persisted = self.persisted, max(self.persisted, last)
        self.mark_applied(last)
        self.persisted = persisted
        return committed

    return [(RaftLog, "take_committed", take_committed)]


# Found by this simulation in the real code; put back to see that they would be found again. (Two
# more have unit tests only: old answers from the disk take thousands of seeds, and a needless
# question for entry 1 now costs no more than a snapshot of the state.)


def waiting_reads_spin() -> list[Patch]:
    """A node with reads and no leader takes turn after turn without a pause."""
    original = ReadQueue.answer

    def answer(self: ReadQueue, answers: Sequence[ReadState]) -> bool:
        original(self, answers)
        return bool(self._waiting) and not self._asking

    return [(ReadQueue, "answer", answer)]


BUGS: tuple[Bug, ...] = (
    vote_not_persisted,
    commit_older_term_by_counting,
    truncate_without_conflict,
    dedup_dropped,
    reply_before_durable,
    leader_counts_itself_early,
    receipts_name_who_was_only_sent_it,
    read_without_quorum,
    read_before_own_commit,
    old_round_confirms_read,
    read_before_applied,
    vote_for_shorter_log,
    vote_twice,
    heartbeat_commits_unmatched,
    sent_counts_as_unsent,
    changes_overlap,
    learners_count,
    quorum_of_the_old_members,
    removed_nodes_vote,
    membership_outlives_its_entry,
    removed_node_campaigns,
    log_time_goes_back,
    applied_before_durable,
    waiting_reads_spin,
)
