"""Nodes whose log or state is damaged on the disk heal from the others: real processes, real files.

The tests damage files of a node that is down. A member that is back must have everything that was
ever acknowledged, in the log and in the state, and must count as a voter again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

import raftha
from raftha.config import MIB
from raftha.storage.log.disk import RealDisk
from raftha.storage.log.recovery import close_all, live_ids, recover
from raftha.storage.log.segment import HEADER_BYTES, scan
from raftha.storage.state.checkpoint import CheckpointStore
from raftha.testing import LocalCluster
from tests.support.conditions import wait_until
from tests.support.nodes import free_addresses, make_config

pytestmark = pytest.mark.slow

WRITES_MIN = 3
SETTINGS: dict[str, Any] = {"wal_segment_bytes": 16 * MIB}
OFTEN = {**SETTINGS, "checkpoint_interval_sec": 0.2, "max_wal_size": 4 * MIB}


def damage_log(data: Path) -> None:
    """Flip bits in the middle of a log."""
    disk, folder = RealDisk(), str(data / "wal")
    log = recover(disk, folder, live_ids(folder, os.listdir(folder)))
    segment = log.segments[0]
    *writes, last = scan(disk, segment, segment.end)
    close_all(disk, log.segments)
    # Damage to the last write could pass for a write that a crash tore.
    assert last
    writes = [write for write in writes if write.entries]
    assert len(writes) >= WRITES_MIN
    flip(Path(segment.path), writes[len(writes) // 2].offset + 60)


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def damage_state(data: Path, start: int, pages: int) -> None:
    """Overwrite pages of LMDB's file."""
    with (data / "state" / "data.mdb").open("r+b") as file:
        file.seek(start * 4096)
        file.write(Random(start).randbytes(pages * 4096))


