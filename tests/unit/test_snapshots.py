"""Snapshots under way: what is sent when, and what happens after errors or silence."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from raftha.core import Raft, SnapshotOffer, SnapshotRequest
from raftha.core.progress import Mode, Progress
from raftha.entry import LogPosition
from raftha.node.messages import SnapshotChunk, SnapshotReply, SnapshotStatus
from raftha.node.snapshot_rate import SnapshotRate
from raftha.node.snapshots import (
    GIVE_UP_AFTER_S,
    OFFER_AGAIN_AFTER_S,
    PAUSE_S,
    STANDSTILL_S,
    WINDOW_CHUNKS,
    SnapshotReceiver,
    SnapshotSender,
)
from raftha.storage.directory.snapshot import Chunk, SnapshotFile

SIZE = 1000
CHUNK = 100


class Files:
    """Snapshots without files: each result is there at once, unless it is held."""

    chunk_bytes = CHUNK

    def __init__(self) -> None:
        self.made = 0
        self.dropped: list[int] = []
        self.has = 0
        self.is_sound = True
        self.is_installed = False
        self.discarded = 0

    def make(
        self, snapshot_id: int, rate: SnapshotRate, done: Callable[[SnapshotFile | None], None]
    ) -> None:
        self.made += 1
        done(SnapshotFile(snapshot_id, LogPosition(50, 2, 0, 0, b""), SIZE, b"sha"))

    def read(
        self, snapshot: SnapshotFile, offset: int, done: Callable[[Chunk | None], None]
    ) -> None:
        done(Chunk(offset, 0, b"x"))

    def drop(self, snapshot_id: int) -> None:
        self.dropped.append(snapshot_id)

    def begin(self, offer: SnapshotOffer, done: Callable[[int | None], None]) -> None:
        done(self.has)

    def write(self, chunk: Chunk, done: Callable[[int | None], None]) -> None:
        if chunk.data != b"damaged":
            self.has = chunk.offset + CHUNK
        done(self.has)

    def check(self, offer: SnapshotOffer, done: Callable[[bool], None]) -> None:
        done(self.is_sound)

    def discard(self) -> None:
        self.discarded += 1

    def install(self) -> None:
        self.is_installed = True


class Leader:
    """A sender, its clock, and the view of a core that leads term 2."""

    def __init__(self, bytes_per_s: int = 0) -> None:
        self.now = 100.0
        self.files = Files()
        self.sent: list[Any] = []
        self.failed: list[SnapshotRequest] = []
        self.done: list[tuple[SnapshotRequest, int]] = []
        self.progress = {2: Progress(10, 256, 1 << 20), 3: Progress(10, 256, 1 << 20)}
        self.core = SimpleNamespace(
            id=1,
            term=2,
            is_leader=True,
            progress=self.progress,
            log=SimpleNamespace(term=lambda index: 2 if index >= 90 else None),
            snapshot_failed=self.failed.append,
            snapshot_sent=lambda request, index: self.done.append((request, index)),
        )
        self.sender = SnapshotSender(
            cast(Raft, self.core),
            self.files,
            self.sent.append,
            lambda event: None,
            lambda limit: 6,
            lambda: self.now,
            SnapshotRate(self.now, bytes_per_s),
        )

    def begin(self, peer: int = 2) -> SnapshotOffer:
        self.sender.begin(SnapshotRequest(peer, 2), 40)
        offer = self.sent.pop()
        assert isinstance(offer, SnapshotOffer)
        return offer

    def reply(self, status: SnapshotStatus, value: int, peer: int = 2) -> None:
        self.sender.on_reply(SnapshotReply(1, peer, 7, int(status), value))

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.sender.on_tick()

    def offsets(self) -> list[int]:
        """Take the chunks that were sent."""
        chunks = [message.offset for message in self.sent if isinstance(message, SnapshotChunk)]
        self.sent.clear()
        return chunks


@pytest.fixture
def leader() -> Leader:
    return Leader()


def test_only_so_much_is_unacknowledged(leader: Leader) -> None:
    leader.begin()
    assert leader.offsets() == []
    leader.reply(SnapshotStatus.RECEIVING, 0)
    assert leader.offsets() == [0, 100, 200, 300]
    assert WINDOW_CHUNKS == 4
    leader.reply(SnapshotStatus.RECEIVING, 100)
    assert leader.offsets() == [400]


def test_a_transfer_goes_on_from_what_the_follower_has(leader: Leader) -> None:
    leader.begin()
    leader.reply(SnapshotStatus.RECEIVING, 0)
    leader.offsets()
    leader.sender.on_connected(2)
    assert isinstance(leader.sent.pop(), SnapshotOffer)
    leader.reply(SnapshotStatus.RECEIVING, 150)
    assert leader.offsets() == [150, 250, 350, 450]


def test_the_offer_is_repeated_to_a_silent_follower(leader: Leader) -> None:
    leader.begin()
    leader.wait(OFFER_AGAIN_AFTER_S + 0.1)
    assert [type(message) for message in leader.sent] == [SnapshotOffer]


def test_a_rate_limit_spreads_the_chunks() -> None:
    leader = Leader(bytes_per_s=CHUNK)
    leader.begin()
    leader.reply(SnapshotStatus.RECEIVING, 0)
    sent = leader.offsets()
    for _ in range(20):
        leader.wait(0.1)
        sent += leader.offsets()
    assert len(sent) <= 4, "one a second, and a second's worth in advance"


def test_a_sent_snapshot_is_dropped_and_its_log_kept_until_caught_up(
    leader: Leader,
) -> None:
    leader.begin()
    assert leader.sender.kept_index() == 50
    leader.reply(SnapshotStatus.HOLDS, 50)
    assert leader.done == [(SnapshotRequest(2, 2), 50)]
    leader.wait(0.1)
    assert leader.files.dropped == [7]
    assert leader.sender.kept_index() == 50
    leader.progress[2].match = 80
    leader.wait(STANDSTILL_S - 1)
    assert leader.sender.kept_index() == 80
    leader.progress[2].match, leader.progress[2].mode = 90, Mode.REPLICATE
    leader.wait(0.1)
    assert leader.sender.kept_index() is None


def test_the_log_is_not_kept_for_a_follower_that_stands_still(leader: Leader) -> None:
    leader.begin()
    leader.reply(SnapshotStatus.HOLDS, 50)
    leader.wait(STANDSTILL_S + 1)
    assert leader.sender.kept_index() is None


def test_two_followers_share_a_snapshot(leader: Leader) -> None:
    assert leader.begin(2).snapshot_id == leader.begin(3).snapshot_id
    leader.reply(SnapshotStatus.HOLDS, 50, peer=2)
    leader.wait(0.1)
    assert (leader.files.made, leader.files.dropped) == (1, [])
    leader.reply(SnapshotStatus.HOLDS, 50, peer=3)
    leader.wait(0.1)
    assert leader.files.dropped == [7]


def test_a_refused_snapshot_is_made_again_after_growing_pauses(leader: Leader) -> None:
    for failures in range(1, 5):
        leader.begin()
        leader.reply(SnapshotStatus.REFUSED, 0)
        assert leader.files.dropped == [7] * failures
        pause = PAUSE_S * 2 ** (failures - 1)
        leader.wait(pause - 0.1)
        assert len(leader.failed) == failures - 1
        leader.wait(0.2)
        assert len(leader.failed) == failures
    assert leader.files.made == 4


def test_a_transfer_without_progress_is_given_up(leader: Leader) -> None:
    leader.begin()
    for _ in range(int(GIVE_UP_AFTER_S) + 4):
        leader.wait(OFFER_AGAIN_AFTER_S + 0.1)
        leader.reply(SnapshotStatus.RECEIVING, 0)
    assert leader.failed == [SnapshotRequest(2, 2)]


def test_a_follower_may_take_long_to_check_a_whole_snapshot(leader: Leader) -> None:
    leader.begin()
    for _ in range(int(3 * GIVE_UP_AFTER_S)):
        leader.wait(1)
        leader.reply(SnapshotStatus.RECEIVING, SIZE)
    assert not leader.failed


@pytest.mark.parametrize("change", [{"is_leader": False}, {"term": 3}, {"progress": {}}], ids=str)
def test_a_deposed_leader_gives_up(leader: Leader, change: dict[str, Any]) -> None:
    leader.begin()
    vars(leader.core).update(change)
    leader.wait(0.1)
    assert leader.files.dropped == [7]
    assert leader.sender.kept_index() is None
    leader.reply(SnapshotStatus.HOLDS, 50)
    assert not leader.done


def test_nonsense_from_a_follower_changes_nothing(leader: Leader) -> None:
    leader.begin()
    leader.reply(SnapshotStatus.RECEIVING, SIZE + 1)
    leader.reply(cast(SnapshotStatus, 99), 0)
    leader.reply(SnapshotStatus.RECEIVING, 0, peer=3)
    leader.sender.on_reply(SnapshotReply(1, 2, 8, 2, 50))
    assert not leader.sent
    assert not leader.done


class Follower:
    """A receiver, with a core whose log holds entries up to `last`."""

    def __init__(self) -> None:
        self.last = 10
        self.files = Files()
        self.replies: list[tuple[int, int]] = []
        log = SimpleNamespace(holds=lambda index, term: index <= self.last)
        core = SimpleNamespace(id=2, log=log)
        self.receiver = SnapshotReceiver(
            cast(Raft, core),
            self.files,
            lambda reply: self.replies.append((reply.status, reply.value)),
            lambda event: None,
        )
        self.offer = SnapshotOffer(2, 1, 2, 7, 50, 2, 300, b"sha")

    def chunk(self, offset: int, data: bytes = b"x") -> None:
        self.receiver.on_chunk(SnapshotChunk(2, 1, 7, offset, 0, data))


def test_a_snapshot_is_received_in_any_order_and_installed() -> None:
    follower = Follower()
    follower.receiver.on_offer(follower.offer)
    for offset in (100, 100, 0, 0, 200):
        follower.chunk(offset)
    assert follower.replies == [(1, 0), (1, 100), (1, 200), (1, 300)]
    assert follower.files.is_installed


def test_a_snapshot_of_entries_that_the_log_holds_is_useless() -> None:
    follower = Follower()
    follower.last = 50
    follower.receiver.on_offer(follower.offer)
    assert follower.replies == [(2, 50)]


def test_a_snapshot_is_useless_once_another_leaders_log_has_helped() -> None:
    follower = Follower()
    follower.receiver.on_offer(follower.offer)
    follower.chunk(0)
    follower.last = 60
    follower.chunk(100)
    follower.chunk(200)
    assert follower.replies[-1] == (2, 50)
    assert follower.files.discarded == 1
    assert not follower.files.is_installed


def test_a_damaged_snapshot_is_refused_before_it_is_installed() -> None:
    follower = Follower()
    follower.files.is_sound = False
    follower.receiver.on_offer(follower.offer)
    for offset in (0, 100, 200):
        follower.chunk(offset)
    assert follower.replies[-1] == (3, 0)
    assert not follower.files.is_installed


def test_a_damaged_chunk_makes_no_progress() -> None:
    follower = Follower()
    follower.receiver.on_offer(follower.offer)
    follower.chunk(100)
    follower.chunk(0, b"damaged")
    assert follower.replies == [(1, 0), (1, 0)]
    follower.chunk(0)
    assert follower.replies[-1] == (1, 100)


def test_chunks_of_another_snapshot_or_from_elsewhere_are_ignored() -> None:
    follower = Follower()
    follower.chunk(0)
    follower.receiver.on_offer(follower.offer)
    follower.receiver.on_chunk(SnapshotChunk(2, 1, 8, 0, 0, b"x"))
    follower.receiver.on_chunk(SnapshotChunk(2, 3, 7, 0, 0, b"x"))
    assert follower.replies == [(1, 0)]
