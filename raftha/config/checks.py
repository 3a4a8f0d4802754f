"""The declaration of settings, and the loop that checks all settings of a config.

Theory of operation. A config is a frozen dataclass. A field's annotation states everything that can
be checked about the field alone: `Annotated[int, Range(10, 1_000, unit="ms")]`. The config's
`__post_init__` calls `check(self)`, which validates each field. Then it calls the rules that
concern several fields, each a function of its own. `tables` makes configs from TOML with the same
annotations, and docs/reference is generated from them.

    bool               never stands for a number
    int                a whole number
    float              a number, whole ones too; neither NaN nor infinite
    str, Path          text, a path
    an enum            a member, or its value; the config holds the member
    tuple[X, ...]      a list or a tuple; the config holds a tuple
    Mapping[K, V]      any mapping; the config holds a read-only copy in the order of the keys
    X | Y, X | None    what either accepts

A refusal is a `ConfigError` with the setting's name, what is allowed, what was given, and a hint.
"""

from __future__ import annotations

import difflib
import enum
import math
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from raftha.config.addresses import split_address
from raftha.config.limits import GIB, KIB, MIB, TIB
from raftha.errors import ConfigError

SHOWN_CHARACTERS_MAX = 200

_WRONG = object()
_NOUNS = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path",
    NoneType: "None",
}  # fmt: skip
_SIZES = ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB"))


class Marker:
    """What an annotation states about a field in addition to its type."""

    unit = ""

    @property
    def bounds(self) -> str:
        """What is allowed, for the reference."""
        return ""

    def allows(self, value: Any) -> bool:
        """Whether a value of the right type is allowed."""
        return True

    def phrase(self, noun: str) -> str:
        """What is allowed, for an error, where `noun` names the type."""
        return noun


@dataclass(frozen=True)
class Range(Marker):
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    unit: str = ""
    above_low: bool = False
    """`low` itself is refused."""
    or_zero: bool = False
    """0 is allowed too, and means something else."""
    multiple_of: int = 0

    def allows(self, value: Any) -> bool:
        if self.or_zero and value == 0:
            return True
        # NaN is in no range.
        is_in = self.low <= value <= self.high and not (self.above_low and value == self.low)
        return is_in and not (self.multiple_of and value % self.multiple_of)

    @property
    def bounds(self) -> str:
        show = size if self.unit.startswith("bytes") else "{:,}".format
        zero = "0, or " if self.or_zero else ""
        step = f", a multiple of {self.multiple_of:,}" if self.multiple_of else ""
        return f"{zero}{self._span(show)}{step}"

    def phrase(self, noun: str) -> str:
        text = f"{'0, or ' if self.or_zero else ''}{noun} {self._span(str)} {self.unit}".rstrip()
        if self.unit.startswith("bytes"):
            text += f" ({size(self.low)} to {size(self.high)})"
        return text + (f", a multiple of {self.multiple_of}" if self.multiple_of else "")

    def _span(self, show: Callable[[float], str]) -> str:
        low, high = show(self.low), show(self.high)
        return f"over {low}, up to {high}" if self.above_low else f"from {low} to {high}"


@dataclass(frozen=True)
class Length(Marker):
    """From `low` to `high` bytes of UTF-8, characters or items; `unit` says which."""

    low: int
    high: int
    unit: str = "bytes"
    or_empty: bool = False

    def allows(self, value: Any) -> bool:
        if isinstance(value, str) and self.unit == "bytes":
            if not _is_unicode(value):
                return False
            value = value.encode()
        return (self.or_empty and not value) or self.low <= len(value) <= self.high

    @property
    def bounds(self) -> str:
        return f"{'empty, or ' if self.or_empty else ''}{self.low:,} to {self.high:,}"

    def phrase(self, noun: str) -> str:
        empty = "empty, or " if self.or_empty else ""
        return f"{empty}{noun} of {self.low} to {self.high} {self.unit}"


class Choice(Marker):
    """One of some texts."""

    def __init__(self, *options: str) -> None:
        self.options = options

    def allows(self, value: Any) -> bool:
        return value in self.options

    @property
    def bounds(self) -> str:
        return ", ".join(f"`{option}`" for option in self.options)

    def phrase(self, noun: str) -> str:
        return f"one of {', '.join(self.options)}"


