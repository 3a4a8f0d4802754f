"""The conclusions of benchmarks: quantiles, comparisons, reports."""

from __future__ import annotations

import asyncio
import itertools
from argparse import Namespace
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvloop

import bench.__main__
from bench.harness import compare, report, tables
from bench.harness.connections import Refused, RespConnection, open_patiently
from bench.harness.load import Load, closed_loop, open_loop
from bench.harness.question import Run
from bench.harness.results import BadResults, Better, Results, read
from bench.harness.samples import QUANTILES, Sample, Taken, quantile
from bench.harness.systems import Measure
from bench.harness.worker import Worker, WorkerEnded
from bench.questions.lag import Seen


def make(values: list[float], better: Better = "higher", sync_ms: float = 0.1) -> Results:
    results = Results(question="throughput", at="2026-01-01T00:00:00+00:00")
    results.arguments = {"runs": len(values)}
    results.machine = {"cpus": 2, "cpu": "x", "memory_mib": 1024, "kernel": "6", "file_system": "e"}
    results.fdatasync_ms = {"before": sync_ms, "after": sync_ms}
    for value in values:
        for callers in (1, 64):
            results.add("raftha", "rate", value, unit="1/s", better=better, callers=callers)
        results.add("raftha", "p50", 1.0, unit="ms", better="", callers=1)
        results.add_curve("raftha", "quantiles", [[0.5, value], [1.0, 2 * value]], unit="ms")
        results.add_curve("raftha", "timeline", [[0, value], [1, 2 * value]], unit="ms")
    return results


# --------------------------------------------------------------------------- connections


def test_a_call_on_a_lost_connection_ends_with_an_error() -> None:
    async def ask() -> None:
        hung_up = asyncio.Event()

        async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()
            await writer.wait_closed()
            hung_up.set()

        server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        connection = await RespConnection.open(f"{host}:{port}", 1)
        await hung_up.wait()
        for _ in range(2):  # The first may be what notices it.
            with pytest.raises(Refused, match="lost"):
                await asyncio.wait_for(connection.put(b"key", b"value"), 5)
        server.close()

    asyncio.run(ask())
    uvloop.run(ask())


