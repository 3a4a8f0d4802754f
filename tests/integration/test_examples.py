"""The examples, each as three processes under load, while the leader is killed."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import raftha
from raftha.config import MIB
from raftha.testing.processes import Spawner, reserve_port
from tests.support.conditions import wait_until
from tests.support.nodes import free_addresses, make_config

EXAMPLES = Path(__file__).parents[2] / "examples"
README = (EXAMPLES / "README.md").read_text(encoding="utf-8")
NODES = (1, 2, 3)
CLIENTS = 3
DEADLINE_S = 30
UNANSWERED = (503, 504)
"""After these a request may be sent again: both examples' docstrings say so."""


class Service:
    """Three processes of one example, and requests to them."""

    def __init__(self, program: str, folder: Path, stack: contextlib.ExitStack) -> None:
        self._program = EXAMPLES / program
        self._folder = folder
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._spawner = Spawner()
        stack.callback(self._spawner.close)
        ports = {i: stack.enter_context(reserve_port()).getsockname()[1] for i in NODES}
        web = {i: stack.enter_context(reserve_port()).getsockname()[1] for i in NODES}
        self.urls = {i: f"http://127.0.0.1:{web[i]}" for i in NODES}
        self._client = stack.enter_context(httpx.Client(timeout=5, trust_env=False))
        for i in NODES:
            text = (EXAMPLES / f"node-{i}.toml").read_text(encoding="utf-8")
            for n in NODES:
                text = text.replace(f"127.0.0.1:710{n}", f"127.0.0.1:{ports[n]}")
                text = text.replace(f"127.0.0.1:800{n}", f"127.0.0.1:{web[n]}")
            settings = f"wal_segment_bytes = {16 * MIB}\nrequest_timeout_s = 3\n"
            (folder / f"node-{i}.toml").write_text(settings + text, encoding="utf-8")
            self.start(i)

    def start(self, node_id: int) -> None:
        command = [sys.executable, str(self._program), str(self._folder / f"node-{node_id}.toml")]
        log = self._folder / f"node-{node_id}.log"
        self._processes[node_id] = self._spawner.start(command, folder=self._folder, log=log)

    def kill(self, node_id: int) -> None:
        self._processes[node_id].kill()
        self._processes[node_id].wait()

    def stop(self, node_id: int) -> int:
        self._processes[node_id].send_signal(signal.SIGTERM)
        return self._processes[node_id].wait(20)

    def health(self, node_id: int) -> dict[str, Any]:
        """The /health reply of a node; empty if it isn't there."""
        try:
            answer: dict[str, Any] = self._client.get(self.urls[node_id] + "/health").json()
        except httpx.TransportError:
            return {}
        return answer

    def wait_leader(self) -> int:
        found: list[int] = []

        def all_follow_one() -> bool:
            leaders = {self.health(i).get("leader") for i in NODES}
            found[:] = [leader for leader in leaders if leader]
            return len(leaders) == len(found) == 1

        wait_until(all_follow_one, f"one leader; logs are in {self._folder}", DEADLINE_S)
        return found[0]

    def get(self, node_id: int, path: str) -> Any:
        """Read through one node, until it replies."""
        answer: list[httpx.Response] = []

        def is_answered() -> bool:
            with contextlib.suppress(httpx.TransportError):
                answer[:] = [self._client.get(self.urls[node_id] + path)]
            return bool(answer) and answer[0].status_code not in UNANSWERED

        wait_until(is_answered, f"GET {path} is answered", DEADLINE_S)
        return answer[0].json()

    def ask(self, nodes: Iterator[int], method: str, path: str, body: object) -> httpx.Response:
        """Send one request to one node after the other until it succeeds."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            with contextlib.suppress(httpx.TransportError):
                url = self.urls[next(nodes)] + path
                answer = self._client.request(method, url, json=body)
                if answer.status_code not in UNANSWERED:
                    return answer
            assert time.monotonic() < deadline, f"{method} {path} was never answered"


@contextlib.contextmanager
def running(program: str, folder: Path) -> Iterator[Service]:
    with contextlib.ExitStack() as stack:
        yield Service(program, folder, stack)


Step = Callable[[Iterator[int], int, int], None]


def load_with_a_kill(service: Service, step: Step, before: int = 20, after: int = 40) -> int:
    """Let clients do steps through all nodes, and kill the leader meanwhile; return its id."""
    rounds = [0] * CLIENTS
    failures: list[BaseException] = []
    is_over = threading.Event()

    def work(client: int) -> None:
        nodes = itertools.cycle(NODES[client:] + NODES[:client])
        try:
            while not is_over.is_set():
                step(nodes, client, rounds[client])
                rounds[client] += 1
        except BaseException as error:
            failures.append(error)
            raise

    def wait_rounds(count: int) -> None:
        goal = [done + count for done in rounds]

        def is_there() -> bool:
            return bool(failures) or all(d >= g for d, g in zip(rounds, goal, strict=True))

        wait_until(is_there, f"{count} more rounds of each client", DEADLINE_S)
        assert not failures

    threads = [threading.Thread(target=work, args=(client,)) for client in range(CLIENTS)]
    leader = service.wait_leader()
    for thread in threads:
        thread.start()
    try:
        wait_rounds(before)
        service.kill(leader)
        wait_rounds(after)
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert not failures
    return leader


def bring_back(service: Service, node_id: int) -> None:
    """Start the node again, and wait until it has applied everything that the others have."""
    service.start(node_id)
    service.wait_leader()

    def is_level() -> bool:
        return len({service.health(i).get("sequence") for i in NODES}) == 1

    wait_until(is_level, f"node {node_id} has caught up", DEADLINE_S)


@pytest.mark.slow
def test_bookings_survive_their_leader_and_no_seat_is_lost_or_given_twice(
    tmp_path: Path,
) -> None:
    """All clients want all seats."""
    holders: dict[str, list[dict[str, str]]] = {}
    lock = threading.Lock()

    with running("bookings.py", tmp_path) as service:

        def book(nodes: Iterator[int], client: int, number: int) -> None:
            seat, body = f"{number:04}", {"booking": f"b{client}-{number}", "name": f"c{client}"}
            answer = service.ask(nodes, "PUT", f"/seats/{seat}", body)
            assert answer.status_code in (200, 201, 409), answer.text
            if answer.status_code != 409:
                with lock:
                    holders.setdefault(seat, []).append(body)
            else:
                assert answer.json()["booking"] != body["booking"]

        killed = load_with_a_kill(service, book)
        assert {len(found) for found in holders.values()} == {1}
        bring_back(service, killed)
        for node_id in NODES:
            for seat in random.Random(node_id).sample(sorted(holders), 5):
                assert service.get(node_id, f"/seats/{seat}") == holders[seat][0]
            found: dict[str, dict[str, str]] = {}
            while page := service.get(node_id, f"/seats?after={max(found, default='')}"):
                found |= page
            assert {seat: [body] for seat, body in found.items() if seat in holders} == holders
        assert {service.stop(node_id) for node_id in NODES} <= {0, -signal.SIGTERM}


@pytest.mark.slow
def test_bookings_are_cancelled_by_their_holders_and_bad_requests_told_so(
    tmp_path: Path,
) -> None:
    with running("bookings.py", tmp_path) as service:
        service.wait_leader()
        nodes = itertools.cycle(NODES)
        ada, bob = {"booking": "1", "name": "Ada"}, {"booking": "2", "name": "Bob"}

        def status(method: str, path: str, body: object = None) -> int:
            return service.ask(nodes, method, path, body).status_code

        assert status("GET", "/seats/1A") == 404
        assert status("PUT", "/seats/1A", ada) == 201
        assert status("PUT", "/seats/1A", ada) == 200
        assert status("PUT", "/seats/1A", bob) == 409
        assert status("DELETE", "/seats/1A", bob) == 409
        assert status("DELETE", "/seats/1A", ada) == 204
        assert status("PUT", "/seats/1A", bob) == 201
        wrong: list[object] = [{}, [], "x", {"booking": 1}]
        assert {status("PUT", "/seats/1B", body) for body in wrong} == {400}
        assert status("PUT", "/seats/" + "x" * 600, ada) == 400
        assert service.get(1, "/seats") == {"1A": bob}
        for node_id in (1, 2):
            service.kill(node_id)
        alone = httpx.put(service.urls[3] + "/seats/1C", json=ada, timeout=20, trust_env=False)
        assert alone.status_code in UNANSWERED
        assert ("Retry-After" in alone.headers) == (alone.status_code == 503)


@pytest.mark.slow
def test_accounts_survive_their_leader_and_every_movement_happens_once(
    tmp_path: Path,
) -> None:
    done = [0] * CLIENTS

    with running("accounts.py", tmp_path) as service:

        def move(nodes: Iterator[int], client: int, number: int) -> None:
            for source, target, amount in (("", "ada", 3), ("ada", f"c{client}", 1)):
                body = {"id": f"{client}-{number}-{target}", "from": source, "to": target}
                answer = service.ask(nodes, "POST", "/movements", {**body, "amount": amount})
                assert answer.status_code in (200, 201), answer.text
            done[client] += 1

        killed = load_with_a_kill(service, move)
        bring_back(service, killed)
        for node_id in NODES:
            assert service.get(node_id, "/accounts/ada")["balance"] == 2 * sum(done)
            for client, count in enumerate(done):
                assert service.get(node_id, f"/accounts/c{client}")["balance"] == count
        assert {service.stop(node_id) for node_id in NODES} == {0}


@pytest.mark.slow
def test_accounts_refuse_what_is_wrong_and_change_nothing(tmp_path: Path) -> None:
    with running("accounts.py", tmp_path) as service:
        service.wait_leader()
        nodes = itertools.cycle(NODES)
        paid = {"id": "1", "from": "", "to": "ada", "amount": 5}

        def status(body: object) -> int:
            return service.ask(nodes, "POST", "/movements", body).status_code

        assert [status(paid), status(paid)] == [201, 200]
        assert status({"id": "2", "from": "ada", "to": "bob", "amount": 9}) == 422
        for wrong in ({"amount": "5"}, {"amount": -1}, {"amount": 1 << 70}, {"to": "x" * 999}):
            assert status({**paid, "id": "3", **wrong}) == 400
        assert status([]) == status("x") == status({}) == 400
        assert service.get(2, "/accounts/ada") == {"account": "ada", "balance": 5}
        assert service.get(3, "/accounts/bob") == {"error": "there is no such account"}


# ------------------------------------------------------------------ gunicorn


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@contextlib.contextmanager
def gunicorn(
    folder: Path, app: str, *options: str, settings: str = ""
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run `app` under gunicorn; the master's process, and where it serves."""
    (folder / "app.py").write_text(app, encoding="utf-8")
    (folder / "gunicorn.conf.py").write_text(settings, encoding="utf-8")
    spawner = Spawner()
    port = int(free_addresses(1)[0].rpartition(":")[2])
    command = [sys.executable, "-m", "gunicorn", "app:app", f"--bind=127.0.0.1:{port}", *options]
    try:
        process = spawner.start(command, folder=folder, log=folder / "log")
        yield process, f"http://127.0.0.1:{port}"
    finally:
        spawner.close()


