"""Peers over TLS: which are admitted or refused; both sides report it and go on."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raftha.core import TimeoutNow
from raftha.errors import WireError
from raftha.net import connection, slots, transport
from raftha.net.certificates import Made, make_ca, make_node
from raftha.net.introductions import difference
from raftha.net.tls import PeerTls
from raftha.net.wire import Hello, Refusal, encode
from raftha.node.messages import Forward, PeerMessage
from raftha.version import PROTOCOL_VERSION
from tests.support.certificates import CLUSTER, expire, make_cluster, peer_tls
from tests.support.conditions import wait_until_async
from tests.support.peers import Peer, free_members, run


def test_peers_with_their_own_certificates_talk(tmp_path: Path) -> None:
    made = make_cluster(tmp_path, 3)

    async def main() -> None:
        members = free_members(3)
        peers = [Peer(i, members, peer_tls(made[i])) for i in members]
        for peer in peers:
            await peer.start()
        await wait_until_async(lambda: all(len(peer.connected) == 2 for peer in peers))
        for _ in range(1000):
            peers[0].transport.send(TimeoutNow(3, 1, 7))
            peers[2].transport.send(TimeoutNow(1, 3, 8))
        await wait_until_async(lambda: len(peers[0].received) == len(peers[2].received) == 1000)
        await peers[1].transport.stop()
        await wait_until_async(lambda: peers[0].connected == [3] and peers[2].connected == [1])
        for peer in peers:
            await peer.transport.stop()
        assert sum(peer.transport.refused_total for peer in peers) == 0

    run(main)


@pytest.mark.parametrize("has_tls", [False, True])
def test_both_sides_of_a_lost_connection_learn_why(tmp_path: Path, has_tls: bool) -> None:
    made = make_cluster(tmp_path, 2) if has_tls else None

    async def main() -> None:
        members = free_members(2)
        one, two = (Peer(i, members, peer_tls(made[i]) if made else None) for i in members)
        for peer in (one, two):
            await peer.start()
        for error, reason in ((TimeoutError(110, "timed out"), "timeout"), (None, "network_error")):
            await wait_until_async(lambda: one.connected == [2] and two.connected == [1])
            connection = one.transport._connected[2]
            # As the kernel reports a peer that no longer acknowledges, or a process that ended.
            connection.connection_lost(error)
            connection.abandon()
            assert one.reasons[-1] == reason
            await wait_until_async(lambda: two.connected == [] or two.reasons != [])
        await wait_until_async(lambda: one.connected == [2] and two.connected == [1])
        await one.transport.stop()
        await wait_until_async(lambda: two.connected == [])
        assert two.reasons[-1] == "node_shutdown"
        await two.transport.stop()
        assert one.transport.refused_total == two.transport.refused_total == 0

    run(main)


def _of_3(made: dict[int, Made], _: Path) -> PeerTls | None:
    return peer_tls(made[3])


def _plain(made: dict[int, Made], _: Path) -> PeerTls | None:
    del made
    return None


def _of_another_ca(made: dict[int, Made], folder: Path) -> PeerTls | None:
    del made
    make_ca(CLUSTER, folder / "other")
    return peer_tls(make_node(folder / "other", 2, folder / "other"))


def _of_another_cluster_under_the_ca(made: dict[int, Made], folder: Path) -> PeerTls | None:
    """As if one CA had signed for two clusters: the cluster's name must differ."""
    del made
    other = make_cluster(folder / "other", 2, "billing")[2]
    contexts = peer_tls(other, "billing")
    for context in (contexts.server, contexts.client):
        context.load_verify_locations(folder / "ca" / "ca.crt")
    return PeerTls(CLUSTER, contexts.server, contexts.client)


def _expired(made: dict[int, Made], folder: Path) -> PeerTls | None:
    expire(made[2], folder / "ca")
    return peer_tls(made[2])


def _without_certificate(made: dict[int, Made], _: Path) -> PeerTls | None:
    contexts = peer_tls(made[2])
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations(made[2].ca)
    return PeerTls(CLUSTER, contexts.server, client)


