"""One TCP connection to a peer, from its handshake to its end.

Theory of operation. The handshake goes through these steps; until it ends, the peer may be anyone.

    1. The dialler sends `Hello`. The listener judges it (`Owner.judge`).
    2. With a secret (`raftha.net.peer_secret`): the listener sends its Hello, and the dialler
       judges that and sends a `Proof`, which the listener checks.
    3. The listener admits the peer (`Owner.admit`), and only now gives it the rest of its
       introduction: its Proof, or without a secret its Hello. For the listener the connection
       counts from here on.
    4. The dialler checks the same, and it counts for the dialler too; or it sends a `Refusal`.

A peer without a common protocol is refused as soon as it is known not to be a stranger: in step 1
without a secret, else after its Proof. Only then does the node report it (`Owner.unsupported`).

If another process is connected under the peer's id, with the same data directory or the one that
the membership records, then one of the two runs by mistake, or the older connection is a dead
one's. So in step 3 the newer one is *held*: it is
not read, and the older one gets a `Probe`. A live process answers, and the newer one is refused.
Without an answer within `PROBE_S` the newer one takes its place. A process that has restarted is
told apart by the `nonce` in its Hello, and waits that long at most. A probe sees only connected
processes, so a node reports a clone of a member that it is connected with, and no other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

from raftha.errors import WireError
from raftha.net import peer_secret
from raftha.net.addresses import notice_silence
from raftha.net.introductions import OTHER_DISK
from raftha.net.tls import describe
from raftha.net.wire import FrameReader, Greeting, Hello, Probe, Proof, Refusal, encode
from raftha.node.messages import PeerMessage

HANDSHAKE_TIMEOUT_S = 5.0
PROBE_S = 1.0
"""How long a process that may be dead has to answer."""
OUTGOING_BYTES_MAX = 64 << 20
REMOVED = "the node was removed from the cluster"
SHUTDOWN = "the node is stopped"
TOO_MANY = "too many connections at once, and this was the oldest of the busiest address"
CLONED = (
    "another process runs under this id, with the member's data directory or a copy of it; stop one"
    " of the two"
)
_CONTROL = (Hello, Refusal, Proof, Probe)


class Owner(Protocol):
    """What a connection needs of the transport that it belongs to."""

    @property
    def id(self) -> int: ...
    @property
    def secret(self) -> bytes: ...

    def opened(self, connection: Connection) -> bool:
        """Whether a new connection may stay for its handshake."""
        ...

    def greeting(self, peer: int) -> Hello:
        """The Hello for a new connection."""
        ...

    def no_common_protocol(self, hello: Hello) -> str:
        """Why this node and the sender share no protocol; "" if they share one."""
        ...

    def unsupported(self, connection: Connection, hello: Hello, reason: str) -> None:
        """This peer, which has proven itself, is refused for want of a common protocol."""
        ...

    def judge(self, connection: Connection, hello: Hello) -> str:
        """Why this Hello is refused; "" if its sender may be a peer."""
        ...

    def admit(self, connection: Connection, hello: Hello) -> str:
        """Why this peer, which has proven itself, is refused; "" if the connection may count."""
        ...

    def other_process(self, hello: Hello) -> Connection | None:
        """The connection of another process that says to be the same node."""
        ...

    def cloned(self, connection: Connection, hello: Hello) -> None:
        """That other process lives, so this connection is refused."""
        ...

    def accepted(self, connection: Connection, hello: Hello) -> None: ...
    def refused(self, remote: str, reason: str) -> None: ...
    def closed(self, connection: Connection, peer: int | None) -> None: ...
    def may_report_removal(self, hello: Hello) -> bool: ...
    def on_removed(self) -> None: ...
    def received(self, message: PeerMessage) -> None: ...


class Connection(asyncio.Protocol):
    """One TCP connection; see the module's docstring."""

    def __init__(self, owner: Owner, expected: int | None) -> None:
        """`expected` is the member that was dialled; None for an incoming connection."""
        self.expected = expected
        self.remote = "?"
        self.host = ""
        """The numeric address of the other side."""
        self.certificate: Mapping[str, Any] | None = None
        self._owner = owner
        self._made_at = asyncio.get_running_loop().time()
        self._peer: int | None = None
        self.hello: Hello | None = None
        """The peer's Hello, once the connection counts."""
        self._claim: Hello | None = None
        self._mismatch = ""
        """Why the two share no protocol."""
        self._said: Hello | None = None
        self._is_held = False
        self._unread = b""
        """What a held connection received before it could be paused."""
        self._probes: list[Callable[[bool], None]] = []
        self._probe_timer: asyncio.TimerHandle | None = None
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._closed = asyncio.get_running_loop().create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._handshake: asyncio.Task[None] | None = None
        self._is_abandoned = False
        self._was_dropped = False
        self.end = "network_error"
        """The reason for `on_disconnected` if the connection ended now."""

    async def wait_closed(self) -> bool:
        """Wait for the end. True if the connection ever counted."""
        await self._closed
        return self._peer is not None

    @property
    def is_made(self) -> bool:
        """Whether the connection has got as far as `connection_made`."""
        return self._transport is not None

    def on_accepted(self, remote: tuple[Any, ...], handshake: asyncio.Task[None]) -> None:
        """The connection was accepted, and `handshake` does its TLS handshake."""
        self.remote, self.host, self._handshake = str(remote), str(remote[0]), handshake

    def push_out(self) -> None:
        """Close this undecided connection, because a newer one needs its slot."""
        if self._transport is not None:
            self.drop(TOO_MANY)
        elif self._handshake is not None:
            self._owner.refused(self.remote, TOO_MANY)
            self._handshake.cancel()

    def abandon(self) -> None:
        """Close, without a call to the receiver."""
        self._is_abandoned = True
        if self._transport is not None:
            self._transport.abort()

    def dismiss(self) -> None:
        """Tell the peer that it was removed, and close."""
        assert self._transport is not None
        self.end = "removed"
        self._close_after(Refusal(REMOVED, True))

    def hang_up(self) -> None:
        """Close at once, because the peer is silent."""
        assert self._transport is not None
        self.end = "timeout"
        self._transport.abort()

    def say_farewell(self) -> None:
        """Tell the peer that this node stops on purpose, and close."""
        assert self._transport is not None
        self._is_abandoned = True
        self._close_after(Refusal(SHUTDOWN, False))

    def _close_after(self, refusal: Refusal) -> None:
        assert self._transport is not None
        if not self._transport.is_closing():  # uvloop raises for a write to a closed one.
            self._transport.write(encode(refusal))
            self._transport.close()

    def send(self, frame: bytes) -> None:
        assert self._transport is not None
        if self._transport.is_closing():
            return  # The receiver is about to get `on_disconnected`.
        self._transport.write(frame)
        if self._transport.get_write_buffer_size() > OUTGOING_BYTES_MAX:
            self.drop(f"it has not taken {OUTGOING_BYTES_MAX} bytes")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the methods of `asyncio.Transport`, but don't inherit from it.
        self._transport = cast(asyncio.Transport, transport)
        remote = transport.get_extra_info("peername")
        self.remote, self.host = str(remote), str(remote[0]) if remote else ""
        notice_silence(transport.get_extra_info("socket"))
        self.certificate = transport.get_extra_info("peercert")
        if not self._owner.opened(self):
            self.drop("this node accepts no connections now")
            return
        loop = asyncio.get_running_loop()
        # An incoming connection was made when it was accepted, before any TLS handshake.
        begun_at = self._made_at if self.expected is None else loop.time()
        deadline = begun_at + HANDSHAKE_TIMEOUT_S
        self._timer = loop.call_at(deadline, self.drop, "it sent no hello in time")
        if self.expected is not None:
            self._say_hello(self.expected)

    def data_received(self, data: bytes) -> None:
        if self._is_abandoned:
            return
        try:
            if self._peer is None:
                self._shake_hands(data)
                data = b""
            if self._peer is None:
                return
            for frame in self._reader.feed(data):
                if self._is_abandoned:
                    return
                if isinstance(frame, _CONTROL):
                    self._on_control(frame)
                elif frame.sender != self._peer or frame.to != self._owner.id:
                    names = f"from {frame.sender} to {frame.to}"
                    raise WireError(f"node {self._peer} sent a message {names}")
                else:
                    self._owner.received(frame)
        except WireError as error:
            self.drop(str(error))

    def _on_control(self, frame: Greeting | Probe) -> None:
        if isinstance(frame, Refusal):
            # The dialling side decides last: on this side the connection counts already.
            self._on_refusal(frame)
        elif not isinstance(frame, Probe):
            raise WireError(f"a second {type(frame).__name__}")
        elif frame.is_answer:
            self._end_probe(True)
        else:
            self.send(encode(Probe(True)))

    # ---------------------------------------------------------------- the handshake

    def _shake_hands(self, data: bytes) -> None:
        if self._is_held:
            self._unread += data
            return
        for frame in self._reader.feed(data):
            self._on_greeting(cast(Greeting, frame))
            if self._is_abandoned or self._is_held or self._peer is not None:
                break  # The rest is no greeting, or it is for later.

    def _on_greeting(self, frame: Greeting) -> None:
        if isinstance(frame, Refusal):
            self._on_refusal(frame)
        if self._claim is None:
            if not isinstance(frame, Hello):
                raise WireError("the first frame must be Hello")
            self._on_hello(frame)
        elif isinstance(frame, Proof):
            self._on_proof(frame, self._claim)
        else:
            raise WireError("a second Hello")

    def _on_hello(self, hello: Hello) -> None:
        self._mismatch = self._owner.no_common_protocol(hello)
        reason = "" if self._mismatch else self._owner.judge(self, hello)
        if reason:
            self._refuse(reason)
            return
        secret = self._owner.secret
        if self.expected is None:
            self._said = self._owner.greeting(hello.sender)
        assert self._said is not None, "a dialler says hello first"
        reason = peer_secret.missing(self._said, hello, secret)
        if reason:
            self._refuse(self._mismatch or reason)
            return
        self._claim = hello
        if not secret:
            self._on_proven(hello)
        elif self.expected is None:
            self._write(self._said)
        else:
            self._prove(hello)

    def _on_proof(self, proof: Proof, claim: Hello) -> None:
        assert self._said is not None, "the claim was judged by what this node had said"
        secret, dials = self._owner.secret, self.expected is None
        if not secret:
            raise WireError("a proof, though there is no secret")
        if peer_secret.is_proven(secret, proof.mac, claim, self._said, dials=dials):
            self._on_proven(claim)
        else:
            self._refuse(self._mismatch or peer_secret.WRONG)

    def _on_proven(self, claim: Hello) -> None:
        if self._mismatch:
            self._owner.unsupported(self, claim, self._mismatch)
            self._refuse(self._mismatch)
            return
        other = self._owner.other_process(claim)
        if other is None:
            self._decide(claim)
            return
        assert self._transport is not None
        self._is_held = True
        self._transport.pause_reading()
        other.probe(self._on_probed)

    def _on_probed(self, is_alive: bool) -> None:
        """The other process that claims the same id has answered, or it has not."""
        assert self._claim is not None and self._transport is not None
        if self._is_abandoned or self._transport.is_closing():
            return
        self._is_held = False
        if is_alive:
            self._owner.cloned(self, self._claim)
            self._refuse(CLONED)
            return
        self._decide(self._claim)
        self.data_received(self._unread)
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def _decide(self, claim: Hello) -> None:
        reason = self._owner.admit(self, claim)
        if reason:
            if self.expected is None and reason in (REMOVED, OTHER_DISK):
                # The peer believes this only of a node that has introduced itself.
                self._introduce(claim)
            self._refuse(reason)
            return
        if self._timer is not None:
            self._timer.cancel()
        if self.expected is None:
            self._introduce(claim)
        self._peer, self.hello = claim.sender, claim
        self._reader.is_greeted = True
        self._owner.accepted(self, claim)

    def _introduce(self, claim: Hello) -> None:
        """The last part of a listener's introduction."""
        assert self._said is not None, "the claim was judged by what this node had said"
        if self._owner.secret:
            self._prove(claim)
        else:
            self._write(self._said)

    def _prove(self, claim: Hello) -> None:
        assert self._said is not None, "the claim was judged by what this node had said"
        dials = self.expected is not None
        self._write(Proof(peer_secret.prove(self._owner.secret, self._said, claim, dials=dials)))

    def _say_hello(self, peer: int) -> None:
        self._said = self._owner.greeting(peer)
        self._write(self._said)

    def _write(self, frame: Greeting) -> None:
        assert self._transport is not None
        self._transport.write(encode(frame))

    def _refuse(self, reason: str) -> None:
        """Tell the peer why, and close."""
        assert self._transport is not None
        self._write(Refusal(reason, reason == REMOVED))
        self._owner.refused(self.remote, reason)
        self._is_abandoned = True
        self._transport.close()

    # ---------------------------------------------------------------- is the process alive?

    def probe(self, done: Callable[[bool], None]) -> None:
        """Find out whether the process at the other end lives, and call `done` with that."""
        self._probes.append(done)
        if len(self._probes) == 1:
            self.send(encode(Probe(False)))
            loop = asyncio.get_running_loop()
            self._probe_timer = loop.call_later(PROBE_S, self._on_no_answer)

    def _on_no_answer(self) -> None:
        self.hang_up()
        self._end_probe(False)

    def _end_probe(self, is_alive: bool) -> None:
        if self._probe_timer is not None:
            self._probe_timer.cancel()
        probes, self._probes = self._probes, []
        for done in probes:
            done(is_alive)

    def _on_refusal(self, refusal: Refusal) -> None:
        # What listens at a member's address need not be that member.
        is_known = self.hello is not None and self._owner.may_report_removal(self.hello)
        if refusal.is_removed and is_known:
            self.end = "removed"
            self._owner.on_removed()
        elif refusal.reason == SHUTDOWN and self._peer is not None:
            self.end = "node_shutdown"  # The peer closes the connection.
            return
        raise WireError(f"it refused us: {refusal.reason}")

    def drop(self, reason: str) -> None:
        """Close at once, and count it as a refusal."""
        if self._transport is not None and not self._transport.is_closing():
            self._owner.refused(self.remote, reason)
            self._was_dropped = True
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._closed.done():
            self._closed.set_result(None)
        if self._is_abandoned:
            self._owner.closed(self, None)
        else:
            if self._peer is None and not self._was_dropped:
                # In TLS 1.3 a dialler's handshake ends before the other side has verified it.
                detail = f" ({describe(exc)})" if exc else ""
                hint = "if this continues, its log has the reason"
                self._owner.refused(self.remote, f"it closed before its hello{detail}; {hint}")
            if isinstance(exc, TimeoutError):
                self.end = "timeout"
            self._owner.closed(self, self._peer)
        self._end_probe(False)