def test_a_server_that_hangs_up_at_first_is_asked_again() -> None:
    class Greeting(RespConnection):
        async def begin(self, keys: int) -> None:
            await self._send(b"HELLO\r\n")

    async def ask() -> None:
        called = 0

        async def answer_the_third(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            nonlocal called
            called += 1
            if called == 3:
                await reader.readline()
                writer.write(b"+OK\r\n")
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(answer_the_third, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        connection = await open_patiently(Greeting, f"{host}:{port}", 1)
        assert called == 3
        with pytest.raises(Refused, match="lost"):
            await connection.put(b"key", b"value")
        server.close()

    asyncio.run(ask())


def test_a_worker_that_ends_says_why_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(WorkerEnded) as raised:
        Worker(
            "bench.harness.connections",
            "bench.harness.connections:Nobody",
            "1",
            log=tmp_path / "log",
        )
    (line,) = str(raised.value).splitlines()
    assert line.startswith("bench.harness.connections: it ended: AttributeError: ")
    assert "Traceback" in raised.value.__notes__[0]


# --------------------------------------------------------------------------- samples


@pytest.mark.parametrize(
    ("q", "expected"), [(0.0, 1), (0.5, 2), (0.51, 3), (0.75, 3), (0.76, 4), (1.0, 4)]
)
def test_a_quantile_is_the_value_at_the_nearest_rank(q: float, expected: float) -> None:
    assert quantile([1, 2, 3, 4], q) == expected


def test_measurements_survive_the_way_between_processes() -> None:
    taken = Taken(2.0, array("d", [0.1, 0.3]), array("d", [5.0, 6.0]), 1, 0.5)
    assert Taken.from_dict(taken.as_dict()) == taken


def test_samples_of_several_processes_are_one() -> None:
    parts = [
        Taken(2.0, array("d", [0.1, 0.3]), array("d", [5.0, 6.0]), 1, 0.5),
        Taken(2.0, array("d", [0.2]), array("d", [5.0]), 0, 1.0),
    ]
    sample = Sample.of(parts)
    assert (sample.operations, sample.failed, sample.client_cpu) == (3, 1, 0.75)
    assert sample.rate == 1.5
    assert sample.quantiles_ms[0.5] == pytest.approx(200)


# --------------------------------------------------------------------------- load


def test_an_open_loop_charges_a_stall_to_all_calls_that_were_due_meanwhile() -> None:
    async def measure() -> Taken:
        is_free = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.call_later(0.1, is_free.set)
        return await open_loop(lambda number: is_free.wait(), rate=200, seconds=0.05)

    taken = asyncio.run(measure())
    assert len(taken.latencies) == 10
    # Each call took at least from its due time until the end of the stall, whatever else delayed
    # it.
    free_at = min(taken.begun) + 0.1
    for due, latency in zip(taken.begun, taken.latencies, strict=True):
        assert due + latency >= free_at - 0.01
    dues = sorted(taken.begun)
    assert all(b - a == pytest.approx(0.005) for a, b in itertools.pairwise(dues))


def test_calls_of_an_open_loop_that_fail_are_counted_and_have_no_latency() -> None:
    async def call(number: int) -> None:
        if number % 2:
            raise ValueError(number)

    taken = asyncio.run(open_loop(call, rate=1000, seconds=0.01))
    assert (len(taken.latencies), taken.failed) == (5, 5)


def test_a_closed_loop_has_at_most_one_call_a_caller_under_way() -> None:
    under_way, most = 0, 0

    async def call(number: int) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1

    taken = asyncio.run(closed_loop(call, callers=3, seconds=0.01))
    assert most == 3
    assert len(taken.latencies) == len(taken.begun) > 3


# --------------------------------------------------------------------------- lag


def test_lag_is_the_age_of_the_oldest_entry_that_is_lacking() -> None:
    seen = Seen([0.0, 1.0, 2.0, 3.0, 4.0], [10, 20, 30, 30, 30], [10, 10, 10, 20, 30])
    assert seen.lags_ms() == [0, 0, 1000, 1000, 0]
    assert seen.caught_up_s(since=1.5) == 1.5
    assert seen.caught_up_s(since=2.5) == 1.5
    assert Seen([0.0, 1.0], [9, 9], [1, 2]).caught_up_s(since=0.5) is None


# --------------------------------------------------------------------------- results


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    results = make([1.0, 2.0])
    results.write(tmp_path / "results.json")
    assert read(tmp_path / "results.json") == results
    assert results.measurements[0].values == [1.0, 2.0]


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('"schema": 1', '"schema": 2'),
        ('"better": "higher"', '"better": "more"'),
        ('"before"', '"befor"'),
        ('"values"', '"value"'),
        ('"kind": "quantiles"', '"kind": "bars"'),
        ('"question": "throughput"', '"question": ""'),
        ("{", "["),
    ],
)
def test_a_file_that_does_not_match_its_description_is_refused(
    right: str, wrong: str, tmp_path: Path
) -> None:
    path = tmp_path / "results.json"
    make([1.0]).write(path)
    text = path.read_text()
    assert right in text
    path.write_text(text.replace(right, wrong))
    with pytest.raises(BadResults):
        read(path)


# --------------------------------------------------------------------------- compare


@pytest.mark.parametrize(
    ("old", "new", "better", "verdict"),
    [
        ([100, 101, 102, 99, 100], [150, 149, 151, 152, 150], "higher", "faster"),
        ([100, 101, 102, 99, 100], [150, 149, 151, 152, 150], "lower", "slower"),
        ([150, 149, 151, 152, 150], [100, 101, 102, 99, 100], "higher", "slower"),
        ([100, 101, 102, 99, 100], [102, 101, 103, 102, 103], "higher", "no difference"),
        ([100, 50, 150, 90, 110], [120, 60, 170, 100, 130], "higher", "no difference"),
        ([100, 100], [200, 200], "higher", "too few runs"),
    ],
)
def test_a_difference_counts_if_the_runs_and_the_tolerance_bear_it(
    old: list[float], new: list[float], better: Better, verdict: str
) -> None:
    compared = compare.compare(make(old, better), make(new, better), tolerance=0.05)
    assert [c.verdict for c in compared] == [verdict, verdict]  # p50 is neither better nor worse.


