"""A node's settings as the text of a TOML file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raftha.errors import LocalClusterError


def to_toml(table: Mapping[str, Any]) -> str:
    """Write text, numbers, booleans, lists of these, and tables in tables."""
    return "\n".join(_lines(table, ())) + "\n"


def _lines(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    lines = ["", f"[{'.'.join(map(_key, path))}]"] if path else []
    inner = {name: value for name, value in table.items() if isinstance(value, Mapping)}
    lines += [f"{_key(k)} = {_value(v)}" for k, v in table.items() if k not in inner]
    for name, value in inner.items():
        lines += _lines(value, (*path, name))
    return lines


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _quoted(name)


def _value(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case str() | Path():
            return _quoted(str(value))
        case list() | tuple():
            return f"[{', '.join(map(_value, value))}]"
    raise LocalClusterError(f"settings can't hold {value!r}")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
