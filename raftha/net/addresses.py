"""Look-up of host names, and listening sockets.

Theory of operation. The event loop's own look-up is unsafe in a host process that forks. uvloop
looks names up on threads of libuv. Once such a thread has run, every process forked later crashes
at its exit, in a destructor that waits for threads which exist only in the parent. So this module
looks names up on Python threads, and uvloop receives only numeric addresses.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from concurrent.futures import Executor
from functools import partial

SILENCE_S = 10
"""The kernel ends a connection whose other side is silent for this long."""


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
