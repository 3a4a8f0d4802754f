"""Snapshots of the state in transit: to followers that need log which no longer exists.

Theory of operation. The core requests that a snapshot be sent (`SnapshotRequest`), and passes on a
leader's offer (`SnapshotOffer`). This module does the rest: it decides which parts are sent when,
and what happens when no reply comes. `SnapshotFiles` handles files, threads and checksums.

    leader                               follower
    make a snapshot, one for all followers
    SnapshotOffer          ->            if not needed: SnapshotReply(HOLDS)
                           <-            SnapshotReply(RECEIVING, bytes on its disk)
    SnapshotChunk ...      ->            write and sync one chunk after the other
                           <-            SnapshotReply(RECEIVING, bytes on its disk)
                                         complete: check it; if damaged: SnapshotReply(REFUSED)
                                         reopen the node with it
    SnapshotOffer          ->            (the connection was lost, or no reply came for a while)
                           <-            SnapshotReply(HOLDS, index)

The unacknowledged chunks are limited, so they never delay heartbeats for long. `snapshot_rate.py`
decides how fast chunks follow each other. The leader repeats its offer when the follower reconnects
or is silent; the transfer then resumes after the bytes that the follower has on disk.

No install loop: the leader keeps the log after a snapshot while it makes and sends the snapshot,
and then until the follower has caught up or makes no progress (`RetainedLog`). After a failed
transfer the next one begins after a pause. A leader that loses leadership forgets its transfers;
its successor makes its own snapshot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from raftha.core import Raft, SnapshotOffer, SnapshotRequest
from raftha.core.progress import Mode, Progress
from raftha.events import HaEvent, SnapshotInstalling, SnapshotSent
from raftha.node.messages import SnapshotChunk, SnapshotReply, SnapshotStatus
from raftha.node.snapshot_rate import SnapshotRate
from raftha.storage.directory.snapshot import Chunk, SnapshotFile

WINDOW_CHUNKS = 4
OFFER_AGAIN_AFTER_S = 1.0
GIVE_UP_AFTER_S = 30.0
PAUSE_S, PAUSE_MAX_S = 1.0, 60.0
STANDSTILL_S = 10.0


class SnapshotFiles(Protocol):
    """Makes, reads, writes and checks snapshots. Calls `done` on the node's thread."""

    chunk_bytes: int
    """The size of the chunks that snapshots are sent in; the same on every member."""

    def make(
        self, snapshot_id: int, rate: SnapshotRate, done: Callable[[SnapshotFile | None], None]
    ) -> None:
        """Make a snapshot of the last checkpoint at this rate; None if that isn't possible now."""
        ...

    def read(
        self, snapshot: SnapshotFile, offset: int, done: Callable[[Chunk | None], None]
    ) -> None: ...
    def drop(self, snapshot_id: int) -> None: ...
    def begin(self, offer: SnapshotOffer, done: Callable[[int | None], None]) -> None:
        """Prepare to receive; `done` gets the bytes on disk, None if that isn't possible now."""
        ...

    def write(self, chunk: Chunk, done: Callable[[int | None], None]) -> None:
        """Write a chunk durably; `done` gets the bytes on disk, unchanged if it is damaged.

        None if that isn't possible now.
        """
        ...

    def check(self, offer: SnapshotOffer, done: Callable[[bool], None]) -> None:
        """Check a complete snapshot, and make it ready to install."""
        ...

    def discard(self) -> None:
        """Remove the received bytes."""
        ...

    def install(self) -> None:
        """End this node, and reopen it with the snapshot that is ready."""
        ...


@dataclass(slots=True)
class Transfer:
    """A snapshot in transit to one follower; times are on the monotonic clock."""

    request: SnapshotRequest
    advanced_at: float
    offered_at: float = float("-inf")
    acknowledged: int = -1
    """The bytes that the follower has; -1 before its first reply."""
    most: int = -1
    """The most bytes that it ever had; only more than that counts as progress."""
    sent: int = 0
    is_reading: bool = False
    resumes_at: float | None = None
    """Set once the transfer has failed: when the core may retry that follower."""


