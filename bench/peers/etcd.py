"""etcd, from Debian's etcd-server: three members, as it comes (it syncs every batch to disk).

    etcd --name 1 --data-dir D --initial-cluster 1=http://127.0.0.1:PORT,... ...

The client speaks gRPC over a few connections to the leader, by an HTTP/2 of its own: requests are
packed beforehand except for key and value, and only the frame headers of a reply are read. A reply
without a message is an error: gRPC has a message in the reply if and only if the call succeeded.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.harness.connections import Connection, Refused
from bench.harness.load import Load
from bench.harness.machine import program_version
from bench.harness.samples import Sample
from bench.harness.systems import Measure, find_program, measure_clients
from bench.peers.servers import ask, free_ports, running, wait_for

CONNECTIONS = 8
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
WINDOW = 2**30
FIRST_WINDOW = 65_535


class Etcd:
    """The three of them."""

    name = "etcd"
    settings = "as it comes"

    def missing(self) -> str:
        return "" if find_program("etcd") else "there is no etcd (Debian: etcd-server)"

    def version(self) -> str:
        return program_version("etcd", "--version")

    @contextmanager
    def start(self, folder: Path) -> Iterator[Measure]:
        ports = free_ports(6)
        clients, peers = ports[:3], ports[3:]
        cluster = ",".join(f"{i}=http://127.0.0.1:{port}" for i, port in enumerate(peers))
        commands = [
            [
                find_program("etcd"), "--name", str(i), "--data-dir", str(folder / f"etcd-{i}"),
                "--listen-client-urls", f"http://127.0.0.1:{clients[i]}",
                "--advertise-client-urls", f"http://127.0.0.1:{clients[i]}",
                "--listen-peer-urls", f"http://127.0.0.1:{peers[i]}",
                "--initial-advertise-peer-urls", f"http://127.0.0.1:{peers[i]}",
                "--initial-cluster", cluster, "--initial-cluster-token", folder.name,
            ]
            for i in range(3)
        ]  # fmt: skip
        with running(commands, folder):
            leader = wait_for("etcd has no leader", folder, lambda: _find_leader(clients))

            def measure(load: Load) -> Sample:
                count = min(load.callers or CONNECTIONS, CONNECTIONS)
                kind = "bench.peers.etcd:EtcdConnection"
                return measure_clients(kind, [f"127.0.0.1:{leader}"], load, folder, count)

            yield measure


def _find_leader(ports: list[int]) -> int | None:
    request = b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n"
    for port in ports:
        if b"\netcd_server_is_leader 1\n" in ask(port, request):
            return port
    return None


class EtcdConnection(Connection):
    """One HTTP/2 connection; each call is a stream."""

    def __init__(self) -> None:
        super().__init__()
        self._streams: dict[int, tuple[asyncio.Future[Any], bool]] = {}
        self._stream = 1
        self._rest = b""
        self._window = FIRST_WINDOW
        self._unconsumed = 0
        self._held: deque[tuple[bytes, bytes, asyncio.Future[Any]]] = deque()
        self._put = _headers("/etcdserverpb.KV/Put")
        self._range = _headers("/etcdserverpb.KV/Range")

    async def begin(self, keys: int) -> None:
        self._write(PREFACE + _frame(SETTINGS, 0, 0, struct.pack(">HI", 4, WINDOW)))
        self._write(_frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", WINDOW)))

    def put(self, key: bytes, value: bytes) -> asyncio.Future[Any]:
        return self._call(self._put, _field(1, key) + _field(2, value))

    def get(self, key: bytes, options: dict[str, Any]) -> asyncio.Future[Any]:
        return self._call(self._range, _field(1, key))

    def _call(self, headers: bytes, message: bytes) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        data = b"\0" + struct.pack(">I", len(message)) + message
        self._held.append((headers, data, future))
        self._send_held()
        return future

    def _send_held(self) -> None:
        """Send what fits into the server's window; the windows of streams are far larger."""
        while self._held and len(self._held[0][1]) <= self._window:
            headers, data, future = self._held.popleft()
            self._window -= len(data)
            self._streams[self._stream] = future, False
            self._write(
                _frame(HEADERS, END_HEADERS, self._stream, headers)
                + _frame(DATA, END_STREAM, self._stream, data)
            )
            self._stream += 2

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        begin = 0
        while len(data) - begin >= 9:
            size = int.from_bytes(data[begin : begin + 3], "big")
            end = begin + 9 + size
            if end > len(data):
                break
            stream = int.from_bytes(data[begin + 5 : begin + 9], "big")
            self._take(data[begin + 3], data[begin + 4], stream, data[begin + 9 : end])
            begin = end
        self._rest = data[begin:]
        self._send_held()

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == DATA:
            self._streams[stream] = self._streams[stream][0], True
            self._unconsumed += len(payload)
            if self._unconsumed > WINDOW // 4:
                update = struct.pack(">I", self._unconsumed)
                self._write(_frame(WINDOW_UPDATE, 0, 0, update))
                self._unconsumed = 0
        elif kind == WINDOW_UPDATE and not stream:
            self._window += int.from_bytes(payload, "big")
        elif kind == PING and not flags & ACK:
            self._write(_frame(PING, ACK, 0, payload))
        elif kind == SETTINGS and not flags & ACK:
            self._write(_frame(SETTINGS, ACK, 0, b""))
        elif kind == GOAWAY:
            self.connection_lost(None)
        if (kind in (DATA, HEADERS) and flags & END_STREAM) or kind == RST_STREAM:
            future, has_message = self._streams.pop(stream)
            if has_message and kind != RST_STREAM:
                future.set_result(None)
            else:
                future.set_exception(Refused("etcd answered with an error"))

    def connection_lost(self, exc: Exception | None) -> None:
        for future, _ in self._streams.values():
            future.set_exception(Refused("the connection was lost"))
        self._streams.clear()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(
        ">I", stream
    ) + payload  # fmt: skip


def _headers(path: str) -> bytes:
    """HPACK without its table: POST and http by their numbers, the rest as literals."""
    return b"".join(
        (
            b"\x83\x86\x04", _text(path), b"\x01", _text("bench"),
            b"\x0f\x10", _text("application/grpc"), b"\x00", _text("te"), _text("trailers"),
        )
    )  # fmt: skip


def _text(text: str) -> bytes:
    assert len(text) < 127
    return bytes((len(text),)) + text.encode()


def _field(number: int, value: bytes) -> bytes:
    """A field of a protobuf message."""
    size, head = len(value), bytes((number << 3 | 2,))
    while size > 127:
        head += bytes((size & 127 | 128,))
        size >>= 7
    return head + bytes((size,)) + value


SYSTEMS = [Etcd()]
