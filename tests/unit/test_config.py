"""`HaConfig`: the values that it takes; everything else is an error that names the setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raftha.config import (
    MEMBERS_MAX,
    HaConfig,
    ReplicationConfig,
    is_loopback,
    parse_address,
)
from raftha.errors import ConfigError
from raftha.types import ReplicationMode

MEMBERS = {1: "127.0.0.1:7101", 2: "127.0.0.1:7102", 3: "127.0.0.1:7103"}


def make(**settings: Any) -> HaConfig:
    return HaConfig(**{"node_id": 1, "data_dir": "data", "members": MEMBERS, **settings})


def test_defaults_are_valid() -> None:
    config = make()
    assert config.data_dir == Path("data")
    assert config.election_timeout_ms >= 4 * config.heartbeat_interval_ms


def test_members_are_sorted_and_cannot_be_changed() -> None:
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
        ({"replication_factor": 0}, "replication_factor"),
        ({"replication_factor": 10}, "replication_factor"),
        ({"health_check_interval_sec": 0}, "health_check_interval_sec"),
        ({"max_replication_lag_ms": 0}, "max_replication_lag_ms"),
        ({"auto_failover": 1}, "auto_failover"),
        ({"regions": ()}, "regions"),
        ({"regions": "primary"}, "regions"),
        ({"regions": ("eu", "eu")}, "regions"),
        ({"regions": ("",)}, "regions"),
        ({"regions": (7,)}, "regions"),
        ({"member_regions": {4: "primary"}}, "member_regions: node 4"),
        ({"member_regions": {1: "us"}}, r"member_regions\[1\]"),
        ({"member_regions": {1: []}}, r"member_regions\[1\]"),
        ({"backup_interval_hours": 0}, "backup_interval_hours"),
        ({"enable_pitr": "yes"}, "enable_pitr"),
        ({"pitr_retention_hours": 0}, "pitr_retention_hours"),
        ({"on_event": 7}, "on_event"),
        ({"replication": {}}, "replication"),
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
        ({"members": {0: "127.0.0.1:7101"}}, "key of members .* got 0"),
        ({"members": {1 << 32: "127.0.0.1:7101"}}, "members"),
        ({"members": {True: "127.0.0.1:7101"}}, "key of members .* got True"),
        ({"members": {1: "127.0.0.1:7101", 2: "127.0.0.1:7101"}}, "same address"),
        ({"members": {1: "192.0.2.1:7101"}}, "insecure"),
        ({"members": {1: "example.org:7101"}}, "insecure"),
        ({"cluster_name": ""}, "cluster_name"),
        ({"cluster_name": "ü" * 33}, "cluster_name"),
        ({"client_address": "nowhere"}, "client_address"),
        ({"insecure": 1}, "insecure"),
        ({"tls_ca": "ca.crt"}, "tls_cert, tls_key are missing"),
        ({"tls_cert": "a", "tls_key": "b"}, "tls_ca is missing"),
        (
            {"peer_secret_file": "s", "tls_ca": "a", "tls_cert": "b", "tls_key": "c"},
            "peer_secret_file is for peers without TLS",
        ),
        ({"tls_ca": 1}, "tls_ca must be text or a path, got 1"),
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
        ({"disk_reserve_bytes": -1}, "disk_reserve_bytes"),
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


def test_a_file_that_cannot_be_read_is_a_config_error(tmp_path: Path) -> None:
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
def test_an_invalid_address_is_refused(address: str) -> None:
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


def test_the_references_settings_have_the_references_defaults() -> None:
    config = make()
    assert config.replication_factor == 3
    assert config.backup_interval_hours == 6
    assert config.enable_pitr is True
    assert config.pitr_retention_hours == 168
    assert config.health_check_interval_sec == 30
    assert config.max_replication_lag_ms == 5000
    assert config.auto_failover is True
    assert config.regions == ("primary",)
    assert config.on_event is None
    assert config.replication == ReplicationConfig()
    assert config.replication.mode is ReplicationMode.ASYNC_WITH_ACK
    assert (config.replication.write_quorum, config.replication.ack_timeout_ms) == (0, 1000)


def test_a_setting_of_both_configs_may_be_set_in_either() -> None:
    inner = ReplicationConfig(max_lag_ms=70, auto_failover=False)
    config = make(replication=inner, heartbeat_interval_ms=20)
    assert (config.max_replication_lag_ms, config.auto_failover) == (70, False)
    assert config.replication.heartbeat_interval_ms == 20
    assert config.replication.max_lag_ms == 70


def test_a_setting_that_differs_between_both_configs_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"max_replication_lag_ms is 60, but replication\.max_lag"
    ):
        make(replication=ReplicationConfig(max_lag_ms=70), max_replication_lag_ms=60)


def test_a_mode_may_be_given_by_name() -> None:
    assert ReplicationConfig(mode="sync").mode is ReplicationMode.SYNC  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="sync, async_with_ack, async_fire_forget"):
        ReplicationConfig(mode="async")  # type: ignore[arg-type]


@pytest.mark.parametrize(("voters", "good"), [(3, (0, 2, 3)), (4, (0, 3, 4)), (5, (0, 3, 4, 5))])
def test_a_write_quorum_is_a_majority_at_least(voters: int, good: tuple[int, ...]) -> None:
    for quorum in range(MEMBERS_MAX + 1):
        config = ReplicationConfig(write_quorum=quorum)
        if quorum in good:
            config.check_quorum(voters)
        else:
            with pytest.raises(ConfigError, match="write_quorum must be 0, or from"):
                config.check_quorum(voters)


def test_a_founding_config_refuses_a_write_quorum_below_a_majority() -> None:
    with pytest.raises(ConfigError, match="from 2 to 3 with 3 voters, got 1"):
        make(replication=ReplicationConfig(write_quorum=1))


def test_members_are_in_the_first_region_by_default() -> None:
    config = make(regions=["eu", "us"], member_regions={3: "us"})
    assert config.regions == ("eu", "us")
    assert config.regions_by_member == {1: "eu", 2: "eu", 3: "us"}


def test_a_toml_file_has_a_table_for_replication_and_one_for_regions(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(
        """
        node_id = 1
        data_dir = "data"
        regions = ["eu", "us"]
        [members]
        1 = "127.0.0.1:7101"
        2 = "127.0.0.1:7102"
        [member_regions]
        2 = "us"
        [replication]
        mode = "sync"
        ack_timeout_ms = 250
        """
    )
    config = HaConfig.from_toml(path)
    assert config.regions_by_member == {1: "eu", 2: "us"}
    assert config.replication.mode is ReplicationMode.SYNC
    assert config.replication.ack_timeout_ms == 250
    path.write_text(path.read_text() + "quorum = 1\n")
    with pytest.raises(ConfigError, match=r"unknown setting replication\.quorum"):
        HaConfig.from_toml(path)


@pytest.mark.parametrize("lease_ms", [0, 100, 500])
def test_a_lease_is_off_or_from_two_heartbeats_to_an_election_timeout(lease_ms: int) -> None:
    assert make(lease_ms=lease_ms).lease_ms == lease_ms
    assert make().lease_ms == 0


@pytest.mark.parametrize("lease_ms", [-1, 1, 99, 501])
def test_a_lease_of_another_length_is_refused(lease_ms: int) -> None:
    allowed = "a whole number from 20 to 600000 ms" if lease_ms < 20 else "from 2 heartbeats to an"
    with pytest.raises(ConfigError, match=f"lease_ms must be 0, or {allowed}.*, got {lease_ms} "):
        make(lease_ms=lease_ms)


@pytest.mark.parametrize("drift", [-0.1, 0.95, 1])
def test_clock_drift_has_an_upper_limit(drift: float) -> None:
    with pytest.raises(ConfigError, match=r"clock_drift_max must be a number from 0 to 0\.9"):
        make(clock_drift_max=drift)
