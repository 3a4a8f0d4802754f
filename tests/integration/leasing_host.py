"""A server process with a node inside that reads by lease, for `test_leases`.

    python -m tests.integration.leasing_host CONFIG FLOOR

starts the node that the TOML file CONFIG describes. FLOOR is a file of 8 bytes: the newest version
of `KEY` that is known to be complete. A thread reads the key as fast as it can, each time after it
has looked at FLOOR; what it reads must not be older. `lead` on stdin makes this node the leader,
with a lease; `count` asks how many reads there were. The reply to each is a line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import struct
import sys
import threading
import time
from pathlib import Path

import raftha
from raftha.server.machine import RedisMachine
from tests.support.nodes import read_config

KEY = b"key"
FLOOR = struct.Struct("<q")


class Reader:
    """The thread that reads."""

    def __init__(self, ha: raftha.HaManager, floor: Path) -> None:
        self.stale: list[str] = []
        self.reads = 0
        self._ha = ha
        self._floor = floor
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join()

    def _read(self) -> None:
        with self._floor.open("rb") as file, mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ) as at:
            while not self._is_over.is_set():
                (floor,) = FLOOR.unpack(at[:8])
                # A node without a lease asks the leader; without a leader it says so.
                with contextlib.suppress(raftha.RafthaError):
                    version = int(self._ha.get(KEY) or b"0")
                    self.reads += 1
                    if version < floor:
                        self.stale.append(f"{version}, though {floor} was complete before")


def lead(ha: raftha.HaManager) -> None:
    """Make this node the leader, and wait for its lease."""
    node_id, deadline = ha.config.node_id, time.monotonic() + 30
    while not ha.get_status().has_lease:
        assert time.monotonic() < deadline, ha.get_status()
        if not ha.get_status().is_primary:
            with contextlib.suppress(raftha.RafthaError):
                ha.failover_to(node_id, timeout=2)
        time.sleep(0.005)


def main() -> None:
    with raftha.HaManager(read_config(Path(sys.argv[1])), state_machine=RedisMachine()) as ha:
        reader = Reader(ha, Path(sys.argv[2]))
        print(json.dumps({}), flush=True)
        for line in sys.stdin:
            if line == "lead\n":
                lead(ha)
            _, statistics = ha.observe()
            leased = sum(list(statistics.lease_reads.values()))
            answer = {"reads": reader.reads, "leased": leased, "stale": reader.stale[:5]}
            print(json.dumps(answer), flush=True)
        reader.stop()


if __name__ == "__main__":
    main()
