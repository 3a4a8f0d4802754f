"""A process with a node inside, of an old or a new build of one program, for `test_upgrades`.

    python -m tests.integration.upgrading_host CONFIG BUILD

starts the node that the TOML file CONFIG describes. BUILD is `old`, `new`, which supports what the
old one does and more, or `future`, which supports nothing of it. The new build has a command
`double`, and its `add` notes from where on the cluster uses version 2.

A thread calls `add` without end. Each line on stdin is a question; each answer is a line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import raftha
from raftha import version
from raftha.errors import Indeterminate, RafthaError
from tests.support.nodes import read_config

TOTAL, SWITCHED = b"total", b"switched"


class Old(raftha.StateMachine):
    """Version 1."""

    @raftha.command
    def add(self, txn: raftha.Transaction, key: bytes, number: int) -> int:
        """Add `number` to a counter."""
        value = int(txn.get(key) or 0) + number
        txn.put(key, b"%d" % value)
        return value


class New(Old):
    """Version 2: `add` behaves differently, and there is a new command."""

    version = 2

    @raftha.command
    def add(self, txn: raftha.Transaction, key: bytes, number: int) -> int:
        """As before; the first call of version 2 is noted."""
        if txn.machine_version >= 2 and txn.get(SWITCHED) is None:
            txn.put(SWITCHED, b"%d" % txn.sequence)
        return super().add(txn, key, number)

    @raftha.command
    def double(self, txn: raftha.Transaction, key: bytes) -> int:
        """Double a counter."""
        return self.add(txn, key, int(txn.get(key) or 0))


BUILDS: dict[str, tuple[type[raftha.StateMachine], int, int]] = {
    "old": (Old, 6, 6),
    "new": (New, 6, 8),
    "future": (New, 9, 9),
}


class Load(threading.Thread):
    """Adds one, again and again; counts what it was told."""

    def __init__(self, ha: raftha.HaManager) -> None:
        super().__init__()
        self.acknowledged = self.unknown = 0
        self._ha = ha
        self._is_over = threading.Event()

    def end(self) -> None:
        self._is_over.set()
        self.join()

    def run(self) -> None:
        while not self._is_over.is_set():
            try:
                self._ha.execute("add", TOTAL, 1, timeout=5)
                self.acknowledged += 1
            except Indeterminate:
                self.unknown += 1
            except RafthaError:
                self._is_over.wait(0.01)


def answer(ha: raftha.HaManager, load: Load, question: str) -> Any:
    """The answer to one question."""
    match question.split():
        case ["status"]:
            status = ha.get_status()
            return {
                "role": status.role,
                "failure": status.failure,
                "protocol": status.protocol_version,
                "machine": status.machine_version,
                "waits_for": status.upgrade_waits_for,
            }
        case ["double", key]:
            try:
                return ha.execute("double", key.encode(), timeout=5).result
            except RafthaError as error:
                return f"{type(error).__name__}: {error}"
        case ["get", key]:
            value = ha.get(key.encode(), timeout=5)
            return None if value is None else value.decode()
        case ["pause"]:
            load.end()
            return [load.acknowledged, load.unknown]
        case ["digest"]:
            digest = ha.digest(timeout=20)
            return [digest.sequence, digest.hex]
        case _:
            raise ValueError(question)


def main() -> None:
    machine, version.PROTOCOL_OLDEST, version.PROTOCOL_VERSION = BUILDS[sys.argv[2]]
    refused: list[str] = []

    def on_event(event: raftha.HaEvent) -> None:
        if event.kind is raftha.EventKind.REPLICA_UNSUPPORTED:
            refused.append(f"{event.details()['node_id']}: {event.details()['reason']}")

    config = replace(read_config(Path(sys.argv[1])), on_event=on_event)
    ha = raftha.HaManager(config, state_machine=machine())
    with ha:
        load = Load(ha)
        load.start()
        with contextlib.suppress(KeyboardInterrupt):
            print(json.dumps({}), flush=True)
            for line in sys.stdin:
                asked = line.strip()
                if asked == "end":
                    break
                result = refused if asked == "refused" else answer(ha, load, asked)
                print(json.dumps(result), flush=True)
        load.end()
    print(json.dumps([load.acknowledged, load.unknown]), flush=True)


if __name__ == "__main__":
    main()
