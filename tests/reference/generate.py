"""The pages of docs/reference that are generated from the source.

    python -m tests.reference

rewrites them, and a test compares them with the source. The source has everything on a page once:
facts in annotations and class statements, which are imported, and prose in docstrings. Python keeps
no docstrings of fields and constants, so these are read from the syntax tree. A new page is a
function that returns Markdown, and a line in `PAGES`.
"""

from __future__ import annotations

import ast
import enum
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, fields
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

from raftha import errors, events
from raftha.config import (
    BackupConfig,
    HaConfig,
    PitrConfig,
    ReplicationConfig,
    RetentionPolicy,
    limits,
)
from raftha.config.checks import Setting, is_config, settings_of, size, split
from raftha.server import ServerConfig

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "reference"
NOTE = (
    "<!-- Generated from the source by `python -m tests.reference`. Edit the docstrings there. -->"
)

CONFIGS = (
    HaConfig, ReplicationConfig, BackupConfig, RetentionPolicy, PitrConfig, ServerConfig,
)  # fmt: skip
EVENTS = (events.cluster, events.backup, events.recovery)
LIMITS = (limits,)
"""Modules whose constants with docstrings are limits."""
HAPPENED = {
    errors.AcknowledgementTimeout: "yes, it is committed",
    errors.Rejected: "no",
    errors.Indeterminate: "perhaps",
}
"""Whether the operation that raised an error happened, by the first class that it is a kind of."""


def render(name: str) -> str:
    """The text of a generated page, by its file name."""
    title, make = PAGES[name]
    parts = [f"# {title}", NOTE, *make()]
    return "\n\n".join(parts) + "\n"


# ---------------------------------------------------------------- the pages


def settings_page() -> Iterator[str]:
    """Each setting of each config."""
    yield (
        "A node takes its settings from Python, `HaConfig(node_id=1, ...)`, or from a TOML file,"
        " `HaConfig.from_toml(path)`. `raftha serve --config` reads a TOML file that holds the"
        " settings of `HaConfig` and of `ServerConfig` side by side. A wrong setting is a"
        " `ConfigError` that names it, what is allowed, and what was given."
    )
    for config in CONFIGS:
        yield f"## {config.__name__}"
        yield prose_of(config)
        yield table(
            ("setting", "type", "default", "allowed", "unit"),
            (_setting_row(config, setting) for setting in settings_of(config)),
        )
        texts = attribute_docs(config)
        for setting in settings_of(config):
            yield f"### `{setting.name}`"
            yield texts[setting.name]


def limits_page() -> Iterator[str]:
    """Each numeric limit."""
    yield "Limits that no setting changes. [Settings](settings.md) has the bounds of settings."
    yield table(
        ("limit", "value", "what"),
        (
            (f"`{name}`", _number(name, getattr(module, name)), text)
            for module in LIMITS
            for name, text in attribute_docs(module).items()
        ),
    )


def errors_page() -> Iterator[str]:
    """Each error, and whether the operation happened."""
    yield prose_of(errors)
    yield table(
        ("error", "is a", "did the operation happen?", "meaning"),
        (
            (
                f"`{error.__name__}`",
                ", ".join(f"`{base.__name__}`" for base in error.__bases__),
                next((word for kind, word in HAPPENED.items() if issubclass(error, kind)), "—"),
                prose_of(error),
            )
            for error in classes_of(errors)
        ),
    )


def events_page() -> Iterator[str]:
    """Each event, its kind and its fields."""
    yield prose_of(events.HaEvent)
    shared = [field.name for field in fields(events.HaEvent)]
    yield f"All events have {', '.join(f'`{name}`' for name in shared)}, and `time`."
    yield table(
        ("kind", "class", "fields", "meaning"),
        (
            (
                f"`{event.kind}`",
                f"`{event.__name__}`",
                ", ".join(
                    f"`{name}`: {type_name(kind)}"
                    for name, kind in _instance_fields(event)
                    if name not in shared
                ),
                prose_of(event),
            )
            for module in EVENTS
            for event in classes_of(module)
        ),
    )


PAGES: dict[str, tuple[str, Callable[[], Iterable[str]]]] = {
    "settings.md": ("Settings", settings_page),
    "limits.md": ("Limits", limits_page),
    "errors.md": ("Errors", errors_page),
    "events.md": ("Events", events_page),
}


# ---------------------------------------------------------------- reading the source


def attribute_docs(owner: type | ModuleType) -> dict[str, str]:
    """The docstring below each field of a class, or constant of a module, that has one."""
    source = inspect.getsourcefile(owner)
    assert source is not None
    body = ast.parse(Path(source).read_text(encoding="utf-8")).body
    if isinstance(owner, type):
        (body,) = (
            node.body
            for node in body
            if isinstance(node, ast.ClassDef) and node.name == owner.__name__
        )
    docs = {}
    for declared, below in pairwise(body):
        if isinstance(declared, ast.AnnAssign):
            target: ast.expr = declared.target
        elif isinstance(declared, ast.Assign):
            target = declared.targets[0]
        else:
            continue
        if isinstance(target, ast.Name) and _is_text(below):
            docs[target.id] = unwrap(inspect.cleandoc(ast.literal_eval(below.value)))
    return docs


def prose_of(owner: type | ModuleType) -> str:
    """The docstring of a class or a module, a paragraph a line."""
    text = inspect.cleandoc(owner.__doc__ or "")
    assert text, f"{owner.__name__} has no docstring"
    return unwrap(text)


def classes_of(module: ModuleType) -> list[Any]:
    """The classes that a module defines, in their order there."""
    return [
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and kind.__module__ == module.__name__
    ]


def _is_text(node: ast.stmt) -> typing.TypeGuard[ast.Expr]:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _instance_fields(kind: Any) -> list[tuple[str, Any]]:
    hints = typing.get_type_hints(kind)
    return [(field.name, hints[field.name]) for field in fields(kind)]


# ---------------------------------------------------------------- writing Markdown


def unwrap(text: str) -> str:
    """Paragraphs without line breaks inside."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table; a cell's paragraphs are joined."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def type_name(kind: Any) -> str:
    """A type as in an annotation, without modules and markers."""
    name = kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)
    return re.sub(r"\b\w+\.(?=\w)", "", re.sub(r"\b\w+\.(?=\w+\.)", "", name))


def _cell(text: str) -> str:
    return text.replace("\n\n", " ").replace("|", "\\|")


def _setting_row(config: Any, setting: Setting) -> tuple[str, ...]:
    markers = split(setting.expected)[1]
    unit = next((marker.unit for marker in markers if marker.unit), "")
    bounds = [marker.bounds for marker in markers if marker.bounds]
    if isinstance(setting.kind, enum.EnumType):
        bounds.append(", ".join(f"`{member.value}`" for member in list[Any](setting.kind)))
    kind = typing.get_type_hints(config)[setting.name]
    default = _default(setting.default, unit)
    return f"`{setting.name}`", f"`{type_name(kind)}`", default, ", ".join(bounds), unit


def _default(value: Any, unit: str) -> str:
    if value is MISSING:
        return "must be given"
    if is_config(type(value)):
        return "its defaults"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int) and unit.startswith("bytes"):
        return size(value)
    if value is None or value == "":
        return "none"
    if isinstance(value, tuple | Mapping):
        return f"`{list(value) if isinstance(value, tuple) else dict(value)}`"
    return f"`{value}`"


def _number(name: str, value: int) -> str:
    return size(value) if "BYTES" in name else f"{value:,}"
