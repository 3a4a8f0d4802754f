"""Makes entries that follow each other, for tests of the state."""

from __future__ import annotations

from collections.abc import Sequence

from raftha.entry import LOG_START, Entry, EntryKind, Group, LogPosition, encode_group, make_entry


class Log:
    """A log in memory; `entries[i]` has index `i + 1`."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    @property
    def last(self) -> LogPosition:
        """The position before the next entry."""
        return self.entries[-1].position if self.entries else LOG_START

    def batch(self, *groups: Group, time_us: int = 1_000_000, term: int = 1) -> Entry:
        """Add an entry of `groups`."""
        payload = b"".join(encode_group(group) for group in groups)
        count = sum(group.count for group in groups)
        entry = make_entry(self.last, term, time_us, EntryKind.BATCH, payload, count)
        self.entries.append(entry)
        return entry

    def add(self, kind: EntryKind, payload: bytes) -> Entry:
        """Add an entry without commands."""
        entry = make_entry(self.last, 1, 1_000_000, kind, payload, 0)
        self.entries.append(entry)
        return entry

    def noop(self, time_us: int = 1_000_000, term: int = 1) -> Entry:
        """Add an entry without commands, as a new leader does."""
        entry = make_entry(self.last, term, time_us, EntryKind.NOOP, b"", 0)
        self.entries.append(entry)
        return entry


def opening(nonce: int = 1) -> Group:
    """A group that asks for a new session."""
    return Group(0, nonce, 0, 0, b"")


def group(session: int, number: int, commands: Sequence[bytes], floor: int = 0) -> Group:
    """A group of packed commands."""
    return Group(session, number, floor, len(commands), b"".join(commands))
