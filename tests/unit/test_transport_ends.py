"""Connections of peers: whose protocols don't meet, and what happens as connections end."""

from __future__ import annotations

import asyncio

import pytest

from raftha.net.wire import Hello, encode
from raftha.version import PROTOCOL_OLDEST, PROTOCOL_VERSION
from tests.support.conditions import wait_until_async
from tests.support.peers import Peer, free_members, run


@pytest.mark.parametrize(
    ("spoken", "upgrade"),
    [((PROTOCOL_VERSION + 1, PROTOCOL_VERSION + 1), 1), ((PROTOCOL_OLDEST - 1, 1), 2)],
)
def test_members_without_a_common_protocol_say_which_must_be_upgraded(
    spoken: tuple[int, int], upgrade: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        members = free_members(2)
        one = Peer(1, members, None)
        await one.start()
        host, port = members[1].split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        newest, oldest = spoken
        writer.write(encode(Hello(newest, "c" * 32, 2, 1, 1, "", oldest)))
        answer = await reader.read(1000)
        assert f"upgrade node {upgrade}".encode() in answer
        assert [(peer, f"upgrade node {upgrade}" in why) for peer, why in one.unsupported] == [
            (2, True)
        ]
        writer.close()
        await one.transport.stop()

    run(main)


def test_members_with_overlapping_protocols_connect() -> None:
    async def main() -> None:
        members = free_members(2)
        one = Peer(1, members, None)
        await one.start()
        host, port = members[1].split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        wider = Hello(PROTOCOL_VERSION + 1, "c" * 32, 2, 1, 1, "", PROTOCOL_VERSION)
        writer.write(encode(wider))
        await wait_until_async(lambda: one.connected == [2])
        assert not one.unsupported
        writer.close()
        await one.transport.stop()

    run(main)


def test_a_connection_that_is_accepted_during_a_pause_does_not_stay_registered() -> None:
    """A node that kept it would take its peer for connected, and never dial it again."""

    async def main() -> None:
        members = free_members(2)
        one = Peer(1, members, None)
        await one.start()
        host, port = members[1].split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        await wait_until_async(lambda: len(one.transport._open) == 1)
        (connection,) = one.transport._open
        paused = asyncio.ensure_future(one.transport.pause())
        await asyncio.sleep(0)  # It waits for the dialers.
        assert not paused.done()
        connection.data_received(encode(Hello(PROTOCOL_VERSION, "c" * 32, 2, 1, 1, "")))
        await paused
        assert not one.transport.is_connected(2)
        writer.close()
        await one.transport.stop()

    run(main)


def test_a_node_stops_although_a_connection_has_just_ended() -> None:
    """uvloop raises for a write to a closed transport; that kept a stopping node from its end."""

    async def main() -> None:
        members = free_members(2)
        one, two = (Peer(i, members, None) for i in members)
        await one.start()
        await two.start()
        await wait_until_async(lambda: one.connected == [2] and two.connected == [1])
        connection = one.transport._connected[2]
        assert connection._transport is not None
        connection._transport.abort()
        await connection.wait_closed()
        one.transport._connected[2] = connection  # As if its end had not been handled yet.
        await one.transport.stop()
        await wait_until_async(lambda: two.connected == [])
        await two.transport.stop()

    run(main)
