"""A majority is lost for good: a survivor becomes the cluster, and nodes that return do no harm."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from raftha.client.resp import ReplyError
from raftha.config import MIB
from raftha.testing import LocalCluster
from tests.support.conditions import wait_until

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]


def recover(cluster: LocalCluster, node_id: int, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "raftha", "recover-quorum", "--node-id", str(node_id)]
    command += ["--config", str(cluster.config_of(node_id)), *options]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def status(cluster: LocalCluster, node_id: int) -> dict[str, Any]:
    found = cluster.status(node_id)
    return found or {"role": "", "leader_id": None, "is_primary": False}


def has_logged(cluster: LocalCluster, node_id: int, text: str) -> bool:
    return text in cluster.log_path(node_id).read_text()


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    """Three nodes that hold a hundred keys."""
    with LocalCluster(3) as cluster:
        for i in range(100):
            cluster.call(1, "SET", f"key-{i}", i)
        cluster.wait_caught_up()
        yield cluster


@pytest.mark.parametrize("survivor", [1, 3])
def test_a_survivor_becomes_the_cluster_and_new_nodes_join(
    cluster: LocalCluster, survivor: int
) -> None:
    """With the lowest id the others dial it, with the highest it would have to dial them."""
    lost = [i for i in (1, 2, 3) if i != survivor]
    for node_id in (*lost, survivor):
        cluster.kill(node_id)
    done = recover(cluster, survivor, "--yes")
    assert done.returncode == 0, done.stderr
    assert "LOST" in done.stdout
    assert "after command 100" in done.stdout

    cluster.start_node(survivor)
    assert cluster.wait_ready() == survivor
    assert cluster.members() == (survivor,)
    assert cluster.call(survivor, "GET", "key-99") == b"99"
    new = [cluster.add_node(), cluster.add_node()]
    for node_id in new:
        cluster.add_replica(node_id)
    cluster.call(new[0], "SET", "after", "recovery")
    digests = cluster.digests()
    assert sorted(digests) == sorted([survivor, *new])
    assert len({d["hex"] for d in digests.values()}) == 1

    # The lost nodes come back with all their data, and were a majority: two histories go on apart.
    for node_id in lost:
        cluster.start_node(node_id)
    text = "forked the cluster's history"
    for node_id in (survivor, *lost):
        wait_until(partial(has_logged, cluster, node_id, text), "no refusal")
    assert not any(status(cluster, node_id)["role"] == "removed" for node_id in lost)
    assert cluster.call(survivor, "GET", "after") == b"recovery"
    assert cluster.call(lost[0], "GET", "after") is None
    with pytest.raises(ReplyError, match="was removed"):
        cluster.call(survivor, "RAFTHA", "ADD", lost[0], "127.0.0.1:1")


def test_a_new_node_joins_a_recovered_cluster_through_a_snapshot() -> None:
    """A snapshot from before the recovery would make it a node of the old history."""
    settings = {
        "max_wal_size": MIB,
        "log_retention_bytes": MIB,
        "wal_segment_bytes": 16 * MIB,
        "checkpoint_interval_sec": 3600.0,
    }
    with LocalCluster(3, settings=settings) as cluster:
        value = bytes(100_000)
        while status(cluster, 1)["first_index"] == 1:
            for i in range(50):
                cluster.call(1, "SET", f"key-{i}", value)
        cluster.wait_caught_up()
        for node_id in (2, 3, 1):
            cluster.kill(node_id)
        assert recover(cluster, 1, "--yes").returncode == 0
        cluster.start_node(1)
        cluster.wait_ready()
        new = cluster.add_node()
        cluster.add_replica(new)
        digests = cluster.digests()
        assert digests[new]["hex"] == digests[1]["hex"]


def test_the_recovery_leaves_a_record(cluster: LocalCluster) -> None:
    cluster.stop()
    before = recover(cluster, 2, "--dry-run", "--json")
    plan = json.loads(before.stdout)
    assert plan["record"] is None
    assert [member["node_id"] for member in plan["lost"]] == [1, 3]
    assert not any(member["answers"] for member in plan["lost"])
    assert not list(cluster.data_of(2).glob("recover-quorum-*"))
    done = recover(cluster, 2, "--yes", "--json")
    assert "quorum recovered" in done.stderr
    (record,) = cluster.data_of(2).glob("recover-quorum-*.json")
    assert json.loads(done.stdout) == {**plan, "record": str(record)}
    written = json.loads(record.read_text())
    assert {name: written[name] for name in plan if name != "record"} == {
        name: value for name, value in plan.items() if name != "record"
    }
    again = recover(cluster, 2, "--yes")
    assert again.returncode == 2
    assert "the only voter already" in again.stderr


def test_a_recovery_needs_consent_and_refuses_while_it_may_do_harm(cluster: LocalCluster) -> None:
    running = recover(cluster, 1, "--yes")
    assert running.returncode == 2
    assert "in use by another process" in running.stderr
    cluster.terminate(1)
    others_answer = recover(cluster, 1, "--yes")
    assert others_answer.returncode == 2
    assert "so many others answer" in others_answer.stderr
    cluster.stop()
    unasked = recover(cluster, 1)
    assert unasked.returncode == 2
    assert "--yes does it" in unasked.stderr
    other = recover(cluster, 1, "--yes", "--node-id", "2")
    assert other.returncode == 2
    assert "is node 1's, not node 2's" in other.stderr
    cluster.start()
    assert cluster.members() == (1, 2, 3)


def test_a_node_that_is_no_member_and_a_folder_that_is_no_node_are_refused(
    cluster: LocalCluster,
) -> None:
    new = cluster.add_node()
    cluster.stop()
    stranger = recover(cluster, new, "--yes")
    assert stranger.returncode == 2
    assert "is empty: it has no membership, and no data" in stranger.stderr
    missing = recover(cluster, 1, "--yes", "--data-dir", str(cluster.folder / "nowhere"))
    assert missing.returncode == 2
    assert "is not the data directory of a node" in missing.stderr
