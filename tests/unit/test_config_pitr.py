"""`PitrConfig`: its values in Python and TOML, and errors that name the setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raftha.config import BackupConfig, HaConfig, PitrConfig
from raftha.errors import ConfigError
from raftha.server.server import ServerConfig

MEMBERS = {1: "127.0.0.1:7101", 2: "127.0.0.1:7102", 3: "127.0.0.1:7103"}
NODE = 'node_id = 1\ndata_dir = "data"\nmembers = {1 = "127.0.0.1:7101"}\n'


def make(**settings: Any) -> HaConfig:
    return HaConfig(**{"node_id": 1, "data_dir": "data", "members": MEMBERS, **settings})


def test_the_references_settings_have_the_references_defaults() -> None:
    config = PitrConfig()
    assert config.retention_hours == 168
    assert config.checkpoint_interval_sec == 60
    assert config.max_wal_size == 64 << 20


@pytest.mark.parametrize(
    ("settings", "is_on"),
    [
        ({}, False),
        ({"enable_pitr": False}, False),
        ({"backup": BackupConfig()}, True),
        ({"backup": BackupConfig(), "enable_pitr": False}, False),
    ],
)
def test_recovery_is_on_where_backups_are(settings: dict[str, Any], is_on: bool) -> None:
    assert make(**settings).archive == (PitrConfig() if is_on else None)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"retention_hours": 0}, "retention_hours"),
        ({"retention_hours": 1.5}, "retention_hours must be a whole number"),
        ({"checkpoint_interval_sec": 0}, "checkpoint_interval_sec"),
        ({"max_wal_size": 1}, "max_wal_size"),
        ({"archive_interval_ms": 1}, "archive_interval_ms"),
        ({"archive_backlog_bytes": 1}, "archive_backlog_bytes must be 0, or"),
        ({"drill_every_days": -1}, "drill_every_days"),
        ({"restore_timeout_s": 0}, "restore_timeout_s"),
        ({"freeze_timeout_s": 0}, "freeze_timeout_s"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        PitrConfig(**settings)


def test_the_window_may_be_set_in_either_place() -> None:
    inner = make(backup=BackupConfig(), pitr=PitrConfig(retention_hours=24))
    assert inner.pitr_retention_hours == 24
    outer = make(backup=BackupConfig(), pitr_retention_hours=48)
    assert outer.pitr.retention_hours == 48


def test_a_window_that_differs_in_both_places_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"is 48, but pitr\.retention_hours is 24"):
        make(backup=BackupConfig(), pitr=PitrConfig(retention_hours=24), pitr_retention_hours=48)


@pytest.mark.parametrize(
    "settings", [{"pitr_retention_hours": 24}, {"pitr": PitrConfig(archive_interval_ms=500)}]
)
def test_settings_of_recovery_without_backups_are_refused(settings: dict[str, Any]) -> None:
    """Or an operator would count on a window that nothing fills."""
    with pytest.raises(ConfigError, match=r"takes no backups.*add the table"):
        make(**settings)


def test_a_table_of_toml_makes_the_config(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(
        f"""{NODE}
[backup]
[pitr]
retention_hours = 24
archive_interval_ms = 500
drill_every_days = 0
""",
        encoding="utf-8",
    )
    expected = PitrConfig(retention_hours=24, archive_interval_ms=500, drill_every_days=0)
    assert HaConfig.from_toml(path).archive == expected


def test_a_server_takes_the_table_too(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    path.write_text(
        f'{NODE}listen = "127.0.0.1:6379"\n[backup]\n[pitr]\nretention_hours = 2\n',
        encoding="utf-8",
    )
    assert ServerConfig.from_toml(path).ha.archive == PitrConfig(retention_hours=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[pitr]\nretention_hour = 1", r"pitr\.retention_hour.*pitr\.retention_hours"),
        ("[pitr]\nretention_hours = '1'", "without quotes"),
        ("pitr = true", "pitr must be"),
    ],
)
def test_a_wrong_table_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "node.toml"
    path.write_text(f"{NODE}{text}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        HaConfig.from_toml(path)