def contents(folder: Path) -> dict[str, bytes]:
    """All files that matter, with their contents."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if path.name not in ("lock.mdb", "LOCK")
    }


def quarantined(data: Path) -> list[str]:
    return sorted(path.name.partition("-")[0] for path in (data / "quarantine").glob("*"))


def write(cluster: LocalCluster, node_id: int, start: int, count: int) -> None:
    for i in range(start, start + count):
        assert cluster.call(node_id, "SET", f"k{i}", f"v{i}") == b"OK"
        if i % 10 == 9:
            # A slow follower would take all entries in one write of its log.
            cluster.wait_caught_up()


def follower(cluster: LocalCluster) -> int:
    leader = cluster.wait_leader()
    return next(i for i in cluster.node_ids if i != leader)


def check_whole(cluster: LocalCluster, node_id: int, keys: int) -> None:
    """Check that the node has healed: it equals the others, it can lead, and nothing is lost."""
    wait_until(lambda: (cluster.status(node_id) or {}).get("is_healing") is False, "it heals on")
    cluster.wait_caught_up()
    assert len({digest["hex"] for digest in cluster.digests().values()}) == 1
    cluster.call(node_id, "RAFTHA", "FAILOVER", node_id)
    wait_until(lambda: cluster.leader() == node_id, "it can't lead")
    for i in range(keys):
        assert cluster.call(node_id, "GET", f"k{i}") == b"v%d" % i


def test_a_log_that_is_damaged_in_the_middle_heals_from_the_others() -> None:
    with LocalCluster(3, settings=SETTINGS) as cluster:
        write(cluster, 1, 0, 40)
        hurt = follower(cluster)
        other = next(i for i in cluster.node_ids if i != hurt)
        cluster.kill(hurt)
        damage_log(cluster.data_of(hurt))
        write(cluster, other, 40, 20)
        cluster.start_node(hurt)
        check_whole(cluster, hurt, 60)
        assert quarantined(cluster.data_of(hurt)) == ["wal"]
        told = cluster.log_path(hurt).read_text()
        assert "event=StorageDamaged" in told and "event=HealingEnded" in told
        assert f"{hurt} " and "0000000000000001.seg" in told, "where the damage is"
        # The healing is over: the next start does not heal again.
        cluster.kill(hurt)
        write(cluster, other, 60, 5)
        cluster.start_node(hurt)
        check_whole(cluster, hurt, 65)
        assert quarantined(cluster.data_of(hurt)) == ["wal"]


def test_a_directory_that_is_put_back_heals_while_its_leader_stays() -> None:
    """Nothing on that disk says that it had more; the leader knows."""
    with LocalCluster(3, settings=SETTINGS) as cluster:
        write(cluster, 1, 0, 20)
        hurt, leader = follower(cluster), cluster.wait_leader()
        data, earlier = cluster.data_of(hurt), cluster.folder / "earlier"
        cluster.kill(hurt)
        shutil.copytree(data, earlier)
        cluster.start_node(hurt)
        write(cluster, leader, 20, 20)
        cluster.wait_caught_up()
        cluster.kill(hurt)
        shutil.rmtree(data)
        shutil.copytree(earlier, data)
        cluster.start_node(hurt)
        wait_until(lambda: quarantined(data) == ["wal"], "it didn't notice")
        check_whole(cluster, hurt, 40)
        assert "event=StorageDamaged" in cluster.log_path(hurt).read_text()


def test_a_state_that_was_altered_offline_is_found_and_heals() -> None:
    """All checksums fit; only a comparison with the others shows that the state is another one."""
    settings = {**SETTINGS, "digest_interval_hours": 0.0003}
    with LocalCluster(3, settings=settings) as cluster:
        write(cluster, 1, 0, 20)
        cluster.wait_caught_up()
        hurt = follower(cluster)
        cluster.call(hurt, "RAFTHA", "DIGEST")  # A checkpoint.
        cluster.terminate(hurt)
        store = CheckpointStore(cluster.data_of(hurt) / "state")
        meta = store.meta()
        assert meta is not None
        store.write([(b"k3", b"other")], meta)
        store.close()
        cluster.start_node(hurt)
        wait_until(lambda: quarantined(cluster.data_of(hurt)) == ["state"], "it didn't notice")
        check_whole(cluster, hurt, 20)
        leader = cluster.wait_leader()
        wait_until(lambda: (cluster.status(leader) or {}).get("diverged") == [], "still so")
        told = "".join(cluster.log_path(node_id).read_text() for node_id in cluster.node_ids)
        assert "event=ReplicaDiverged" in told


def test_the_last_node_with_acknowledged_writes_says_that_the_others_lost_them() -> None:
    """A directory is put back while the only other node that had the writes is down.

    The two nodes that are left can't know of them. The third one must keep them, and say so.
    """
    with LocalCluster(3, settings=SETTINGS) as cluster:
        write(cluster, 1, 0, 10)
        leader = cluster.wait_leader()
        back, away = (i for i in cluster.node_ids if i != leader)
        cluster.terminate(back)
        shutil.copytree(cluster.data_of(back), cluster.folder / "earlier")
        cluster.start_node(back)
        cluster.wait_ready()
        cluster.terminate(away)
        for i in range(10):
            cluster.call(leader, "SET", f"late{i}", "acknowledged")
        cluster.kill(back)
        cluster.kill(leader)
        shutil.rmtree(cluster.data_of(back))
        shutil.copytree(cluster.folder / "earlier", cluster.data_of(back))
        cluster.start_node(back)
        cluster.start_node(away)
        now = cluster.wait_leader()
        assert cluster.call(now, "GET", "late0") is None, "nothing is left of it here"
        cluster.start_node(leader)
        wait_until(lambda: bool((cluster.status(leader) or {}).get("log_mismatch")), "it is silent")
        assert "event=LogsDiffer" in cluster.log_path(leader).read_text()


def test_a_leaders_log_heals_as_well() -> None:
    with LocalCluster(3, settings=OFTEN) as cluster:
        write(cluster, 1, 0, 40)
        hurt = cluster.wait_leader()
        cluster.kill(hurt)
        damage_log(cluster.data_of(hurt))
        other = next(i for i in cluster.node_ids if i != hurt)
        cluster.wait_leader()
        write(cluster, other, 40, 10)
        cluster.start_node(hurt)
        check_whole(cluster, hurt, 50)


@pytest.mark.parametrize(
    ("start", "pages"), [(0, 2), (0, 1_000_000)], ids=["meta pages", "all pages"]
)
def test_a_damaged_state_is_rebuilt_from_a_log_back_to_the_beginning(
    start: int, pages: int
) -> None:
    with LocalCluster(3, settings=OFTEN) as cluster:
        write(cluster, 1, 0, 40)
        hurt = follower(cluster)
        wait_for_checkpoint(cluster, hurt)
        cluster.kill(hurt)
        size = (cluster.data_of(hurt) / "state" / "data.mdb").stat().st_size
        damage_state(cluster.data_of(hurt), start, min(pages, size // 4096))
        cluster.start_node(hurt)
        check_whole(cluster, hurt, 40)
        assert quarantined(cluster.data_of(hurt)) == ["state"]
        assert "event=HealingEnded" not in cluster.log_path(hurt).read_text(), "nothing was lost"


def test_a_damaged_value_is_never_served_and_heals() -> None:
    """One bit of one value, in all copies that LMDB's file has of it."""
    with LocalCluster(3, settings=OFTEN) as cluster:
        write(cluster, 1, 0, 40)
        assert cluster.call(1, "SET", "precious", "value-of-precious") == b"OK"
        cluster.wait_caught_up()
        hurt = follower(cluster)
        wait_until(
            lambda: (
                b"value-of-precious" in (cluster.data_of(hurt) / "state" / "data.mdb").read_bytes()
            ),
            "no checkpoint has it",
        )
        cluster.terminate(hurt)
        path = cluster.data_of(hurt) / "state" / "data.mdb"
        path.write_bytes(path.read_bytes().replace(b"value-of-precious", b"value-of-trecious"))
        cluster.start_node(hurt)
        cluster.wait_caught_up()
        cluster.call(hurt, "RAFTHA", "FAILOVER", hurt)
        wait_until(lambda: cluster.leader() == hurt, "it can't lead")
        with contextlib.suppress(Exception):  # It leads, and fails when it reads the value.
            assert cluster.call(hurt, "GET", "precious") == b"value-of-precious"
        wait_until(lambda: cluster.leader() not in (None, hurt), "a damaged node leads on")
        assert cluster.call(cluster.wait_leader(), "GET", "precious") == b"value-of-precious"
        cluster.kill(hurt)
        cluster.start_node(hurt)
        check_whole(cluster, hurt, 40)
        assert cluster.call(hurt, "GET", "precious") == b"value-of-precious"
        assert "state" in quarantined(cluster.data_of(hurt))


