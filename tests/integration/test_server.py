"""The reference server over real sockets and disks: Redis's client, benchmark, and bad input.

One node serves most tests, three nodes those about any node taking any command; all of them in this
process, on a thread with an event loop of its own.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import redis

from raftha.client import Client
from raftha.client.call import call
from raftha.client.resp import REQUEST_BYTES_MAX, ReplyError, pack_request
from raftha.config import MIB
from raftha.errors import (
    ConfigError,
    Indeterminate,
    RafthaError,
    Rejected,
    SessionExpired,
    TransferFailed,
)
from raftha.server import Server, ServerConfig
from raftha.testing import LocalCluster
from tests.support.conditions import wait_until
from tests.support.servers import (
    CONNECTIONS_MAX,
    Host,
    connect,
    make_configs,
    port_of,
    start_servers,
    talk,
)

T = TypeVar("T")


@pytest.fixture(scope="module")
def address(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    (server,) = start_servers(host, tmp_path_factory.mktemp("one"), 1)
    yield server.config.listen
    host.run(server.stop())


@pytest.fixture(scope="module")
def cluster(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    servers = start_servers(host, tmp_path_factory.mktemp("three"), 3)
    yield servers
    for server in servers:
        host.run(server.stop())


@pytest.fixture(params=[2, 3], ids=["resp2", "resp3"])
def kv(request: pytest.FixtureRequest, address: str) -> Iterator[redis.Redis]:
    with redis.Redis(port=port_of(address), protocol=request.param) as client:
        for key in client.scan_iter(count=1000):
            client.delete(key)
        yield client


# ---------------------------------------------------------------- the redis client


def test_strings_and_numbers(kv: redis.Redis) -> None:
    assert kv.ping()
    assert kv.set("a", "1")
    assert kv.get("a") == b"1"
    assert kv.get("missing") is None
    assert kv.set("a", "2", nx=True) is None
    assert kv.set("b", "2", xx=True) is None
    assert kv.set("a", "5", get=True) == b"1"
    assert kv.incr("a") == 6
    assert kv.decr("a", 10) == -4
    assert kv.mset({"b": "1", "c": "2"})
    assert kv.mget("a", "missing", "c") == [b"-4", None, b"2"]
    assert kv.exists("a", "a", "missing") == 2
    assert kv.dbsize() == 3
    assert kv.delete("a", "b", "missing") == 2
    assert kv.echo("hello") == b"hello"


def test_binary_keys_and_values_come_back_as_they_were(kv: redis.Redis) -> None:
    everything = bytes(range(256))
    for value in (everything, b"", b"*1234567\r\n$9999999999\r\n", everything * 4096):
        kv.set(everything, value)
        assert kv.get(everything) == value


def test_errors_of_commands_are_those_of_redis(kv: redis.Redis) -> None:
    kv.set("text", "x")
    with pytest.raises(redis.ResponseError, match=r"^value is not an integer or out of range$"):
        kv.incr("text")
    kv.set("most", 2**63 - 1)
    with pytest.raises(redis.ResponseError, match=r"^increment or decrement would overflow$"):
        kv.incr("most")
    with pytest.raises(redis.ResponseError, match=r"^unknown or unsupported command 'LPUSH'$"):
        kv.lpush("list", "x")
    with pytest.raises(redis.ResponseError, match=r"^a value must be at most 1048576 bytes"):
        kv.set("big", bytes(MIB + 1))
    with pytest.raises(redis.ResponseError, match=r"^a key must be 1 to 511 bytes"):
        kv.set("k" * 512, "x")


def test_a_transaction_is_atomic_and_a_failing_command_in_it_fails_alone(kv: redis.Redis) -> None:
    pipe = kv.pipeline(transaction=True)
    pipe.set("a", 1)
    pipe.incr("a")
    pipe.get("a")
    pipe.mget("a", "missing")
    pipe.exists("a")
    assert pipe.execute() == [True, 2, b"2", [b"2", None], 1]
    pipe.set("text", "x")
    pipe.incr("text")
    pipe.incr("a")
    ok, error, number = pipe.execute(raise_on_error=False)
    assert (ok, number) == (True, 3)
    assert isinstance(error, redis.ResponseError)
    pipe.incr("a")
    pipe.lpush("a", 1)
    with pytest.raises(redis.ResponseError, match="unknown or unsupported command 'LPUSH'"):
        pipe.execute()
    assert kv.get("a") == b"3"


def test_a_pipeline_sees_its_own_writes(kv: redis.Redis) -> None:
    pipe = kv.pipeline(transaction=False)
    for i in range(200):
        pipe.set("a", i)
        pipe.get("a")
    assert pipe.execute() == [part for i in range(200) for part in (True, b"%d" % i)]


def test_scan_finds_every_key_once_and_filters(kv: redis.Redis) -> None:
    names = {b"user:%d" % i for i in range(137)} | {b"order:%d" % i for i in range(20)}
    kv.mset(dict.fromkeys(names, "x"))
    assert sorted(kv.scan_iter(count=7)) == sorted(names)
    assert sorted(kv.scan_iter(match="order:*", count=7)) == sorted(
        n for n in names if n[:1] == b"o"
    )
    cursor, first = kv.scan(count=5)
    assert kv.scan(cursor, count=5)[1] == kv.scan(cursor, count=5)[1]
    assert first == sorted(names)[:5]
    with pytest.raises(redis.ResponseError, match="does not have the cursor"):
        kv.scan(1)


def test_scan_gets_past_large_values(kv: redis.Redis) -> None:
    for i in range(20):
        kv.set(b"large/%d" % i, bytes(MIB))
    assert len(list(kv.scan_iter(count=1000))) == 20


def test_info_and_statuses(kv: redis.Redis, address: str) -> None:
    kv.set("a", 1)
    info = kv.info()
    assert info["raft_role"] == "leader"
    assert info["db0"]["keys"] == 1
    assert "raft_role" not in kv.info("keyspace")
    status = json.loads(call(address, ("RAFTHA", "STATUS"), 10))
    assert status["is_primary"]
    assert status["replicas"][0]["client_address"] == address
    digest = json.loads(call(address, ("RAFTHA", "DIGEST"), 10))
    assert (digest["keys"], digest["sequence"]) == (1, status["sequence"])
    assert call(address, ("RAFTHA", "HELP"), 10)


def test_connection_commands(kv: redis.Redis) -> None:
    assert kv.client_setname("me")
    assert kv.client_getname() in {"me", b"me"}
    assert kv.client_id() > 0
    assert kv.config_get("save") == {"save": ""}
    with pytest.raises(redis.ResponseError, match="DB index is out of range"):
        kv.select(1)


# ---------------------------------------------------------------- input that is not welcome


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"*999999999\r\n", b"-ERR Protocol error: invalid multibulk length\r\n"),
        (b"*1\r\n$-5\r\n", b"-ERR Protocol error: invalid bulk length\r\n"),
        (b"*1\r\n:1\r\n", b"-ERR Protocol error: expected '$', got ':'\r\n"),
        (b"*1\r\n" * 100, b"-ERR Protocol error: expected '$', got '*'\r\n"),
        (b"x" * 70_000, b"-ERR Protocol error: too big inline request\r\n"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"-ERR wrong number of arguments for 'get' command"),
        (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n",
            b"-ERR unknown or unsupported command",
        ),
        (
            b"*2\r\n$3\r\nGET\r\n$9999999\r\n" + bytes(REQUEST_BYTES_MAX),
            b"-ERR Protocol error: invalid bulk",
        ),
    ],
    ids=["count", "length", "type", "depth", "inline", "http", "tls", "bytes"],
)
def test_malformed_input_gets_an_error_and_the_node_keeps_serving(
    address: str, data: bytes, error: bytes
) -> None:
    with connect(address) as other:
        other.sendall(b"PING\r\n")
        assert other.recv(100) == b"+PONG\r\n"
        assert talk(address, b"PING\r\n").startswith(b"+PONG\r\n")
        with connect(address) as connection:
            connection.sendall(data)
            assert connection.recv(1 << 16).startswith(error)
        other.sendall(b"PING\r\n")
        assert other.recv(100) == b"+PONG\r\n"


def test_a_protocol_error_closes_the_connection(address: str) -> None:
    assert talk(address, b"PING\r\n*999999999\r\nPING\r\n", is_last=False).endswith(b"length\r\n")


def test_requests_sent_before_the_client_shut_its_side_are_answered(address: str) -> None:
    requests = b"SET half 1\r\nGET half\r\n" + pack_request(["INCR", "half"])
    assert talk(address, b"SET half 1\r\nGET half\r\n") == b"+OK\r\n$1\r\n1\r\n"
    assert talk(address, requests[requests.index(b"*") :]) == b":2\r\n"


def test_quit_closes_the_connection(address: str) -> None:
    assert talk(address, b"SET a 1\r\nQUIT\r\nSET a 2\r\n", is_last=False) == b"+OK\r\n+OK\r\n"
    assert call(address, ("GET", "a"), 10) == b"1"


def test_connections_over_the_limit_are_turned_away(address: str) -> None:
    connections = [connect(address) for _ in range(CONNECTIONS_MAX)]
    try:
        for connection in connections:
            connection.sendall(b"PING\r\n")
        assert all(connection.recv(100) == b"+PONG\r\n" for connection in connections)
        assert talk(address, b"").startswith(b"-OVERLOADED max number of clients reached")
    finally:
        for connection in connections:
            connection.close()
    wait_until(lambda: talk(address, b"PING\r\n") == b"+PONG\r\n", "no answer")


@pytest.mark.slow
def test_a_client_that_reads_nothing_costs_bounded_memory_and_no_time(
    address: str,
) -> None:
    call(address, ("SET", "big", bytes(MIB)), 10)
    with connect(address) as greedy:
        greedy.setblocking(False)
        request = pack_request(["GET", "big"]) * 1000
        sent = 0
        try:
            while sent < 64 * MIB:
                sent += greedy.send(request)
        except BlockingIOError:
            pass  # The server has stopped reading.
        assert sent < 64 * MIB
        assert call(address, ("GET", "big"), 10) == bytes(MIB)


# ---------------------------------------------------------------- three nodes


@pytest.mark.slow
def test_any_node_takes_any_command_and_reads_are_linearizable(cluster: list[Server]) -> None:
    addresses = [server.config.listen for server in cluster]
    for i in range(30):
        writer, reader = addresses[i % 3], addresses[(i + i // 3) % 3]
        assert call(writer, ("INCR", "turns"), 20) == i + 1
        assert call(reader, ("GET", "turns"), 20) == b"%d" % (i + 1)
    digests = [json.loads(call(address, ("RAFTHA", "DIGEST"), 20)) for address in addresses]
    assert digests[0] == digests[1] == digests[2]


def test_a_numbered_write_is_applied_once_through_any_node_it_is_sent(
    cluster: list[Server],
) -> None:
    addresses = [server.config.listen for server in cluster]
    session = call(addresses[0], ("RAFTHA", "SESSION"), 20)
    numbered = ("RAFTHA", "ONCE", session, 1, 1, "INCRBY", "once", 5)
    assert [call(address, numbered, 20) for address in addresses * 2] == [5] * 6
    with pytest.raises(ReplyError, match="not an integer"):
        call(addresses[1], ("RAFTHA", "ONCE", session, 2, 1, "INCRBY", "once", "x"), 20)
    call(addresses[0], ("SET", "once/text", "x"), 20)
    for address in addresses:
        with pytest.raises(ReplyError, match="not an integer"):
            call(address, ("RAFTHA", "ONCE", session, 2, 1, "INCR", "once/text"), 20)
    with pytest.raises(SessionExpired):
        call(addresses[2], ("RAFTHA", "ONCE", 99, 1, 1, "INCR", "once"), 20)
    # The server can't know if it is the first try, so to a caller it is unknown.
    assert issubclass(SessionExpired, Indeterminate) and not issubclass(SessionExpired, Rejected)


@pytest.mark.slow
def test_leadership_can_be_moved_from_any_node(cluster: list[Server]) -> None:
    addresses = {server.config.ha.node_id: server.config.listen for server in cluster}
    for target in (1, 2, 3):
        assert call(addresses[1], ("RAFTHA", "FAILOVER", target), 20) == b"OK"
        status = json.loads(call(addresses[target], ("RAFTHA", "STATUS"), 20))
        assert status["is_primary"]
    with pytest.raises(TransferFailed):
        call(addresses[1], ("RAFTHA", "FAILOVER", 9), 20)


@pytest.mark.slow
def test_a_counter_is_exact_through_restarts_of_every_node(host: Host, tmp_path: Path) -> None:
    servers = start_servers(host, tmp_path, 3)
    count = 300

    async def increment() -> list[int]:
        async with Client([server.config.listen for server in servers], timeout_s=30) as client:
            limit = asyncio.Semaphore(8)
            loop = asyncio.get_running_loop()

            async def one(i: int) -> int:
                async with limit:
                    if i % 100 == 50:
                        # Stops and starts the node while others of these calls are under way.
                        await loop.run_in_executor(None, restart, i // 100)
                    number: int = await client.once("INCR", "counter")
                    return number

            return await asyncio.gather(*(one(i) for i in range(count)))

    def restart(place: int) -> None:
        host.run(servers[place].stop())
        servers[place] = host.make(servers[place].config)
        host.run(servers[place].start())

    try:
        assert sorted(asyncio.run(increment())) == list(range(1, count + 1))
        assert call(servers[0].config.listen, ("GET", "counter"), 20) == b"%d" % count
    finally:
        for server in servers:
            host.run(server.stop())


# ---------------------------------------------------------------- processes


@pytest.mark.slow
def test_sigterm_answers_what_is_under_way_and_ends_well() -> None:
    with LocalCluster(nodes=1, settings={"wal_segment_bytes": 16 * MIB}) as cluster:
        cluster.wait_ready()
        with connect(cluster.addresses[1]) as connection:
            connection.sendall(pack_request(["INCR", "a"]) * 500)
            assert connection.recv(1)
            assert cluster.terminate(1) == 0
            received = b":"
            while part := connection.recv(1 << 16):
                received += part
        answered = received.count(b":")
        assert received == b"".join(b":%d\r\n" % i for i in range(1, answered + 1))
        cluster.start_node(1)
        cluster.wait_ready()
        assert int(cluster.call(1, "GET", "a")) == answered


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", [1, 16])
def test_redis_benchmark(address: str, pipeline: int) -> None:
    program = shutil.which("redis-benchmark")
    if program is None:
        pytest.skip("redis-benchmark is not installed (Debian has it in redis-tools)")
    options = f"-t ping,set,get,incr,mset -n 3000 -c 64 -r 1000 -d 256 --csv -P {pipeline}"
    command = [program, "-p", str(port_of(address)), *options.split()]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    assert "rror" not in run.stdout + run.stderr
    tests = [line.split(",")[0] for line in run.stdout.splitlines()]
    assert {'"SET"', '"GET"', '"INCR"', '"MSET (10 keys)"'} <= set(tests)


# ---------------------------------------------------------------- configuration


TABLE = {
    "node_id": 1,
    "data_dir": "data",
    "members": {"1": "127.0.0.1:7101"},
    "listen": "127.0.0.1:6379",
}


def test_the_listeners_address_is_what_peers_are_told(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text(
        'node_id = 1\ndata_dir = "data"\nlisten = "127.0.0.1:6379"\n'
        'members = {1 = "127.0.0.1:7101"}\n'
    )
    config = ServerConfig.from_toml(file)
    assert config.ha.client_address == config.listen == "127.0.0.1:6379"
    assert config.ha.data_dir == tmp_path / "data"
    assert config.connections_max == 1024


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"listen": None}, "missing setting listen"),
        ({"listen": 6379}, 'listen must be "host:port", got 6379'),
        ({"listen": "localhost"}, 'listen must be "host:port"'),
        ({"listen": "0.0.0.0:6379"}, "not on loopback"),
        ({"connections_max": 0}, "must be a whole number from 1 to 100000 connections, got 0"),
        ({"connections_max": True}, "connections_max must be a whole number from 1"),
        ({"client_address": "127.0.0.1:1"}, "unknown setting client_address"),
        ({"colour": "red"}, "unknown setting colour"),
        ({"node_id": 2}, "node_id 2 is not in members"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, Any], error: str) -> None:
    table = {name: value for name, value in {**TABLE, **changes}.items() if value is not None}
    with pytest.raises(ConfigError) as caught:
        ServerConfig.from_mapping(table)
    assert error in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"auth_token": "short"}, "auth_token must be empty, or text of 16 to 1024"),
        ({"auth_token": 12345678901234567890}, "auth_token must be empty, or text of 16"),
        ({"auth_token": "x" * 16, "auth_token_file": "token"}, "exclude each other"),
        ({"listen_tls_cert": "a"}, "listen_tls_key is missing"),
        ({"listen": "0.0.0.0:1", "auth_token": "x" * 16}, "needs? TLS and a token"),
        (
            {"listen": "0.0.0.0:1", "listen_tls_cert": "a", "listen_tls_key": "b"},
            "needs? TLS and a token",
        ),
    ],
)
def test_half_a_guard_is_refused_and_the_token_is_not_shown(
    settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        ServerConfig.from_mapping({**TABLE, **settings})
    assert "1234567890" not in str(caught.value)


def test_a_listener_off_loopback_with_tls_and_a_token_is_allowed() -> None:
    guard = {"auth_token": "correct horse battery", "listen_tls_cert": "a", "listen_tls_key": "b"}
    config = ServerConfig.from_mapping({**TABLE, **guard, "listen": "0.0.0.0:6379"})
    assert config.listen == "0.0.0.0:6379"
    assert "correct" not in repr(config)


def test_a_listener_off_loopback_needs_insecure() -> None:
    config = ServerConfig.from_mapping({**TABLE, "listen": "0.0.0.0:6379", "insecure": True})
    assert config.listen == "0.0.0.0:6379"


def test_a_port_in_use_is_found_before_the_node_starts(host: Host, tmp_path: Path) -> None:
    (config,) = make_configs(tmp_path, 1)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port_of(config.listen)))
        taken.listen()
        server = host.make(config)
        with pytest.raises(ConfigError, match=f"can't listen on {config.listen}"):
            host.run(server.start())
    assert not list(tmp_path.glob("*/wal/*"))


def test_a_node_that_cannot_start_frees_the_listeners_port(host: Host, tmp_path: Path) -> None:
    (config,) = make_configs(tmp_path, 1)
    Path(config.ha.data_dir).write_text("not a folder")
    with pytest.raises((RafthaError, OSError)):
        host.run(host.make(config).start())
    Path(config.ha.data_dir).unlink()
    server = host.make(config)
    host.run(server.start())
    host.run(server.stop())
