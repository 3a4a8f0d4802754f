"""The README and the guides work: every block is run, in order, from an empty folder.

`tests/support/documents.py` says how. Documents use fixed ports, so they run one after the other.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.documents import REPOSITORY, Block, Reader, check_ports, read_blocks

README = REPOSITORY / "README.md"
GUIDES = sorted((REPOSITORY / "docs" / "guide").glob("*.md"))
EXAMPLES = REPOSITORY / "examples"
DOCUMENTS = [README, *GUIDES, EXAMPLES / "README.md"]
NAMES = [str(document.relative_to(REPOSITORY)) for document in DOCUMENTS]
README_LINES_MAX = 170

_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    folder, scratch = tmp_path / "folder", tmp_path / "scratch"
    folder.mkdir()
    scratch.mkdir()
    reader = Reader(folder, scratch)
    yield reader
    reader.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_every_block_works_as_pasted(document: Path, reader: Reader) -> None:
    check_ports(document.read_text(encoding="utf-8"))
    if document.parent == EXAMPLES:  # These are read in a clone.
        shutil.copytree(
            EXAMPLES, reader.folder / EXAMPLES.name, ignore=shutil.ignore_patterns("data")
        )
    for block in read_blocks(document):
        reader.follow(block)


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_every_fence_is_a_block(document: Path) -> None:
    """No fence is indented, open, or without a language: the runner would miss it."""
    fences = re.findall(r"^ *```.*$", document.read_text(encoding="utf-8"), re.MULTILINE)
    blocks = read_blocks(document)
    assert len(fences) == 2 * len(blocks)
    assert [block.place for block in blocks if not block.language] == []


def test_the_readme_shows_the_whole_quick_start() -> None:
    program = (REPOSITORY / "raftha" / "quickstart.py").read_text(encoding="utf-8")
    assert len(program.splitlines()) < 40
    (shown,) = (block.text for block in read_blocks(README) if "quickstart.py" in reason(block))
    assert shown == program


def reason(block: Block) -> str:
    return block.directive.get("because", "")


def test_the_readme_stays_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) < README_LINES_MAX


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_links_lead_somewhere(document: Path) -> None:
    missing = []
    for link in _LINK.findall(document.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        if "://" in path:
            continue
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(link)
    assert missing == []


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = _HEADING.findall(document.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_guarantee_in_the_readme_has_a_link() -> None:
    section = README.read_text(encoding="utf-8").partition("## What it guarantees")[2]
    rows = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("| ")]
    assert len(rows) > 3
    assert [row for row in rows[2:] if not _LINK.search(row.rpartition(" | ")[2])] == []
