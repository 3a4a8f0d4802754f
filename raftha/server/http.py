"""A small HTTP server on the server's own event loop: pages that are made on request.

Theory of operation. A page is a function from the request's Accept header to a type and a body. It
runs on a thread, one at a time, so that a page that takes long delays no client of the server. Each
connection has one request, which must arrive within `REQUEST_S`, and is closed after its response,
which must be read within `RESPONSE_S`. A new connection beyond `connections_max` pushes out the
oldest one of the busiest address (`raftha.server.listener`), so idle ones can't keep a scraper out.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Mapping
from typing import TypeAlias, cast

from raftha.net.refusals import Refusals
from raftha.server.listener import Listener

CONNECTIONS_MAX = 32
REQUEST_S = 5.0
"""How long a request may take to arrive."""
HANDSHAKE_S = 5.0
RESPONSE_S = 10.0
"""How long the client may take to read the response."""
HEAD_BYTES_MAX = 8 * 1024
"""Bytes of a request line and its headers."""

Page: TypeAlias = Callable[[str], tuple[str, bytes]]
"""From the Accept header to a content type and a body; called on a thread."""

_TEXT = "text/plain; charset=utf-8"

logger = logging.getLogger(__name__)


class HttpServer:
    """Serves pages by their paths; see the module's docstring."""

    def __init__(self, pages: Mapping[str, Page], tls: ssl.SSLContext | None = None) -> None:
        self.pages = pages
        self.rendering = asyncio.Lock()
        self._connections: set[_Connection] = set()
        self._listener = Listener(
            lambda _: _Connection(self, self._connections),
            connections_max=CONNECTIONS_MAX,
            decides=True,
            refused=Refusals(logger, "HTTP client refused").add,
            tls=tls,
            handshake_s=HANDSHAKE_S,
        )

    async def start(self, host: str, port: int) -> None:
        """Listen; OSError if the address can't be had."""
        await self._listener.bind(host, port)
        self._listener.start_serving()

    async def stop(self) -> None:
        """Close the listener and all connections at once."""
        self._listener.close()
        for connection in list(self._connections):
            connection.abort()
        await self._listener.wait_closed()


class _Connection(asyncio.Protocol):
    """One request and its response."""

    def __init__(self, server: HttpServer, connections: set[_Connection]) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._server = server
        self._connections = connections
        self._head = b""
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._response: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not registered.
        self._connections.add(self)
        self._timer = asyncio.get_running_loop().call_later(REQUEST_S, self.abort)

    def data_received(self, data: bytes) -> None:
        if self._response is not None:
            return
        self._head += data
        is_whole = b"\r\n\r\n" in self._head
        if is_whole or len(self._head) > HEAD_BYTES_MAX:
            loop = asyncio.get_running_loop()
            self._response = loop.create_task(self._respond(is_whole))
            self._set_deadline(RESPONSE_S)

    def eof_received(self) -> bool:
        return self._response is not None and self._transport is not None

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        if self._response is not None:
            self._response.cancel()
        self.closed.set_result(None)

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def _set_deadline(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self.abort)

    async def _respond(self, is_whole: bool) -> None:
        if not is_whole:
            self._send("431 Request Header Fields Too Large", _TEXT, b"the headers are too long\n")
            return
        method, path, accept = _parse_head(self._head)
        page = self._server.pages.get(path)
        if method not in {"GET", "HEAD"}:
            self._send("405 Method Not Allowed", _TEXT, b"GET and HEAD only\n")
        elif page is None:
            paths = ", ".join(self._server.pages)
            self._send("404 Not Found", _TEXT, f"the pages are {paths}\n".encode())
        else:
            await self._send_page(page, accept, has_body=method == "GET")

    async def _send_page(self, page: Page, accept: str, *, has_body: bool) -> None:
        try:
            async with self._server.rendering:
                kind, body = await asyncio.to_thread(page, accept)
        except Exception:
            logger.exception("a page could not be made")
            self._send("500 Internal Server Error", _TEXT, b"see the server's log\n")
        else:
            self._send("200 OK", kind, body, has_body=has_body)

    def _send(self, status: str, kind: str, body: bytes, *, has_body: bool = True) -> None:
        if self._transport is None:
            return
        head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        self._transport.write(head.encode() + b"Connection: close\r\n\r\n")
        if has_body:
            self._transport.write(body)
        self._transport.close()


def _parse_head(head: bytes) -> tuple[str, str, str]:
    """The method, the path without its query, and the Accept header; "" for what is missing."""
    request, *lines = head.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    method, path = [*request.split(" "), "", ""][:2]
    headers = dict(line.lower().partition(":")[::2] for line in lines)
    return method, path.partition("?")[0], headers.get("accept", "").strip()
