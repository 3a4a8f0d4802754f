"""What the leader knows of each follower, and how much it may send to it.

    PROBE      it isn't known where the logs agree: one append at a time, the next after its reply
    FETCH      the next entries are on disk only and are being read; nothing is sent until then
    REPLICATE  the logs agree up to `match`: appends go out back to back, within in-flight limits
    SNAPSHOT   the follower needs entries that the log no longer has: nothing is sent until the
               caller reports the outcome of the snapshot that it sends instead

A lost connection, a rejection or silence leads back to PROBE, the first `ok` to REPLICATE. Only the
caller ends SNAPSHOT: a snapshot may take longer than a connection lives.
"""

from __future__ import annotations

import enum
from collections import deque


class Mode(enum.Enum):
    PROBE = "probe"
    FETCH = "fetch"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


class Progress:
    """One follower, as the leader knows it.

    `match`: the last entry on the follower's disk that equals the leader's log. `next`: the first
    entry to send. `is_active`: it has replied since the last quorum check; `was_active`: between
    the two checks before. `probed_at`: index and term of the last probe, while its reply counts.
    `watched_index`: the entry that it watches, 0 for none; `watched_holders`: how many voters had
    that entry at the last reply. `applied`, `applied_sequence`: the progress of its state, as it
    reports it. `promised_until_ns`: until then, by this leader's clock, it votes for no other
    candidate (`lease.py`). `healing_generation`: the follower's, by its latest reply. `heals_at`:
    it has healed when it and a majority without it hold this entry; None if it doesn't heal.
    """

    def __init__(self, next_index: int, messages_max: int, bytes_max: int) -> None:
        self.mode = Mode.PROBE
        self.match = 0
        self.next = next_index
        self.healing_generation = 0
        self.heals_at: int | None = None
        self.commit_sent = 0
        self.is_active = True
        self.has_fallen_back = False
        self.was_active = True
        self.notify_index = 0
        self.watched_index = 0
        self.watched_holders = 0
        self.applied = 0
        self.applied_sequence = 0
        self.promised_until_ns = 0
        self.waits_for_reply = False
        self.probed_at: tuple[int, int] | None = None
        self._probed_to = 0
        self._in_flight: deque[tuple[int, int]] = deque()
        self._in_flight_bytes = 0
        self._rejected_at = 0
        self._messages_max = messages_max
        self._bytes_max = bytes_max

    @property
    def is_paused(self) -> bool:
        """Whether no entries may be sent now."""
        if self.mode is Mode.REPLICATE:
            return (
                len(self._in_flight) >= self._messages_max
                or self._in_flight_bytes >= self._bytes_max
            )
        return self.mode in (Mode.FETCH, Mode.SNAPSHOT) or self.waits_for_reply

    def has_applied(self, applied: int, applied_sequence: int) -> None:
        """The follower reports the progress of its state; a late report changes nothing."""
        if applied > self.applied:
            self.applied, self.applied_sequence = applied, applied_sequence

    @property
    def is_healing(self) -> bool:
        """Whether it has lost its log and doesn't count for a quorum."""
        return self.healing_generation % 2 == 1

    @property
    def counted(self) -> int:
        """Up to where it counts for a quorum: `match`, or 0 while it heals."""
        return 0 if self.healing_generation % 2 else self.match

    def lost(self, generation: int) -> None:
        """It has lost its log since its last reply, with all that it acknowledged before.

        `next` stays the best guess; the next rejection tells where the logs agree.
        """
        assert generation > self.healing_generation, "a healing generation never goes back"
        following = self.next
        self.probe()
        self.healing_generation, self.heals_at = generation, None
        self.match, self.next = 0, following
        self.applied = self.applied_sequence = 0

    def probe(self) -> None:
        """Go back to PROBE; appends in flight may be lost.

        Only a follower in REPLICATE starts over from `match`. Before the first `ok`, `match` is 0
        and `next` the better guess: a probe for entry 1 may find a log that no longer has it.
        """
        if self.mode is Mode.REPLICATE:
            self.next = self.match + 1
        if self.mode is not Mode.SNAPSHOT:
            self.mode = Mode.PROBE
        self._answered()
        self._in_flight.clear()
        self._in_flight_bytes = 0

    def probe_after(self, index: int) -> None:
        """A snapshot as of `index` is installed; probe again where the logs agree."""
        self.mode = Mode.PROBE
        self.next = max(self.match, index) + 1
        self._answered()

    def sent(self, last_index: int, size: int) -> None:
        """An append up to `last_index` went out in REPLICATE; `size`: the bytes of its entries."""
        assert self.mode is Mode.REPLICATE, "appends go out back to back only in REPLICATE"
        assert last_index >= self.next, "an append begins where the last one ended"
        self.next = last_index + 1
        self._in_flight.append((last_index, size))
        self._in_flight_bytes += size

    def probed(self, previous_term: int, last_index: int) -> None:
        """A probe about `next - 1` went out, with any entries after it up to `last_index`."""
        assert self.mode is Mode.PROBE, "probes go out only in PROBE"
        assert last_index >= self.next - 1, "a probe asks about the entry before the next"
        self.waits_for_reply = True
        self.probed_at = self.next - 1, previous_term
        self._probed_to = last_index

    def _answered(self) -> None:
        self.waits_for_reply = False
        self.probed_at = None

    def acknowledge(self, index: int) -> bool:
        """The follower has everything up to `index`; return True if that is news.

        News, or the reply to the probe, ends PROBE. A late `ok` for an earlier append is neither.
        On a network that reorders, sending all again for each of those would cause more rejections,
        and they more probes, without end.
        """
        is_news = index > self.match
        is_answer = self.probed_at is not None and index >= self._probed_to
        self.match = max(self.match, index)
        self.next = max(self.next, index + 1)
        while self._in_flight and self._in_flight[0][0] <= index:
            self._in_flight_bytes -= self._in_flight.popleft()[1]
        if self.mode is Mode.PROBE and (is_news or is_answer):
            self.mode = Mode.REPLICATE
            self.next = self.match + 1
            self._answered()
        assert self.next > self.match, "what is on the follower's disk isn't sent again"
        assert self._in_flight_bytes >= 0, "a follower acknowledges no more than was sent"
        return is_news

    def has_gone_back(self, index: int) -> bool:
        """Whether this rejection says that the follower lacks what it acknowledged; True once.

        That is so if it rejects the probe for its own last acknowledgement. It will learn of its
        loss from a heartbeat (`follower.py`). To send it what comes next would end in the same
        rejection, again and again.
        """
        is_answer = self.mode is Mode.PROBE and index == self.next - 1
        if not is_answer or not 0 < index <= self.match or index == self._rejected_at:
            return False
        self._rejected_at = index
        return True

    def reject(self, index: int, next_index: int) -> bool:
        """The entry at `index` didn't match; try from `next_index`. False if the reply is stale.

        A follower in REPLICATE falls back to PROBE at most once between two heartbeat replies.
        Messages in order give no second reason to. Out of order, each late rejection of an earlier
        append would make the leader send everything again, and cause as many more rejections.

        A rejection at or below `match` never has anything sent again: see `has_gone_back`.
        """
        if self.mode is Mode.REPLICATE:
            if index <= self.match or self.has_fallen_back:
                return False
            self.has_fallen_back = True
            self.probe()
            return True
        if self.mode is Mode.SNAPSHOT or index != self.next - 1 or index <= self.match > 0:
            return False
        self.mode = Mode.PROBE
        self.next = max(min(next_index, index), self.match + 1)
        self._answered()
        assert self.next > self.match, "what is on the follower's disk isn't sent again"
        return True
