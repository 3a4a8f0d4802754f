"""TLS and tokens: the identity of peers, and access for clients.

Theory of operation. Peers speak TLS 1.3. Both sides present a certificate, and both verify it
against the cluster's own CA. A certificate names its node in a URI, `raftha://<cluster
name>/node/<id>`, and the transport compares this with the id in the peer's Hello. Names and
addresses of hosts don't count: check_hostname is off, and the URI is checked instead.
`raftha.net.certificates` makes the certificates. This module only reads them, with the ssl module,
so that a node needs no other package to run.

Before it opens anything, a node checks its own files by a TLS handshake with itself in memory. It
finds everything that its peers would refuse (an expired certificate, another CA's, another node's),
and reports it in an error of its own rather than in another node's log.

`TlsServer` is a listener that counts, times and logs its handshakes, which those of
`loop.create_server` don't allow. It belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from raftha.errors import ConfigError
from raftha.net.addresses import bind

ACCEPTED_AT_ONCE_MAX = 64
ACCEPT_PAUSE_S = 0.1
"""The pause after a failed accept, which usually means that file descriptors have run out."""
EXPIRY_WARNING_S = 30 * 86_400
_UNKNOWN_ISSUER = range(18, 22)
"""OpenSSL's codes for a chain that doesn't end at our CA."""
TOKEN_CHARACTERS_MIN, TOKEN_CHARACTERS_MAX = 16, 1024

log = logging.getLogger(__name__)


def node_uri(cluster_name: str, node_id: int) -> str:
    """The URI by which a certificate names its node."""
    return f"{cluster_uri(cluster_name)}/node/{node_id}"


def cluster_uri(cluster_name: str) -> str:
    """The URI by which a CA's certificate names its cluster."""
    return f"raftha://{quote(cluster_name, safe='')}"


def certified_uri(certificate: Mapping[str, Any] | None) -> str:
    """The raftha URI of a verified certificate (from `getpeercert`); "" unless it has just one."""
    names = certificate.get("subjectAltName", ()) if certificate else ()
    uris = [name for kind, name in names if kind == "URI" and name.startswith("raftha://")]
    return uris[0] if len(uris) == 1 else ""


# ------------------------------------------------------------------ contexts


@dataclass(frozen=True, slots=True)
class Revoked:
    """Certificates that don't count any more, though they are valid: by node, by serial number."""

    nodes: frozenset[int] = frozenset()
    serials: frozenset[int] = frozenset()

    @classmethod
    def load(cls, path: Path) -> Revoked:
        """Read a file with `node 3` or `serial 4f2a...` (hexadecimal) on each line. ConfigError."""
        nodes, serials = set(), set()
        text = read_file("tls_revoked", path).decode(errors="replace")
        for number, line in enumerate(text.splitlines(), 1):
            words = line.partition("#")[0].split()
            try:
                match words:
                    case []:
                        pass
                    case ["node", given]:
                        nodes.add(int(given))
                    case ["serial", given]:
                        serials.add(int(given.replace(":", ""), 16))
                    case _:
                        raise ValueError
            except ValueError:
                raise ConfigError(
                    f"tls_revoked {path}, line {number}: not a certificate",
                    hint="as in: node 3, or serial 4f2a",
                ) from None
        return cls(frozenset(nodes), frozenset(serials))

    def names(self, certificate: Mapping[str, Any] | None, node_id: int) -> bool:
        """True if this verified certificate of `node_id` is revoked."""
        serial = int(certificate.get("serialNumber") or "0", 16) if certificate else 0
        return node_id in self.nodes or serial in self.serials


