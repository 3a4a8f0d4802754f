"""The server's process: one node of a cluster, and a listener for clients.

Theory of operation. `serve` runs until SIGTERM or SIGINT: it takes the listening socket first, so
that a port in use is found before the node joins its cluster, then starts the node, then accepts.
It stops in the opposite order: no new connections, answers to what is under way, then the node.

With TLS, connections in their handshake count towards `connections_max` like clients, and one over
the limit is closed without a word: to tell it why would take a handshake too.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import signal
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import uvloop

from raftha.aio import HaManager
from raftha.config import (
    HaConfig,
    is_loopback,
    parse_address,
    read_toml,
)
from raftha.errors import ConfigError
from raftha.resp import error_line
from raftha.server.connection import AUTH_TIMEOUT_S, Connection
from raftha.server.machine import RedisMachine
from raftha.server.tasks import Service
from raftha.settings import check_all_or_none, shown
from raftha.tls import TlsServer, check_token, listener_context, read_token
from raftha.types import ReplicationMode

if TYPE_CHECKING:
    from raftha.metrics import Endpoint

logger = logging.getLogger(__name__)

LOG_FORMATS = ("text", "json")
STOP_S = 5.0
"""How long a stopping server waits for answers to what is under way."""
TURN_AWAY_S = 0.2
"""How long a client over the limit has to read why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """How one server runs: its node, and the listener for clients."""

    ha: HaConfig
    """The node. Its `client_address` is `listen`."""

    listen: str
    """"host:port" of the listener. Off loopback only with TLS and a token, or the node's
    `insecure`."""

    connections_max: int = 1024
    """Clients at once, from 1 to 100,000; more are turned away with an error."""

    metrics_listen: str = ""
    """"host:port" where Prometheus finds this node's metrics at /metrics; "" for nowhere. They tell
    nothing of keys or values. With `listen_tls_cert` it is https. Off loopback only with that, or
    the node's `insecure`."""

    log_format: str = "text"
    """How log lines are written: text, key=value, or json, one object a line."""

    auth_token: str = field(default="", repr=False)
    """What clients must send with AUTH before anything else, 16 to 1024 characters."""

    auth_token_file: str | Path = ""
    """A file with the token, which not every user may read, instead of `auth_token`."""

    listen_tls_cert: str | Path = ""
    """With `listen_tls_key`, both or none, clients speak TLS and are shown this certificate, which
    must name the hosts that they dial; one by `raftha cert node --host` may be the node's too."""

    listen_tls_key: str | Path = ""
    """The private key of `listen_tls_cert`, unencrypted, in a file that not every user may read."""

    def __post_init__(self) -> None:
        if not isinstance(self.listen, str):
            raise ConfigError(f"listen must be text, got {shown(self.listen)}")
        self._check_access()
        host, _ = parse_address("listen", self.listen)
        is_guarded = self.listen_tls_cert and (self.auth_token or self.auth_token_file)
        if not self.ha.insecure and not is_guarded and not is_loopback(host):
            raise ConfigError(
                f"listen = {self.listen!r} is not on loopback, where clients need TLS and a token",
                hint="set listen_tls_cert, listen_tls_key and auth_token_file, or insecure = true"
                " if everyone who can reach it may read and write all data",
            )
        self._check_metrics()
        if self.log_format not in LOG_FORMATS:
            raise ConfigError(
                f"log_format must be one of {', '.join(LOG_FORMATS)}, got {shown(self.log_format)}"
            )
        if self.ha.replication.mode is ReplicationMode.ASYNC_FIRE_FORGET:
            raise ConfigError(
                "a server can't use async_fire_forget: its replies say what came of a command",
                hint="async_with_ack, or sync",
            )
        if self.listen == self.ha.own_address:
            raise ConfigError(f"listen = {self.listen!r} is where the node listens for its peers")
        limit = self.connections_max
        if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= 100_000:
            raise ConfigError(f"connections_max must be from 1 to 100000, got {shown(limit)}")

    def _check_metrics(self) -> None:
        if not isinstance(self.metrics_listen, str):
            raise ConfigError(f"metrics_listen must be text, got {shown(self.metrics_listen)}")
        if not self.metrics_listen:
            return
        host, _ = parse_address("metrics_listen", self.metrics_listen)
        if not (is_loopback(host) or self.listen_tls_cert or self.ha.insecure):
            raise ConfigError(
                f"metrics_listen = {self.metrics_listen!r} is not on loopback, and not encrypted",
                hint="set listen_tls_cert and listen_tls_key, or insecure = true",
            )

    def _check_access(self) -> None:
        for name in ("auth_token", "auth_token_file", "listen_tls_cert", "listen_tls_key"):
            kinds = str if name == "auth_token" else (str, Path)
            if not isinstance(getattr(self, name), kinds):
                raise ConfigError(f"{name} must be text")  # Its value may be a secret.
        check_all_or_none(self, "listen_tls_cert", "listen_tls_key")
        if self.auth_token and self.auth_token_file:
            raise ConfigError("auth_token and auth_token_file exclude each other")
        if self.auth_token:
            check_token("auth_token", self.auth_token)

    @property
    def token(self) -> str:
        """The token, from wherever it comes, "" if clients need none; ConfigError if unreadable."""
        if self.auth_token_file:
            return read_token("auth_token_file", Path(self.auth_token_file))
        return self.auth_token

    @classmethod
    def from_mapping(cls, table: Mapping[str, Any]) -> ServerConfig:
        """Make a config from a parsed TOML table: HaConfig's settings and ours side by side."""
        own = {field.name for field in dataclasses.fields(cls)} - {"ha"}
        inner = {field.name for field in dataclasses.fields(HaConfig)}
        known = own | inner - {"client_address", "on_event"}
        unknown = sorted(set(table) - known)
        if unknown:
            raise ConfigError(
                f"unknown setting {', '.join(unknown)}",
                hint=f"known are {', '.join(sorted(known))}",
            )
        if "listen" not in table:
            raise ConfigError("missing setting listen", hint='as in listen = "127.0.0.1:6379"')
        node = {name: value for name, value in table.items() if name not in own}
        if not isinstance(table["listen"], str):
            raise ConfigError(f"listen must be text, got {shown(table['listen'])}")
        parse_address("listen", table["listen"])
        return cls(
            ha=HaConfig.from_mapping({**node, "client_address": table["listen"]}),
            **{name: value for name, value in table.items() if name in own},
        )

    @classmethod
    def from_toml(cls, path: str | Path) -> ServerConfig:
        """Read a TOML file; relative paths in it are relative to the file's folder."""
        return cls.from_mapping(read_toml(path))


