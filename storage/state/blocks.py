"""Ordered pairs as bytes, in blocks: what a digest hashes, and what backups hold.

A pair is a key and its value, or None for a key that was deleted:

    size  field
       4  length of the key, little endian
       -  key
       4  length of the value, little endian; 2**32 - 1: the key was deleted, no value follows
       -  value

These are the bytes that `Hasher` hashes, so the digest of a state is the hash of its blocks, one
after the other.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeAlias

from raftha.config.limits import KIB

Pair: TypeAlias = "tuple[bytes, bytes | None]"

BLOCK_BYTES = 256 * KIB
"""A block's size at most, unless one pair alone is larger."""
LENGTH = struct.Struct("<I")
DELETED = 0xFFFF_FFFF
SHORT = tuple(LENGTH.pack(size) for size in range(4096))
"""The usual lengths, because a look-up takes half the time of packing."""
_GONE = LENGTH.pack(DELETED)


class Block(NamedTuple):
    """Some pairs as bytes, in the order of their keys."""

    raw: bytes
    keys: int
    first_key: bytes
    last_key: bytes


def encode_pairs(pairs: Iterable[Pair]) -> bytes:
    """Return the bytes of pairs."""
    return b"".join(encoded_parts(pairs))


def encoded_parts(pairs: Iterable[Pair]) -> list[bytes]:
    """Return the bytes of pairs, not joined yet."""
    parts: list[bytes] = []
    short, limit, pack = SHORT, len(SHORT), LENGTH.pack
    for key, value in pairs:
        if value is None:
            parts += (short[len(key)], key, _GONE)
        else:
            size = len(value)
            parts += (short[len(key)], key, short[size] if size < limit else pack(size), value)
    return parts


def join_blocks(small: Iterable[Block], block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """Join blocks as far as they fit into one. ValueError if they are not in order."""
    held: list[bytes] = []
    size = keys = 0
    first = last = b""
    for block in small:
        if held and size + len(block.raw) > block_bytes:
            yield Block(b"".join(held), keys, first, last)
            held, size, keys = [], 0, 0
        if block.first_key <= last:
            raise ValueError("keys are not in order")
        first = first if held else block.first_key
        last = block.last_key
        held.append(block.raw)
        size, keys = size + len(block.raw), keys + block.keys
    if held:
        yield Block(b"".join(held) if len(held) > 1 else held[0], keys, first, last)
