"""A few cores in one thread, with disks and a network that act on command only.

Theory of operation. `Cluster` does for each core what a node's loop does (`raftha.core.raft` says
what that is), and notes each step as a line. Messages lie in one list, in the order in which they
were sent. A `Member` that crashed keeps its `Disk`, and nothing else.

Two rules hold whatever a transcript does, and are asserted: a term has one leader at most, and what
one node applies at an index, all do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from raftha.core import (
    CoreConfig,
    LogRead,
    Message,
    Raft,
    RaftLog,
    Ready,
    Role,
    SnapshotOffer,
    SnapshotRequest,
    Write,
)
from raftha.entry import LOG_START, Entry, EntryKind, HardState, LogPosition, make_entry
from raftha.events import RoleChanged
from raftha.membership import Membership
from tests.datadriven import render
from tests.support.core import has_work


@dataclass(slots=True)
class Disk:
    """What survives a crash: entries after `base`, and the state as of `base`."""

    hard_state: HardState
    base: LogPosition
    entries: list[Entry]
    state: list[Entry] = field(default_factory=list)

    def write(self, write: Write) -> None:
        """Do all of a write."""
        self.hard_state = write.hard_state or self.hard_state
        if write.entries:
            # The first one supersedes all that came after it.
            del self.entries[write.entries[0].index - self.base.index - 1 :]
            self.entries += write.entries

    def compact(self, index: int) -> None:
        """Put entries up to `index` into the state, and free them."""
        count = index - self.base.index
        self.state += self.entries[:count]
        self.base = self.entries[count - 1].position
        del self.entries[:count]

    def read(self, index: int, count: int) -> tuple[LogPosition, list[Entry]]:
        """Up to `count` entries from `index` on, and the position before them."""
        start = index - self.base.index - 1
        previous = self.entries[start - 1].position if start else self.base
        return previous, self.entries[start : start + count]


def make_disk(terms: Sequence[int], hard_state: HardState) -> Disk:
    """A disk whose log holds empty entries of these terms."""
    entries: list[Entry] = []
    for term in terms:
        last = entries[-1].position if entries else LOG_START
        entries.append(make_entry(last, term, 0, EntryKind.BATCH, b"", 0))
    return Disk(hard_state, LOG_START, entries)


class Member:
    """A node: its disk, and its core if it's up."""

    def __init__(self, config: CoreConfig, random: int, disk: Disk, membership: Membership) -> None:
        self.id = config.node_id
        self.disk = disk
        self.pending: Write | None = None
        self.holds_writes = False
        self.holds_reads = False
        self.pending_reads: list[LogRead] = []
        self.snapshot_requests: dict[int, SnapshotRequest] = {}
        self.applied: list[Entry] = []
        self.commit = 0
        self.healing_generation = 0
        self._core: Raft | None = None
        self._config = config
        self._random = random
        self._membership = membership

    @property
    def is_up(self) -> bool:
        return self._core is not None

    @property
    def heartbeat_ticks(self) -> int:
        return self._config.heartbeat_ticks

    @property
    def core(self) -> Raft:
        assert self._core is not None, f"node {self.id} is down"
        return self._core

    def start(self) -> None:
        """Begin with what the disk has."""
        disk, membership = self.disk, self._membership
        for entry in disk.state:
            if entry.kind == EntryKind.MEMBERSHIP:
                membership = Membership.decode(bytes(entry.payload))
        log = RaftLog(
            disk.base.index + 1,
            disk.base,
            disk.entries,
            self._config.window_bytes_max,
            membership,
        )
        self._core = Raft(
            self._config,
            disk.hard_state,
            log,
            lambda n: min(self._random, n - 1),
            self.healing_generation,
        )
        self.applied = list(disk.state)
        self.commit = log.commit

    def crash(self) -> None:
        """Lose everything but the disk."""
        self._core = None
        self.pending = None
        self.pending_reads.clear()
        self.snapshot_requests.clear()

    def lose_log(self, index: int) -> None:
        """Crash; what is found on the disk is the state as of entry `index`, and no log."""
        disk = self.disk
        kept = [*disk.state, *disk.entries[: index - disk.base.index]]
        self.crash()
        position = kept[-1].position
        self.disk = Disk(HardState(position.term, 0, index), position, [], kept)
        self.healing_generation += 2 if self.healing_generation % 2 else 1
        self.start()

    def install(self, position: LogPosition, state: Sequence[Entry]) -> None:
        """Put a snapshot in the place of log and state, and start with it."""
        term, vote, commit = self.disk.hard_state
        self.crash()
        hard_state = HardState(term, vote, max(commit, position.index))
        self.disk = Disk(hard_state, position, [], list(state))
        self.start()


