"""TLS settings: errors for each kind of wrong file; and the listener's limits."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from raftha.errors import ConfigError
from raftha.net import tls
from raftha.net.certificates import Made, make_ca, make_node
from raftha.net.tls import PeerTls, TlsServer, certified_uri, client_context, listener_context
from raftha.server.access import read_admin_token
from tests.support.certificates import CLUSTER, expire, make_cluster, peer_tls
from tests.support.conditions import wait_until_async

Damage = Callable[[dict[int, Made], Path], object]


def _exchange_keys(made: dict[int, Made], _: Path) -> None:
    made[1].key.write_bytes(made[2].key.read_bytes())


def _take_certificate_of_2(made: dict[int, Made], _: Path) -> None:
    made[1].key.write_bytes(made[2].key.read_bytes())
    made[1].certificate.write_bytes(made[2].certificate.read_bytes())


def _encrypt_key(made: dict[int, Made], _: Path) -> None:
    import subprocess

    encrypted = made[1].key.with_suffix(".enc")
    command = ["openssl", "pkey", "-in", str(made[1].key), "-aes256", "-passout", "pass:x"]
    subprocess.run([*command, "-out", str(encrypted)], check=True)
    made[1].key.write_bytes(encrypted.read_bytes())


def _other_ca(made: dict[int, Made], folder: Path) -> None:
    made[1].ca.write_bytes(make_ca(CLUSTER, folder / "other").ca.read_bytes())


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda made, _: made[1].ca.unlink(), r"can't read tls_ca .*ca\.crt: No such file"),
        (lambda made, _: made[1].certificate.unlink(), "can't read tls_cert .*1.crt: No such file"),
        (lambda made, _: made[1].key.unlink(), "can't read tls_key .*1.key: No such file"),
        (lambda made, _: made[1].key.chmod(0o644), r"open to every user \(chmod 600 .*1.key"),
        (lambda made, _: made[1].key.chmod(0o602), "open to every user"),
        (lambda made, _: made[1].ca.write_text(""), "tls_ca .* holds no certificate"),
        (lambda made, _: made[1].ca.write_bytes(b"\xff\0"), "tls_ca .* holds no certificate"),
        (lambda made, _: made[1].certificate.write_text("?"), "tls_cert .* holds no certificate"),
        (lambda made, _: made[1].key.write_text("?"), "tls_key .* can't be read as PEM"),
        (_encrypt_key, "the key must be unencrypted"),
        (_exchange_keys, r"tls_key .*1\.key does not belong to tls_cert .*1\.crt"),
        (_take_certificate_of_2, "is for raftha://orders/node/2, this node is .*node/1"),
        (_other_ca, "would be refused by the other nodes"),
        (lambda made, folder: expire(made[1], folder / "ca"), "certificate has expired"),
    ],
)
def test_a_fault_in_a_nodes_files_is_reported(damage: Damage, problem: str, tmp_path: Path) -> None:
    made = make_cluster(tmp_path, 2)
    damage(made, tmp_path)
    with pytest.raises(ConfigError, match=problem):
        peer_tls(made[1]).check_own(1, made[1].certificate)


@pytest.mark.parametrize("name", ["tls_ca", "tls_cert", "tls_key"])
def test_a_file_that_vanishes_while_it_is_loaded_is_a_fault_of_the_settings(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any other error would end the renewals, in silence, and revocations with them."""
    made = make_cluster(tmp_path, 1)[1]
    read = tls.read_file

    def read_and_remove(setting: str, path: Path) -> bytes:
        content = read(setting, path)
        if setting == name:
            path.unlink()
        return content

    monkeypatch.setattr(tls, "read_file", read_and_remove)
    with pytest.raises(ConfigError, match="can't read tls_"):
        PeerTls.load(CLUSTER, made.ca, made.certificate, made.key)


def test_a_certificate_about_to_expire_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_ca(CLUSTER, tmp_path)
    made = make_node(tmp_path, 1, tmp_path, days=20)
    peer_tls(made).check_own(1, made.certificate)
    assert "days_left=19" in caplog.text


@pytest.mark.parametrize(
    ("certificate", "uri"),
    [
        (None, ""),
        ({}, ""),
        ({"subjectAltName": (("DNS", "raftha://c/node/1"),)}, ""),
        ({"subjectAltName": (("URI", "spiffe://c/node/1"),)}, ""),
        ({"subjectAltName": (("URI", "raftha://c/node/1"), ("DNS", "a"))}, "raftha://c/node/1"),
        ({"subjectAltName": (("URI", "raftha://c/node/1"), ("URI", "raftha://c/node/2"))}, ""),
    ],
)
def test_a_certificate_is_for_one_node_or_none(certificate: Any, uri: str) -> None:
    assert certified_uri(certificate) == uri


@pytest.mark.parametrize(
    ("content", "mode", "problem"),
    [
        (b"x" * 15, 0o600, "16 to 1024 characters"),
        (b"x" * 1025, 0o600, "16 to 1024 characters"),
        (b"\xff" * 20, 0o600, "not text"),
        (b"x" * 20, 0o644, "open to every user"),
    ],
)
def test_an_unsafe_or_malformed_token_file_is_refused(
    content: bytes, mode: int, problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=problem):
        read_admin_token("auth_token_file", path)


