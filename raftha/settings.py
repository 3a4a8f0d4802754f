"""What the checks of all settings share: types and ranges, with errors that name the setting."""

from __future__ import annotations

from collections.abc import Mapping

from raftha.errors import ConfigError

SHOWN_CHARACTERS_MAX = 200


def check_types(config: object, expected: Mapping[str, type | tuple[type, ...]]) -> None:
    """ConfigError unless each setting is of its type; no number is a bool."""
    for name, kinds in expected.items():
        value = getattr(config, name)
        is_stray_bool = isinstance(value, bool) and kinds is not bool
        if not isinstance(value, kinds) or is_stray_bool:
            names = " or ".join(
                k.__name__ for k in (kinds if isinstance(kinds, tuple) else (kinds,))
            )
            raise ConfigError(f"{name} must be {names}, got {shown(value)}")


def check_range(config: object, name: str, low: float, high: float) -> None:
    """ConfigError unless a setting is from `low` to `high`."""
    value = getattr(config, name)
    if not low <= value <= high:
        raise ConfigError(f"{name} must be from {low} to {high}, got {shown(value)}")


def check_all_or_none(config: object, *names: str) -> None:
    """ConfigError if some of these settings are given and others aren't."""
    missing = [name for name in names if not getattr(config, name)]
    if missing and len(missing) < len(names):
        raise ConfigError(f"{', '.join(names)} go together; {', '.join(missing)} is missing")


def shown(value: object) -> str:
    """A setting's wrong value, for a message: short, and whatever it is."""
    try:
        text = repr(value)
    except ValueError:
        return "a number of thousands of digits"  # Which Python refuses to write.
    return text if len(text) <= SHOWN_CHARACTERS_MAX else f"{text[:SHOWN_CHARACTERS_MAX]}..."
