"""The log as the core sees it: a window of recent entries in memory, pointers for the rest.

Theory of operation. `window` holds the entries after `anchor`. It always has every entry that isn't
applied yet; applied entries stay while they fit `window_bytes_max`. Older entries are on disk only,
from `first_index` on. The core requests them with a `LogRead` when a follower needs them.

    anchor.index <= applied <= commit <= last        applied <= persisted <= written <= last

Every entry that the state has applied is on disk. `written` runs ahead of `persisted`: it is the
last entry handed out for writing. Every member is known to have the log on disk up to
`compact_index`; `durable_indexes` has the index of each member.

A RESTORE entry stops the application of entries in front of it: the state can't apply it unless it
is refused, so the caller is told (`take_restore`), and lets it pass or ends this node.

`merge` checks everything that a leader sends before it takes any of it. Entries that can't follow
this log are a `LogMismatch`. Asserts are about this log only.
"""

from __future__ import annotations

from collections.abc import Sequence

from raftha.core.durable_indexes import DurableIndexes
from raftha.core.messages import Append
from raftha.entry import ENTRY_BYTES_MAX, Entry, EntryKind, LogPosition, follows
from raftha.events import MembershipChanged
from raftha.membership import Membership

STOPPED_BYTES_MAX = 64 << 20
"""Entries in memory of a node that stands in front of a RESTORE, if the window isn't larger."""


class LogMismatch(Exception):
    """Entries that can't continue this log: damaged on the way, or from a faulty sender."""


