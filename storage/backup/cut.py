"""Cuts an entry within: what is left has its first commands, and the same effect as they had.

Theory of operation. A group's commands are msgpack values in sequence, so the first of them are a
prefix of its bytes. A group that can't be parsed had no effect as a whole; what is left of it must
not become one that can. The entry keeps index, term, time and hash: sessions that it opens have the
ids that they had. It is not an entry of any log, and the position behind it has another hash.
"""

from __future__ import annotations

from hashlib import sha256

import msgpack

from raftha.entry import (
    HASH_BYTES,
    Entry,
    EntryKind,
    Group,
    LogPosition,
    decode_groups,
    encode_group,
)
from raftha.storage.state.commands import ARRAY_MAX, unpack_commands

_NO_COMMANDS = b"\xc1"
"""A byte that begins no msgpack value."""


def cut_position(position: LogPosition, last_sequence: int) -> LogPosition:
    """Return the position behind the command of this number, within or at the end of an entry.

    Within, it has a hash of its own: states that were cut at different places are no equals.
    """
    if last_sequence >= position.last_sequence:
        return position
    covered = b"raftha/cut/1" + position.hash + last_sequence.to_bytes(8, "little")
    digest = sha256(covered).digest()[:HASH_BYTES]
    return position._replace(last_sequence=last_sequence, hash=digest)


def cut_entry(entry: Entry, before: int, last_sequence: int) -> Entry:
    """Return the entry without what is behind the command of this number.

    `before` is the last number before the entry. ValueError if its groups can't be read.
    """
    if last_sequence >= entry.last_sequence:
        return entry
    if entry.kind != EntryKind.BATCH:
        raise ValueError(f"entry {entry.index} has no commands that it could be cut between")
    payload = bytearray()
    left = last_sequence - before
    for group in decode_groups(entry.payload):
        if left <= 0:
            break
        payload += encode_group(_cut_group(group, left))
        left -= group.count
    assert left <= 0, "the cut is within the entry"
    # Only the payload is read of `data`: the header's fields stand beside it.
    data = entry.data[: len(entry.data) - len(entry.payload)] + bytes(payload)
    return entry._replace(last_sequence=last_sequence, data=data)


def _cut_group(group: Group, count: int) -> Group:
    if group.count <= count:
        return group
    commands = _NO_COMMANDS
    if group.count <= ARRAY_MAX and unpack_commands(group.commands, group.count) is not None:
        unpacker = msgpack.Unpacker(max_buffer_size=0)
        unpacker.feed(group.commands)
        for _ in range(count):
            unpacker.skip()
        commands = group.commands[: unpacker.tell()]
    return group._replace(count=count, commands=commands)
