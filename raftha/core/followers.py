"""What a leader sends to its followers, each at its own pace, and what they have of the log.

Theory of operation. `progress` (`progress.py`) says of each follower what it holds and what may be
sent to it. Entries go out from memory as far as the follower's limits allow; what memory has no
longer is asked for from the disk (`LogRead`), and what the disk has no longer is replaced by an
snapshot of the state (`SnapshotRequest`). `leader.py` counts what arrives, and decides.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

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
        """`events` and `requests` are the core's; what goes into them is in its next `Ready`."""
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
        """Follow these, and no others: those who came, not those who went."""
        self.disks_changed()
        for peer in members:
            if peer != self.id and peer not in self.progress:
                self.progress[peer] = Progress(
                    self._log.last_index + 1,
                    self._config.in_flight_messages_max,
                    self._config.in_flight_bytes_max,
                )
        for peer in [peer for peer in self.progress if peer not in members]:
            del self.progress[peer]

    def disks_changed(self) -> None:
        """A disk may have more than before, or have lost what it had: see `behind`."""
        self._behind = None

    def connected(self, peer: int) -> None:
        """Whatever was on its way to `peer` before is lost; ask where its log is."""
        if peer in self.progress:
            self.progress[peer].probe()
            self.send_append(peer)

    def disconnected(self, peer: int) -> None:
        if peer in self.progress:
            self.progress[peer].probe()

    # ---------------------------------------------------------------- sending entries

    def send_append(self, peer: int) -> None:
        """Send what the follower lacks, as far as its limits allow; a probe if that's nothing."""
        progress = self.progress[peer]
        assert progress.next <= self._log.last_index + 1, "what is sent next is in the log"
        while not progress.is_paused:
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
        self._send_news(peer, progress, previous_index, previous_term, entries)
        last_index = previous_index + len(entries)
        if progress.mode is Mode.REPLICATE:
            progress.sent(last_index, sum(len(entry.data) for entry in entries))
        else:
            progress.probed(previous_term, last_index)

    def probe_again(self, peer: int, progress: Progress) -> None:
        """Ask again what has had no answer yet, without the entries.

        They may be on their way, or being written, for longer than a heartbeat takes. If they are
        lost they are sent again as soon as the answer to this says where the logs agree.
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
            # Memory has moved on past what was sent last. Begin again from what is known to be
            # there, from the disk; to stay silent would wait for ever if what was sent is lost.
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
        commit, compact = self._log.commit, self._log.compact_index
        progress.commit_sent = commit
        message = Append(
            to=peer,
            sender=self.id,
            term=self.term,
            prev_index=previous_index,
            prev_term=previous_term,
            commit=commit,
            compact_index=compact,
            entries=entries,
            behind=self.behind(commit),
        )
        self._send(message)

    # ---------------------------------------------------------------- followers that lag

    def log_read(self, request: LogRead, previous: LogPosition, entries: Sequence[Entry]) -> None:
        """Entries that follow `previous` came from the disk."""
        peer, progress = request.peer, self.progress.get(request.peer)
        if request.term != self.term or progress is None or progress.mode is not Mode.FETCH:
            return  # An answer to this node's earlier leadership is of a log that may be gone.
        assert not entries or entries[0].index == previous.index + 1, "entries follow a position"
        progress.mode = Mode.PROBE
        own = [entry for entry in entries if entry.index <= request.persisted]
        if progress.next != previous.index + 1 or not own:
            self.send_append(peer)
        else:
            some = fitting(own, 0, self._config.append_bytes_max)
            self._send_entries(peer, progress, previous.index, previous.term, some)

    def log_read_failed(self, request: LogRead, first_index: int) -> None:
        """The entries asked for are gone; the log on disk begins at `first_index`."""
        progress = self.progress.get(request.peer)
        if request.term == self.term and progress is not None and progress.mode is Mode.FETCH:
            self._on_behind_log(request.peer, progress, first_index)

    def _on_behind_log(self, peer: int, progress: Progress, first_index: int) -> None:
        """The log can't help this follower: ask the outside to send it a snapshot of the state."""
        progress.mode = Mode.SNAPSHOT
        self._requests.snapshots.append(SnapshotRequest(peer, self.term))
        self._events.append(
            ReplicaBehindLog(
                reporter=self.id, node_id=peer, needs_index=progress.next, first_index=first_index
            )
        )

    def snapshot_sent(self, request: SnapshotRequest, index: int) -> None:
        """The follower holds everything up to `index` now, by a snapshot or already; go on
        there."""
        progress = self._awaiting(request)
        if progress is None:
            return
        if index > self._log.last_index:
            self.snapshot_failed(request)  # It claims what isn't there: no correct node does.
            return
        self.disks_changed()
        progress.probe_after(index)
        self.send_append(request.peer)

    def snapshot_failed(self, request: SnapshotRequest) -> None:
        """The follower got no snapshot. As soon as it is heard from, look anew at what it needs."""
        progress = self._awaiting(request)
        if progress is not None:
            progress.mode = Mode.PROBE
            progress.waits_for_reply = True

    def _awaiting(self, request: SnapshotRequest) -> Progress | None:
        progress = self.progress.get(request.peer)
        if request.term != self.term or progress is None or progress.mode is not Mode.SNAPSHOT:
            return None
        return progress

    # ---------------------------------------------------------------- who has what

    def matches(self) -> Iterator[tuple[int, int]]:
        """Each member that counts, and the last entry that is known to be on its disk."""
        yield self.id, self._log.persisted
        for peer, progress in self.progress.items():
            yield peer, progress.counted

    def behind(self, commit: int) -> tuple[int, ...]:
        """How far each member's disk is behind `commit`, as messages say it.

        Kept until a reply or a write changes it: an append says the same to all followers.
        """
        if self._behind is None or self._behind[0] != commit:
            self._behind = commit, encode_behind(commit, self.matches())
        return self._behind[1]

    def watch(self, peer: int, index: int) -> None:
        progress = self.progress[peer]
        progress.watched_index = max(progress.watched_index, min(index, self._log.last_index))
        progress.watched_holders = 0
        self.tell_watchers()

    def tell_watchers(self) -> None:
        """Tell those who wait for another disk to have an entry, if one has it now."""
        for peer, progress in self.progress.items():
            if not progress.watched_index:
                continue
            matches, voters = dict(self.matches()), self._log.membership.voters
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
