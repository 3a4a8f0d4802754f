"""Entries and groups: their bytes, the chain of hashes, and damage that must be noticed."""

from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftha.entry import (
    GROUP_HEADER_BYTES,
    LOG_START,
    Entry,
    EntryKind,
    Group,
    decode_entry,
    decode_groups,
    encode_group,
    follows,
    make_entry,
)

U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)
GROUPS = st.builds(Group, U64, U64, U64, U32, st.binary(max_size=100))


def chain(*payloads: bytes) -> list[Entry]:
    entries: list[Entry] = []
    for payload in payloads:
        previous = entries[-1].position if entries else LOG_START
        entries.append(make_entry(previous, 1, 1000, EntryKind.BATCH, payload, 2))
    return entries


def test_the_bytes_are_as_documented() -> None:
    """The format on disk and in archives: a change here is a change of format."""
    entry = make_entry(LOG_START, 7, 0x0102030405060708, EntryKind.BATCH, b"payload", 3)
    fields = {
        "index": "0100000000000000",
        "term": "0700000000000000",
        "time_us": "0807060504030201",
        "last_sequence": "0300000000000000",
        "hash": entry.hash.hex(),
        "kind and zeros": "01000000",
        "payload size": "07000000",
        "payload": b"payload".hex(),
    }
    assert entry.data.hex() == "".join(fields.values())
    unhashed = bytes.fromhex("".join({**fields, "hash": "00" * 16}.values()))
    assert entry.hash == hashlib.sha256(LOG_START.hash + unhashed).digest()[:16]


def test_an_entry_continues_the_one_before() -> None:
    first, second = chain(b"a", b"b")
    assert (first.index, second.index) == (1, 2)
    assert (first.last_sequence, second.last_sequence) == (2, 4)
    assert follows(first, LOG_START.hash)
    assert follows(second, first.hash)
    assert not follows(second, LOG_START.hash)


def test_time_never_goes_backwards_along_the_log() -> None:
    first = make_entry(LOG_START, 1, 2000, EntryKind.NOOP, b"", 0)
    second = make_entry(first.position, 1, 1000, EntryKind.NOOP, b"", 0)
    assert second.time_us == 2000


def test_a_term_below_the_last_one_is_a_broken_invariant() -> None:
    first = make_entry(LOG_START, 5, 0, EntryKind.NOOP, b"", 0)
    with pytest.raises(AssertionError):
        make_entry(first.position, 4, 0, EntryKind.NOOP, b"", 0)


def test_two_logs_that_differ_anywhere_never_agree_on_a_hash_again() -> None:
    left, right = chain(b"a", b"same", b"same"), chain(b"b", b"same", b"same")
    assert all(x.hash != y.hash for x, y in zip(left, right, strict=True))


@given(st.lists(GROUPS, max_size=5), U32)
def test_an_entry_and_its_groups_come_back_from_their_bytes(
    groups: list[Group], time_us: int
) -> None:
    payload = b"".join(map(encode_group, groups))
    entry = make_entry(LOG_START, 1, time_us, EntryKind.BATCH, payload, len(groups))
    decoded = decode_entry(entry.data)
    assert decoded == entry
    assert decoded.payload == payload
    assert list(decode_groups(decoded.payload)) == groups


@given(st.binary(max_size=40), st.data())
def test_one_flipped_bit_anywhere_breaks_the_chain_or_the_entry(
    payload: bytes, data: st.DataObject
) -> None:
    entry = make_entry(LOG_START, 1, 1, EntryKind.BATCH, payload, 1)
    position = data.draw(st.integers(0, 8 * len(entry.data) - 1))
    damaged = bytearray(entry.data)
    damaged[position // 8] ^= 1 << position % 8
    try:
        decoded = decode_entry(bytes(damaged))
    except ValueError:
        return
    assert not follows(decoded, LOG_START.hash)


def test_an_entry_cut_short_anywhere_is_refused() -> None:
    data = make_entry(LOG_START, 1, 1, EntryKind.BATCH, b"payload", 1).data
    for size in range(len(data)):
        with pytest.raises(ValueError, match="entry"):
            decode_entry(data[:size])


def test_an_entry_of_a_later_kind_is_read_and_one_of_none_is_refused() -> None:
    """A log may hold entries of a later version; taken for damage, they would be set aside."""
    data = bytearray(make_entry(LOG_START, 1, 1, EntryKind.NOOP, b"", 0).data)
    data[48] = 99
    assert decode_entry(bytes(data)).kind == 99
    data[48] = 0
    with pytest.raises(ValueError, match="no kind"):
        decode_entry(bytes(data))


def test_groups_cut_short_anywhere_are_refused() -> None:
    payload = encode_group(Group(1, 2, 3, 1, b"commands"))
    for size in range(1, len(payload)):
        with pytest.raises(ValueError, match="cut short"):
            list(decode_groups(memoryview(payload[:size])))


def test_a_group_that_claims_more_bytes_than_it_has_is_refused() -> None:
    header = struct.pack("<QQQII", 1, 1, 1, 1, 2**32 - 1)
    assert len(header) == GROUP_HEADER_BYTES
    with pytest.raises(ValueError, match="cut short"):
        list(decode_groups(memoryview(header + b"x")))