@dataclass(slots=True)
class RetainedLog:
    """A follower that was sent a snapshot: the log after `index` is kept for it."""

    index: int
    advanced_at: float


class SnapshotSender:
    """The leader's side."""

    def __init__(
        self,
        core: Raft,
        files: SnapshotFiles,
        send: Callable[[SnapshotOffer | SnapshotChunk], None],
        emit: Callable[[HaEvent], None],
        random_below: Callable[[int], int],
        now: Callable[[], float],
        rate: SnapshotRate,
    ) -> None:
        """`rate` limits how fast snapshots are made and sent, over all followers."""
        self._core = core
        self._files = files
        self._send = send
        self._emit = emit
        self._random_below = random_below
        self._now = now
        self._rate = rate
        self._transfers: dict[int, Transfer] = {}
        self._retained: dict[int, RetainedLog] = {}
        self._failures: dict[int, int] = {}
        """The failed transfers in a row, by follower; each pause is twice the last."""
        self._snapshot: SnapshotFile | None = None
        self._making = 0
        self._making_retains = 0

    def kept_index(self) -> int | None:
        """Return the index after which snapshots need the log; None if they need none."""
        # A follower that was sent a snapshot needs the log after it until it has caught up.
        indexes = [retained.index for retained in self._retained.values()]
        if self._making:
            indexes.append(self._making_retains)
        if self._snapshot is not None:
            indexes.append(self._snapshot.position.index)
        return min(indexes, default=None)

    def begin(self, request: SnapshotRequest, checkpoint_index: int | None) -> None:
        """Send a snapshot, of the checkpoint at `checkpoint_index` or of a later one.

        None: there is no checkpoint yet that may be sent.
        """
        transfer = Transfer(request, self._now())
        self._transfers[request.peer] = transfer
        if checkpoint_index is None:
            self._pause(transfer)
        elif self._snapshot is not None:
            self._offer(transfer, self._snapshot)
        elif not self._making:
            self._making = 1 + self._random_below((1 << 63) - 1)
            self._making_retains = checkpoint_index
            self._files.make(self._making, self._rate, self._on_made)

    def is_sending(self, peer: int) -> bool:
        """Whether this follower is being sent a snapshot, or soon is again."""
        return peer in self._transfers

    def on_connected(self, peer: int) -> None:
        """A follower has reconnected: it may have been reopened with the snapshot."""
        transfer = self._transfers.get(peer)
        if transfer is not None and self._snapshot is not None:
            self._offer(transfer, self._snapshot)

    def on_reply(self, reply: SnapshotReply) -> None:
        """A follower reports its progress."""
        transfer, snapshot = self._transfers.get(reply.sender), self._snapshot
        if transfer is None or snapshot is None or reply.snapshot_id != snapshot.snapshot_id:
            return
        if reply.status == SnapshotStatus.HOLDS:
            self._sent(transfer, snapshot, reply.value)
        elif reply.status == SnapshotStatus.REFUSED:
            # Every follower would find this snapshot damaged: make another one.
            for other in self._transfers.values():
                self._pause(other)
            self._drop_snapshot()
        elif reply.status == SnapshotStatus.RECEIVING and reply.value <= snapshot.size:
            self._received(transfer, snapshot, reply.value)

    def _received(self, transfer: Transfer, snapshot: SnapshotFile, has: int) -> None:
        """The follower has this much of the snapshot: send the next chunks."""
        if transfer.resumes_at is not None:
            return
        now = self._now()
        # A follower that has all of it is checking it, for as long as that takes.
        if has > transfer.most or has == snapshot.size:
            transfer.most, transfer.advanced_at = has, now
        if transfer.acknowledged < 0 or has < transfer.acknowledged:
            transfer.sent = has
        transfer.acknowledged, transfer.offered_at = has, now
        transfer.sent = max(transfer.sent, has)
        self._pump(transfer, snapshot)

    def on_tick(self) -> None:
        """A tick has passed: send what the rate allows, repeat offers, fail what takes too long."""
        now = self._now()
        self._rate.on_tick(now)
        for peer, transfer in list(self._transfers.items()):
            if not self._is_wanted(transfer.request):
                del self._transfers[peer]
            elif transfer.resumes_at is not None:
                if now >= transfer.resumes_at:
                    del self._transfers[peer]
                    self._core.snapshot_failed(transfer.request)
            elif self._snapshot is not None:
                self._drive(transfer, self._snapshot, now)
        if self._snapshot is not None and not any(
            transfer.resumes_at is None for transfer in self._transfers.values()
        ):
            self._drop_snapshot()
        self._release(now)

    def _drive(self, transfer: Transfer, snapshot: SnapshotFile, now: float) -> None:
        if now - transfer.advanced_at > GIVE_UP_AFTER_S:
            self._pause(transfer)
        elif now - transfer.offered_at > OFFER_AGAIN_AFTER_S:
            self._offer(transfer, snapshot)
        else:
            self._pump(transfer, snapshot)

    def _is_wanted(self, request: SnapshotRequest) -> bool:
        core = self._core
        return core.is_leader and core.term == request.term and request.peer in core.progress

    def _on_made(self, snapshot: SnapshotFile | None) -> None:
        self._making = 0
        transfers = [t for t in self._transfers.values() if t.resumes_at is None]
        if snapshot is None:
            for transfer in transfers:
                self._pause(transfer)
            return
        self._snapshot = snapshot
        for transfer in transfers:
            transfer.advanced_at = self._now()
            self._offer(transfer, snapshot)

    def _offer(self, transfer: Transfer, snapshot: SnapshotFile) -> None:
        if not self._is_wanted(transfer.request) or transfer.resumes_at is not None:
            return
        # Chunks in transit may be lost: the follower's reply tells where to resume.
        transfer.acknowledged, transfer.offered_at = -1, self._now()
        peer, term = transfer.request
        position = snapshot.position
        self._send(
            SnapshotOffer(
                to=peer,
                sender=self._core.id,
                term=term,
                snapshot_id=snapshot.snapshot_id,
                index=position.index,
                index_term=position.term,
                size=snapshot.size,
                sha256=snapshot.sha256,
            )
        )

    def _pump(self, transfer: Transfer, snapshot: SnapshotFile) -> None:
        """Read the next chunk to send, if the window and the rate allow it."""
        is_open = transfer.acknowledged >= 0 and transfer.resumes_at is None
        is_full = (
            transfer.sent - transfer.acknowledged + self._files.chunk_bytes
            > WINDOW_CHUNKS * self._files.chunk_bytes
        )
        if transfer.is_reading or not is_open or is_full or transfer.sent >= snapshot.size:
            return
        if not self._rate.may_send(self._now(), self._files.chunk_bytes):
            return
        transfer.is_reading = True
        offset = transfer.sent
        self._files.read(snapshot, offset, lambda chunk: self._on_read(transfer, snapshot, chunk))

    def _on_read(self, transfer: Transfer, snapshot: SnapshotFile, chunk: Chunk | None) -> None:
        transfer.is_reading = False
        peer = transfer.request.peer
        if self._transfers.get(peer) is not transfer or self._snapshot is not snapshot:
            return
        if chunk is None:
            self._pause(transfer)
            return
        if chunk.offset == transfer.sent and transfer.acknowledged >= 0:
            transfer.sent = min(transfer.sent + self._files.chunk_bytes, snapshot.size)
            self._send(
                SnapshotChunk(
                    to=peer,
                    sender=self._core.id,
                    snapshot_id=snapshot.snapshot_id,
                    offset=chunk.offset,
                    crc=chunk.crc,
                    data=chunk.data,
                )
            )
        self._pump(transfer, snapshot)

    def _sent(self, transfer: Transfer, snapshot: SnapshotFile, index: int) -> None:
        peer = transfer.request.peer
        del self._transfers[peer]
        self._failures.pop(peer, None)
        self._retained[peer] = RetainedLog(min(index, snapshot.position.index), self._now())
        self._emit(
            SnapshotSent(reporter=self._core.id, node_id=peer, index=index, size=snapshot.size)
        )
        self._core.snapshot_sent(transfer.request, index)

    def _pause(self, transfer: Transfer) -> None:
        if transfer.resumes_at is None:
            peer = transfer.request.peer
            failures = self._failures.get(peer, 0)
            self._failures[peer] = failures + 1
            transfer.resumes_at = self._now() + min(PAUSE_S * 2 ** min(failures, 10), PAUSE_MAX_S)

    def _drop_snapshot(self) -> None:
        if self._snapshot is not None:
            self._files.drop(self._snapshot.snapshot_id)
            self._snapshot = None

    def _release(self, now: float) -> None:
        """Release the log kept for followers that have caught up or make no progress."""
        for peer, retained in list(self._retained.items()):
            progress = self._core.progress.get(peer)
            if progress is not None and progress.match > retained.index:
                retained.index, retained.advanced_at = progress.match, now
            if (
                progress is None
                or self._is_level(progress)
                or now - retained.advanced_at > STANDSTILL_S
            ):
                del self._retained[peer]

    def _is_level(self, progress: Progress) -> bool:
        """True if a follower gets entries that are still in memory."""
        is_replicating = progress.mode is Mode.REPLICATE
        return is_replicating and self._core.log.term(progress.match) is not None


