"""What the log is made of: entries, the batches and groups inside them, and their bytes.

Theory of operation. The unit of Raft's log is an *entry*. A `BATCH` entry carries every *group*
that was waiting while the previous entry was written; a group is what one node submitted at once,
under one session and one number. Commands are packed once, by the caller, and the same bytes go to
the disk, over the network and later into the archive: `Entry.data` is those bytes.

`hash` chains over all entries: SHA-256 of the previous entry's hash and this entry's bytes with the
hash field left out, cut to 16 bytes. Two logs that agree on one hash agree on everything before it.
(SHA-256 because CPUs have instructions for it: 11 us for a 20 KB entry here, BLAKE2b 25 us.)

`last_sequence` counts commands over the whole life of the cluster: the commands of this entry have
the numbers `(previous.last_sequence, last_sequence]`. A group that turns out to be a duplicate
keeps its numbers and changes nothing, so a command's number follows from the log alone.

Entry, little endian:

    offset  size  field
         0     8  index           first entry is 1
         8     8  term
        16     8  time_us         leader's clock, microseconds since 1970 UTC, never going backwards
        24     8  last_sequence
        32    16  hash
        48     1  kind            1 batch, 2 no-op, 3 membership
        49     3  zero
        52     4  payload size
        56     -  payload         a batch: groups, one after the other; see `membership.py`

Group:

    offset  size  field
         0     8  session         0 asks for a new session
         8     8  number          1, 2, 3 ... within the session; a nonce if session is 0
        16     8  floor           every number below it is finished, for good
        24     4  count           commands in the group
        28     4  size of commands
        32     -  commands        msgpack arrays, one after the other
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from hashlib import sha256
from typing import NamedTuple

HASH_BYTES = 16
ZERO_HASH = bytes(HASH_BYTES)

_ENTRY = struct.Struct("<QQQQ16sB3xI")
_GROUP = struct.Struct("<QQQII")
ENTRY_HEADER_BYTES = _ENTRY.size
GROUP_HEADER_BYTES = _GROUP.size
assert ENTRY_HEADER_BYTES == 56 and GROUP_HEADER_BYTES == 32


class EntryKind(enum.IntEnum):
    """What an entry's payload is."""

    BATCH = 1
    NOOP = 2
    MEMBERSHIP = 3


_KINDS = frozenset(EntryKind)


class LogPosition(NamedTuple):
    """Everything that the next entry depends on; what is known of an entry once it's compacted."""

    index: int  # type: ignore[assignment]  # shadows tuple.index, which nobody calls
    term: int
    time_us: int
    last_sequence: int
    hash: bytes


class HardState(NamedTuple):
    """What a node must never forget: its term, and whom it voted for in it (0 for nobody).

    `commit` rides along: losing it loses nothing, knowing it after a restart saves a wait.
    """

    term: int
    vote: int
    commit: int


LOG_START = LogPosition(0, 0, 0, 0, ZERO_HASH)


class Entry(NamedTuple):
    """One log entry; `data` is its complete encoding, the other fields are read from it."""

    index: int  # type: ignore[assignment]  # shadows tuple.index, which nobody calls
    term: int
    time_us: int
    last_sequence: int
    hash: bytes
    kind: int
    data: bytes

    @property
    def payload(self) -> memoryview:
        """The bytes behind the header, without copying them."""
        return memoryview(self.data)[ENTRY_HEADER_BYTES:]

    @property
    def position(self) -> LogPosition:
        """What the entry after this one depends on."""
        return LogPosition(self.index, self.term, self.time_us, self.last_sequence, self.hash)


class Group(NamedTuple):
    """What one node submitted at once; see the module's docstring for the fields."""

    session: int
    number: int
    floor: int
    count: int  # type: ignore[assignment]  # shadows tuple.count
    commands: bytes


def make_entry(
    previous: LogPosition, term: int, time_us: int, kind: EntryKind, payload: bytes, count: int
) -> Entry:
    """Return the entry that follows `previous`; `count` is how many commands `payload` holds."""
    assert term >= previous.term, "terms never decrease along a log"
    index = previous.index + 1
    time_us = max(time_us, previous.time_us)
    last_sequence = previous.last_sequence + count
    unhashed = _ENTRY.pack(index, term, time_us, last_sequence, ZERO_HASH, kind, len(payload))
    digest = _chain(previous.hash, unhashed, payload)
    header = _ENTRY.pack(index, term, time_us, last_sequence, digest, kind, len(payload))
    return Entry(index, term, time_us, last_sequence, digest, kind, header + payload)


def decode_entry(data: bytes) -> Entry:
    """Read an entry back from its bytes; ValueError if they can't be one."""
    if len(data) < ENTRY_HEADER_BYTES:
        raise ValueError(f"an entry has at least {ENTRY_HEADER_BYTES} bytes, got {len(data)}")
    index, term, time_us, last_sequence, digest, kind, size = _ENTRY.unpack_from(data)
    if size != len(data) - ENTRY_HEADER_BYTES:
        raise ValueError(f"entry {index} says {size} payload bytes, has {len(data) - 56}")
    if kind not in _KINDS:
        raise ValueError(f"entry {index} is of unknown kind {kind}")
    return Entry(index, term, time_us, last_sequence, digest, kind, data)


def follows(entry: Entry, previous_hash: bytes) -> bool:
    """Whether `entry`'s hash is right for a log whose entry before it has `previous_hash`."""
    header = entry.data[:32] + ZERO_HASH + entry.data[48:ENTRY_HEADER_BYTES]
    return _chain(previous_hash, header, entry.payload) == entry.hash


def _chain(previous_hash: bytes, header: bytes, payload: bytes | memoryview) -> bytes:
    digest = sha256(previous_hash + header)
    digest.update(payload)
    return digest.digest()[:HASH_BYTES]


def encode_group(group: Group) -> bytes:
    """The group's bytes, ready to be joined with others into a batch's payload."""
    header = _GROUP.pack(group.session, group.number, group.floor, group.count, len(group.commands))
    return header + group.commands


def decode_groups(payload: memoryview) -> Iterator[Group]:
    """Yield the groups of a batch in order; ValueError if the bytes don't add up."""
    offset, end = 0, len(payload)
    while offset < end:
        if end - offset < GROUP_HEADER_BYTES:
            raise ValueError("a group's header is cut short")
        session, number, floor, count, size = _GROUP.unpack_from(payload, offset)
        offset += GROUP_HEADER_BYTES
        if size > end - offset:
            raise ValueError("a group's commands are cut short")
        yield Group(session, number, floor, count, bytes(payload[offset : offset + size]))
        offset += size
