"""Redis's write commands as a state machine: results, errors, and what is rolled back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from raftha.client.resp import ReplyError
from raftha.server.machine import (
    EXEC_READ_BYTES_MAX,
    INT64_MAX,
    INT64_MIN,
    RedisMachine,
    parse_int64,
)
from raftha.storage.state.buffer import Pair
from raftha.storage.state.commands import pack_call, unpack
from raftha.storage.state.machine import DONE, FAILED, Transaction, run

NOT_AN_INTEGER = "ERR value is not an integer or out of range"


class Contents:
    """The state below a transaction: a dict."""

    def __init__(self, values: dict[bytes, bytes]) -> None:
        self.values = values

    def get(self, key: bytes) -> bytes | None:
        return self.values.get(key)

    def iterate(self, start: bytes | None, end: bytes | None, *, reverse: bool) -> Iterator[Pair]:
        raise AssertionError("no command scans")


def call(values: dict[bytes, bytes], name: str, *arguments: Any) -> Any:
    """Run a command as a replica does; its writes are in `values` afterwards, if it succeeded."""
    txn = Transaction(Contents(values), time_us=1, sequence=1)
    result = run(unpack(pack_call(name, arguments)), txn, RedisMachine())
    if result is None:
        result = (DONE, None)
    if result[0] == DONE:
        for key, value in txn.finish().items():
            if value is None:
                values.pop(key, None)
            else:
                values[key] = value
        return result[1]
    assert result[0] == FAILED
    return result[1:]


def test_exec_fails_as_a_whole_if_it_reads_too_much() -> None:
    values = {b"large": b"x" * (1 << 20), b"n": b"1"}
    reads = EXEC_READ_BYTES_MAX // (1 << 20)
    fitting = [("exists", *[b"large"] * reads)]
    assert call(values, "exec", *fitting) == [reads]
    kind, detail = call(values, "exec", ("incrby", b"n", 1), *fitting, ("delete", b"large"))
    assert kind == "ReplyError"
    assert detail.startswith("ERR EXEC reads values of over")
    assert values[b"n"] == b"1"
    assert b"large" in values


@pytest.mark.parametrize("text", [b"0", b"-1", b"42", b"%d" % INT64_MAX, b"%d" % INT64_MIN])
def test_canonical_integers_are_read(text: bytes) -> None:
    assert b"%d" % parse_int64(text) == text


@pytest.mark.parametrize(
    "text",
    [
        *(
            b"",
            b"-",
            b"+1",
            b" 1",
            b"1 ",
            b"01",
            b"-0",
            b"-01",
            b"1.0",
            b"1_0",
            b"0x1",
            b"\xb2",
            b"a",
        ),
        *(b"%d" % (INT64_MAX + 1), b"%d" % (INT64_MIN - 1), b"9" * 10_000),
    ],
)
def test_other_integers_are_refused(text: bytes) -> None:
    with pytest.raises(ReplyError, match=NOT_AN_INTEGER):
        parse_int64(text)


@pytest.mark.parametrize(
    ("old", "condition", "returns_old", "reply", "new"),
    [
        (None, "", False, "OK", b"v"),
        (b"o", "", False, "OK", b"v"),
        (None, "NX", False, "OK", b"v"),
        (b"o", "NX", False, None, b"o"),
        (None, "XX", False, None, None),
        (b"o", "XX", False, "OK", b"v"),
        (b"o", "", True, b"o", b"v"),
        (None, "", True, None, b"v"),
        (b"o", "NX", True, b"o", b"o"),
        (None, "XX", True, None, None),
    ],
)
def test_set(
    old: bytes | None, condition: str, returns_old: bool, reply: Any, new: bytes | None
) -> None:
    values = {} if old is None else {b"k": old}
    assert call(values, "set", b"k", b"v", condition, returns_old) == reply
    assert values.get(b"k") == new


def test_incrby_counts_from_nothing_and_both_ways() -> None:
    values: dict[bytes, bytes] = {}
    assert call(values, "incrby", b"k", 5) == 5
    assert call(values, "incrby", b"k", -7) == -2
    assert values == {b"k": b"-2"}


@pytest.mark.parametrize(
    ("old", "amount", "error"),
    [
        (b"x", 1, NOT_AN_INTEGER),
        (b"", 1, NOT_AN_INTEGER),
        (b"%d" % INT64_MAX, 1, "ERR increment or decrement would overflow"),
        (b"%d" % INT64_MIN, -1, "ERR increment or decrement would overflow"),
    ],
)
def test_incrby_refuses_what_is_no_number_or_would_overflow(
    old: bytes, amount: int, error: str
) -> None:
    values = {b"k": old}
    assert call(values, "incrby", b"k", amount) == ("ReplyError", error)
    assert values == {b"k": old}


def test_delete_counts_keys_that_were_there_once() -> None:
    values = {b"a": b"1", b"b": b"2"}
    assert call(values, "delete", b"a", b"a", b"missing", b"b") == 2
    assert not values


def test_mset_sets_pairs_in_order() -> None:
    values: dict[bytes, bytes] = {}
    assert call(values, "mset", b"a", b"1", b"b", b"2", b"a", b"3") == "OK"
    assert values == {b"a": b"3", b"b": b"2"}


def test_exec_runs_all_and_each_sees_those_before_it() -> None:
    values = {b"n": b"1"}
    calls = [
        ("incrby", b"n", 1),
        ("get", b"n"),
        ("mset", b"a", b"1", b"b", b"2"),
        ("mget", b"a", b"missing"),
        ("exists", b"a", b"a", b"missing"),
        ("delete", b"a"),
        ("set", b"c", b"3", "NX", False),
        ("get", b"a"),
    ]
    assert call(values, "exec", *calls) == [2, b"2", "OK", [b"1", None], 2, 1, "OK", None]
    assert values == {b"n": b"2", b"b": b"2", b"c": b"3"}


def test_a_command_that_fails_inside_exec_leaves_the_others_alone() -> None:
    values = {b"text": b"x"}
    calls = [("set", b"a", b"1", "", False), ("incrby", b"text", 1), ("incrby", b"a", 1)]
    assert call(values, "exec", *calls) == ["OK", {"error": NOT_AN_INTEGER}, 2]
    assert values == {b"text": b"x", b"a": b"2"}


def test_an_exec_that_would_read_too_much_is_rolled_back() -> None:
    values = {b"big": bytes(1 << 20)}
    calls = [("incrby", b"n", 1), *[("get", b"big")] * 5]
    kind, detail = call(values, "exec", *calls)
    assert kind == "ReplyError"
    assert "is over" in detail
    assert b"n" not in values


def test_an_exec_of_anything_else_fails_and_stops_no_node() -> None:
    values: dict[bytes, bytes] = {}
    assert call(values, "exec", ("set", b"a", b"1", "", False), ("exec",))[0] == "KeyError"
    assert not values
