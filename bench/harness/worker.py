"""Processes that make load, and the requests to them: a line of JSON each way.

Theory of operation. Showing progress, collecting results and the other clients must not disturb a
measurement, so each load generator is a process of its own: the one with the leader inside it, the
ones that hold connections, the bare loop. It prints `{"ready": ...}` when it can begin, then reads
requests from stdin and answers each with one line on stdout. It ends when its stdin ends, also if
the benchmark is killed.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.harness.load import Call, Load, put_under
from bench.harness.samples import Taken

Answer = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class WorkerEnded(Exception):
    """The process ended, or reported a failure."""


class Worker:
    """A process that runs `python -m module`, seen from the benchmark."""

    def __init__(self, module: str, *arguments: str, log: Path) -> None:
        """Start it; its stderr goes to the file `log`."""
        self._module = module
        self._log = log
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
            )
        try:
            self.ready = self._receive()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request; wait for the reply."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        return self._receive()

    def load(self, load: Load) -> Taken:
        """Make it run a load."""
        return Taken.from_dict(self.ask(load.as_dict()))

    def kill(self) -> None:
        """Kill it without notice."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": "it ended"}
        if "error" in answer:
            raise self._ended(answer["error"])
        assert isinstance(answer, dict)
        return answer

    def _ended(self, reason: str) -> WorkerEnded:
        """One line for the results; the end of the log for the traceback."""
        tail = self._log.read_text(errors="replace")[-1500:].rstrip()
        last = tail.rpartition("\n")[2]
        error = WorkerEnded(f"{self._module}: {reason}{last and f': {last}'}")
        error.add_note(tail)
        return error


async def serve(answer: Answer, **ready: Any) -> None:
    """Within the process: report that it is ready, then answer requests until the input ends."""
    print(json.dumps({"ready": True, **ready}), flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        try:
            reply = await answer(json.loads(line))
        except Exception as error:  # noqa: BLE001 - the caller gets it
            reply = {"error": repr(error)}
        print(json.dumps(reply), flush=True)


async def serve_load(make_call: Callable[[Load], Call], **ready: Any) -> None:
    """Within the process: as `serve`, for loads only; `make_call` makes one call."""

    async def answer(request: dict[str, Any]) -> dict[str, Any]:
        load = Load(**request)
        return (await put_under(load, make_call(load))).as_dict()

    await serve(answer, **ready)
