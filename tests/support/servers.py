"""The reference server in the test's own process, and raw connections to it."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from raftha.config import MIB
from raftha.server import Server, ServerConfig
from raftha.testing.processes import reserve_port

T = TypeVar("T")

CONNECTIONS_MAX = 100


class Host:
    """A thread with an event loop, on which servers run."""

    def __init__(self) -> None:
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def make(self, config: ServerConfig) -> Server:
        async def make() -> Server:
            return Server(config)

        return self.run(make())

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def make_configs(folder: Path, count: int) -> list[ServerConfig]:
    reserved = [reserve_port() for _ in range(2 * count)]
    addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in reserved]
    members = dict(enumerate(addresses[:count], start=1))
    configs = [
        ServerConfig.from_mapping(
            {
                "node_id": node_id,
                "data_dir": str(folder / str(node_id)),
                "bootstrap": True,
                "members": {str(i): address for i, address in members.items()},
                "listen": addresses[count + node_id - 1],
                "wal_segment_bytes": 16 * MIB,
                "connections_max": CONNECTIONS_MAX,
            }
        )
        for node_id in members
    ]
    for each in reserved:
        each.close()
    return configs


def start_servers(host: Host, folder: Path, count: int) -> list[Server]:
    servers = [host.make(config) for config in make_configs(folder, count)]
    for server in servers:
        host.run(server.start())
    return servers


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def connect(address: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port_of(address)), 10)


def talk(address: str, data: bytes, *, is_last: bool = True) -> bytes:
    """Send `data`, and nothing after it if `is_last`; return everything until the server closes."""
    with connect(address) as connection:
        connection.sendall(data)
        if is_last:
            connection.shutdown(socket.SHUT_WR)
        received = b""
        while part := connection.recv(1 << 16):
            received += part
        return received
