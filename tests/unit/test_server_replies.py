"""The budget of replies: what all connections of a server together may keep in memory."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from raftha.aio import HaManager
from raftha.errors import Overloaded
from raftha.server import replies
from raftha.server.connection import KEY_REPLY_BYTES, Connection
from raftha.server.places import RUN_BYTES_MAX
from raftha.server.replies import ReplyBudget
from raftha.server.tasks import Service
from tests.support.scene import FakeTransport, Scene, play, receipt

MIB = 1 << 20


class Waiter:
    def __init__(self) -> None:
        self.tries = 0
        self.is_cut_off = False

    def on_room(self) -> None:
        self.tries += 1

    def abort(self) -> None:
        self.is_cut_off = True


def second_connection(scene: Scene) -> Connection:
    connection = Connection(scene.connection._service)
    connection.connection_made(cast(asyncio.Transport, FakeTransport()))
    return connection


def test_reservations_are_granted_until_the_budget_is_used() -> None:
    async def script() -> None:
        budget = ReplyBudget(100)
        assert budget.reserve(1000), "what is too large for all goes alone"
        assert budget.is_full
        assert not budget.reserve(1)
        budget.release(1000)
        assert budget.reserve(60)
        assert not budget.reserve(50)
        waiter = Waiter()
        budget.wait(waiter)
        budget.release(60)
        assert waiter.tries == 1

    asyncio.run(script())


def test_stalled_connections_are_cut_off_while_others_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replies, "CROWDED_S", 0.02)
    monkeypatch.setattr(replies, "CHECK_S", 0.01)

    async def script() -> None:
        budget = ReplyBudget(100)
        large, small, waiter = Waiter(), Waiter(), Waiter()
        budget.note_unsent(large, 60)
        budget.note_unsent(small, 40)
        await asyncio.sleep(0.05)
        assert not large.is_cut_off, "no reply waits"
        budget.wait(waiter)
        await asyncio.sleep(0.05)
        assert large.is_cut_off
        assert not small.is_cut_off
        assert waiter.tries
        assert budget.used_bytes == 40

    asyncio.run(script())


def test_a_read_waits_for_room_and_starts_when_there_is_some() -> None:
    async def script(scene: Scene) -> None:
        budget = scene.connection._service.replies = ReplyBudget(4 * MIB)
        scene.connection._replies = budget
        assert budget.reserve(3 * MIB)
        await scene.send("GET a", "SET b 1")
        assert scene.ha.kinds() == []
        budget.release(3 * MIB)
        await scene.turn()
        assert scene.ha.kinds() == ["get_each"]
        await scene.answer(0, [[b"1"]])
        await scene.answer(1, receipt())
        assert scene.take() == b"$1\r\n1\r\n+OK\r\n"
        assert budget.used_bytes == 0

    play(script)


def test_everything_reserved_comes_back_whatever_a_request_ends_with() -> None:
    async def script(scene: Scene) -> None:
        budget = scene.connection._service.replies
        await scene.send("SET a 1 GET", "MULTI", "GET a", "EXEC", "MULTI", "EXEC", "MGET a b")
        assert budget.used_bytes == 2 * MIB
        await scene.answer(0, receipt(None))
        await scene.answer(1, Overloaded("full"))
        assert budget.used_bytes == RUN_BYTES_MAX + 2 * MIB
        await scene.answer(2, [[None, None]])
        assert budget.used_bytes == 0
        scene.ha.refusal = Overloaded("full")
        await scene.send("SET a 1 GET", "GET a", "MULTI", "GET a", "EXEC")
        assert budget.used_bytes == 0
        scene.ha.refusal = None
        await scene.send("GET a")
        scene.connection.connection_lost(None)
        assert budget.used_bytes == 0

    play(script)


def test_what_a_stalled_client_has_not_taken_counts_for_all_connections() -> None:
    async def script(scene: Scene) -> None:
        budget = ReplyBudget(MIB)
        scene.connection._service.replies = budget
        scene.connection._replies = budget
        scene.transport.written = b"x" * MIB
        scene.connection.pause_writing()
        assert budget.is_full
        other = second_connection(scene)
        other.data_received(b"GET a\r\nDBSIZE\r\n")
        assert scene.ha.kinds() == []
        scene.connection.resume_writing()
        await scene.turn()
        assert scene.ha.kinds() == ["get_each"]

    play(script)


def test_a_turn_of_reads_by_lease_is_bounded_by_bytes() -> None:
    async def script(scene: Scene) -> None:
        scene.ha.lease = {b"k": b"v" * (8 * KEY_REPLY_BYTES)}
        await scene.send(*["GET k"] * 32)
        assert scene.transport.writes >= 4
        assert scene.take().count(b"$") == 32

    play(script)


def test_a_service_has_one_budget() -> None:
    async def script(scene: Scene) -> None:
        service = Service(cast(HaManager, scene.ha), value_bytes_max=MIB)
        assert Connection(service)._replies is Connection(service)._replies

    play(script)
