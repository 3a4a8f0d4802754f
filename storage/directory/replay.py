"""Joins log and state: reads what a starting node replays and what a lagging follower receives.

Theory of operation. The state is durable as of a checkpoint, the log as of its last write, and the
log is freed only up to a checkpoint. So the log holds the last entry that the state has applied, or
begins right behind it. Otherwise log and state are not of the same node, or one of them is damaged.

A state is not replayed over a RESTORE entry, behind which it has other pairs
(`raftha/storage/state/restored.py`): the node stops in front of it.
"""

from __future__ import annotations

from pathlib import Path

from raftha.entry import Entry, EntryKind, LogPosition
from raftha.errors import Compacted, Corrupt
from raftha.storage.log.wal import Wal

READ_BYTES = 4 << 20


def entries_after(wal: Wal, applied: LogPosition, path: str | Path) -> list[Entry]:
    """Return the entries that the state has not applied; Corrupt unless log and state fit together.

    `path` is the log's folder, for the error.
    """
    if not wal.base.index <= applied.index <= wal.last_index:
        raise Corrupt(
            path,
            0,
            f"the state is at entry {applied.index}, the log has {wal.first_index} "
            f"to {wal.last_index}",
        )
    at_applied = wal.base
    if applied.index > wal.base.index:
        at_applied = wal.read(applied.index, 1)[0].position
    if at_applied != applied:
        raise Corrupt(
            path,
            0,
            f"entry {applied.index} of the log differs from the one that the state has applied",
        )
    entries: list[Entry] = []
    while (next_index := applied.index + len(entries) + 1) <= wal.last_index:
        entries += wal.read(next_index, READ_BYTES)
    assert applied.index + len(entries) == wal.last_index, "all that follows the state is read"
    return entries


def has_restore(wal: Wal, after: int, last: int) -> bool:
    """Whether one of the entries `(after, last]` of the log is a RESTORE."""
    index = max(after + 1, wal.first_index)
    while index <= last:
        entries = wal.read(index, READ_BYTES)
        if any(e.kind == EntryKind.RESTORE and e.index <= last for e in entries):
            return True
        index += len(entries)
    return False


def read_from(wal: Wal, index: int) -> tuple[LogPosition, list[Entry]]:
    """Return entries from `index` on, and the position before them. Any thread; Compacted."""
    assert 0 < index <= wal.last_index + 1, "what is asked for follows an entry of the log"
    try:
        previous, *entries = wal.read(index - 1, READ_BYTES)
    except Compacted:
        # Entry `index` is the first one held, or not held any more either.
        return wal.base, wal.read(index, READ_BYTES)
    return previous.position, entries or wal.read(index, READ_BYTES)
