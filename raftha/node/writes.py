"""The writes of one node: from its callers into the leader's log, and back as outcomes.

Theory of operation. Three parts divide the work. `Submissions` holds the groups of this node's own
callers until their outcomes are known, wherever the leader is. `ProposalQueue` holds, on the
leader, the groups of all nodes until they are applied. `Acknowledgements` holds the callers that
want their write on more disks than a majority's. `route` directs a group: into this node's own
proposal queue if it leads, else to the leader in a `Forward`.

A turn forms at most one batch, before the core decides what to write: group commit is one batch
per disk write. Later steps of the turn ask for another turn only if it would have work to do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from raftha.clock import Clock
from raftha.core import Raft
from raftha.entry import Entry, decode_groups
from raftha.errors import InvalidRequest
from raftha.node.acknowledgements import Acknowledgements, check_wanted
from raftha.node.host import Host
from raftha.node.log_clock import LogClock
from raftha.node.messages import Forward, ForwardReply
from raftha.node.operations import GroupOperation, WriteOperation
from raftha.node.pending import PendingOperations
from raftha.node.proposals import BATCH_BYTES_MAX, ProposalQueue, QueuedGroup
from raftha.node.submissions import (
    FORWARDED_MAX,
    GROUP_BYTES_MAX,
    InFlight,
    Submissions,
    is_proper,
)
from raftha.storage.state.owners import make_owner
from raftha.storage.state.sessions import Applied


class Writes:
    """See the module's docstring. All calls come from the node's thread."""

    def __init__(
        self,
        core: Raft,
        host: Host,
        pending: PendingOperations,
        clock: Clock,
        log_clock: LogClock,
        random_below: Callable[[int], int],
        ack_timeout_s: float,
    ) -> None:
        """`ack_timeout_s` limits a committed write's wait for more disks than a majority's."""
        self._core = core
        self._host = host
        self._pending = pending
        self._log_clock = log_clock
        self._proposals = ProposalQueue(core)
        self._acknowledgements = Acknowledgements(core, pending.deliver, ack_timeout_s)
        self._submissions = Submissions(
            self.route,
            pending,
            self._acknowledgements,
            clock.monotonic,
            random_below,
            make_owner(core.id),
        )
        self._proposed: deque[tuple[int, float]] = deque()

    @property
    def bytes_held(self) -> int:
        """Bytes of the writes without an outcome, and of their groups."""
        return self._pending.write_bytes + self._submissions.in_flight_bytes

    def hold(self, is_held: bool) -> None:
        """On the leader, form no batch for now; or form batches again."""
        self._proposals.is_held = is_held
        self._host.wake()

    def unfinished(self) -> tuple[int, int]:
        """Return how many commands of this node's callers have no outcome yet, and their bytes."""
        return self._submissions.unfinished()

    # ---------------------------------------------------------------- what comes in

    def add(self, operations: Iterator[WriteOperation]) -> None:
        """Queue writes that need no check, in order."""
        self._submissions.add(*operations)

    def add_checked(self, operation: WriteOperation | GroupOperation) -> None:
        """Queue a write, or send a numbered group, if it can get the requested acknowledgements."""
        if operation.acks:
            try:
                check_wanted(operation.acks, self._core.membership)
            except InvalidRequest as error:
                self._pending.deliver(operation, error)
                return
        if isinstance(operation, GroupOperation):
            self._submissions.add_group(operation)
        else:
            self._submissions.add(operation)

    def on_forward(self, message: Forward, *, is_majority_full: bool) -> None:
        """Another node forwarded a group to the leader."""
        try:
            (group,) = decode_groups(memoryview(message.group))
        except ValueError:
            group = None
        if group is None or not is_proper(group):
            return  # No correct node sends it, and in the log it would break every node.
        if not self._core.is_leader:
            return  # The sender will learn which node leads, and send the group there.
        key = group.session, group.number
        is_full = is_majority_full and not self._proposals.knows(key)
        if is_full or not self._proposals.has_room(key, len(message.group)):
            self._host.send(
                ForwardReply(
                    to=message.sender,
                    sender=self._core.id,
                    session=group.session,
                    number=group.number,
                    is_full=is_full,
                )
            )
            return
        self._proposals.put(key, QueuedGroup(message.sender, group.count, message.group))

    def on_forward_reply(self, message: ForwardReply) -> None:
        """The leader refused a group of this node's callers."""
        self._submissions.on_refused(message.session, message.number, is_full=message.is_full)

    def on_leader(self) -> None:
        """A leader is known: send it everything that may have been lost in transit."""
        self._log_clock.begin()
        self._proposals.clear()
        self._submissions.send_again()

    # ---------------------------------------------------------------- the turn

    @property
    def has_work(self) -> bool:
        """True if a turn could send queued writes, or release a caller that waits for disks."""
        if self._acknowledgements.has_waiting:
            return True
        has_queued = bool(self._submissions.queue) or self._proposals.has_queued
        return has_queued and (self._proposals.can_propose or not self._core.is_leader)

    def form_batch(self) -> None:
        """On the leader, form one batch per disk write; elsewhere, groups for the leader."""
        if not self._core.is_leader:
            leader = self._core.leader
            if leader is not None and self._host.is_connected(leader):
                self._submissions.form_groups(BATCH_BYTES_MAX, FORWARDED_MAX)
            return
        if self._proposals.can_propose:
            # Some room for this node's own callers, however much other nodes forward.
            room = max(BATCH_BYTES_MAX - self._proposals.queued_bytes, GROUP_BYTES_MAX)
            self._submissions.form_groups(room, 1 << 30)
            self._proposals.propose(self._log_clock.stamp)

    def route(self, group: InFlight) -> bool:
        """Send a group to the leader; False if no leader is reachable.

        Every caller of this method runs before the turn forms its batch, or asks for a turn itself.
        """
        if self._core.is_leader:
            key = group.session, group.number
            self._proposals.put(key, QueuedGroup(self._core.id, group.count, group.encoded))
            return True
        leader = self._core.leader
        if leader is None or not self._host.is_connected(leader):
            return False
        self._host.send(Forward(to=leader, sender=self._core.id, group=group.encoded))
        return True

    def on_proposed(self, index: int, now: float) -> None:
        """The leader has begun to write its log up to `index`."""
        self._proposed.append((index, now))

    def on_applied(self, entry: Entry, groups: Sequence[Applied], now: float) -> None:
        """The state has applied an entry with these groups."""
        self._acknowledgements.begin_entry()
        for group in groups:
            self._proposals.on_group_applied((group.session, group.number))
            if self._submissions.on_applied(group, now):
                self._host.wake()
        if self._proposals.on_applied(entry.index):
            self._host.wake()

    def commit_times(self, applied_index: int, now: float) -> Iterator[float]:
        """Yield the seconds from proposal to application, for each newly applied batch."""
        while self._proposed and self._proposed[0][0] <= applied_index:
            _, proposed_at = self._proposed.popleft()
            if self._core.is_leader:
                yield now - proposed_at

    def release_acknowledged(self) -> None:
        """Release the callers whose writes are now on as many disks as they requested."""
        self._acknowledgements.check()

    # ---------------------------------------------------------------- time and the end

    def on_tick(self, now: float) -> None:
        """A heartbeat interval has passed."""
        if not self._core.is_leader:
            # A leader's own groups are in its log or in its proposal queue: nothing can be lost.
            self._submissions.send_overdue()
        self._acknowledgements.expire(now)

    def expire(self, now: float) -> float:
        """Fail the callers whose deadline has passed; return the next deadline."""
        return self._submissions.expire(now)

    def abort(self, unsent: Exception, sent: Exception) -> None:
        """The node ends: fail each caller by whether its write had left this node."""
        self._submissions.abort(unsent, sent)
        self._acknowledgements.abort()