@dataclass(frozen=True)
class Address(Marker):
    """ "host:port", with IPv6 addresses in brackets."""

    or_empty: bool = False
    needs_port: bool = False
    """Port 0, which stands for any free one, is refused."""

    def allows(self, value: Any) -> bool:
        if self.or_empty and not value:
            return True
        parts = split_address(value) if _is_unicode(value) else None
        return parts is not None and (parts[1] > 0 or not self.needs_port)

    @property
    def bounds(self) -> str:
        return self.phrase("")

    def phrase(self, noun: str) -> str:
        port = " with a port from 1" if self.needs_port else ""
        return f'{"empty, or " if self.or_empty else ""}"host:port"{port}'


class Secret(Marker):
    """Errors don't show the value."""


class Location(Secret):
    """A folder, or the URL of one. One with credentials is refused, and not shown."""

    SCHEMES = ("file", "s3", "gs", "az", "memory")
    CHARACTERS_MAX = 1024

    def allows(self, value: Any) -> bool:
        if not 1 <= len(value) <= self.CHARACTERS_MAX or not value.isprintable():
            return False
        scheme, colon, rest = value.partition("://")
        return not colon or (scheme in self.SCHEMES and "@" not in rest.partition("/")[0])

    @property
    def bounds(self) -> str:
        return f"a folder, or {', '.join(f'`{scheme}://`' for scheme in self.SCHEMES[:-1])}"

    def phrase(self, noun: str) -> str:
        schemes = ", ".join(f"{scheme}://" for scheme in self.SCHEMES[:-1])
        return f"a folder or a URL without credentials ({schemes})"


@dataclass(frozen=True)
class Hint(Marker):
    """The hint of the error, in place of the one that `check` would give."""

    text: str


@dataclass(frozen=True)
class Setting:
    """One field of a config."""

    name: str
    expected: Any
    """The annotation, markers included."""
    default: Any
    """`dataclasses.MISSING` for a required setting."""

    @property
    def kind(self) -> Any:
        """The type, without markers."""
        return split(self.expected)[0]

    @property
    def config(self) -> Any:
        """The config class of a setting that is a config itself, or may be one; else None."""
        return next((kind for kind in _options(self.kind) if is_config(kind)), None)

    @property
    def is_python_only(self) -> bool:
        """Whether TOML can't hold the value, because it is a function."""
        return any(get_origin(kind) is Callable for kind in _options(self.kind))


def settings_of(config: Any) -> tuple[Setting, ...]:
    """The settings of a config class, in the order of their declaration."""
    return _settings_of(config)


@cache
def _settings_of(config: type[Any]) -> tuple[Setting, ...]:
    hints = typing.get_type_hints(config, include_extras=True)
    return tuple(
        Setting(
            field.name,
            hints[field.name],
            field.default if field.default_factory is MISSING else field.default_factory(),
        )
        for field in fields(config)
    )


def check(config: Any) -> None:
    """Validate each setting of a config by itself. ConfigError names the first wrong one."""
    for setting in settings_of(type(config)):
        given = getattr(config, setting.name)
        taken = take(setting.name, setting.expected, given, setting.default)
        if taken is not given:
            object.__setattr__(config, setting.name, taken)  # Configs are frozen.


def take(name: str, expected: Any, value: Any, default: Any = MISSING) -> Any:
    """The value in the form that a config holds. ConfigError if the annotation refuses it."""
    taken = _take(name, expected, value)
    if taken is not _WRONG:
        return taken
    markers = split(expected)[1]
    is_secret = any(isinstance(marker, Secret) for marker in markers)
    got = "" if is_secret else f", got {shown(value)}"
    raise ConfigError(
        f"{name} must be {requirement(expected)}{got}", hint=_hint(expected, value, default)
    )


def requirement(expected: Any) -> str:
    """What an annotation allows, as in "a whole number from 1 to 9"."""
    kind, markers = split(expected)
    options = _options(kind)
    if len(options) > 1:
        text = " or ".join(requirement(option) for option in options)
    elif get_origin(kind) is tuple:
        text = "a list"
    elif get_origin(kind) is Mapping:
        text = "a table (a mapping)"
    elif get_origin(kind) is Callable:
        text = "a function"
    elif isinstance(kind, enum.EnumType):
        text = f"one of {', '.join(_values(kind))}"
    else:
        text = _NOUNS.get(kind) or f"a {kind.__name__} (in TOML a table)"
    for marker in markers:
        text = marker.phrase(text)
    return text


def split(expected: Any) -> tuple[Any, tuple[Marker, ...]]:
    """The type and the markers of an annotation."""
    if get_origin(expected) is not Annotated:
        return expected, ()
    return expected.__origin__, tuple(m for m in expected.__metadata__ if isinstance(m, Marker))


