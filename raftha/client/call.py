"""One command to one server, blocking, over a connection of its own.

For tools that ask occasionally, such as `raftha status` and `LocalCluster`. Programs use
`raftha.client`, which keeps its connection and changes to another node when one fails.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from raftha.client.resp import error_from_reply
from raftha.config import parse_address
from raftha.errors import Disconnected, RequestTimeout, Unavailable
from raftha.extras import extra

with extra("client"):
    import hiredis


@dataclass(frozen=True, slots=True)
class Access:
    """What a server may require of its clients: a token, TLS."""

    token: str = field(default="", repr=False)
    tls: ssl.SSLContext | None = None


NO_ACCESS = Access()


def call(
    address: str,
    args: Sequence[str | bytes | int | float],
    timeout_s: float,
    access: Access = NO_ACCESS,
) -> Any:
    """Send one command to the server at "host:port"; return the reply.

    Unavailable: the server can't be reached. Disconnected, RequestTimeout: the command may have
    been applied. An error reply raises the error that the server's manager raised.
    """
    deadline = time.monotonic() + timeout_s
    host, port = parse_address("address", address)
    try:
        connection = socket.create_connection((host, port), timeout_s)
        if access.tls is not None:
            connection = access.tls.wrap_socket(connection, server_hostname=host)
    except OSError as error:
        raise Unavailable(f"{address} can't be reached: {error}") from error
    with connection:
        try:
            if access.token:
                _ask(connection, address, ("AUTH", access.token), deadline)
            return _ask(connection, address, args, deadline)
        except TimeoutError as error:
            raise RequestTimeout(f"no reply from {address} within {timeout_s} s") from error
        except hiredis.ProtocolError as error:
            raise Disconnected(f"the server at {address} doesn't speak RESP") from error
        except OSError as error:
            raise Disconnected(f"the connection to {address} broke: {error}") from error


def _ask(
    connection: socket.socket,
    address: str,
    args: Sequence[str | bytes | int | float],
    deadline: float,
) -> Any:
    connection.sendall(hiredis.pack_command(tuple(args)))  # type: ignore[arg-type]  # any number
    reader = hiredis.Reader(notEnoughData=Ellipsis)
    while (reply := reader.gets()) is Ellipsis:
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
        data = connection.recv(1 << 16)
        if not data:
            raise Disconnected(f"{address} closed the connection before it replied")
        reader.feed(data)
    if reader.has_data():
        raise Disconnected(f"{address} sent more than one reply, so none can be trusted")
    if isinstance(reply, hiredis.ReplyError):
        raise error_from_reply(str(reply))
    return reply
