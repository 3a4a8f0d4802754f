"""TLS and tokens: who may speak as which node, and which clients are let in.

Theory of operation. Between peers both sides show a certificate, TLS 1.3 only, and both verify it
against the cluster's own CA. A certificate says which node it is for by a URI,
`raftha://<cluster name>/node/<id>`, and the transport compares that with what the peer's Hello
claims. So names and addresses of hosts don't count: check_hostname is off, the URI is what is
checked. `raftha.net.certificates` makes the certificates; this module only reads them, through the
ssl module, so that a node needs nothing else to run.

A node checks its own files before it opens anything, by shaking hands with itself in memory: what
its peers would refuse (expired, another CA's, another node's) it can't miss, and the error is an
operator's to read, not a riddle in some other node's log.

`TlsServer` is a listener whose handshakes are ours to count, to time and to log: that of
`loop.create_server` keeps all three to itself. Used from one event loop only.
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
"""After an accept that failed, for want of file descriptors as a rule."""
EXPIRY_WARNING_S = 30 * 86_400
_UNKNOWN_ISSUER = range(18, 22)
"""OpenSSL's codes for a chain that ends elsewhere than at our CA."""
TOKEN_CHARACTERS_MIN, TOKEN_CHARACTERS_MAX = 16, 1024

log = logging.getLogger(__name__)


def node_uri(cluster_name: str, node_id: int) -> str:
    """What a certificate says of the node it is for."""
    return f"{cluster_uri(cluster_name)}/node/{node_id}"


def cluster_uri(cluster_name: str) -> str:
    """What a CA's certificate says of the cluster it is for."""
    return f"raftha://{quote(cluster_name, safe='')}"


def certified_uri(certificate: Mapping[str, Any] | None) -> str:
    """The one raftha URI of a verified certificate, as `getpeercert` returns it; "" if none."""
    names = certificate.get("subjectAltName", ()) if certificate else ()
    uris = [name for kind, name in names if kind == "URI" and name.startswith("raftha://")]
    return uris[0] if len(uris) == 1 else ""


# ------------------------------------------------------------------ contexts


