"""`HaConfig`: what it takes, and that everything else is an error that names the setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raftha.config import HaConfig, is_loopback, parse_address
from raftha.errors import ConfigError

MEMBERS = {1: "127.0.0.1:7101", 2: "127.0.0.1:7102", 3: "127.0.0.1:7103"}


def make(**settings: Any) -> HaConfig:
    return HaConfig(**{"node_id": 1, "data_dir": "data", "members": MEMBERS, **settings})


def test_defaults_are_valid() -> None:
    config = make()
    assert config.data_dir == Path("data")
    assert config.election_timeout_ms >= 4 * config.heartbeat_interval_ms


def test_members_are_sorted_and_can_not_be_changed() -> None:
    config = make(members=dict(reversed(MEMBERS.items())))
    assert list(config.members) == [1, 2, 3]
    with pytest.raises(TypeError):
        config.members[4] = "127.0.0.1:7104"  # type: ignore[index]


def test_a_later_change_of_the_callers_members_does_not_reach_the_config() -> None:
    members = dict(MEMBERS)
    config = make(members=members)
    members.clear()
    assert len(config.members) == 3


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"node_id": 4}, "node_id 4"),
        ({"node_id": "1"}, "node_id"),
        ({"node_id": True}, "node_id"),
        ({"data_dir": 7}, "data_dir"),
        ({"members": {}}, "members"),
        ({"members": ["127.0.0.1:7101"]}, "members"),
        ({"members": {i: f"127.0.0.1:{i}" for i in range(1, 11)}}, "1 to 9"),
        ({"members": {1: "127.0.0.1"}}, r"members\[1\]"),
        ({"members": {1: "127.0.0.1:0"}}, r"members\[1\]"),
        ({"members": {1: "127.0.0.1:65536"}}, r"members\[1\]"),
        ({"members": {1: ":7101"}}, r"members\[1\]"),
        ({"members": {1: 7101}}, r"members\[1\]"),
        ({"members": {0: "127.0.0.1:7101"}}, "members: 0"),
        ({"members": {1 << 32: "127.0.0.1:7101"}}, "members"),
        ({"members": {True: "127.0.0.1:7101"}}, "members: True"),
        ({"members": {1: "127.0.0.1:7101", 2: "127.0.0.1:7101"}}, "same address"),
        ({"members": {1: "192.0.2.1:7101"}}, "insecure"),
        ({"members": {1: "example.org:7101"}}, "insecure"),
        ({"cluster_name": ""}, "cluster_name"),
        ({"cluster_name": "ü" * 33}, "cluster_name"),
        ({"client_address": "nowhere"}, "client_address"),
        ({"insecure": 1}, "insecure"),
        ({"tls_ca": "ca.crt"}, "tls_cert, tls_key is missing"),
        ({"tls_cert": "a", "tls_key": "b"}, "tls_ca is missing"),
        ({"tls_ca": 1}, "tls_ca must be str or Path"),
        ({"node_id": 16**5000}, "thousands of digits"),
        ({"heartbeat_interval_ms": 9}, "heartbeat_interval_ms"),
        ({"heartbeat_interval_ms": 50.0}, "heartbeat_interval_ms"),
        ({"election_timeout_ms": 199}, "election_timeout_ms"),
        ({"request_timeout_s": 0}, "request_timeout_s"),
        ({"request_timeout_s": 601}, "request_timeout_s"),
        ({"request_timeout_s": float("nan")}, "request_timeout_s"),
        ({"value_bytes_max": 0}, "value_bytes_max"),
        ({"value_bytes_max": 5 << 20}, "value_bytes_max"),
        ({"wal_segment_bytes": 1 << 20}, "wal_segment_bytes"),
        ({"wal_segment_bytes": (16 << 20) + 1}, "wal_segment_bytes"),
        ({"max_wal_size": 1}, "max_wal_size"),
        ({"checkpoint_interval_sec": 0}, "checkpoint_interval_sec"),
        ({"submit_queue_bytes_max": 1}, "submit_queue_bytes_max"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        make(**settings)


def test_insecure_allows_members_anywhere() -> None:
    members = {1: "192.0.2.1:7101", 2: "example.org:7101", 3: "[2001:db8::1]:7101"}
    assert make(members=members, insecure=True).members == members


def test_tls_allows_members_anywhere() -> None:
    members = {1: "192.0.2.1:7101", 2: "example.org:7101"}
    files = {"tls_ca": "ca", "tls_cert": Path("cert"), "tls_key": "key"}
    assert make(members=members, **files).members == members


def test_paths_in_a_toml_file_are_relative_to_it(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(
        'node_id = 1\ndata_dir = "data"\ntls_ca = "ca.crt"\ntls_cert = "/etc/node.crt"\n'
        'tls_key = "../node.key"\n[members]\n1 = "127.0.0.1:7101"\n'
    )
    config = HaConfig.from_toml(path)
    assert config.tls_ca == str(tmp_path / "ca.crt")
    assert config.tls_cert == "/etc/node.crt"
    assert Path(config.tls_key).resolve() == tmp_path.parent / "node.key"


def test_a_toml_file_is_read_with_data_dir_relative_to_it(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text('node_id = 1\ndata_dir = "data"\n[members]\n1 = "127.0.0.1:7101"\n')
    config = HaConfig.from_toml(path)
    assert config.data_dir == tmp_path / "data"
    assert config.members == {1: "127.0.0.1:7101"}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("node_id = ", "not TOML"),
        ("node_id = 1", "missing setting data_dir, members"),
        ('node_id = 1\ndata_dir = "d"\nmembers = "x"', "members must be a table"),
        ('node_id = 1\ndata_dir = "d"\n[members]\na = "127.0.0.1:7101"', "members"),
        ('node_id = 1\nheartbeat = 5\ndata_dir = "d"\n[members]', "unknown setting heartbeat"),
    ],
)
def test_a_wrong_toml_file_is_explained(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "node.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=named):
        HaConfig.from_toml(path)


def test_a_file_that_can_not_be_read_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml"):
        HaConfig.from_toml(tmp_path / "missing.toml")
    path = tmp_path / "latin.toml"
    path.write_bytes(b'cluster_name = "\xfc"')
    with pytest.raises(ConfigError, match="not TOML"):
        HaConfig.from_toml(path)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("[::1]:80", ("::1", 80)),
        ("host.example:65535", ("host.example", 65535)),
    ],
)
def test_an_address_is_split(address: str, expected: tuple[str, int]) -> None:
    assert parse_address("address", address) == expected


@pytest.mark.parametrize("address", ["", "host", "host:", ":80", "host:x", "host:-1", "host:٨"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="address"):
        parse_address("address", address)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True), ("127.0.0.1", True), ("127.1.2.3", True), ("::1", True),
        ("0.0.0.0", False), ("192.0.2.1", False), ("::", False), ("example.org", False),
    ],
)  # fmt: skip
def test_loopback_is_known(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
