"""The server's process: one node of a cluster, and a listener for clients.

Theory of operation. `serve` runs until SIGTERM or SIGINT: it takes the listening socket first, so
that a port in use is found before the node joins its cluster, then starts the node, then accepts.
It stops in the opposite order: no new connections, answers to what is under way, then the node.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import uvloop

from raftha.aio import HaManager
from raftha.config import HaConfig, is_loopback, parse_address, read_toml
from raftha.errors import ConfigError
from raftha.resp import error_line
from raftha.server.connection import Connection
from raftha.server.machine import RedisMachine
from raftha.server.tasks import Service

logger = logging.getLogger(__name__)

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
    """"host:port" of the listener. Off loopback only with the node's `insecure`: it asks for no
    password."""

    connections_max: int = 1024
    """Clients at once, from 1 to 100,000; more are turned away with an error."""

    def __post_init__(self) -> None:
        if not isinstance(self.listen, str):
            raise ConfigError(f"listen must be text, got {self.listen!r}")
        host, _ = parse_address("listen", self.listen)
        if not self.ha.insecure and not is_loopback(host):
            raise ConfigError(
                f"listen = {self.listen!r} is not on loopback, and clients need no password",
                hint="set insecure = true if everyone who can reach it may read and write all data",
            )
        if self.listen == self.ha.own_address:
            raise ConfigError(f"listen = {self.listen!r} is where the node listens for its peers")
        limit = self.connections_max
        if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= 100_000:
            raise ConfigError(f"connections_max must be from 1 to 100000, got {limit!r}")

    @classmethod
    def from_mapping(cls, table: Mapping[str, Any]) -> ServerConfig:
        """Make a config from a parsed TOML table: HaConfig's settings and ours side by side."""
        own = {field.name for field in dataclasses.fields(cls)} - {"ha"}
        known = own | {field.name for field in dataclasses.fields(HaConfig)} - {"client_address"}
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
            raise ConfigError(f"listen must be text, got {table['listen']!r}")
        parse_address("listen", table["listen"])
        return cls(
            ha=HaConfig.from_mapping({**node, "client_address": table["listen"]}),
            **{name: value for name, value in table.items() if name in own},
        )

    @classmethod
    def from_toml(cls, path: str | Path) -> ServerConfig:
        """Read a TOML file; a relative `data_dir` is relative to the file's folder."""
        return cls.from_mapping(read_toml(path))


class Server:
    """A node and its listener, on the running event loop. Start it once, stop it once."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.ha = HaManager(config.ha, state_machine=RedisMachine())
        self._service = Service(self.ha, value_bytes_max=config.ha.value_bytes_max)
        self._listener: asyncio.Server | None = None

    async def start(self) -> None:
        """Start the node, then accept clients; ConfigError if the address can't be had."""
        host, port = parse_address("listen", self.config.listen)
        loop = asyncio.get_running_loop()
        try:
            listener = await loop.create_server(
                self._make_connection, host, port, start_serving=False, backlog=1024
            )
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(f"can't listen on {self.config.listen}: {reason}") from error
        try:
            await self.ha.start()
        except BaseException:
            listener.close()
            raise
        self._listener = listener
        await listener.start_serving()
        logger.info("serving node=%d listen=%s", self.config.ha.node_id, self.config.listen)

    async def stop(self) -> None:
        """Answer what is under way, close all connections, stop the node."""
        if self._listener is not None:
            self._listener.close()
        clients: set[Connection] = self._service.clients
        for client in list(clients):
            client.end()
        if clients:
            await asyncio.wait([client.closed for client in clients], timeout=STOP_S)
        for client in list(clients):
            client.abort()
        await self.ha.stop()
        logger.info("stopped node=%d", self.config.ha.node_id)

    def _make_connection(self) -> asyncio.Protocol:
        if len(self._service.clients) >= self.config.connections_max:
            return _TurnedAway()
        return Connection(self._service)


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
    try:
        await stopping.wait()
    finally:
        await server.stop()


def run(config: ServerConfig) -> None:
    """Run a server on uvloop, as the process's main thread, until SIGTERM or SIGINT."""
    uvloop.run(serve(config))
