"""Every benchmark runs, at a size too small for meaningful numbers, and writes its results."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import peers
from bench.__main__ import ALONE, QUESTIONS, READERS
from bench.harness.results import Results, read

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TINY = ("--runs", "1", "--seconds", "0.2", "--warm-up", "0")
WITH_PEERS = "RAFTHA_BENCH_PEERS"
"""If set in the environment, the installed peers are started too, which takes a while."""
CALLS = {
    "throughput": ("--only", "raftha", "--only", "limit", "--callers", "1,4"),
    "latency": ("--only", "raftha over RESP", "--rates", "50"),
    "reads": ("--only", "raftha, follower, linearizable", "--only", "limit over RESP",
              "--only", "raftha, lease, threads, in LMDB", "--callers", "4"),
    "lag": ("--modes", "async_with_ack", "--rate", "100", "--seconds", "0.6"),
    "failover": ("--how", "kill"),
    "recovery": ("--log-bytes", "200000", "--image-bytes", "0"),
    "backup": ("--keys", "5000", "--callers", "4", "--fill", "1000"),
    "restore": ("--keys", "5000", "--commands", "5000"),
    "rpo": ("--parts", "age", "--rates", "100", "--put-ms", "5"),
    "scale": ("--keys", "1000", "--nodes", "3", "--callers", "4", "--rate", "100"),
    "limit": ("--callers", "4"),
}  # fmt: skip
METRICS = {
    "throughput": {"writes", "p50", "p99"},
    "latency": {"writes", "p50", "p99"},
    "reads": {"reads", "p50", "p99"},
    "lag": {"lag p50", "lag max"},
    "failover": {"no writes", "detect", "elect", "first commit"},
    "recovery": {"answers", "serves"},
    "backup": {"full", "incremental", "stored", "spool to none"},
    "restore": {"restore", "keys", "replay"},
    "rpo": {"writes", "rpo p50", "rpo p99"},
    "scale": {"first writes", "64 callers, writes", "memory", "restart", "writes"},
    "limit": {"writes", "p50", "p99"},
}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *arguments]
    env = {**os.environ, **environment}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=90, check=False, cwd=ROOT, env=env
    )


def ask(question: str, file: Path) -> Results:
    done = run(question, *TINY, *CALLS[question], "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert question in done.stdout
    return read(file)


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_is_answered_with_results_that_can_be_read(
    question: str, tmp_path: Path
) -> None:
    results = ask(question, tmp_path / "results.json")
    assert results.question == question
    assert {m.metric for m in results.measurements} >= METRICS[question]
    assert all(value >= 0 for m in results.measurements for value in m.values)
    assert results.versions["raftha"] and results.machine["cpus"]
    assert results.fdatasync_ms["before"] > 0
    assert not [m for m in results.measurements if m.metric == "failed" and m.values != [0]]


def test_the_list_has_every_question() -> None:
    done = run()
    assert done.returncode == 2
    for name, says in {**QUESTIONS, **ALONE, **READERS}.items():
        assert name in done.stderr and says in done.stderr
    listed = run("--help")
    assert listed.returncode == 0
    assert listed.stdout == done.stderr
    for name in (*ALONE, *READERS):
        assert run(name, "--help").stdout.startswith(f"usage: python -m bench {name} ")
    done = run("throughput", "--help")
    assert done.returncode == 0
    for name in peers.NAMES:
        assert name in done.stdout


def test_peers_that_are_not_there_are_left_out_with_a_reason(tmp_path: Path) -> None:
    names = [system.name for name in peers.NAMES for system in peers.find([name])]
    missing = [name for name in names if not name.startswith("pysyncobj")]
    results = measure_peers("all", missing, tmp_path, PATH=str(tmp_path))
    assert list(results.skipped) == missing
    assert all(reason.startswith("there is no") for reason in results.skipped.values())
    assert not results.measurements


@pytest.mark.skipif(WITH_PEERS not in os.environ, reason=f"{WITH_PEERS} is not set")
@pytest.mark.parametrize("name", peers.NAMES)
def test_a_peer_is_started_and_measured_or_left_out(name: str, tmp_path: Path) -> None:
    names = [system.name for system in peers.find([name])]
    results = measure_peers(name, names, tmp_path)
    measured = {m.system for m in results.measurements if m.metric == "writes"}
    assert sorted([*measured, *results.skipped]) == sorted(names)


def measure_peers(name: str, only: list[str], folder: Path, **environment: str) -> Results:
    file = folder / "results.json"
    options = [argument for system in only for argument in ("--only", system)]
    calls = ("throughput", *TINY, "--callers", "2", "--peer", name, *options, "--json", str(file))
    done = run(*calls, **environment)
    assert done.returncode == 0, done.stderr
    return read(file)
