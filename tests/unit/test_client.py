"""The client: pipelining, lost connections, deadlines, and writes that are applied exactly once.

The servers are scripted ones on real sockets: a function from a request to reply bytes, to None for
no reply, or to CUT for a connection that breaks.
"""

from __future__ import annotations

import asyncio
import selectors
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from raftha.client import Client
from raftha.client.resp import ReplyError, RequestParser, encode, error_line
from raftha.errors import (
    ConfigError,
    Disconnected,
    Indeterminate,
    InvalidRequest,
    Overloaded,
    RequestTimeout,
    Stopped,
    Unavailable,
)

CUT = b"(cut)"

Reply = bytes | None
Script = Callable[[list[bytes]], Reply]


class ScriptedServer:
    """Replies by its script, and records every request."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[list[bytes]] = []
        self.connections = 0
        self.address = ""
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> ScriptedServer:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: ScriptedConnection(self), "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()


class ScriptedConnection(asyncio.Protocol):
    def __init__(self, server: ScriptedServer) -> None:
        self.server = server
        self.parser = RequestParser()
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.server.connections += 1

    def data_received(self, data: bytes) -> None:
        requests: deque[list[bytes]] = deque()
        self.parser.feed(data, requests)
        for request in requests:
            self.server.requests.append(request)
            reply = self.server.script(request)
            if reply == CUT:
                self.transport.abort()
                return
            if reply is not None:
                self.transport.write(reply)


def replies(*items: Reply) -> Script:
    """A script that goes through `items`, for any request, and repeats the last one."""
    left = list(items)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def once_script(*items: Reply) -> Script:
    """The same for RAFTHA ONCE; sessions are opened with the ids 1, 2, 3 ..."""
    following = replies(*items)
    sessions = iter(range(1, 100))

    def script(request: list[bytes]) -> Reply:
        return encode(next(sessions)) if request[1] == b"SESSION" else following(request)

    return script


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await main()

    asyncio.run(bounded())


IDLE_S = 0.02
"""If nothing arrives by loopback for so long, nothing is under way."""


class Selector(selectors.DefaultSelector):
    """Waits for input; if nothing comes, the next timer is due at once."""

    def __init__(self) -> None:
        super().__init__()
        self.skipped_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        ready = super().select(IDLE_S)
        self.skipped_s += 0.0 if ready else timeout
        return ready


class Loop(asyncio.SelectorEventLoop):
    """Its time passes only by timers, however busy the machine is."""

    def __init__(self) -> None:
        self._jumping = Selector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.skipped_s


def run_timeless(main: Callable[[], Awaitable[None]]) -> None:
    async def awaited() -> None:
        await main()

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(awaited())


def closed_address() -> str:
    """An address without a listener: port 1 is reserved."""
    return "127.0.0.1:1"


def test_concurrent_calls_share_one_connection_and_get_their_own_replies() -> None:
    async def main() -> None:
        async with (
            ScriptedServer(lambda r: encode(r[1])) as server,
            Client([server.address]) as client,
        ):
            got = await asyncio.gather(*(client.call("ECHO", i) for i in range(1000)))
            assert got == [b"%d" % i for i in range(1000)]
            assert server.connections == 1
            assert client.address == server.address

    run(main)


def test_an_error_reply_is_raised_as_its_class() -> None:
    async def main() -> None:
        script = replies(error_line("ERR no"), error_line("OVERLOADED full"), encode(["a", None]))
        async with ScriptedServer(script) as server, Client([server.address]) as client:
            with pytest.raises(ReplyError, match="ERR no"):
                await client.call("X")
            with pytest.raises(Overloaded):
                await client.call("X")
            assert await client.call("X") == [b"a", None]

    run(main)


def test_a_broken_connection_leaves_calls_indeterminate_and_the_next_moves() -> None:
    async def main() -> None:
        async with (
            ScriptedServer(replies(CUT)) as first,
            ScriptedServer(replies(b"+OK\r\n")) as second,
            Client([first.address, second.address]) as client,
        ):
            results = await asyncio.gather(
                *(client.call("SET", "a", i) for i in range(3)), return_exceptions=True
            )
            assert [type(result) for result in results] == [Disconnected] * 3
            assert await client.call("SET", "a", 1) == b"OK"
            assert len(second.requests) == 1

    run(main)


def test_an_address_that_refuses_is_passed_over() -> None:
    async def main() -> None:
        async with (
            ScriptedServer(replies(b"+OK\r\n")) as server,
            Client([closed_address(), server.address]) as client,
        ):
            assert await client.call("PING") == b"OK"

    run(main)


def test_no_server_at_all_is_unavailable_by_the_deadline() -> None:
    async def main() -> None:
        async with Client([closed_address()], timeout_s=0.1) as client:
            started = asyncio.get_running_loop().time()
            with pytest.raises(Unavailable, match="could be reached"):
                await client.call("PING")
            assert asyncio.get_running_loop().time() - started < 2

    run(main)


def test_an_unanswered_call_ends_at_its_deadline_and_others_keep_theirs() -> None:
    async def main() -> None:
        async with (
            ScriptedServer(replies(None)) as first,
            ScriptedServer(replies(b"+OK\r\n")) as second,
            Client([first.address, second.address]) as client,
        ):
            slow = asyncio.ensure_future(client.call("SLOW"))
            with pytest.raises(RequestTimeout):
                await client.call("SET", "a", 1, timeout_s=0.05)
            assert await client.call("SET", "a", 1) == b"OK"
            assert not slow.done()
            await client.close()
            with pytest.raises(Disconnected):
                await slow

    run(main)


def test_a_closed_client_says_so() -> None:
    async def main() -> None:
        client = Client([closed_address()])
        await client.close()
        with pytest.raises(Stopped):
            await client.call("PING")

    run(main)


def test_arguments_are_checked() -> None:
    async def main() -> None:
        with pytest.raises(ConfigError):
            Client([])
        with pytest.raises(ConfigError):
            Client(["nowhere"])
        with pytest.raises(ConfigError):
            Client([closed_address()], timeout_s=0)
        async with Client([closed_address()]) as client:
            with pytest.raises(InvalidRequest):
                await client.call()
            with pytest.raises(InvalidRequest):
                await client.call("SET", "a", None)  # type: ignore[arg-type]

    run(main)


def test_once_sends_the_same_number_until_it_is_answered() -> None:
    async def main() -> None:
        script = once_script(
            CUT, error_line("INDETERMINATE x"), error_line("NOTLEADER 2 x"), b":5\r\n"
        )
        async with ScriptedServer(script) as server, Client([server.address]) as client:
            assert await client.once("INCR", "a") == 5
            sent = [request for request in server.requests if request[1] == b"ONCE"]
            assert sent == [[b"RAFTHA", b"ONCE", b"1", b"1", b"1", b"INCR", b"a"]] * 4

    run(main)


def test_once_goes_to_another_server_when_one_cannot_help() -> None:
    async def main() -> None:
        async with (
            ScriptedServer(once_script(error_line("UNAVAILABLE x"))) as first,
            ScriptedServer(once_script(b":5\r\n")) as second,
            Client([first.address, second.address]) as client,
        ):
            assert await client.once("INCR", "a") == 5
            assert second.requests[-1][:5] == [b"RAFTHA", b"ONCE", b"1", b"1", b"1"]

    run(main)


def test_concurrent_writes_have_numbers_of_their_own_and_a_common_floor() -> None:
    async def main() -> None:
        async with (
            ScriptedServer(once_script(b":1\r\n")) as server,
            Client([server.address]) as client,
        ):
            await client.once("INCR", "a")
            await asyncio.gather(*(client.once("INCR", "a") for _ in range(10)))
            await client.once("INCR", "a")
            sent = [request[3:5] for request in server.requests if request[1] == b"ONCE"]
            assert sent[0] == [b"1", b"1"]
            assert sent[1:11] == [[b"%d" % number, b"2"] for number in range(2, 12)]
            assert sent[11] == [b"12", b"12"]
            assert [r[1] for r in server.requests].count(b"SESSION") == 1

    run(main)


def test_an_expired_session_is_replaced_if_nothing_can_have_happened() -> None:
    async def main() -> None:
        script = once_script(error_line("SESSIONEXPIRED x"), b":1\r\n")
        async with ScriptedServer(script) as server, Client([server.address]) as client:
            assert await client.once("INCR", "a") == 1
            assert server.requests[-1][2:5] == [b"2", b"1", b"1"]

    run(main)


def test_an_expired_session_after_a_lost_reply_is_indeterminate() -> None:
    async def main() -> None:
        script = once_script(CUT, error_line("SESSIONEXPIRED x"))
        async with ScriptedServer(script) as server, Client([server.address]) as client:
            with pytest.raises(Indeterminate):
                await client.once("INCR", "a")
            assert len(server.requests) == 3

    run(main)


def test_a_refused_write_is_not_sent_again() -> None:
    async def main() -> None:
        script = once_script(error_line("ERR value is not an integer or out of range"))
        async with ScriptedServer(script) as server, Client([server.address]) as client:
            with pytest.raises(ReplyError, match="not an integer"):
                await client.once("INCR", "a")
            assert len(server.requests) == 2

    run(main)


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (once_script(error_line("OVERLOADED x")), Overloaded),
        (once_script(CUT, error_line("OVERLOADED x")), Indeterminate),
        (replies(error_line("UNAVAILABLE x")), Unavailable),
        (replies(None), Unavailable),
    ],
    ids=["never taken", "lost, then never taken", "no session", "no answer"],
)
def test_once_ends_at_its_deadline_with_the_outcome_known_so_far(
    script: Script, error: type[Exception]
) -> None:
    async def main() -> None:
        async with ScriptedServer(script) as server, Client([server.address]) as client:
            with pytest.raises(error):
                await client.once("INCR", "a", timeout_s=0.15)

    run_timeless(main)


# ---------------------------------------------------------------- the token


def test_each_connection_shows_the_token_before_anything_else() -> None:
    async def main() -> None:
        async with ScriptedServer(lambda request: b"+OK\r\n") as server:
            async with Client([server.address], token="the token") as client:
                await asyncio.gather(client.call("GET", "a"), client.call("GET", "b"))
            assert server.requests[0] == [b"AUTH", b"the token"]
            assert len(server.requests) == 3

    asyncio.run(main())


def test_a_wrong_token_is_reported_at_once() -> None:
    async def main() -> None:
        async with ScriptedServer(lambda _: b"-WRONGPASS no\r\n") as server:
            async with Client([server.address], token="the token") as client:
                for call in (client.call, client.once):
                    with pytest.raises(ReplyError, match="WRONGPASS"):
                        await call("SET", "a", 1)
            assert {request[0] for request in server.requests} == {b"AUTH"}

    asyncio.run(main())


def test_a_server_that_breaks_off_at_the_token_is_passed_over() -> None:
    async def main() -> None:
        async with (
            ScriptedServer(lambda _: CUT) as bad,
            ScriptedServer(lambda _: encode(7)) as good,
        ):
            async with Client([bad.address, good.address], token="the token") as client:
                assert await client.call("GET", "a") == 7
            assert bad.requests == [[b"AUTH", b"the token"]]

    asyncio.run(main())
