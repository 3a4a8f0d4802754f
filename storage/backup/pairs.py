"""Ordered pairs as bytes, read back from where others may write; and merges of them.

Theory of operation. Pairs travel in *pieces*, lists of some tens of KiB, so that the cost of a step
is paid once for many, and are kept as blocks (`state/blocks.py`). Keys ascend, within a block and
from block to block: reading a block checks this, and the limits of keys and values.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from operator import lt
from typing import TypeAlias

from raftha.config.limits import KEY_BYTES_MAX, VALUE_BYTES_MAX
from raftha.storage.state.blocks import (
    BLOCK_BYTES,
    DELETED,
    LENGTH,
    Block,
    Pair,
    encoded_parts,
    join_blocks,
)

Piece: TypeAlias = "Sequence[Pair]"

PIECE_PAIRS = 256
"""Pairs in a piece that a merge makes."""


def decode_pairs(raw: bytes) -> list[Pair]:
    """Return the pairs in a block; ValueError unless they are in order and within their limits."""
    unpack, at, end, limit = LENGTH.unpack_from, 0, len(raw), VALUE_BYTES_MAX
    pairs: list[Pair] = []
    add = pairs.append
    try:
        while at < end:
            key_at = at + 4
            value_at = key_at + unpack(raw, at)[0]
            (size,) = unpack(raw, value_at)
            value_at += 4
            if size <= limit:
                at = value_at + size
                add((raw[key_at : value_at - 4], raw[value_at:at]))
            elif size == DELETED:
                add((raw[key_at : value_at - 4], None))
                at = value_at
            else:
                raise ValueError(f"a value has more than {VALUE_BYTES_MAX} bytes")
    except struct.error:
        raise ValueError("a pair is cut off") from None
    if at != end:
        raise ValueError("a value is cut off")
    _check_keys(pairs, b"")
    return pairs


def check_piece(pairs: Piece, previous: bytes = b"") -> None:
    """Raise ValueError unless keys ascend, behind `previous`, and all is within its limits."""
    _check_keys(pairs, previous)
    if max((len(value) for _, value in pairs if value is not None), default=0) > VALUE_BYTES_MAX:
        raise ValueError(f"a value has more than {VALUE_BYTES_MAX} bytes")


def _check_keys(pairs: Piece, previous: bytes) -> None:
    keys = [previous, *[key for key, _ in pairs]]
    if not all(map(lt, keys, islice(keys, 1, None))):
        raise ValueError("keys are not in order")
    if max(map(len, keys)) > KEY_BYTES_MAX:
        raise ValueError(f"a key has more than {KEY_BYTES_MAX} bytes")


def cut_blocks(pieces: Iterable[Piece], block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """Make blocks of pieces; ValueError if the keys are not in order."""
    return join_blocks(_small_blocks(pieces, block_bytes), block_bytes)


def _small_blocks(pieces: Iterable[Piece], block_bytes: int) -> Iterator[Block]:
    """Yield pieces as blocks, cut where they are too large."""
    for whole in pieces:
        waiting = [whole]
        while waiting:
            piece = waiting.pop()
            if not piece:
                continue
            parts = encoded_parts(piece)
            if len(piece) > 1 and sum(map(len, parts)) > block_bytes:
                half = len(piece) // 2
                waiting += (piece[half:], piece[:half])
                continue
            keys = [key for key, _ in piece]
            if not all(map(lt, keys, islice(keys, 1, None))):
                raise ValueError("keys are not in order")
            yield Block(b"".join(parts), len(piece), keys[0], keys[-1])


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
