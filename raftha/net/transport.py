"""Connections between members: one TCP connection for each pair, with frames in both directions.

Theory of operation. Of two members, the one with the higher id dials, and redials whenever the
connection is lost. The other one listens. Both send `Hello` first. A connection counts once both
sides have accepted the other's Hello: the same protocol version and cluster, the expected ids, the
same secret (`raftha.net.peer_secret`), and a data directory that may speak for its node. Until then
the peer may be anyone. It can send nothing else, and must be accepted within `HANDSHAKE_TIMEOUT_S`
of connecting, TLS handshake included. A refused peer receives a `Refusal`, and is counted.
`raftha.net.connection` has the steps; `raftha.net.slots` bounds how many incoming connections may
be undecided at once.

A node without a cluster is accepted by all, and accepts all (`raftha/node/founding.py`).

With TLS (`raftha.net.tls`) both sides present certificates before Hello, and the sender of a Hello
must be the node that its connection's certificate names.

A removed node learns of its removal when it dials, or at once if it is connected. One with a low
id, which was away at that time, would wait for peers that never dial it. So a node that a member
hasn't dialled for `ASK_S` dials that member, and receives the answer. This is also how the members
find a new node that knows none of them, because all of its `members` have left the cluster. Only
an accepted peer whose incarnation this node's log records can tell it that it was removed.

The node learns of a lost connection at once (`on_disconnected`), since for a follower this is the
best sign that its leader died. The transport never resends: Raft does, and a copy kept here would
only be stale.

Everything runs on the node's event loop, so nothing locks.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

from raftha.config import parse_address
from raftha.net import peer_secret
from raftha.net.addresses import Names, bind
from raftha.net.connection import HANDSHAKE_TIMEOUT_S, REMOVED, Connection
from raftha.net.introductions import difference, no_common_protocol
from raftha.net.refusals import Refusals
from raftha.net.slots import Slots
from raftha.net.tls import PeerTls, TlsServer, handshake_failure
from raftha.net.wire import Hello, encode
from raftha.node.messages import PeerMessage

REDIAL_MIN_S, REDIAL_MAX_S = 0.02, 0.5
ASK_S = 2.0
HOSTS_MAX = 16
"""Numeric addresses of one member that are kept."""
UNKNOWN_MAX = 16
"""Connected nodes that are no members: new ones, or strangers where there is no secret."""
CLOSE_S = 1.0
FAREWELL_S = 0.05
"""How long a stop waits until its farewells have been sent."""

log = logging.getLogger(__name__)


class Receiver(Protocol):
    """The receiver of the transport's messages and connections: the node."""

    def on_message(self, message: PeerMessage) -> None:
        """WireError if the connection must be closed for this message."""
        ...

    def on_connected(self, peer: int, hello: Hello) -> None: ...
    def on_disconnected(self, peer: int, reason: str) -> None:
        """`reason`: node_shutdown, removed, timeout or network_error."""
        ...

    def on_removed(self) -> None:
        """A member reports that this node was removed from the cluster."""
        ...

    def on_refused(self) -> None:
        """A connection was refused, or closed for a violation of the protocol."""
        ...

    def on_unsupported(self, peer: int, reason: str) -> None:
        """A member was refused, because the two have no protocol in common."""
        ...

    def on_cloned(self, peer: int, remote: str) -> None:
        """A second process with the data directory of `peer` was refused; the first one lives."""
        ...

    def check_hello(self, hello: Hello) -> str:
        """Why this member must be refused; "" if it is accepted."""
        ...


