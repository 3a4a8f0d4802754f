"""The follower's side of replication: take a leader's entries and commit index, and reply.

Theory of operation. `Raft` passes on only messages of this node's own term, from the one leader
that this node knows in it. Every reply carries the node's healing generation, so that a leader
recognises replies from before a loss of the log. `outbox.py` holds an acknowledgement until the
entries are durable (R2). The leader's side is in `leader.py` and `followers.py`.

A lost tail. A disk that was put back to an earlier copy, or whose last write was damaged, starts
with a shorter log and looks sound. A heartbeat proves the loss: its commit index is never beyond
`match`, the last entry that this node acknowledged to that leader, in the heartbeat's term and
healing generation. A log never gets shorter than that while both stay the same:

- Before it acknowledged the entry, this node had it on disk (R2); a restart alone loses nothing.
- In one term it follows one leader. Up to `match` its log equals that leader's, which only grows,
  so no append of that term cuts off what it acknowledged.
- A snapshot takes the place only of a log that lacks its last entry. Up to `match` this log lacks
  no committed entry, so the snapshot reaches beyond `match`.
- A loss that is found on the disk begins another healing generation, and so does the end of
  healing. The leader counts `match` for one generation only.

So however late a heartbeat is: if its term and generation are this node's, it proves the loss when
its commit index is beyond the log. An append proves nothing, since it may be sent on trial.
"""

from __future__ import annotations

from raftha.core.election import Election
from raftha.core.healing_generation import HealingGeneration
from raftha.core.log import LogMismatch, RaftLog
from raftha.core.messages import Append, AppendReply, Heartbeat, HeartbeatReply
from raftha.events import LogsDiffer


class Follower:
    """One node as a follower. It shares log, election and healing generation with `Raft`."""

    def __init__(
        self, log: RaftLog, election: Election, healing_generation: HealingGeneration
    ) -> None:
        self.id = election.id
        self._log = log
        self._election = election
        self._healing_generation = healing_generation
        self._lost_index = 0
        self.mismatch = ""
        """Why the leader's last entries can't follow this log; "" if they can."""
        self._reported: tuple[int, int] | None = None

    @property
    def has_lost_entries(self) -> bool:
        """Whether `take_lost` has an entry to return."""
        return self._lost_index > 0

    def take_lost(self) -> int:
        """The last entry that this node is known to have lost, 0 for none; returned once."""
        lost_index, self._lost_index = self._lost_index, 0
        return lost_index

    def on_append(self, message: Append) -> None:
        """Take the leader's entries, and acknowledge or reject them."""
        log = self._log
        self._election.on_leader_contact(message.sender)
        log.durable_indexes.learn(message.commit, message.behind)
        log.known_commit = max(log.known_commit, message.commit)
        try:
            agreed = log.merge(message)
        except LogMismatch as error:
            # The leader has another history under an index and term of this log, or it is faulty.
            # Nothing of it is kept.
            self._report_mismatch(message, str(error))
            return
        if self.mismatch and message.entries and agreed is not None:
            self.mismatch = ""
        if agreed is None:
            hint_index, hint_term = log.hint(message.prev_index, message.prev_term)
            self.reject(message.sender, message.prev_index, hint_index, hint_term)
            return
        log.commit_to(max(log.commit, min(message.commit, agreed)))
        log.compact_index = max(log.compact_index, message.compact_index)
        # By position, in the order of the fields: names double its time, and a write waits for it.
        reply = AppendReply(
            message.sender,
            self.id,
            self._election.term,
            True,  # ok
            agreed,
            0,  # No hint.
            0,
            log.applied,
            log.applied_sequence,
            self._healing_generation.current,
        )
        self._election.send(reply)

    def _report_mismatch(self, message: Append, reason: str) -> None:
        """Report it once for each leader and term: the leader sends the entries again."""
        self.mismatch = f"node {message.sender} sends entries that can't follow this log: {reason}"
        if self._reported != (message.sender, message.term):
            self._reported = message.sender, message.term
            self._election.report(
                LogsDiffer(
                    reporter=self.id,
                    leader=message.sender,
                    term=message.term,
                    index=message.prev_index + 1,
                    reason=reason,
                )
            )

    def reject(self, leader: int, index: int, hint_index: int = 0, hint_term: int = 0) -> None:
        """Reply that the entry at `index` doesn't match, or that the leader's term is over."""
        self._election.send(
            AppendReply(
                to=leader,
                sender=self.id,
                term=self._election.term,
                ok=False,
                index=index,
                hint_index=hint_index,
                hint_term=hint_term,
                healing_generation=self._healing_generation.current,
            )
        )

    def _has_lost(self, commit: int) -> bool:
        """Whether a heartbeat with this commit index, of this generation, proves a loss."""
        return commit > self._log.last_index

    def on_heartbeat(self, message: Heartbeat) -> None:
        """Take the leader's commit index, promise what it asks for, and reply."""
        log = self._log
        self._election.on_leader_contact(message.sender)
        log.durable_indexes.learn(message.commit, message.behind)
        if message.healing_generation == self._healing_generation.current:
            # Any other generation means that the leader sent this before it knew of the loss. The
            # log may hold other entries now than those the commit index is about.
            if self._has_lost(message.commit):
                self._lost_index = message.commit
                return
            log.commit_to(max(log.commit, min(message.commit, log.last_index)))
        promised_ms = self._election.promise.give(message.sender, message.lease_ms)
        self._election.send(
            HeartbeatReply(
                to=message.sender,
                sender=self.id,
                term=self._election.term,
                read_round=message.read_round,
                applied=log.applied,
                applied_sequence=log.applied_sequence,
                healing_generation=self._healing_generation.current,
                sent_ns=message.sent_ns,
                promised_ms=promised_ms,
                time_us=self._election.clocks.own_us(),
            )
        )
