"""Host names to addresses, and addresses to sockets."""

from __future__ import annotations

import asyncio
import socket

import pytest

from raftha.net.addresses import bind, look_up


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
