"""Transports without nodes: each notes what it receives and is told."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import uvloop

from raftha.net.tls import PeerTls
from raftha.net.transport import Transport
from raftha.net.wire import Hello
from raftha.node.messages import PeerMessage
from raftha.version import PROTOCOL_VERSION


class Peer:
    """A transport, and what it received."""

    def __init__(
        self,
        node_id: int,
        members: Mapping[int, str],
        tls: PeerTls | None,
        says: int | None = None,
        *,
        secret: bytes = b"",
        nonce: int = 0,
        incarnation: int = 1,
    ) -> None:
        """`says` is the id that it claims, if not its own."""
        self.connected: list[int] = []
        self.reasons: list[str] = []
        self.received: list[PeerMessage] = []
        hello = Hello(PROTOCOL_VERSION, "c" * 32, says or node_id, 0, incarnation, "", nonce=nonce)
        self.recorded = dict.fromkeys(members, 1)
        self.members = members
        self.removed = False
        self.refused = 0
        self.cloned: list[int] = []
        self.unsupported: list[tuple[int, str]] = []
        random_ = random.Random(node_id).random
        self.transport = Transport(hello, members[node_id], self, random_, tls, secret)

    async def start(self, removed: frozenset[int] = frozenset()) -> None:
        await self.transport.start()
        self.transport.set_members(self.members, removed, self.recorded)

    def on_message(self, message: PeerMessage) -> None:
        self.received.append(message)

    def on_connected(self, peer: int, hello: Hello) -> None:
        assert hello.sender == peer
        self.connected.append(peer)

    def on_disconnected(self, peer: int, reason: str) -> None:
        self.connected.remove(peer)
        self.reasons.append(reason)

    def on_removed(self) -> None:
        self.removed = True

    def on_refused(self) -> None:
        self.refused += 1

    def on_unsupported(self, peer: int, reason: str) -> None:
        self.unsupported.append((peer, reason))

    def on_cloned(self, peer: int, remote: str) -> None:
        self.cloned.append(peer)

    def check_hello(self, hello: Hello) -> str:
        return ""


def free_members(count: int) -> dict[int, str]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    members = {i: f"127.0.0.1:{s.getsockname()[1]}" for i, s in enumerate(sockets, start=1)}
    for each in sockets:
        each.close()
    return members


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run on uvloop, as nodes do; nothing may reach the loop's exception handler."""
    unexpected: list[dict[str, Any]] = []

    async def watched() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: unexpected.append(context))
        await main()

    uvloop.run(watched())
    assert not unexpected
