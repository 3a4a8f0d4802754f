"""Disks that fail or slow down under real processes: one node ends or hands over, the others go on.

The errors are the kernel's: the data directories are on file systems of `tests.faultfs`.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from raftha.errors import Disconnected, Indeterminate, RafthaError, Stopped
from raftha.testing import LocalCluster
from tests.faultfs.cluster import cluster_on_disks
from tests.faultfs.faults import Fault
from tests.faultfs.mount import FaultFs, why_not
from tests.support.conditions import wait_until
from tests.support.load import check_alike

SETTINGS = {"wal_segment_bytes": 16 << 20, "checkpoint_interval_sec": 1.0}
SLOW_S = 2.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=f"no FUSE: {why_not()}"),
]
Disks = tuple[LocalCluster, dict[int, FaultFs]]


@pytest.fixture
def on_disks(tmp_path: Path) -> Iterator[Disks]:
    with cluster_on_disks(tmp_path, SETTINGS) as made:
        yield made


def choose(cluster: LocalCluster, place: str) -> tuple[int, list[int]]:
    """The node that gets the fault, and the others."""
    leader = cluster.wait_ready()
    hurt = leader if place == "leader" else leader % 3 + 1
    return hurt, [node_id for node_id in cluster.node_ids if node_id != hurt]


def term_of(cluster: LocalCluster, node_id: int) -> int:
    status = cluster.status(node_id)
    assert status is not None
    return int(status["term"])


def has_failed(cluster: LocalCluster, node_id: int) -> bool:
    status = cluster.status(node_id)
    return status is not None and status["role"] == "failed"


def written_through(cluster: LocalCluster, node_ids: list[int], prefix: str, count: int) -> None:
    """Make so many writes, one after the other, each repeated until it is acknowledged."""
    for number in range(count):
        key = f"{prefix}/{number}"

        def is_written(node_id: int = node_ids[number % len(node_ids)], key: str = key) -> bool:
            try:
                return bool(cluster.call(node_id, "SET", key, "value") == b"OK")
            except RafthaError:
                return False

        wait_until(is_written, f"{key} can't be written")


def operations_on(disk: FaultFs, pattern: str) -> dict[str, tuple[int, int]]:
    """The operations on the log, or on the state, since the file system was mounted.

    Spare segments, which another thread may be making, are not part of the log.
    """
    folder = pattern.partition("/")[0]
    return {
        name: count
        for name, count in disk.counts().items()
        if f" {folder}/" in name and "/spare-" not in name
    }


@pytest.mark.parametrize(
    ("operation", "pattern"),
    [("sync", "wal/0*.seg"), ("write", "wal/0*.seg"), ("sync", "state/data.mdb")],
    ids=["sync-of-the-log", "write-of-the-log", "sync-of-a-checkpoint"],
)
def test_a_node_whose_disk_fails_once_ends_for_good_and_the_others_go_on(
    on_disks: Disks, operation: str, pattern: str
) -> None:
    """One EIO. A second try would succeed, but there is none, since it would prove nothing."""
    cluster, disks = on_disks
    fault = Fault(operation=operation, pattern=pattern, code=errno.EIO, times=1)
    for place in ("follower", "leader"):
        hurt, others = choose(cluster, place)
        written_through(cluster, [hurt], f"{place}/before", 1)
        before = operations_on(disks[hurt], pattern)
        disks[hurt].set_faults(fault)
        written_through(cluster, others, f"{place}/during", 5)
        wait_until(partial(has_failed, cluster, hurt), "it has not noticed")
        after = operations_on(disks[hurt], pattern)
        assert failures(after) == failures(before) + 1
        check_ended(cluster, hurt)

        # The others go on, and the disk is left alone.
        written_through(cluster, others, f"{place}/after", 20)
        assert operations_on(disks[hurt], pattern) == after

        # On a disk that works it is a member like any other.
        cluster.restart(hurt)
        cluster.wait_ready()
        check_all_there(cluster, place)


def failures(operations: dict[str, tuple[int, int]]) -> int:
    return sum(failed for _, failed in operations.values())


def check_ended(cluster: LocalCluster, node_id: int) -> None:
    """The node answers no more calls and reports why; its process lives."""
    with pytest.raises((Stopped, Indeterminate)):
        cluster.call(node_id, "SET", "refused", "value")
    status = cluster.status(node_id)
    assert status is not None
    assert (status["is_running"], status["is_primary"]) == (False, False)
    assert "Input/output error" in status["failure"]
    assert cluster.exit_code(node_id) is None
    assert "event=StorageFailure" in cluster.log_path(node_id).read_text(encoding="utf-8")


def check_all_there(cluster: LocalCluster, prefix: str) -> None:
    """Acknowledged writes are there, on all nodes alike."""
    assert check_alike(cluster) == {1, 2, 3}
    for part, count in (("before", 1), ("during", 5), ("after", 20)):
        keys = [f"{prefix}/{part}/{number}" for number in range(count)]
        assert cluster.call(cluster.wait_leader(), "MGET", *keys) == [b"value"] * count


def test_slow_syncs_make_a_leader_hand_over_and_a_follower_hold_up_nothing(
    on_disks: Disks,
) -> None:
    """Heartbeats go on, so no node deposes the leader; it watches its own disk."""
    cluster, disks = on_disks
    fault = Fault(operation="sync", pattern="wal/*", wait_s=SLOW_S)
    slow, others = choose(cluster, "leader")
    disks[slow].set_faults(fault)
    began = time.monotonic()
    with pytest.raises((Disconnected, Indeterminate)):
        cluster.call(slow, "SET", "slow/first", "value", timeout_s=0.2)
    wait_until(lambda: cluster.leader() in others, "leadership does not move")
    moved_s = time.monotonic() - began
    # The disk is still slow, but now it is a follower's.
    term = term_of(cluster, others[0])
    slowest_s = slowest_write_s(cluster, others, "slow", 200)
    print(f"leadership moved after {moved_s:.2f} s, slowest write after that {slowest_s:.3f} s")
    assert moved_s < 3 * SLOW_S, "within three syncs"
    assert slowest_s < SLOW_S, "no write waits for the slow disk any more"
    assert term_of(cluster, others[0]) == term, "and leadership stays where it is"
    assert "event=HealthCheckFailed" in cluster.log_path(slow).read_text(encoding="utf-8")

    disks[slow].set_faults()
    assert check_alike(cluster) == {1, 2, 3}


def slowest_write_s(cluster: LocalCluster, node_ids: list[int], prefix: str, count: int) -> float:
    """How long the slowest of so many writes took."""
    slowest = 0.0
    for number in range(count):
        began = time.monotonic()
        cluster.call(node_ids[number % len(node_ids)], "SET", f"{prefix}/{number}", "value")
        slowest = max(slowest, time.monotonic() - began)
    return slowest
