"""A leader's sending side: entries for each follower at its own pace, and how much each one has.

Theory of operation. `progress` (`progress.py`) records what each follower holds and what may be
sent to it. Entries go out from memory as far as the follower's limits allow. Entries that memory no
longer has are read from the disk (`LogRead`). Entries that the disk no longer has are replaced by a
snapshot of the state (`SnapshotRequest`). `leader.py` counts the replies, and decides.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from raftha.core.durable_indexes import encode_behind
from raftha.core.log import RaftLog, fitting
from raftha.core.messages import Append, DurableIndexesReply, Message
from raftha.core.progress import Mode, Progress
from raftha.core.ready import CoreConfig, LogRead, Requests, SnapshotRequest
from raftha.entry import Entry, LogPosition
from raftha.events import HaEvent, ReplicaBehindLog


class Followers:
    """All followers of a leader, in its one term."""

    def __init__(
        self,
        config: CoreConfig,
        term: int,
        log: RaftLog,
        send: Callable[[Message], None],
        events: list[HaEvent],
        requests: Requests,
    ) -> None:
        """`events` and `requests` are shared with the core, and are part of its next `Ready`."""
        self.id = config.node_id
        self.term = term
        self.progress: dict[int, Progress] = {}
        self._config = config
        self._log = log
        self._send = send
        self._events = events
        self._requests = requests
        self._behind: tuple[int, tuple[int, ...]] | None = None

    def follow(self, members: Collection[int]) -> None:
        """Follow exactly these members: start with new ones, drop those that left."""
        self.disks_changed()
        for peer in members:
            if peer != self.id and peer not in self.progress:
                self._begin(peer)
        for peer in [peer for peer in self.progress if peer not in members]:
            del self.progress[peer]

    def _begin(self, peer: int) -> None:
        self.progress[peer] = Progress(
            self._log.last_index + 1,
            self._config.in_flight_messages_max,
            self._config.in_flight_bytes_max,
        )

    def forget(self, peer: int) -> None:
        """Another data directory answers for this follower: nothing that it had is there."""
        if peer in self.progress:
            self.disks_changed()
            self._begin(peer)

    def disks_changed(self) -> None:
        """A disk may have gained or lost entries: compute `behind` again."""
        self._behind = None

    def connected(self, peer: int) -> None:
        """Messages in flight to `peer` are lost; ask where its log ends."""
        if peer in self.progress:
            self.progress[peer].probe()
            self.send_append(peer)

    def disconnected(self, peer: int) -> None:
        if peer in self.progress:
            self.progress[peer].probe()

    # ---------------------------------------------------------------- sending entries

    def send_append(self, peer: int) -> None:
        """Send the entries the follower lacks, within its limits; a probe if there are none."""
        progress = self.progress[peer]
        last_index = self._log.last_index
        assert progress.next <= last_index + 1, "the next entry to send is in the log"
        while not progress.is_paused:
            if progress.mode is Mode.REPLICATE and progress.next > last_index:
                return
            previous_index = progress.next - 1
            previous_term = self._log.term(previous_index)
            if previous_term is None:
                progress.mode = Mode.FETCH
                if progress.next < self._log.first_index:
                    self._on_behind_log(peer, progress, self._log.first_index)
                else:
                    self._requests.log_reads.append(
                        LogRead(
                            peer=peer,
                            term=self.term,
                            persisted=self._log.persisted,
                            index=progress.next,
                        )
                    )
                return
            entries = self._log.slice(progress.next, self._config.append_bytes_max)
            self._send_entries(peer, progress, previous_index, previous_term, entries)

    def _send_entries(
        self,
        peer: int,
        progress: Progress,
        previous_index: int,
        previous_term: int,
        entries: tuple[Entry, ...],
    ) -> None:
        self._send_news(peer, progress, previous_index, previous_term, entries)
        last_index = previous_index + len(entries)
        if progress.mode is Mode.REPLICATE:
            progress.sent(last_index, sum(len(entry.data) for entry in entries))
        else:
            progress.probed(previous_term, last_index)

    def probe_again(self, peer: int, progress: Progress) -> None:
        """Repeat an unanswered probe, without its entries.

        The entries may be in flight, or being written, for longer than a heartbeat takes. If they
        are lost, the reply to this probe tells where the logs agree, and they are sent again.
        """
        if progress.probed_at is None:
            progress.waits_for_reply = False
            self.send_append(peer)
            return
        index, term = progress.probed_at
        self._send_news(peer, progress, index, term, ())
        progress.probed(term, index)

    def send_probe(self, peer: int, progress: Progress) -> None:
        """Send an append without entries: it carries commit, and its reply finds lost appends."""
        previous_term = self._log.term(progress.next - 1)
        if previous_term is not None:
            self._send_news(peer, progress, progress.next - 1, previous_term, ())
        elif progress.mode is Mode.REPLICATE:
            # Memory no longer has the last entry sent. Begin again from the last acknowledged one,
            # read from the disk. Staying silent would wait forever if the entries were lost.
            progress.probe()
            self.send_append(peer)

    def _send_news(
        self,
        peer: int,
        progress: Progress,
        previous_index: int,
        previous_term: int,
        entries: tuple[Entry, ...],
    ) -> None:
        commit = self._log.commit
        progress.commit_sent = commit
        # By position, in the order of the fields: names double its time, and a write waits for it.
        message = Append(
            peer,
            self.id,
            self.term,
            previous_index,
            previous_term,
            commit,
            self._log.compact_index,
            entries,
            self.behind(commit),
        )
        self._send(message)

    # ---------------------------------------------------------------- followers that lag

    def log_read(self, request: LogRead, previous: LogPosition, entries: Sequence[Entry]) -> None:
        """Entries that follow `previous` came from the disk."""
        peer, progress = request.peer, self.progress.get(request.peer)
        if request.term != self.term or progress is None or progress.mode is not Mode.FETCH:
            return  # A read of this node's earlier leadership is of a log that may be gone.
        assert not entries or entries[0].index == previous.index + 1, "entries follow a position"
        progress.mode = Mode.PROBE
        own = [entry for entry in entries if entry.index <= request.persisted]
        if progress.next != previous.index + 1 or not own:
            self.send_append(peer)
        else:
            some = fitting(own, 0, self._config.append_bytes_max)
            self._send_entries(peer, progress, previous.index, previous.term, some)

    def log_read_failed(self, request: LogRead, first_index: int) -> None:
        """The requested entries are gone; the log on disk begins at `first_index`."""
        progress = self.progress.get(request.peer)
        if request.term == self.term and progress is not None and progress.mode is Mode.FETCH:
            self._on_behind_log(request.peer, progress, first_index)

    def _on_behind_log(self, peer: int, progress: Progress, first_index: int) -> None:
        """The log lacks what this follower needs: request a snapshot of the state for it."""
        progress.mode = Mode.SNAPSHOT
        self._requests.snapshots.append(SnapshotRequest(peer, self.term))
        self._events.append(
            ReplicaBehindLog(
                reporter=self.id, node_id=peer, needs_index=progress.next, first_index=first_index
            )
        )

    def snapshot_sent(self, request: SnapshotRequest, index: int) -> None:
        """The follower holds everything up to `index`; continue from there."""
        progress = self._awaiting(request)
        if progress is None:
            return
        if index > self._log.last_index:
            self.snapshot_failed(request)  # No correct node claims entries that don't exist.
            return
        self.disks_changed()
        progress.probe_after(index)
        self.send_append(request.peer)

    def snapshot_failed(self, request: SnapshotRequest) -> None:
        """The follower got no snapshot. At its next reply, check again what it needs."""
        progress = self._awaiting(request)
        if progress is not None:
            progress.mode = Mode.PROBE
            progress.waits_for_reply = True

    def _awaiting(self, request: SnapshotRequest) -> Progress | None:
        progress = self.progress.get(request.peer)
        if request.term != self.term or progress is None or progress.mode is not Mode.SNAPSHOT:
            return None
        return progress

    # ---------------------------------------------------------------- what each disk has

    def matches(self) -> dict[int, int]:
        """For each member, the last entry that counts as being on its disk."""
        matches = {self.id: self._log.persisted}
        for peer, progress in self.progress.items():
            # `Progress.counted`, without a call: this runs for each reply.
            matches[peer] = 0 if progress.healing_generation % 2 else progress.match
        return matches

    def behind(self, commit: int) -> tuple[int, ...]:
        """How far each member's disk is behind `commit`, encoded for messages.

        Cached until a reply or a write changes it: appends carry the same to all followers.
        """
        if self._behind is None or self._behind[0] != commit:
            self._behind = commit, encode_behind(commit, self.matches())
        return self._behind[1]

    def watch(self, peer: int, index: int) -> None:
        """Reply to `peer` as more disks have entry `index`, until all voters' have it."""
        progress = self.progress[peer]
        progress.watched_index = max(progress.watched_index, min(index, self._log.last_index))
        progress.watched_holders = 0
        self.tell_watchers()

    def tell_watchers(self) -> None:
        """Reply to followers that watch an entry if another disk has it now."""
        for peer, progress in self.progress.items():
            if not progress.watched_index:
                continue
            matches, voters = self.matches(), self._log.membership.voters
            holders = sum(matches[voter] >= progress.watched_index for voter in voters)
            if holders > progress.watched_holders:
                progress.watched_holders = holders
                commit = self._log.commit
                self._send(
                    DurableIndexesReply(
                        to=peer,
                        sender=self.id,
                        term=self.term,
                        commit=commit,
                        behind=self.behind(commit),
                    )
                )
            if holders == len(voters):
                progress.watched_index = 0
