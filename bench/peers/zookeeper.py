"""ZooKeeper, from Debian's libzookeeper-java and any JRE: three servers, as they come (they sync
every batch to disk), but for the limit of connections from one address.

    java -cp JARS org.apache.zookeeper.server.quorum.QuorumPeerMain zoo.cfg

The client pipelines setData (put) and getData (get: the value on that server, which may be older
than what others have seen) on a few connections to the leader; the nodes are made before.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.harness.connections import Connection
from bench.harness.load import Load, key_of
from bench.harness.samples import Sample
from bench.harness.systems import Measure, find_program, measure_clients
from bench.peers.servers import ask, free_ports, running, wait_for

CONNECTIONS = 8
JARS = Path("/usr/share/java")
CLASSES = (
    "zookeeper", "zookeeper-jute", "slf4j-api", "slf4j-simple", "log4j-1.2", "netty-all",
    "snappy-java", "metrics-core", "commons-cli",
)  # fmt: skip
MAIN = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
CREATE, GET_DATA, SET_DATA = 1, 4, 5
NODE_EXISTS = -110
CREATE_WINDOW = 1000


class ZooKeeper:
    """The three of them."""

    name = "zookeeper"
    settings = "as it comes, maxClientCnxns=0"

    def missing(self) -> str:
        if not (JARS / "zookeeper.jar").exists():
            return "there is no zookeeper.jar (Debian: libzookeeper-java)"
        return "" if find_program("java") else "there is no java"

    def version(self) -> str:
        return (JARS / "zookeeper.jar").resolve().stem

    @contextmanager
    def start(self, folder: Path) -> Iterator[Measure]:
        ports = free_ports(9)
        clients = ports[:3]
        members = "".join(
            f"server.{i}=127.0.0.1:{ports[2 + i]}:{ports[5 + i]}\n" for i in (1, 2, 3)
        )
        classes = ":".join(str(JARS / f"{name}.jar") for name in CLASSES)
        commands = []
        for i, port in enumerate(clients, start=1):
            data = folder / f"zookeeper-{i}"
            data.mkdir()
            (data / "myid").write_text(f"{i}\n")
            config = folder / f"zoo-{i}.cfg"
            config.write_text(
                f"tickTime=2000\ninitLimit=10\nsyncLimit=5\ndataDir={data}\nclientPort={port}\n"
                f"maxClientCnxns=0\nadmin.enableServer=false\n4lw.commands.whitelist=srvr\n"
                f"{members}"
            )
            quiet = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
            commands.append([find_program("java"), quiet, "-cp", classes, MAIN, str(config)])
        with running(commands, folder):
            leader = wait_for("ZooKeeper has no leader", folder, lambda: _find_leader(clients))

            def measure(load: Load) -> Sample:
                count = min(load.callers or CONNECTIONS, CONNECTIONS)
                kind = "bench.peers.zookeeper:ZooKeeperConnection"
                return measure_clients(kind, [f"127.0.0.1:{leader}"], load, folder, count)

            yield measure


def _find_leader(ports: list[int]) -> int | None:
    modes = {port: ask(port, b"srvr") for port in ports}
    if sum(b"Mode: follower" in mode for mode in modes.values()) < 2:
        return None
    return next((port for port, mode in modes.items() if b"Mode: leader" in mode), None)


class ZooKeeperConnection(Connection):
    """One session; answers come in the order of the requests."""

    def __init__(self) -> None:
        super().__init__()
        self._rest = b""
        self._number = 0
        self._is_greeted = False

    async def begin(self, keys: int) -> None:
        """Open a session, and make the nodes unless they are there."""
        await self._send(_buffer(struct.pack(">iqiqi16s?", 0, 0, 30_000, 0, 16, b"", False)))
        self._is_greeted = True
        await self._create(b"/b")
        if await self._create(_path(key_of(keys - 1, keys))) == NODE_EXISTS:
            return
        for begin in range(0, keys - 1, CREATE_WINDOW):
            end = min(keys - 1, begin + CREATE_WINDOW)
            paths = (_path(key_of(number, keys)) for number in range(begin, end))
            await asyncio.gather(*map(self._create, paths))

    def put(self, key: bytes, value: bytes) -> asyncio.Future[Any]:
        return self._request(SET_DATA, _buffer(_path(key)) + _buffer(value) + b"\xff\xff\xff\xff")

    def get(self, key: bytes, options: dict[str, Any]) -> asyncio.Future[Any]:
        return self._request(GET_DATA, _buffer(_path(key)) + b"\0")

    def _create(self, path: bytes) -> asyncio.Future[Any]:
        everyone = struct.pack(">ii", 1, 31) + _buffer(b"world") + _buffer(b"anyone")
        return self._request(CREATE, _buffer(path) + _buffer(b"") + everyone + bytes(4))

    def _request(self, kind: int, payload: bytes) -> asyncio.Future[Any]:
        self._number += 1
        return self._send(_buffer(struct.pack(">ii", self._number, kind) + payload))

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        begin = 0
        while len(data) - begin >= 4:
            end = begin + 4 + int.from_bytes(data[begin : begin + 4], "big")
            if end > len(data):
                break
            error = 0
            if self._is_greeted:
                _, _, error = struct.unpack_from(">iqi", data, begin + 4)
            if error in (0, NODE_EXISTS):
                self._answer(error)
            else:
                self._answer_error(f"ZooKeeper answered {error}")
            begin = end
        self._rest = data[begin:]


def _path(key: bytes) -> bytes:
    return b"/b/" + key


def _buffer(data: bytes) -> bytes:
    return struct.pack(">i", len(data)) + data


SYSTEMS = [ZooKeeper()]