def test_files_that_are_hard_to_compare_say_so() -> None:
    assert compare.differences(make([1.0]), make([1.0])) == []
    (difference,) = compare.differences(make([1.0]), make([1.0], sync_ms=0.3))
    assert "fdatasync" in difference


@pytest.mark.slow
def test_compare_exits_with_1_if_something_is_slower(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    make([100.0] * 3).write(old)
    make([50.0] * 3).write(new)
    for files, code in (((old, new), 1), ((new, old), 0), ((old, old), 0), ((old, tmp_path), 2)):
        with pytest.raises(SystemExit) as ended:
            bench.__main__.main(["compare", *map(str, files)])
        assert ended.value.code == code
    assert "slower" in capsys.readouterr().out


# --------------------------------------------------------------------------- report


@pytest.mark.slow
def test_a_report_holds_its_plots_and_numbers(tmp_path: Path) -> None:
    results = make([1000.0, 3000.0, 2000.0])
    results.skipped["<etcd>"] = "there is no etcd"
    page = report.write([results, make([1.0])], tmp_path / "out")
    text = page.read_text()
    assert text.count("<img") == 2 * 3  # rate by callers, latencies, over time
    assert "2,000" in text and "&lt;etcd&gt;" in text and "<etcd>" not in text
    for kind in ("svg", "png"):
        assert len(list(page.parent.glob(f"*.{kind}"))) == 2 * 3
    as_text = (page.parent / "results.md").read_text()
    assert "| 2,000 |" in as_text and "- skipped: <etcd>: there is no etcd" in as_text
    assert as_text.count("![") == 2 * 3


def test_rates_stand_beside_limit_and_best_peer_under_the_same_load() -> None:
    results = make([])
    results.measurements.clear()
    for system, rate in {
        "raftha": 3.0,
        "limit": 4.0,
        "etcd": 1.0,
        "zookeeper": 2.0,
        "redis, WAIT 1": 9.0,
    }.items():
        results.add(system, "writes", rate, unit="1/s", better="higher", callers=64)
    results.add("raftha", "writes", 5.0, unit="1/s", better="higher", callers=1)
    assert tables.ratios(results).texts() == [["raftha", "64", "0.75", "1.5 (zookeeper)"]]


# --------------------------------------------------------------------------- turns


class Fake:
    """A system that replies at once, or fails when it is measured."""

    settings = "none"

    def __init__(self, name: str, log: list[str], *, ends: bool = False) -> None:
        self.name = name
        self._log = log
        self._ends = ends

    def missing(self) -> str:
        return ""

    def version(self) -> str:
        return "1"

    @contextmanager
    def start(self, folder: Path) -> Iterator[Measure]:
        assert not list(folder.iterdir())
        (folder / "data").touch()
        self._log.append(self.name)

        def measure(load: Load) -> Sample:
            if self._ends:
                raise WorkerEnded("it ended")
            return Sample(load.callers, 1.0, dict.fromkeys(QUANTILES, 1.0))

        yield measure


@pytest.mark.slow
def test_systems_take_turns_and_one_that_fails_costs_no_other_its_results(tmp_path: Path) -> None:
    started: list[str] = []
    systems = [Fake("a", started), Fake("b", started, ends=True), Fake("c", started)]
    options = Namespace(runs=2, seconds=1.0, warm_up=0.0, folder=tmp_path, peer=[], only=[])

    def add(system: str, load: Load, sample: Sample) -> None:
        run.add_sample(system, sample, "writes", callers=load.callers)

    with Run("throughput", options) as run:
        run.in_turns(run.systems(systems), [run.load(callers=c) for c in (1, 2)], add)
    assert started == ["a", "b", "c"] * 2
    writes = [m for m in run.results.measurements if m.metric == "writes"]
    assert [(m.system, m.values) for m in writes] == [
        ("a", [1, 1]), ("a", [2, 2]), ("c", [1, 1]), ("c", [2, 2]),
    ]  # fmt: skip
    assert run.results.failed == {"b": "it ended"}
    assert not list(tmp_path.iterdir())
