"""Makes configs from TOML, by the annotations of their fields.

A config within a config is a table within the table. Ids in the keys of a table are text. Paths are
relative to the file. The config itself checks the values, so that a wrong setting has the same
error in TOML and in Python.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from raftha.config.checks import (
    SHOWN_CHARACTERS_MAX,
    Location,
    Setting,
    closest,
    settings_of,
    shown,
    split,
    take,
)
from raftha.errors import ConfigError

T = TypeVar("T")
_DIGITS_MAX = 20
"""More digits than any id has, and few enough for `int`, which refuses thousands of digits."""


def build(config: type[T], table: Mapping[str, Any], prefix: str = "") -> T:
    """Make a config from a parsed TOML table; `prefix` names the table, as in "replication."."""
    refuse_unknown(table, config, prefix=prefix)
    settings = settings_of(config)
    missing = [s.name for s in settings if s.default is MISSING and s.name not in table]
    if missing:
        raise ConfigError(
            f"missing setting {', '.join(prefix + name for name in missing)}",
            hint=f"{config.__name__} has no default for {'it' if len(missing) == 1 else 'them'}",
        )
    return config(
        **{s.name: _from_toml(s, table[s.name], prefix) for s in settings if s.name in table}
    )


def refuse_unknown(
    table: Mapping[str, Any], *configs: type[Any], hidden: Collection[str] = (), prefix: str = ""
) -> None:
    """ConfigError unless each name is a setting of one of `configs` and isn't `hidden`."""
    settings = {
        setting.name: setting
        for config in configs
        for setting in settings_of(config)
        if not setting.is_python_only and setting.name not in hidden
    }
    unknown = sorted(str(name) for name in table if name not in settings)
    if not unknown:
        return
    names: dict[str, list[str]] = {}
    for name, setting in settings.items():
        for inner in _inner(setting):
            names.setdefault(inner, []).append(f"{name}.{inner}")
    names |= {name: [name] for name in settings}
    guesses = [
        " or ".join(prefix + place for place in names[guess])
        for name in unknown
        if name not in hidden and (guess := closest(name, names))
    ]
    known = ", ".join(prefix + name for name in sorted(settings))
    raise ConfigError(
        f"unknown setting {', '.join(prefix + name[:SHOWN_CHARACTERS_MAX] for name in unknown)}",
        hint=f"did you mean {', '.join(guesses)}?" if guesses else f"known are {known}",
    )


def divide(table: Mapping[str, Any], config: type[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide a table into the settings of `config` and the others."""
    own = {setting.name for setting in settings_of(config)}
    return (
        {name: value for name, value in table.items() if name in own},
        {name: value for name, value in table.items() if name not in own},
    )


def check_one(config: type[Any], name: str, value: Any) -> None:
    """ConfigError unless setting `name` of a config may have this value."""
    (setting,) = (setting for setting in settings_of(config) if setting.name == name)
    take(name, setting.expected, value, setting.default)


def load(path: str | Path, *configs: type[Any]) -> dict[str, Any]:
    """Parse a TOML file, and make the paths of these configs relative to the file's folder."""
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        # Not only TOMLDecodeError: for a number with too many digits, `int` raises ValueError.
        raise ConfigError(f"{path} is not TOML: {error}") from error
    for config in configs:
        _resolve(table, config, path.parent)
    return table


def _resolve(table: dict[str, Any], config: type[Any], folder: Path) -> None:
    for setting in settings_of(config):
        value = table.get(setting.name)
        if setting.config and isinstance(value, dict):
            _resolve(value, setting.config, folder)
        elif _holds_locations(setting):
            # The default is relative to the file as well.
            places = setting.default if value is None else value
            if isinstance(places, Mapping):
                table[setting.name] = {name: _place(folder, each) for name, each in places.items()}
        # An empty path stays empty where it means "none".
        elif isinstance(value, str) and _is_path(setting) and (value or setting.default != ""):
            table[setting.name] = str(folder / value)


def _from_toml(setting: Setting, value: Any, prefix: str) -> Any:
    kind = setting.kind
    if not isinstance(value, Mapping):
        return value
    if setting.config:
        return build(setting.config, value, f"{prefix}{setting.name}.")
    if get_origin(kind) is Mapping and split(get_args(kind)[0])[0] is int:
        return _by_number(setting.name, value)
    return value


def _by_number(name: str, table: Mapping[Any, Any]) -> dict[Any, Any]:
    """The table with its keys as numbers. Other keys stay as they are, and `check` refuses them."""
    numbered: dict[Any, Any] = {}
    for key, value in table.items():
        is_number = isinstance(key, str) and key.isascii() and key.isdigit()
        number = int(key) if is_number and len(key) <= _DIGITS_MAX else key
        if number in numbered:
            raise ConfigError(f"{name} has {shown(number)} twice", hint="use each id once")
        numbered[number] = value
    return numbered


def _is_path(setting: Setting) -> bool:
    return Path in (setting.kind, *get_args(setting.kind))


def _holds_locations(setting: Setting) -> bool:
    if get_origin(setting.kind) is not Mapping:
        return False
    return any(isinstance(marker, Location) for marker in split(get_args(setting.kind)[1])[1])


def _place(folder: Path, value: Any) -> Any:
    """A folder as the config holds it. URLs, and what `check` will refuse, stay as they are."""
    is_folder = isinstance(value, str) and value and "://" not in value
    return str(folder / value) if is_folder else value


def _inner(setting: Setting) -> list[str]:
    """The names of the settings within a setting that is a config itself."""
    return [inner.name for inner in settings_of(setting.config)] if setting.config else []
