"""What strangers and clones can't do at the port for peers, without TLS."""

from __future__ import annotations

import re
import shutil
import socket
import sys
import time
import tomllib
from pathlib import Path

import pytest

from raftha.net.peer_secret import make_secret
from raftha.net.wire import Hello, Proof, encode
from raftha.testing import LocalCluster
from raftha.testing.processes import Spawner
from raftha.testing.settings_file import to_toml
from raftha.version import PROTOCOL_VERSION
from tests.support.conditions import wait_until
from tests.support.nodes import free_addresses

pytestmark = pytest.mark.slow


def wait_said(cluster: LocalCluster, node_id: int, said: str, after: str = "") -> None:
    """Wait until the log of a node goes on after `after`, with this."""
    log = cluster.log_path(node_id)
    wait_until(lambda: said in log.read_text().removeprefix(after), f"node {node_id} is silent")


def test_a_stranger_without_the_secret_takes_no_id(tmp_path: Path) -> None:
    make_secret(tmp_path / "peer-secret")
    settings = {"peer_secret_file": str(tmp_path / "peer-secret")}
    with LocalCluster(3, settings=settings) as cluster:
        leader = cluster.wait_leader()
        cluster.call(leader, "SET", "key", "value")
        status = cluster.status(leader)
        assert status is not None
        held = []
        for node_id, address in tomllib.loads(cluster.config_of(1).read_text())["members"].items():
            host, port = address.split(":")
            for sender in (4, 3):
                stranger = socket.create_connection((host, int(port)), 5)
                stranger.sendall(
                    encode(
                        Hello(
                            PROTOCOL_VERSION,
                            status["cluster_id"],
                            sender,
                            int(node_id),
                            1,
                            "",
                            cluster_name="raftha",
                            challenge=b"c" * 16,
                        )
                    )
                    + encode(Proof(b"m" * 32))
                )
                held.append(stranger)
        for node_id in cluster.node_ids:
            reason = "it has another secret: give all members the same peer_secret_file"
            wait_said(cluster, node_id, reason)
        assert cluster.add_node() == 4
        cluster.add_replica(4)
        cluster.wait_caught_up()
        assert cluster.call(4, "GET", "key") == b"value"
        lost = re.findall(r"ReplicaDisconnected.*", cluster.log_path(leader).read_text())
        assert not [line for line in lost if "node_id=4" not in line]
        for stranger in held:
            stranger.close()


def test_a_cloned_member_is_reported_and_refused_while_the_other_one_lives() -> None:
    with LocalCluster(3) as cluster:
        cluster.call(1, "SET", "key", "value")
        cluster.terminate(3)
        folder = cluster.folder / "clone"
        folder.mkdir()
        shutil.copytree(cluster.data_of(3), folder / "data")
        cluster.start_node(3)
        cluster.wait_caught_up()

        # On another machine it would have the address of this one.
        table = tomllib.loads(cluster.config_of(3).read_text())
        table["members"]["3"], table["listen"] = free_addresses(2)
        (folder / "node.toml").write_text(to_toml(table))
        logs = {i: cluster.log_path(i).read_text() for i in (1, 2)}
        spawner, log = Spawner(), folder / "node.log"
        try:
            command = [sys.executable, "-m", "raftha", "serve", "--config", folder / "node.toml"]
            clone = spawner.start([str(word) for word in command], folder=folder, log=log)
            for node_id in (1, 2):
                wait_said(cluster, node_id, "MemberCloned")
            time.sleep(1)
            for node_id in (1, 2):
                assert (cluster.status(node_id) or {})["cloned"] == [3]
                news = cluster.log_path(node_id).read_text().removeprefix(logs[node_id])
                assert news.count("event=MemberCloned") == 1
                assert f"reporter={node_id} node_id=3" in news
                assert "ReplicaConnected" not in news
                assert "ReplicaDisconnected" not in news
            assert "another process runs under this id" in log.read_text()
            assert "ReplicaConnected" not in log.read_text()

            # Once that one has ended, the clone is not locked out.
            cluster.kill(3)
            for node_id in (1, 2):
                wait_said(cluster, node_id, "ReplicaConnected", logs[node_id])
            assert clone.poll() is None
        finally:
            spawner.close()
