"""Systems under load: raftha here, others in `bench.peers`; all of three nodes on this machine.

Theory of operation. A system reports why it can't run here, or starts in a folder of its own and
then measures one load after another. Clients in separate processes talk to the leader, like clients
of raftha that have learned which node leads.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from bench.harness import redis_benchmark
from bench.harness.load import Load
from bench.harness.machine import program_version
from bench.harness.samples import Sample
from bench.harness.worker import Worker
from raftha.testing import LocalCluster
from raftha.version import VERSION

Measure = Callable[[Load], Sample]
CONNECTIONS_MAX = 64
"""Connections of our own client; callers share them."""
RESP_CONNECTIONS_MAX = 10_000


class Unsupported(Exception):
    """The system, or our client of it, can't do this."""


class NotStarted(Exception):
    """The system's servers don't become ready."""


class System(Protocol):
    """A system under load. Tables show `name`; `settings` has what else a reader needs."""

    name: str
    settings: str

    def missing(self) -> str:
        """Why it can't run here; "" if it can."""
        ...

    def version(self) -> str:
        """The version that it reports."""
        ...

    def start(self, folder: Path) -> AbstractContextManager[Measure]:
        """Start it; yield a function that measures one load, or raises Unsupported."""
        ...


class InProcess:
    """raftha, with callers in the leader's process; if another node leads, in a follower's."""

    settings = "callers are tasks in the leader's process"

    def __init__(
        self,
        name: str = "raftha",
        leader: int = 1,
        nodes: int = 3,
        config: dict[str, Any] | None = None,
    ) -> None:
        self.name = name
        self._leader = leader
        self._nodes = nodes
        self._config = config

    def missing(self) -> str:
        return ""

    def version(self) -> str:
        return VERSION

    @contextmanager
    def start(self, folder: Path) -> Iterator[Measure]:
        with started_leader(folder, self._leader, self._nodes, self._config) as (_, worker):
            yield lambda load: Sample.of([worker.load(load)], is_client=False)


@contextmanager
def started_leader(
    folder: Path,
    leader: int = 1,
    nodes: int = 3,
    settings: dict[str, Any] | None = None,
    module: str = "bench.harness.leader",
) -> Iterator[tuple[LocalCluster, Worker]]:
    """A cluster whose node 1 is in a process with callers, and in which `leader` leads."""
    with LocalCluster(nodes, folder=folder / "cluster", settings=settings) as cluster:
        cluster.terminate(1)
        config = str(cluster.config_of(1))
        with Worker(module, config, log=folder / "leader.log") as worker:
            worker.ask({"lead": leader})
            yield cluster, worker


class OverResp:
    """raftha's server, under clients in another process."""

    name = "raftha over RESP"

    def __init__(self, pipeline: int = 1, *, config: dict[str, Any] | None = None) -> None:
        self._pipeline = pipeline
        self._config = config or {}
        self.settings = f"client: {redis_benchmark.NAME}"
        if pipeline > 1:
            self.name = f"raftha over RESP, -P {pipeline}"
        if config:
            self.name = "raftha over RESP with a lease"
            self.settings += f"; {config}"

    def missing(self) -> str:
        if self._pipeline > 1 and not redis_benchmark.is_there():
            return f"there is no {redis_benchmark.NAME}"
        return ""

    def version(self) -> str:
        return VERSION

    @contextmanager
    def start(self, folder: Path) -> Iterator[Measure]:
        settings = {"connections_max": RESP_CONNECTIONS_MAX, **self._config}
        with LocalCluster(3, folder=folder / "cluster", settings=settings) as cluster:
            address = cluster.addresses[cluster.wait_ready()]
            yield lambda load: measure_resp(address, load, folder, self._pipeline)


class Bare:
    """`bench.harness.bare`, the floor."""

    name = "limit"
    settings = "no Raft, no LMDB, nothing safe: see bench/harness/bare.py"

    def missing(self) -> str:
        return ""

    def version(self) -> str:
        return VERSION

    @contextmanager
    def start(self, folder: Path) -> Iterator[Measure]:
        folder.mkdir(exist_ok=True)
        with Worker("bench.harness.bare", "lead", str(folder), log=folder / "bare.log") as worker:

            def measure(load: Load) -> Sample:
                if load.operation != "put" or load.options:
                    raise Unsupported("it only writes")
                return Sample.of([worker.load(load)], is_client=False)

            yield measure


class BareOverResp:
    """The bare loop with a front that speaks RESP."""

    name = "limit over RESP"
    settings = Bare.settings

    def __init__(self, pipeline: int = 1) -> None:
        self._pipeline = pipeline
        if pipeline > 1:
            self.name = f"limit over RESP, -P {pipeline}"

    def missing(self) -> str:
        return OverResp(self._pipeline).missing()

    def version(self) -> str:
        return VERSION

    @contextmanager
    def start(self, folder: Path) -> Iterator[Measure]:
        folder.mkdir(exist_ok=True)
        log = folder / "bare.log"
        with Worker("bench.harness.bare", "lead", str(folder), "--serve", log=log) as worker:
            address = f"127.0.0.1:{worker.ready['port']}"
            yield lambda load: measure_resp(address, load, folder, self._pipeline)


def measure_resp(address: str, load: Load, folder: Path, pipeline: int = 1) -> Sample:
    """Measure with redis-benchmark if it is installed and fits, else with our own client."""
    if load.options:
        raise Unsupported(f"clients over RESP can't ask for {load.options}")
    if load.callers and redis_benchmark.is_there():
        return redis_benchmark.measure(address, load, pipeline)
    return measure_clients("bench.harness.connections:RespConnection", [address], load, folder)


def measure_clients(
    kind: str, addresses: list[str], load: Load, folder: Path, connections: int = 0
) -> Sample:
    """Measure with pipelined connections of class `kind`, in a process of their own."""
    count = connections or min(load.callers or CONNECTIONS_MAX, CONNECTIONS_MAX)
    log = folder / "clients.log"
    with Worker("bench.harness.connections", kind, str(count), *addresses, log=log) as worker:
        return Sample.of([worker.load(load)])


def find_program(*names: str) -> str:
    """The path of the first of these programs that is installed; "" if none is."""
    return next((path for name in names if (path := shutil.which(name))), "")


def redis_benchmark_version() -> str:
    """The version of redis-benchmark, for the results."""
    return program_version(redis_benchmark.NAME, "--version") if redis_benchmark.is_there() else ""
