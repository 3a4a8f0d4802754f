"""Two processes under one id, one with a copied or an empty directory: the member stays."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from raftha.core import TimeoutNow
from raftha.events import HaEvent
from raftha.net import connection
from raftha.net.wire import Hello, Refusal, encode
from raftha.runtime import introductions
from raftha.version import PROTOCOL_VERSION
from tests.support.certificates import make_cluster, peer_tls
from tests.support.conditions import wait_until_async
from tests.support.peers import Peer, free_members, run

SECRET = b"0123456789abcdef"


@pytest.mark.parametrize(
    ("secret", "has_tls", "incarnation"),
    [(b"", False, 1), (SECRET, False, 1), (b"", True, 1), (b"", False, 2), (SECRET, False, 2)],
)
def test_a_clone_is_refused_and_told_why_while_the_first_process_lives(
    secret: bytes,
    has_tls: bool,
    incarnation: int,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It has a copy of the data directory, or an empty one under the same id."""
    made = make_cluster(tmp_path, 2) if has_tls else None

    async def main() -> None:
        members = free_members(2)
        first, second = (peer_tls(made[i]) if made else None for i in members)
        one = Peer(1, members, first, secret=secret)
        two = Peer(2, members, second, secret=secret, nonce=7)
        elsewhere = members | {2: free_members(1)[1]}
        clone = Peer(2, elsewhere, second, secret=secret, nonce=8, incarnation=incarnation)
        for peer in (one, two):
            await peer.start()
        await wait_until_async(lambda: one.connected == [2] and two.connected == [1])
        await clone.start()
        await wait_until_async(lambda: len(one.cloned) >= 3 and clone.refused >= 3)
        assert (one.connected, one.reasons, two.reasons) == ([2], [], [])
        assert (clone.connected, clone.reasons) == ([], [])
        assert "it refused us: another process runs under this id" in caplog.text
        two.transport.send(TimeoutNow(1, 2, 7))
        await wait_until_async(lambda: len(one.received) == 1)
        # Once the first one stops, the other takes its place at once.
        await two.transport.stop()
        await wait_until_async(lambda: one.connected == [2] and clone.connected == [1])
        clone.transport.send(TimeoutNow(1, 2, 8))
        await wait_until_async(lambda: len(one.received) == 2)
        for peer in (one, clone):
            await peer.transport.stop()

    run(main)


def test_a_clone_that_must_not_dial_is_refused_as_a_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The node with the lower id listens, and asks a member only if that doesn't dial it."""
    monkeypatch.setattr("raftha.net.transport.ASK_S", 0.02)

    async def main() -> None:
        members = free_members(2)
        one, two = Peer(1, members, None, nonce=7), Peer(2, members, None)
        clone = Peer(1, members | {1: free_members(1)[1]}, None, nonce=8)
        for peer in (one, two):
            await peer.start()
        await wait_until_async(lambda: one.connected == [2] and two.connected == [1])
        await clone.start()
        await wait_until_async(lambda: two.cloned != [])
        assert (two.connected, two.reasons, clone.connected) == ([1], [], [])
        for peer in (one, two, clone):
            await peer.transport.stop()

    run(main)


def test_the_recorded_directory_takes_the_place_of_another_one_that_lives() -> None:
    """Else a process with an empty directory, or a stranger, would keep the member out."""

    async def main() -> None:
        members = free_members(2)
        one = Peer(1, members, None)
        squatter = Peer(2, members | {2: free_members(1)[1]}, None, nonce=7, incarnation=2)
        for peer in (one, squatter):
            await peer.start()
        await wait_until_async(lambda: one.connected == [2] and squatter.connected == [1])
        two = Peer(2, members, None, nonce=8)
        await two.start()
        await wait_until_async(lambda: two.connected == [1] and squatter.connected == [])
        await wait_until_async(lambda: one.cloned != [])
        assert (one.connected, two.reasons) == ([2], [])
        for peer in (one, two, squatter):
            await peer.transport.stop()

    run(main)


def test_a_peer_that_accepts_and_then_refuses_is_not_dialled_all_the_time() -> None:
    async def main() -> None:
        members = free_members(2)
        dials = 0

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal dials
            dials += 1
            await reader.read(1)
            writer.write(encode(Hello(PROTOCOL_VERSION, "c" * 32, 1, 2, 1, "")))
            writer.write(encode(Refusal("not you", False)))
            writer.close()

        host, port = members[1].split(":")
        server = await asyncio.start_server(answer, host, int(port))
        two = Peer(2, members, None)
        await two.start()
        await asyncio.sleep(1.5)
        assert 2 <= dials <= 12
        assert len(two.reasons) >= 2, "each of them counted"
        await two.transport.stop()
        server.close()
        await server.wait_closed()

    run(main)


async def pretend(address: str, nonce: int) -> asyncio.StreamWriter:
    """Connect as node 2, and say nothing else."""
    host, port = address.split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(encode(Hello(PROTOCOL_VERSION, "c" * 32, 2, 1, 1, "", nonce=nonce)))
    return writer


@pytest.mark.parametrize("nonce", [7, 8])
def test_a_process_that_restarts_takes_the_place_of_a_silent_one(
    nonce: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "PROBE_S", 0.1)

    async def main() -> None:
        members = free_members(2)
        one = Peer(1, members, None)
        await one.start()
        silent = await pretend(members[1], 7)
        await wait_until_async(lambda: one.connected == [2])
        two = Peer(2, members, None, nonce=nonce)
        await two.start()
        two_sends = TimeoutNow(1, 2, 7)
        await wait_until_async(lambda: two.connected == [1])
        two.transport.send(two_sends)
        await wait_until_async(lambda: one.received == [two_sends])
        assert (one.connected, one.cloned, len(one.reasons)) == ([2], [], 1)
        silent.close()
        for peer in (one, two):
            await peer.transport.stop()

    run(main)


def test_a_process_that_restarts_waits_only_until_the_old_connection_ends() -> None:
    async def main() -> None:
        members = free_members(2)
        one = Peer(1, members, None)
        await one.start()
        silent = await pretend(members[1], 7)
        await wait_until_async(lambda: one.connected == [2])
        newer = [await pretend(members[1], nonce) for nonce in (8, 9)]
        older = one.transport._connected[2]
        await wait_until_async(lambda: len(older._probes) == 2)
        newer[0].close()
        silent.transport.abort()
        await wait_until_async(lambda: one.reasons != [] and one.connected == [2])
        assert one.cloned == []
        for writer in newer:
            writer.close()
        await one.transport.stop()

    run(main)


def test_the_status_names_a_clone_as_long_as_it_dials(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an event once an hour, and stays in the status for a minute after the last refusal."""
    now = 1000.0
    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr("raftha.runtime.introductions.time", clock)
    events: list[HaEvent] = []
    notices = introductions.Notices(1, events.append)
    assert notices.cloned_members() == ()
    for peer in (3, 2, 3):
        notices.cloned(peer, "there")
    assert [event.details()["node_id"] for event in events] == [3, 2]
    now += 50
    notices.cloned(3, "there")
    assert notices.cloned_members() == (2, 3)
    now += 20
    assert notices.cloned_members() == (3,)
    now += 50
    assert notices.cloned_members() == ()
    assert len(events) == 2
