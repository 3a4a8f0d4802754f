"""Build the site of the documents: `python docs/site.py OUT`. It needs the extra `docs`.

The documents are written to be read in the repository: their links lead to files of it. So the
build copies them to a folder of their own, with README.md as the first page and each link turned
into one of the site. A source file that a document links to becomes a page that shows it. A link
that leads nowhere ends the build, and so does every warning of the generator.

The generator is Zensical, which is maintained by the makers of Material for MkDocs; that theme and
MkDocs 1 are no longer. `mkdocs.yml` has the format of both.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "examples/README.md": "examples.md",
}
"""Documents outside of docs/, and what they are on the site."""
LANGUAGES = {".py": "python", ".toml": "toml", ".txt": "text"}
API = {
    "Managers": ["raftha.HaManager", "raftha.aio.HaManager", "raftha.ReplicationManager"],
    "Configuration": [
        "raftha.HaConfig", "raftha.ReplicationConfig", "raftha.BackupConfig",
        "raftha.RetentionPolicy",
    ],
    "State machines and transactions": [
        "raftha.StateMachine", "raftha.command", "raftha.Transaction",
        *(f"raftha.{name}" for name in ("Put", "Get", "Delete", "Equals", "Exists", "Missing")),
    ],
    "Records": [
        *(f"raftha.{name}" for name in ("Receipt", "Acknowledgement", "Digest", "HaStatus")),
        *(f"raftha.{name}" for name in ("ReplicaStatus", "FireForgetCounts")),
        *(f"raftha.{name}" for name in ("ReplicationMode", "ReplicationState", "ReplicaState")),
        *(f"raftha.{name}" for name in ("BackupResult", "BackupMode", "BackupState")),
    ],
    "Events": [
        "raftha.EventStream", "raftha.AsyncEventStream",
        *(f"raftha.events.{name}" for name in ("base", "cluster", "backup")),
    ],
    "Errors": ["raftha.errors"],
    "Client, metrics, tests": [
        "raftha.client.Client", "raftha.metrics.Collector", "raftha.testing.LocalCluster",
    ],
}  # fmt: skip
"""What the page of the Python API shows."""

_LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


class Stage:
    """The folder that the site is built from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._sources: set[str] = set()

    def fill(self) -> None:
        """Copy all documents, and what they link to."""
        docs = REPOSITORY / "docs"
        for path in sorted(docs.rglob("*")):
            name = path.relative_to(REPOSITORY).as_posix()
            if path.suffix == ".md":
                self._add_page(name)
            elif path.is_file() and path.suffix != ".py":
                target = self.folder / path.relative_to(docs)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        for name in PAGES:
            self._add_page(name)
        for name in sorted(self._sources):
            self._add_source(name)
        self._write("api.md", api_page())

    def _add_page(self, name: str) -> None:
        text = (REPOSITORY / name).read_text(encoding="utf-8")
        parts, end = [], 0
        for fence in _FENCE.finditer(text):  # What stands in a block is no link.
            parts += [self._relink(name, text[end : fence.start()]), fence[0]]
            end = fence.end()
        parts.append(self._relink(name, text[end:]))
        self._write(page_of(name), "".join(parts))

    def _relink(self, name: str, text: str) -> str:
        return _LINK.sub(lambda link: self._resolve(name, link[0]), text)

    def _resolve(self, name: str, link: str) -> str:
        path, hash_sign, anchor = link.partition("#")
        if not path or "://" in path:
            return link
        target = os.path.normpath(os.path.join(os.path.dirname(name), path))
        if not (REPOSITORY / target).is_file():
            raise SystemExit(f"error: {name} links to {link}, which is not a file")
        page = page_of(target)
        if page.startswith("source/"):
            self._sources.add(target)
        return os.path.relpath(page, os.path.dirname(page_of(name)) or ".") + hash_sign + anchor

    def _add_source(self, name: str) -> None:
        path = REPOSITORY / name
        text, language = path.read_text(encoding="utf-8"), LANGUAGES.get(path.suffix, "text")
        head = f"---\nsearch:\n  exclude: true\n---\n\n# {name}\n\n"
        self._write(page_of(name), f"{head}````` {language}\n{text}`````\n")

    def _write(self, page: str, text: str) -> None:
        target = self.folder / page
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


def page_of(name: str) -> str:
    """Where a file of the repository is on the site."""
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    return PAGES.get(name, f"source/{name}.md")


def api_page() -> str:
    """A page that has the docstrings of all that is public."""
    parts = ["# Python API\n\nFrom the docstrings.\n"]
    for title, names in API.items():
        parts.append(f"\n## {title}\n\n" + "".join(map(_shown, names)))
    return "".join(parts)


def _shown(name: str) -> str:
    return f"::: {name}\n    options:\n      toc_label: {name}\n\n"


def main() -> None:
    """Build the site into the folder that the command line names."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    out = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory(prefix="raftha-site-") as folder:
        stage = Path(folder)
        Stage(stage / "docs").fill()
        config = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
        config = config.replace("paths: [..]", f"paths: [{REPOSITORY}]")
        (stage / "mkdocs.yml").write_text(f"{config}site_dir: site\n", encoding="utf-8")
        subprocess.run(["zensical", "build", "--strict"], cwd=stage, check=True)
        shutil.copytree(stage / "site", out, dirs_exist_ok=True)


if __name__ == "__main__":
    main()
