"""How old is what the archive lacks, what does it cost writes, and what does an outage do?

Callers in the leader's process write at fixed rates, while a follower archives the log into a
folder, each put of which takes `--put-ms` longer, as in a bucket. How old the oldest command is
that is in no destination is noted each 20 ms. Then callers write as fast as they can, with the
archive and without it, in turns. Last the folder is away for `--outage` seconds, while writes go on
at the first of the rates: how many fail, how long until the archive has caught up, and how much log
a member has kept at most.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bench.harness.question import Run, numbers
from bench.harness.samples import Sample, Taken, quantile
from bench.harness.systems import started_leader
from bench.harness.worker import Worker
from raftha.testing import LocalCluster

PARTS = {"age": 1, "cost": 2, "outage": 1}
"""What is measured, and the steps of each in a run; `age` has one for each rate."""
CAUGHT_UP_MS = 2000
PATIENCE_S = 120
SLOW = """
import os, time
from raftha.errors import RepositoryUnavailable
from raftha.storage.backup.local import LocalDestination
create = LocalDestination.create

def slow(self, name, data):
    time.sleep(float(os.environ["RAFTHA_BENCH_PUT_S"]))  # A bucket's latency: what is asked about.
    if os.path.exists(os.environ["RAFTHA_BENCH_AWAY"]):
        raise RepositoryUnavailable("away", destination=self.name, object_name=name)
    create(self, name, data)

LocalDestination.create = slow
"""
"""What makes the nodes' folders as slow as a bucket; each process runs it when it starts."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add options beside the shared ones."""
    parser.add_argument("--rates", type=numbers, default=[5000, 20000], help="writes a second")
    parser.add_argument("--callers", type=int, default=64, help="that write as fast as they can")
    parser.add_argument("--put-ms", type=float, default=50.0, help="what a put takes longer")
    parser.add_argument("--outage", type=float, default=30.0, help="seconds")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))


def ask(run: Run) -> None:
    """Measure."""
    options = run.options
    steps = sum(PARTS[part] for part in options.parts if part != "age")
    run.expect(options.runs * (steps + len(options.rates) * ("age" in options.parts)))
    for number in range(options.runs):
        if "age" in options.parts:
            measure_age(run)
        if "cost" in options.parts:
            measure_cost(run, number)
        if "outage" in options.parts:
            measure_outage(run)


@contextmanager
def slow_folders(folder: Path, put_s: float) -> Iterator[Path]:
    """Have the nodes that start meanwhile wait for each put; yield the file that is the outage."""
    away = folder / "away"
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(SLOW)
    path = os.pathsep.join([str(folder / "site"), os.environ.get("PYTHONPATH", os.getcwd())])
    changed = {
        "PYTHONPATH": path,
        "RAFTHA_BENCH_PUT_S": str(put_s),
        "RAFTHA_BENCH_AWAY": str(away),
    }
    before = {name: os.environ.get(name) for name in changed}
    os.environ |= changed
    try:
        yield away
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextmanager
def started(
    run: Run, *, has_archive: bool = True, **settings: Any
) -> Iterator[tuple[LocalCluster, Worker, Path]]:
    """A cluster with callers in the leader's process; with the archive it is up to date."""
    backup: dict[str, Any] = {"interval_hours": 8760.0, "backup_from": ["follower"]}
    wanted = {"backup": backup, "enable_pitr": has_archive, **settings}
    with run.folder() as folder, slow_folders(folder, run.options.put_ms / 1000) as away:
        backup["destinations"] = {"local": str(folder / "repository")}
        with started_leader(folder, settings=wanted) as (cluster, worker):
            deadline = time.monotonic() + PATIENCE_S
            while has_archive and not is_current(cluster):
                assert time.monotonic() < deadline, "nothing is archived"
                time.sleep(0.1)  # Poll: other processes archive.
            yield cluster, worker, away


def is_current(cluster: LocalCluster) -> bool:
    """Whether a member knows that all is archived."""
    archive = (cluster.status(2) or {}).get("archive") or {}
    return bool(archive.get("archived_index")) and archive["rpo_ms"] == 0


def measure_age(run: Run) -> None:
    """The age at fixed rates."""
    with started(run) as (_, worker, _):
        for rate in run.options.rates:
            load = run.load(rate=float(rate), options={"archive_s": 0.02})
            with run.step(f"age at {rate}/s"):
                answer = worker.ask(load.as_dict())
            sample = Sample.of([Taken.from_dict(answer)], is_client=False)
            ages = sorted(age for _, age in answer["ages"])
            run.add_sample("raftha", sample, "writes", rate=rate)
            for name, share in (("rpo p50", 0.5), ("rpo p99", 0.99)):
                age_ms = quantile(ages, share)
                run.results.add("raftha", name, age_ms, unit="ms", better="lower", rate=rate)


def measure_cost(run: Run, number: int) -> None:
    """Writes a second with and without the archive, in turns."""
    callers = run.options.callers
    rates = {}
    for has_archive in (False, True) if number % 2 else (True, False):
        name = "with the archive" if has_archive else "without the archive"
        with started(run, has_archive=has_archive) as (_, worker, _), run.step(name):
            answer = worker.ask(run.load(callers=callers).as_dict())
        sample = Sample.of([Taken.from_dict(answer)], is_client=False)
        rates[has_archive] = sample.rate
        archive = "on" if has_archive else "off"
        run.add_sample("raftha", sample, "writes", callers=callers, archive=archive)
    share = 100 * rates[True] / rates[False]
    run.results.add("raftha", "archive to none", share, unit="%", better="higher")


def measure_outage(run: Run) -> None:
    """The folder is away for a while."""
    rate, outage_s = run.options.rates[0], run.options.outage
    add, shown = run.results.add, {"rate": rate, "outage_s": outage_s}
    with started(run) as (cluster, worker, away), run.step(f"away for {outage_s:g} s"):
        log = LogSize(cluster)
        end = threading.Timer(outage_s, away.unlink)
        away.touch()
        end.start()
        # It goes on for as long again, so that the archive catches up beside writes.
        load = run.load(rate=float(rate), options={"archive_s": 0.1})
        fields = {**load.as_dict(), "seconds": 2 * outage_s, "warm_up_s": 0.0}
        began = time.perf_counter()
        answer = worker.ask(fields)
        end.join()
        log.end()
        ages = [(at - began, age) for at, age in answer["ages"]]
        behind = [at for at, age in ages if age > CAUGHT_UP_MS and at > outage_s]
        sample = Sample.of([Taken.from_dict(answer)], is_client=False)
    caught_up_s = max(behind, default=outage_s) - outage_s
    run.add_sample("raftha", sample, "writes in it", rate=rate)
    add("raftha", "failed", float(sample.failed), unit="writes", better="lower", **shown)
    add("raftha", "caught up after", caught_up_s, unit="s", better="lower", **shown)
    add("raftha", "log at most", log.most / 1e6, unit="MB", better="lower", **shown)


class LogSize:
    """Watches how large the log of one member becomes."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.most = 0
        self._folder = cluster.data_of(2) / "wal"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def end(self) -> None:
        """Stop watching."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.2):
            size = 0
            with suppress(FileNotFoundError):  # Segments come and go.
                for path in self._folder.iterdir():
                    size += path.stat().st_blocks * 512
            self.most = max(self.most, size)
