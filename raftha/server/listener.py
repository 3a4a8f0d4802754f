"""A listener with a limit on its connections, where strangers can't keep out those it knows.

Theory of operation. A connection is undecided until its protocol calls `decide`: a client that has
authenticated, say. When `connections_max` are open, a new connection pushes out an undecided one:
the oldest of the address that has most of them. So a stranger who opens many loses its own first,
and a client that authenticates at once gets in. If every connection is decided, the new one is
refused.

A TLS handshake is part of a connection's undecided time, and has a deadline. Addresses are counted
by network: an IPv4 address, or the /64 of an IPv6 address, which one host may have all of.

Accepting stops for a while after each `ACCEPTED_AT_ONCE_MAX` connections, and after an error, so
that the loop gets to close connections before it opens more. Used from one event loop only.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import ssl
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Protocol, cast

from raftha.net.addresses import bind
from raftha.net.tls import describe

ACCEPTED_AT_ONCE_MAX = 64
ACCEPT_PAUSE_S = 0.1
"""After an accept that failed, which mostly means that no file descriptor was left."""
GRACE_S = 0.05
"""How long a connection beyond the limit waits to be refused: another may just have ended."""
REFUSED_AT_ONCE_MAX = 100
"""Connections beyond the limit that wait, or may read the reason; more are closed at once."""
REFUSED_S = 0.2
"""How long a refused connection is open to read the reason."""

logger = logging.getLogger(__name__)


class Guest(Protocol):
    """The protocol of a connection."""

    closed: asyncio.Future[None]
    """Done once `connection_lost` was called."""

    def abort(self) -> None:
        """Close at once, if the connection is made."""
        ...


class _Visit:
    """A connection, from accept to its end."""

    __slots__ = ("guest", "network", "socket", "task")

    def __init__(self, guest: Guest, network: str, connection: socket.socket) -> None:
        self.guest = guest
        self.network = network
        self.socket = connection
        self.task: asyncio.Task[None] | None = None


class Listener:
    """Listens, and gives each connection a protocol; see the module's docstring."""

    def __init__(
        self,
        make_protocol: Callable[[Listener], Guest],
        *,
        connections_max: int,
        decides: bool,
        refused: Callable[[str, str], None],
        refusal: bytes = b"",
        tls: ssl.SSLContext | None = None,
        handshake_s: float = 10.0,
    ) -> None:
        """`decides`: protocols call `decide`; else a connection is decided at accept.

        `make_protocol` is called at accept, before a handshake. `refused(remote, reason)` is
        called for each connection that isn't let in; without TLS it is sent `refusal` too.
        """
        self._make_protocol = make_protocol
        self.connections_max = connections_max
        self._decides = decides
        self._refused = refused
        self._refusal = refusal
        self._tls = tls
        self._handshake_s = handshake_s
        self._sockets: list[socket.socket] = []
        self._is_closed = False
        self._visits: dict[Guest, _Visit] = {}
        self._undecided: dict[str, OrderedDict[Guest, None]] = {}  # By network, oldest first.
        self._refusing: set[socket.socket] = set()

    @property
    def connections(self) -> int:
        """Connections that are open or in their handshake."""
        return len(self._visits)

    async def bind(self, host: str, port: int) -> None:
        """Take the address, without accepting yet; OSError if it can't be had."""
        self._sockets = await bind(host, port)

    def start_serving(self) -> None:
        """Accept from now on; OSError if another listener has the address."""
        for listener in self._sockets:
            listener.listen(1024)
            self._watch(listener)

    def decide(self, guest: Guest) -> None:
        """Keep a connection, whatever others arrive."""
        visit = self._visits.get(guest)
        if visit is not None:
            self._forget_undecided(visit)

    def close(self) -> None:
        """Accept no more, and end handshakes under way; connections go on."""
        self._is_closed = True
        for visit in list(self._visits.values()):
            if visit.task is not None:
                visit.task.cancel()
        for listener in self._sockets:
            if listener.fileno() >= 0:
                asyncio.get_running_loop().remove_reader(listener)
                listener.close()
        for refused in list(self._refusing):
            self._end_refusal(refused)

    async def wait_closed(self) -> None:
        """Wait, after `close`, until no handshake is left."""
        tasks = [visit.task for visit in self._visits.values() if visit.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    # ------------------------------------------------------------------ accepting

    def _watch(self, listener: socket.socket) -> None:
        if not self._is_closed:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        """Accept what waits; not in a task, which could lose a socket when it is cancelled."""
        loop = asyncio.get_running_loop()
        for _ in range(ACCEPTED_AT_ONCE_MAX):
            try:
                connection, address = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                logger.warning("accept failed: %s", error)
                loop.remove_reader(listener)
                loop.call_later(ACCEPT_PAUSE_S, self._watch, listener)
                return
            connection.setblocking(False)
            if len(self._visits) < self.connections_max or self._push_out():
                self._begin(connection, str(address[0]), str(address))
            elif len(self._refusing) < REFUSED_AT_ONCE_MAX:
                self._refusing.add(connection)
                loop.call_later(GRACE_S, self._decide_late, connection, address)
            else:
                connection.close()
                self._refused(str(address), "too many connections at once")

    def _decide_late(self, connection: socket.socket, address: tuple[object, ...]) -> None:
        """Let a connection in or refuse it, now that those that had ended are noticed."""
        if self._is_closed:
            return
        if len(self._visits) < self.connections_max:
            self._refusing.discard(connection)
            self._begin(connection, str(address[0]), str(address))
        else:
            self._refuse(connection, str(address))

    def _begin(self, connection: socket.socket, host: str, remote: str) -> None:
        guest = self._make_protocol(self)
        visit = _Visit(guest, network_of(host), connection)
        self._visits[guest] = visit
        if self._decides:
            self._undecided.setdefault(visit.network, OrderedDict())[guest] = None
        guest.closed.add_done_callback(partial(self._end, visit))
        task = asyncio.get_running_loop().create_task(self._open(visit, remote))
        visit.task = task
        task.add_done_callback(partial(self._on_opened, visit))

    async def _open(self, visit: _Visit, remote: str) -> None:
        connection = visit.socket
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: cast(asyncio.Protocol, visit.guest),
                connection,
                ssl=self._tls,
                ssl_handshake_timeout=self._handshake_s if self._tls is not None else None,
            )
        except OSError as error:
            connection.close()
            self._end(visit)
            if self._tls is not None:
                self._refused(remote, f"the TLS handshake failed: {describe(error)}")

    def _on_opened(self, visit: _Visit, task: asyncio.Task[None]) -> None:
        visit.task = None
        if task.cancelled():  # One that is cancelled before it begins closes nothing.
            visit.guest.abort()
            visit.socket.close()
            self._end(visit)

    def _end(self, visit: _Visit, _: object = None) -> None:
        self._visits.pop(visit.guest, None)
        self._forget_undecided(visit)

    def _forget_undecided(self, visit: _Visit) -> None:
        guests = self._undecided.get(visit.network)
        if guests is not None:
            guests.pop(visit.guest, None)
            if not guests:
                del self._undecided[visit.network]

    # ------------------------------------------------------------------ too many

    def _push_out(self) -> bool:
        """Close the oldest undecided connection of the busiest network; False if there is none."""
        if not self._undecided:
            return False
        guests = max(self._undecided.values(), key=len)
        visit = self._visits[next(iter(guests))]
        self._end(visit)
        self._refused(visit.network + ":", "it had not authenticated, and others came")
        if visit.task is not None:
            visit.task.cancel()
        else:
            visit.guest.abort()
        return True

    def _refuse(self, connection: socket.socket, remote: str) -> None:
        self._refused(remote, "too many connections at once")
        if self._tls is not None:
            self._end_refusal(connection)
            return
        try:
            connection.send(self._refusal)
            # A close with the client's first request unread would reset the connection and lose
            # the reply.
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            self._end_refusal(connection)
            return
        asyncio.get_running_loop().call_later(REFUSED_S, self._end_refusal, connection)

    def _end_refusal(self, connection: socket.socket) -> None:
        self._refusing.discard(connection)
        connection.close()


def network_of(host: str) -> str:
    """The address, or for IPv6 its /64: what one host may have as many of as it likes."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))
