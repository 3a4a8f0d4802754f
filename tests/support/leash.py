"""A server process that can't outlive its test: `python -m tests.support.leash COMMAND ...`.

It runs the command and ends it, with all that it started, when its own standard input ends: when
the test closes it, or is killed.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
_END_TIMEOUT_S = 20
_START_TIMEOUT_S = 60


class Leashed:
    """A running command. `log` receives what it prints."""

    def __init__(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.leash", *command],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ | dict(environment or {}),
                start_new_session=True,
            )

    def wait_for_port(self, port: int) -> None:
        """Return once it accepts connections; RuntimeError, with its output, if it ends before."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    said = self.log.read_text(encoding="utf-8", errors="replace")[-2000:]
                    raise RuntimeError(f"no server came up on port {port}: {said}") from None
                time.sleep(0.02)
            else:
                return

    def close(self) -> None:
        """End the command."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(_END_TIMEOUT_S)


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def main() -> int:
    """Run the command of the arguments until standard input or the command ends."""
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)

    def end_with_input() -> None:
        sys.stdin.buffer.read()
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)

    threading.Thread(target=end_with_input, daemon=True).start()
    return child.wait()


if __name__ == "__main__":
    sys.exit(main())
