"""The quick start does what the README says: three nodes, one is killed, the others go on."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.documents import REPOSITORY, check_ports

pytestmark = pytest.mark.slow
PROGRAM = REPOSITORY / "raftha" / "quickstart.py"


@dataclass(slots=True)
class Terminal:
    """One node, and its output."""

    process: subprocess.Popen[bytes]
    output: Path

    @property
    def lines(self) -> list[str]:
        return self.output.read_text(encoding="utf-8").splitlines()

    @property
    def total(self) -> int:
        return max(
            (
                int(found[1])
                for found in map(re.compile(r"total (\d+),").match, self.lines)
                if found
            ),
            default=0,
        )

    @property
    def leader(self) -> int:
        found = re.findall(r"node (\d) leads$", "\n".join(self.lines), re.MULTILINE)
        return int(found[-1]) if found else 0


class Room:
    """Three terminals in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.terminals: dict[int, Terminal] = {}
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, node: int) -> None:
        output = self.folder / f"output-{len(self.started)}"
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
        with output.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "raftha.quickstart", str(node)],
                cwd=self.folder,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        self.started.append(process)
        self.terminals[node] = Terminal(process, output)

    def wait(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not is_so():
            shown = "\n\n".join("\n".join(t.lines) for t in self.terminals.values())
            assert time.monotonic() < deadline, shown
            time.sleep(0.05)


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    check_ports(PROGRAM.read_text(encoding="utf-8"))
    room = Room(tmp_path)
    yield room
    for process in room.started:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()


def test_the_counter_goes_on_without_its_leader_and_ends_cleanly(room: Room) -> None:
    for node in (1, 2, 3):
        room.start(node)
    room.wait(lambda: all(terminal.total > 3 for terminal in room.terminals.values()))
    crashed = room.terminals[1].leader
    said = f"`kill -9 {room.terminals[crashed].process.pid}` crashes it"
    assert any(said in line for line in room.terminals[crashed].lines)
    room.terminals[crashed].process.kill()
    before = room.terminals.pop(crashed).total
    room.wait(lambda: all(terminal.total > before + 2 for terminal in room.terminals.values()))
    for terminal in room.terminals.values():
        assert any(line.startswith("failover: node ") for line in terminal.lines)
        assert terminal.leader in room.terminals

    room.start(crashed)
    room.wait(lambda: room.terminals[crashed].total > before + 2)
    for terminal in room.terminals.values():
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.process.wait(15) == 0
        assert "Traceback" not in "\n".join(terminal.lines)


def test_without_a_majority_the_quickstart_reports_that_nothing_commits(room: Room) -> None:
    room.start(1)
    room.wait(lambda: any(line.startswith("Unavailable: ") for line in room.terminals[1].lines))
    assert room.terminals[1].total == 0
