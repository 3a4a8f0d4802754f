"""Host names to addresses, and addresses to listening sockets.

Theory of operation. An event loop's own look-ups would do, but for host processes that fork: uvloop
does them on threads of libuv's, and once such a thread has run, every process forked afterwards
crashes at its exit, in a destructor that waits for threads which only its parent has. So names are
looked up on threads of Python's here, and uvloop is given nothing but numbers.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from concurrent.futures import Executor
from functools import partial


async def look_up(host: str, port: int, threads: Executor | None) -> list[str]:
    """The addresses of `host` as numbers, best first; OSError or UnicodeError if it has none.

    `threads` may be busy with it for as long as the resolver takes; an address needs none.
    """
    try:
        ipaddress.ip_address(host)
    except ValueError:
        ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(threads, ask)
        return list(dict.fromkeys(str(address[0]) for *_, address in found))
    return [host]


async def bind(host: str, port: int) -> list[socket.socket]:
    """Take all addresses of `host`, without listening yet; OSError or UnicodeError if that fails.

    Others that want the same port may bind too; which of them has it is decided at `listen`.
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
