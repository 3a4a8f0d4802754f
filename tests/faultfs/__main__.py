"""`python -m tests.faultfs FOLDER`: mount a file system there, and obey commands on stdin.

A command is a line of JSON, and so is the answer. At the end of stdin, so also if the test is
killed, the file system is unmounted, and the process ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from tests.faultfs.faults import Fault
from tests.faultfs.server import Server


async def obey(server: Server, command: dict[str, Any]) -> Any:
    """Carry out one command, and return the reply."""
    match command:
        case {"do": "lose_power", "seed": seed, "chance": chance}:
            await server.lose_power(seed, chance)
        case {"do": "faults", "faults": faults}:
            server.set_faults([Fault.from_json(fields) for fields in faults])
        case {"do": "ignore_syncs", "ignores": ignores}:
            server.tree.ignores_syncs = ignores
        case {"do": "capacity", "bytes": count}:
            server.tree.capacity_bytes = count
        case {"do": "counts"}:
            return server.counts
        case _:
            raise ValueError(f"unknown command {command}")
    return None


async def main(folder: Path) -> None:
    """Serve until stdin ends."""
    server = Server(folder)
    server.mount()
    try:
        print(json.dumps({"result": None}), flush=True)
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )
        while line := await reader.readline():
            try:
                answer = {"result": await obey(server, json.loads(line))}
            except (OSError, ValueError) as error:
                answer = {"error": str(error)}
            print(json.dumps(answer), flush=True)
    finally:
        server.unmount()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]).resolve()))
