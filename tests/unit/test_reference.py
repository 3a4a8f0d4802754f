"""docs/REFERENCE.md names existing tests; docs/reference matches the source."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from raftha.config.checks import settings_of, split
from tests.reference import generate

ROOT = Path(__file__).parent.parent.parent
UNITS = {"_ms": "ms", "_sec": "s", "_s": "s", "_bytes_per_s": "bytes/s", "_bytes": "bytes",
         "_bytes_max": "bytes", "_hours": "hours"}  # fmt: skip


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


@pytest.mark.parametrize("name", generate.PAGES)
def test_a_generated_page_matches_the_source(name: str) -> None:
    committed = (generate.FOLDER / name).read_text(encoding="utf-8")
    assert committed == generate.render(name), "rewrite it with `python -m tests.reference`"


@pytest.mark.parametrize("config", generate.CONFIGS)
def test_each_setting_is_documented_and_its_unit_is_in_its_name(config: type) -> None:
    texts = generate.attribute_docs(config)
    for setting in settings_of(config):
        assert texts[setting.name].endswith("."), setting.name
        units = [marker.unit for marker in split(setting.expected)[1] if marker.unit]
        for suffix, unit in UNITS.items():
            if re.search(rf"[a-z]{suffix}$", setting.name) and not setting.name.endswith(
                f"per{suffix}"
            ):
                assert units == [unit], setting.name
