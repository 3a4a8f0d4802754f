"""Runs the fenced blocks of a Markdown document as pasted, in order, from an empty folder.

The language of a block decides what happens with it:

    sh       pasted into the document's terminal, a bash; no command in it may fail
    console  `$ ` and a command, then what it prints; see `Block.pattern` for what counts as equal
    python   run in the document's Python process, one process for all such blocks
    text     not run

A block of any language whose first line is a comment with a file's name, `# node-1.toml`, is
written to that file and not run. Other languages are only for such blocks.

A comment above the block says what a reader does by hand, `<!-- run: WORD ... -->`:

    background      each line gets a terminal of its own, where it goes on running
    until="text"    go on once each background command of the block has printed `text`
    eventually      repeat the block until it succeeds
    install         commands that make a virtual environment or call pip are checked, not run
    skip because="" not run, for that reason
    needs="program" not run where that program isn't installed

At the end of the document everything that still runs is ended.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
BLOCK_S = 120.0
"""How long a block may take."""
END_S = 15.0
"""How long a running process may take to end after SIGTERM."""
POLL_S = 0.05

_BLOCK = re.compile(
    r"^(?:<!-- run: (?P<directive>.*?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_FILE = re.compile(r"# (?P<name>[\w./@-]+\.\w+)\b.*\n")
_WORDS = {"background", "until", "eventually", "install", "skip", "because", "needs"}
_PYTHON = """
import json, sys, traceback
names = {"__name__": "__main__"}
for request in sys.stdin:
    code, place, done = json.loads(request)
    try:
        exec(compile(code, place, "exec"), names)
    except BaseException:
        traceback.print_exc()
        result = "failed"
    else:
        result = "ok"
    sys.stdout.flush()
    with open(done, "w") as file:
        file.write(result + "\\n")
"""


class BlockFailed(AssertionError):
    """A block did not do what the document says."""


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block; `place` is the document and the line."""

    place: str
    language: str
    text: str
    directive: dict[str, str]

    @property
    def file(self) -> str | None:
        """The name of the file that this block shows, if it is one."""
        match = _FILE.match(self.text)
        return match["name"] if match else None

    @property
    def commands(self) -> Iterator[tuple[str, str]]:
        """The commands of a console block, each with its expected output."""
        for part in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]:
            lines = part.splitlines(keepends=True)
            length = 1 + next(i for i, line in enumerate(lines) if not line.endswith("\\\n"))
            yield "".join(lines[:length]), "".join(lines[length:])


def read_blocks(document: Path) -> list[Block]:
    """All blocks of a document, in order."""
    text = document.read_text(encoding="utf-8")
    name = document.relative_to(REPOSITORY)
    return [
        Block(
            place=f"{name}:{text.count(chr(10), 0, match.start('language')) + 1}",
            language=match["language"],
            text=match["text"],
            directive=_parse(match["directive"] or ""),
        )
        for match in _BLOCK.finditer(text)
    ]


def _parse(directive: str) -> dict[str, str]:
    words = dict(word.partition("=")[::2] for word in shlex.split(directive))
    assert words.keys() <= _WORDS, f"no such directive: {directive}"
    assert ("skip" in words) == ("because" in words), "a block is skipped for a reason"
    return words


def printed_as(expected: str, actual: str) -> bool:
    """True if a command printed what the document shows.

    Numbers may differ and so may the amount of space; `...` in the document stands for any text,
    and alone on its line for any lines.
    """
    pattern = re.escape(_normal(expected)).replace(re.escape("..."), "(?s:.*)")
    return re.fullmatch(pattern, _normal(actual)) is not None


