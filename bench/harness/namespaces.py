"""Nodes in network namespaces of their own, on one bridge: one can be cut off without a reset.

Theory of operation. A node's end of a veth pair is in its namespace, the other end is a port of the
bridge; this process has an address on the bridge itself. Taking a node's port out of the bridge
cuts it off: its packets and those to it are lost, and no connection breaks. All names end in this
process's id, and everything is removed at the end.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import raftha
from raftha.testing.processes import Spawner

PREFIX = "10.213.77"
PORT = 7100
BRIDGE_ADDRESS = "02:00:0a:d5:4d:01"


def _ip(*args: str) -> None:
    done = subprocess.run(["ip", *args], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(args)}: {done.stderr.strip()}")


def why_not() -> str:
    """Why this is impossible here; "" if it is possible."""
    if os.geteuid():
        return "needs root"
    if shutil.which("ip") is None:
        return "there is no `ip` (Debian: iproute2)"
    name = f"rfx{os.getpid()}"
    try:
        _ip("netns", "add", name)
        _ip("netns", "del", name)
        _ip("link", "add", name, "type", "bridge")
        _ip("link", "del", name)
    except RuntimeError as error:
        return str(error)
    return ""


class Network:
    """The bridge, and the nodes 2 and 3 behind it."""

    def __init__(self, folder: Path, spawner: Spawner, lease_ms: int) -> None:
        self._folder = folder
        self._spawner = spawner
        self._lease_ms = lease_ms
        self._bridge = f"rfb{os.getpid()}"
        self._nodes: list[int] = []
        self._members = {i: f"{PREFIX}.{i}:{PORT}" for i in (1, 2, 3)}

    def _port(self, node_id: int) -> str:
        return f"rf{os.getpid()}p{node_id}"

    def _namespace(self, node_id: int) -> str:
        return f"raftha-{os.getpid()}-{node_id}"

    def open(self) -> None:
        """Make the bridge, the namespaces, and the nodes in them."""
        # The bridge has a MAC address of its own. Otherwise it has that of one of its ports, and
        # when this port is cut off, the others don't reach this process until they have asked for
        # its address again.
        _ip("link", "add", self._bridge, "address", BRIDGE_ADDRESS, "type", "bridge")
        _ip("addr", "add", f"{PREFIX}.1/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")
        for node_id in (2, 3):
            self._add(node_id)

    def _add(self, node_id: int) -> None:
        port, namespace = self._port(node_id), self._namespace(node_id)
        _ip("netns", "add", namespace)
        self._nodes.append(node_id)
        _ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _ip("link", "set", port, "master", self._bridge, "up")
        _ip("-n", namespace, "addr", "add", f"{PREFIX}.{node_id}/24", "dev", "eth0")
        _ip("-n", namespace, "link", "set", "eth0", "up")
        _ip("-n", namespace, "link", "set", "lo", "up")
        folder = self._folder / str(node_id)
        folder.mkdir()
        members = "".join(f'{i} = "{address}"\n' for i, address in self._members.items())
        (folder / "node.toml").write_text(
            f'node_id = {node_id}\ndata_dir = "data"\nlisten = "127.0.0.1:6379"\n'
            f"insecure = true\nbootstrap = true\nlease_ms = {self._lease_ms}\n"
            f"[members]\n{members}"
        )
        command = ["ip", "netns", "exec", namespace, sys.executable, "-m", "raftha", "serve"]
        command += ["--config", "node.toml"]
        self._spawner.start(command, folder=folder, log=folder / "node.log")

    def config(self) -> raftha.HaConfig:
        """The configuration of the node in this process."""
        return raftha.HaConfig(
            node_id=1,
            data_dir=self._folder / "1",
            members=self._members,
            lease_ms=self._lease_ms,
            insecure=True,
            bootstrap=True,
        )

    def cut_off(self, node_id: int) -> None:
        """Drop all packets from and to the node."""
        _ip("link", "set", self._port(node_id), "nomaster")

    def reconnect(self, node_id: int) -> None:
        """Connect the node again."""
        _ip("link", "set", self._port(node_id), "master", self._bridge)

    def close(self) -> None:
        """Remove the namespaces, and with them the links, and the bridge."""
        for node_id in self._nodes:
            _ip("netns", "del", self._namespace(node_id))
        subprocess.run(["ip", "link", "del", self._bridge], capture_output=True, check=False)


@contextmanager
def network(lease_ms: int = 0) -> Iterator[Network]:
    """Nodes 2 and 3, running."""
    with tempfile.TemporaryDirectory() as folder:
        spawner = Spawner()
        made = Network(Path(folder), spawner, lease_ms)
        try:
            made.open()
            yield made
        finally:
            spawner.close()
            made.close()
