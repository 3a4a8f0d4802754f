"""Peers without TLS share a secret: what a peer without it can't do, and what a proof is worth."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raftha.cli.app import app
from raftha.core import TimeoutNow
from raftha.errors import ConfigError
from raftha.net import peer_secret
from raftha.net.peer_secret import is_proven, load_secret, make_secret, prove
from raftha.net.wire import Greeting, Hello, Proof, Refusal, decode_greeting, encode
from raftha.version import PROTOCOL_VERSION
from tests.support.conditions import wait_until_async
from tests.support.peers import Peer, free_members, run

SECRET, OTHER = b"0123456789abcdef", b"fedcba9876543210"


def hello(sender: int, to: int, challenge: bytes = b"") -> Hello:
    return Hello(PROTOCOL_VERSION, "c" * 32, sender, to, 1, "", challenge=challenge)


def test_members_with_one_secret_talk() -> None:
    async def main() -> None:
        members = free_members(3)
        peers = [Peer(i, members, None, secret=SECRET) for i in members]
        for peer in peers:
            await peer.start()
        await wait_until_async(lambda: all(len(peer.connected) == 2 for peer in peers))
        for _ in range(100):
            peers[0].transport.send(TimeoutNow(3, 1, 7))
            peers[2].transport.send(TimeoutNow(1, 3, 8))
        await wait_until_async(lambda: len(peers[0].received) == len(peers[2].received) == 100)
        for peer in peers:
            await peer.transport.stop()
        assert sum(peer.transport.refused_total for peer in peers) == 0

    run(main)


@pytest.mark.parametrize(
    ("ones", "twos", "reasons"),
    [
        (SECRET, OTHER, ("it has another secret", "it refused us: it has another secret")),
        (SECRET, b"", ("it has no secret", "it refused us: it has no secret")),
        (b"", SECRET, ("it asks for a secret", "it refused us: it asks for a secret")),
    ],
)
def test_a_member_without_the_secret_is_refused_and_both_say_what_to_do(
    ones: bytes, twos: bytes, reasons: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        members = free_members(2)
        one, two = Peer(1, members, None, secret=ones), Peer(2, members, None, secret=twos)
        for peer in (one, two):
            await peer.start()
        await wait_until_async(lambda: one.refused > 1 and two.refused > 1)
        assert one.connected == two.connected == []
        for node_id, reason in enumerate(reasons, start=1):
            line = f"peer refused node={node_id}"
            said = [r.getMessage() for r in caplog.records if line in r.getMessage()]
            assert len(said) == 1, "logged once"
            assert reason in said[0]
            assert "give all members the same peer_secret_file" in said[0]
        for peer in (one, two):
            await peer.transport.stop()

    run(main)


async def converse(address: str, *frames: Greeting) -> list[Greeting]:
    """Send these, and return what comes back until the end."""
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"".join(encode(frame) for frame in frames))
    answer = await reader.read()
    frames_back: list[Greeting] = []
    while answer:
        size = int.from_bytes(answer[:4], "little")
        frames_back.append(decode_greeting(answer[4 : 4 + size]))
        answer = answer[4 + size :]
    writer.close()
    return frames_back


def test_a_stranger_gets_no_proof_and_no_say(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        members = free_members(1)
        one = Peer(1, members, None, secret=SECRET)
        await one.start(frozenset({5}))
        claim = hello(4, 1, b"c" * 16)
        said = await converse(members[1], claim, Proof(b"m" * 32))
        assert [type(frame) for frame in said] == [Hello, Refusal]
        # One that was removed learns it only if it holds the secret.
        said = await converse(members[1], claim._replace(sender=5), Proof(b"m" * 32))
        assert said[-1] == Refusal(peer_secret.WRONG, False)
        assert await converse(members[1], claim, claim) != []
        assert await converse(members[1], Proof(b"m" * 32)) == []
        assert "a second Hello" in caplog.text
        assert "the first frame must be Hello" in caplog.text
        assert one.connected == []
        await one.transport.stop()

    run(main)


def test_only_a_member_that_holds_the_secret_is_reported_as_unsupported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    newer = PROTOCOL_VERSION + 1

    async def main() -> None:
        members = free_members(2)
        one = Peer(1, members, None, secret=SECRET)
        await one.start()
        claim = hello(2, 1)._replace(protocol_version=newer, protocol_oldest=newer)
        for challenge in (b"", b"c" * 16):
            said = await converse(members[1], claim._replace(challenge=challenge), Proof(b"m" * 32))
            assert isinstance(said[-1], Refusal)
            assert said[-1].reason.endswith("upgrade node 1")
            assert one.unsupported == [], "a stranger says so"
        two = Peer(2, members, None, secret=SECRET)
        two.transport.introduce(protocol_version=newer, protocol_oldest=newer)
        await two.start()
        await wait_until_async(lambda: one.unsupported != [] and two.refused > 0)
        assert all(
            peer == 2 and reason.endswith("upgrade node 1") for peer, reason in one.unsupported
        )
        assert "it refused us: node 2 speaks protocol" in caplog.text
        for peer in (one, two):
            await peer.transport.stop()

    run(main)


def test_a_stranger_at_a_members_address_is_not_reported_as_unsupported() -> None:
    async def main() -> None:
        members = free_members(2)

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1000)
            newer = hello(1, 2, b"c" * 16)._replace(
                protocol_version=PROTOCOL_VERSION + 1, protocol_oldest=PROTOCOL_VERSION + 1
            )
            writer.write(encode(newer) + encode(Proof(b"m" * 32)))
            await reader.read()
            writer.close()

        host, port = members[1].split(":")
        stranger = await asyncio.start_server(answer, host, int(port))
        two = Peer(2, members, None, secret=SECRET)
        await two.start()
        await wait_until_async(lambda: two.refused > 1)
        assert two.unsupported == []
        await two.transport.stop()
        stranger.close()

    run(main)


def test_a_proof_is_not_believed_before_it_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        members = free_members(1)
        one = Peer(1, members, None)
        await one.start()
        await converse(members[1], hello(4, 1), Proof(b"m" * 32))
        assert "a second Proof" in caplog.text
        await one.transport.stop()

    run(main)


def test_a_removed_node_with_the_secret_learns_it() -> None:
    async def main() -> None:
        members = free_members(2)
        one = Peer(1, {1: members[1]}, None, secret=SECRET)
        two = Peer(2, members, None, secret=SECRET)
        await one.start(frozenset({2}))
        await two.start()
        await wait_until_async(lambda: two.removed)
        for peer in (one, two):
            await peer.transport.stop()

    run(main)


def test_a_proof_counts_for_its_connection_direction_ids_and_cluster_only() -> None:
    one, two = hello(1, 2, b"1" * 16), hello(2, 1, b"2" * 16)
    proof = prove(SECRET, two, one, dials=True)
    assert is_proven(SECRET, proof, two, one, dials=True)
    assert not is_proven(OTHER, proof, two, one, dials=True)
    assert not is_proven(SECRET, proof, two, one, dials=False)
    assert not is_proven(SECRET, proof, one, two, dials=True)
    assert not is_proven(SECRET, b"", two, one, dials=True)
    for change in ({"sender": 3}, {"cluster_id": "d"}, {"challenge": b"3" * 16}):
        assert not is_proven(SECRET, proof, two._replace(**change), one, dials=True)
        assert not is_proven(SECRET, proof, two, one._replace(**change), dials=True)
    assert not is_proven(SECRET, proof, two._replace(cluster_name="x"), one, dials=True)


def test_a_challenge_must_be_of_the_right_size_and_not_the_own_one() -> None:
    own = hello(1, 2, b"1" * 16)
    assert peer_secret.missing(own, hello(2, 1, b"2" * 16), SECRET) == ""
    assert "its challenge has 1 bytes" in peer_secret.missing(own, hello(2, 1, b"2"), SECRET)
    reflected = hello(2, 1, own.challenge)
    assert "this node's own" in peer_secret.missing(own, reflected, SECRET)


def test_a_secret_is_made_for_its_owner_only_and_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "peer-secret"
    make_secret(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    secret = load_secret(path)
    assert len(secret) == 64
    with pytest.raises(ConfigError, match=r"can't make peer_secret_file .*: File exists"):
        make_secret(path)
    assert load_secret(str(path)) == secret
    assert load_secret("") == b""


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [
        ("short\n", 0o600, "must hold 16 to 1024 bytes"),
        ("x" * 1025, 0o600, "must hold 16 to 1024 bytes"),
        ("x" * 32, 0o644, "is open to every user"),
        (None, 0, r"can't read peer_secret_file .*: No such file"),
    ],
)
def test_a_secret_that_protects_nothing_is_refused(
    tmp_path: Path, content: str | None, mode: int, reason: str
) -> None:
    path = tmp_path / "peer-secret"
    if content is not None:
        path.write_text(content)
        os.chmod(path, mode)
    with pytest.raises(ConfigError, match=reason):
        load_secret(path)


def test_init_makes_the_secret_that_the_settings_name(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text(
        'node_id = 1\ndata_dir = "data"\npeer_secret_file = "peer-secret"\n'
        '[members]\n1 = "127.0.0.1:7101"\n2 = "127.0.0.1:7102"\n'
    )
    path = tmp_path / "peer-secret"
    command = ["init", "--config", str(tmp_path / "node.toml")]
    refused = CliRunner().invoke(app, command, input="y\nn\n")
    assert "nothing was changed" in refused.output
    assert not path.exists()
    for is_first in (True, False):
        made = CliRunner().invoke(app, [*command, "--yes"])
        assert made.exit_code == 0
        assert (f"made {path}: copy it" in made.output) == is_first
    assert len(load_secret(path)) == 64
