"""Commands: what can be packed, what is unpacked, and the errors for malformed bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftha.config.limits import VALUE_BYTES_MAX
from raftha.errors import InvalidRequest
from raftha.storage.state import commands
from raftha.storage.state.commands import (
    CALL,
    COMPARE_AND_SET,
    DELETE,
    PUT,
    TRANSACTION,
    Delete,
    Equals,
    Exists,
    Get,
    Missing,
    Put,
)

KEYS = st.binary(min_size=1, max_size=511)
VALUES = st.binary(max_size=300)


@given(KEYS, VALUES)
def test_a_put_comes_back_as_it_was_packed(key: bytes, value: bytes) -> None:
    assert commands.unpack(commands.pack_put(key, value)) == (PUT, key, value)


def test_every_command_comes_back_as_it_was_packed() -> None:
    assert commands.unpack(commands.pack_delete(b"k")) == (DELETE, b"k")
    packed = commands.pack_compare_and_set(b"k", None, b"v")
    assert commands.unpack(packed) == (COMPARE_AND_SET, b"k", None, b"v")
    packed = commands.pack_transaction(
        [Equals(b"a", b"1"), Exists(b"b"), Missing(b"c")],
        [Put(b"a", b"2"), Get(b"a")],
        [Delete(b"b")],
    )
    conditions = ((1, b"a", b"1"), (2, b"b"), (3, b"c"))
    operations = ((PUT, b"a", b"2"), (6, b"a"))
    assert commands.unpack(packed) == (TRANSACTION, conditions, operations, ((DELETE, b"b"),))
    packed = commands.pack_call("move", [b"a", "text", 1, None, [1.5, {"x": True}]])
    assert commands.unpack(packed) == (CALL, "move", (b"a", "text", 1, None, (1.5, {"x": True})))


@pytest.mark.parametrize("key", [b"", b"x" * 512, "text", bytearray(b"x"), None, 5])
def test_a_key_outside_1_to_511_bytes_is_refused(key: Any) -> None:
    packers: list[Callable[[], bytes]] = [
        lambda: commands.pack_put(key, b""),
        lambda: commands.pack_delete(key),
        lambda: commands.pack_compare_and_set(key, None, None),
        lambda: commands.pack_transaction([Exists(key)], []),
        lambda: commands.pack_transaction([], [Get(key)]),
    ]
    for pack in packers:
        with pytest.raises(InvalidRequest, match="key must be"):
            pack()


def test_text_is_refused_with_a_hint_to_encode_it() -> None:
    with pytest.raises(InvalidRequest, match=r"text.encode\(\)"):
        commands.pack_put(b"k", "text")  # type: ignore[arg-type]


def test_a_value_over_the_limit_of_the_node_is_refused() -> None:
    commands.pack_put(b"k", bytes(10), value_bytes_max=10)
    with pytest.raises(InvalidRequest, match="at most 10 bytes, got 11"):
        commands.pack_put(b"k", bytes(11), value_bytes_max=10)
    with pytest.raises(InvalidRequest, match="at most 10 bytes"):
        commands.pack_compare_and_set(b"k", None, bytes(11), value_bytes_max=10)
    with pytest.raises(InvalidRequest, match="at most 10 bytes"):
        commands.pack_transaction([], [Put(b"k", bytes(11))], value_bytes_max=10)


def test_a_command_over_the_limit_is_refused() -> None:
    half = bytes(VALUE_BYTES_MAX // 2 + 4096)
    with pytest.raises(InvalidRequest, match="a command must be at most"):
        commands.pack_transaction([], [Put(b"a", half), Put(b"b", half)])
    with pytest.raises(InvalidRequest, match="a command must be at most"):
        commands.pack_call("f", [half, half])


def test_a_transaction_with_too_many_parts_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="at most 10000 parts"):
        commands.pack_transaction([Exists(b"k")], [Get(b"k")] * 5000, [Get(b"k")] * 5000)


@pytest.mark.parametrize("part", [(b"k", b"v"), b"k", None, Put])
def test_an_unknown_condition_or_operation_is_refused(part: Any) -> None:
    with pytest.raises(InvalidRequest, match="is not a condition"):
        commands.pack_transaction([part], [])
    with pytest.raises(InvalidRequest, match="is not an operation"):
        commands.pack_transaction([], [part])


@pytest.mark.parametrize(
    "argument",
    [object(), {1, 2}, 1 << 64, {(1, 2): 3}, [0] * 65_537, "\ud800"],
    ids=lambda argument: type(argument).__name__,
)
def test_an_argument_that_cannot_travel_is_refused(argument: Any) -> None:
    with pytest.raises(InvalidRequest, match="an argument can't be packed"):
        commands.pack_call("f", [argument])


@pytest.mark.parametrize("name", ["", "x" * 129, b"bytes", None])
def test_a_name_that_is_not_text_of_1_to_128_characters_is_refused(name: Any) -> None:
    with pytest.raises(InvalidRequest, match="name must be text"):
        commands.pack_call(name, [])


@given(st.lists(st.tuples(KEYS, VALUES), max_size=20))
def test_a_group_splits_into_its_commands(pairs: list[tuple[bytes, bytes]]) -> None:
    joined = b"".join(commands.pack_put(key, value) for key, value in pairs)
    split = commands.unpack_commands(joined, len(pairs))
    assert split == tuple((PUT, key, value) for key, value in pairs)
    assert commands.unpack_commands(joined, len(pairs) + 1) is None
    if pairs:
        assert commands.unpack_commands(joined, len(pairs) - 1) is None
        assert commands.unpack_commands(joined[:-1], len(pairs)) is None


@given(st.binary(max_size=200), st.integers(0, 100))
def test_any_bytes_split_or_are_refused_without_an_exception(junk: bytes, count: int) -> None:
    split = commands.unpack_commands(junk, count)
    assert split is None or len(split) == count


@pytest.mark.parametrize(
    "junk",
    [
        b"\xdd\xff\xff\xff\xff" * 100,  # arrays that claim 2**32 items
        b"\x91" * 5000,  # nested too deep
        b"\xc6\xff\xff\xff\xff",  # bytes that claim 4 GiB
        b"\xa1\xff",  # text that isn't UTF-8
        b"\x81\x90\x01",  # a map with an array for a key
        b"\xc7\x00\xff",  # a timestamp of no length
        b"\xc1",  # never used by msgpack
    ],
)
def test_hostile_bytes_are_refused(junk: bytes) -> None:
    assert commands.unpack_commands(junk, 1) is None


@pytest.mark.parametrize(
    "result", [None, True, -(2**63), 2**64 - 1, 0.5, b"\0", "text", [1, [b"x"]], {"a": {5: None}}]
)
def test_a_result_survives_packing(result: Any) -> None:
    assert commands.unpack_result(commands.pack_result(result)) == result


def test_a_tuple_in_a_result_comes_back_as_a_list() -> None:
    assert commands.unpack_result(commands.pack_result((1, (2,)))) == [1, [2]]
