"""Snapshots of the state on their way: to followers that the log can't help, and from a leader.

Theory of operation. The core asks for a snapshot to be sent (`SnapshotRequest`), and says what a
leader offers (`SnapshotOffer`). Here is what lies between: which parts go out when, and what is to
be done when nothing comes back. Files, threads and checksums are the `SnapshotFiles`' business.

    leader                               follower
    make a snapshot, once for all
    SnapshotOffer          ->            of no use: SnapshotReply(HOLDS)
                           <-            SnapshotReply(RECEIVING, bytes that it has)
    SnapshotChunk ...      ->            written and synced, one after the other
                           <-            SnapshotReply(RECEIVING, bytes that it has)
                                         whole: checked; damaged: SnapshotReply(REFUSED)
                                         the node is opened anew with it
    SnapshotOffer          ->            (the connection was lost, or nothing came for a while)
                           <-            SnapshotReply(HOLDS, index)

Only so much is unacknowledged at a time, so chunks never stand in front of heartbeats for long; how
fast they follow each other is for `snapshot_rate.py` to say. An offer is repeated whenever the
follower is back or silent; each goes on from what it has on disk.

No install loop: while a snapshot is made and sent the log behind it is kept, and after that until
the follower has caught up or stands still (`RetainedLog`). If a transfer fails, the next begins
after a pause. A leader that is deposed forgets everything; its successor makes a snapshot of its
own.
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
    """Who makes, reads, writes and checks snapshots. `done` is called on the node's thread."""

    chunk_bytes: int
    """What every member cuts snapshots into."""

    def make(
        self, snapshot_id: int, rate: SnapshotRate, done: Callable[[SnapshotFile | None], None]
    ) -> None:
        """Make a snapshot of the last checkpoint at this rate, None if that isn't possible now."""
        ...

    def read(
        self, snapshot: SnapshotFile, offset: int, done: Callable[[Chunk | None], None]
    ) -> None: ...
    def drop(self, snapshot_id: int) -> None: ...
    def begin(self, offer: SnapshotOffer, done: Callable[[int | None], None]) -> None:
        """Prepare to receive; how much is there already, None if that isn't possible now."""
        ...

    def write(self, chunk: Chunk, done: Callable[[int | None], None]) -> None:
        """Write a chunk durably; how much is there then, as much as before if it is damaged.

        None if that isn't possible now.
        """
        ...

    def check(self, offer: SnapshotOffer, done: Callable[[bool], None]) -> None:
        """Check a snapshot that is whole, and make it ready to be installed."""
        ...

    def discard(self) -> None:
        """Remove what was received."""
        ...

    def install(self) -> None:
        """End this node, and open it anew with the snapshot that is ready."""
        ...


@dataclass(slots=True)
class Transfer:
    """A snapshot on its way to one follower; times are on the monotonic clock."""

    request: SnapshotRequest
    advanced_at: float
    offered_at: float = float("-inf")
    acknowledged: int = -1
    """How much the follower has; -1 before it has answered."""
    most: int = -1
    """The most it ever had; what counts as progress is more than that."""
    sent: int = 0
    is_reading: bool = False
    resumes_at: float | None = None
    """When it is given up, for the core to look at that follower anew."""


