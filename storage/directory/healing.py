"""Opens a node's log and state, and replaces what of them is damaged.

Theory of operation. A node that finds damage at its start can recover, because the other members
have what it has lost. A damaged part is set aside, never removed, and replaced:

    damaged                           set aside   in its place                  the node
    log                               log         an empty log behind the       heals
                                                  state's position
    log that ends before the state    log         the same                      heals
    state, log goes back to entry 1   state       a state built from the log    has lost nothing,
                                                                                but see below
    state, log begins later           both        nothing                       heals
    state and log of two different    both        nothing                       heals
    histories

The core (`core/raft.py`) defines what healing means for the cluster. This module only keeps a
number, the *healing generation*. It becomes odd before any other step, so that the node never
votes, or counts, as if it had its log, whatever a crash leaves. A node without another voter in its
cluster changes nothing, because no other member could restore what it would discard.

A state that is built from the log stops in front of a RESTORE entry, behind which it has other
pairs (`raftha/storage/state/restored.py`), and gets those of another member. So a node without
another voter changes nothing then, either.

Each step is durable before the next. A start that finds the record of step 1 continues:

    1  record which parts are lost, and the generation
    2  if only the state is lost: drop a received snapshot; installing it would cut the log
    3  set the lost parts aside; a file already in their place was begun by step 4
    4  begin the log behind the state's position
    5  remove the record
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple, Protocol

from raftha.entry import LOG_START, Entry, EntryKind, LogPosition
from raftha.errors import Corrupt
from raftha.storage.directory.replay import READ_BYTES, entries_after, has_restore
from raftha.storage.log.wal import Wal
from raftha.storage.state.state import State

LOG, STATE = "log", "state"
ALONE = "no other member has a copy; keep the files, and put back an earlier copy of the directory"
_ATTEMPTS = 3
"""After this many attempts the start fails: a part that was just replaced is damaged again."""


class NodeFiles(Protocol):
    """Where a node keeps log and state; the simulator has another implementation."""

    @property
    def lost(self) -> Mapping[str, str]:
        """Parts that are recorded as lost."""
        ...

    def finish_restore(self) -> None:
        """Put the state of a recovery in place, if it is ready to be: before all else."""
        ...

    def open_log(self) -> Wal:
        """Open the log, or begin one; Corrupt."""
        ...

    def open_state(self, wal: Wal) -> State:
        """Open the state, after installing a snapshot that is ready and needed; Corrupt."""
        ...

    def peek(self) -> tuple[LogPosition, bytes | None]:
        """Return position and membership of the state, without creating one; Corrupt."""
        ...

    def has_others(self, membership: bytes | None) -> bool:
        """Whether this membership, or the initial one, has a voter besides this node."""
        ...

    def record_loss(self, parts: Collection[str], found: Corrupt) -> None: ...
    def set_aside(self, part: str) -> None: ...
    def drop_snapshot(self) -> None: ...
    def record_replaced(self) -> None: ...
    def close(self) -> None:
        """Close what is open."""
        ...


class OpenNode(NamedTuple):
    """An open node: `entries` are those that the state has not applied."""

    wal: Wal
    state: State
    entries: list[Entry]


class _Damage(NamedTuple):
    parts: frozenset[str]
    found: Corrupt
    membership: bytes | None
    needs_others: bool = True
    """Whether the node has to get from others what it has lost."""


def open_or_heal(node_files: NodeFiles) -> OpenNode:
    """Open log and state, and replace damaged parts; Corrupt if no other member has a copy."""
    node_files.finish_restore()
    for attempt in range(_ATTEMPTS):
        if node_files.lost:
            try:
                _replace(node_files)
            except Corrupt as found:
                # The state, which was not recorded as lost, is damaged too.
                node_files.close()
                node_files.record_loss((LOG, STATE), found)
                _replace(node_files)
        opened = _open(node_files)
        if isinstance(opened, OpenNode):
            return opened
        node_files.close()
        if opened.needs_others and not node_files.has_others(opened.membership):
            path, offset, detail = opened.found.path, opened.found.offset, opened.found.detail
            raise Corrupt(path, offset, detail, hint=ALONE) from opened.found
        if attempt == _ATTEMPTS - 1:
            raise opened.found
        node_files.record_loss(opened.parts, opened.found)
    raise AssertionError("unreachable")


def _open(node_files: NodeFiles) -> OpenNode | _Damage:
    try:
        wal = node_files.open_log()
    except Corrupt as found:
        try:
            _, membership = node_files.peek()
        except Corrupt:
            return _Damage(frozenset((LOG, STATE)), found, None)
        return _Damage(frozenset((LOG,)), found, membership)
    try:
        state = node_files.open_state(wal)
    except Corrupt as found:
        if wal.base == LOG_START:
            has_gap = has_restore(wal, 0, wal.last_index)
            membership = _last_membership(wal) if has_gap else None
            return _Damage(frozenset((STATE,)), found, membership, needs_others=has_gap)
        return _Damage(frozenset((LOG, STATE)), found, _last_membership(wal))
    try:
        return OpenNode(wal, state, entries_after(wal, state.applied, wal.directory))
    except Corrupt as found:
        is_log_short = state.applied.index > wal.last_index
        parts = (LOG,) if is_log_short else (LOG, STATE)
        return _Damage(frozenset(parts), found, state.membership)


def _replace(node_files: NodeFiles) -> None:
    """Steps 2 to 5."""
    parts = node_files.lost
    if LOG not in parts:
        node_files.drop_snapshot()
    for part in parts:
        node_files.set_aside(part)
    if LOG in parts:
        position, _ = node_files.peek()
        wal = node_files.open_log()
        if position != LOG_START:
            wal.reset(position)
        assert wal.base == wal.last == position, "the log begins behind the state's position"
        node_files.close()
    node_files.record_replaced()
    assert not node_files.lost, "all that was lost is replaced"


def _last_membership(wal: Wal) -> bytes | None:
    """Return the payload of the last MEMBERSHIP entry in the log, None without one."""
    found: bytes | None = None
    index = wal.first_index
    while index <= wal.last_index:
        entries = wal.read(index, READ_BYTES)
        for entry in entries:
            if entry.kind == EntryKind.MEMBERSHIP:
                found = bytes(entry.payload)
        index += len(entries)
    return found