def test_a_token_file_may_end_with_a_newline(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("0123456789abcdef\n")
    path.chmod(0o640)
    assert read_admin_token("auth_token_file", path) == "0123456789abcdef"


# ---------------------------------------------------------------- the listener


class Scene:
    """A listener with room for two, and its refusals."""

    def __init__(self, folder: Path) -> None:
        made = make_cluster(folder, 1)[1]
        self.ca = made.ca
        self.refused: list[str] = []
        self.accepted = 0
        self.server = TlsServer(
            listener_context(made.certificate, made.key),
            self._make_protocol,
            room=lambda: 2,
            refused=lambda _, reason: self.refused.append(reason),
            handshake_s=0.1,
        )

    def _make_protocol(self) -> asyncio.Protocol:
        self.accepted += 1
        return asyncio.Protocol()

    async def start(self) -> tuple[str, int]:
        with socket.create_server(("127.0.0.1", 0)) as found:
            address = found.getsockname()
        await self.server.bind(*address)
        await self.server.start_serving()
        return address[0], address[1]

    async def wait_refused(self, count: int) -> None:
        await wait_until_async(lambda: len(self.refused) >= count)

    async def stop(self) -> None:
        self.server.close()
        await self.server.wait_closed()


def test_stuck_handshakes_are_counted_and_end_in_time(tmp_path: Path) -> None:
    async def main() -> None:
        scene = Scene(tmp_path)
        host, port = await scene.start()
        silent = [socket.create_connection((host, port), 5) for _ in range(4)]
        await scene.wait_refused(4)
        over, late = scene.refused[:2], scene.refused[2:]
        assert over == ["too many connections at once"] * 2
        assert all("taking longer" in reason for reason in late)
        assert scene.accepted == 2
        for each in silent:
            each.close()
        transport, _ = await asyncio.get_running_loop().create_connection(
            asyncio.Protocol, host, port, ssl=client_context(scene.ca)
        )
        transport.abort()
        await scene.stop()

    uvloop.run(main())


@pytest.mark.parametrize("sent", [b"*1\r\n$4\r\nPING\r\n", b"\x16\x03\x01\xff\xff" + b"\xff" * 500])
def test_bytes_that_are_not_tls_are_refused_and_the_listener_goes_on(
    sent: bytes, tmp_path: Path
) -> None:
    async def main() -> None:
        scene = Scene(tmp_path)
        host, port = await scene.start()
        for count in (1, 2, 3):
            with socket.create_connection((host, port), 5) as stranger:
                stranger.sendall(sent)
                await scene.wait_refused(count)
        assert all("TLS handshake failed" in reason for reason in scene.refused)
        await scene.stop()

    uvloop.run(main())


def test_a_stopping_listener_ends_handshakes_under_way(tmp_path: Path) -> None:
    async def main() -> None:
        scene = Scene(tmp_path)
        host, port = await scene.start()
        with socket.create_connection((host, port), 5):
            await wait_until_async(lambda: scene.accepted > 0)
            await scene.stop()

    uvloop.run(main())


def test_an_address_in_use_is_found_before_any_client_is_served(tmp_path: Path) -> None:
    async def main() -> None:
        scene = Scene(tmp_path)
        with (
            socket.create_server(("127.0.0.1", 0)) as taken,
            pytest.raises(OSError, match="in use"),
        ):
            await scene.server.bind(*taken.getsockname())

    uvloop.run(main())


def test_a_failed_accept_is_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tls, "ACCEPT_PAUSE_S", 0.001)

    async def main() -> None:
        scene = Scene(tmp_path)
        await scene.start()
        # A listening socket that is shut down refuses every accept.
        for listener in scene.server._sockets:
            listener.shutdown(socket.SHUT_RDWR)
        await wait_until_async(lambda: caplog.text.count("accept failed") > 3)
        await scene.stop()

    uvloop.run(main())


@pytest.mark.parametrize("turns", range(5))
def test_a_connection_accepted_while_the_server_closes_is_closed_too(
    tmp_path: Path, turns: int
) -> None:
    """An unclosed socket is a warning when it is collected, and warnings are errors."""

    async def main() -> None:
        scene = Scene(tmp_path)
        await scene.start()
        with socket.create_connection(scene.server._sockets[0].getsockname()):
            for _ in range(turns):
                await asyncio.sleep(0)
            await scene.stop()

    uvloop.run(main())
    gc.collect()


def test_clients_are_shown_a_certificate_of_their_ca_for_the_dialled_host(
    tmp_path: Path,
) -> None:
    made = make_cluster(tmp_path, 1)[1]
    other = make_ca(CLUSTER, tmp_path / "other")
    assert client_context(made.ca).check_hostname
    assert client_context(made.ca).verify_mode == ssl.CERT_REQUIRED

    async def main() -> None:
        scene = Scene(tmp_path / "listener")
        host, port = await scene.start()
        connect = asyncio.get_running_loop().create_connection
        for ca, name in ((other.ca, host), (scene.ca, "example.org")):
            with pytest.raises(ssl.SSLCertVerificationError):
                await connect(
                    asyncio.Protocol, host, port, ssl=client_context(ca), server_hostname=name
                )
        await scene.stop()

    uvloop.run(main())
