"""RESP: requests from bytes, however they are cut and whatever they claim; replies to bytes."""

from __future__ import annotations

import tracemalloc
from collections import deque
from itertools import pairwise
from typing import Any

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftha.client.resp import (
    INLINE_BYTES_MAX,
    NULL_3,
    ProtocolError,
    ReplyError,
    RequestParser,
    encode,
    error_from_reply,
    error_line,
    error_reply,
    pack_request,
)
from raftha.errors import (
    AcknowledgementTimeout,
    CommandFailed,
    Disconnected,
    Indeterminate,
    InvalidRequest,
    MembershipChangePending,
    NotLeader,
    Overloaded,
    RafthaError,
    ReplicaTooSlow,
    RequestTimeout,
    SessionExpired,
    Stopped,
    StorageFailed,
    StorageFull,
    TransferFailed,
    Unavailable,
)

# Values full of what looks like headers, some over the limit, are the hard part.
ARGUMENTS = st.one_of(
    st.binary(max_size=20),
    st.lists(
        st.sampled_from([b"*", b"$", b"~", b">", b"1234567", b"99", b"\r\n", b"*1000000\r\n"]),
        max_size=6,
    ).map(b"".join),
)
REQUESTS = st.lists(st.lists(ARGUMENTS, min_size=1, max_size=4), max_size=5)


def parse(*reads: bytes, request_bytes_max: int = 1 << 20) -> list[list[bytes]]:
    parser = RequestParser(request_bytes_max)
    requests: deque[Any] = deque()
    for read in reads:
        parser.feed(read, requests)
    return list(requests)


def pack(*arguments: bytes) -> bytes:
    return pack_request(arguments)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    bounds = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[low:high] for low, high in pairwise(bounds)]


@given(REQUESTS, st.lists(st.integers(min_value=0), max_size=8))
def test_requests_are_the_same_however_they_are_cut(
    requests: list[list[bytes]], places: list[int]
) -> None:
    data = b"".join(pack(*request) for request in requests)
    assert parse(*cut(data, places)) == requests
    assert parse(*(data[i : i + 1] for i in range(len(data)))) == requests


TOKENS = [b"*", b"$", b"%", b"~", b">", b"|", b"(", b",", b"#", b"_", b"=", b":", b"-", b"!", b"+"]
TOKENS += [b"0", b"1", b"2", b"12", b"-1", b"\r\n", b"\r\n", b"\r\n", b"$1\r\na\r\n", b"*2\r\n"]
GARBAGE = st.lists(st.sampled_from(TOKENS), max_size=40).map(b"".join) | st.binary(max_size=200)


@given(GARBAGE, st.lists(st.integers(min_value=0), max_size=4))
def test_garbage_is_requests_or_a_protocol_error_and_nothing_else(
    garbage: bytes, places: list[int]
) -> None:
    try:
        requests = parse(*cut(garbage, places))
    except ProtocolError:
        return
    assert all(type(a) is bytes for request in requests for a in request)


CLAIMS = [
    b"*100000\r\n",
    b"*4294967295\r\n",
    b"*2\r\n*999999999\r\n",
    b"*2\r\n~999999999\r\n",
    b"*2\r\n>999999999\r\n",
    b"*2\r\n%999999999\r\n",
    b"*2\r\n$999999999\r\n",
    b"*9\r\n" * 60_000,
    b"*99\r\n" * 50_000,
    b"*1\r\n%9\r\n" + b"%9\r\n" * 60_000,
    b"*1\r\n$4\r\nPING\r\n*123456789\r\n",
    b"*1\r\n$8\r\n*1234567\r\n*123456789\r\n",
]


@pytest.mark.parametrize("data", CLAIMS)
def test_a_large_length_in_a_header_costs_no_memory(data: bytes) -> None:
    parse(pack(b"PING"))
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            parse(data)
        for place in range(1, min(len(data), 50)):
            with pytest.raises(ProtocolError):
                parse(data[:place], data[place:])
        assert tracemalloc.get_traced_memory()[0] < 1 << 20
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("value", [b"*1234567", b"~1234567890\r\n", b"x*999999999\r\n>1000000"])
def test_data_that_looks_like_a_claim_is_data(value: bytes) -> None:
    request = [b"SET", b"key", value]
    data = pack(*request)
    for place in range(len(data)):
        assert parse(*filter(None, (data[:place], data[place:]))) == [request]


def test_a_request_may_have_very_many_arguments() -> None:
    request = [b"%d" % i for i in range(50_000)]
    data = pack(*request)
    assert parse(data) == [request]
    assert parse(*(data[i : i + 1000] for i in range(0, len(data), 1000))) == [request]


def test_requests_before_a_fault_are_kept() -> None:
    parser, requests = RequestParser(), deque[Any]()
    with pytest.raises(ProtocolError):
        parser.feed(pack(b"PING") + b"*999999999\r\n", requests)
    assert list(requests) == [[b"PING"]]