class SnapshotReceiver:
    """The follower's side."""

    def __init__(
        self,
        core: Raft,
        files: SnapshotFiles,
        send: Callable[[SnapshotReply], None],
        emit: Callable[[HaEvent], None],
    ) -> None:
        self._core = core
        self._files = files
        self._send = send
        self._emit = emit
        self._offer: SnapshotOffer | None = None
        self._waiting: dict[int, Chunk] = {}
        """Chunks that are not written yet, by offset."""
        self._has = 0
        self._is_busy = False
        """True while the files work on this snapshot; they do one thing at a time."""

    def on_offer(self, offer: SnapshotOffer) -> None:
        """A leader offers a snapshot; the core has accepted the sender as the leader."""
        if self._core.log.holds(offer.index, offer.index_term):
            self._reply(offer, SnapshotStatus.HOLDS, offer.index)
            return
        if self._is_busy:
            if self._offer is not None and self._offer.snapshot_id == offer.snapshot_id:
                self._reply(offer, SnapshotStatus.RECEIVING, self._has)
            return  # Another offer is repeated until the files are free.
        if self._offer is None or self._offer.snapshot_id != offer.snapshot_id:
            self._has = 0
        self._offer = offer
        self._is_busy = True
        self._waiting.clear()
        self._files.begin(offer, self._on_begun)

    def on_chunk(self, chunk: SnapshotChunk) -> None:
        """A chunk of the snapshot arrived."""
        offer = self._offer
        if offer is None or (chunk.sender, chunk.snapshot_id) != (offer.sender, offer.snapshot_id):
            return
        if chunk.offset == self._has and len(self._waiting) >= WINDOW_CHUNKS:
            self._waiting.clear()  # Chunks from before a lost connection: their offsets don't fit.
        if chunk.offset >= self._has and len(self._waiting) < WINDOW_CHUNKS:
            # Chunks may be repeated or reordered; after a lost one the leader offers again.
            self._waiting[chunk.offset] = Chunk(chunk.offset, chunk.crc, chunk.data)
            self._write_next()

    def _on_begun(self, has: int | None) -> None:
        self._is_busy = False
        if has is None:
            assert self._offer is not None
            self._refuse(self._offer)
            return
        self._on_progress(has)

    def _write_next(self) -> None:
        if self._has in self._waiting and not self._is_busy:
            self._is_busy = True
            self._files.write(self._waiting.pop(self._has), self._on_written)

    def _on_written(self, has: int | None) -> None:
        self._is_busy = False
        if has is None:
            assert self._offer is not None
            self._refuse(self._offer)
            return
        if has == self._has:
            # The chunk was damaged. Drop what follows it: the leader sends all of it again.
            self._waiting.clear()
        self._waiting = {at: chunk for at, chunk in self._waiting.items() if at >= has}
        self._on_progress(has)

    def _on_progress(self, has: int) -> None:
        offer = self._offer
        assert offer is not None
        self._has = has
        self._reply(offer, SnapshotStatus.RECEIVING, has)
        if has == offer.size:
            self._is_busy = True
            self._files.check(offer, self._on_checked)
        else:
            self._write_next()

    def _on_checked(self, is_sound: bool) -> None:
        self._is_busy = False
        offer = self._offer
        assert offer is not None
        if not is_sound:
            self._refuse(offer)
        elif self._core.log.holds(offer.index, offer.index_term):
            # Another leader's log has helped meanwhile; installing the snapshot would drop newer
            # entries.
            self._offer = None
            self._files.discard()
            self._reply(offer, SnapshotStatus.HOLDS, offer.index)
        else:
            self._emit(SnapshotInstalling(reporter=self._core.id, index=offer.index))
            self._files.install()

    def _refuse(self, offer: SnapshotOffer) -> None:
        self._offer = None
        self._waiting.clear()
        self._files.discard()
        self._reply(offer, SnapshotStatus.REFUSED, 0)

    def _reply(self, offer: SnapshotOffer, status: SnapshotStatus, value: int) -> None:
        self._send(
            SnapshotReply(
                to=offer.sender,
                sender=self._core.id,
                snapshot_id=offer.snapshot_id,
                status=int(status),
                value=value,
            )
        )


