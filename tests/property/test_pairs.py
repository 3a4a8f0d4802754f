"""Pairs as bytes, and merges of them, against a dict."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftha.storage.backup.pairs import (
    Piece,
    cut_blocks,
    decode_pairs,
    in_pieces,
    merge,
    without_deleted,
)
from raftha.storage.state.blocks import Pair, encode_pairs
from raftha.storage.state.store import Hasher

keys = st.binary(min_size=1, max_size=12)
values = st.binary(max_size=60)
runs = st.dictionaries(keys, st.none() | values, max_size=30)


def pieces_of(run: dict[bytes, bytes | None], size: int) -> list[Piece]:
    pairs = sorted(run.items())
    return [pairs[i : i + size] for i in range(0, len(pairs), size)]


@given(run=runs, size=st.integers(1, 9), block_bytes=st.integers(1, 300))
def test_blocks_give_back_the_pairs(
    run: dict[bytes, bytes | None], size: int, block_bytes: int
) -> None:
    blocks = list(cut_blocks(pieces_of(run, size), block_bytes))
    found: list[Pair] = []
    for block in blocks:
        pairs = decode_pairs(block.raw)
        assert (len(pairs), pairs[0][0], pairs[-1][0]) == block[1:]
        assert len(block.raw) <= block_bytes or len(pairs) == 1
        found += pairs
    assert found == sorted(run.items())


@given(layers=st.lists(runs, min_size=1, max_size=5), size=st.integers(1, 9))
def test_a_merge_is_what_a_dict_does(layers: list[dict[bytes, bytes | None]], size: int) -> None:
    model: dict[bytes, bytes | None] = {}
    for layer in layers:
        model.update(layer)
    newest_first = [iter(pieces_of(layer, size)) for layer in reversed(layers)]
    merged = [pair for piece in merge(newest_first) for pair in piece]
    assert merged == sorted(model.items())
    again = [pair for piece in without_deleted(iter([merged])) for pair in piece]
    assert again == sorted((key, value) for key, value in model.items() if value is not None)


@given(state=st.dictionaries(keys, values, max_size=30), block_bytes=st.integers(1, 300))
def test_the_bytes_of_a_state_are_what_its_digest_hashes(
    state: dict[bytes, bytes], block_bytes: int
) -> None:
    hasher = Hasher()
    for key, value in sorted(state.items()):
        hasher.add(key, value)
    joined = b"".join(block.raw for block in cut_blocks(in_pieces(sorted(state.items()))))
    again = Hasher()
    again.add_encoded(joined, len(state))
    assert again.finish() == hasher.finish()


@given(run=runs.filter(bool), data=st.data())
def test_a_block_that_is_cut_off_is_noticed(
    run: dict[bytes, bytes | None], data: st.DataObject
) -> None:
    raw = encode_pairs(sorted(run.items()))
    ends = {len(encode_pairs(sorted(run.items())[:count])) for count in range(len(run) + 1)}
    size = data.draw(st.integers(0, len(raw)))
    if size in ends:
        assert decode_pairs(raw[:size]) == sorted(run.items())[: sorted(ends).index(size)]
    else:
        with pytest.raises(ValueError, match=r"cut off|bytes"):
            decode_pairs(raw[:size])


@given(raw=st.binary(max_size=200))
def test_any_bytes_are_pairs_in_order_or_an_error(raw: bytes) -> None:
    try:
        pairs = decode_pairs(raw)
    except ValueError:
        return
    assert [key for key, _ in pairs] == sorted({key for key, _ in pairs})
    assert encode_pairs(pairs) == raw


@given(run=st.lists(st.tuples(keys, values), min_size=2, max_size=9))
def test_keys_out_of_order_are_refused(run: list[tuple[bytes, bytes]]) -> None:
    keys_only = [key for key, _ in run]
    if keys_only == sorted(set(keys_only)):
        return
    with pytest.raises(ValueError, match="order"):
        decode_pairs(encode_pairs(run))
    with pytest.raises(ValueError, match="order"):
        list(cut_blocks([[pair] for pair in run]))
    with pytest.raises(ValueError, match="order"):
        list(cut_blocks([run]))


def test_keys_and_values_keep_to_their_limits() -> None:
    with pytest.raises(ValueError, match="511"):
        decode_pairs(encode_pairs([(b"k" * 512, b"")]))
    with pytest.raises(ValueError, match="4194304"):
        decode_pairs(encode_pairs([(b"k", bytes((4 << 20) + 1))]))
    assert len(decode_pairs(encode_pairs([(b"k" * 511, bytes(4 << 20))]))) == 1
