"""A client of the reference server: connected to one node, and to another if that one fails.

Theory of operation. `Client` belongs to one event loop. Any number of tasks may call at once, and
their requests share the connection, pipelined: replies come in the order of requests, and all
requests of one turn of the loop go out in one write. When the connection breaks, calls in flight
raise `Disconnected`: they may have been applied. A connection that leaves a call unanswered until
its deadline takes no new calls; those in flight may still be answered. In both cases the next call
connects to the next address, in rounds with a growing, jittered pause.

`once` makes writes safe to retry. The client holds a session, opened by the cluster. Each write
gets the next number of the session and is sent through one node after another until one answers.
The state machine applies a number once and repeats its reply. Each request carries `floor`, the
lowest number still unfinished in this client. The cluster drops the replies below it, and doesn't
apply a late copy with such a number.

If servers require a token, each connection sends it before its first call. If they speak TLS,
`tls_ca` is the CA of their certificates, which must name the hosts in `addresses`.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias, cast

from raftha.client.resp import Argument, error_from_reply, pack_request
from raftha.config import parse_address
from raftha.errors import (
    AcknowledgementTimeout,
    ConfigError,
    Disconnected,
    Indeterminate,
    NotLeader,
    Overloaded,
    RafthaError,
    Rejected,
    RequestTimeout,
    SessionExpired,
    Stopped,
    StorageError,
    StorageFull,
    Unavailable,
)
from raftha.extras import extra
from raftha.net.tls import client_context

with extra("client"):
    import hiredis

Reply: TypeAlias = Any
"""bytes, int, None, or a list of these; errors inside a list are exceptions, not raised."""

CONNECT_S = 2.0
"""The time limit for connecting to one address."""
PAUSE_MIN_S, PAUSE_MAX_S = 0.02, 1.0
"""The pause between rounds over all addresses, and between two tries of `once`; it doubles."""
ATTEMPT_S = 3.0
"""How long `once` waits for one node before it tries another."""
ONCE_MAX = 1024
"""The most calls of `once` at a time; the cluster keeps a reply for each."""
PENDING_MAX = 65_536
"""The most calls in flight on one connection; further calls raise `Overloaded`."""

_TRY_ANOTHER = (Indeterminate, Unavailable, Overloaded, Stopped, NotLeader, StorageError)
"""Errors after which `once` tries again: another node, or the same one later, may succeed."""

_INCOMPLETE = object()


class Client:
    """Calls to a cluster through any of `addresses`, each "host:port", that can be reached."""

    def __init__(
        self,
        addresses: Sequence[str],
        timeout_s: float = 10.0,
        *,
        token: str = "",
        tls_ca: str | Path | None = None,
    ) -> None:
        if not addresses:
            raise ConfigError("addresses must name at least one server")
        if timeout_s <= 0:
            raise ConfigError(f"timeout_s must be over 0, got {timeout_s}")
        self.addresses = tuple(addresses)
        self.timeout_s = timeout_s
        self._token = token
        self._tls = client_context(tls_ca) if tls_ca else None
        self._targets = [parse_address("addresses", address) for address in addresses]
        self._next_target = 0
        self._connection: _Connection | None = None
        self._connections: set[_Connection] = set()  # Also retired ones with calls in flight.
        self._connecting = asyncio.Lock()
        self._is_closed = False
        self._session: _Session | None = None
        self._opening_session = asyncio.Lock()
        self._once_slots = asyncio.Semaphore(ONCE_MAX)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def address(self) -> str | None:
        """The server that this client is connected to; None if it has no connection."""
        connection = self._connection
        return connection.address if connection is not None and connection.is_open else None

    async def close(self) -> None:
        """Close the connection; calls in flight raise Disconnected, later ones Stopped."""
        self._is_closed = True
        for connection in list(self._connections):
            connection.drop()

    async def call(self, *args: Argument, timeout_s: float | None = None) -> Reply:
        """Send one command and return its reply; an error reply raises its error.

        Rejected: the command was not applied. It is a `ReplyError` if the server refused the
        command, and `Unavailable` if no server could be reached. Indeterminate: the command may
        have been applied.
        """
        packed = pack_request(args)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self.timeout_s if timeout_s is None else timeout_s)
        return await self._call(packed, deadline)

    async def once(self, *args: Argument, timeout_s: float | None = None) -> Reply:
        """Send one write, repeatedly if necessary, and return its reply; it is applied once.

        Indeterminate: no node answered by the deadline and one of the tries may have been applied.
        AcknowledgementTimeout: one was, on too few disks. `ReplyError`: the write was refused, and
        no try has changed anything.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self.timeout_s if timeout_s is None else timeout_s)
        try:
            async with asyncio.timeout_at(deadline):
                await self._once_slots.acquire()
        except TimeoutError:
            raise Unavailable(
                "too many calls of once() were under way until the deadline"
            ) from None
        try:
            return await self._once(args, deadline)
        finally:
            self._once_slots.release()

    # ------------------------------------------------------------------ exactly once

    async def _once(self, args: tuple[Argument, ...], deadline: float) -> Reply:
        while True:
            session = await self._get_session(deadline)
            number = session.begin()
            try:
                return await self._send_until_answered(session, number, args, deadline)
            except SessionExpired:
                # No try was applied under that number, so a new session may take the write over.
                if self._session is session:
                    self._session = None
            finally:
                session.finish(number)

    async def _send_until_answered(
        self, session: _Session, number: int, args: tuple[Argument, ...], deadline: float
    ) -> Reply:
        may_have_happened = False
        committed: AcknowledgementTimeout | None = None
        pause = _Pause()
        loop = asyncio.get_running_loop()
        while True:
            connection = self._connection
            request = pack_request(("RAFTHA", "ONCE", session.id, number, session.floor, *args))
            try:
                return await self._call(request, min(deadline, loop.time() + ATTEMPT_S))
            except SessionExpired as error:
                if may_have_happened:
                    raise Disconnected(f"the session ended meanwhile: {error}") from error
                raise
            except _TRY_ANOTHER as error:
                # Once a try may have been applied, later refusals say nothing about that try.
                may_have_happened = may_have_happened or not _is_rejected(error)
                committed = error if isinstance(error, AcknowledgementTimeout) else committed
                if loop.time() + pause.next_s >= deadline:
                    if committed is not None:
                        raise committed from None
                    if may_have_happened:
                        raise RequestTimeout(f"no answer until the deadline: {error}") from error
                    raise
                self._leave(connection)
            await pause.wait()

    async def _get_session(self, deadline: float) -> _Session:
        if self._session is not None:
            return self._session
        request = pack_request(("RAFTHA", "SESSION"))
        pause = _Pause()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(deadline), self._opening_session:
                while self._session is None:
                    connection = self._connection
                    try:
                        attempt = min(deadline, loop.time() + ATTEMPT_S)
                        self._session = _Session(await self._call(request, attempt))
                    except _TRY_ANOTHER as error:
                        # A session whose id was lost with the reply stays unused, which is safe.
                        if loop.time() + pause.next_s >= deadline:
                            raise Unavailable(f"no session could be opened: {error}") from error
                        self._leave(connection)
                        await pause.wait()
                return self._session
        except TimeoutError:
            raise Unavailable("no session could be opened before the deadline") from None

    def _leave(self, connection: _Connection | None) -> None:
        """Use another server for the next call, unless another task already arranged that."""
        if connection is not None and len(self.addresses) > 1:
            connection.retire()

    # ------------------------------------------------------------------ the connection

    async def _call(self, packed: bytes, deadline: float) -> Reply:
        connection = self._connection
        if connection is None or not connection.is_open:
            connection = await self._connect(deadline)
        reply = await connection.request(packed, deadline)
        if isinstance(reply, hiredis.ReplyError):
            raise error_from_reply(str(reply))
        return reply

    async def _connect(self, deadline: float) -> _Connection:
        error: Exception | None = None
        pause = _Pause()
        try:
            async with asyncio.timeout_at(deadline), self._connecting:
                while True:
                    if self._is_closed:
                        raise Stopped("the client is closed")
                    if self._connection is not None and self._connection.is_open:
                        return self._connection
                    for _ in self._targets:
                        try:
                            self._connection = await self._connect_next()
                        except (OSError, TimeoutError, Indeterminate, Unavailable) as failure:
                            error = failure
                        else:
                            return self._connection
                    await pause.wait()
        except TimeoutError:
            where = ", ".join(self.addresses)
            raise Unavailable(f"none of {where} could be reached: {error}") from error

    async def _connect_next(self) -> _Connection:
        position, self._next_target = (
            self._next_target,
            (self._next_target + 1) % len(self._targets),
        )
        address = self.addresses[position]
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_S):
            _, connection = await loop.create_connection(
                lambda: _Connection(address, self._connections),
                *self._targets[position],
                ssl=self._tls,
            )
            if self._token:
                await self._authenticate(connection)
        return connection

    async def _authenticate(self, connection: _Connection) -> None:
        """Send the token; ReplyError if it is wrong, which a retry would not change."""
        deadline = asyncio.get_running_loop().time() + CONNECT_S
        try:
            reply = await connection.request(pack_request(("AUTH", self._token)), deadline)
            if isinstance(reply, hiredis.ReplyError):
                raise error_from_reply(str(reply))
        except BaseException:
            connection.drop()
            raise


