"""raftha with leases, read by threads of the leader's process, without a round."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.harness.load import Load
from bench.harness.samples import Sample, Taken
from bench.harness.systems import Measure, Unsupported, started_leader
from bench.harness.worker import Worker
from raftha.version import VERSION

LEASE = {"lease_ms": 150}
THREADS_MAX = 64


class CallingThreads:
    """Callers are threads of the leader's process. `is_cold`: the values are in LMDB only."""

    settings = f"callers are threads in the leader's process, lease_ms = {LEASE['lease_ms']}"

    def __init__(self, name: str, *, is_cold: bool = False) -> None:
        self.name = name
        self._is_cold = is_cold

    def missing(self) -> str:
        return ""

    def version(self) -> str:
        return VERSION

    @contextmanager
    def start(self, folder: Path) -> Iterator[Measure]:
        with started_leader(folder, settings=LEASE, module="bench.harness.threads") as (_, worker):
            yield lambda load: self._measure(worker, load)

    def _measure(self, worker: Worker, load: Load) -> Sample:
        if load.callers > THREADS_MAX:
            raise Unsupported(f"{load.callers} threads would measure the GIL")
        if load.operation == "get" and self._is_cold:
            worker.ask({"checkpoint": True})
        answer = worker.ask(load.as_dict())
        sample = Sample.of([Taken.from_dict(answer)], is_client=False)
        return dataclasses.replace(sample, operations=answer["calls"])
