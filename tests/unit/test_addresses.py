"""Host names to addresses, and addresses to sockets."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from typing import Any

import pytest

from raftha.net import addresses
from raftha.net.addresses import Names, bind, look_up


def test_an_address_is_its_own_number() -> None:
    assert asyncio.run(look_up("127.0.0.1", 1, None)) == ["127.0.0.1"]
    assert asyncio.run(look_up("::1", 1, None)) == ["::1"]


def test_a_name_has_each_address_once() -> None:
    found = asyncio.run(look_up("localhost", 80, None))
    assert "127.0.0.1" in found
    assert len(found) == len(set(found))


def test_all_addresses_of_a_name_are_bound_and_none_listens() -> None:
    async def bound() -> list[socket.socket]:
        return await bind("localhost", 0)

    sockets = asyncio.run(bound())
    try:
        hosts = {each.getsockname()[0] for each in sockets}
        assert "127.0.0.1" in hosts
        listening = {each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) for each in sockets}
        assert listening == {0}
    finally:
        for each in sockets:
            each.close()


@pytest.mark.parametrize(("host", "error"), [("127.0.0.1", OSError), ("a" * 70, UnicodeError)])
def test_an_address_that_cannot_be_bound_leaves_nothing_open(
    host: str, error: type[Exception]
) -> None:
    """A socket left open would be a ResourceWarning, which the tests make an error."""
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(error):
        asyncio.run(bind(host, taken.getsockname()[1]))


def test_a_name_that_hangs_keeps_no_other_waiting_and_is_looked_up_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hangs, asked = threading.Event(), Counter[str]()

    def resolve(host: str, port: int, **_: object) -> list[Any]:
        asked[host] += 1
        if host.startswith("gone"):
            hangs.wait(10)
        return [(2, 1, 6, "", ("127.0.0.1", port))]

    async def script() -> None:
        names = Names("test-names")
        waiting = [asyncio.ensure_future(names.look_up(f"gone-{i % 8}", 1)) for i in range(40)]
        began = asyncio.get_running_loop().time()
        assert await names.look_up("here", 2) == ["127.0.0.1"]
        assert asyncio.get_running_loop().time() - began < 2
        assert max(asked.values()) == 1
        hangs.set()
        assert await asyncio.gather(*waiting) == [["127.0.0.1"]] * 40
        names.close()

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    asyncio.run(script())


def test_an_earlier_answer_serves_while_a_name_hangs_or_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hangs, answer = threading.Event(), ["127.0.0.1"]
    hangs.set()

    def resolve(host: str, port: int, **_: object) -> list[Any]:
        hangs.wait(10)
        if not answer:
            raise OSError("no such name")
        return [(2, 1, 6, "", (answer[0], port))]

    async def script() -> None:
        names = Names("test-names")
        assert await names.look_up("member", 1) == ["127.0.0.1"]
        hangs.clear()
        answer[0] = "127.0.0.2"
        assert await names.look_up("member", 1) == ["127.0.0.1"]
        assert await names.look_up("member", 1) == ["127.0.0.1"]
        hangs.set()
        await asyncio.sleep(0.05)
        assert await names.look_up("member", 1) == ["127.0.0.2"]
        answer.clear()
        assert await names.look_up("member", 1) == ["127.0.0.2"]
        names.keep(set())
        with pytest.raises(OSError, match="no such name"):
            await names.look_up("member", 1)
        hangs.clear()
        under_way = asyncio.ensure_future(names.look_up("member", 1))
        await asyncio.sleep(0)
        names.close()
        with pytest.raises(asyncio.CancelledError):
            await under_way
        hangs.set()

    monkeypatch.setattr(addresses, "PATIENCE_S", 0.02)
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    asyncio.run(script())