@dataclass(slots=True)
class RetainedLog:
    """A follower that a snapshot was sent to: the log after `index` is kept for it."""

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
        """`rate` limits how fast snapshots go out, all followers together."""
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
        """How often in a row a snapshot didn't get to a follower; each pause is twice the last."""
        self._snapshot: SnapshotFile | None = None
        self._making = 0
        self._making_retains = 0

    def kept_index(self) -> int | None:
        """The log after this index must stay; None if snapshots need none of it."""
        # A follower that was sent a snapshot still needs what follows it, until it has caught up.
        indexes = [retained.index for retained in self._retained.values()]
        if self._making:
            indexes.append(self._making_retains)
        if self._snapshot is not None:
            indexes.append(self._snapshot.position.index)
        return min(indexes, default=None)

    def begin(self, request: SnapshotRequest, checkpoint_index: int) -> None:
        """The core wants a snapshot sent; the last checkpoint is at `checkpoint_index` or later."""
        transfer = Transfer(request, self._now())
        self._transfers[request.peer] = transfer
        if self._snapshot is not None:
            self._offer(transfer, self._snapshot)
        elif not self._making:
            self._making = 1 + self._random_below((1 << 63) - 1)
            self._making_retains = checkpoint_index
            self._files.make(self._making, self._rate, self._on_made)

    def on_connected(self, peer: int) -> None:
        """A follower is back: it may have been opened anew with the snapshot."""
        transfer = self._transfers.get(peer)
        if transfer is not None and self._snapshot is not None:
            self._offer(transfer, self._snapshot)

    def on_reply(self, reply: SnapshotReply) -> None:
        """A follower says how it goes."""
        transfer, snapshot = self._transfers.get(reply.sender), self._snapshot
        if transfer is None or snapshot is None or reply.snapshot_id != snapshot.snapshot_id:
            return
        if reply.status == SnapshotStatus.HOLDS:
            self._sent(transfer, snapshot, reply.value)
        elif reply.status == SnapshotStatus.REFUSED:
            # Whoever gets this snapshot finds it damaged: the next one is made anew.
            for other in self._transfers.values():
                self._pause(other)
            self._drop_snapshot()
        elif reply.status == SnapshotStatus.RECEIVING and reply.value <= snapshot.size:
            self._received(transfer, snapshot, reply.value)

    def _received(self, transfer: Transfer, snapshot: SnapshotFile, has: int) -> None:
        """The follower has this much of the snapshot: send what comes next."""
        if transfer.resumes_at is not None:
            return
        now = self._now()
        # Who has all of it is checking it, for as long as that takes.
        if has > transfer.most or has == snapshot.size:
            transfer.most, transfer.advanced_at = has, now
        if transfer.acknowledged < 0 or has < transfer.acknowledged:
            transfer.sent = has
        transfer.acknowledged, transfer.offered_at = has, now
        transfer.sent = max(transfer.sent, has)
        self._pump(transfer, snapshot)

    def on_tick(self) -> None:
        """Time has passed: send what the rate allows, ask those who are silent, give up."""
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
        # What was on its way may be lost: it says itself from where to go on.
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
        """Have the next chunk read, if the window and the rate have room for it."""
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
        """Let go of the log that was kept for followers which have caught up, or stand still."""
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
        """Whether a follower is sent what is still in memory."""
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
        """What has come and is not written yet, by offset."""
        self._has = 0
        self._is_busy = False
        """Whether the files work on this snapshot; at most one thing at a time."""

    def on_offer(self, offer: SnapshotOffer) -> None:
        """A leader has a snapshot; the core has taken it for the leader."""
        if self._core.holds(offer.index, offer.index_term):
            self._reply(offer, SnapshotStatus.HOLDS, offer.index)
            return
        if self._is_busy:
            if self._offer is not None and self._offer.snapshot_id == offer.snapshot_id:
                self._reply(offer, SnapshotStatus.RECEIVING, self._has)
            return  # Another one is repeated until there is time for it.
        if self._offer is None or self._offer.snapshot_id != offer.snapshot_id:
            self._has = 0
        self._offer = offer
        self._is_busy = True
        self._waiting.clear()
        self._files.begin(offer, self._on_begun)

    def on_chunk(self, chunk: SnapshotChunk) -> None:
        """A part of the snapshot came."""
        offer = self._offer
        if offer is None or (chunk.sender, chunk.snapshot_id) != (offer.sender, offer.snapshot_id):
            return
        if chunk.offset == self._has and len(self._waiting) >= WINDOW_CHUNKS:
            self._waiting.clear()  # They were cut at other places, before the connection was lost.
        if chunk.offset >= self._has and len(self._waiting) < WINDOW_CHUNKS:
            # Chunks may come twice, or in another order; for a lost one the sender will ask.
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
            # The chunk was damaged. What follows it is of no use; all is sent again from there.
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
        elif self._core.holds(offer.index, offer.index_term):
            # Another leader's log helped after all; a snapshot now would throw away what came
            # since.
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
    """The leader's and the follower's side of one node, and the rate at which snapshots go out."""

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
        """At most `bytes_per_s_max` for all followers together; 0 for no such limit."""
        self._rate = SnapshotRate(now(), bytes_per_s_max)
        self._sender = SnapshotSender(core, files, send, emit, random_below, now, self._rate)
        self._receiver = SnapshotReceiver(core, files, send, emit)

    def kept_index(self) -> int | None:
        """The log after this index must stay; None if snapshots need none of it."""
        return self._sender.kept_index()

    def begin(self, request: SnapshotRequest, checkpoint_index: int) -> None:
        """The core wants a snapshot sent; the last checkpoint is at `checkpoint_index` or later."""
        self._sender.begin(request, checkpoint_index)

    def on_offer(self, offer: SnapshotOffer) -> None:
        """A leader has a snapshot; the core has taken it for the leader."""
        self._receiver.on_offer(offer)

    def on_message(self, message: SnapshotChunk | SnapshotReply) -> None:
        """A part of a snapshot came, or a follower's answer."""
        if isinstance(message, SnapshotChunk):
            self._receiver.on_chunk(message)
        else:
            self._sender.on_reply(message)

    def on_connected(self, peer: int) -> None:
        """A follower is back."""
        self._sender.on_connected(peer)

    def on_commit_time(self, took_s: float) -> None:
        """A batch of writes was applied, so long after it was proposed: the rate goes by that."""
        self._rate.record_batch(took_s)

    def on_tick(self) -> None:
        """Time has passed."""
        self._sender.on_tick()
