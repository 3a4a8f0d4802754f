"""A client's connection between a fake socket and a manager whose futures the test completes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

from raftha.aio import HaManager
from raftha.client.resp import pack_request
from raftha.node.lease_reads import MISSED, Missed
from raftha.server.access import Role, Tokens, make_token
from raftha.server.connection import Connection
from raftha.server.tasks import Service
from raftha.storage.state.commands import PUT, unpack
from raftha.types import Receipt


def receipt(result: Any = None) -> Receipt:
    return Receipt(sequence=1, index=1, term=1, time_us=1, result=result)


class FakeManager:
    """Records the calls; the test completes them."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any, asyncio.Future[Any]]] = []
        self.refusal: Exception | None = None
        self.lease: dict[bytes, bytes] | None = None
        """The result of a read by lease, if there is a lease."""

    def submit(self, packed: bytes) -> asyncio.Future[Receipt]:
        if self.refusal is not None:
            raise self.refusal
        command = unpack(packed)
        return self._ask("put" if command[0] == PUT else command[1], command)

    def get_by_lease(self, key: bytes) -> bytes | Missed | None:
        return MISSED if self.lease is None else self.lease.get(key)

    def submit_get_each(self, groups: Sequence[Sequence[bytes]], *, bytes_max: int) -> Any:
        if self.refusal is not None:
            raise self.refusal
        return self._ask("get_each", list(groups))

    async def count(self) -> Any:
        return await self._ask("count", None)

    async def failover_to(self, node_id: int) -> None:
        await self._ask("failover_to", node_id)

    def _ask(self, kind: str, what: Any) -> asyncio.Future[Any]:
        future = asyncio.get_running_loop().create_future()
        self.asked.append((kind, what, future))
        return future

    def kinds(self) -> list[str]:
        return [kind for kind, _, _ in self.asked]

    def answer(self, position: int, result: Any) -> None:
        future = self.asked[position][2]
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)


class FakeTransport:
    """Records what is written and whether reading is paused."""

    def __init__(self) -> None:
        self.written = b""
        self.writes = 0
        self.is_reading = True
        self.is_closed = False
        self.is_half_closed = False

    def write(self, data: bytes) -> None:
        assert not self.is_closed and not self.is_half_closed
        self.written += data
        self.writes += 1

    def get_extra_info(self, name: str) -> object:
        return ("127.0.0.1", 1) if name == "peername" else None

    def get_write_buffer_size(self) -> int:
        return len(self.written)

    def can_write_eof(self) -> bool:
        return True

    def pause_reading(self) -> None:
        assert self.is_reading
        self.is_reading = False

    def resume_reading(self) -> None:
        assert not self.is_reading
        self.is_reading = True

    def write_eof(self) -> None:
        assert not self.is_half_closed
        self.is_half_closed = True

    def close(self) -> None:
        self.is_closed = True

    abort = close


class Scene:
    """A connection between a fake socket and a fake manager."""

    def __init__(self, token: str = "", role: Role = Role.ADMIN) -> None:
        self.ha = FakeManager()
        tokens = Tokens([make_token("default", role, token)] if token else [])
        service = Service(cast(HaManager, self.ha), value_bytes_max=1 << 20, tokens=tokens)
        self.connection = Connection(service)
        self.transport = FakeTransport()
        self.connection.connection_made(cast(asyncio.Transport, self.transport))

    async def send(self, *requests: str | tuple[bytes, ...]) -> None:
        packed = [tuple(r.encode().split()) if isinstance(r, str) else r for r in requests]
        self.connection.data_received(b"".join(map(pack_request, packed)))
        await self.turn()

    async def answer(self, position: int, result: Any) -> None:
        self.ha.answer(position, result)
        await self.turn()

    async def turn(self) -> None:
        for _ in range(8):
            await asyncio.sleep(0)

    def take(self) -> bytes:
        """Return what was written since the last call."""
        written, self.transport.written = self.transport.written, b""
        return written


Script = Callable[[Scene], Awaitable[None]]


def play(script: Script) -> None:
    async def main() -> None:
        await script(Scene())

    asyncio.run(main())
