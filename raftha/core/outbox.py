"""The order of writing and sending, in one place: which messages wait for the disk.

Theory of operation. A message may assert something that must survive a crash: a term, a vote, or
that entries are on disk. Such a message is *held* until the write that makes it true is done. All
other messages go out at once. The rest of the core just sends, and can't get this order wrong.

  O1  No message of a term leaves before (term, vote) is durable.
  O2  An `AppendReply(ok, index)` leaves only when everything up to `index` is durable.
  O3  There is one write at a time; everything that arrives meanwhile is in the next one.
"""

from __future__ import annotations

from raftha.core.log import RaftLog
from raftha.core.messages import AppendReply, Message
from raftha.core.ready import Write
from raftha.entry import Entry, HardState


class Outbox:
    """Outgoing messages, and the write that some of them wait for."""

    def __init__(self, log: RaftLog, hard_state: HardState, write_bytes_max: int) -> None:
        """Start with the hard state and log that are on disk."""
        self._log = log
        self._durable = hard_state
        self._taken = hard_state
        self._write: Write | None = None
        self._write_bytes_max = write_bytes_max
        self._now: list[Message] = []
        self._held: list[Message] = []

    @property
    def is_writing(self) -> bool:
        """Whether a write was taken and isn't done yet."""
        return self._write is not None

    def has_work(self, term: int, vote: int) -> bool:
        """Whether there is a message to send now, or something to write."""
        if self._now or self._write is not None:
            return bool(self._now)
        is_written = self._log.written == self._log.last_index and self.is_durable(term, vote)
        return bool(self._held) or not is_written

    def is_durable(self, term: int, vote: int) -> bool:
        """Whether this term and vote would survive a crash now."""
        return self._durable.term == term and self._durable.vote == vote

    def send(self, message: Message, term: int, vote: int) -> None:
        """Send now, or with the write that makes it true."""
        if self.is_durable(term, vote) and _acknowledges(message) <= self._log.persisted:
            self._now.append(message)
        else:
            self._held.append(message)

    def drop_acknowledgements(self) -> None:
        """The term has changed: acknowledgements to an earlier leader no longer matter."""
        self._held = [m for m in self._held if not isinstance(m, AppendReply)]

    def take_write(self, hard_state: HardState) -> Write | None:
        """The next write, if something must become durable and no write is under way."""
        if self._write is not None:
            return None
        log, taken = self._log, self._taken
        entries: tuple[Entry, ...] = ()
        if log.written < log.last_index:
            entries = log.slice(log.written + 1, self._write_bytes_max)
            assert entries[0].index == log.written + 1, "a write begins where the last one ended"
            assert entries[-1].term <= hard_state.term, "an entry of a term implies that term"
            log.written = entries[-1].index
        elif self.is_durable(hard_state.term, hard_state.vote):
            return None
        ready = tuple(m for m in self._held if _acknowledges(m) <= log.written)
        self._held = [m for m in self._held if _acknowledges(m) > log.written]
        is_news = hard_state != taken
        if is_news:
            is_new_term = hard_state.term > taken.term
            assert hard_state.term >= taken.term, "a term never goes back"
            assert is_new_term or taken.vote in (0, hard_state.vote), (
                "a node votes once a term (R1)"
            )
        self._taken = hard_state
        self._write = Write(hard_state if is_news else None, entries, ready)
        return self._write

    def take_messages(self) -> list[Message]:
        """All messages that may go out now; call `take_write` first."""
        messages, self._now = self._now, []
        if self._held and self._write is None:
            # Nothing is left to write that held messages could wait for. An entry that one of them
            # acknowledges can be missing only if a leader has replaced its own entries.
            persisted = self._log.persisted
            assert persisted == self._log.last_index, (
                "without a write under way, the whole log is durable"
            )
            messages += [m for m in self._held if _acknowledges(m) <= persisted]
            self._held = []
        return messages

    def wrote(self, write: Write) -> None:
        """`write` is durable."""
        assert write is self._write, "writes complete in the order they were taken (O3)"
        self._write = None
        if write.hard_state is not None:
            self._durable = write.hard_state
        self._log.mark_persisted(write.entries)


def _acknowledges(message: Message) -> int:
    """The last entry that this message asserts to be on disk; 0 if none."""
    return message.index if isinstance(message, AppendReply) and message.ok else 0
