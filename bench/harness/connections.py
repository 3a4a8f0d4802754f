"""Pipelined connections: minimal clients of the protocols under load.

    python -m bench.harness.connections MODULE:CLASS CONNECTIONS ADDRESS...

Theory of operation. A connection writes all requests of one turn of the event loop together, and
returns the replies in the order of the requests. So many callers can share one, and the client
costs less of the machine than the servers do; its cost is measured all the same. As a program it
holds connections to the addresses in turn, and makes load as `worker` says.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import pkgutil
import sys
from abc import ABC, abstractmethod
from collections import deque
from typing import Any, ClassVar, Self, cast

import hiredis
import uvloop

from bench.harness.load import VALUE_BYTES, Call, Load, key_of
from bench.harness.worker import serve_load
from raftha.client.resp import pack_request
from raftha.config import parse_address

OPEN_TRIES, OPEN_PAUSE_S = 50, 0.1


class Refused(Exception):
    """The server replied that it refused the request."""


class Connection(asyncio.Protocol, ABC):
    """What all protocols share; a subclass packs requests and parses replies."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._out: list[bytes] = []

    @classmethod
    async def open(cls, address: str, keys: int) -> Self:
        """Connect, and begin as the protocol requires. `keys` is how many there will be."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(cls, *parse_address("address", address))
        await connection.begin(keys)
        return connection

    async def begin(self, keys: int) -> None:
        """Greet the server and prepare keys, in subclasses that need it."""

    @abstractmethod
    def put(self, key: bytes, value: bytes) -> asyncio.Future[Any]:
        """Write durably."""

    def get(self, key: bytes, options: dict[str, Any]) -> asyncio.Future[Any]:
        """Read; Refused by a system whose reads aren't measured."""
        raise Refused(f"{type(self).__name__} is not asked for reads")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        while self._waiting:
            self._answer_error("the connection was lost")

    def _send(self, data: bytes) -> asyncio.Future[Any]:
        """Send together with the other requests of this turn; the future is the reply."""
        future = self._loop.create_future()
        self._waiting.append(future)
        self._write(data)
        return future

    def _write(self, data: bytes) -> None:
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(data)

    def _flush(self) -> None:
        assert self._transport is not None
        if self._transport.is_closing():
            self.connection_lost(None)  # A request after the end of the connection would wait, too.
        else:
            self._transport.write(b"".join(self._out))
        self._out.clear()

    def _answer(self, value: Any = None) -> None:
        future = self._waiting.popleft()
        if not future.done():
            future.set_result(value)

    def _answer_error(self, text: str) -> None:
        future = self._waiting.popleft()
        if not future.done():
            future.set_exception(Refused(text))


class RespConnection(Connection):
    """Redis's protocol, which raftha and the bare loop speak too."""

    after_put: ClassVar[bytes] = b""
    """A request that follows each SET, and whose reply counts instead."""

    def __init__(self) -> None:
        super().__init__()
        self._reader = hiredis.Reader()

    def put(self, key: bytes, value: bytes) -> asyncio.Future[Any]:
        data = pack_request((b"SET", key, value))
        if self.after_put:
            self._send(data).add_done_callback(_ignore)
            data = self.after_put
        return self._send(data)

    def get(self, key: bytes, options: dict[str, Any]) -> asyncio.Future[Any]:
        return self._send(pack_request((b"GET", key)))

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            if isinstance(reply, hiredis.ReplyError):
                self._answer_error(str(reply))
            else:
                self._answer(reply)


def _ignore(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()  # The request that follows fails too.


async def open_patiently(kind: type[Connection], address: str, keys: int) -> Connection:
    """Connect; again if the server closes, as ZooKeeper does when it has just begun to lead."""
    for _ in range(OPEN_TRIES):
        try:
            return await kind.open(address, keys)
        except (Refused, OSError):
            await asyncio.sleep(OPEN_PAUSE_S)
    return await kind.open(address, keys)


async def main(kind: type[Connection], count: int, addresses: list[str]) -> None:
    """Hold connections, and make load as asked."""
    targets = itertools.islice(itertools.cycle(addresses), count)
    keys = Load().keys
    connections = [await open_patiently(kind, address, keys) for address in targets]

    def make_call(load: Load) -> Call:
        value = os.urandom(VALUE_BYTES)
        if load.operation == "get":
            return lambda n: connections[n % count].get(key_of(n, load.keys), load.options)
        return lambda n: connections[n % count].put(key_of(n, load.keys), value)

    await serve_load(make_call)


if __name__ == "__main__":
    uvloop.run(main(pkgutil.resolve_name(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
