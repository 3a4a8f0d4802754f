"""A cluster is founded once; what empty nodes do; a member that lost its disk comes back."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import raftha
from raftha.testing import LocalCluster
from tests.support.conditions import wait_until
from tests.support.nodes import free_addresses

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]


def init(cluster: LocalCluster, node_id: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "raftha", "init", "--yes", "--json", "--config"]
    command.append(str(cluster.config_of(node_id)))
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def wait_role(cluster: LocalCluster, node_id: int, *roles: str) -> dict[str, Any]:
    def find() -> bool:
        status = cluster.status(node_id)
        return status is not None and status["role"] in roles

    wait_until(find, f"node {node_id} is not {roles}")
    status = cluster.status(node_id)
    assert status is not None
    return status


@pytest.fixture
def empty() -> Iterator[LocalCluster]:
    """Three nodes that have never run."""
    cluster = LocalCluster(3)
    for node_id in (1, 2, 3):
        cluster.wipe(node_id)
    yield cluster
    cluster.close()


def test_empty_nodes_wait_until_one_is_told_to_found(empty: LocalCluster) -> None:
    for node_id in (1, 2, 3):
        empty.start_node(node_id)
    for node_id in (1, 2, 3):
        status = wait_role(empty, node_id, "waiting")
        assert "run `raftha init` on ONE node" in status["waits_for"]
        assert status["replication_state"] == "initializing"
    empty.terminate(2)
    assert json.loads(init(empty, 2).stdout) == {"node_id": 2, "cluster_name": "raftha"}
    empty.start_node(2)
    leader = empty.wait_ready()
    empty.call(leader, "SET", "key", "value")
    ids = {(empty.status(node_id) or {})["cluster_id"] for node_id in (1, 2, 3)}
    assert len(ids) == 1
    assert ids != {""}
    empty.terminate(2)
    again = init(empty, 2)
    assert again.returncode == 2
    assert "belongs to a cluster already" in again.stderr


def test_nodes_that_bootstrap_found_one_cluster_when_all_are_there() -> None:
    cluster = LocalCluster(3, settings={"bootstrap": True})
    try:
        for node_id in (1, 2, 3):
            cluster.wipe(node_id)
        cluster.start_node(1)
        cluster.start_node(3)
        assert "missing: node 2" in wait_role(cluster, 1, "waiting")["waits_for"]
        cluster.start()
        cluster.call(1, "SET", "key", "value")

        # Two disks are lost, the setting is still there, and the third node is away.
        cluster.stop()
        for node_id in (1, 2):
            cluster.wipe(node_id)
            cluster.start_node(node_id)
        for node_id in (1, 2):
            wait_role(cluster, node_id, "waiting")
        cluster.start_node(3)
        text = "waits for the leader of the cluster that node 3"
        wait_until(lambda: text in (cluster.status(1) or {})["waits_for"], "3 wasn't heard")
        assert cluster.leader() is None
    finally:
        cluster.close()


def test_a_wiped_member_and_one_that_never_ran_elect_no_leader(empty: LocalCluster) -> None:
    """Together they would be a majority, and know nothing of what node 2 has acknowledged."""
    init(empty, 1)
    empty.start_node(1)
    empty.start_node(2)
    leader = empty.wait_leader()
    empty.call(leader, "SET", "money", "1000")
    empty.kill(1)
    empty.kill(2)
    empty.wipe(1)
    empty.start_node(1)
    empty.start_node(3)
    wait_role(empty, 1, "waiting")
    wait_role(empty, 3, "waiting")
    assert empty.leader() is None
    empty.start_node(2)
    wait_role(empty, 2, "follower", "pre_candidate")
    assert empty.leader() is None


def test_a_member_that_lost_its_disk_is_healed_and_counts_again() -> None:
    with LocalCluster(3) as cluster:
        for i in range(50):
            cluster.call(1, "SET", f"key-{i}", i)
        leader = cluster.wait_leader()
        wiped, other = (i for i in (1, 2, 3) if i != leader)
        cluster.kill(wiped)
        cluster.wipe(wiped)
        cluster.start_node(wiped)

        def is_whole() -> bool:
            status = cluster.status(wiped)
            return status is not None and status["applied_index"] > 50 and not status["is_healing"]

        wait_until(is_whole, "it is not healed")
        cluster.kill(other)
        cluster.call(leader, "SET", "after", "wipe")
        cluster.wait_caught_up()
        assert cluster.call(wiped, "GET", "key-49") == b"49"


def test_a_node_that_is_alone_founds_its_cluster_by_itself(tmp_path: Path) -> None:
    members = {1: free_addresses(1)[0]}
    config = raftha.HaConfig(node_id=1, data_dir=tmp_path / "1", members=members)
    with raftha.HaManager(config) as ha:
        ha.put(b"key", b"value")
        cluster_id = ha.get_status().cluster_id
    with raftha.HaManager(config) as ha:
        assert ha.get(b"key") == b"value"
        assert ha.get_status().cluster_id == cluster_id != ""
        ha.digest()
    assert not [path for path in tmp_path.glob("1/**/*") if path.stat().st_mode & 0o077]
    assert not (tmp_path / "1").stat().st_mode & 0o077
    shutil.rmtree(tmp_path / "1")
    with raftha.HaManager(config) as ha:
        ha.put(b"key", b"other")
        assert ha.get_status().cluster_id not in (cluster_id, "")
