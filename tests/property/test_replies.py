"""Each request has one reply, its own, under every mixture of requests, cut packets and errors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import hiredis
from hypothesis import given, settings
from hypothesis import strategies as st

from raftha.client.resp import pack_request
from raftha.errors import (
    AcknowledgementTimeout,
    Disconnected,
    InvalidRequest,
    Overloaded,
    RequestTimeout,
    SessionExpired,
    Stopped,
    StorageFailed,
    StorageFull,
    Unavailable,
)
from tests.support.scene import Scene, play, receipt

ERRORS: tuple[Exception, ...] = (
    AcknowledgementTimeout("too few disks"),
    Disconnected("gone"),
    InvalidRequest("too large"),
    Overloaded("full queue"),
    RequestTimeout("late"),
    SessionExpired("unknown session"),
    Stopped("the node is stopping"),
    StorageFailed("dead disk"),
    StorageFull("full disk"),
    Unavailable("no majority"),
    RuntimeError("a fault of the node"),
)

KEYS = [b"%d" % number for number in range(8)]


@dataclass(frozen=True)
class Request:
    """A request, and the only reply to it that is no error."""

    arguments: tuple[bytes, ...]
    reply: Any


def value_of(key: bytes) -> bytes:
    return b"value of " + key


def requests_of(kinds: list[tuple[str, int, int]]) -> Iterator[Request]:
    """Requests whose replies show which request they belong to."""
    for number, (kind, first, second) in enumerate(kinds):
        one, two = KEYS[first], KEYS[second]
        tag = b"%d" % number
        match kind:
            case "GET":
                yield Request((b"GET", one), value_of(one))
            case "MGET":
                yield Request((b"MGET", one, two), [value_of(one), value_of(two)])
            case "EXISTS":
                yield Request((b"EXISTS", *([one] * (number + 2))), number + 2)
            case "SET":
                yield Request((b"SET", one, tag), b"OK")
            case "INCRBY":
                yield Request((b"INCRBY", one, tag), 1000 + number)
            case "ECHO":
                yield Request((b"ECHO", tag), tag)
            case "DBSIZE":
                yield Request((b"DBSIZE",), 7)
            case "EXEC":
                yield Request((b"MULTI",), b"OK")
                yield Request((b"INCRBY", one, tag), b"QUEUED")
                yield Request((b"EXEC",), [1000 + number])
            case _:
                yield Request((b"GET", one, two), None)  # Always an error.


def result_of(kind: str, what: Any, data: st.DataObject) -> Any:
    """A result that the manager may have, or an error."""
    error = data.draw(st.one_of(st.none(), st.none(), st.sampled_from(ERRORS)))
    if error is not None:
        return error
    match kind:
        case "get_each":
            count = data.draw(st.integers(1, len(what)))
            return [
                InvalidRequest("too large")
                if data.draw(st.integers(0, 9)) == 0
                else [value_of(key) for key in keys]
                for keys in what[:count]
            ]
        case "incrby":
            return receipt(1000 + what[2][1])
        case "exec":
            return receipt([1000 + call[2] for call in what[2]])
        case "count":
            return 7
    return receipt()


def is_own(reply: Any, request: Request) -> bool:
    return isinstance(reply, hiredis.ReplyError) or (
        request.reply is not None and reply == request.reply
    )


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["GET", "GET", "MGET", "EXISTS", "SET", "INCRBY", "ECHO", "DBSIZE", "EXEC", "wrong"]
            ),
            st.integers(0, 7),
            st.integers(0, 7),
        ),
        min_size=1,
        max_size=24,
    ),
    st.data(),
)
def test_each_request_has_exactly_one_reply_and_it_is_its_own(
    kinds: list[tuple[str, int, int]], data: st.DataObject
) -> None:
    requests = list(requests_of(kinds))
    packed = b"".join(pack_request(request.arguments) for request in requests)
    cuts = sorted(data.draw(st.lists(st.integers(1, len(packed)), max_size=6)))

    async def script(scene: Scene) -> None:
        begin = 0
        unanswered: list[int] = []
        seen = 0
        replies = hiredis.Reader(notEnoughData=Ellipsis)
        while True:
            unanswered += range(seen, len(scene.ha.asked))
            seen = len(scene.ha.asked)
            moves = ["receive"] * (begin < len(packed)) + ["answer"] * bool(unanswered)
            if not moves:
                break
            move = data.draw(st.sampled_from(moves))
            if move == "receive":
                end = next((cut for cut in cuts if cut > begin), len(packed))
                # A node may refuse new operations for a while.
                scene.ha.refusal = data.draw(
                    st.one_of(st.none(), st.none(), st.none(), st.sampled_from(ERRORS[:-1]))
                )
                scene.connection.data_received(packed[begin:end])
                begin = end
                await scene.turn()
                scene.ha.refusal = None
            else:
                position = unanswered.pop(data.draw(st.integers(0, len(unanswered) - 1)))
                kind, what, future = scene.ha.asked[position]
                if data.draw(st.integers(0, 19)) == 0:
                    future.cancel()
                    await scene.turn()
                else:
                    await scene.answer(position, result_of(kind, what, data))
        replies.feed(scene.take())
        received = []
        while (reply := replies.gets()) is not Ellipsis:
            received.append(reply)
        assert not scene.transport.is_closed
        assert len(received) == len(requests)
        for reply, request in zip(received, requests, strict=True):
            assert is_own(reply, request), (reply, request)

    play(script)


def test_requests_open_at_the_end_get_their_own_replies_in_order() -> None:
    """A client that closes its side while reads are under way still gets the replies in order."""

    async def script(scene: Scene) -> None:
        await scene.send("GET 1", "GET 2", "ECHO x")
        scene.connection.eof_received()
        await scene.answer(0, [[value_of(b"1")]])
        await scene.answer(1, Unavailable("no majority"))
        await asyncio.sleep(0)
        assert scene.take() == (b"$10\r\nvalue of 1\r\n-UNAVAILABLE no majority\r\n$1\r\nx\r\n")
        assert scene.transport.is_closed

    play(script)
