"""The documents: links and anchors resolve, and the paths and names that they cite exist."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from tests.support.source_names import SourceNames

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
ARCHITECTURE = DOCS / "ARCHITECTURE.md"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])
WITH_PATHS = [ARCHITECTURE, DOCS / "VERIFICATION.md", *sorted((DOCS / "internals").glob("*.md"))]
ARCHITECTURE_LINES_MAX = 350

FENCED = re.compile(r"^(```|~~~).*?^\1 *$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\]\(([^()\s]+)\)")
HEADING = re.compile(r"^#{1,6} (.+?) *$", re.MULTILINE)
PATH = re.compile(r"`((?:raftha|storage|tests)/[\w./*-]*)`")
NAME = re.compile(
    r"`("
    r"[A-Z]\w*\.\w+"  # Class.attribute
    r"|[a-z]\w*\.(?!py`|md`|toml`|cfg`|txt`|old`|json`)[a-z_]\w*"  # module.function
    r"|[A-Z][a-z]\w*|_\w+|[A-Z]+_\w+|test_\w+"  # Class, _private, CONSTANT, a test
    r")(?:\([^`]*\))?`"
)
SOURCES = ("raftha", "storage", "tests", "bench")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors_of(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    anchors: set[str] = set()
    for heading in HEADING.findall(FENCED.sub("", text)):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        copies = sum(
            re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other) is not None for other in anchors
        )
        anchors.add(f"{slug}-{copies}" if copies else slug)
    return anchors


def broken_link(page: Path, target: str) -> str:
    """The fault of a link of `page`; "" if it has none, or leads elsewhere."""
    if re.match(r"[a-z]+:", target):
        return ""
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    if not file.exists():
        return f"{target}: there is no such file"
    if anchor and anchor not in anchors_of(file.read_text(encoding="utf-8")):
        return f"{target}: there is no such heading"
    return ""


def section(text: str, heading: str) -> str:
    """The text under a heading of the second level."""
    return text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_anchors_resolve(page: Path) -> None:
    text = CODE.sub("", FENCED.sub("", page.read_text(encoding="utf-8")))
    problems = [broken_link(page, target) for target in LINK.findall(text)]
    assert not [problem for problem in problems if problem]


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("internals/wire.md", ""),
        ("internals/wire.md#frames", ""),
        ("#the-house", ""),
        ("https://example.org/#any", ""),
        ("internals/none.md", "file"),
        ("internals/wire.md#none", "heading"),
    ],
)
def test_a_broken_link_is_found(target: str, problem: str) -> None:
    found = broken_link(ARCHITECTURE, target)
    assert problem in found if problem else not found


def test_the_architecture_stays_short() -> None:
    lines = ARCHITECTURE.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= ARCHITECTURE_LINES_MAX


def test_every_module_of_the_house_exists() -> None:
    house = section(ARCHITECTURE.read_text(encoding="utf-8"), "The house")
    packages = re.findall(r"^(raftha/[\w/.]*) ", house, re.MULTILINE)
    rows = re.findall(r"^\| `(raftha/[\w/]*)` \| (.*) \|$", house, re.MULTILINE)
    modules = [package + name for package, names in rows for name in re.findall(r"`(\S+)`", names)]
    assert packages
    assert modules
    assert not [path for path in packages + modules if not (ROOT / path).exists()]


def test_the_house_lists_every_module() -> None:
    house = section(ARCHITECTURE.read_text(encoding="utf-8"), "The house")
    rows = re.findall(r"^\| `(raftha/[\w/]*)` \| (.*) \|$", house, re.MULTILINE)
    listed = {package + name for package, names in rows for name in re.findall(r"`(\S+)`", names)}
    files = [*(ROOT / "raftha").rglob("*.py"), *(ROOT / "storage").rglob("*.py")]
    paths = (str(file.relative_to(ROOT)) for file in files if file.name != "__init__.py")
    modules = {f"raftha/{path}" if path.startswith("storage/") else path for path in paths}
    assert modules - listed == set()


@cache
def source_names() -> SourceNames:
    return SourceNames(ROOT / folder for folder in SOURCES)


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_PATHS, ids=name_of)
def test_every_name_that_is_cited_exists(page: Path) -> None:
    cited = set(NAME.findall(page.read_text(encoding="utf-8")))
    assert not [name for name in sorted(cited) if not source_names().has(name)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "is_found"),
    [
        ("Raft.propose", True),
        ("Raft.propose_nothing", False),
        ("commands.pack_put", True),
        ("commands.pack_nothing", False),
        ("loop.call_soon_threadsafe", True),  # Not a module of this project.
        ("take_committed", True),
    ],
)
def test_a_name_that_nothing_defines_is_noticed(name: str, is_found: bool) -> None:
    assert source_names().has(name) == is_found


@pytest.mark.parametrize("page", WITH_PATHS, ids=name_of)
def test_every_path_that_is_named_exists(page: Path) -> None:
    paths = set(PATH.findall(page.read_text(encoding="utf-8")))
    assert not [path for path in sorted(paths) if not list(ROOT.glob(path.rstrip("/")))]