class _Connection(asyncio.Protocol):
    """A connection to one server, and the calls that wait for its replies in order."""

    def __init__(self, address: str, connections: set[_Connection]) -> None:
        self.address = address
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._pending: deque[asyncio.Future[Reply]] = deque()
        self._outgoing: list[bytes] = []
        self._is_retired = False

    @property
    def is_open(self) -> bool:
        """True if new requests may be sent."""
        return self._transport is not None and not self._is_retired

    async def request(self, packed: bytes, deadline: float) -> Reply:
        """Send a request and return the reply, which may be an error."""
        if not self.is_open:
            raise Unavailable(f"the connection to {self.address} has just ended")
        if len(self._pending) >= PENDING_MAX:
            raise Overloaded(f"{PENDING_MAX} calls are in flight")
        future = self._loop.create_future()
        self._pending.append(future)
        if not self._outgoing:
            self._loop.call_soon(self._send)
        self._outgoing.append(packed)
        timer = self._loop.call_at(deadline, self._on_deadline, future)
        try:
            return await future
        finally:
            timer.cancel()

    def retire(self) -> None:
        """Take no new requests; close once those in flight are answered or abandoned."""
        self._is_retired = True
        if self._transport is not None and all(future.done() for future in self._pending):
            self._transport.abort()

    def drop(self) -> None:
        """Close at once; calls in flight raise Disconnected."""
        self._is_retired = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not registered.
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        reader, pending = self._reader, self._pending
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not _INCOMPLETE:
                if not pending:
                    raise hiredis.ProtocolError("a reply to no request")
                future = pending.popleft()
                if not future.done():
                    future.set_result(reply)
        except hiredis.ProtocolError:
            self.drop()
            return
        if self._is_retired:
            self.retire()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._connections.discard(self)
        self._outgoing.clear()
        reason = f"the connection to {self.address} ended" + (f": {exc}" if exc else "")
        for future in self._pending:
            if not future.done():
                future.set_exception(Disconnected(reason))
        self._pending.clear()

    def _send(self) -> None:
        if self._transport is not None:
            self._transport.write(b"".join(self._outgoing))
            self._outgoing.clear()

    def _on_deadline(self, future: asyncio.Future[Reply]) -> None:
        if not future.done():
            future.set_exception(RequestTimeout(f"no reply from {self.address} in time"))
            self.retire()


