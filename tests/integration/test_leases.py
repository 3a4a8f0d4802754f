"""Leases in real processes: a leader that was paused, deposed or forked never answers with old
values.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import raftha
from raftha.errors import RafthaError
from raftha.testing import LocalCluster
from tests.integration.leasing_host import FLOOR, KEY
from tests.support.conditions import wait_until
from tests.support.nodes import free_addresses, make_config

ROOT = Path(__file__).parents[2]
SETTINGS: dict[str, Any] = {
    "heartbeat_interval_ms": 20,
    "election_timeout_ms": 200,
    "lease_ms": 200,
}
PAUSES = 6


class Host:
    """Node 1 of a cluster, in a process of `leasing_host`."""

    def __init__(self, cluster: LocalCluster, floor: Path) -> None:
        self._cluster = cluster
        self._floor = floor
        self.version = 0
        self._note()
        cluster.terminate(1)
        command = [sys.executable, "-m", "tests.integration.leasing_host"]
        self.process = subprocess.Popen(
            [*command, str(cluster.config_of(1)), str(floor)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._receive()

    def ask(self, what: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return self._receive()

    def write(self) -> None:
        """A newer version, through another node; from now on no read may show an older one."""
        deadline = time.monotonic() + 30
        while True:
            self.version += 1  # A failed write may take effect later, too.
            with contextlib.suppress(RafthaError):
                self._cluster.call(2, "SET", KEY, self.version, timeout_s=2)
                break
            assert time.monotonic() < deadline
        self._note()

    def _note(self) -> None:
        # In place, eight bytes at once: the host has it mapped.
        with self._floor.open("r+b" if self._floor.exists() else "wb") as file:
            file.write(FLOOR.pack(self.version))

    def _receive(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the host ended with exit code {self.process.wait()}"
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextlib.contextmanager
def started(folder: Path) -> Iterator[tuple[LocalCluster, Host]]:
    with LocalCluster(3, settings=SETTINGS) as cluster:
        cluster.wait_ready()
        host = Host(cluster, folder / "floor")
        try:
            yield cluster, host
        finally:
            host.process.send_signal(signal.SIGCONT)
            assert host.process.stdin is not None and host.process.stdout is not None
            host.process.stdin.close()
            host.process.wait(30)
            host.process.stdout.close()


@pytest.mark.slow
def test_a_leader_that_was_paused_never_answers_with_an_old_value(tmp_path: Path) -> None:
    """Meanwhile the others elect a leader, and a newer value is written."""
    with started(tmp_path) as (_, host):
        leased = 0
        for _ in range(PAUSES):
            assert host.ask("lead")["leased"] >= leased
            host.write()
            leased = host.ask("count")["leased"]
            wait_until(lambda least=leased: host.ask("count")["leased"] > least, "reads by lease")  # type: ignore[misc]
            host.process.send_signal(signal.SIGSTOP)
            host.write()
            host.process.send_signal(signal.SIGCONT)
        assert host.ask("lead")["stale"] == []


@pytest.mark.slow
def test_a_leader_that_hands_over_never_answers_with_an_old_value(tmp_path: Path) -> None:
    with started(tmp_path) as (cluster, host):
        is_over = threading.Event()

        def write() -> None:
            while not is_over.is_set():
                host.write()

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for target in (2, 3, 2):
                least = host.ask("lead")["leased"]
                wait_until(lambda least=least: host.ask("count")["leased"] > least, "lease reads")  # type: ignore[misc]
                with contextlib.suppress(RafthaError):
                    cluster.call(target, "RAFTHA", "FAILOVER", target, timeout_s=5)
        finally:
            is_over.set()
            writer.join()
        assert host.ask("lead")["stale"] == []


@pytest.mark.slow
def test_a_leader_that_is_killed_is_replaced_once_the_promises_have_ended() -> None:
    with LocalCluster(3, settings={"lease_ms": 150}) as cluster:
        cluster.wait_ready()
        cluster.call(1, "SET", KEY, 1)
        leader = cluster.wait_leader()
        cluster.kill(leader)
        assert cluster.wait_leader() != leader
        other = next(i for i in (1, 2, 3) if i != leader)
        cluster.call(other, "SET", KEY, 2)
        assert cluster.call(other, "GET", KEY) == b"2"


def test_lease_reads_are_counted_and_a_fork_has_no_lease(tmp_path: Path) -> None:
    """A single node needs no promises."""
    members = dict(enumerate(free_addresses(1), start=1))
    config = replace(make_config(tmp_path, 1, members), **SETTINGS)
    with raftha.HaManager(config) as ha:
        ha.put(KEY, b"1")
        wait_until(lambda: ha.get_status().has_lease, "a lease")
        assert (ha.get(KEY), ha.get(b"none", timeout=1)) == (b"1", None)
        _, statistics = ha.observe()
        assert sum(statistics.lease_reads.values()) == 2
        with pytest.raises(raftha.InvalidRequest):
            ha.get(KEY, timeout=-1)
        child = os.fork()
        if not child:
            try:
                ha.get(KEY)
            except raftha.Forked:
                os._exit(7)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    with pytest.raises(raftha.Stopped):
        ha.get(KEY)
