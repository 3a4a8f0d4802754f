"""Nodes that come and go, in this process, over real sockets and disks."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import raftha
from raftha.config import MIB
from tests.support.conditions import wait_until
from tests.support.nodes import free_addresses, make_config, wait_leader

pytestmark = pytest.mark.slow


class Cluster:
    """Three nodes to begin with, and a way to start more."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.addresses = dict(enumerate(free_addresses(6), start=1))
        self.first = {node_id: self.addresses[node_id] for node_id in (1, 2, 3)}
        self.nodes: dict[int, raftha.HaManager] = {}
        for node_id in self.first:
            self.nodes[node_id] = raftha.HaManager(make_config(folder, node_id, self.first))
            self.nodes[node_id].start()

    def start_new(self, node_id: int) -> raftha.HaManager:
        config = raftha.HaConfig(
            node_id=node_id,
            address=self.addresses[node_id],
            data_dir=self.folder / str(node_id),
            members=self.first,
            wal_segment_bytes=16 * MIB,
            request_timeout_s=20,
        )
        self.nodes[node_id] = raftha.HaManager(config)
        self.nodes[node_id].start()
        return self.nodes[node_id]

    def leader(self) -> int:
        return wait_leader(self.nodes)

    def voters(self, node_id: int) -> list[int]:
        return [r.node_id for r in self.nodes[node_id].get_status().replicas if r.is_voter]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    for node in made.nodes.values():
        node.stop()


def test_a_new_node_gets_everything_and_becomes_a_voter(cluster: Cluster) -> None:
    for i in range(50):
        cluster.nodes[1].put(b"k%d" % i, b"v")
    new = cluster.start_new(4)
    cluster.nodes[2].add_replica(4, cluster.addresses[4])
    assert cluster.voters(2) == [1, 2, 3, 4]
    assert new.get(b"k49") == b"v"
    sequence = new.put(b"from", b"four").sequence
    assert new.count(consistency="stale") == 51
    assert new.digest() == cluster.nodes[1].digest(sequence)


def test_the_new_majority_counts_after_a_change(cluster: Cluster) -> None:
    for node_id in (4, 5):
        cluster.start_new(node_id)
        cluster.nodes[1].add_replica(node_id, cluster.addresses[node_id])
    for node_id in (1, 2):
        cluster.nodes[node_id].stop()
    assert cluster.nodes[5].put(b"three of five", b"suffice")
    cluster.nodes[3].stop()
    with pytest.raises((raftha.Unavailable, raftha.Indeterminate)):
        cluster.nodes[5].put(b"two of five", b"don't", timeout=1)


def test_a_removed_follower_learns_it_and_does_no_harm(cluster: Cluster) -> None:
    leader = cluster.leader()
    gone = next(i for i in cluster.nodes if i != leader)
    kept = next(i for i in cluster.nodes if i not in (leader, gone))
    cluster.nodes[kept].remove_replica(gone)
    assert cluster.voters(kept) == sorted({1, 2, 3} - {gone})
    wait_until(lambda: cluster.nodes[gone].get_status().role == "removed", "it doesn't know")
    # At once, and not after their deadlines.
    for call in (
        lambda: cluster.nodes[gone].put(b"x", b"y"),
        lambda: cluster.nodes[gone].get(b"x"),
    ):
        began = time.monotonic()
        with pytest.raises(raftha.Unavailable, match="was removed"):
            call()
        assert time.monotonic() - began < 5
    assert cluster.nodes[gone].get(b"x", consistency="stale") is None
    assert cluster.nodes[kept].put(b"x", b"z")
    with pytest.raises(raftha.InvalidRequest, match="was removed"):
        cluster.nodes[kept].add_replica(gone, cluster.addresses[gone])


def lead_by_three(cluster: Cluster) -> None:
    """Make the node with the highest id the leader: it dials all others."""
    cluster.leader()
    cluster.nodes[2].failover_to(3)
    cluster.nodes[2].put(b"by", b"three")


def test_a_removed_node_of_a_low_id_is_told_before_its_connections_end(cluster: Cluster) -> None:
    lead_by_three(cluster)
    cluster.nodes[2].remove_replica(1)
    wait_until(lambda: cluster.nodes[1].get_status().role == "removed", "it doesn't know")


def test_a_node_that_was_away_when_it_was_removed_is_told_when_it_is_back(cluster: Cluster) -> None:
    lead_by_three(cluster)
    cluster.nodes[1].stop()
    cluster.nodes[2].remove_replica(1)
    cluster.nodes[1].start()
    wait_until(lambda: cluster.nodes[1].get_status().role == "removed", "it doesn't know")