class RaftLog:
    """Entries, and the pointers into them; no I/O."""

    def __init__(
        self,
        first_index: int,
        anchor: LogPosition,
        entries: Sequence[Entry],
        window_bytes_max: int,
        membership: Membership,
    ) -> None:
        """Start with what is on disk: `anchor` is applied, `entries` follow it.

        `membership` is the one in force at `anchor`; entries may change it.
        """
        assert first_index <= anchor.index + 1, "the disk has all entries that follow the state"
        self.first_index = first_index
        self.anchor = anchor
        self.window = list(entries)
        self._window_bytes = sum(len(entry.data) for entry in entries)
        self._window_bytes_max = window_bytes_max
        previous: Entry | LogPosition = anchor
        for entry in self.window:
            assert entry.index == previous.index + 1, "the log on disk has no gap"
            assert entry.term >= previous.term, "terms never decrease along the log"
            previous = entry
        self.applied = self.commit = anchor.index
        self.applied_sequence = anchor.last_sequence
        self.compact_index = 0
        self.known_commit = anchor.index
        """The highest commit index that a leader has reported; this log may still lack entries."""
        self.persisted = self.written = self.last_index
        self.durable_indexes = DurableIndexes()
        self._memberships = [(anchor.index, membership)]
        self._restores: list[int] = []
        """The RESTORE entries that are not applied."""
        self.stopped_at = 0
        """The RESTORE in front of which the state stands, as the caller knows; 0 for none."""
        for entry in self.window:
            self._record_kind(entry)

    @property
    def membership(self) -> Membership:
        """The membership in force: the latest in the log, committed or not."""
        return self._memberships[-1][1]

    @property
    def memberships(self) -> list[Membership]:
        """The memberships that are known, in the order of the log."""
        return [membership for _, membership in self._memberships]

    @property
    def first_membership(self) -> Membership:
        """The oldest membership that is known: at a start, the one that the state has applied."""
        return self._memberships[0][1]

    @property
    def is_new(self) -> bool:
        """Whether the log has nothing but the founding of its cluster."""
        return self.last_index == 0 or (self.last_index == 1 and self.membership_index == 1)

    @property
    def membership_index(self) -> int:
        """The entry that `membership` comes from, or the position the log started with."""
        return self._memberships[-1][0]

    def check(self) -> None:
        """Assert the order of the pointers, whenever entries go out for writing or applying."""
        last_index = self.anchor.index + len(self.window)
        assert self.anchor.index <= self.applied, "memory has all entries that aren't applied"
        assert self.applied <= self.commit, "applied entries are committed (R5)"
        assert self.applied <= self.persisted, "applied entries are durable here (R5)"
        assert self.commit <= last_index, "committed entries are in the log"
        assert self.persisted <= self.written, "durable entries were handed out for writing"
        assert self.written <= last_index, "entries handed out for writing are in the log"
        place = self._memberships[-1][0] - self.anchor.index - 1
        assert place < 0 or self.window[place].kind == EntryKind.MEMBERSHIP, (
            "the membership in force is an entry of the log"
        )

    def commit_to(self, index: int) -> None:
        """Everything up to `index` is committed."""
        assert index >= self.commit, "commit never goes back"
        assert index <= self.last_index, "committed entries are in the log"
        self.commit = index

    def _record_kind(self, entry: Entry) -> None:
        if entry.kind == EntryKind.MEMBERSHIP:
            self._memberships.append((entry.index, Membership.decode(bytes(entry.payload))))
        elif entry.kind == EntryKind.RESTORE:
            self._restores.append(entry.index)

    @property
    def last(self) -> LogPosition:
        """The position that the next entry continues."""
        return self.window[-1].position if self.window else self.anchor

    @property
    def last_index(self) -> int:
        return self.anchor.index + len(self.window)

    @property
    def last_term(self) -> int:
        return self.window[-1].term if self.window else self.anchor.term

    def term(self, index: int) -> int | None:
        """The term of entry `index`; None if it precedes the window or doesn't exist yet."""
        offset = index - self.anchor.index - 1
        if offset == -1:
            return self.anchor.term
        if 0 <= offset < len(self.window):
            return self.window[offset].term
        return None

    def sequence(self, index: int) -> int | None:
        """The number of the last command up to entry `index`; None if the window lacks it."""
        offset = index - self.anchor.index - 1
        if offset == -1:
            return self.anchor.last_sequence
        return self.window[offset].last_sequence if 0 <= offset < len(self.window) else None

    def slice(self, lo: int, bytes_max: int) -> tuple[Entry, ...]:
        """Entries from `lo` on within `bytes_max`, but at least one if there is one."""
        start = lo - self.anchor.index - 1
        assert start >= 0, "older entries are on disk"
        return fitting(self.window, start, bytes_max)

    def between(self, after: int, last: int) -> tuple[Entry, ...]:
        """The entries `(after, last]`, all of which are in the window."""
        offset = self.anchor.index
        assert after >= offset, "older entries are on disk"
        assert last <= self.last_index, "the entries exist"
        return tuple(self.window[after - offset : last - offset])

    def append(self, entry: Entry) -> None:
        """Add a leader's own new entry."""
        previous = self.window[-1] if self.window else self.anchor
        assert entry.index == previous.index + 1, "a leader appends after its last entry"
        assert entry.term >= previous.term, "terms never decrease along the log"
        assert entry.time_us >= previous.time_us, "log time never goes back"
        assert entry.last_sequence >= previous.last_sequence, "command numbers never go back"
        self.window.append(entry)
        self._window_bytes += len(entry.data)
        self._record_kind(entry)

    def is_up_to_date(self, last_index: int, last_term: int) -> bool:
        """Whether a candidate with this log may get this node's vote (Raft paper 5.4.1)."""
        return (last_term, last_index) >= (self.last_term, self.last_index)

    def merge(self, message: Append) -> int | None:
        """Take a leader's entries; return the index up to which the logs now agree.

        None if the entry at `prev_index` is missing or differs. LogMismatch, without any change, if
        the entries can't follow it; no correct leader sends such entries.
        """
        prev_index, entries = message.prev_index, message.entries
        for index, entry in enumerate(entries, prev_index + 1):
            if entry.index != index or entry.term > message.term:
                raise LogMismatch(f"entry {entry.index} of term {entry.term} in place of {index}")
        if prev_index < self.commit:
            self._check_committed(message)
            # Committed entries are the same everywhere; only the entries after them are news.
            last_index = prev_index + len(entries)
            entries = entries[self.commit - prev_index :]
            if not entries:
                # Not `commit`: nothing shows that this leader has what is behind `last_index`.
                return last_index
        elif self.term(prev_index) != message.prev_term:
            return None
        for position, entry in enumerate(entries):
            if self.term(entry.index) != entry.term:
                self._extend(entries[position:])
                break
        return entries[-1].index if entries else prev_index

    def _check_committed(self, message: Append) -> None:
        """LogMismatch if the leader has other entries than those that are committed here.

        That can't happen unless disks of a majority have lost what was acknowledged.
        """
        overlap = message.entries[: self.commit - message.prev_index]
        before = (message.prev_index, message.prev_term)
        for index, term in (before, *((entry.index, entry.term) for entry in overlap)):
            if self.term(index) not in (None, term):
                raise LogMismatch(
                    f"entry {index}, which is committed here, is of term {self.term(index)}, the "
                    f"leader's of term {term}"
                )

    def _extend(self, entries: tuple[Entry, ...]) -> None:
        """Add entries, after dropping this log's own from the first of them on.

        «If an existing entry conflicts with a new one (same index but different terms), delete the
        existing entry and all that follow it» (paper, figure 2), and only then: cutting without a
        conflict would drop entries that this node has already acknowledged.
        """
        first = entries[0].index
        assert first > self.commit, "committed entries are never replaced (R6)"
        assert first <= self.last_index + 1, "entries are added without a gap"
        keep = first - self.anchor.index - 1
        is_conflict = keep == len(self.window) or self.window[keep].term != entries[0].term
        assert is_conflict, "entries are replaced only where a term differs (R6)"
        previous: Entry | LogPosition = self.window[keep - 1] if keep else self.anchor
        for entry in entries:
            _check_continues(entry, previous)
            previous = entry
        if keep < len(self.window):
            self._window_bytes -= sum(len(entry.data) for entry in self.window[keep:])
            del self.window[keep:]
            self.persisted = min(self.persisted, first - 1)
            self.written = min(self.written, first - 1)
            # A membership ends with its entry; the one before it is in force again.
            self._memberships = [pair for pair in self._memberships if pair[0] < first]
            self._restores = [index for index in self._restores if index < first]
        self.window.extend(entries)
        for entry in entries:
            self._window_bytes += len(entry.data)
            self._record_kind(entry)

    def hint(self, index: int, term: int) -> tuple[int, int]:
        """The last entry at or before `index` whose term is at most `term`, as (index, term).

        Where leader and follower disagree, each uses this to skip all entries that can't match. So
        finding the common point takes a round per term, not per entry. A follower never goes below
        its commit index, where the logs agree. A leader may have to: the follower lacks what it has
        committed since. At the end of memory it treats all earlier entries as possible matches.
        """
        index = min(index, self.last_index)
        while index > self.anchor.index:
            term_here = self.term(index)
            assert term_here is not None, "all entries above the anchor are in the window"
            if term_here <= term:
                return index, term_here
            index -= 1
        return index, self.term(index) or 0

    def mark_persisted(self, written: Sequence[Entry]) -> None:
        """These entries are on disk; entries that were replaced in the meantime don't count."""
        for entry in reversed(written):
            if self.term(entry.index) == entry.term:
                self.persisted = max(self.persisted, entry.index)
                # A later leader may have restored an entry that was cut off during the write.
                self.written = max(self.written, entry.index)
                return

    @property
    def has_unapplied(self) -> bool:
        """Whether an entry may be applied now: it is committed, and durable here (R5).

        Or the caller has to be told that the next one is a RESTORE.
        """
        return self.commit > self.applied < self.persisted and self.stopped_at != self.applied + 1

    @property
    def applicable(self) -> int:
        """The last entry that may be applied now, in front of the next RESTORE."""
        last = min(self.commit, self.persisted)  # R5
        return min(last, self._restores[0] - 1) if self._restores else last

    @property
    def is_stuffed(self) -> bool:
        """Whether memory has all that it should hold in front of a RESTORE that isn't applied."""
        return self.stopped_at > 0 and self._window_bytes > max(
            self._window_bytes_max, STOPPED_BYTES_MAX
        )

    def holds(self, index: int, term: int) -> bool:
        """Whether the committed entry `index` of `term` is in this log, or already in its state.

        A log that the state can't apply, behind a RESTORE, is as good as none.
        """
        if 0 < self.stopped_at <= index:
            return False
        return index <= self.commit or self.term(index) == term

    def take_committed(self) -> tuple[Entry, ...]:
        """The entries that may be applied now; each is returned once."""
        last = self.applicable
        if last <= self.applied:
            return ()
        committed = self.between(self.applied, last)
        self.mark_applied(last)
        return committed

    def take_restore(self) -> Entry | None:
        """The RESTORE that is next to be applied; returned once."""
        index = self.applied + 1
        is_next = bool(self._restores) and self._restores[0] == index != self.stopped_at
        if not is_next or index > min(self.commit, self.persisted):
            return None
        self.stopped_at = index
        return self.window[index - self.anchor.index - 1]

    def pass_restore(self) -> None:
        """The RESTORE that the caller was told of has no effect: it is applied like any entry."""
        assert self._restores[0] == self.stopped_at > 0, "the caller was told of it"
        del self._restores[0]
        self.stopped_at = 0

    def mark_applied(self, index: int) -> None:
        """Entries up to `index` went out for applying; the oldest may leave the window."""
        assert index >= self.applied, "entries are applied in order"
        assert index <= self.commit, "applied entries are committed (R5)"
        assert index <= self.persisted, "applied entries are durable here (R5)"
        assert not self._restores or index < self._restores[0], "a RESTORE stops the application"
        if index > self.applied:
            self.applied_sequence = self.window[index - self.anchor.index - 1].last_sequence
        self.applied = index
        while len(self._memberships) > 1 and self._memberships[1][0] <= index:
            del self._memberships[0]
        if self._window_bytes <= self._window_bytes_max:
            return
        # Cut down to half at once, so that shifting the list costs next to nothing per entry.
        count, freed = 0, 0
        while (
            count < index - self.anchor.index
            and self._window_bytes - freed > self._window_bytes_max // 2
        ):
            freed += len(self.window[count].data)
            count += 1
        if count:
            self.anchor = self.window[count - 1].position
            del self.window[:count]
            self._window_bytes -= freed


