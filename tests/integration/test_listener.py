"""Strangers at a server's door: they can't keep out clients with a token."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from raftha.client.call import Access, call
from raftha.client.resp import pack_request
from raftha.errors import Overloaded
from raftha.server import Server, ServerConfig
from raftha.server.listener import network_of
from tests.support.nodes import free_addresses
from tests.support.servers import Host, connect, make_configs

pytestmark = pytest.mark.slow
TOKEN = "correct horse battery"
PLACES = 10


@pytest.fixture
def server(host: Host, tmp_path: Path) -> Iterator[Server]:
    peer, listen = free_addresses(2)
    table = {
        "node_id": 1, "data_dir": str(tmp_path / "data"), "members": {"1": peer},
        "listen": listen, "auth_token": TOKEN, "wal_segment_bytes": 16 << 20,
        "connections_max": PLACES,
    }  # fmt: skip
    server = host.make(ServerConfig.from_mapping(table))
    host.run(server.start())
    yield server
    host.run(server.stop())


def authenticated(address: str) -> socket.socket:
    connection = connect(address)
    connection.sendall(pack_request(("AUTH", TOKEN)))
    assert connection.recv(100) == b"+OK\r\n"
    return connection


def test_a_client_with_the_token_pushes_out_the_oldest_stranger(server: Server) -> None:
    address = server.config.listen
    known = authenticated(address)
    strangers = [connect(address) for _ in range(5 * PLACES)]
    assert call(address, ("PING",), 10, Access(TOKEN)) == b"PONG"
    assert strangers[0].recv(1) == b"", "the oldest one went"
    known.sendall(b"PING\r\n")
    assert known.recv(100) == b"+PONG\r\n", "a client that has authenticated stays"
    for each in (known, *strangers):
        each.close()


def test_where_all_have_authenticated_one_more_is_refused_with_a_reason(server: Server) -> None:
    address = server.config.listen
    known = [authenticated(address) for _ in range(PLACES)]
    with pytest.raises(Overloaded, match="max number of clients"):
        call(address, ("PING",), 10)
    for each in known:
        each.close()


def test_without_a_token_all_clients_are_equal(host: Host, tmp_path: Path) -> None:
    (config,) = make_configs(tmp_path, 1)
    server = host.make(config)
    host.run(server.start())
    silent = [connect(config.listen) for _ in range(config.connections_max)]
    silent[-1].sendall(b"PING\r\n")
    assert silent[-1].recv(100) == b"+PONG\r\n"
    with pytest.raises(Overloaded, match="max number of clients"):
        call(config.listen, ("PING",), 10)
    for each in silent:
        each.close()
    host.run(server.stop())


@pytest.mark.parametrize(
    ("host_", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1:2:3:4", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_addresses_are_counted_by_network(host_: str, network: str) -> None:
    assert network_of(host_) == network
