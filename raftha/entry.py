"""The log's vocabulary: entries, the batches and groups inside them, and their bytes.

Theory of operation. The unit of Raft's log is an *entry*. A `BATCH` entry holds every *group* that
waited while the previous entry was written. A group is what one node submitted at once, under one
session and one number. The caller packs commands once, and the same bytes go to the disk and over
the network: `Entry.data` is those bytes.

`hash` chains all entries: SHA-256 over the previous entry's hash and this entry's bytes with the
hash field zero, cut to 16 bytes. Two logs with an equal hash are equal up to that entry. (SHA-256
because CPUs have instructions for it: 11 us for a 20 KB entry, where BLAKE2b takes 25 us.)

`last_sequence` counts commands over the whole life of the cluster. The commands of an entry have
the numbers `(previous.last_sequence, last_sequence]`. A duplicate group keeps its numbers and
changes nothing, so a command's number follows from the log alone.

Entry, little endian:

    offset  size  field
         0     8  index           first entry is 1
         8     8  term
        16     8  time_us         leader's clock, microseconds since 1970 UTC, never going backwards
        24     8  last_sequence
        32    16  hash
        48     1  kind            1 batch, 2 no-op, 3 membership, 4 administration, 5 restore
        49     3  zero
        52     4  payload size
        56     -  payload         a batch: groups in sequence; others: see `EntryKind`

Group:

    offset  size  field
         0     8  session         0 asks for a new session
         8     8  number          1, 2, 3 ... within the session; a nonce if session is 0
        16     8  floor           the client never sends numbers below it again
        24     4  count           commands in the group
        28     4  size of commands
        32     -  commands        msgpack arrays in sequence
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from hashlib import sha256
from typing import NamedTuple

HASH_BYTES = 16
ZERO_HASH = bytes(HASH_BYTES)
ENTRY_BYTES_MAX = 8 << 20
"""The largest entry accepted from another node. It fits into a segment of any configurable size.
Leaders make smaller ones."""

_ENTRY = struct.Struct("<QQQQ16sB3xI")
_GROUP = struct.Struct("<QQQII")
ENTRY_HEADER_BYTES = _ENTRY.size
GROUP_HEADER_BYTES = _GROUP.size
assert ENTRY_HEADER_BYTES == 56 and GROUP_HEADER_BYTES == 32


class EntryKind(enum.IntEnum):
    """The kind of an entry's payload.

    A membership is described in `raftha/membership.py`, an administrative entry in
    `raftha/storage/state/versions.py`, a restore in `raftha/storage/state/recoveries.py`. An entry
    of a kind that isn't here comes from a later version: a log may hold it, and a node that must
    apply it stops.
    """

    BATCH = 1
    NOOP = 2
    MEMBERSHIP = 3
    ADMIN = 4
    RESTORE = 5


class LogPosition(NamedTuple):
    """Everything that the next entry depends on, and all that is kept of a compacted entry."""

    index: int  # type: ignore[assignment]  # shadows tuple.index, which has no callers
    term: int
    time_us: int
    last_sequence: int
    hash: bytes


class HardState(NamedTuple):
    """What a node must never forget: its term, and its vote in that term (0 for none).

    `commit` is only a help: without it, a restarted node waits for the leader to send it.
    """

    term: int
    vote: int
    commit: int


LOG_START = LogPosition(0, 0, 0, 0, ZERO_HASH)


class Entry(NamedTuple):
    """One log entry. `data` is its complete encoding; the other fields are read from it."""

    index: int  # type: ignore[assignment]  # shadows tuple.index, which has no callers
    term: int
    time_us: int
    last_sequence: int
    hash: bytes
    kind: int
    data: bytes

    @property
    def payload(self) -> memoryview:
        """The bytes after the header, without a copy."""
        return memoryview(self.data)[ENTRY_HEADER_BYTES:]

    @property
    def position(self) -> LogPosition:
        """What the next entry depends on."""
        return LogPosition(self.index, self.term, self.time_us, self.last_sequence, self.hash)


class Group(NamedTuple):
    """What one node submitted at once. The module's docstring describes the fields."""

    session: int
    number: int
    floor: int
    count: int  # type: ignore[assignment]  # shadows tuple.count
    commands: bytes


def make_entry(
    previous: LogPosition, term: int, time_us: int, kind: EntryKind, payload: bytes, count: int
) -> Entry:
    """Return the entry that follows `previous`. `count`: the number of commands in `payload`."""
    assert term >= previous.term, "terms never decrease along a log"
    index = previous.index + 1
    time_us = max(time_us, previous.time_us)
    last_sequence = previous.last_sequence + count
    unhashed = _ENTRY.pack(index, term, time_us, last_sequence, ZERO_HASH, kind, len(payload))
    digest = _chain(previous.hash, unhashed, payload)
    header = _ENTRY.pack(index, term, time_us, last_sequence, digest, kind, len(payload))
    return Entry(index, term, time_us, last_sequence, digest, kind, header + payload)


def decode_entry(data: bytes) -> Entry:
    """Decode an entry from its bytes. ValueError if they are not an entry."""
    if len(data) < ENTRY_HEADER_BYTES:
        raise ValueError(f"an entry has at least {ENTRY_HEADER_BYTES} bytes, got {len(data)}")
    index, term, time_us, last_sequence, digest, kind, size = _ENTRY.unpack_from(data)
    if size != len(data) - ENTRY_HEADER_BYTES:
        raise ValueError(f"entry {index} declares {size} payload bytes, has {len(data) - 56}")
    if kind == 0:
        raise ValueError(f"entry {index} is of no kind")
    return Entry(index, term, time_us, last_sequence, digest, kind, data)


def follows(entry: Entry, previous_hash: bytes) -> bool:
    """Whether `entry`'s hash continues a log that ends with `previous_hash`."""
    header = entry.data[:32] + ZERO_HASH + entry.data[48:ENTRY_HEADER_BYTES]
    return _chain(previous_hash, header, entry.payload) == entry.hash


def _chain(previous_hash: bytes, header: bytes, payload: bytes | memoryview) -> bytes:
    digest = sha256(previous_hash + header)
    digest.update(payload)
    return digest.digest()[:HASH_BYTES]


def encode_group(group: Group) -> bytes:
    """The group's bytes. A batch's payload is the bytes of its groups, joined."""
    header = _GROUP.pack(group.session, group.number, group.floor, group.count, len(group.commands))
    return header + group.commands


def decode_groups(payload: memoryview) -> Iterator[Group]:
    """Yield the groups of a batch, in order. ValueError if one is cut short."""
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