def test_a_request_over_the_limit_is_refused_before_it_is_complete() -> None:
    parser, requests = RequestParser(10_000), deque[Any]()
    parser.feed(b"*3\r\n$3\r\nSET\r\n$6000\r\n" + b"x" * 6000 + b"\r\n$6000", requests)
    with pytest.raises(ProtocolError, match="at most 10000 bytes"):
        parser.feed(b"\r\n", requests)
    with pytest.raises(ProtocolError, match="invalid bulk length"):
        parse(b"*2\r\n$3\r\nGET\r\n$10001\r\n", request_bytes_max=10_000)


def test_the_limit_is_for_one_request_not_for_what_arrives_together() -> None:
    assert len(parse(pack(b"SET", b"k", b"x" * 50) * 1000, request_bytes_max=1000)) == 1000


@pytest.mark.parametrize(
    "data",
    [
        b"*1\r\n:5\r\n",
        b"*1\r\n$-1\r\n",
        b"*2\r\n*1\r\n$1\r\na\r\n$1\r\nb\r\n",
        b"*1\r\n$-7\r\n",
        b"*x\r\n",
        b"*1\r\n%1\r\n%1\r\n+a\r\n+b\r\n+c\r\n",
        b"*" + b"1" * 30,
        b"*1\r\n$4 \r\nPING\r\n",
        b"GET 'a b'\r\n",
    ],
)
def test_a_request_that_is_no_array_of_bulk_strings_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse(data)


def test_empty_requests_are_passed_over() -> None:
    assert parse(b"*0\r\n*-1\r\n\r\n  \r\n" + pack(b"PING")) == [[b"PING"]]


def test_inline_requests_are_split_at_blanks() -> None:
    data = b"SET  a 1\r\nGET a\n" + pack(b"GET", b"b") + b"PING\r\n"
    expected = [[b"SET", b"a", b"1"], [b"GET", b"a"], [b"GET", b"b"], [b"PING"]]
    for place in range(len(data)):
        assert parse(*filter(None, (data[:place], data[place:]))) == expected


def test_an_endless_inline_request_is_refused() -> None:
    with pytest.raises(ProtocolError, match="too big inline request"):
        parse(*[b"x" * 1000] * (INLINE_BYTES_MAX // 1000 + 1))


def test_http_is_turned_away_so_that_a_web_page_cannot_give_commands() -> None:
    with pytest.raises(ProtocolError):
        parse(b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\nSET a 1\r\n")


@pytest.mark.parametrize(
    ("reply", "encoded"),
    [
        (b"a\r\nb", b"$4\r\na\r\nb\r\n"),
        (b"", b"$0\r\n\r\n"),
        ("OK", b"+OK\r\n"),
        (-7, b":-7\r\n"),
        (True, b":1\r\n"),
        (None, b"$-1\r\n"),
        ([b"a", None, 1], b"*3\r\n$1\r\na\r\n$-1\r\n:1\r\n"),
        ([{"error": "ERR a\r\nb"}], b"*1\r\n-ERR a  b\r\n"),
    ],
)
def test_replies_are_encoded_as_resp2(reply: Any, encoded: bytes) -> None:
    assert encode(reply) == encoded


def test_null_is_all_that_resp3_changes() -> None:
    assert encode([None, b"a"], NULL_3) == b"*2\r\n_\r\n$1\r\na\r\n"


ERRORS: list[tuple[RafthaError, type[RafthaError]]] = [
    (NotLeader(2), NotLeader),
    (NotLeader(None), NotLeader),
    (Unavailable("x"), Unavailable),
    (Overloaded("x"), Overloaded),
    (Stopped("x"), Stopped),
    (TransferFailed("x"), TransferFailed),
    (MembershipChangePending("x"), MembershipChangePending),
    (ReplicaTooSlow("x"), ReplicaTooSlow),
    (SessionExpired("x"), SessionExpired),
    (StorageFull("x"), StorageFull),
    (StorageFailed("x"), StorageFailed),
    (AcknowledgementTimeout("x"), AcknowledgementTimeout),
    (RequestTimeout("x"), Indeterminate),
    (Disconnected("x"), Indeterminate),
    (InvalidRequest("x"), ReplyError),
    (CommandFailed("ReplyError", "ERR value is not an integer or out of range"), ReplyError),
    (ReplyError("EXECABORT x"), ReplyError),
]


@pytest.mark.parametrize(("error", "kind"), ERRORS)
def test_a_client_gets_the_class_of_error_that_the_server_met(
    error: RafthaError, kind: type[RafthaError]
) -> None:
    reader = hiredis.Reader()
    reader.feed(error_reply(error))
    read = error_from_reply(str(reader.gets()))
    assert type(read) is kind
    if isinstance(error, NotLeader) and isinstance(read, NotLeader):
        assert read.leader == error.leader


def test_an_unforeseen_error_is_indeterminate(caplog: pytest.LogCaptureFixture) -> None:
    assert error_reply(ValueError("x")).startswith(b"-INDETERMINATE internal error")
    assert "unexpected error" in caplog.text


def test_an_error_is_always_one_line() -> None:
    assert error_line("ERR a\r\nb\nc") == b"-ERR a  b c\r\n"
