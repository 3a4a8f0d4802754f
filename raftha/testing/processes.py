"""Processes that end when their parent ends, and ports that stay reserved for them.

Theory of operation. A parent that is killed with SIGKILL can't clean up, so the kernel does: a shim
asks for SIGKILL at its parent's end (PR_SET_PDEATHSIG, Linux only), and then becomes the child's
program by exec, under the same process id. No Python code runs between fork and exec, which would
be unsafe beside threads. The kernel's parent is the *thread* that started the child, so one thread
starts all of them and lives as long as the `Spawner`. Children are in sessions of their own: Ctrl-C
at a terminal reaches only the parent, which then ends them.

A port is reserved by a socket that is bound, allows SO_REUSEADDR, and doesn't listen. No other
process can take the port, not even as the local end of an outgoing connection. The intended
listener shares the port by setting SO_REUSEADDR too, as the listeners of asyncio and uvloop do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_SHIM = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""


class Spawner:
    """Starts processes that don't outlive this process; see the module's docstring."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spawner")
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, command: Sequence[str], *, folder: Path, log: Path) -> subprocess.Popen[bytes]:
        """Start `command` in `folder`; append its output to `log`."""
        shim = [sys.executable, "-I", "-S", "-c", _SHIM, str(os.getpid())]
        environment = dict(os.environ)
        # The child must import this raftha from any folder, also in a clone that isn't installed.
        paths = [str(Path(__file__).parents[2]), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        environment.pop("PYTHONOPTIMIZE", None)  # Nodes refuse to run without their asserts.

        def start() -> subprocess.Popen[bytes]:
            with log.open("ab") as output:
                process = subprocess.Popen(
                    [*shim, *command],
                    cwd=folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            # Recorded here, since an interrupt may keep the caller from receiving the process.
            self._started = [p for p in self._started if p.poll() is None] + [process]
            return process

        return self._thread.submit(start).result()

    def close(self) -> None:
        """Kill all remaining processes, paused ones too, and wait until they are gone."""
        self._thread.shutdown(cancel_futures=True)
        for process in self._started:
            process.kill()
        for process in self._started:
            process.wait()


def reserve_port() -> socket.socket:
    """Take a free port of the loopback address, until the socket is closed."""
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    return reserved
