"""`BackupConfig`: its values in Python and TOML, and errors that name the setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raftha.config import BackupConfig, HaConfig, RetentionPolicy
from raftha.errors import ConfigError
from raftha.server.server import ServerConfig
from raftha.types import BackupMode

MEMBERS = {1: "127.0.0.1:7101", 2: "127.0.0.1:7102", 3: "127.0.0.1:7103"}
NODE = 'node_id = 1\ndata_dir = "data"\nmembers = {1 = "127.0.0.1:7101"}\n'


def make(**settings: Any) -> HaConfig:
    return HaConfig(**{"node_id": 1, "data_dir": "data", "members": MEMBERS, **settings})


def test_the_references_settings_have_the_references_defaults() -> None:
    config = BackupConfig()
    assert (config.interval_hours, config.mode) == (6, BackupMode.INCREMENTAL)
    assert (config.compression, config.compression_level, config.encryption) == (True, 6, False)
    assert config.destinations == {"local": "backups/"}
    retention = config.retention
    assert (retention.keep_last, retention.keep_daily_days) == (10, 7)
    assert (retention.keep_weekly_weeks, retention.keep_monthly_months) == (4, 12)


def test_a_node_takes_no_backups_unless_it_is_told_to() -> None:
    assert make().backup is None
    assert make(backup=BackupConfig()).backup == BackupConfig()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"interval_hours": 0}, "interval_hours"),
        ({"mode": "half"}, "mode must be one of full, incremental, differential"),
        ({"full_every_days": 0}, "full_every_days"),
        ({"retention": {}}, "retention"),
        ({"destinations": {}}, "destinations must be"),
        ({"destinations": {str(i): f"b{i}" for i in range(5)}}, "1 to 4 destinations"),
        ({"destinations": {"Local": "b"}}, "small letters"),
        ({"destinations": {"../up": "b"}}, "small letters"),
        ({"destinations": {"a\n": "b"}}, "small letters"),
        ({"destinations": {"a": ""}}, r"destinations\['a'\]"),
        ({"destinations": {"a": "http://host/b"}}, "s3://"),
        ({"destinations": {"a": "b", "c": "b/"}}, "same place"),
        ({"destinations": {"a": 7}}, r"destinations\['a'\]"),
        ({"compression_level": 0}, "compression_level"),
        ({"compression_level": 10}, "compression_level"),
        ({"compression": 1}, "compression"),
        ({"encryption": True}, "encryption needs encryption_key_file"),
        ({"encryption_key_file": "key"}, "encryption is false"),
        ({"backup_from": ()}, "backup_from"),
        ({"backup_from": ("leader", "leader")}, "backup_from: a name stands twice"),
        ({"backup_from": ("learner",)}, "standby, follower, leader"),
        ({"bytes_per_s": 1}, "bytes_per_s"),
        ({"spool_bytes": 1}, "spool_bytes"),
        ({"rto_target_s": 0.5}, "rto_target_s"),
        ({"retry_s": 0}, "retry_s"),
        ({"verify_level": 0}, "verify_level"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        BackupConfig(**settings)


@pytest.mark.parametrize("name", ["keep_daily_days", "keep_weekly_weeks", "keep_monthly_months"])
def test_a_rule_of_retention_may_be_turned_off_but_the_last_backup_stays(name: str) -> None:
    RetentionPolicy(**{name: 0})
    with pytest.raises(ConfigError, match=name):
        RetentionPolicy(**{name: -1})
    with pytest.raises(ConfigError, match="keep_last"):
        RetentionPolicy(keep_last=0)


def test_a_url_with_credentials_is_refused_without_showing_them() -> None:
    with pytest.raises(ConfigError, match="without credentials") as caught:
        BackupConfig(destinations={"offsite": "s3://me:hunter2@bucket/prefix"})
    assert "hunter2" not in str(caught.value)


def test_compression_levels_stand_for_those_of_zstd() -> None:
    levels = [BackupConfig(compression_level=level).zstd_level for level in range(1, 10)]
    assert levels == [1, 2, 3, 5, 7, 9, 12, 15, 19]
    assert BackupConfig(compression=False).zstd_level == 0


def test_the_interval_may_be_set_in_either_place() -> None:
    inner = make(backup=BackupConfig(interval_hours=2))
    assert inner.backup_interval_hours == 2
    outer = make(backup=BackupConfig(), backup_interval_hours=3)
    assert outer.backup is not None
    assert outer.backup.interval_hours == 3


def test_an_interval_that_differs_in_both_places_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"is 3, but backup\.interval_hours is 2"):
        make(backup=BackupConfig(interval_hours=2), backup_interval_hours=3)


def test_an_interval_without_backups_is_refused() -> None:
    """Or an operator would count on backups that no setting turned on."""
    with pytest.raises(ConfigError, match=r"takes no backups.*add the table"):
        make(backup_interval_hours=3)


def test_tables_of_toml_make_the_config(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(
        f"""{NODE}
[backup]
interval_hours = 1
mode = "differential"
encryption = true
encryption_key_file = "key"
backup_from = ["follower", "leader"]
[backup.retention]
keep_last = 3
[backup.destinations]
near = "backups"
far = "s3://bucket/prefix?region=eu-west-1"
""",
        encoding="utf-8",
    )
    backup = HaConfig.from_toml(path).backup
    assert backup is not None
    assert (backup.interval_hours, backup.mode) == (1, BackupMode.DIFFERENTIAL)
    assert backup.encryption_key_file == str(tmp_path / "key")
    assert backup.backup_from == ("follower", "leader")
    assert backup.retention == RetentionPolicy(keep_last=3)
    assert backup.destinations == {
        "far": "s3://bucket/prefix?region=eu-west-1",
        "near": str(tmp_path / "backups"),
    }


def test_the_default_folder_is_relative_to_the_file_too(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(f"{NODE}[backup]\n", encoding="utf-8")
    backup = HaConfig.from_toml(path).backup
    assert backup is not None
    assert backup.destinations == {"local": str(tmp_path / "backups")}


def test_a_server_takes_the_table_too(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    path.write_text(f'{NODE}listen = "127.0.0.1:6379"\n[backup]\n', encoding="utf-8")
    backup = ServerConfig.from_toml(path).ha.backup
    assert backup is not None
    assert backup.destinations == {"local": str(tmp_path / "backups")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[backup]\nintervall_hours = 1", r"backup\.intervall_hours.*backup\.interval_hours"),
        ("[backup.retention]\nkeep = 1", r"backup\.retention\.keep"),
        ("[backup]\ndestinations = 7", "destinations"),
        ("[backup.destinations]\nlocal = 7", r"destinations\['local'\]"),
        ("backup = true", "backup must be"),
        ("keep_last = 1", "unknown setting keep_last"),
    ],
)
def test_a_wrong_table_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "node.toml"
    path.write_text(f"{NODE}{text}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        HaConfig.from_toml(path)
