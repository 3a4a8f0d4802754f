"""What the questions share: options, systems in turns, progress.

Theory of operation. A question is a module with `add_options(parser)` and `ask(run)`. It measures
each system `--runs` times, all systems once before any a second time, and starts it afresh each
time: so a change of the machine affects all alike. Nothing redraws the progress bar during a
measurement.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from subprocess import SubprocessError
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.harness import machine
from bench.harness.load import Load
from bench.harness.results import Results
from bench.harness.samples import Sample
from bench.harness.systems import NotStarted, System, Unsupported, redis_benchmark_version
from bench.harness.worker import WorkerEnded
from raftha.errors import RafthaError

PAUSE_S = 1.5

FAILURES = (WorkerEnded, NotStarted, RafthaError, SubprocessError)


def add_shared_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that every question has."""
    parser.add_argument("--runs", type=int, default=5, help="runs, of which the median counts")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one measurement")
    parser.add_argument("--warm-up", type=float, default=1.0, help="seconds before each")
    parser.add_argument("--folder", type=Path, help="where data goes: a folder on the disk meant")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")


def numbers(text: str) -> list[int]:
    """A list of numbers, with commas."""
    return [int(number) for number in text.split(",")]


class Run:
    """One call of a question."""

    def __init__(
        self, question: str, options: argparse.Namespace, peers: Sequence[System] = ()
    ) -> None:
        self.options = options
        self._peers = peers
        self.results = Results(
            question=question,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            arguments={k: v for k, v in vars(options).items() if k not in ("json", "folder")},
        )
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            auto_refresh=False,
        )
        self._bar = self._progress.add_task(question, total=None)
        self._folder = tempfile.TemporaryDirectory(prefix="raftha-bench-", dir=options.folder)

    def __enter__(self) -> Self:
        folder = Path(self._folder.name)
        self.results.machine = machine.machine(folder)
        self.results.versions = machine.versions()
        if client := redis_benchmark_version():
            self.results.versions["redis-benchmark"] = client
        self.results.fdatasync_ms["before"] = machine.fdatasync_ms(folder)
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()
        self.results.fdatasync_ms["after"] = machine.fdatasync_ms(Path(self._folder.name))
        self._folder.cleanup()

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A folder for one start of one system."""
        with tempfile.TemporaryDirectory(dir=self._folder.name) as folder:
            yield Path(folder)

    def expect(self, steps: int) -> None:
        """Announce so many more steps."""
        self._progress.update(self._bar, total=steps, refresh=True)

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """A step is measured; the bar shows it, and moves on at its end."""
        name = f"{self.results.question}: {what}"
        self._progress.update(self._bar, description=name, refresh=True)
        yield
        self._progress.advance(self._bar)

    def load(self, **fields: Any) -> Load:
        """A load of the length that the options say."""
        return Load(seconds=self.options.seconds, warm_up_s=self.options.warm_up, **fields)

    def systems(self, own: Sequence[System]) -> list[System]:
        """The systems that can run here: raftha's, and the peers that the options name."""
        wanted = [*own, *self._peers]
        if self.options.only:
            wanted = [system for system in wanted if system.name in self.options.only]
        there = []
        for system in wanted:
            if reason := system.missing():
                self.results.skipped[system.name] = reason
            else:
                self.results.versions[system.name] = f"{system.version()} ({system.settings})"
                there.append(system)
        return there

    def in_turns(
        self, systems: Sequence[System], loads: Sequence[Load], add: Callable[..., None]
    ) -> None:
        """Measure every system under every load, `runs` times."""
        self.expect(self.options.runs * len(systems) * len(loads))
        for _ in range(self.options.runs):
            for system in systems:
                try:
                    self._measure(system, loads, add)
                except FAILURES as error:
                    # The results of the others must not be lost.
                    self.results.failed[system.name] = str(error)

    def _measure(self, system: System, loads: Sequence[Load], add: Callable[..., None]) -> None:
        with self.folder() as folder, system.start(folder) as measure:
            for load in loads:
                with self.step(f"{system.name}, {_shown(load)}"):
                    try:
                        add(system.name, load, measure(load))
                    except Unsupported as reason:
                        self.results.skipped[system.name] = str(reason)

    def add_sample(
        self, system: str, sample: Sample, operations: str, **parameters: int | float | str
    ) -> None:
        """Add what every sample has."""
        add = self.results.add
        add(system, operations, sample.rate, unit="1/s", better="higher", **parameters)
        quantiles = sample.quantiles_ms
        add(system, "p50", quantiles[0.5], unit="ms", better="lower", **parameters)
        add(system, "p99", quantiles[0.99], unit="ms", better="lower", **parameters)
        add(system, "max", quantiles[1.0], unit="ms", better="", **parameters)
        if sample.client_cpu is not None:
            add(system, "client CPU", sample.client_cpu, unit="cores", better="", **parameters)
        if sample.failed:
            add(system, "failed", sample.failed, unit="", better="lower", **parameters)
        points = [
            (q, ms)
            for q, ms in sorted(quantiles.items())
            if q == 1 or (1 - q) * sample.operations >= 1  # Beyond: the maximum again.
        ]
        self.results.add_curve(system, "quantiles", points, unit="ms", **parameters)


def _shown(load: Load) -> str:
    amount = f"{load.callers} callers" if load.callers else f"{load.rate:,.0f}/s"
    options = "".join(f", {value}" for value in load.options.values())
    return f"{load.operation} {amount}{options}"


@contextmanager
def undisturbed(run: Run) -> Iterator[None]:
    """Have real-time priority, if that is wanted."""
    if not run.options.undisturbed:
        yield
        return
    time.sleep(PAUSE_S)  # Others need the processors too.
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
