"""redis-benchmark as a client: it is compiled, and takes little CPU from the servers beside it."""

from __future__ import annotations

import csv
import resource
import shutil
import subprocess

from bench.harness.load import VALUE_BYTES, Load
from bench.harness.samples import Sample
from raftha.config import parse_address

NAME = "redis-benchmark"
PROBE_PER_CALLER = 20
COLUMNS = {
    0.0: "min_latency_ms", 0.5: "p50_latency_ms", 0.95: "p95_latency_ms", 0.99: "p99_latency_ms",
    1.0: "max_latency_ms",
}  # fmt: skip


def is_there() -> bool:
    """True if it is installed."""
    return shutil.which(NAME) is not None


def measure(address: str, load: Load, pipeline: int = 1) -> Sample:
    """Measure; it takes a number of requests, so a first short run finds out how many."""
    assert load.callers, "it has no open loop"
    rate = _run(address, load, pipeline, load.callers * pipeline * PROBE_PER_CALLER).rate
    if load.warm_up_s:
        rate = _run(address, load, pipeline, int(rate * load.warm_up_s)).rate
    return _run(address, load, pipeline, int(rate * load.seconds))


def _run(address: str, load: Load, pipeline: int, requests: int) -> Sample:
    host, port = parse_address("address", address)
    operation = {"put": "set", "get": "get"}[load.operation]
    requests = max(requests, load.callers * pipeline)
    command = [
        NAME, "-h", host, "-p", str(port), "-t", operation, "-d", str(VALUE_BYTES), "--csv",
        "-c", str(load.callers), "-P", str(pipeline), "-r", str(load.keys), "-n", str(requests),
    ]  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = done.stdout[done.stdout.index('"test"') :].splitlines()
    row = next(csv.DictReader(lines))
    seconds = requests / float(row["rps"])
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    quantiles = {q: float(row[column]) for q, column in COLUMNS.items()}
    return Sample(requests, seconds, quantiles, client_cpu=cpu_s / seconds)
