"""Members that the log can't help: snapshots of the state, over sockets, files and processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import raftha
from raftha.config import MIB
from raftha.storage.directory.snapshot import Chunk, Incoming, Outgoing, install
from raftha.storage.log.wal import Wal
from raftha.testing import LocalCluster
from tests.support.conditions import wait_until
from tests.support.nodes import found_once, free_addresses, wait_leader

pytestmark = pytest.mark.slow

VALUE = bytes(range(256)) * 1024
MEMORY_BYTES = 36 * MIB
"""More log than a leader keeps in memory: a follower that lags a little needs no snapshot."""
SETTINGS: dict[str, Any] = {
    "wal_segment_bytes": 16 * MIB,
    "max_wal_size": 4 * MIB,
    "log_retention_bytes": 4 * MIB,
    "checkpoint_interval_sec": 0.2,
}


class Cluster:
    """Three nodes to begin with, with short logs, and a way to start more."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.addresses = dict(enumerate(free_addresses(4), start=1))
        self.settings = {**SETTINGS, **settings}
        self.nodes: dict[int, raftha.HaManager] = {}
        found_once(folder, {node_id: self.addresses[node_id] for node_id in (1, 2, 3)})
        for node_id in (1, 2, 3):
            self.start(node_id)

    def start(self, node_id: int) -> raftha.HaManager:
        config = raftha.HaConfig(
            node_id=node_id,
            address=self.addresses[node_id],
            data_dir=self.folder / str(node_id),
            members={node: self.addresses[node] for node in (1, 2, 3)},
            request_timeout_s=30,
            **self.settings,
        )
        self.nodes[node_id] = raftha.HaManager(config)
        self.nodes[node_id].start()
        return self.nodes[node_id]

    def leader(self) -> int:
        return wait_leader(self.nodes)

    def follower(self) -> int:
        leader = self.leader()
        return next(i for i in self.nodes if i != leader)

    def outgrow_log(self, node_id: int) -> None:
        """Write until the log on every other node begins behind what `node_id` has."""
        last = self.nodes[node_id].get_status().last_index if node_id in self.nodes else 0
        others = [node for i, node in self.nodes.items() if node.get_status().is_running]
        writer = next(node for node in others)
        for i in range(10_000):
            writer.put(b"fill%d" % (i % 50), VALUE)
            is_cut = all(node.get_status().first_index > last + 1 for node in others)
            if len(VALUE) * i > MEMORY_BYTES and is_cut:
                return
        raise AssertionError("the log never lets go")

    def has_equal_digests(self) -> bool:
        sequence = self.nodes[1].put(b"digest", b"here").sequence
        digests = {node.digest(sequence).hex for node in self.nodes.values()}
        return len(digests) == 1


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    for node in made.nodes.values():
        node.stop()


def test_a_node_added_after_the_log_was_cut_catches_up(cluster: Cluster) -> None:
    cluster.nodes[1].put(b"first", b"value")
    cluster.outgrow_log(4)
    new = cluster.start(4)
    cluster.nodes[1].add_replica(4, cluster.addresses[4])
    assert new.get_status().first_index > 1, "it never had the beginning of the log"
    assert new.get(b"first") == b"value"
    assert new.put(b"from", b"four")
    assert cluster.has_equal_digests()
    leftovers = {path.name for path in (cluster.folder / "4").iterdir()}
    assert not leftovers & {"incoming", "state.old"}
    wait_until(lambda: not list(cluster.folder.glob("*/outgoing/*")), "a snapshot is left over")


def test_a_node_that_was_down_for_long_catches_up_and_restarts(cluster: Cluster) -> None:
    gone = cluster.follower()
    node = cluster.nodes[gone]
    node.stop()
    cluster.outgrow_log(gone)
    node.start()
    wait_until(lambda: node.get(b"fill0", consistency="stale") is not None, "it doesn't catch up")
    assert cluster.has_equal_digests()
    node.stop()
    node.start()
    assert node.put(b"back", b"again")
    assert cluster.has_equal_digests()


def test_writes_go_on_without_an_election_while_a_snapshot_is_sent(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, snapshot_bytes_per_s=4 * MIB)
    try:
        gone = cluster.follower()
        cluster.nodes[gone].stop()
        cluster.outgrow_log(gone)
        leader = cluster.leader()
        term = cluster.nodes[leader].get_status().term
        node = cluster.start(gone)
        incoming = tmp_path / str(gone) / "incoming"
        wait_until(incoming.exists, "no snapshot is sent")
        during = 0
        while incoming.exists():
            cluster.nodes[leader].put(b"during%d" % (during % 10), VALUE)
            during += 1
        assert during > 10
        wait_until(
            lambda: node.get(b"during1", consistency="stale") is not None, "it doesn't catch up"
        )
        assert cluster.has_equal_digests()
        assert cluster.nodes[leader].get_status().term == term, "there was an election"
        sent = sum(1 for _ in (tmp_path / str(leader) / "outgoing").glob("*/data.mdb"))
        assert sent <= 1
    finally:
        for each in cluster.nodes.values():
            each.stop()


