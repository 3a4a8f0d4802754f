"""The server's process: one node of a cluster, and a listener for clients.

Theory of operation. `serve` runs until SIGTERM or SIGINT. It binds the listening socket first, so
that a port in use is found before the node joins its cluster. Then it starts the node, then it
accepts clients. It stops in the opposite order: it accepts no more, answers the requests that are
under way, and stops the node.

Connections beyond `connections_max` are refused, or push out one that hasn't authenticated
(`raftha.server.listener`).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import uvloop

from raftha.aio import HaManager
from raftha.client.resp import error_line
from raftha.config import HaConfig, is_loopback, parse_address, tables
from raftha.config.checks import (
    Address,
    Choice,
    Hint,
    Length,
    Range,
    Secret,
    check,
    check_all_or_none,
)
from raftha.errors import ConfigError, RafthaError, Stopped
from raftha.net.certificate_renewal import CHECK_INTERVAL_S
from raftha.net.tls import (
    TOKEN_CHARACTERS_MAX,
    TOKEN_CHARACTERS_MIN,
    listener_context,
)
from raftha.server.access import (
    AUTH_TIMEOUT_S,
    DEFAULT,
    Role,
    TokenFile,
    Tokens,
    make_token,
    read_admin_token,
)
from raftha.server.connection import Connection
from raftha.server.descriptors import fit_connections
from raftha.server.http import HttpServer
from raftha.server.listener import Listener
from raftha.server.machine import RedisMachine
from raftha.server.requests import RequestBound
from raftha.server.tasks import Service
from raftha.types import ReplicationMode

if TYPE_CHECKING:
    from raftha.metrics import Exposition

logger = logging.getLogger(__name__)

FAILED_S = 10.0
"""How long a server whose node has failed answers what the node's status is, before it ends."""
FAILED_POLL_S = 1.0
STOP_S = 5.0
"""How long a stopping server waits for the replies to requests that are under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """How `raftha serve` runs: its node, and the listener for clients.

    In a TOML file these settings and those of `HaConfig` stand side by side.
    """

    ha: HaConfig
    """The node. In a TOML file its settings stand beside these, and `client_address` is left out:
    it is `listen`."""

    listen: Annotated[str, Address()]
    """"host:port" of the listener for clients. On other hosts than loopback it needs TLS and a
    token, or the node's `insecure`."""

    connections_max: Annotated[int, Range(1, 100_000, unit="connections")] = 1024
    """Clients at once. The server answers one more with an error and closes it. The process needs
    as many file descriptors, and some more (`ulimit -n`)."""

    metrics_listen: Annotated[str, Address(or_empty=True)] = ""
    """"host:port" where Prometheus finds this node's metrics at /metrics. Empty for none. Metrics
    contain no keys or values. With `listen_tls_cert` it speaks HTTPS. On other hosts than loopback
    it needs that, or the node's `insecure`."""

    log_format: Annotated[str, Choice("text", "json")] = "text"
    """How log lines are written: `text` for key=value, `json` for one object a line."""

    auth_token: Annotated[
        str,
        Length(TOKEN_CHARACTERS_MIN, TOKEN_CHARACTERS_MAX, unit="characters", or_empty=True),
        Secret(),
        Hint("`openssl rand -hex 32` makes a good one"),
    ] = field(default="", repr=False)
    """The token that a client must send with AUTH before any other command. Empty for none. Prefer
    `auth_token_file`, which keeps the token out of this file."""

    auth_token_file: str | Path = ""
    """A file with tokens, instead of `auth_token`: one a line, as `name role token`, with the role
    `data` or `admin`; or just one token, which has all rights. A file that is replaced while the
    server runs is loaded within a minute, and clients whose token is gone are disconnected. Other
    users must not be able to read it."""

    listen_tls_cert: str | Path = ""
    """The certificate that clients are shown, a PEM file. With `listen_tls_key`, clients speak TLS.
    Set both or none. It must name the hosts that clients connect to; the node's own works if it was
    made with `raftha cert node --host`. A new one is loaded at the next start."""

    listen_tls_key: str | Path = ""
    """The private key of `listen_tls_cert`, unencrypted, a PEM file that other users must not be
    able to read."""

    def __post_init__(self) -> None:
        check(self)
        check_all_or_none(self, "listen_tls_cert", "listen_tls_key")
        if self.auth_token and self.auth_token_file:
            raise ConfigError(
                "auth_token and auth_token_file exclude each other", hint="keep auth_token_file"
            )
        _check_listen(self)
        _check_metrics_listen(self)
        if self.ha.replication.mode is ReplicationMode.ASYNC_FIRE_FORGET:
            raise ConfigError(
                "a server can't use async_fire_forget: its replies say what came of a command",
                hint="async_with_ack, or sync",
            )

    @property
    def token(self) -> str:
        """A token with all rights, "" if clients need none; ConfigError if unreadable."""
        if self.auth_token_file:
            return read_admin_token("auth_token_file", Path(self.auth_token_file))
        return self.auth_token

    @classmethod
    def from_mapping(cls, table: Mapping[str, Any]) -> ServerConfig:
        """Make a config from a parsed TOML table: HaConfig's settings and ours side by side."""
        tables.refuse_unknown(table, cls, HaConfig, hidden=("ha", "client_address"))
        if "listen" not in table:
            raise ConfigError("missing setting listen", hint='as in listen = "127.0.0.1:6379"')
        own, node = tables.divide(table, cls)
        tables.check_one(cls, "listen", table["listen"])
        ha = HaConfig.from_mapping({**node, "client_address": table["listen"]})
        return tables.build(cls, {**own, "ha": ha})

    @classmethod
    def from_toml(cls, path: str | Path) -> ServerConfig:
        """Read a TOML file; relative paths in it are relative to the file's folder."""
        return cls.from_mapping(tables.load(path, HaConfig, cls))


