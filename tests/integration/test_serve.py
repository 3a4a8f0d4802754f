"""The process of `raftha serve`: its file descriptors, and its end when its node has failed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from raftha.client.call import Access, call
from raftha.errors import RafthaError
from raftha.server.descriptors import RESERVED
from raftha.testing.processes import Spawner
from tests.support.conditions import wait_until
from tests.support.nodes import free_addresses
from tests.support.servers import connect

TOKEN = "correct horse battery"

FAILING = """
import sys
from raftha.server import ServerConfig, server
from raftha.server.machine import RedisMachine
from raftha.storage.state.machine import command

def mset(self, txn, *pairs):
    raise MemoryError("not the command's fault")

RedisMachine.mset = command(trial=False)(mset)
server.FAILED_S = 1.0
server.run(ServerConfig.from_toml(sys.argv[1]))
"""
LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv.pop(1)), int(sys.argv.pop(1))))
runpy.run_module("raftha", run_name="__main__")
"""


def write_config(folder: Path, settings: str = "") -> tuple[Path, str]:
    peer, listen = free_addresses(2)
    path = folder / "node.toml"
    path.write_text(
        f'node_id = 1\ndata_dir = "data"\nlisten = "{listen}"\n{settings}\n'
        f'wal_segment_bytes = {16 << 20}\n[members]\n1 = "{peer}"\n'
    )
    return path, listen


def is_served(address: str, token: str = "") -> bool:
    try:
        return bool(call(address, ("SET", "a", "1"), 5, Access(token)) == b"OK")
    except RafthaError:
        return False


@pytest.fixture
def spawner() -> Spawner:
    return Spawner()


@pytest.mark.slow
def test_the_process_exits_with_an_error_after_its_node_has_failed(
    tmp_path: Path, spawner: Spawner
) -> None:
    path, listen = write_config(tmp_path)
    command = [sys.executable, "-c", FAILING, str(path)]
    process = spawner.start(command, folder=tmp_path, log=tmp_path / "node.log")
    try:
        wait_until(lambda: is_served(listen), "it doesn't serve")
        with pytest.raises(RafthaError):
            call(listen, ("MSET", "a", "1"), 10)
        status = call(listen, ("RAFTHA", "STATUS"), 10)
        assert b'"role": "failed"' in status, "the status is there for a while"
        assert process.wait(20) == 1
        log = (tmp_path / "node.log").read_text()
        assert "Stopped: the node has failed: MemoryError" in log
    finally:
        spawner.close()


@pytest.mark.slow
def test_clients_leave_the_node_the_descriptors_that_it_needs(
    tmp_path: Path, spawner: Spawner
) -> None:
    """The hard limit is low: `connections_max` gives way, and a flood does the node no harm."""
    path, listen = write_config(tmp_path, f'auth_token = "{TOKEN}"')
    limits = ["128", str(RESERVED + 100)]
    command = [sys.executable, "-c", LIMITED, *limits, "serve", "--config", str(path)]
    process = spawner.start(command, folder=tmp_path, log=tmp_path / "node.log")
    strangers: list[socket.socket] = []
    try:
        wait_until(lambda: is_served(listen, TOKEN), "it doesn't serve")
        assert "connections_max lowered from 1024 to 100" in (tmp_path / "node.log").read_text()
        for number in range(400):
            strangers.append(connect(listen))
            if number % 50 == 0:
                value = os.urandom(500_000)
                assert call(listen, ("SET", "large", value), 10, Access(TOKEN)) == b"OK"
        assert len(os.listdir(f"/proc/{process.pid}/fd")) < RESERVED + 100
        assert is_served(listen, TOKEN)
    finally:
        for each in strangers:
            each.close()
        spawner.close()


def run_fit(soft: int, hard: int, connections: int) -> str:
    script = (
        "import resource; from raftha.server.descriptors import fit_connections;"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}));"
        f"print(fit_connections({connections}), *resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or done.stderr.splitlines()[-1]


def test_the_soft_limit_is_raised_as_far_as_needed() -> None:
    wanted = 1000 + RESERVED
    assert run_fit(512, 4096, 1000) == f"1000 {wanted} 4096"
    assert run_fit(3000, 4096, 1000) == "1000 3000 4096"
    assert run_fit(512, 600, 1000) == f"{600 - RESERVED} 600 600"
    assert "leaves none for clients" in run_fit(200, 200, 1000)
