"""Every setting of every config: its bounds, its type, and the same error in Python and in TOML."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftha.config import MIB, BackupConfig, HaConfig, PitrConfig, ReplicationConfig, tables
from raftha.config.checks import (
    Address,
    Choice,
    Length,
    Range,
    Setting,
    check,
    settings_of,
    split,
    take,
)
from raftha.errors import ConfigError
from raftha.server import ServerConfig

NODE = {"node_id": 1, "data_dir": "data", "members": {"1": "127.0.0.1:7101"}}
TYPES: dict[Any, tuple[type, ...]] = {
    bool: (bool,), int: (int,), float: (int, float), str: (str,), str | Path: (str,),
    PitrConfig: (dict,),
}  # fmt: skip
"""The TOML text for a type, by its exact Python types."""
ANYTHING = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
    | st.binary(max_size=3) | st.lists(st.integers(), max_size=2)
    | st.dictionaries(st.text(max_size=2), st.integers(), max_size=2)
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    folder: str | Path
    key: str | Path = ""
    kept: Annotated[int, Range(1, 9)] | None = None

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    inner: Inner


class Case(NamedTuple):
    config: Any
    setting: Setting
    value: Any


SETTINGS = [
    (config, setting)
    for config in (HaConfig, ReplicationConfig, ServerConfig)
    for setting in settings_of(config)
    if setting.name not in ("ha", "replication", "backup", "on_event")
]


def companions(name: str, value: Any) -> dict[str, Any]:
    """Other settings that a value needs, by the rules over several settings."""
    others: dict[str, dict[str, Any]] = {
        "node_id": {"members": {str(value): "127.0.0.1:7101"}},
        "heartbeat_interval_ms": {"election_timeout_ms": 4_000},
        "election_timeout_ms": {"heartbeat_interval_ms": 10},
        "lease_ms": {"heartbeat_interval_ms": 10, "election_timeout_ms": 600_000},
        "max_wal_size": {"log_retention_bytes": 1 << 40},
        "log_retention_bytes": {"max_wal_size": MIB},
        "address": {"members": {"2": "127.0.0.1:7102"}} if value else {},
        "backup_interval_hours": {"backup": {}},
        "pitr_retention_hours": {"backup": {}},
    }
    return others.get(name, {})


def from_toml(case: Case) -> Any:
    table = {case.setting.name: case.value}
    if case.config is ReplicationConfig:
        return tables.build(ReplicationConfig, table)
    own = {"listen": "127.0.0.1:6379"} if case.config is ServerConfig else {}
    others = companions(case.setting.name, case.value)
    return case.config.from_mapping({**NODE, **own, **others, **table})


def from_python(case: Case) -> Any:
    own = {case.setting.name: case.value}
    if case.config is ReplicationConfig:
        return ReplicationConfig(**own)
    if case.config is ServerConfig:
        return ServerConfig(**{"ha": HaConfig(**by_number(NODE)), "listen": "[::1]:1", **own})
    others = companions(case.setting.name, case.value)
    if "backup" in others:
        others = {**others, "backup": BackupConfig(**others["backup"])}
    return HaConfig(**by_number({**NODE, **others, **own}))


def by_number(table: dict[str, Any]) -> dict[str, Any]:
    """Settings as they are in Python, with numbers for ids."""
    named = {name: value for name, value in table.items() if name in ("members", "member_regions")}
    return table | {
        name: {int(key) if key.isdecimal() else key: address for key, address in value.items()}
        for name, value in named.items()
        if isinstance(value, dict)
    }


def error_of(make: Any, case: Case) -> str:
    with pytest.raises(ConfigError) as caught:
        make(case)
    return str(caught.value)


def samples(setting: Setting, *, good: bool) -> Iterator[Any]:
    """Values at the bounds of a setting, or just outside."""
    kind, markers = split(setting.expected)
    if isinstance(kind, enum.EnumType):
        yield from [member.value for member in list[Any](kind)] if good else ["other"]
    for marker in markers:
        match marker:
            case Range():
                yield from numbers(marker, kind, good=good)
            case Length():
                counts = (marker.low, marker.high) if good else (marker.low - 1, marker.high + 1)
                yield from (of_length(kind, n) for n in counts if n or not marker.or_empty)
                yield from [""] if good and marker.or_empty else []
            case Choice(options=options):
                yield from options if good else ["other"]
            case Address():
                wrong = ["nowhere", ":1", "localhost:65536", "localhost:-1", "a" * 256 + ":1"]
                wrong += ["localhost:0"] if marker.needs_port else []
                fine = ["127.0.0.1:65535", *([""] if marker.or_empty else [])]
                yield from fine if good else wrong


def numbers(bounds: Range, kind: Any, *, good: bool) -> Iterator[float]:
    low, high, step = bounds.low, bounds.high, bounds.multiple_of or 1
    if kind is float:
        below, above = math.nextafter(low, -math.inf), math.nextafter(high, math.inf)
        inside = math.nextafter(low, math.inf) if bounds.above_low else low
        outside = [below, above, math.nan, math.inf, -math.inf, *([low] * bounds.above_low)]
        yield from (inside, high) if good else outside
    else:
        off_step = [low + 1] if bounds.multiple_of else []
        zero = [0] if bounds.or_zero else []
        yield from (low, high, *zero) if good else (low - step, high + step, *off_step)


def of_length(kind: Any, count: int) -> Any:
    if kind is str:
        return "x" * count
    if get_origin(kind) is Mapping:
        return {str(i): f"127.0.0.1:{7100 + i}" for i in range(1, count + 1)}
    return [f"region-{i}" for i in range(count)]


def cases(*, good: bool) -> list[Any]:
    return [
        pytest.param(Case(config, setting, value), id=f"{setting.name}-{number}")
        for config, setting in SETTINGS
        for number, value in enumerate(samples(setting, good=good))
    ]


@pytest.mark.parametrize("case", cases(good=True))
def test_a_value_at_a_bound_is_accepted(case: Case) -> None:
    for make in (from_toml, from_python):
        assert getattr(make(case), case.setting.name) is not None


@pytest.mark.parametrize("case", cases(good=False))
def test_a_value_just_outside_is_refused_by_the_settings_name(case: Case) -> None:
    error = error_of(from_toml, case)
    assert error.startswith(f"{case.setting.name} must be ")
    assert ("got" in error) is (case.setting.name != "auth_token")
    assert error_of(from_python, case) == error


@pytest.mark.parametrize(("config", "setting"), SETTINGS, ids=[s.name for _, s in SETTINGS])
@given(value=ANYTHING)
@settings(max_examples=30)
def test_a_value_of_a_wrong_type_is_refused(config: Any, setting: Setting, value: Any) -> None:
    origin = get_origin(setting.kind)
    default: tuple[type, ...] = (list,) if origin is tuple else (dict,) if origin else (str,)
    if type(value) in TYPES.get(setting.kind, default):
        return
    case = Case(config, setting, value)
    error = error_of(from_toml, case)
    assert error.startswith(f"{setting.name} must be ")
    assert error_of(from_python, case) == error


def test_a_float_without_bounds_must_still_be_finite() -> None:
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(ConfigError, match="x must be a number, got"):
            take("x", float, value)
    assert take("x", float | None, None) is None
    assert take("x", float, 3) == 3


@pytest.mark.parametrize(
    ("table", "hint"),
    [
        ({"heartbeat_interval": 5}, "did you mean heartbeat_interval_ms?"),
        ({"mode": "sync"}, "did you mean replication.mode or backup.mode?"),
        ({"ack_timeout": 5}, "did you mean replication.ack_timeout_ms?"),
        ({"replication": {"max_lag": 5}}, "did you mean replication.max_lag_ms?"),
        ({"colour": "red"}, "known are address, auto_failover"),
    ],
)
def test_an_unknown_setting_is_answered_with_the_closest(table: dict[str, Any], hint: str) -> None:
    with pytest.raises(ConfigError, match="unknown setting") as caught:
        HaConfig.from_mapping({**NODE, **table})
    assert hint in str(caught.value)


def test_a_duplicate_id_is_refused() -> None:
    members = {"1": "127.0.0.1:7101", "01": "127.0.0.1:7102"}
    with pytest.raises(ConfigError, match="members has 1 twice"):
        HaConfig.from_mapping({**NODE, "members": members})


def test_a_config_in_a_config_is_a_table_with_paths_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('[inner]\nfolder = "there"\nkey = ""\n')
    outer = tables.build(Outer, tables.load(file, Outer))
    assert outer.inner == Inner(folder=str(tmp_path / "there"))
    with pytest.raises(ConfigError, match=r"missing setting inner\.folder"):
        tables.build(Outer, {"inner": {}})
    with pytest.raises(ConfigError, match=r"unknown setting folder \(did you mean inner\.folder"):
        tables.build(Outer, {"folder": "there"})


def test_a_setting_that_may_be_none_is_checked_otherwise() -> None:
    assert Inner(folder="").kept is None
    with pytest.raises(ConfigError, match="kept must be a whole number from 1 to 9 or None, got 0"):
        Inner(folder="", kept=0)