class Transport:
    """This member's connections to the others."""

    def __init__(
        self,
        hello: Hello,
        address: str,
        receiver: Receiver,
        random: Callable[[], float],
        tls: PeerTls | None = None,
        secret: bytes = b"",
    ) -> None:
        """Listens at `address`. `hello` is this member's Hello; each connection sets its `to`.

        `secret` is the one that all members share; b"" if they have none.
        """
        self.id = hello.sender
        self.secret = secret
        self._address = address
        self._members: dict[int, str] = {}
        self._removed: frozenset[int] = frozenset()
        self._refusals = Refusals(log, f"peer refused node={hello.sender}")
        self._hello = hello
        self._recorded: Mapping[int, int] = {}
        self._receiver = receiver
        self._random = random
        self._tls = tls
        self._connected: dict[int, Connection] = {}
        self._slots: Slots[Connection] = Slots()
        self._hosts: dict[int, set[str]] = {}
        self._open: set[Connection] = set()
        self._dialers: dict[int, asyncio.Task[None]] = {}
        self._servers: list[asyncio.Server | TlsServer] = []
        self._names = Names(f"raftha-{self.id}-names")
        self._is_paused = False

    async def start(self) -> None:
        """Listen. OSError if the address can't be bound. `set_members` begins to dial."""
        host, port = parse_address("address", self._address)
        if self._tls is None:
            await self._listen(await bind(host, port))
            return
        server = TlsServer(
            self._tls.server,
            lambda: Connection(self, None),
            refused=self.refused,
            handshake_s=HANDSHAKE_TIMEOUT_S,
            accepted=self._on_tls_accepted,
        )
        await server.bind(host, port)
        self._servers.append(server)
        await server.start_serving()

    async def _listen(self, listeners: list[socket.socket]) -> None:
        loop = asyncio.get_running_loop()
        try:
            for listener in listeners:
                server = await loop.create_server(lambda: Connection(self, None), sock=listener)
                self._servers.append(server)
        except OSError:
            for listener in listeners:
                listener.close()
            raise

    def renew(self, tls: PeerTls) -> None:
        """Use these certificates for new connections. Existing ones continue, unless revoked."""
        self._tls = tls
        for peer, connection in list(self._connected.items()):
            if tls.revoked.names(connection.certificate, peer):
                connection.drop(f"the certificate of node {peer} is revoked")
        for server in self._servers:
            if isinstance(server, TlsServer):
                server.renew(tls.server)

    def introduce(self, **changes: Any) -> None:
        """Say this of the own node in each Hello from now on."""
        self._hello = self._hello._replace(**changes)

    def set_members(
        self,
        addresses: Mapping[int, str],
        removed: frozenset[int],
        recorded: Mapping[int, int] | None = None,
        lineage: str = "",
    ) -> None:
        """Dial those members that this node has to dial; `recorded` has their incarnations."""
        self._is_paused = False
        self._members, self._removed = dict(addresses), removed
        self._recorded = recorded or {}
        self._hello = self._hello._replace(lineage=lineage)
        self._hosts = {peer: hosts for peer, hosts in self._hosts.items() if peer in addresses}
        self._names.keep({parse_address("address", a) for a in addresses.values()})
        for peer, address in addresses.items():
            # A name is added once it has been looked up, a numeric address at once.
            self._add_host(peer, parse_address("address", address)[0])
        for peer in [peer for peer in self._dialers if peer not in self._members]:
            self._dialers.pop(peer).cancel()
        for peer in [peer for peer in self._connected if peer in removed]:
            self._connected[peer].dismiss()
        for peer in self._members:
            if peer not in self._dialers:
                call = self._dial(peer) if peer < self.id else self._ask(peer)
                self._dialers[peer] = asyncio.get_running_loop().create_task(call)

    async def stop(self) -> None:
        """Close everything, without calls to the receiver, and tell peers that the node stops."""
        farewells = []
        for connection in self._connected.values():
            connection.say_farewell()
            farewells.append(asyncio.ensure_future(connection.wait_closed()))
        self._connected.clear()
        if farewells:
            await asyncio.wait(farewells, timeout=FAREWELL_S)
        for server in self._servers:
            server.close()
        self._names.close()
        await self.pause()
        for server in self._servers:
            if isinstance(server, TlsServer):
                await server.wait_closed()

    async def pause(self) -> None:
        """Close all connections, and accept no new ones until `set_members`.

        The receiver gets no calls for them. The port stays bound.
        """
        self._is_paused = True
        for dialer in self._dialers.values():
            dialer.cancel()
        for connection in self._open:
            connection.abandon()  # Before anything is awaited, so that none is accepted meanwhile.
        self._connected.clear()
        self._slots.clear()
        await asyncio.gather(*self._dialers.values(), return_exceptions=True)
        self._dialers.clear()
        # Wait for the real end: an event loop that ends before its connections may hang.
        deadline = asyncio.get_running_loop().time() + CLOSE_S
        while self._open and asyncio.get_running_loop().time() < deadline:
            for connection in self._open:
                connection.abandon()
            await asyncio.sleep(0.001)

    def is_connected(self, peer: int) -> bool:
        return peer in self._connected

    def hang_up(self, peer: int) -> None:
        """Close the connection to a silent member, with the reason timeout."""
        connection = self._connected.get(peer)
        if connection is not None:
            connection.hang_up()

    def send(self, message: PeerMessage) -> None:
        """Send `message`, or drop it without a connection: the node knows of the loss."""
        connection = self._connected.get(message.to)
        if connection is not None:
            connection.send(encode(message))

    async def _dial(self, peer: int) -> None:
        loop = asyncio.get_running_loop()
        pause = REDIAL_MIN_S
        while True:
            if peer in self._connected:
                # The peer dialled first, before this node knew it.
                await asyncio.sleep(REDIAL_MAX_S)
                continue
            host, port = parse_address("address", self._members[peer])  # It may have moved.
            connection = Connection(self, peer)
            try:
                async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                    await self._connect(loop, connection, host, port)
                began = loop.time()
                # A peer that accepts and then refuses this node must not be dialled all the time.
                if await connection.wait_closed() and loop.time() - began > REDIAL_MAX_S:
                    pause = REDIAL_MIN_S
            except (OSError, UnicodeError) as error:
                # The peer isn't there, or its name has no address now. TimeoutError is an OSError.
                reason = handshake_failure(error) if self._tls is not None else ""
                if reason:
                    self.refused(f"{host}:{port}", reason)
            # Jitter: members that were cut off at the same time must not redial at the same time.
            await asyncio.sleep(pause * (0.5 + self._random()))
            pause = min(2 * pause, REDIAL_MAX_S)

    async def _ask(self, peer: int) -> None:
        """Dial a member that should dial this node and doesn't; its answer gives the reason."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(ASK_S * (0.5 + self._random()))
            if peer in self._connected:
                continue
            host, port = parse_address("address", self._members[peer])
            connection = Connection(self, peer)
            try:
                async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                    await self._connect(loop, connection, host, port)
                await connection.wait_closed()
            except (OSError, UnicodeError):
                continue  # The peer isn't there. TimeoutError is an OSError.

    async def _connect(
        self, loop: asyncio.AbstractEventLoop, connection: Connection, host: str, port: int
    ) -> None:
        tls: dict[str, Any] = {}
        if self._tls is not None:
            tls = {
                "ssl": self._tls.client,
                "server_hostname": "",  # The certificate names a node, not a host.
                "ssl_handshake_timeout": HANDSHAKE_TIMEOUT_S,
            }
        numbers = await self._names.look_up(host, port)
        assert connection.expected is not None, "this node dials members only"
        for number in numbers:
            self._add_host(connection.expected, number)
        for number in numbers:
            try:
                await loop.create_connection(lambda: connection, number, port, **tls)
                return
            except OSError as error:
                if number == numbers[-1] or handshake_failure(error):
                    raise

    # ---------------------------------------------------------------- calls of a connection

    def opened(self, connection: Connection) -> bool:
        """Whether a new connection may stay for its handshake."""
        self._open.add(connection)
        if self._is_paused:
            return False
        if connection.expected is None and self._tls is None:
            self._give_slot(connection)  # With TLS it has one since it was accepted.
        return True

    def _on_tls_accepted(
        self, protocol: asyncio.Protocol, remote: tuple[Any, ...], handshake: asyncio.Task[None]
    ) -> None:
        connection = cast(Connection, protocol)
        connection.on_accepted(remote, handshake)
        handshake.add_done_callback(lambda _: self._forget_unmade(connection))
        self._give_slot(connection)

    def _forget_unmade(self, connection: Connection) -> None:
        if not connection.is_made:
            self._slots.leave(connection)

    def _give_slot(self, connection: Connection) -> None:
        pushed_out = self._slots.enter(connection, connection.host)
        if pushed_out is not None:
            pushed_out.push_out()

    def _add_host(self, peer: int, number: str) -> None:
        """Note a numeric address of a member, which then has slots of its own."""
        hosts = self._hosts.setdefault(peer, set())
        if number not in hosts:
            if len(hosts) >= HOSTS_MAX:
                hosts.clear()
            hosts.add(number)
            self._slots.set_members(set().union(*self._hosts.values()))

    def greeting(self, peer: int) -> Hello:
        """The Hello for a new connection."""
        challenge = peer_secret.new_challenge(self.secret)
        recorded = self._recorded.get(peer, 0)
        return self._hello._replace(to=peer, recorded=recorded, challenge=challenge)

    def no_common_protocol(self, hello: Hello) -> str:
        """Why this node and the sender share no protocol; "" if they share one."""
        return no_common_protocol(self._hello, hello)

    def judge(self, connection: Connection, hello: Hello) -> str:
        """Why `hello` is refused; "" if its sender may be a peer."""
        reason = difference(self._hello, hello)
        if reason:
            return reason
        if hello.to != self.id:
            return f"meant for node {hello.to}, this is node {self.id}"
        if hello.sender == self.id:
            return f"it claims to be node {self.id}, which is this node"
        reason = self.check_certificate(connection, hello.sender)
        return f"it claims to be node {hello.sender}, but {reason}" if reason else ""

    def admit(self, connection: Connection, hello: Hello) -> str:
        """Why this peer, which has proven itself, is refused; "" if the connection may count."""
        # An unknown node may belong to a later membership than this node's. Its id may be lower
        # too, since this node doesn't dial nodes that it doesn't know.
        is_expected = hello.sender == connection.expected or (
            connection.expected is None
            and (hello.sender > self.id or hello.sender not in self._members)
        )
        if hello.sender in self._removed:
            return REMOVED
        if not is_expected:
            return f"node {hello.sender} is not expected to dial this node"
        return self._receiver.check_hello(hello)

    def may_report_removal(self, hello: Hello) -> bool:
        """Whether the own log, if there is one, records this accepted peer's incarnation."""
        is_known = hello.incarnation == self._recorded.get(hello.sender, 0) != 0
        return is_known or not any(self._recorded.values())

    def unsupported(self, connection: Connection, hello: Hello, reason: str) -> None:
        """This peer, which has proven itself, is refused for want of a common protocol."""
        is_member = hello.cluster_id == self._hello.cluster_id and hello.sender in self._members
        if is_member and not self.check_certificate(connection, hello.sender):
            self._receiver.on_unsupported(hello.sender, reason)

    def check_certificate(self, connection: Connection, node_id: int) -> str:
        """Why the certificate of `connection` isn't that of `node_id`; "" if it is, or no TLS."""
        return self._tls.refusal(connection.certificate, node_id) if self._tls else ""

    def other_process(self, hello: Hello) -> Connection | None:
        """The connection of another process that says to be the same node, with as much right.

        It has, on the same disk, or on the one that is recorded: a process that is started under a
        member's id with an empty directory must not take the place of the member while that lives.
        """
        earlier = self._connected.get(hello.sender)
        if earlier is None or earlier.hello is None or earlier.hello.nonce == hello.nonce:
            return None
        has_right = earlier.hello.incarnation in (
            hello.incarnation,
            self._recorded.get(hello.sender, 0) or None,
        )
        return earlier if has_right else None

    def cloned(self, connection: Connection, hello: Hello) -> None:
        """That other process lives, so this connection is refused."""
        self._receiver.on_cloned(hello.sender, connection.remote)

    def accepted(self, connection: Connection, hello: Hello) -> None:
        self._slots.leave(connection)
        if hello.sender in self._members and connection.host:
            self._add_host(hello.sender, connection.host)
        earlier = self._connected.pop(hello.sender, None)
        if earlier is not None:
            # The peer dialled again, so its end of the earlier connection is already closed.
            earlier.abandon()
            self._receiver.on_disconnected(hello.sender, "network_error")
        self._connected[hello.sender] = connection
        self._receiver.on_connected(hello.sender, hello)
        self._bound_unknown()

    def _bound_unknown(self) -> None:
        """Push out the oldest connection of a node that is no member, if there are too many.

        A new node that waits to become a member dials again.
        """
        unknown = [peer for peer in self._connected if peer not in self._members]
        if len(unknown) > UNKNOWN_MAX:
            self._connected[unknown[0]].drop("too many nodes that are no members are connected")

    @property
    def refused_total(self) -> int:
        """How many connections were refused, or closed for a violation."""
        return self._refusals.total

    def refused(self, remote: str, reason: str) -> None:
        """Count and log a connection that was refused, or closed for a violation."""
        self._refusals.add(remote, reason)
        self._receiver.on_refused()

    def closed(self, connection: Connection, peer: int | None) -> None:
        self._open.discard(connection)
        self._slots.leave(connection)
        if peer is not None and self._connected.get(peer) is connection:
            del self._connected[peer]
            self._receiver.on_disconnected(peer, connection.end)

    def on_removed(self) -> None:
        self._receiver.on_removed()

    def received(self, message: PeerMessage) -> None:
        self._receiver.on_message(message)
