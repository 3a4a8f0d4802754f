"""Look-up of host names, and listening sockets.

Theory of operation. The event loop's own look-up is unsafe in a host process that forks. uvloop
looks names up on threads of libuv. Once such a thread has run, every process forked later crashes
at its exit, in a destructor that waits for threads which exist only in the parent. So this module
looks names up on Python threads, and uvloop receives only numeric addresses.

A resolver may hang for half a minute, and does so for names of members that are gone for good.
`Names` keeps that from the names of the others:

  D1  There is one look-up of a name at a time, and a thread for each, so that names never wait for
      each other.
  D2  A look-up that takes longer than `PATIENCE_S`, or fails, is answered with the addresses that
      the name had before. It goes on, and the next answer has what it found.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial

SILENCE_S = 10
"""The kernel ends a connection whose other side is silent for this long."""

NAMES_MAX = 16
"""Names of members that are looked up at the same time; more than a cluster has members."""
PATIENCE_S = 0.5
"""How long a look-up may take where an earlier answer is known."""


class Names:
    """Looks up the names of members. Used from one event loop only."""

    def __init__(self, thread_name: str) -> None:
        self._threads = ThreadPoolExecutor(NAMES_MAX, thread_name_prefix=thread_name)
        self._under_way: dict[tuple[str, int], asyncio.Task[list[str]]] = {}
        self._known: dict[tuple[str, int], list[str]] = {}

    async def look_up(self, host: str, port: int) -> list[str]:
        """The numeric addresses of `host`, best first; OSError or UnicodeError if none is known."""
        key = host, port
        task = self._under_way.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(look_up(host, port, self._threads))
            self._under_way[key] = task
            task.add_done_callback(partial(self._end, key))
        known = self._known.get(key)
        # Unlike `wait_for`, this never cancels the look-up, whose thread would go on anyway.
        await asyncio.wait([task], timeout=PATIENCE_S if known else None)
        if known and (not task.done() or task.cancelled() or task.exception() is not None):
            return known
        return task.result()

    def _end(self, key: tuple[str, int], task: asyncio.Task[list[str]]) -> None:
        del self._under_way[key]
        with contextlib.suppress(asyncio.CancelledError, OSError, UnicodeError):
            self._known[key] = task.result()

    def keep(self, keys: set[tuple[str, int]]) -> None:
        """Forget all names but these."""
        self._known = {key: known for key, known in self._known.items() if key in keys}

    def close(self) -> None:
        """End all look-ups; a thread that hangs in the resolver ends when that returns."""
        for task in list(self._under_way.values()):
            task.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)


async def look_up(host: str, port: int, threads: Executor | None) -> list[str]:
    """The numeric addresses of `host`, best first. OSError or UnicodeError if it has none.

    A look-up occupies one of `threads` for as long as the resolver takes. A numeric `host` needs
    no look-up.
    """
    try:
        ipaddress.ip_address(host)
    except ValueError:
        ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(threads, ask)
        return list(dict.fromkeys(str(address[0]) for *_, address in found))
    return [host]


async def bind(host: str, port: int) -> list[socket.socket]:
    """Bind all addresses of `host`, without listening yet. OSError or UnicodeError if that fails.

    Other processes may bind the same port too; `listen` decides which of them gets it.
    """
    bound: list[socket.socket] = []
    try:
        for number in await look_up(host, port, None):
            (found, *_) = socket.getaddrinfo(
                number, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
            )
            family, kind, protocol, _, address = found
            listener = socket.socket(family, kind, protocol)
            bound.append(listener)
            listener.setblocking(False)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(address)
    except OSError:
        for listener in bound:
            listener.close()
        raise
    return bound


def notice_silence(connection: socket.socket) -> None:
    """Have the kernel end a connection whose other side has vanished."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * SILENCE_S)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENCE_S // 2)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
