"""`raftha cert`: the files that it makes fit together, and it never overwrites any."""

from __future__ import annotations

import datetime as dt
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography import x509

import raftha
from raftha.errors import ConfigError
from raftha.net.certificate_renewal import Renewal
from raftha.net.certificates import make_ca, make_node
from raftha.net.tls import Revoked, node_uri
from tests.support.certificates import CLUSTER, make_cluster, peer_tls


def test_a_node_accepts_what_was_made_for_it(tmp_path: Path) -> None:
    for node_id, made in make_cluster(tmp_path).items():
        peer_tls(made).check_own(node_id, made.certificate)


def test_another_tool_finds_the_chain_in_order(tmp_path: Path) -> None:
    made = make_cluster(tmp_path)[1]
    for purpose in ("sslserver", "sslclient"):
        command = ["openssl", "verify", "-x509_strict", "-purpose", purpose]
        result = subprocess.run(
            [*command, "-CAfile", str(made.ca), str(made.certificate)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", ["orders", "ü" * 32, "a/b node/1", "x" * 64])
def test_any_cluster_name_comes_back_from_the_ca(name: str, tmp_path: Path) -> None:
    made = make_cluster(tmp_path, 1, name)[1]
    peer_tls(made, name).check_own(1, made.certificate)
    with pytest.raises(ConfigError, match="this node is raftha://another/node/1"):
        peer_tls(made, "another").check_own(1, made.certificate)


def test_no_two_names_share_a_uri() -> None:
    assert node_uri("a", 1) != node_uri("a/node/1", 1)
    assert len({node_uri(name, 1) for name in ("a/b", "a%2Fb", "a b", "a+b", "A")}) == 5


def test_keys_are_for_their_owner_only(tmp_path: Path) -> None:
    make_cluster(tmp_path)
    for path in [*tmp_path.glob("*.key"), tmp_path / "ca" / "ca.key"]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    make_cluster(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    with pytest.raises(ConfigError, match="there already"):
        make_ca(CLUSTER, tmp_path / "ca")
    with pytest.raises(ConfigError, match="there already"):
        make_node(tmp_path / "ca", 1, tmp_path)
    (tmp_path / "node-1.crt").unlink()
    with pytest.raises(ConfigError, match=r"node-1\.key is there already"):
        make_node(tmp_path / "ca", 1, tmp_path)
    del before[tmp_path / "node-1.crt"]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_two_cas_do_not_share_a_folder(tmp_path: Path) -> None:
    make_cluster(tmp_path)
    make_ca(CLUSTER, tmp_path / "other")
    with pytest.raises(ConfigError, match="another CA"):
        make_node(tmp_path / "other", 9, tmp_path)
    assert not (tmp_path / "node-9.key").exists()


def test_days_count_from_now(tmp_path: Path) -> None:
    make_ca(CLUSTER, tmp_path)
    made = make_node(tmp_path, 1, tmp_path, days=3)
    certificate = x509.load_pem_x509_certificate(made.certificate.read_bytes())
    assert made.expires == certificate.not_valid_after_utc
    left = made.expires - dt.datetime.now(dt.UTC)
    assert dt.timedelta(days=2.99) < left <= dt.timedelta(days=3)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"node_id": 0}, "node id"),
        ({"node_id": 1 << 32}, "node id"),
        ({"days": 0}, "days"),
        ({"days": 1 << 40}, "days"),
        ({"hosts": ["ü"]}, "host"),
        ({"hosts": [""]}, "host"),
        ({"ca_folder": Path("/nowhere")}, "can't read the CA's certificate"),
        ({"folder": Path("/proc/nowhere")}, "can't write"),
    ],
)
def test_a_failure_to_make_certificates_is_explained(
    changes: dict[str, object], named: str, tmp_path: Path
) -> None:
    make_ca(CLUSTER, tmp_path)
    arguments = {"ca_folder": tmp_path, "node_id": 1, "folder": tmp_path, **changes}
    with pytest.raises(ConfigError, match=named):
        make_node(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "x" * 65])
def test_a_cluster_name_that_no_node_could_have_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="1 to 64 bytes"):
        make_ca(name, tmp_path)


def test_a_ca_with_the_key_of_another_is_refused(tmp_path: Path) -> None:
    make_ca(CLUSTER, tmp_path / "a")
    make_ca(CLUSTER, tmp_path / "b")
    (tmp_path / "a" / "ca.key").write_bytes((tmp_path / "b" / "ca.key").read_bytes())
    with pytest.raises(ConfigError, match="is not the key of"):
        make_node(tmp_path / "a", 1, tmp_path)
    (tmp_path / "a" / "ca.key").chmod(0o604)
    with pytest.raises(ConfigError, match="open to every user"):
        make_node(tmp_path / "a", 1, tmp_path)


@pytest.mark.parametrize("content", [b"", b"-----BEGIN CERTIFICATE-----\n", b"\xff"])
def test_a_folder_without_a_ca_is_refused(content: bytes, tmp_path: Path) -> None:
    made = make_ca(CLUSTER, tmp_path)
    made.ca.write_bytes(content)
    with pytest.raises(ConfigError, match="holds no CA"):
        make_node(tmp_path, 1, tmp_path)


def test_a_nodes_certificate_is_no_ca(tmp_path: Path) -> None:
    made = make_cluster(tmp_path, 1)[1]
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "ca.crt").write_bytes(made.certificate.read_bytes())
    (tmp_path / "fake" / "ca.key").write_bytes(made.key.read_bytes())
    (tmp_path / "fake" / "ca.key").chmod(0o600)
    with pytest.raises(ConfigError, match="holds no CA"):
        make_node(tmp_path / "fake", 2, tmp_path)


def test_revocations_name_nodes_and_serial_numbers(tmp_path: Path) -> None:
    path = tmp_path / "revoked"
    path.write_text("# lost\nnode 3\n\nserial 0A:ff  # stolen\n")
    revoked = Revoked.load(path)
    assert revoked == Revoked(frozenset({3}), frozenset({0x0AFF}))
    assert revoked.names({"serialNumber": "0AFF"}, 1)
    assert revoked.names({"serialNumber": "01"}, 3)
    assert not revoked.names({"serialNumber": "01"}, 1)
    assert not revoked.names(None, 1)


@pytest.mark.parametrize("line", ["node x", "serial xyz", "node", "3", "node 3 4"])
def test_a_malformed_revocation_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "revoked"
    path.write_text(f"node 1\n{line}\n")
    with pytest.raises(ConfigError, match="line 2: not a certificate"):
        Revoked.load(path)


def test_an_expiry_is_reported_ahead_of_time_each_time_once(tmp_path: Path) -> None:
    made = make_cluster(tmp_path)[1]
    config = raftha.HaConfig(
        node_id=1,
        data_dir=tmp_path / "data",
        members={1: "127.0.0.1:7101"},
        cluster_name=CLUSTER,
        tls_ca=made.ca,
        tls_cert=made.certificate,
        tls_key=made.key,
    )
    renewal = Renewal(config)
    assert renewal.expiry(0) is None, "nothing is loaded"
    assert renewal.load() is not None
    end, day = renewal.expires_at, 86_400
    assert renewal.expiry(end - 31 * day) is None
    reported = [
        renewal.expiry(end - left * day) for left in (29.5, 29, 6.5, 2, 0.5, 0.1, -0.5, -1, -300)
    ]
    assert [event.days_left if event else None for event in reported] == [
        29, None, 6, None, 0, None, 0, None, None,
    ]  # fmt: skip
    assert renewal.load() is not None
    assert renewal.expiry(end - 3 * day) is not None, "renewed, and it expires soon, too"