class _Session:
    """An exactly-once session: the id that the cluster gave it, and the numbers in use."""

    def __init__(self, session_id: int) -> None:
        self.id = session_id
        self._next_number = 1
        self._unfinished: dict[int, None] = {}  # In the order of numbers.

    @property
    def floor(self) -> int:
        """The lowest number that is not finished."""
        return next(iter(self._unfinished))

    def begin(self) -> int:
        """Take the next number."""
        number, self._next_number = self._next_number, self._next_number + 1
        self._unfinished[number] = None
        return number

    def finish(self, number: int) -> None:
        """Return a number: its call is answered or abandoned."""
        del self._unfinished[number]


class _Pause:
    """A pause that doubles each time, shortened at random so that clients don't retry in step."""

    def __init__(self) -> None:
        self._limit_s = PAUSE_MIN_S
        self.next_s = self._limit_s * random.uniform(0.5, 1.0)

    async def wait(self) -> None:
        """Sleep for `next_s`."""
        await asyncio.sleep(self.next_s)
        self._limit_s = min(2 * self._limit_s, PAUSE_MAX_S)
        self.next_s = self._limit_s * random.uniform(0.5, 1.0)


def _is_rejected(error: RafthaError) -> bool:
    """True if `error` means that the write was not applied and will not be."""
    return isinstance(error, Rejected | StorageFull)