def answer_of(url: str) -> str:
    found: list[str] = []

    def is_there() -> bool:
        with contextlib.suppress(httpx.TransportError):
            found[:] = [httpx.get(url, timeout=5, trust_env=False).text]
        return bool(found)

    wait_until(is_there, f"{url} answers")
    return found[0]


def children_of(process: int) -> list[int]:
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def open_in(folder: Path, process: int) -> list[str]:
    """The files in a folder that a process has open."""
    links = []
    for each in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # It was closed just now.
            links.append(os.readlink(each))
    return [link for link in links if link.startswith(str(folder))]


def write_node_1(folder: Path, members: dict[int, str]) -> None:
    text = f'node_id = 1\ndata_dir = "1"\nwal_segment_bytes = {16 * MIB}\n'
    (folder / "node-1.toml").write_text(f'{text}[members]\n1 = "{members[1]}"\n')


@pytest.mark.slow
def test_a_node_in_a_worker_of_gunicorn_survives_the_worker(tmp_path: Path) -> None:
    """As the README of the examples has it, and with the app preloaded in the master too."""
    app, settings = blocks("python")
    write_node_1(tmp_path, {1: free_addresses(1)[0]})
    with gunicorn(tmp_path, app, "--preload", settings=settings) as (master, url):
        first = int(answer_of(url))
        (worker,) = children_of(master.pid)
        os.kill(worker, signal.SIGKILL)
        assert int(answer_of(url)) > first


@pytest.mark.slow
def test_a_node_started_by_gunicorns_master_is_a_clear_error_in_workers(
    tmp_path: Path,
) -> None:
    members = {1: free_addresses(1)[0]}
    write_node_1(tmp_path, members)
    app = """
import raftha

ha = raftha.HaManager(raftha.HaConfig.from_toml("node-1.toml"))
ha.start()
ha.put(b"key", b"by the master")


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    try:
        return [ha.get(b"key")]
    except raftha.Forked as error:
        return [str(error).encode()]
"""
    with gunicorn(tmp_path, app, "--preload", "--workers=2") as (master, url):
        assert "this process was forked after start()" in answer_of(url)
        workers = children_of(master.pid)

        def hold_nothing() -> bool:
            return not any(open_in(tmp_path / "1", worker) for worker in workers)

        wait_until(hold_nothing, "the workers hold nothing of the node")
        try:
            for worker in workers:
                os.kill(worker, signal.SIGSTOP)  # Otherwise it would end with its master.
            master.kill()
            master.wait()
            with raftha.HaManager(make_config(tmp_path, 1, members)) as ha:
                assert ha.get(b"key") == b"by the master"
        finally:
            for worker in workers:
                os.kill(worker, signal.SIGKILL)
