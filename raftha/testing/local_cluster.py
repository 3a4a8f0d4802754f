"""LocalCluster: real node processes on this machine, to start, kill, pause, restart and wipe.

For the tests of raftha, for `raftha demo`, and for tests of your own service: kill the leader and
see what the service does.

    with LocalCluster(nodes=3) as cluster:
        leader = cluster.wait_leader()
        cluster.call(leader, "SET", "key", "value")
        cluster.kill(leader)                              # SIGKILL, as a power cut would
        leader = cluster.wait_leader()
        assert cluster.call(leader, "GET", "key") == b"value"

Nodes join and leave while the others serve:

        new = cluster.add_node()                          # a process that waits to be added
        cluster.add_replica(new)                          # a member, with all the data
        cluster.remove_replica(1)                         # removed for good

Theory of operation. Each node is a process of its own, `python -m raftha serve` or the server that
`serve_command` starts, with a folder of its own: `node.toml`, `data/`, and `node.log`, to which the
output of every run is appended. All calls block and may come from any thread, but no two calls may
start or end the same node at once.

Calls about the whole cluster (`wait_ready`, `digests` ...) cover the members that the leader knows,
not the list of processes.

The nodes are killed and the temporary folder is deleted when the `with` block ends, at the latest
when the interpreter exits. If the block ends with an error, the folder stays, and the error names
it. `raftha.testing.processes` keeps the ports reserved while a node is down, and ends the nodes if
this process is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from raftha.config import MEMBERS_MAX, MIB
from raftha.errors import (
    Disconnected,
    LocalClusterError,
    RequestTimeout,
    Unavailable,
)
from raftha.extras import extra
from raftha.membership import Membership
from raftha.runtime.founding import found_together
from raftha.testing.processes import Spawner, reserve_port
from raftha.testing.settings_file import to_toml

T = TypeVar("T")

STATUS_TIMEOUT_S = 2.0
"""How long a node may take to report its status."""
_POLL_S = 0.02
_LOG_TAIL_LINES = 10


@dataclass(slots=True, kw_only=True)
class _Node:
    id: int
    folder: Path
    peer_socket: socket.socket
    client_socket: socket.socket
    process: subprocess.Popen[bytes] | None = None
    is_paused: bool = False

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        if not self.is_running:
            raise LocalClusterError(f"node {self.id} is not running", hint=f"log: {self.log}")
        assert self.process is not None
        self.process.send_signal(number)

    @property
    def log(self) -> Path:
        return self.folder / "node.log"


@dataclass(slots=True)
class _Resources:
    """The resources to release, kept apart from the cluster so that its finalizer can hold them."""

    folder: Path
    is_temporary: bool
    spawner: Spawner
    nodes: dict[int, _Node] = field(default_factory=dict)
    process: int = field(default_factory=os.getpid)

    def release(self) -> None:
        if os.getpid() != self.process:
            return  # A forked child exits; the cluster belongs to its parent.
        self.spawner.close()
        for node in self.nodes.values():
            node.peer_socket.close()
            node.client_socket.close()
        if self.is_temporary:
            shutil.rmtree(self.folder, ignore_errors=True)


class LocalCluster:
    """A cluster of `nodes` real processes, ids 1, 2, 3 ...; see the module's docstring.

    `settings` go into every node's configuration file, beside the ids, addresses and folders that
    the cluster chooses. `serve_command` starts a node instead of `raftha serve`: a sequence of
    arguments in which "{config}" becomes the path of the node's file. The process it starts must
    speak RESP at the file's `listen` and answer RAFTHA STATUS like `raftha serve`. `folder` keeps
    all files and must not hold another cluster; by default it is temporary. With `tls` the nodes
    speak mutual TLS to each other, under a CA of their own.
    """

    def __init__(
        self,
        nodes: int = 3,
        *,
        settings: Mapping[str, Any] | None = None,
        serve_command: Sequence[str] | None = None,
        folder: str | Path | None = None,
        tls: bool = False,
        start_timeout_s: float = 30.0,
    ) -> None:
        if not 1 <= nodes <= MEMBERS_MAX:
            raise LocalClusterError(f"a cluster has 1 to {MEMBERS_MAX} nodes, got {nodes}")
        if folder and (Path(folder) / "node-1").exists():
            raise LocalClusterError(f"there is a cluster in {folder} already")
        with extra("server"):  # only queries need the extra, not the import of this module
            from raftha.client.call import call  # noqa: PLC0415
        self._call = call
        self._command = tuple(
            serve_command or (sys.executable, "-m", "raftha", "serve", "--config", "{config}")
        )
        self._start_timeout_s = start_timeout_s
        path = Path(folder) if folder else Path(tempfile.mkdtemp(prefix="raftha-cluster-"))
        self._resources = _Resources(path.resolve(), not folder, Spawner())
        self._nodes = self._resources.nodes
        # Runs once: at close, when the cluster is garbage, or when the interpreter exits.
        self._release = weakref.finalize(self, self._resources.release)
        self._settings = dict(settings or {})
        self._ca = self.folder / "ca" if tls else None
        if self._ca is not None:
            from raftha.net.certificates import make_ca  # noqa: PLC0415

            make_ca(str(self._settings.get("cluster_name", "raftha")), self._ca)
        first = [self._make_node(node_id) for node_id in range(1, nodes + 1)]
        self._members = {str(node.id): _address(node.peer_socket) for node in first}
        for node in first:
            self._write_config(node)
        self._unfounded = first

    def _found_once(self) -> None:
        """Make the data folders of a new cluster: no node has to wait for the others.

        Just before the first node starts, so that a test can put file systems there.
        """
        nodes, self._unfounded = self._unfounded, []
        if not nodes:
            return
        regions = self._settings.get("regions", ("primary",))
        named = self._settings.get("member_regions", {})
        found_together(
            {node.id: node.folder / "data" for node in nodes},
            Membership.first(
                {node.id: self._members[str(node.id)] for node in nodes},
                {node.id: named.get(str(node.id), regions[0]) for node in nodes},
            ).members,
            str(self._settings.get("cluster_name", "raftha")),
            int(self._settings.get("wal_segment_bytes", 64 * MIB)),
        )

    def _make_node(self, node_id: int) -> _Node:
        node = self._nodes[node_id] = _Node(
            id=node_id,
            folder=self.folder / f"node-{node_id}",
            peer_socket=reserve_port(),
            client_socket=reserve_port(),
        )
        return node

    def _write_config(self, node: _Node) -> None:
        table = {
            **self._settings,
            "node_id": node.id,
            "data_dir": "data",
            "listen": _address(node.client_socket),
            "members": self._members,
        }
        if str(node.id) not in self._members:
            table["address"] = _address(node.peer_socket)
        node.folder.mkdir(parents=True, exist_ok=True)
        if self._ca is not None:
            from raftha.net.certificates import make_node  # noqa: PLC0415

            made = make_node(self._ca, node.id, node.folder)
            paths = {"tls_ca": made.ca, "tls_cert": made.certificate, "tls_key": made.key}
            table.update({name: path.name for name, path in paths.items()})
        (node.folder / "node.toml").write_text(to_toml(table), encoding="utf-8")

    # ------------------------------------------------------------------ the whole cluster

    def __enter__(self) -> Self:
        """Start all nodes and wait until they are ready."""
        try:
            self.start()
        except BaseException as error:
            self._close_after(error)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close_after(error)

    def _close_after(self, error: BaseException | None) -> None:
        if isinstance(error, Exception):
            self._resources.is_temporary = False
            error.add_note(f"the nodes' logs and data are kept in {self.folder}")
        self.close()

    def start(self) -> None:
        """Start every node that isn't running, and wait until all are ready."""
        for node in self._nodes.values():
            if not node.is_running:
                self._spawn(node)
        self.wait_ready(self._start_timeout_s)

    def stop(self, timeout_s: float = 10.0) -> None:
        """End all nodes with SIGTERM at the same time; they can be started again."""
        running = self.running
        for node_id in running:
            self._request_end(node_id)
        for node_id in running:
            self._wait_end(node_id, timeout_s)

    def close(self) -> None:
        """Kill every node and clean up; the cluster is unusable afterwards. May be repeated."""
        self._release()

    @property
    def folder(self) -> Path:
        """The folder that holds the nodes' folders."""
        return self._resources.folder

    @property
    def node_ids(self) -> tuple[int, ...]:
        """All nodes, running or not."""
        return tuple(self._nodes)

    @property
    def running(self) -> tuple[int, ...]:
        """The nodes whose process exists, paused ones included."""
        return tuple(node.id for node in self._nodes.values() if node.is_running)

    @property
    def addresses(self) -> dict[int, str]:
        """The client address of each node: id -> "host:port"."""
        return {node.id: _address(node.client_socket) for node in self._nodes.values()}

    @property
    def peer_addresses(self) -> dict[int, str]:
        """The address of each node for its peers: id -> "host:port"."""
        return {node.id: _address(node.peer_socket) for node in self._nodes.values()}

    # ------------------------------------------------------------------ one node

    def start_node(self, node_id: int) -> None:
        """Start a node that isn't running; return without waiting."""
        node = self._node(node_id)
        if node.is_running:
            raise LocalClusterError(f"node {node_id} is running already")
        self._spawn(node)

    def kill(self, node_id: int) -> None:
        """SIGKILL: the process is gone on return, without a chance to clean up."""
        self._node(node_id).signal(signal.SIGKILL)
        self._wait_end(node_id, None)

    def terminate(self, node_id: int, timeout_s: float = 10.0) -> int:
        """SIGTERM, and wait; return the exit code. LocalClusterError if the process stays."""
        self._request_end(node_id)
        return self._wait_end(node_id, timeout_s)

    def pause(self, node_id: int) -> None:
        """SIGSTOP: the process and its connections stay, but it makes no progress."""
        node = self._node(node_id)
        node.signal(signal.SIGSTOP)
        node.is_paused = True

    def resume(self, node_id: int) -> None:
        """SIGCONT: the process continues."""
        node = self._node(node_id)
        node.signal(signal.SIGCONT)
        node.is_paused = False

    def restart(self, node_id: int) -> None:
        """Terminate a node if it is running, and start it, without waiting until it is ready."""
        if self._node(node_id).is_running:
            self.terminate(node_id)
        self.start_node(node_id)

    def wipe(self, node_id: int) -> None:
        """Delete everything that a stopped node has stored; the others heal it when it returns."""
        node = self._node(node_id)
        if node.is_running:
            raise LocalClusterError(f"node {node_id} is running", hint="stop it first")
        self._found_once()
        shutil.rmtree(node.folder / "data", ignore_errors=True)

    def pid(self, node_id: int) -> int:
        """The process id of a running node."""
        node = self._node(node_id)
        if node.process is None or not node.is_running:
            raise LocalClusterError(f"node {node_id} is not running", hint=f"log: {node.log}")
        return node.process.pid

    def exit_code(self, node_id: int) -> int | None:
        """The exit code of the node's last process, negative for a signal; None while it runs."""
        process = self._node(node_id).process
        return process.poll() if process else None

    def config_of(self, node_id: int) -> Path:
        """The node's configuration file; edit it before a restart to change settings."""
        return self._node(node_id).folder / "node.toml"

    def data_of(self, node_id: int) -> Path:
        """The node's data folder."""
        return self._node(node_id).folder / "data"

    def log_path(self, node_id: int) -> Path:
        """The output of the node's processes, all runs in one file."""
        return self._node(node_id).log

    # ------------------------------------------------------------------ members

    def add_node(self) -> int:
        """Start one more node, with the next id, and wait until it answers; return the id.

        It becomes a member with `add_replica`; until then it only waits.
        """
        node = self._make_node(max(self._nodes) + 1)
        self._write_config(node)
        self._spawn(node)

        def is_there() -> bool:
            statuses = self.statuses()
            self._check_alive(statuses)
            return statuses[node.id] is not None

        self._wait(f"node {node.id} does not answer", is_there, self._start_timeout_s)
        return node.id

    def add_replica(self, node_id: int, timeout_s: float = 60.0) -> None:
        """Add a running node as a member, and wait until it is a voter."""
        address = _address(self._node(node_id).peer_socket)
        leader = self.wait_leader(timeout_s)
        self.call(leader, "RAFTHA", "ADD", node_id, address, timeout_s=timeout_s)

    def remove_replica(self, node_id: int, timeout_s: float = 60.0) -> None:
        """Remove a member for good; its process, if it has one, continues without a role."""
        leader = self.wait_leader(timeout_s)
        others = [i for i in self.members() if i not in (leader, node_id) and i in self._active()]
        # Ask another node if there is one: the removed node learns of its removal late.
        asked = leader if leader != node_id or not others else others[0]
        self.call(asked, "RAFTHA", "REMOVE", node_id, timeout_s=timeout_s)

    def members(self) -> tuple[int, ...]:
        """The members, voters and learners, as the leader knows them; none without a leader."""
        statuses = self.statuses()
        leader = _find_leader(statuses)
        return _members(statuses[leader]) if leader else ()

    # ------------------------------------------------------------------ asking

    def call(self, node_id: int, *args: str | bytes | int | float, timeout_s: float = 10.0) -> Any:
        """Send one command to a node over a connection of its own; return the reply.

        Unavailable: the node can't be reached. Disconnected, RequestTimeout: the command may have
        been applied. An error reply raises the error that the server's manager raised.
        """
        return self._call(_address(self._node(node_id).client_socket), args, timeout_s)

    def status(self, node_id: int) -> dict[str, Any] | None:
        """The node's `HaStatus` as a dict; None if it is down, paused or not answering."""
        node = self._node(node_id)
        if not node.is_running or node.is_paused:
            return None
        try:
            status = json.loads(self.call(node_id, "RAFTHA", "STATUS", timeout_s=STATUS_TIMEOUT_S))
        except (Unavailable, Disconnected, RequestTimeout):
            return None
        assert isinstance(status, dict)
        return status

    def statuses(self) -> dict[int, dict[str, Any] | None]:
        """The status of every node; None for a node that doesn't answer."""
        return {node_id: self.status(node_id) for node_id in self._nodes}

    def leader(self) -> int | None:
        """The node that leads and that a majority follows in one term; None without one."""
        return _find_leader(self.statuses())

    def wait_leader(self, timeout_s: float = 30.0) -> int:
        """Wait until there is a leader; return it."""
        return self._wait("there is no leader", self.leader, timeout_s)

    def wait_ready(self, timeout_s: float = 30.0) -> int:
        """Wait until every active member follows one leader; return the leader."""

        def find() -> int | None:
            statuses = self.statuses()
            self._check_alive(statuses)
            leader = _find_leader(statuses)
            if leader is None:
                return None
            states = [statuses[node_id] for node_id in self._active_members(statuses[leader])]
            return leader if all(s and s["leader_id"] == leader for s in states) else None

        return self._wait("the nodes are not ready", find, timeout_s)

    def wait_caught_up(self, timeout_s: float = 60.0) -> None:
        """Wait until all active members have applied the log that the leader has now.

        The state of each of them then contains every write acknowledged before the call.
        """
        self._wait_caught_up(timeout_s)

    def _wait_caught_up(self, timeout_s: float) -> list[int]:
        """Return the members that have caught up."""
        target: tuple[int, int] | None = None  # term, index

        def find() -> list[int] | None:
            nonlocal target
            statuses = self.statuses()
            self._check_alive(statuses)
            leader_id = _find_leader(statuses)
            leader = statuses[leader_id] if leader_id else None
            if leader is None:
                return None
            # A new leader's log may lack entries that were never committed, so it sets the target.
            if target is None or target[0] != leader["term"]:
                target = leader["term"], leader["last_index"]
            members = self._active_members(leader)
            states = [statuses[node_id] for node_id in members]
            return members if all(s and s["applied_index"] >= target[1] for s in states) else None

        return self._wait("not every member has caught up", find, timeout_s)

    def digests(self, timeout_s: float = 60.0) -> dict[int, dict[str, Any]]:
        """Wait until all active members have caught up; return the hash of each member's own data.

        They can be compared while no writes happen; `sequence` is the last command each contains.
        """
        return {
            node_id: json.loads(self.call(node_id, "RAFTHA", "DIGEST", timeout_s=timeout_s))
            for node_id in self._wait_caught_up(timeout_s)
        }

    # ------------------------------------------------------------------ within

    def _node(self, node_id: int) -> _Node:
        if node_id not in self._nodes:
            raise LocalClusterError(f"there is no node {node_id}", hint=f"{self.node_ids} are")
        return self._nodes[node_id]

    def _active(self) -> list[int]:
        return [n.id for n in self._nodes.values() if n.is_running and not n.is_paused]

    def _active_members(self, leader: Mapping[str, Any] | None) -> list[int]:
        """The active nodes that are members according to the leader's status."""
        members = _members(leader)
        return [node_id for node_id in self._active() if node_id in members]

    def _spawn(self, node: _Node) -> None:
        self._check_open()
        self._found_once()
        config = str(node.folder / "node.toml")
        command = [argument.replace("{config}", config) for argument in self._command]
        node.process = self._resources.spawner.start(command, folder=node.folder, log=node.log)
        node.is_paused = False

    def _check_open(self) -> None:
        if not self._release.alive:
            raise LocalClusterError("the cluster is closed")

    def _request_end(self, node_id: int) -> None:
        node = self._node(node_id)
        node.signal(signal.SIGTERM)
        if node.is_paused:
            self.resume(node_id)

    def _wait_end(self, node_id: int, timeout_s: float | None) -> int:
        node = self._node(node_id)
        assert node.process is not None
        try:
            exit_code = node.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise LocalClusterError(
                f"node {node_id} still runs {timeout_s} s after SIGTERM", hint=f"log: {node.log}"
            ) from None
        node.is_paused = False
        return exit_code

    def _check_alive(self, statuses: Mapping[int, Mapping[str, Any] | None]) -> None:
        """Raise LocalClusterError if a node exited by itself or has failed for good."""
        for node in self._nodes.values():
            status = statuses[node.id]
            exit_code = self.exit_code(node.id)
            if exit_code is not None and exit_code > 0:
                problem = f"ended with exit code {exit_code}"
            elif status and status["role"] == "failed":
                problem = f"failed: {status['failure']}"
            else:
                continue
            raise LocalClusterError(
                f"node {node.id} {problem}; its last lines were\n{_tail(node.log)}",
                hint=f"log: {node.log}",
            )

    def _wait(self, problem: str, find: Callable[[], T | None], timeout_s: float) -> T:
        deadline = time.monotonic() + timeout_s
        while not (found := find()):
            self._check_open()
            if time.monotonic() >= deadline:
                states = ", ".join(_describe(i, s) for i, s in self.statuses().items())
                raise LocalClusterError(
                    f"{problem} after {timeout_s} s: {states}", hint=f"logs: {self.folder}"
                )
            # The change happens in another process, which sends no notification: poll.
            time.sleep(_POLL_S)
        return found


