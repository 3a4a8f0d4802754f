"""Other systems' server processes: started on free ports of loopback, killed at the end."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from bench.harness.systems import NotStarted
from raftha.testing.processes import Spawner

T = TypeVar("T")

START_TIMEOUT_S = 60.0
POLL_S = 0.05


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def running(commands: Sequence[Sequence[str]], folder: Path) -> Iterator[None]:
    """Run them, each with a log in `folder`, until the block ends."""
    spawner = Spawner()
    try:
        for number, command in enumerate(commands, start=1):
            spawner.start(command, folder=folder, log=folder / f"server-{number}.log")
        yield
    finally:
        spawner.close()


def wait_for(what: str, folder: Path, find: Callable[[], T | None]) -> T:
    """Ask until there is a reply; a server that isn't reachable yet is asked again."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            if found := find():
                return found
        except (OSError, EOFError):
            pass  # It doesn't listen yet.
        time.sleep(POLL_S)  # Poll: another process starts.
    logs = "\n".join(p.read_text(errors="replace")[-800:] for p in folder.glob("server-*.log"))
    raise NotStarted(f"{what} after {START_TIMEOUT_S} s\n{logs}")


def ask(port: int, request: bytes) -> bytes:
    """Send it to a port of loopback; return all that arrives until the other side closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
        connection.sendall(request)
        answer = b""
        while data := connection.recv(65536):
            answer += data
        return answer
