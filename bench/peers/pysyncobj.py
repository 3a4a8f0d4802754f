"""PySyncObj, from PyPI: three processes, callers in the leader's, a journal in a file.

    SyncObj(SELF, OTHERS, conf=SyncObjConf(journalFile=..., appendEntriesUseBatch=...))

Both batch settings: with it (its default) commands wait for the next tick, without they are sent at
once. Callers are callbacks in the thread that ticks, the cheapest way. Its journal is a memory map
that it doesn't sync for each write: an acknowledged write may be on no disk.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.harness.load import Load
from bench.harness.samples import Sample
from bench.harness.systems import Measure, Unsupported
from bench.harness.worker import Worker
from bench.peers.servers import free_ports, wait_for

PACKAGE = "pysyncobj"


class PySyncObj:
    """The three of them, with one of the batch settings."""

    settings = "journalFile, else as it comes"

    def __init__(self, *, uses_batch: bool) -> None:
        self.name = f"pysyncobj, {'batch' if uses_batch else 'no batch'}"
        self._uses_batch = uses_batch

    def missing(self) -> str:
        return "" if self.version() else "there is no pysyncobj (PyPI)"

    def version(self) -> str:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(PACKAGE)
        return ""

    @contextmanager
    def start(self, folder: Path) -> Iterator[Measure]:
        addresses = [f"127.0.0.1:{port}" for port in free_ports(3)]
        batch = "batch" if self._uses_batch else "no-batch"
        with ExitStack() as stack:
            workers = [
                stack.enter_context(
                    Worker(
                        "bench.peers.pysyncobj_node", str(folder / f"journal-{i}"), batch,
                        address, *(other for other in addresses if other != address),
                        log=folder / f"server-{i}.log",
                    )
                )
                for i, address in enumerate(addresses)
            ]  # fmt: skip

            def find_leader() -> Worker | None:
                return next((w for w in workers if w.ask({"status": True})["leads"]), None)

            leader = wait_for("PySyncObj has no leader", folder, find_leader)

            def measure(load: Load) -> Sample:
                if load.operation != "put" or not load.callers:
                    raise Unsupported("only writes in a closed loop")
                return Sample.of([leader.load(load)], is_client=False)

            yield measure


SYSTEMS = [PySyncObj(uses_batch=True), PySyncObj(uses_batch=False)]
