"""NATS JetStream: three servers, a stream with three replicas in files, synced with each write.

    nats-server -c FILE          # jetstream { store_dir: D, sync_interval: always }

`sync_interval: always` came with 2.10; older ones sync every two minutes, so their acknowledged
writes aren't durable, and they are left out. Debian's nats-server may be older.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.harness.connections import Connection, Refused
from bench.harness.load import Load
from bench.harness.machine import program_version
from bench.harness.samples import Sample
from bench.harness.systems import Measure, Unsupported, find_program, measure_clients
from bench.peers.servers import free_ports, running, wait_for

CONNECTIONS = 8
OLDEST = (2, 10)


class Nats:
    """The three of them."""

    name = "nats jetstream, sync always"
    settings = "three replicas"

    def missing(self) -> str:
        if not find_program("nats-server"):
            return "there is no nats-server"
        version = self.version()
        found = re.search(r"v(\d+)\.(\d+)", version)
        if not found or (int(found[1]), int(found[2])) < OLDEST:
            return f"{version}: sync_interval: always needs 2.10"
        return ""

    def version(self) -> str:
        return program_version("nats-server", "--version")

    @contextmanager
    def start(self, folder: Path) -> Iterator[Measure]:
        ports = free_ports(6)
        clients, routes = ports[:3], ports[3:]
        commands = []
        for i in range(3):
            config = folder / f"nats-{i}.conf"
            urls = ", ".join(f"nats://127.0.0.1:{port}" for port in routes)
            config.write_text(
                f"server_name: n{i}\nlisten: 127.0.0.1:{clients[i]}\n"
                f'jetstream {{ store_dir: "{folder}/nats-{i}", sync_interval: always }}\n'
                f"cluster {{ name: bench, listen: 127.0.0.1:{routes[i]}, routes: [{urls}] }}\n"
            )
            commands.append([find_program("nats-server"), "-c", str(config)])
        with running(commands, folder):
            addresses = [f"127.0.0.1:{port}" for port in clients]
            leader = wait_for(
                "NATS has no stream", folder, lambda: asyncio.run(_make_stream(addresses))
            )

            def measure(load: Load) -> Sample:
                if load.operation != "put":
                    raise Unsupported("a stream isn't read by key")
                count = min(load.callers or CONNECTIONS, CONNECTIONS)
                kind = "bench.peers.nats:NatsConnection"
                return measure_clients(kind, [leader], load, folder, count)

            yield measure


async def _make_stream(addresses: list[str]) -> str | None:
    """Make the stream; return where its leader is, or None if it can't be made yet."""
    config = {
        "name": "bench", "subjects": ["bench.*"], "num_replicas": 3, "storage": "file",
        "retention": "limits", "discard": "old",
    }  # fmt: skip
    connection = await NatsConnection.open(addresses[0], 0)
    try:
        request = json.dumps(config).encode()
        async with asyncio.timeout(2):
            answer = await connection.publish(b"$JS.API.STREAM.CREATE.bench", request)
    except (Refused, TimeoutError):
        return None
    name = answer.get("cluster", {}).get("leader", "")
    return addresses[int(name[1:])] if name else None


class NatsConnection(Connection):
    """Each write is a message of its own; the reply goes to an inbox named by its number."""

    def __init__(self) -> None:
        super().__init__()
        self._rest = b""
        self._number = 0
        self._calls: dict[int, asyncio.Future[Any]] = {}

    async def begin(self, keys: int) -> None:
        self._inbox = b"_INBOX.%x" % id(self)
        self._write(b'CONNECT {"verbose":false}\r\nSUB %b.* 1\r\n' % self._inbox)

    def put(self, key: bytes, value: bytes) -> asyncio.Future[Any]:
        return self.publish(b"bench." + key, value)

    def publish(self, subject: bytes, payload: bytes) -> asyncio.Future[Any]:
        """Send a message that will be answered."""
        self._number += 1
        future = self._calls[self._number] = self._loop.create_future()
        head = b"PUB %b %b.%d %d\r\n" % (subject, self._inbox, self._number, len(payload))
        self._write(head + payload + b"\r\n")
        return future

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        begin = 0
        while (end := data.find(b"\r\n", begin)) >= 0:
            words = data[begin:end].split(b" ")
            begin_next = end + 2
            if words[0] in (b"MSG", b"HMSG"):
                begin_next += int(words[-1]) + 2
                if begin_next > len(data):
                    break
                self._take(words[1], data[end + 2 : begin_next - 2])
            elif words[0] == b"PING":
                self._write(b"PONG\r\n")
            begin = begin_next
        self._rest = data[begin:]

    def _take(self, subject: bytes, payload: bytes) -> None:
        future = self._calls.pop(int(subject.rsplit(b".", 1)[1]))
        if future.done():
            return
        if b'"error"' in payload or not payload.startswith(b"{"):
            future.set_exception(Refused(payload.decode(errors="replace")))
        else:
            future.set_result(json.loads(payload) if payload.startswith(b'{"type"') else None)

    def connection_lost(self, exc: Exception | None) -> None:
        for future in self._calls.values():
            if not future.done():
                future.set_exception(Refused("the connection was lost"))
        self._calls.clear()


SYSTEMS = [Nats()]