@dataclass(frozen=True, slots=True)
class PeerTls:
    """This node's contexts for TLS with its peers: it proves its own id and checks theirs."""

    cluster_name: str
    server: ssl.SSLContext
    client: ssl.SSLContext
    revoked: Revoked = Revoked()

    @classmethod
    def load(
        cls, cluster_name: str, ca: Path, certificate: Path, key: Path, revoked: Path | None = None
    ) -> PeerTls:
        """Read the files. ConfigError names the file and what is wrong with it."""
        contexts = []
        for side in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
            context = ssl.SSLContext(side)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.check_hostname = False  # The URI is checked instead, when Hello arrives.
            context.verify_mode = ssl.CERT_REQUIRED
            _load_ca(context, "tls_ca", ca)
            _load_pair(context, "tls_cert", certificate, "tls_key", key)
            contexts.append(context)
        contexts[0].num_tickets = 0  # No resumption: each connection presents its certificate.
        server, client = contexts
        return cls(cluster_name, server, client, Revoked.load(revoked) if revoked else Revoked())

    def check_own(self, node_id: int, path: Path) -> float:
        """Return when our own certificate, at `path`, expires, in seconds since 1970 UTC.

        ConfigError unless peers accept it as that of `node_id`.
        """
        certificate = self._shake_hands_with_self(path)
        uri = certified_uri(certificate)
        if uri != node_uri(self.cluster_name, node_id):
            raise ConfigError(
                f"tls_cert {path} is for {uri or 'no node'},"
                f" this node is {node_uri(self.cluster_name, node_id)}",
                hint="`raftha cert node` makes a certificate for a node",
            )
        expires_at = float(ssl.cert_time_to_seconds(certificate["notAfter"]))
        left_s = expires_at - time.time()
        level = logging.WARNING if left_s < EXPIRY_WARNING_S else logging.INFO
        log.log(level, "tls node=%d certificate=%s days_left=%d", node_id, path, left_s // 86_400)
        return expires_at

    def _shake_hands_with_self(self, path: Path) -> dict[str, Any]:
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = self.client.wrap_bio(to_client, to_server)
        server = self.server.wrap_bio(to_server, to_client, server_side=True)
        try:
            # ClientHello; the server's flight; the client's certificate; the server's check of it.
            for side in (client, server, client, server):
                with contextlib.suppress(ssl.SSLWantReadError):
                    side.do_handshake()
        except ssl.SSLError as error:
            raise ConfigError(
                f"tls_cert {path} would be refused by the other nodes: {describe(error)}",
                hint="it must be valid now and signed by the key of tls_ca",
            ) from error
        certificate = server.getpeercert()
        assert certificate, "a verified handshake provides a certificate"
        return dict(certificate)

    def refusal(self, certificate: Mapping[str, Any] | None, node_id: int) -> str:
        """Why a peer with this certificate is not `node_id` of our cluster; "" if it is."""
        if self.revoked.names(certificate, node_id):
            return "its certificate is revoked"
        uri, wanted = certified_uri(certificate), node_uri(self.cluster_name, node_id)
        return "" if uri == wanted else f"its certificate is for {uri or 'no node'}, not {wanted}"


def listener_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """The context of a listener that presents a certificate and requests none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # Clients in other languages lack 1.3.
    _load_pair(context, "listen_tls_cert", certificate, "listen_tls_key", key)
    return context


def client_context(ca: str | Path) -> ssl.SSLContext:
    """A client's context: the server's certificate must be of `ca` and name the dialled host."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load_ca(context, "tls_ca", Path(ca))
    return context


def _load_ca(context: ssl.SSLContext, name: str, path: Path) -> None:
    read_file(name, path)
    try:
        context.load_verify_locations(cafile=path)
    except ssl.SSLError as error:
        raise ConfigError(f"{name} {path} holds no certificate in PEM form") from error
    except OSError as error:  # It was replaced, or removed, since it was read.
        raise _unreadable(name, path, error) from error


def _load_pair(
    context: ssl.SSLContext, certificate_name: str, certificate: Path, key_name: str, key: Path
) -> None:
    text = read_file(certificate_name, certificate)
    read_secret(key_name, key)
    if b"-----BEGIN CERTIFICATE-----" not in text:
        raise ConfigError(f"{certificate_name} {certificate} holds no certificate in PEM form")
    try:
        # For an encrypted key OpenSSL would prompt on the terminal, and a service would hang.
        context.load_cert_chain(certificate, key, password=b"")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            problem = f"does not belong to {certificate_name} {certificate}"
            raise ConfigError(f"{key_name} {key} {problem}") from error
        raise ConfigError(
            f"{certificate_name} {certificate} or {key_name} {key} can't be read as PEM:"
            f" {describe(error)}",
            hint="the key must be unencrypted",
        ) from error
    except OSError as error:  # One was replaced, or removed, since it was read.
        raise _unreadable(certificate_name, certificate, error) from error


def read_file(name: str, path: Path) -> bytes:
    """The contents of the file that setting `name` names. ConfigError if it can't be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(name, path, error) from error


def read_secret(name: str, path: Path) -> bytes:
    """As `read_file`. ConfigError also if every user of the machine can read or change it."""
    content = read_file(name, path)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise _unreadable(name, path, error) from error
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise ConfigError(f"{name} {path} is open to every user", hint=f"chmod 600 {path}")
    return content


def _unreadable(name: str, path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"can't read {name} {path}: {error.strerror}")


def check_token(name: str, token: str) -> None:
    """ConfigError unless `token` is long enough that it can't be guessed."""
    if not TOKEN_CHARACTERS_MIN <= len(token) <= TOKEN_CHARACTERS_MAX:
        raise ConfigError(
            f"{name} must have {TOKEN_CHARACTERS_MIN} to {TOKEN_CHARACTERS_MAX} characters",
            hint="`openssl rand -hex 32` makes a good one",
        )


def describe(error: Exception) -> str:
    """Why a handshake failed, in one line, without OpenSSL's file names."""
    if isinstance(error, ConnectionResetError):
        return "the other side closed the connection; if this continues, its log has the reason"
    if isinstance(error, ssl.SSLCertVerificationError):
        is_anothers = error.verify_code in _UNKNOWN_ISSUER
        return error.verify_message + (", so it isn't of this CA" if is_anothers else "")
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return str(error) or type(error).__name__


# ------------------------------------------------------------------ the listener


class TlsServer:
    """Listens, does the TLS handshakes, and gives each connection that succeeds to a protocol."""

    def __init__(
        self,
        context: ssl.SSLContext,
        make_protocol: Callable[[], asyncio.Protocol],
        *,
        refused: Callable[[str, str], None],
        handshake_s: float,
        room: Callable[[], int] | None = None,
        accepted: Callable[[asyncio.Protocol, tuple[Any, ...], asyncio.Task[None]], None]
        | None = None,
    ) -> None:
        """A protocol is made when its connection is accepted, before the handshake.

        `room()` is how many more connections there may be, without counting those in their
        handshake. Connections beyond it are closed at once. `refused(remote, reason)` is called for
        every failure. `accepted(protocol, remote, handshake)` is called for every connection; it
        may cancel the handshake, which closes the connection.
        """
        self._context = context
        self._make_protocol = make_protocol
        self._room = room
        self._refused = refused
        self._accepted = accepted
        self._handshake_s = handshake_s
        self._sockets: list[socket.socket] = []
        self._is_closed = False
        self._handshakes: set[asyncio.Task[None]] = set()

    async def bind(self, host: str, port: int) -> None:
        """Bind the address, without accepting yet. OSError if that fails."""
        self._sockets = await bind(host, port)

    async def start_serving(self) -> None:
        """Accept from now on."""
        for listener in self._sockets:
            listener.listen(1024)
            self._watch(listener)

    def renew(self, context: ssl.SSLContext) -> None:
        """Use this context for handshakes from now on."""
        self._context = context

    def close(self) -> None:
        """Accept no more, and end handshakes under way. Connections continue."""
        self._is_closed = True
        for task in self._handshakes:
            task.cancel()
        for listener in self._sockets:
            if listener.fileno() >= 0:
                asyncio.get_running_loop().remove_reader(listener)
                listener.close()

    async def wait_closed(self) -> None:
        """After `close`, wait until no task is left."""
        await asyncio.gather(*self._handshakes, return_exceptions=True)

    def _watch(self, listener: socket.socket) -> None:
        if not self._is_closed:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        """Accept waiting connections. Not in a task: one cancelled here would lose a socket."""
        loop = asyncio.get_running_loop()
        for _ in range(ACCEPTED_AT_ONCE_MAX):
            try:
                connection, address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                log.warning("accept failed: %s", error)
                loop.remove_reader(listener)
                loop.call_later(ACCEPT_PAUSE_S, self._watch, listener)
                return
            connection.setblocking(False)
            if self._room is not None and len(self._handshakes) >= self._room():
                connection.close()
                self._refused(str(address), "too many connections at once")
                continue
            protocol = self._make_protocol()
            task = loop.create_task(self._shake_hands(protocol, connection, str(address)))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)
            # A task that is cancelled before it begins closes nothing.
            task.add_done_callback(partial(_close_if_cancelled, connection))
            if self._accepted is not None:
                self._accepted(protocol, address, task)

    async def _shake_hands(
        self, protocol: asyncio.Protocol, connection: socket.socket, remote: str
    ) -> None:
        loop = asyncio.get_running_loop()
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.connect_accepted_socket(
                lambda: protocol,
                connection,
                ssl=self._context,
                ssl_handshake_timeout=self._handshake_s,
            )
        except OSError as error:
            connection.close()
            self._refused(remote, f"the TLS handshake failed: {describe(error)}")


def _close_if_cancelled(connection: socket.socket, task: asyncio.Task[None]) -> None:
    if task.cancelled():
        connection.close()


def handshake_failure(error: Exception) -> str:
    """Why a dialler's TLS handshake failed; "" if it didn't get as far as a handshake."""
    # Other errors (refused, unreachable, timed out) come from connecting: the peer isn't there.
    if isinstance(error, ssl.SSLError | ConnectionResetError | ConnectionAbortedError):
        return f"the TLS handshake failed: {describe(error)}"
    return ""
