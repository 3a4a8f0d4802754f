"""The memory of requests that are not complete: a bound for all connections of a server together.

Theory of operation. A request may have megabytes, and many clients that each send all but the end
of one, and wait, may have more than the process has memory for. So a task looks at what connections
hold. If that is over the limit, it cuts off those whose request is incomplete for the longest time,
until half of the limit is free. A request that has begun less than `SPARED_S` ago stays.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from typing import Protocol

BYTES_MAX = 256 << 20
SMALL_BYTES = 64 * 1024
"""A connection that holds no more than this is not looked at."""
SPARED_S = 2.0
CHECK_S = 0.5
"""How often the task looks."""

logger = logging.getLogger(__name__)


class Parser(Protocol):
    """What holds the bytes of a connection."""

    @property
    def held_bytes(self) -> int: ...


class Client(Protocol):
    """A connection."""

    @property
    def parser(self) -> Parser: ...
    def abort(self) -> None: ...


class RequestBound:
    """Used from one event loop only."""

    def __init__(self, clients: Collection[Client], bytes_max: int = BYTES_MAX) -> None:
        """`clients` are the connections at every moment."""
        self._clients = clients
        self._bytes_max = bytes_max
        self._since: dict[Client, float] = {}
        """When a connection was first seen with a large incomplete request, the oldest first."""

    async def watch(self) -> None:
        """Look now and then, for ever."""
        while True:
            await asyncio.sleep(CHECK_S)
            self.look(asyncio.get_running_loop().time())

    def look(self, now: float) -> None:
        """Cut off connections if all together hold too much."""
        held = {client: client.parser.held_bytes for client in self._clients}
        large = {client: size for client, size in held.items() if size > SMALL_BYTES}
        known = {client: since for client, since in self._since.items() if client in large}
        self._since = known | {client: now for client in large if client not in known}
        total = sum(large.values())
        if total <= self._bytes_max:
            return
        count = 0
        for client, since in list(self._since.items()):
            if total <= self._bytes_max // 2 or now - since < SPARED_S:
                break
            total -= large[client]
            del self._since[client]
            client.abort()
            count += 1
        if count:
            logger.warning("clients with incomplete requests were cut off count=%d", count)
