"""A client that has not authenticated: it may do little, and little of it costs the server much."""

from __future__ import annotations

import asyncio
import time

import pytest

from raftha.server import access
from raftha.server.access import (
    AUTH_FAILURES_MAX,
    UNKNOWN_ARGUMENTS_MAX,
    UNKNOWN_BYTES_MAX,
    UNKNOWN_REQUESTS_MAX,
)
from tests.support.scene import Scene, receipt

TOKEN = "correct horse battery"


def test_what_follows_auth_in_one_packet_is_served_by_the_full_limits() -> None:
    async def script() -> None:
        scene = Scene(TOKEN)
        large = (b"MGET", *[b"%d" % i for i in range(3 * UNKNOWN_ARGUMENTS_MAX)])
        value = b"x" * (2 * UNKNOWN_BYTES_MAX)
        await scene.send("PING", (b"AUTH", TOKEN.encode()), (b"SET", b"a", value), large)
        assert scene.take() == b"+PONG\r\n+OK\r\n"
        await scene.answer(0, receipt())
        assert scene.ha.kinds() == ["put", "get_each"]

    asyncio.run(script())


@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        ((b"HELLO", b"3", *[b"SETNAME", b"a"] * UNKNOWN_ARGUMENTS_MAX), b"multibulk length"),
        ((b"AUTH", b"x" * (UNKNOWN_BYTES_MAX + 1)), b"bulk length"),
        ((b"PING", *[b"x" * (UNKNOWN_BYTES_MAX // 4)] * 5), b"at most"),
    ],
)
def test_a_large_request_before_auth_ends_the_connection(
    request_: tuple[bytes, ...], problem: bytes
) -> None:
    async def script() -> None:
        scene = Scene(TOKEN)
        await scene.send("PING", request_, "PING")
        written = scene.take()
        assert written.startswith(b"+PONG\r\n-ERR Protocol error") and problem in written
        assert written.count(b"PONG") == 1
        assert scene.transport.is_half_closed

    asyncio.run(script())


def test_a_long_inline_request_before_auth_ends_the_connection() -> None:
    async def script() -> None:
        scene = Scene(TOKEN)
        scene.connection.data_received(b"HELLO 3" + b" SETNAME a" * UNKNOWN_BYTES_MAX + b"\r\n")
        assert scene.take().startswith(b"-ERR Protocol error: too big inline request")

    asyncio.run(script())


def test_a_client_that_only_pings_is_closed_after_some_requests() -> None:
    async def script() -> None:
        scene = Scene(TOKEN)
        await scene.send(*["PING"] * (UNKNOWN_REQUESTS_MAX + 10))
        written = scene.take()
        assert written.count(b"+PONG\r\n") == UNKNOWN_REQUESTS_MAX
        assert b"too many requests before AUTH" in written
        assert scene.transport.is_half_closed

    asyncio.run(script())


def test_a_wrong_token_slows_the_connection_down_and_in_the_end_closes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(access, "AUTH_PAUSE_S", 0.01)

    async def script() -> None:
        scene = Scene(TOKEN)
        began = time.monotonic()
        await scene.send(*["AUTH wrong"] * 50, "AUTH " + "x" * 8)
        assert scene.take().count(b"-WRONGPASS") == 1
        assert not scene.transport.is_reading
        await asyncio.sleep(0.3)
        assert scene.transport.is_half_closed
        assert scene.take().count(b"-WRONGPASS") == AUTH_FAILURES_MAX - 1
        assert time.monotonic() - began >= 0.01 * (1 + 2 + 4 + 8)

    asyncio.run(script())


def test_the_right_token_after_a_wrong_one_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "AUTH_PAUSE_S", 0.01)

    async def script() -> None:
        scene = Scene(TOKEN)
        await scene.send("AUTH wrong", (b"AUTH", TOKEN.encode()), "GET a")
        await asyncio.sleep(0.05)
        assert scene.take().endswith(b"+OK\r\n")
        assert scene.ha.kinds() == ["get_each"]
        assert scene.transport.is_reading

    asyncio.run(script())
