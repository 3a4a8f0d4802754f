"""The bare group-commit loop: raftha's write path without Raft and LMDB, as the upper limit.

    python -m bench.harness.bare lead FOLDER [--serve]
    python -m bench.harness.bare follow FILE

Theory of operation. One process has the callers. Each turn of its event loop sends their writes to
two followers over loopback, while a thread writes and syncs them to its own file. A follower writes
and syncs everything that it has received, and replies with the total number of bytes. A write is
committed when two of the three have synced it. All files were written to their full length before,
so a sync moves data alone. There are no terms, no checksums, no state, no recovery: this is not
safe, and no safe system can be much faster on this machine.

With `--serve` it also answers SET and GET as Redis does; a connection must not mix the two.
"""

from __future__ import annotations

import asyncio
import os
import queue
import socket
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import cast

import hiredis
import uvloop

from bench.harness.load import VALUE_BYTES, Call, Load, key_of
from bench.harness.worker import serve_load

FILE_BYTES = 16 << 20
RECEIVE_BYTES = 1 << 20
CONNECT_TIMEOUT_S = 30.0
HEAD = struct.Struct("<QIH")
POSITION = struct.Struct("<Q")


class BareLog:
    """A file that was written before, used as a ring."""

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        for offset in range(0, FILE_BYTES, RECEIVE_BYTES):
            os.pwrite(self._handle, bytes(RECEIVE_BYTES), offset)
        os.fsync(self._handle)
        self._offset = 0

    def append(self, data: bytes | memoryview) -> None:
        """On return it is on disk."""
        if self._offset + len(data) > FILE_BYTES:
            self._offset = 0
        os.pwrite(self._handle, data, self._offset)
        os.fdatasync(self._handle)
        self._offset += len(data)


class BareLeader:
    """The loop."""

    def __init__(self, folder: Path) -> None:
        self.values: dict[bytes, bytes] = {}
        self._log = BareLog(folder / "leader")
        self._loop = asyncio.get_running_loop()
        self._followers: list[asyncio.Transport] = []
        self._synced = [0, 0, 0]
        self._position = 0
        self._batch: list[bytes] = []
        self._done: list[Callable[[], object]] = []
        self._waiting: deque[tuple[int, list[Callable[[], object]]]] = deque()
        self._own: list[bytes] = []
        self._is_writing = False
        self._orders: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._write, daemon=True).start()

    async def connect(self, port: int, member: int) -> None:
        """Find a follower."""
        answers = _Answers(self, member)
        transport, _ = await self._loop.create_connection(lambda: answers, "127.0.0.1", port)
        self._followers.append(transport)

    def put(self, key: bytes, value: bytes, done: Callable[[], object]) -> None:
        """Write; `done` is called once it is committed."""
        if not self._batch:
            self._loop.call_soon(self._flush)
        self._batch.append(HEAD.pack(self._position, len(value), len(key)) + key + value)
        self._done.append(done)
        self.values[key] = value

    def note(self, member: int, position: int) -> None:
        """A member has synced so much; release the callers that waited for a majority."""
        self._synced[member] = position
        committed = sorted(self._synced)[1]
        while self._waiting and self._waiting[0][0] <= committed:
            for done in self._waiting.popleft()[1]:
                done()

    def _flush(self) -> None:
        data = b"".join(self._batch)
        self._position += len(data)
        self._waiting.append((self._position, self._done))
        self._batch, self._done = [], []
        for follower in self._followers:
            follower.write(data)
        self._own.append(data)
        if not self._is_writing:
            self._order()

    def _order(self) -> None:
        self._is_writing = True
        self._orders.put(b"".join(self._own))
        self._own = []

    def _write(self) -> None:
        while True:
            data = self._orders.get()
            self._log.append(data)
            self._loop.call_soon_threadsafe(self._written, len(data))

    def _written(self, size: int) -> None:
        self._is_writing = False
        if self._own:
            self._order()
        self.note(0, self._synced[0] + size)


class _Answers(asyncio.Protocol):
    """The replies of one follower."""

    def __init__(self, leader: BareLeader, member: int) -> None:
        self._leader = leader
        self._member = member
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        whole = len(data) - len(data) % POSITION.size
        self._rest = data[whole:]
        if whole:
            self._leader.note(self._member, POSITION.unpack_from(data, whole - POSITION.size)[0])


class _Front(asyncio.Protocol):
    """A client's connection: SET and GET only."""

    def __init__(self, leader: BareLeader) -> None:
        self._leader = leader
        self._reader = hiredis.Reader()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._reader.feed(data)
        replies = []
        while (request := self._reader.gets()) is not False:
            match request:
                case [b"SET", key, value]:
                    self._leader.put(key, value, lambda: self._reply(b"+OK\r\n"))
                case [b"GET", key]:
                    value = self._leader.values.get(key)
                    replies.append(b"$-1\r\n" if value is None else b"$%d\r\n" % len(value))
                    replies.append(b"" if value is None else value + b"\r\n")
                case _:
                    replies.append(b"-ERR unknown command\r\n")
        if replies:
            self._transport.write(b"".join(replies))

    def _reply(self, reply: bytes) -> None:
        assert self._transport is not None
        self._transport.write(reply)


def follow(path: Path) -> None:
    """Write, sync and answer until the leader's end."""
    log = BareLog(path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        listener.settimeout(CONNECT_TIMEOUT_S)  # Whoever started this may be gone.
        connection, _ = listener.accept()
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    buffer = bytearray(RECEIVE_BYTES)
    position = 0
    while size := connection.recv_into(buffer):
        log.append(memoryview(buffer)[:size])
        position += size
        connection.sendall(POSITION.pack(position))


def start_follower(path: Path) -> int:
    """Start it, and return the port where it listens; it ends when its connection does."""
    command = [sys.executable, "-m", "bench.harness.bare", "follow", str(path)]
    follower = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert follower.stdout is not None
    return int(follower.stdout.readline())


async def lead(folder: Path, ports: list[int], *, serves: bool) -> None:
    """Run the loop until its input ends."""
    leader = BareLeader(folder)
    for member, port in enumerate(ports, start=1):
        await leader.connect(port, member)
    loop = asyncio.get_running_loop()
    port = 0
    if serves:
        server = await loop.create_server(lambda: _Front(leader), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]

    def make_call(load: Load) -> Call:
        assert load.operation == "put", "there is nothing to read without a state"
        value = os.urandom(VALUE_BYTES)

        def call(number: int) -> asyncio.Future[None]:
            future: asyncio.Future[None] = loop.create_future()
            leader.put(key_of(number, load.keys), value, lambda: future.set_result(None))
            return future

        return call

    await serve_load(make_call, port=port)


if __name__ == "__main__":
    if sys.argv[1] == "lead":
        folder = Path(sys.argv[2])
        ports = [start_follower(folder / name) for name in ("follower-1", "follower-2")]
        uvloop.run(lead(folder, ports, serves="--serve" in sys.argv))
    else:
        follow(Path(sys.argv[2]))
