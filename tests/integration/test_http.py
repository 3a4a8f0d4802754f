"""The page of metrics: idle, slow and hostile HTTP clients hold up neither scrapes nor the end."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from raftha.net import certificates
from raftha.server import http
from raftha.testing.processes import Spawner
from tests.support.conditions import wait_until
from tests.support.nodes import free_addresses
from tests.support.servers import port_of

pytestmark = pytest.mark.slow


@dataclass
class Node:
    """A `raftha serve` process, and the address of its metrics."""

    process: subprocess.Popen[bytes]
    metrics: str
    context: ssl.SSLContext | None

    def scrape(self) -> bytes:
        scheme = "https" if self.context else "http"
        url = f"{scheme}://{self.metrics}/metrics"
        with urllib.request.urlopen(url, timeout=10, context=self.context) as page:
            return bytes(page.read())

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", port_of(self.metrics)), 10)

    def is_up(self) -> bool:
        try:
            return b"raftha_up 1" in self.scrape()
        except OSError:
            return False


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Node]:
    peer, listen, metrics = free_addresses(3)
    tls, context = "", None
    if request.param:
        certificates.make_ca("raftha", tmp_path / "ca")
        made = certificates.make_node(tmp_path / "ca", 1, tmp_path, hosts=["127.0.0.1"])
        context = ssl.create_default_context(cafile=made.ca)
        tls = f'listen_tls_cert = "{made.certificate}"\nlisten_tls_key = "{made.key}"\n'
    (tmp_path / "node.toml").write_text(
        f'node_id = 1\ndata_dir = "data"\nlisten = "{listen}"\nmetrics_listen = "{metrics}"\n'
        f'{tls}wal_segment_bytes = {16 << 20}\n[members]\n1 = "{peer}"\n'
    )
    spawner = Spawner()
    command = [sys.executable, "-m", "raftha", "serve", "--config", "node.toml"]
    process = spawner.start(command, folder=tmp_path, log=tmp_path / "node.log")
    node = Node(process, metrics, context)
    wait_until(node.is_up, "the metrics can't be scraped")
    yield node
    spawner.close()


def test_idle_connections_cost_no_threads_and_hold_up_no_scrape(node: Node) -> None:
    tasks = f"/proc/{node.process.pid}/task"
    threads = len(os.listdir(tasks))
    idle = [node.connect() for _ in range(3 * http.CONNECTIONS_MAX)]
    assert node.is_up()
    assert len(os.listdir(tasks)) <= threads + 1
    assert idle[0].recv(1) == b"", "the oldest one was pushed out"
    for each in idle:
        each.close()


def test_a_silent_connection_does_not_hold_up_sigterm(node: Node) -> None:
    silent = node.connect()
    assert node.is_up()
    node.process.terminate()
    assert node.process.wait(10) == 0
    silent.close()


def test_a_connection_that_sends_no_request_is_closed(node: Node) -> None:
    silent = node.connect()
    began = time.monotonic()
    silent.settimeout(20)
    assert silent.recv(1) == b""
    assert time.monotonic() - began < http.REQUEST_S + http.HANDSHAKE_S + 2
    silent.close()


def test_other_paths_methods_and_long_heads_are_refused(node: Node) -> None:
    if node.context is not None:
        pytest.skip("the same code behind TLS")
    for request, answer in (
        (b"GET /other HTTP/1.1\r\n\r\n", b"404"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"\r\n\r\n", b"405"),
        (b"GET /metrics HTTP/1.1\r\nA: " + b"x" * http.HEAD_BYTES_MAX + b"\r\n", b"431"),
        (b"HEAD /metrics HTTP/1.1\r\n\r\n", b"200"),
        (b"GET /metrics?name=x HTTP/1.1\r\naccept: text/plain\r\n\r\n", b"200"),
    ):
        with node.connect() as connection:
            connection.sendall(request)
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 " + answer)
