"""docs/REFERENCE.md names tests; each must exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def functions_of(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


def test_every_row_names_a_test_that_exists() -> None:
    text = (ROOT / "docs" / "REFERENCE.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    items = [row for row in rows if not row.startswith(("| item", "| ---"))]
    assert items
    for row in items:
        named = re.findall(r"`(tests/[^`:]+)::(test_\w+)`", row)
        assert named, f"no test: {row}"
        for path, name in named:
            assert name in functions_of(path), f"no such test: {path}::{name}"
