"""Ordered pairs as bytes: what runs, the spool and the digest have in common.

Theory of operation. A pair is a key and its value, or None for a key that was deleted. Pairs travel
in *pieces*, lists of some tens of KiB, so that the cost of a step is paid once for many. A *block*
is a piece as bytes:

    size  field
       4  length of the key, little endian
       -  key
       4  length of the value, little endian; 2**32 - 1: the key was deleted, no value follows
       -  value

These are the bytes that `Hasher` hashes, so the digest of a state is the hash of its blocks, one
after the other. A block is at most `BLOCK_BYTES` long, unless it has only one pair.

Keys ascend, within a block and from block to block. Everything that reads pairs from a place that
others may write to checks this, and the limits of keys and values.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from operator import lt
from typing import NamedTuple, TypeAlias

from raftha.config.limits import KEY_BYTES_MAX, KIB, VALUE_BYTES_MAX

Pair: TypeAlias = "tuple[bytes, bytes | None]"
Piece: TypeAlias = "Sequence[Pair]"

BLOCK_BYTES = 256 * KIB
"""A block's size, unless one pair alone is larger."""
PIECE_PAIRS = 256
"""Pairs in a piece that a merge makes."""

_LENGTH = struct.Struct("<I")
_DELETED = 0xFFFF_FFFF
_GONE = _LENGTH.pack(_DELETED)
_SHORT = tuple(_LENGTH.pack(size) for size in range(4096))
"""The usual lengths, because a look-up takes half the time of packing."""


class Block(NamedTuple):
    """Some pairs as bytes."""

    raw: bytes
    keys: int
    first_key: bytes
    last_key: bytes


def encode_pairs(pairs: Iterable[Pair]) -> bytes:
    """Return the bytes of pairs."""
    return b"".join(_parts(pairs))


def decode_pairs(raw: bytes) -> list[Pair]:
    """Return the pairs in a block; ValueError unless they are in order and within their limits."""
    unpack, at, end = _LENGTH.unpack_from, 0, len(raw)
    pairs: list[Pair] = []
    add = pairs.append
    try:
        while at < end:
            key_at = at + 4
            value_at = key_at + unpack(raw, at)[0]
            (size,) = unpack(raw, value_at)
            value_at += 4
            if size == _DELETED:
                add((raw[key_at : value_at - 4], None))
                at = value_at
            else:
                at = value_at + size
                add((raw[key_at : value_at - 4], raw[value_at:at]))
    except struct.error:
        raise ValueError("a pair is cut off") from None
    if at != end:
        raise ValueError("a value is cut off")
    check_piece(pairs)
    return pairs


def check_piece(pairs: Piece, previous: bytes = b"") -> None:
    """Raise ValueError unless keys ascend, behind `previous`, and all is within its limits."""
    if not pairs:
        return
    keys = [key for key, _ in pairs]
    if keys[0] <= previous or not all(map(lt, keys, islice(keys, 1, None))):
        raise ValueError("keys are not in order")
    if len(max(keys, key=len)) > KEY_BYTES_MAX:
        raise ValueError(f"a key has more than {KEY_BYTES_MAX} bytes")
    if max((len(value) for _, value in pairs if value is not None), default=0) > VALUE_BYTES_MAX:
        raise ValueError(f"a value has more than {VALUE_BYTES_MAX} bytes")


def cut_blocks(pieces: Iterable[Piece], block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """Make blocks of pieces; ValueError if the keys are not in order."""
    held: list[bytes] = []
    size = keys = 0
    first = last = b""
    for parts, at_key in _small_pieces(pieces, block_bytes):
        raw = b"".join(parts)
        if held and size + len(raw) > block_bytes:
            yield Block(b"".join(held), keys, first, last)
            held, size, keys = [], 0, 0
        if at_key[0] <= last:
            raise ValueError("keys are not in order")
        first = first if held else at_key[0]
        last = at_key[-1]
        held.append(raw)
        size, keys = size + len(raw), keys + len(at_key)
    if held:
        yield Block(b"".join(held), keys, first, last)


def _small_pieces(
    pieces: Iterable[Piece], block_bytes: int
) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """Yield the parts and the keys of pieces that fit into a block, unless they have one pair."""
    for whole in pieces:
        waiting = [whole]
        while waiting:
            piece = waiting.pop()
            if not piece:
                continue
            parts = _parts(piece)
            if len(piece) > 1 and sum(map(len, parts)) > block_bytes:
                half = len(piece) // 2
                waiting += (piece[half:], piece[:half])
                continue
            keys = [key for key, _ in piece]
            if not all(map(lt, keys, islice(keys, 1, None))):
                raise ValueError("keys are not in order")
            yield parts, keys


def _parts(pairs: Iterable[Pair]) -> list[bytes]:
    parts: list[bytes] = []
    short, limit, pack = _SHORT, len(_SHORT), _LENGTH.pack
    for key, value in pairs:
        if value is None:
            parts += (short[len(key)], key, _GONE)
        else:
            size = len(value)
            parts += (short[len(key)], key, short[size] if size < limit else pack(size), value)
    return parts


def merge(newest_first: Sequence[Iterator[Piece]]) -> Iterator[Piece]:
    """Merge runs of pairs, laid over each other; of each key the newest pair is yielded."""
    if len(newest_first) == 1:
        yield from newest_first[0]
        return
    layers = [_aged(pieces, age) for age, pieces in enumerate(newest_first)]
    previous = b""
    piece: list[Pair] = []
    size = 0
    # A key stands at most once in a layer, so the values are never compared.
    for key, _, value in heapq.merge(*layers):
        if key == previous:
            continue
        previous = key
        piece.append((key, value))
        size += len(value) if value is not None else 0
        if len(piece) == PIECE_PAIRS or size > BLOCK_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _aged(pieces: Iterator[Piece], age: int) -> Iterator[tuple[bytes, int, bytes | None]]:
    for piece in pieces:
        for key, value in piece:
            yield key, age, value


def without_deleted(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Leave out deleted keys: what a state has of its merged runs."""
    for piece in pieces:
        kept = [pair for pair in piece if pair[1] is not None]
        if kept:
            yield kept


def in_pieces(pairs: Iterable[Pair]) -> Iterator[Piece]:
    """Cut a sequence of pairs into pieces."""
    steps = iter(pairs)
    while piece := list(islice(steps, PIECE_PAIRS)):
        yield piece


def flat(pieces: Iterable[Piece]) -> Iterator[Pair]:
    """Yield the pairs of pieces one by one."""
    return chain.from_iterable(pieces)