def _check_listen(config: ServerConfig) -> None:
    host, _ = parse_address("listen", config.listen)
    is_guarded = config.listen_tls_cert and (config.auth_token or config.auth_token_file)
    if not config.ha.insecure and not is_guarded and not is_loopback(host):
        raise ConfigError(
            f"listen = {config.listen!r} is not on loopback, where clients need TLS and a token",
            hint="set listen_tls_cert, listen_tls_key and auth_token_file, or insecure = true"
            " if every host that can reach it may read and write all data",
        )
    if config.listen == config.ha.own_address:
        raise ConfigError(
            f"listen = {config.listen!r} is where the node listens for its peers",
            hint="give clients another port",
        )


def _check_metrics_listen(config: ServerConfig) -> None:
    if not config.metrics_listen:
        return
    host, _ = parse_address("metrics_listen", config.metrics_listen)
    if not (is_loopback(host) or config.listen_tls_cert or config.ha.insecure):
        raise ConfigError(
            f"metrics_listen = {config.metrics_listen!r} is not on loopback, and not encrypted",
            hint="set listen_tls_cert and listen_tls_key, or insecure = true",
        )


class Server:
    """A node and its listener, on the running event loop. Start it once, stop it once."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.ha = HaManager(config.ha, state_machine=RedisMachine())
        self._token_file: TokenFile | None = None
        tokens = Tokens()
        if config.auth_token_file:
            self._token_file = TokenFile("auth_token_file", Path(config.auth_token_file))
            tokens = self._token_file.load()
        elif config.auth_token:
            tokens = Tokens([make_token(DEFAULT, Role.ADMIN, config.auth_token)])
        self._service = Service(self.ha, value_bytes_max=config.ha.value_bytes_max, tokens=tokens)
        self._tasks: list[asyncio.Task[None]] = []
        self._tls: ssl.SSLContext | None = None
        if config.listen_tls_cert:
            self._tls = listener_context(Path(config.listen_tls_cert), Path(config.listen_tls_key))
        self._listener: Listener | None = None
        self._http: HttpServer | None = None
        if config.metrics_listen:
            # Imported here: without that extra, the node must not join its cluster.
            self._http = HttpServer({"/metrics": _exposition(self.ha).render}, self._tls)

    async def start(self) -> None:
        """Start the node, then accept clients; ConfigError if an address can't be bound."""
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
            await self._show_metrics()
        except BaseException:
            await self.stop()
            raise
        listener.start_serving()
        self._tasks.append(asyncio.create_task(RequestBound(self._service.clients).watch()))
        if self._token_file is not None:
            self._tasks.append(asyncio.create_task(self._renew_tokens(self._token_file)))
        logger.info("serving node=%d listen=%s", self.config.ha.node_id, self.config.listen)

    async def _show_metrics(self) -> None:
        if self._http is None:
            return
        address = self.config.metrics_listen
        try:
            await self._http.start(*parse_address("metrics_listen", address))
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(f"can't listen on {address}: {reason}") from error

    async def _bind(self) -> Listener:
        host, port = parse_address("listen", self.config.listen)
        listener = Listener(
            lambda listener: Connection(self._service, listener.decide),
            connections_max=self.config.connections_max,
            decides=self._tls is not None or self._service.needs_token,
            refused=self._service.refusals.add,
            refusal=error_line("OVERLOADED max number of clients reached"),
            tls=self._tls,
            handshake_s=AUTH_TIMEOUT_S,
        )
        await listener.bind(host, port)
        return listener

    async def _renew_tokens(self, file: TokenFile) -> None:
        """Load the token file again when it changes."""
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            try:
                tokens = file.changed()
            except ConfigError as error:
                logger.warning("the changed tokens are not used: %s", error)
            else:
                if tokens is not None:
                    self._service.renew(tokens)
                    logger.info("tokens loaded again from=%s", self.config.auth_token_file)

    async def stop(self) -> None:
        """Answer the requests under way, close all connections, stop the node."""
        for task in self._tasks:
            task.cancel()
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
        if self._listener is not None:
            await self._listener.wait_closed()
        if self._http is not None:
            await self._http.stop()
        await self.ha.stop()
        logger.info("stopped node=%d", self.config.ha.node_id)