class Server:
    """A node and its listener, on the running event loop. Start it once, stop it once."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.ha = HaManager(config.ha, state_machine=RedisMachine())
        self._service = Service(
            self.ha, value_bytes_max=config.ha.value_bytes_max, token=config.token
        )
        self._tls: ssl.SSLContext | None = None
        if config.listen_tls_cert:
            self._tls = listener_context(Path(config.listen_tls_cert), Path(config.listen_tls_key))
        self._listener: asyncio.Server | TlsServer | None = None
        self._metrics: Endpoint | None = None
        # Loaded here: where that extra is missing, the node must not have joined its cluster.
        self._endpoint = _load_endpoint() if config.metrics_listen else None

    async def start(self) -> None:
        """Start the node, then accept clients; ConfigError if the address can't be had."""
        try:
            listener = await self._bind()
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(f"can't listen on {self.config.listen}: {reason}") from error
        self._service.journal.start()
        try:
            await self.ha.start()
        except BaseException:
            listener.close()
            raise
        self._listener = listener
        try:
            self._show_metrics()
        except BaseException:
            await self.stop()
            raise
        await listener.start_serving()
        logger.info("serving node=%d listen=%s", self.config.ha.node_id, self.config.listen)

    def _show_metrics(self) -> None:
        config = self.config
        if self._endpoint is None:
            return
        host, port = parse_address("metrics_listen", config.metrics_listen)
        cert, key = str(config.listen_tls_cert), str(config.listen_tls_key)
        try:
            self._metrics = self._endpoint(self.ha, host, port, cert, key)
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(f"can't listen on {config.metrics_listen}: {reason}") from error

    async def _bind(self) -> asyncio.Server | TlsServer:
        host, port = parse_address("listen", self.config.listen)
        if self._tls is None:
            return await asyncio.get_running_loop().create_server(
                self._make_connection, host, port, start_serving=False, backlog=1024
            )
        server = TlsServer(
            self._tls,
            lambda: Connection(self._service),
            room=lambda: self.config.connections_max - len(self._service.clients),
            refused=self._service.refusals.add,
            handshake_s=AUTH_TIMEOUT_S,
        )
        await server.bind(host, port)
        return server

    async def stop(self) -> None:
        """Answer what is under way, close all connections, stop the node."""
        if self._listener is not None:
            self._listener.close()
        self._service.journal.close()
        clients: set[Connection] = self._service.clients
        for client in list(clients):
            client.end()
        if clients:
            await asyncio.wait([client.closed for client in clients], timeout=STOP_S)
        for client in list(clients):
            client.abort()
        if isinstance(self._listener, TlsServer):
            await self._listener.wait_closed()
        if self._metrics is not None:
            await asyncio.to_thread(self._metrics.close)
        await self.ha.stop()
        logger.info("stopped node=%d", self.config.ha.node_id)

    def _make_connection(self) -> asyncio.Protocol:
        if len(self._service.clients) >= self.config.connections_max:
            return _TurnedAway()
        return Connection(self._service)


def _load_endpoint() -> type[Endpoint]:
    from raftha.metrics import Endpoint  # noqa: PLC0415 - needs what the extra `metrics` brings

    return Endpoint


class _TurnedAway(asyncio.Protocol):
    """A connection over the limit: told so, and closed."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        writer = cast(asyncio.Transport, transport)  # uvloop's are not registered.
        writer.write(error_line("OVERLOADED max number of clients reached"))
        # Closed at once, with the client's first request unread, it would be reset, error and all.
        writer.write_eof()
        asyncio.get_running_loop().call_later(TURN_AWAY_S, writer.abort)


async def serve(config: ServerConfig) -> None:
    """Run a server until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    server = Server(config)
    await server.start()
    # What there is now stays until the end. To look through it took the garbage collector 12 to
    # 31 ms every few seconds under load, and nobody got an answer meanwhile.
    gc.freeze()
    try:
        await stopping.wait()
    finally:
        await server.stop()


def run(config: ServerConfig) -> None:
    """Run a server on uvloop, as the process's main thread, until SIGTERM or SIGINT."""
    uvloop.run(serve(config))