def test_a_damaged_chunk_is_noticed_and_sent_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Outgoing.read
    damaged: list[int] = []

    def read(self: Outgoing, snapshot_id: int, offset: int) -> Chunk | None:
        chunk = original(self, snapshot_id, offset)
        if chunk is None or damaged:
            return chunk
        damaged.append(offset)
        return chunk._replace(data=chunk.data[:-9] + b"x" + chunk.data[-8:])

    monkeypatch.setattr(Outgoing, "read", read)
    gone = cluster.follower()
    node = cluster.nodes[gone]
    node.stop()
    cluster.outgrow_log(gone)
    node.start()
    wait_until(lambda: node.get(b"fill0", consistency="stale") is not None, "no catching up")
    assert damaged
    assert cluster.has_equal_digests()


def test_a_damaged_snapshot_is_never_installed_and_another_is_made(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Incoming.check
    checks: list[bool] = []

    def check(self: Incoming, sha256: bytes, index: int) -> bool:
        if not checks:
            path = next((cluster.folder / str(gone)).glob("incoming/image/data.mdb"))
            with path.open("r+b") as file:
                file.seek(100_000)
                file.write(b"rotten")
        checks.append(original(self, sha256, index))
        return checks[-1]

    monkeypatch.setattr(Incoming, "check", check)
    gone = cluster.follower()
    node = cluster.nodes[gone]
    node.stop()
    cluster.outgrow_log(gone)
    node.start()
    wait_until(lambda: node.get(b"fill0", consistency="stale") is not None, "no catching up")
    assert checks == [False, True]
    assert cluster.has_equal_digests()


def test_the_next_leader_sends_a_snapshot_when_the_first_ends_midway(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, snapshot_bytes_per_s=2 * MIB)
    try:
        gone, leader = cluster.follower(), cluster.leader()
        cluster.nodes[gone].stop()
        cluster.outgrow_log(gone)
        node = cluster.start(gone)
        wait_until((tmp_path / str(gone) / "incoming").exists, "no snapshot is sent")
        cluster.nodes[leader].stop()
        wait_until(
            lambda: node.get(b"fill0", consistency="stale") is not None, "no catching up", 40
        )
        cluster.nodes[leader].start()
        assert cluster.has_equal_digests()
    finally:
        for each in cluster.nodes.values():
            each.stop()


def test_a_node_killed_while_it_receives_goes_on_where_it_was() -> None:
    """Real processes; which bytes were there before the kill is seen in the file."""
    settings = {**SETTINGS, "snapshot_bytes_per_s": 4 * MIB}
    with LocalCluster(nodes=3, settings=settings) as cluster:
        leader = cluster.wait_leader()
        gone = next(i for i in cluster.node_ids if i != leader)
        cluster.kill(gone)
        for i in range(260):
            cluster.call(leader, "SET", f"fill{i % 50}", VALUE)
        cluster.start_node(gone)
        folder = cluster.folder / f"node-{gone}" / "data" / "incoming"
        received = folder / "image" / "data.mdb"
        wait_until(
            lambda: received.exists() and received.stat().st_size > MIB, "no snapshot is sent"
        )
        cluster.kill(gone)
        offer, size = (folder / "OFFER").read_text(), received.stat().st_size
        cluster.start_node(gone)
        wait_until(lambda: received.stat().st_size > size, "it doesn't go on")
        assert (folder / "OFFER").read_text() == offer, "it began again"
        wait_until(lambda: not folder.exists(), "it isn't installed", 60)
        cluster.wait_ready()
        assert cluster.call(gone, "GET", "fill7") == VALUE


def test_a_node_that_cannot_open_a_snapshot_fails_and_can_start_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []

    def failing(data: Path, wal: Wal) -> bool:
        calls.append(data)
        if (data / "incoming" / "READY").exists() and len(calls) < 3:
            raise raftha.StorageFull("no space")
        return install(data, wal)

    monkeypatch.setattr("raftha.storage.directory.node_files.install", failing)
    gone = cluster.follower()
    node = cluster.nodes[gone]
    node.stop()
    cluster.outgrow_log(gone)
    node.start()
    wait_until(lambda: node.get_status().role == "failed", "it doesn't fail")
    assert "no space" in node.get_status().failure
    with pytest.raises(raftha.Stopped):
        node.get(b"fill0")
    node.start()
    wait_until(lambda: node.get(b"fill0", consistency="stale") is not None, "no catching up")
    assert cluster.has_equal_digests()