def _normal(text: str) -> str:
    text = re.sub(r"\d+(?:[.,]\d+)*", "0", text)
    text = re.sub(r"[ ─]*─[ ─]*", "─", text)
    lines = (re.sub(r"\s+", " ", line).strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def wait_until(is_so: Callable[[], bool], problem: Callable[[], str], limit_s: float) -> None:
    """Wait for a condition that other processes bring about."""
    deadline = time.monotonic() + limit_s
    while not is_so():
        if time.monotonic() > deadline:
            raise BlockFailed(problem())
        time.sleep(POLL_S)


def check_ports(text: str) -> None:
    """Fail if a port that a document uses is taken on this machine."""
    for port in sorted(
        {int(port) for port in re.findall(r"(?:127\.0\.0\.1|localhost):(\d+)", text)}
    ):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise BlockFailed(
                    f"port {port}, which the document uses, is taken on this machine: {error}"
                ) from error


class Process:
    """A program in a session of its own, whose output goes to a file."""

    def __init__(self, command: list[str], folder: Path, output: Path) -> None:
        self.output = output
        environment = dict(os.environ)
        # The commands `raftha` and `python` are those of this interpreter, with this checkout.
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        environment["PYTHONPATH"] = str(REPOSITORY)
        environment["PYTHONUNBUFFERED"] = "1"
        environment["HOME"] = str(folder)
        with output.open("wb") as file:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def send(self, line: str) -> None:
        """Send one line to its stdin."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    @property
    def printed(self) -> str:
        """The output so far, of it and of the processes that it started."""
        return self.output.read_text(encoding="utf-8", errors="replace")

    def ask(self, line: str, done: Path) -> str:
        """Send a line that makes it write `done`; return what it wrote there."""
        self.send(line)

        def problem() -> str:
            return f"still running after {BLOCK_S} s; printed\n{self.printed}"

        wait_until(lambda: done.exists() and done.read_text().endswith("\n"), problem, BLOCK_S)
        return done.read_text().strip()

    def end(self) -> None:
        """End it, and the processes of its session, by their ids."""
        self._process.kill()  # First, or a shell would go on with its next command.
        self._process.communicate()
        _signal(self._session(), signal.SIGTERM)
        deadline = time.monotonic() + END_S
        while self._session() and time.monotonic() < deadline:
            time.sleep(POLL_S)
        _signal(self._session(), signal.SIGKILL)

    def _session(self) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and _session_of(int(entry.name)) == self._process.pid:
                found.append(int(entry.name))
        return found


def _session_of(pid: int) -> int | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[3]) if fields[0] != "Z" else None


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


@dataclass(slots=True)
class Reader:
    """A reader of one document that pastes its blocks, in a folder of its own."""

    folder: Path
    scratch: Path
    _processes: list[Process] = field(default_factory=list)
    _main: Process | None = None
    _python: Process | None = None
    _count: int = 0

    def follow(self, block: Block) -> None:
        """Do what a block says; BlockFailed if that fails."""
        try:
            self._follow(block)
        except BlockFailed as error:
            raise BlockFailed(f"{block.place}: {error}") from error

    def _follow(self, block: Block) -> None:
        directive = block.directive
        if "skip" in directive or block.language == "text":
            return
        if "needs" in directive and not shutil.which(directive["needs"]):
            return
        if block.file is not None:
            path = self.folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
            return
        run = {"sh": self._paste, "console": self._compare, "python": self._execute}
        if block.language not in run:
            raise BlockFailed(f"a block of {block.language!r} must begin with a file's name")
        if "eventually" in directive:
            self._repeat(run[block.language], block)
        else:
            run[block.language](block)

    def _repeat(self, run: Callable[[Block], None], block: Block) -> None:
        deadline = time.monotonic() + BLOCK_S / 2
        while True:
            try:
                run(block)
            except BlockFailed:
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_S)
            else:
                return

    def _new(self, suffix: str) -> Path:
        self._count += 1
        return self.scratch / f"{self._count}{suffix}"

    def _paste(self, block: Block) -> None:
        text = block.text
        if "install" in block.directive:
            text = _without_installing(text)
        if "background" in block.directive:
            started = [(self._open_terminal(), line) for line in text.splitlines()]
            for terminal, line in started:
                terminal.send(line)
            terminals, times = [terminal for terminal, _ in started], 1
            before = [""] * len(started)
        else:
            terminals, times = (
                [self._terminal()],
                max(1, len(re.findall(r"&$", text, re.MULTILINE))),
            )
            before = [terminals[0].printed]
            self._run(text)
        wanted = block.directive.get("until")
        for terminal, earlier in zip(terminals, before, strict=True) if wanted else ():
            self._wait_for(wanted, times, terminal, len(earlier))

    def _wait_for(self, wanted: str | None, times: int, terminal: Process, start: int) -> None:
        assert wanted
        wait_until(
            lambda: terminal.printed[start:].count(wanted) >= times,
            lambda: f"{wanted!r} was not printed {times} times, but\n{terminal.printed[start:]}",
            BLOCK_S,
        )

    def _compare(self, block: Block) -> None:
        for command, expected in block.commands:
            output = self._new(".out")
            self._run("{\n" + command + f"\n}} >{output} 2>&1 || true", output)
            printed = output.read_text(encoding="utf-8", errors="replace")
            if not printed_as(expected, printed):
                raise BlockFailed(f"$ {command}printed\n{printed}and not\n{expected}")

    def _execute(self, block: Block) -> None:
        if self._python is None:
            command = [sys.executable, "-c", _PYTHON]
            self._python = self._start(command)
        done, start = self._new(".done"), len(self._python.printed)
        request = json.dumps((block.text, block.place, str(done)))
        if self._python.ask(request, done) != "ok":
            raise BlockFailed(self._python.printed[start:])

    def _terminal(self) -> Process:
        """The terminal that blocks are pasted into."""
        if self._main is None:
            self._main = self._open_terminal()
        return self._main

    def _open_terminal(self) -> Process:
        terminal = self._start(["bash"])
        # As at a keyboard, jobs have process groups of their own.
        terminal.send("set -m")
        return terminal

    def _start(self, command: list[str]) -> Process:
        process = Process(command, self.folder, self._new(".out"))
        self._processes.append(process)
        return process

    def _run(self, text: str, output: Path | None = None) -> None:
        """Paste into the document's terminal; every command must succeed."""
        terminal, script, failed = self._terminal(), self._new(".sh"), self._new(".failed")
        done, start = self._new(".done"), len(terminal.printed)
        script.write_text(text, encoding="utf-8")
        terminal.send(f"""trap 'echo "$BASH_COMMAND" >>{failed}' ERR""")
        # `jobs`: a terminal forgets the jobs that have ended before it prompts again.
        terminal.ask(f"jobs >/dev/null; source {script} </dev/null; echo >{done}", done)
        if failed.exists():
            printed = output.read_text() if output else terminal.printed[start:]
            raise BlockFailed(f"{failed.read_text()}failed, and printed\n{printed}")

    def close(self) -> None:
        """End everything that was started."""
        for process in self._processes:
            process.end()
        shutil.rmtree(self.folder, ignore_errors=True)


def _without_installing(text: str) -> str:
    """A chain of commands without those that make an environment; names of extras are checked."""
    left = []
    for command in text.replace("\\\n", " ").strip().split("&&"):
        words = shlex.split(command)
        if words[:3] == ["python3", "-m", "venv"]:
            continue
        if words[0].endswith("pip"):
            _check_extras(words)
            continue
        left.append(command.replace(".venv/bin/", ""))
    return " && ".join(left) + "\n"


def _check_extras(words: list[str]) -> None:
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg", encoding="utf-8")
    known = set(config["options.extras_require"])
    for word in words:
        match = re.fullmatch(r"\.\[(.*)\]", word)
        unknown = set(match[1].split(",")) - known if match else set()
        if unknown:
            raise BlockFailed(f"setup.cfg has no extra {unknown}, only {sorted(known)}")