class Cluster:
    """The members, and what is between them. `lines` tells what happened."""

    def __init__(self, lines: list[str]) -> None:
        self.members: dict[int, Member] = {}
        self.in_flight: list[Message] = []
        self.lines = lines
        self.shows_messages = True
        self.read_count = 3
        self._cut: set[frozenset[int]] = set()
        self._indent = ""
        self._leaders: dict[int, int] = {}
        self._history: dict[int, Entry] = {}

    def say(self, line: str) -> None:
        self.lines.append(self._indent + line)

    # ---------------------------------------------------------------- a node's work

    def turn(self, member: Member) -> None:
        """Do all work that the core has now."""
        while True:
            had_ready = member.core.has_ready
            ready = member.core.ready()
            assert had_ready or not has_work(ready), "`has_ready` knows of all work"
            self._show(member, ready)
            for message in ready.messages:
                self._send(message)
            for request in ready.log_reads:
                self._read_log(member, request)
            for wanted in ready.snapshot_requests:
                self.say(f"{member.id} asks for a snapshot for {wanted.peer}")
                member.snapshot_requests[wanted.peer] = wanted
            for offer in ready.snapshot_offers:
                is_held = member.core.log.holds(offer.index, offer.index_term)
                use = "of no use" if is_held else "of use"
                self.say(f"{member.id} is offered a snapshot as of {offer.index}: {use}")
            if ready.healed is not None:
                self.say(f"{member.id} notes that it has healed, generation {ready.healed}")
                member.healing_generation = ready.healed
                member.core.healed(ready.healed)
                continue
            if ready.write is not None:
                self._begin_write(member, ready.write)
            elif not ready.log_reads:
                return

    def _show(self, member: Member, ready: Ready) -> None:
        for event in ready.events:
            if isinstance(event, RoleChanged) and event.role == Role.LEADER:
                other = self._leaders.setdefault(event.term, member.id)
                assert other == member.id, f"{other} and {member.id} both lead term {event.term}"
            line = render.event_text(event)
            if line is not None:
                self.say(line)
        self._apply(member, ready.committed)
        for state in ready.read_states:
            self.say(f"{member.id} may answer read {state.read_id} at index {state.index}")

    def _apply(self, member: Member, committed: Sequence[Entry]) -> None:
        for entry in committed:
            first = self._history.setdefault(entry.index, entry)
            assert first == entry, f"{member.id} applies {entry}, another applied {first}"
        member.applied += committed
        log = member.core.log
        applied = "" if log.applied == log.commit else f", applied {log.applied}"
        if log.commit != member.commit:
            self.say(f"{member.id} commit {log.commit}{applied}")
        elif committed:
            self.say(f"{member.id} applied {log.applied}")
        member.commit = log.commit

    def _begin_write(self, member: Member, write: Write) -> None:
        member.pending = write
        if member.holds_writes:
            self.say(f"{member.id} write held: {render.write_text(write)}")
        else:
            self._finish_write(member)

    def _finish_write(self, member: Member) -> None:
        write, member.pending = member.pending, None
        assert write is not None, f"node {member.id} has no write pending"
        self.say(f"{member.id} write {render.write_text(write)}")
        member.disk.write(write)
        for message in write.messages:
            self._send(message)
        member.core.advance(write)

    def write(self, member: Member) -> None:
        """Complete the pending write."""
        self._finish_write(member)
        self.turn(member)

    def _read_log(self, member: Member, request: LogRead) -> None:
        if member.holds_reads:
            self.say(f"{member.id} read held: for {request.peer} from {request.index}")
            member.pending_reads.append(request)
        else:
            self._finish_read(member, request)

    def _finish_read(self, member: Member, request: LogRead) -> None:
        disk = member.disk
        if request.index <= disk.base.index:
            member.core.log_read_failed(request, disk.base.index + 1)
            return
        previous, entries = disk.read(request.index, self.read_count)
        text = render.entries_text(entries)
        self.say(f"{member.id} read for {request.peer} in term {request.term}: {text}")
        member.core.log_read(request, previous, entries)

    def read(self, member: Member) -> None:
        """Complete the oldest pending read of the log."""
        self._finish_read(member, member.pending_reads.pop(0))
        self.turn(member)

    def offer(self, member: Member, peer: int) -> None:
        """Offer `peer` a snapshot of what this node's disk has compacted."""
        base = member.disk.base
        self._send(
            SnapshotOffer(peer, member.id, member.core.term, 1, base.index, base.term, 0, b"")
        )

    def snapshot_ended(self, member: Member, peer: int, index: int | None) -> None:
        """Report that `peer` holds everything up to `index` now, or that it got no snapshot."""
        request = member.snapshot_requests.pop(peer)
        if index is None:
            member.core.snapshot_failed(request)
        else:
            member.core.snapshot_sent(request, index)
        self.turn(member)

    # ---------------------------------------------------------------- the network

    def _send(self, message: Message) -> None:
        if frozenset((message.sender, message.to)) not in self._cut:
            self.in_flight.append(message)

    def deliver(self, message: Message) -> None:
        """Hand a message over; one to a node that is down is lost."""
        member = self.members[message.to]
        lost = "" if member.is_up else " (lost: node is down)"
        if self.shows_messages:
            self.say(render.message_text(message) + lost)
        if member.is_up:
            with self.indented():
                member.core.step(message)
                self.turn(member)

    def stabilize(self, ids: Sequence[int]) -> None:
        """Deliver what is on its way among these nodes until there is nothing more."""
        for _ in range(1000):
            due = [m for m in self.in_flight if m.to in ids and m.sender in ids]
            if not due:
                return
            self.in_flight = [m for m in self.in_flight if m not in due]
            for message in due:
                self.deliver(message)
        raise AssertionError("this doesn't end")

    def tick(self, member: Member) -> None:
        """Let a tick pass."""
        member.core.tick()
        self.turn(member)

    def cut(self, a: int, b: int) -> None:
        """Lose what is, and will be, on its way between these two."""
        self._cut.add(frozenset((a, b)))
        self.in_flight = [m for m in self.in_flight if {m.sender, m.to} != {a, b}]

    def heal(self, a: int, b: int) -> None:
        self._cut.discard(frozenset((a, b)))

    def notice(self, a: int, b: int, *, connected: bool) -> None:
        """Tell both ends of a connection what became of it."""
        for here, there in ((a, b), (b, a)):
            member = self.members[here]
            if member.is_up:
                (member.core.connected if connected else member.core.disconnected)(there)
                self.turn(member)

    @contextmanager
    def indented(self) -> Iterator[None]:
        """Show what happens inside as a consequence."""
        before, self._indent = self._indent, self._indent + "  " * self.shows_messages
        try:
            yield
        finally:
            self._indent = before