def _too_old(made: dict[int, Made], _: Path) -> PeerTls | None:
    contexts = peer_tls(made[2])
    for context in (contexts.server, contexts.client):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    return contexts


STRANGERS = [
    (_of_3, ["its certificate is for raftha://orders/node/3, not raftha://orders/node/2"]),
    (_plain, ["wrong version number", "it speaks TLS, which is not configured here"]),
    (_of_another_ca, ["isn't of this CA"]),
    (_expired, ["certificate has expired"]),
    (_without_certificate, ["peer did not return a certificate"]),
    (_too_old, ["unsupported protocol", "alert protocol version"]),
]


@pytest.mark.parametrize(
    ("make_tls", "reasons", "stranger_is_dialler"),
    [
        (*stranger, dials)
        for stranger in STRANGERS
        for dials in (True, False)
        if dials or stranger[0] is not _without_certificate  # Listeners can't go without.
    ],
)
def test_a_peer_that_cannot_prove_its_id_is_refused_and_both_report_it(
    make_tls: Callable[[dict[int, Made], Path], PeerTls | None],
    reasons: list[str],
    stranger_is_dialler: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = make_cluster(tmp_path, 3)

    async def main() -> None:
        members = free_members(3)
        # The higher id dials. Seen from the stranger, node 2, the other is node 1 or node 3.
        other_id = 1 if stranger_is_dialler else 3
        other = Peer(other_id, members, peer_tls(made[other_id]))
        stranger = Peer(2, members, make_tls(made, tmp_path))
        for peer in (other, stranger):
            await peer.start()

        def is_logged() -> bool:
            return all(f"peer refused node={i}" in caplog.text for i in (2, other_id))

        await wait_until_async(is_logged)
        assert not other.connected
        assert any(reason in caplog.text for reason in reasons), caplog.text
        await stranger.transport.stop()
        right = Peer(2, members, peer_tls(made[2])) if make_tls is not _expired else None
        if right is not None:
            await right.start()
            await wait_until_async(lambda: other.connected == [2])
            await right.transport.stop()
        await other.transport.stop()

    run(main)


def test_the_clusters_name_tells_clusters_under_one_ca_apart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = make_cluster(tmp_path, 1)

    async def main() -> None:
        members = free_members(2)
        own = peer_tls(made[1])
        stranger = Peer(2, members, _of_another_cluster_under_the_ca(made, tmp_path))
        for context in (own.server, own.client):
            context.load_verify_locations(tmp_path / "other" / "ca" / "ca.crt")
        other = Peer(1, members, own)
        for peer in (other, stranger):
            await peer.start()
        await wait_until_async(lambda: "is for raftha://billing/node/2, not raftha" in caplog.text)
        assert not other.connected
        for peer in (other, stranger):
            await peer.transport.stop()

    run(main)


def test_a_removed_node_is_refused_and_learns_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = make_cluster(tmp_path, 3)

    async def main() -> None:
        members = free_members(3)
        one = Peer(1, {1: members[1]}, peer_tls(made[1]))
        removed = Peer(3, members, peer_tls(made[3]))
        await one.start(frozenset({3}))
        await removed.start()
        await wait_until_async(lambda: removed.removed)
        assert "the node was removed from the cluster" in caplog.text
        assert not one.connected
        for peer in (one, removed):
            await peer.transport.stop()

    run(main)


@pytest.mark.parametrize("recorded", [0, 2])
def test_a_node_with_another_data_directory_cannot_tell_a_member_that_it_was_removed(
    recorded: int,
) -> None:
    async def main() -> None:
        members = free_members(2)
        one = Peer(1, {1: members[1]}, None)
        two = Peer(2, members, None)
        two.recorded = {1: recorded, 2: 1}
        await one.start(frozenset({2}))
        await two.start()
        await wait_until_async(lambda: two.refused >= 3)
        assert not two.removed
        for peer in (one, two):
            await peer.transport.stop()

    run(main)


@pytest.mark.parametrize(
    ("differing", "reason"),
    [
        ({"cluster_name": "other"}, "cluster 'other'"),
        ({"cluster_id": "d" * 32}, "they were founded apart"),
        ({"lineage": "2" * 32}, "forked the cluster's history"),
        ({"stance": 9}, "stance 9 is unknown"),
    ],
)
def test_a_node_of_another_cluster_or_history_is_refused(
    differing: dict[str, Any], reason: str
) -> None:
    own = Hello(PROTOCOL_VERSION, "c" * 32, 1, 2, 1, "", lineage="1" * 32)
    other = own._replace(sender=2, to=1)
    assert difference(own, other) == ""
    assert reason in difference(own, other._replace(**differing))
    assert difference(own._replace(cluster_id="", lineage=""), other) == ""


@pytest.mark.parametrize("uses_tls", [True, False])
def test_a_stranger_that_connects_cannot_tell_a_node_that_it_was_removed(
    uses_tls: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = make_cluster(tmp_path, 3)

    async def main() -> None:
        members = free_members(1)
        one = Peer(1, members, peer_tls(made[1]) if uses_tls else None)
        await one.start()
        host, port = members[1].split(":")
        context = peer_tls(made[3]).client if uses_tls else None
        name = "" if uses_tls else None
        liar, _ = await asyncio.get_running_loop().create_connection(
            asyncio.Protocol, host, int(port), ssl=context, server_hostname=name
        )
        liar.write(encode(Refusal("leave", True)))
        await wait_until_async(lambda: "it refused us: leave" in caplog.text)
        assert not one.removed
        await one.transport.stop()

    run(main)


def test_silence_after_the_tls_handshake_counts_toward_the_whole_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connection, "HANDSHAKE_TIMEOUT_S", 0.1)
    made = make_cluster(tmp_path, 2)

    async def main() -> None:
        members = free_members(1)
        one = Peer(1, members, peer_tls(made[1]))
        await one.start()
        host, port = members[1].split(":")
        await asyncio.get_running_loop().create_connection(
            asyncio.Protocol, host, int(port), ssl=peer_tls(made[2]).client, server_hostname=""
        )
        await wait_until_async(lambda: "it sent no hello in time" in caplog.text)
        await one.transport.stop()

    run(main)


def test_connections_in_the_tls_handshake_count_among_the_undecided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(slots, "MEMBER_MAX", 3)
    made = make_cluster(tmp_path, 1)

    async def main() -> None:
        members = free_members(1)
        one = Peer(1, members, peer_tls(made[1]))
        await one.start()
        host, port = members[1].split(":")
        silent = [socket.create_connection((host, int(port)), 5) for _ in range(4)]
        await wait_until_async(lambda: "too many connections at once" in caplog.text)
        assert one.transport.refused_total == one.refused == 1
        # The oldest one was pushed out, and the others stay.
        silent[0].setblocking(False)
        assert await asyncio.get_running_loop().sock_recv(silent[0], 1) == b""
        assert len(one.transport._slots) == 3
        for each in silent:
            each.close()
        await wait_until_async(lambda: len(one.transport._slots) == 0)
        await one.transport.stop()

    run(main)


@pytest.mark.parametrize("has_tls", [False, True])
def test_a_member_connects_while_strangers_take_every_slot(tmp_path: Path, has_tls: bool) -> None:
    made = make_cluster(tmp_path, 2) if has_tls else None

    async def main() -> None:
        members = free_members(2)
        one, two = (Peer(i, members, peer_tls(made[i]) if made else None) for i in members)
        await one.start()
        host, port = members[1].split(":")

        async def stay() -> None:
            while True:
                stranger, writer = await asyncio.open_connection(host, int(port))
                try:
                    with contextlib.suppress(OSError):
                        await stranger.read()
                finally:
                    writer.transport.abort()
                await asyncio.sleep(0.01)

        strangers = [asyncio.create_task(stay()) for _ in range(100)]
        await wait_until_async(lambda: one.refused > 100)
        await two.start()
        await wait_until_async(lambda: one.connected == [2] and two.connected == [1])
        for task in strangers:
            task.cancel()
        await asyncio.gather(*strangers, return_exceptions=True)
        for peer in (one, two):
            await peer.transport.stop()

    run(main)


def test_nodes_that_are_no_members_take_only_so_many_connections() -> None:
    """In plain mode a stranger can say Hello under any number of ids."""

    async def main() -> None:
        members = free_members(2)
        one, two = (Peer(i, members, None) for i in members)
        for peer in (one, two):
            await peer.start()
        host, port = members[1].split(":")
        writers = []
        for number in range(100, 100 + 3 * transport.UNKNOWN_MAX):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(encode(Hello(PROTOCOL_VERSION, "c" * 32, number, 1, 1, "")))
            writers.append(writer)
        newest = 99 + 3 * transport.UNKNOWN_MAX
        await wait_until_async(
            lambda: newest in one.connected and len(one.connected) <= transport.UNKNOWN_MAX + 1
        )
        assert 2 in one.connected, "no member is pushed out"
        for writer in writers:
            writer.close()
        for peer in (one, two):
            await peer.transport.stop()

    run(main)


@pytest.mark.parametrize("is_member", [True, False])
def test_a_hello_with_the_nodes_own_id_is_refused(
    is_member: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        members = free_members(2)
        one = Peer(1, members, None)
        one.members = members if is_member else {2: members[2]}
        await one.start()
        host, port = members[1].split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(encode(Hello(PROTOCOL_VERSION, "c" * 32, 1, 1, 1, "")))
        await wait_until_async(lambda: "it claims to be node 1, which is this node" in caplog.text)
        assert one.connected == []
        writer.close()
        await one.transport.stop()

    run(main)


def test_a_message_that_the_node_refuses_closes_the_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        members = free_members(2)
        one, two = (Peer(i, members, None) for i in members)

        def refuse(message: PeerMessage) -> None:
            raise WireError("a term that can't be true")

        monkeypatch.setattr(one, "on_message", refuse)
        for peer in (one, two):
            await peer.start()
        await wait_until_async(lambda: one.connected == [2] and two.connected == [1])
        two.transport.send(TimeoutNow(1, 2, 7))
        await wait_until_async(lambda: "a term that can't be true" in caplog.text)
        assert one.refused == 1
        for peer in (one, two):
            await peer.transport.stop()

    run(main)


def test_a_strangers_words_can_not_pass_for_lines_of_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        members = free_members(1)
        one = Peer(1, members, None)
        await one.start()
        host, port = members[1].split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        forged = "x\nlevel=INFO all is well\x1b[2J" + "y" * 900
        writer.write(encode(Hello(PROTOCOL_VERSION, forged, 2, 1, 1, "")))
        await wait_until_async(lambda: "peer refused" in caplog.text)
        (message,) = [r.getMessage() for r in caplog.records if "peer refused" in r.getMessage()]
        assert message.isprintable()
        assert len(message) < 500
        writer.close()
        await one.transport.stop()

    run(main)


def test_a_peer_that_takes_nothing_is_dropped_before_it_takes_all_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("raftha.net.connection.OUTGOING_BYTES_MAX", 1 << 20)

    async def main() -> None:
        members = free_members(1)
        peer = Peer(1, members, None)
        await peer.start()
        host, port = members[1].split(":")
        _, writer = await asyncio.open_connection(host, int(port), limit=1024)
        writer.write(encode(Hello(PROTOCOL_VERSION, "c" * 32, 2, 1, 1, "")))
        await wait_until_async(lambda: peer.connected == [2])
        message = Forward(2, 1, bytes(64 * 1024))
        sent = 0
        while peer.connected:
            assert sent < 1000, "64 MiB are held for a peer that reads nothing"
            peer.transport.send(message)
            sent += 1
            await asyncio.sleep(0)
        assert peer.transport.refused_total == 1
        writer.transport.abort()
        await peer.transport.stop()

    run(main)