def _members(leader: Mapping[str, Any] | None) -> tuple[int, ...]:
    replicas = leader["replicas"] if leader else ()
    return tuple(replica["node_id"] for replica in replicas)


def _find_leader(statuses: Mapping[int, Mapping[str, Any] | None]) -> int | None:
    reached = [s for s in statuses.values() if s is not None]
    for status in reached:
        if status["is_primary"]:
            leader, term = status["node_id"], status["term"]
            voters = [r["node_id"] for r in status["replicas"] if r["is_voter"]]
            followers = [
                s["node_id"] for s in reached if (s["leader_id"], s["term"]) == (leader, term)
            ]
            if 2 * len(set(voters) & set(followers)) > len(voters):
                return int(leader)
    return None


def _describe(node_id: int, status: Mapping[str, Any] | None) -> str:
    if status is None:
        return f"node {node_id} doesn't answer"
    return (
        f"node {node_id} is {status['role']} in term {status['term']}, leader"
        f" {status['leader_id']}, applied {status['applied_index']} of {status['last_index']}"
    )


def _tail(log: Path) -> str:
    with contextlib.suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(f"    {line}" for line in lines[-_LOG_TAIL_LINES:])
    return "    (no log)"


def _address(reserved: socket.socket) -> str:
    host, port = reserved.getsockname()
    return f"{host}:{port}"
