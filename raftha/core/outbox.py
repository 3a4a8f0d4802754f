"""What waits for the disk, and what doesn't: the order of writing and sending, in one place.

Theory of operation. A message may assert something that must survive a crash: a term, a vote, or
that entries are on disk. Such a message is *held* until the write that makes it true is done; all
others go out at once. The rest of the core just sends, and can't get this order wrong.

  O1  No message of a term leaves before (term, vote) is durable.
  O2  An `AppendReply(ok, index)` leaves only when everything up to `index` is durable.
  O3  There is one write at a time; what comes meanwhile is in the next.
"""

from __future__ import annotations

from raftha.core.log import RaftLog
from raftha.core.messages import AppendReply, Message
from raftha.core.ready import Write
from raftha.entry import Entry, HardState


class Outbox:
    """Messages on their way out, and the write that some of them wait for."""

    def __init__(self, log: RaftLog, hard_state: HardState, write_bytes_max: int) -> None:
        """Begin with what is durable already."""
        self._log = log
        self._durable = hard_state
        self._taken = hard_state
        self._write: Write | None = None
        self._write_bytes_max = write_bytes_max
        self._now: list[Message] = []
        self._held: list[Message] = []

    @property
    def is_writing(self) -> bool:
        """Whether a write was taken and isn't done."""
        return self._write is not None

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
        """The term has changed: what was acknowledged to an earlier leader is of no use to it."""
        self._held = [m for m in self._held if not isinstance(m, AppendReply)]

    def take_write(self, hard_state: HardState) -> Write | None:
        """The next write, if something is to be made durable and none is under way."""
        if self._write is not None:
            return None
        log, taken = self._log, self._taken
        entries: tuple[Entry, ...] = ()
        if log.written < log.last_index:
            entries = log.slice(log.written + 1, self._write_bytes_max)
            assert entries[0].index == log.written + 1, "a write goes on where the last one ended"
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
                "a vote is given once a term (R1)"
            )
        self._taken = hard_state
        self._write = Write(hard_state if is_news else None, entries, ready)
        return self._write

    def take_messages(self) -> list[Message]:
        """All that may go out now; after `take_write`."""
        messages, self._now = self._now, []
        if self._held and self._write is None:
            # Nothing is left to be made durable that the held ones could wait for. What one of them
            # acknowledges is not there only if a leader has gone back on its own entries.
            persisted = self._log.persisted
            assert persisted == self._log.last_index, "all is durable when nothing is written"
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
    """The last entry whose being on disk this message asserts; 0 if none."""
    return message.index if isinstance(message, AppendReply) and message.ok else 0