def test_a_leader_that_is_removed_hands_over_first(cluster: Cluster) -> None:
    leader = cluster.leader()
    other = next(i for i in cluster.nodes if i != leader)
    cluster.nodes[other].remove_replica(leader)
    assert cluster.voters(other) == sorted({1, 2, 3} - {leader})
    assert cluster.nodes[other].put(b"x", b"z")


def test_a_node_may_ask_for_its_own_removal(cluster: Cluster) -> None:
    leader = cluster.leader()
    gone = next(i for i in cluster.nodes if i != leader)
    cluster.nodes[gone].remove_replica(gone)
    assert cluster.nodes[leader].put(b"x", b"z")


def test_members_are_known_after_a_restart(cluster: Cluster) -> None:
    cluster.start_new(4)
    cluster.nodes[1].add_replica(4, cluster.addresses[4])
    cluster.nodes[1].digest()  # A checkpoint: the following state comes from it, not from the log.
    for node in cluster.nodes.values():
        node.stop()
    for node in cluster.nodes.values():
        node.start()
    assert cluster.nodes[4].put(b"all", b"back")
    assert cluster.voters(1) == [1, 2, 3, 4]


def test_a_node_can_be_added_when_none_of_the_first_members_is_left(cluster: Cluster) -> None:
    """It knows no member then, so they have to dial it, although its id is higher."""
    for node_id in (4, 5):
        cluster.start_new(node_id)
        cluster.nodes[1].add_replica(node_id, cluster.addresses[node_id])
    for node_id in (1, 2, 3):
        cluster.nodes[5].remove_replica(node_id)
        cluster.nodes[node_id].stop()
    cluster.start_new(6)
    cluster.nodes[5].add_replica(6, cluster.addresses[6])
    assert cluster.voters(5) == [4, 5, 6]
    assert cluster.nodes[6].put(b"from", b"six")


@pytest.mark.timeout(60)
def test_a_stopped_leader_hands_over_to_a_voter_and_not_to_a_learner(
    cluster: Cluster,
) -> None:
    leader = cluster.leader()
    cluster.start_new(4)
    others = [i for i in (1, 2, 3) if i != leader]
    for node_id in others:
        cluster.nodes[node_id].stop()
    # Without a majority the change can't be committed: node 4 gets the log and stays a learner.
    with pytest.raises(raftha.RequestTimeout):
        cluster.nodes[leader].add_replica(4, cluster.addresses[4], timeout=0.2)
    cluster.nodes[leader].stop()
    for node_id in (leader, *others):
        cluster.nodes[node_id].start()
    assert cluster.nodes[leader].put(b"all", b"back")


def test_one_change_at_a_time(cluster: Cluster) -> None:
    """Node 5 isn't there, so it stays a learner; node 4 can be added meanwhile."""
    leader = cluster.leader()
    with pytest.raises(raftha.RequestTimeout):
        cluster.nodes[leader].add_replica(5, cluster.addresses[5], timeout=0.5)
    cluster.start_new(4)
    cluster.nodes[leader].add_replica(4, cluster.addresses[4])
    assert cluster.voters(leader) == [1, 2, 3, 4]
    cluster.nodes[leader].remove_replica(5)
    assert cluster.voters(leader) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("node_id", "address", "message"),
    [
        (2, "127.0.0.1:1", "already"),
        (0, "127.0.0.1:1", "a node id must be from"),
        (7, "nonsense", "host:port"),
    ],
)
def test_an_impossible_change_is_refused(
    cluster: Cluster, node_id: int, address: str, message: str
) -> None:
    for node in cluster.nodes.values():
        with pytest.raises(raftha.InvalidRequest, match=message):
            node.add_replica(node_id, address)
    assert cluster.nodes[1].put(b"still", b"here")


def test_writes_go_on_while_members_change(cluster: Cluster) -> None:
    stop = threading.Event()
    written: list[int] = []

    def write() -> None:
        while not stop.is_set():
            written.append(cluster.nodes[1].put(b"k", b"%d" % len(written)).sequence)

    thread = threading.Thread(target=write)
    thread.start()
    for node_id in (4, 5):
        cluster.start_new(node_id)
        cluster.nodes[2].add_replica(node_id, cluster.addresses[node_id])
    leader = cluster.leader()
    cluster.nodes[5].remove_replica(leader if leader != 1 else 3)
    cluster.nodes[5].remove_replica(2 if leader != 2 else 3)
    stop.set()
    thread.join()
    assert len(written) > 20
    assert written == sorted(set(written))
    assert cluster.nodes[5].get(b"k") == b"%d" % (len(written) - 1)