class Snapshots:
    """One node's sender and receiver of snapshots, and the rate at which it sends them."""

    def __init__(
        self,
        core: Raft,
        files: SnapshotFiles,
        send: Callable[[SnapshotOffer | SnapshotChunk | SnapshotReply], None],
        emit: Callable[[HaEvent], None],
        random_below: Callable[[int], int],
        now: Callable[[], float],
        bytes_per_s_max: int,
    ) -> None:
        """`bytes_per_s_max` limits making and sending, over all followers; 0 for no such limit."""
        self._rate = SnapshotRate(now(), bytes_per_s_max)
        self._sender = SnapshotSender(core, files, send, emit, random_below, now, self._rate)
        self._receiver = SnapshotReceiver(core, files, send, emit)

    def kept_index(self) -> int | None:
        """Return the index after which snapshots need the log; None if they need none."""
        return self._sender.kept_index()

    def begin(self, request: SnapshotRequest, checkpoint_index: int | None) -> None:
        """Send a snapshot, of the checkpoint at `checkpoint_index` or of a later one, if any."""
        self._sender.begin(request, checkpoint_index)

    def send_state(self, peer: int, term: int, checkpoint_index: int | None) -> None:
        """Send a follower a snapshot that can't apply its log further; nothing if one is sent."""
        if not self._sender.is_sending(peer):
            self._sender.begin(SnapshotRequest(peer, term), checkpoint_index)

    def on_offer(self, offer: SnapshotOffer) -> None:
        """A leader offers a snapshot; the core has accepted the sender as the leader."""
        self._receiver.on_offer(offer)

    def on_message(self, message: SnapshotChunk | SnapshotReply) -> None:
        """A chunk of a snapshot arrived, or a follower's reply."""
        if isinstance(message, SnapshotChunk):
            self._receiver.on_chunk(message)
        else:
            self._sender.on_reply(message)

    def on_connected(self, peer: int) -> None:
        """A follower has reconnected."""
        self._sender.on_connected(peer)

    def on_commit_time(self, took_s: float) -> None:
        """A batch of writes was applied `took_s` after its proposal: adjust the rate to it."""
        self._rate.record_batch(took_s)

    def on_tick(self) -> None:
        """A tick has passed."""
        self._sender.on_tick()