def test_a_damaged_page_does_not_end_the_process() -> None:
    """Each page has the number of another, of which LMDB would make asserts at each start."""
    with LocalCluster(3, settings=OFTEN) as cluster:
        write(cluster, 1, 0, 40)
        hurt = follower(cluster)
        wait_for_checkpoint(cluster, hurt)
        cluster.kill(hurt)
        path = cluster.data_of(hurt) / "state" / "data.mdb"
        content = path.read_bytes()
        with path.open("r+b") as file:
            for page in range(2, len(content) // 4096):
                file.seek(page * 4096)
                file.write((page ^ 1).to_bytes(8, "little"))
        cluster.start_node(hurt)
        check_whole(cluster, hurt, 40)
        assert quarantined(cluster.data_of(hurt)) == ["state"]


def wait_for_checkpoint(cluster: LocalCluster, node_id: int) -> None:
    wait_until(
        lambda: ((cluster.status(node_id) or {}).get("checkpoint_index") or 0) > 10,
        "no checkpoint is taken",
    )


def test_log_and_state_both_damaged_heal_from_nothing() -> None:
    with LocalCluster(3, settings=OFTEN) as cluster:
        write(cluster, 1, 0, 40)
        hurt = follower(cluster)
        wait_for_checkpoint(cluster, hurt)
        cluster.kill(hurt)
        damage_log(cluster.data_of(hurt))
        damage_state(cluster.data_of(hurt), 0, 2)
        cluster.start_node(hurt)
        check_whole(cluster, hurt, 40)
        assert quarantined(cluster.data_of(hurt)) == ["state", "wal"]


@pytest.mark.parametrize("part", ["log", "header"])
def test_a_node_without_peers_does_not_touch_damaged_files(tmp_path: Path, part: str) -> None:
    (address,) = free_addresses(1)
    config = make_config(tmp_path, 1, {1: address})
    node = raftha.HaManager(config)
    node.start()
    for i in range(20):
        node.put(b"k%d" % i, b"v")
    node.stop()
    if part == "log":
        damage_log(tmp_path / "1")
    else:
        flip(next((tmp_path / "1" / "wal").glob("0*.seg")), HEADER_BYTES // 2)
    before = contents(tmp_path / "1")
    with pytest.raises(raftha.Corrupt, match="no other member has a copy"):
        raftha.HaManager(config).start()
    assert contents(tmp_path / "1") == before


class Cluster:
    """Three nodes in this process."""

    def __init__(self, folder: Path) -> None:
        members = dict(enumerate(free_addresses(3), start=1))
        self.nodes = {
            node_id: raftha.HaManager(make_config(folder, node_id, members)) for node_id in members
        }
        for node in self.nodes.values():
            node.start()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    for node in made.nodes.values():
        node.stop()


def test_a_healing_node_does_not_count_until_the_others_are_a_majority(
    cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "raftha")
    nodes = cluster.nodes
    for i in range(20):
        last = nodes[1].put(b"k%d" % i, b"v").sequence
        if i % 5 == 4:
            # A slow node would take all entries in one write of its log.
            wait_until(lambda: nodes[3].get_status().sequence >= last, "3 has it")  # noqa: B023
    for node in nodes.values():
        node.stop()
    damage_log(tmp_path / "3")
    nodes[1].start()
    nodes[3].start()
    assert nodes[3].get_status().is_healing
    with pytest.raises((raftha.Unavailable, raftha.Indeterminate)):
        nodes[1].put(b"two", b"of three, but one heals", timeout=2)
    assert nodes[3].get(b"k0", consistency="stale") in (None, b"v")
    nodes[2].start()
    wait_until(lambda: not nodes[3].get_status().is_healing, "it heals on")
    nodes[2].stop()
    assert nodes[3].put(b"two", b"of three")
    assert nodes[3].get(b"k19") == b"v"