def is_config(kind: Any) -> bool:
    """Whether a setting's type is a config, which in TOML is a table of its own."""
    return isinstance(kind, type) and is_dataclass(kind)


def check_all_or_none(config: object, *names: str) -> None:
    """ConfigError if some of these settings are set and others aren't."""
    missing = [name for name in names if not getattr(config, name)]
    if missing and len(missing) < len(names):
        verb = "is" if len(missing) == 1 else "are"
        raise ConfigError(
            f"{', '.join(names)} go together; {', '.join(missing)} {verb} missing",
            hint="set all of them, or none",
        )


def closest(text: str, known: Iterable[str]) -> str:
    """The item of `known` that is closest to `text`; "" if none is close."""
    matches = difflib.get_close_matches(text[:SHOWN_CHARACTERS_MAX], list(known), n=1)
    return matches[0] if matches else ""


def shown(value: object) -> str:
    """The repr of a wrong value for an error message, cut to a maximum length."""
    try:
        text = repr(value)
    except ValueError:
        return "a number of thousands of digits"  # Python refuses to convert it to text.
    return text if len(text) <= SHOWN_CHARACTERS_MAX else f"{text[:SHOWN_CHARACTERS_MAX]}..."


def size(count: float) -> str:
    """A number of bytes in the largest unit that divides it, as in "64 MiB"."""
    for unit, name in _SIZES:
        if count and count % unit == 0:
            return f"{count // unit:,} {name}"
    return f"{count:,}"


def _take(name: str, expected: Any, value: Any) -> Any:
    kind, markers = split(expected)
    options = _options(kind)
    if len(options) > 1:
        taken = next((t for o in options if (t := _take(name, o, value)) is not _WRONG), _WRONG)
    elif get_origin(kind) is tuple:
        taken = _take_items(name, kind, value)
    elif get_origin(kind) is Mapping:
        taken = _take_mapping(name, kind, value)
    else:
        taken = _take_plain(kind, value)
    return taken if taken is _WRONG or all(m.allows(taken) for m in markers) else _WRONG


def _take_items(name: str, kind: Any, value: Any) -> Any:
    if not isinstance(value, list | tuple):
        return _WRONG
    (item, _) = get_args(kind)
    return tuple(take(f"{name}[{number}]", item, each) for number, each in enumerate(value))


def _take_mapping(name: str, kind: Any, value: Any) -> Any:
    if not isinstance(value, Mapping):
        return _WRONG
    key, item = get_args(kind)
    for each in value:
        take(f"each key of {name}", key, each)
    return MappingProxyType(
        {each: take(f"{name}[{shown(each)}]", item, value[each]) for each in sorted(value)}
    )


def _take_plain(kind: Any, value: Any) -> Any:
    if get_origin(kind) is Callable:
        return value if callable(value) else _WRONG
    if isinstance(kind, enum.EnumType):
        members = {member.value: member for member in _members(kind)}
        return members.get(value, _WRONG) if isinstance(value, str | kind) else _WRONG
    if isinstance(value, bool):
        return value if kind is bool else _WRONG
    if kind is float:
        is_finite = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
        return value if is_finite else _WRONG
    return value if isinstance(value, kind) else _WRONG


def _hint(expected: Any, value: Any, default: Any) -> str:
    kind, markers = split(expected)
    for marker in markers:
        if isinstance(marker, Hint):
            return marker.text
    if isinstance(value, str):
        options = [o for m in markers if isinstance(m, Choice) for o in m.options]
        guess = closest(value, options or _values(kind))
        if guess:
            return f"did you mean {guess}?"
        if _is_quoted(kind, value):
            return "write it without quotes"
    if isinstance(default, bool | int | float):
        return f"the default is {str(default).lower()}"
    return f"the default is {default}" if isinstance(default, str) and default else ""


def _is_quoted(kind: Any, text: str) -> bool:
    """Whether a number, true or false is given as text."""
    if kind is bool:
        return text.lower() in ("true", "false")
    digits = text.removeprefix("-").replace(".", "", 1)
    return kind in (int, float) and digits.isascii() and digits.isdigit()


def _options(kind: Any) -> tuple[Any, ...]:
    """The members of a union; for any other type, the type itself."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _members(kind: Any) -> list[enum.Enum]:
    return list(kind) if isinstance(kind, enum.EnumType) else []


def _values(kind: Any) -> list[str]:
    return [str(member.value) for member in _members(kind)]


def _is_unicode(text: str) -> bool:
    """Whether `text` has no lone surrogates, which UTF-8 can't hold."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
