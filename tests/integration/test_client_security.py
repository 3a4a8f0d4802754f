"""Clients of a real server with TLS and tokens: what they must show, and what they get without."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from typer.testing import CliRunner

from raftha.cli.app import app
from raftha.client import Client
from raftha.client.call import Access, call
from raftha.client.resp import ReplyError, pack_request
from raftha.config import MIB
from raftha.errors import ConfigError, Disconnected, Unavailable
from raftha.net.certificates import Made
from raftha.net.tls import client_context
from raftha.server import Server, ServerConfig
from raftha.server import access as server_access
from raftha.server.access import UNKNOWN_BYTES_MAX
from raftha.testing.processes import reserve_port
from tests.support.certificates import CLUSTER, make_cluster
from tests.support.nodes import free_addresses
from tests.support.servers import Host, port_of, talk

pytestmark = pytest.mark.slow

TOKEN = "correct horse battery staple"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Made]:
    return make_cluster(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, made: dict[int, Made]) -> Path:
    folder = tmp_path_factory.mktemp("server")
    (folder / "token").write_text(f"{TOKEN}\n")
    (folder / "token").chmod(0o600)
    with reserve_port() as peer, reserve_port() as client:
        ports = [each.getsockname()[1] for each in (peer, client)]
    path = folder / "node.toml"
    path.write_text(
        f'node_id = 1\ndata_dir = "data"\nlisten = "127.0.0.1:{ports[1]}"\n'
        f'cluster_name = "{CLUSTER}"\ntls_ca = "{made[1].ca}"\n'
        f'tls_cert = "{made[1].certificate}"\ntls_key = "{made[1].key}"\n'
        f'auth_token_file = "token"\nlisten_tls_cert = "{made[1].certificate}"\n'
        f'listen_tls_key = "{made[1].key}"\nconnections_max = 20\nwal_segment_bytes = {16 * MIB}\n'
        f'[members]\n1 = "127.0.0.1:{ports[0]}"\n'
    )
    return path


@pytest.fixture(scope="module")
def address(host: Host, config: Path) -> Iterator[str]:
    server = host.make(ServerConfig.from_toml(config))
    host.run(server.start())
    yield server.config.listen
    host.run(server.stop())


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_redis_client_with_token_and_tls_is_served(
    protocol: int, address: str, made: dict[int, Made]
) -> None:
    with redis.Redis(
        port=port_of(address), protocol=protocol, password=TOKEN, ssl=True,
        ssl_ca_certs=str(made[1].ca), host="127.0.0.1",
    ) as client:  # fmt: skip
        assert client.set("a", b"x" * (1 << 19))
        assert client.get("a") == b"x" * (1 << 19)
        pipeline = client.pipeline(transaction=True)
        for i in range(100):
            pipeline.incr(f"counter{i % 3}")
        assert len(pipeline.execute()) == 100


@pytest.mark.parametrize(
    ("password", "error"), [("wrong", "invalid username"), (None, "HELLO must be called with AUTH")]
)
def test_a_redis_client_without_the_token_is_not(
    password: str | None, error: str, address: str, made: dict[int, Made]
) -> None:
    with (
        redis.Redis(
            port=port_of(address), password=password, ssl=True, ssl_ca_certs=str(made[1].ca),
            host="127.0.0.1", retry=Retry(NoBackoff(), 0),
        ) as client,
        pytest.raises(redis.AuthenticationError, match=error),
    ):  # fmt: skip
        client.get("a")


def test_our_client_shows_token_and_checks_certificates(
    host: Host, address: str, made: dict[int, Made], tmp_path: Path
) -> None:
    other = make_cluster(tmp_path)[1]

    async def main() -> None:
        async with Client([address], token=TOKEN, tls_ca=made[1].ca) as client:
            assert await client.once("SET", "b", b"y" * 200_000) == b"OK"
            assert await client.call("GET", "b") == b"y" * 200_000
            assert await asyncio.gather(*(client.call("ECHO", i) for i in range(500)))
        async with Client([address], token="wrong", tls_ca=made[1].ca) as client:
            with pytest.raises(ReplyError, match="WRONGPASS"):
                await client.call("GET", "b")
            assert client.address is None
        async with Client([address], tls_ca=made[1].ca) as client:
            with pytest.raises(ReplyError, match="NOAUTH"):
                await client.call("GET", "b")
        for ca in (other.ca, None):
            async with Client([address], token=TOKEN, tls_ca=ca, timeout_s=0.3) as client:
                with pytest.raises((Unavailable, Disconnected)):
                    await client.call("GET", "b")

    host.run(main())


def test_status_finds_its_way_in(
    address: str, config: Path, made: dict[int, Made], tmp_path: Path
) -> None:
    token_file = config.parent / "token"
    runner = CliRunner()
    by_hand = [address, "--token-file", str(token_file), "--tls-ca", str(made[1].ca)]
    for arguments in (by_hand, ["--config", str(config)]):
        result = runner.invoke(app, ["status", "--json", *arguments])
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["leader_id"] == 1
    by_hand[:1] = ["--connect", address]
    for arguments in (by_hand, ["--config", str(config)]):
        result = runner.invoke(app, ["member", "remove", "9", "--dry-run", *arguments])
        assert "node 9 is not a member" in result.output
    result = runner.invoke(app, ["status", address, "--tls-ca", str(made[1].ca)])
    assert result.exit_code == 1
    token = tmp_path / "token"
    token.write_text("short")
    token.chmod(0o600)
    assert runner.invoke(app, ["status", address, "--token-file", str(token)]).exit_code == 2


def test_without_tls_no_client_gets_further(address: str) -> None:
    with pytest.raises((Disconnected, Unavailable)):
        call(address, ("PING",), 5)
    assert b"PONG" not in talk(address, pack_request(("PING",)), is_last=False)


def access(made: dict[int, Made], token: str = TOKEN) -> Access:
    return Access(token, client_context(made[1].ca))


def test_silent_connections_are_pushed_out_by_a_client_that_authenticates(
    address: str, made: dict[int, Made]
) -> None:
    silent = [socket.create_connection(("127.0.0.1", port_of(address)), 10) for _ in range(30)]
    for each in silent:
        each.settimeout(10)
    for oldest in silent[:10]:
        with contextlib.suppress(ConnectionResetError):
            assert oldest.recv(1) == b""
    assert call(address, ("PING",), 5, access(made)) == b"PONG"
    for each in silent:
        each.close()


def test_a_malformed_request_gets_an_error_reply_over_tls(
    address: str, made: dict[int, Made]
) -> None:
    with (
        socket.create_connection(("127.0.0.1", port_of(address)), 10) as plain,
        client_context(made[1].ca).wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        connection.sendall(pack_request(("PING",)) + b"*x\r\n" + b"y" * 100_000)
        received = b""
        while b"Protocol error" not in received:
            part = connection.recv(4096)
            assert part
            received += part
    assert received.startswith(b"+PONG\r\n")


# ---------------------------------------------------------------- a token without TLS


@pytest.fixture
def plain_address(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(server_access, "AUTH_TIMEOUT_S", 0.5)
    peer, listen = free_addresses(2)
    server = host.make(
        ServerConfig.from_mapping(
            {
                "node_id": 1, "data_dir": str(tmp_path / "data"), "members": {"1": peer},
                "listen": listen, "auth_token": TOKEN, "wal_segment_bytes": 16 * MIB,
            }
        )
    )  # fmt: skip
    host.run(server.start())
    yield server.config.listen
    host.run(server.stop())


def test_a_client_without_a_token_has_little_time_and_little_room(plain_address: str) -> None:
    assert call(plain_address, ("SET", "a", b"x" * UNKNOWN_BYTES_MAX), 10, Access(TOKEN)) == b"OK"
    with pytest.raises(ReplyError, match="NOAUTH"):
        call(plain_address, ("GET", "a"), 10)
    large = pack_request(("AUTH", b"x" * (16 * UNKNOWN_BYTES_MAX)))
    assert b"Protocol error" in talk(plain_address, large)
    begun = time.monotonic()
    assert talk(plain_address, b"PING\r\n", is_last=False) == b"+PONG\r\n"
    assert time.monotonic() - begun < 10
    with redis.Redis(port=port_of(plain_address), password=TOKEN) as client:
        client.ping()
        time.sleep(
            0.6
        )  # Longer than unauthenticated clients have; authenticated ones may take their time.
        assert client.get("a")


def test_wrong_tokens_are_logged_without_the_token(
    plain_address: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        for _ in range(4):
            with pytest.raises(ReplyError, match="WRONGPASS"):
                call(plain_address, ("PING",), 10, Access("a wrong guess at it"))
    assert caplog.text.count("wrong token") == 3
    assert "guess" not in caplog.text


def test_a_server_whose_token_cannot_be_read_does_not_start(tmp_path: Path) -> None:
    peer, listen = free_addresses(2)
    table = {
        "node_id": 1, "data_dir": str(tmp_path / "data"), "members": {"1": peer},
        "listen": listen, "auth_token_file": str(tmp_path / "nowhere"),
    }  # fmt: skip
    with pytest.raises(ConfigError, match="can't read auth_token_file"):
        Server(ServerConfig.from_mapping(table))
    assert not (tmp_path / "data").exists()
