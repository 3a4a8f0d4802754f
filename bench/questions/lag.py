"""How far behind is each replica: under load, and after a pause, in each mode?

Writes of 256 bytes come to the leader at a fixed rate, and every 10 ms the leader is asked how far
its log goes, and what each replica has on disk of it. A replica's lag is the age of the oldest
entry that it lacks, as far as that can be seen at such intervals. At first nothing happens. Then
one follower is stopped (SIGSTOP) for a third of the time, and `caught up` is how long it then takes
until it has what the leader had when it resumed. In mode `sync` writes wait for it meanwhile, and
fail after `ack_timeout_ms`.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any, NamedTuple

from bench.harness.load import Load
from bench.harness.question import Run
from bench.harness.samples import quantile
from bench.harness.systems import started_leader
from bench.harness.worker import Worker
from raftha.testing import LocalCluster
from raftha.types import ReplicationMode

WATCH_S = 0.01
PAUSED = 3


class Seen(NamedTuple):
    """The observations of one replica."""

    times: list[float]
    """The time of each observation."""
    lasts: list[int]
    """The leader's last index then; never falls."""
    durable: list[int]
    """What the replica had on disk."""

    def lags_ms(self) -> list[float]:
        """At each look."""
        lags = []
        for now, last, durable in zip(self.times, self.lasts, self.durable, strict=True):
            first_lacking = bisect_right(self.lasts, durable)
            lags.append(1000 * (now - self.times[first_lacking]) if durable < last else 0.0)
        return lags

    def caught_up_s(self, since: float) -> float | None:
        """How long after `since` it had what the leader had then; None if it never did."""
        begin = bisect_right(self.times, since)
        for i in range(begin, len(self.times)):
            if self.durable[i] >= self.lasts[begin - 1]:
                return self.times[i] - since
        return None


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add options beside the shared ones."""
    parser.add_argument("--rate", type=int, default=5000, help="writes a second")
    parser.add_argument("--modes", type=lambda text: text.split(","), default=[*ReplicationMode])


def ask(run: Run) -> None:
    """Measure."""
    modes = [str(mode) for mode in run.options.modes]
    run.expect(run.options.runs * len(modes) * 2)
    for _ in range(run.options.runs):
        for mode in modes:
            options = {"mode": mode, "watch_s": WATCH_S}
            load = run.load(rate=float(run.options.rate), options=options)
            with run.folder() as folder, started_leader(folder) as (cluster, worker):
                with run.step(f"{mode}, under load"):
                    add_lags(run, mode, "load", seen_of(worker.ask(load.as_dict())))
                with run.step(f"{mode}, a pause"):
                    pause(run, mode, load, cluster, worker)


def pause(run: Run, mode: str, load: Load, cluster: LocalCluster, worker: Worker) -> None:
    """Stop a follower in the middle of a load."""
    load = dataclasses.replace(load, warm_up_s=0)
    with ThreadPoolExecutor(1) as thread:
        loading = thread.submit(worker.ask, load.as_dict())
        try:
            # The load lasts so long: a third before, a third during, a third after the pause.
            time.sleep(load.seconds / 3)  # The part before the pause.
            cluster.pause(PAUSED)
            time.sleep(load.seconds / 3)  # The pause itself.
        finally:
            cluster.resume(PAUSED)
        resumed = time.perf_counter()
        answer = loading.result()
    seen = seen_of(answer)
    add_lags(run, mode, "a pause", seen)
    run.results.add("raftha", "failed", answer["failed"], unit="", mode=mode, under="a pause")
    if (caught_up := seen[PAUSED].caught_up_s(resumed)) is not None:
        run.results.add(
            "raftha", "caught up", caught_up, unit="s", better="lower",
            mode=mode, under="a pause", replica=PAUSED,
        )  # fmt: skip


def seen_of(answer: dict[str, Any]) -> dict[int, Seen]:
    """By replica."""
    looks = answer["lags"]
    times = [look[0] for look in looks]
    lasts = list(accumulate((look[1] for look in looks), max))
    ids = sorted(looks[-1][2])
    return {
        int(i): Seen(times, lasts, [min(look[2].get(i, 0), last) for look, last in
                                    zip(looks, lasts, strict=True)])
        for i in ids
    }  # fmt: skip


def add_lags(run: Run, mode: str, under: str, seen: dict[int, Seen]) -> None:
    """Add the observations of each replica."""
    for replica, its in seen.items():
        lags = its.lags_ms()
        ordered = sorted(lags)
        where: dict[str, str | int] = {"mode": mode, "under": under, "replica": replica}
        for name, q in (("lag p50", 0.5), ("lag p99", 0.99), ("lag max", 1.0)):
            run.results.add("raftha", name, quantile(ordered, q), unit="ms", better="", **where)
        points = [(t - its.times[0], lag) for t, lag in zip(its.times, lags, strict=True)]
        run.results.add_curve("raftha", "timeline", points, unit="ms", **where)
