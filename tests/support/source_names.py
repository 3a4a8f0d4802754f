"""The names that the source defines, to check the names that documents cite.

Nothing is imported: a document may cite a class of the simulator, or an optional module.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

STRING_CHARACTERS_MAX = 60


class SourceNames:
    """The names in all Python files below some folders."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self._anywhere: set[str] = set()
        self._in_classes: dict[str, set[str]] = defaultdict(set)
        self._in_modules: dict[str, set[str]] = defaultdict(set)
        for folder in folders:
            for file in sorted(folder.rglob("*.py")):
                self._read(file)

    def _read(self, file: Path) -> None:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        names = set(_names(tree))
        self._anywhere |= names
        self._in_modules[file.parent.name if file.stem == "__init__" else file.stem] |= names
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                self._in_classes[node.name].update(_names(node))

    def has(self, cited: str) -> bool:
        """True if `name`, `Class.name` or `module.name` is defined; True for foreign owners."""
        owner, _, name = cited.rpartition(".")
        if not owner:
            return name in self._anywhere or name in self._in_modules
        owned = self._in_classes if owner in self._in_classes else self._in_modules
        return name in owned[owner] if owner in owned else True


def _names(tree: ast.AST) -> Iterator[str]:
    """What a tree defines, imports, assigns or takes; and short strings, such as keys."""
    for node in ast.walk(tree):
        for field in ("name", "id", "attr", "arg"):
            name = getattr(node, field, None)
            if isinstance(name, str):
                yield name
        value = getattr(node, "value", None)
        if isinstance(value, str) and len(value) <= STRING_CHARACTERS_MAX:
            yield value