@dataclass(frozen=True, slots=True)
class PeerTls:
    """How this node proves to its peers who it is, and checks who they are."""

    cluster_name: str
    server: ssl.SSLContext
    client: ssl.SSLContext

    @classmethod
    def load(cls, cluster_name: str, ca: Path, certificate: Path, key: Path) -> PeerTls:
        """Read the files; ConfigError says what is wrong with which."""
        contexts = []
        for side in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
            context = ssl.SSLContext(side)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.check_hostname = False  # The URI is checked instead, once Hello has come.
            context.verify_mode = ssl.CERT_REQUIRED
            _load_ca(context, "tls_ca", ca)
            _load_pair(context, "tls_cert", certificate, "tls_key", key)
            contexts.append(context)
        contexts[0].num_tickets = 0  # Nobody resumes: each connection shows its certificate.
        return cls(cluster_name, *contexts)

    def check_own(self, node_id: int, path: Path) -> None:
        """ConfigError unless peers would accept our own certificate, at `path`, as `node_id`'s."""
        certificate = self._shake_hands_with_self(path)
        uri = certified_uri(certificate)
        if uri != node_uri(self.cluster_name, node_id):
            raise ConfigError(
                f"tls_cert {path} is for {uri or 'no node'},"
                f" this node is {node_uri(self.cluster_name, node_id)}",
                hint="`raftha cert node` makes a certificate for a node",
            )
        left_s = ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time()
        level = logging.WARNING if left_s < EXPIRY_WARNING_S else logging.INFO
        log.log(level, "tls node=%d certificate=%s days_left=%d", node_id, path, left_s // 86_400)

    def _shake_hands_with_self(self, path: Path) -> dict[str, Any]:
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = self.client.wrap_bio(to_client, to_server)
        server = self.server.wrap_bio(to_server, to_client, server_side=True)
        try:
            # Client hello; server's flight; client's certificate; the server's check of it.
            for side in (client, server, client, server):
                with contextlib.suppress(ssl.SSLWantReadError):
                    side.do_handshake()
        except ssl.SSLError as error:
            raise ConfigError(
                f"tls_cert {path} would be refused by the other nodes: {describe(error)}",
                hint="it must be valid now, and signed by the key of tls_ca",
            ) from error
        certificate = server.getpeercert()
        assert certificate, "a verified handshake leaves a certificate"
        return dict(certificate)

    def refusal(self, certificate: Mapping[str, Any] | None, node_id: int) -> str:
        """Why a peer with this certificate isn't `node_id` of our cluster; "" if it is."""
        uri, wanted = certified_uri(certificate), node_uri(self.cluster_name, node_id)
        return "" if uri == wanted else f"its certificate is for {uri or 'no node'}, not {wanted}"


def listener_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """For a listener that shows a certificate and asks for none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # Clients in other languages lack 1.3.
    _load_pair(context, "listen_tls_cert", certificate, "listen_tls_key", key)
    return context


def client_context(ca: str | Path) -> ssl.SSLContext:
    """For clients: the server's certificate must be of `ca` and name the host that is dialled."""
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


def _load_pair(
    context: ssl.SSLContext, certificate_name: str, certificate: Path, key_name: str, key: Path
) -> None:
    text = read_file(certificate_name, certificate)
    read_secret(key_name, key)
    if b"-----BEGIN CERTIFICATE-----" not in text:
        raise ConfigError(f"{certificate_name} {certificate} holds no certificate in PEM form")
    try:
        # An encrypted key would have OpenSSL ask the terminal, and a service hang for ever.
        context.load_cert_chain(certificate, key, password=b"")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            problem = f"does not belong to {certificate_name} {certificate}"
            raise ConfigError(f"{key_name} {key} {problem}") from error
        raise ConfigError(
            f"{certificate_name} {certificate} or {key_name} {key} can't be read as PEM:"
            f" {describe(error)}",
            hint="the key must be there unencrypted",
        ) from error


def read_file(name: str, path: Path) -> bytes:
    """The file that setting `name` names; ConfigError if it can't be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"can't read {name} {path}: {error.strerror}") from error


def read_secret(name: str, path: Path) -> bytes:
    """As `read_file`; ConfigError too if every user of the machine can read or change it."""
    content = read_file(name, path)
    if path.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH):
        raise ConfigError(f"{name} {path} is open to every user", hint=f"chmod 600 {path}")
    return content


def read_token(name: str, path: Path) -> str:
    """A token from a file that only some users may read; ConfigError if it is none."""
    try:
        token = read_secret(name, path).decode().strip()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} {path} is not text") from error
    check_token(f"{name} {path}", token)
    return token


def check_token(name: str, token: str) -> None:
    """ConfigError unless `token` is long enough that it can't be found by trying."""
    if not TOKEN_CHARACTERS_MIN <= len(token) <= TOKEN_CHARACTERS_MAX:
        raise ConfigError(
            f"{name} must have {TOKEN_CHARACTERS_MIN} to {TOKEN_CHARACTERS_MAX} characters",
            hint="`openssl rand -hex 32` makes a good one",
        )


def describe(error: Exception) -> str:
    """What a failed handshake was about, in one line without OpenSSL's file names."""
    if isinstance(error, ConnectionResetError):
        return "the other side hung up; if it goes on, its log says why"
    if isinstance(error, ssl.SSLCertVerificationError):
        is_anothers = error.verify_code in _UNKNOWN_ISSUER
        return error.verify_message + (", so it isn't of this CA" if is_anothers else "")
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return str(error) or type(error).__name__


# ------------------------------------------------------------------ the listener


class TlsServer:
    """Listens, shakes hands, and gives each connection that succeeds to a protocol."""

    def __init__(
        self,
        context: ssl.SSLContext,
        make_protocol: Callable[[], asyncio.Protocol],
        *,
        room: Callable[[], int],
        refused: Callable[[str, str], None],
        handshake_s: float,
    ) -> None:
        """A protocol is made when its connection is accepted, before the handshake.

        `room()` is how many more connections there may be, those in their handshake not counted;
        beyond it they are closed at once. `refused(remote, reason)` is told of every failure.
        """
        self._context = context
        self._make_protocol = make_protocol
        self._room = room
        self._refused = refused
        self._handshake_s = handshake_s
        self._sockets: list[socket.socket] = []
        self._is_closed = False
        self._handshakes: set[asyncio.Task[None]] = set()

    async def bind(self, host: str, port: int) -> None:
        """Take the address, without accepting yet; OSError if it can't be had."""
        self._sockets = await bind(host, port)

    async def start_serving(self) -> None:
        """Accept from now on."""
        for listener in self._sockets:
            listener.listen(1024)
            self._watch(listener)

    def renew(self, context: ssl.SSLContext) -> None:
        """Shake hands by this context from now on."""
        self._context = context

    def close(self) -> None:
        """Accept no more, and end handshakes under way; connections go on."""
        self._is_closed = True
        for task in self._handshakes:
            task.cancel()
        for listener in self._sockets:
            if listener.fileno() >= 0:
                asyncio.get_running_loop().remove_reader(listener)
                listener.close()

    async def wait_closed(self) -> None:
        """Wait, after `close`, until no task is left."""
        await asyncio.gather(*self._handshakes, return_exceptions=True)

    def _watch(self, listener: socket.socket) -> None:
        if not self._is_closed:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        """Accept who waits; not in a task, which would lose a socket got as it is cancelled."""
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
            if len(self._handshakes) >= self._room():
                connection.close()
                self._refused(str(address), "too many connections at once")
                continue
            task = loop.create_task(self._shake_hands(connection, str(address)))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)
            # One that is cancelled before it begins closes nothing.
            task.add_done_callback(partial(_close_if_cancelled, connection))

    async def _shake_hands(self, connection: socket.socket, remote: str) -> None:
        loop = asyncio.get_running_loop()
        protocol = self._make_protocol()
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
    """Why a dialler's TLS handshake failed; "" if it couldn't even connect."""
    # Connecting fails in other ways (refused, unreachable, timed out): the peer is just not there.
    if isinstance(error, ssl.SSLError | ConnectionResetError | ConnectionAbortedError):
        return f"the TLS handshake failed: {describe(error)}"
    return ""
