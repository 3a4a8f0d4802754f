"""Rewrite the generated pages: `python -m tests.reference`."""

from __future__ import annotations

from tests.reference.generate import FOLDER, PAGES, render

if __name__ == "__main__":
    for name in PAGES:
        (FOLDER / name).write_text(render(name), encoding="utf-8")
        print(f"{FOLDER / name}")
