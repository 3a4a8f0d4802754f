"""One command to one server, blocking, over a connection of its own.

For tools that ask a question now and then: `raftha status` and `LocalCluster`. Programs use
`raftha.client`, which keeps connections and looks for another node when one fails.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from typing import Any

import hiredis

from raftha.config import parse_address
from raftha.errors import Disconnected, RequestTimeout, Unavailable
from raftha.resp import error_from_reply


def call(address: str, args: Sequence[str | bytes | int | float], timeout_s: float) -> Any:
    """Send one command to the server at "host:port"; return the reply.

    Unavailable: the server can't be reached. Disconnected, RequestTimeout: it may have happened.
    An error reply is raised as the error that the server's manager raised.
    """
    request: bytes = hiredis.pack_command(tuple(args))  # type: ignore[arg-type]  # any number
    try:
        connection = socket.create_connection(parse_address("address", address), timeout_s)
    except OSError as error:
        raise Unavailable(f"{address} can't be reached: {error}") from error
    deadline = time.monotonic() + timeout_s
    reader = hiredis.Reader(notEnoughData=Ellipsis)
    with connection:
        try:
            connection.sendall(request)
            while (reply := reader.gets()) is Ellipsis:
                connection.settimeout(max(deadline - time.monotonic(), 0.001))
                data = connection.recv(1 << 16)
                if not data:
                    raise Disconnected(f"{address} closed the connection before it replied")
                reader.feed(data)
        except TimeoutError as error:
            raise RequestTimeout(f"no reply from {address} within {timeout_s} s") from error
        except hiredis.ProtocolError as error:
            raise Disconnected(f"what answers at {address} doesn't speak RESP") from error
        except OSError as error:
            raise Disconnected(f"the connection to {address} broke: {error}") from error
    if isinstance(reply, hiredis.ReplyError):
        raise error_from_reply(str(reply))
    return reply