def _check_continues(entry: Entry, previous: Entry | LogPosition) -> None:
    """LogMismatch unless `entry`, which another node sent, may follow `previous`."""
    is_in_order = (
        entry.term >= previous.term
        and entry.time_us >= previous.time_us
        and entry.last_sequence >= previous.last_sequence
        and len(entry.data) <= ENTRY_BYTES_MAX
    )
    if not is_in_order or not follows(entry, previous.hash):
        raise LogMismatch(f"entry {entry.index} of term {entry.term}")
    count = entry.last_sequence - previous.last_sequence
    if entry.kind != EntryKind.BATCH and count != (entry.kind == EntryKind.RESTORE):
        raise LogMismatch(f"entry {entry.index} of kind {entry.kind} can't have {count} commands")
    if entry.kind == EntryKind.MEMBERSHIP:
        try:
            Membership.decode(bytes(entry.payload))
        except ValueError as error:
            raise LogMismatch(f"entry {entry.index}: {error}") from error


def membership_changed(reporter: int, log: RaftLog) -> MembershipChanged:
    """The event that reports the log's new membership."""
    members = log.membership.members.items()
    return MembershipChanged(
        reporter=reporter,
        index=log.membership_index,
        voters=log.membership.voters,
        learners=tuple(sorted(i for i, member in members if not member.is_voter)),
    )


def fitting(entries: Sequence[Entry], start: int, bytes_max: int) -> tuple[Entry, ...]:
    """The entries from `start` on within `bytes_max`, but at least one if there is one."""
    size, end = 0, start
    while end < len(entries):
        size += len(entries[end].data)
        if size > bytes_max and end > start:
            break
        end += 1
    return tuple(entries[start:end])