def _exposition(ha: HaManager) -> Exposition:
    from raftha.metrics import Exposition  # noqa: PLC0415 - needs what the extra `metrics` brings

    return Exposition(ha)


async def serve(config: ServerConfig) -> None:
    """Run a server until SIGTERM or SIGINT; Stopped some time after its node has failed.

    A node that has failed stays that way, so the process ends for its supervisor to start another.
    """
    config = replace(config, connections_max=fit_connections(config.connections_max))
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    server = Server(config)
    await server.start()
    # All objects of this moment live until the end. Scanning them took the garbage collector 12 to
    # 31 ms every few seconds under load, and no client got a reply meanwhile.
    gc.freeze()
    failure = asyncio.create_task(_wait_failure(server.ha))
    stop = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait((failure, stop), return_when=asyncio.FIRST_COMPLETED)
        if failure.done():
            reason = failure.result()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FAILED_S):
                    await stopping.wait()
            raise Stopped(f"the node has failed: {reason}", hint="see its log")
    finally:
        failure.cancel()
        stop.cancel()
        await server.stop()


async def _wait_failure(ha: HaManager) -> str:
    """Wait until the node has failed for good; return why."""
    while True:
        await asyncio.sleep(FAILED_POLL_S)
        with contextlib.suppress(RafthaError):
            status = await ha.get_status()
            if status.role == "failed":
                logger.error(
                    "node=%d has failed, the server ends in %g s reason=%s",
                    status.node_id,
                    FAILED_S,
                    status.failure,
                )
                return status.failure


def run(config: ServerConfig) -> None:
    """Run a server on uvloop, on the main thread, until SIGTERM or SIGINT."""
    uvloop.run(serve(config))
