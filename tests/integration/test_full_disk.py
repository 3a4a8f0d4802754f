"""Full disks, for real: data directories on small tmpfs file systems, filled to the last byte.

One full node never makes the cluster read-only. A majority of full nodes refuses writes at once and
still serves reads. Once there is space, writes are accepted again without help.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from raftha.errors import Indeterminate, RafthaError, StorageFull, Unavailable
from raftha.testing import LocalCluster
from tests.support.conditions import wait_until
from tests.support.load import check_alike

MIB = 1 << 20
DISK_BYTES = 96 * MIB
RESERVE_BYTES = 8 * MIB
SETTINGS = {
    "wal_segment_bytes": 16 * MIB,
    "max_wal_size": MIB,
    "checkpoint_interval_sec": 0.5,
    "disk_reserve_bytes": RESERVE_BYTES,
}
VALUE = b"v" * (256 * 1024)
SEGMENTS = 5
"""More log than a full disk has room for: the segment in use, the spares, and some more."""

can_mount = sys.platform == "linux" and os.geteuid() == 0
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not can_mount, reason="only root on Linux can mount a tmpfs"),
]


class Tmpfs:
    """A file system of `DISK_BYTES` at `folder`, until `close`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        options = ["-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
        done = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"a tmpfs can't be mounted: {done.stderr.strip()}")

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)

    def fill(self) -> None:
        """Leave no free byte."""
        with (self.folder / "ballast").open("ab", buffering=0) as ballast:
            with contextlib.suppress(OSError):
                while True:
                    ballast.write(bytes(MIB))
            with contextlib.suppress(OSError):
                while True:
                    ballast.write(bytes(4096))

    def free(self) -> None:
        """Free the space that `fill` took."""
        (self.folder / "ballast").unlink()


Disks = tuple[LocalCluster, dict[int, Tmpfs]]


@pytest.fixture
def on_disks(tmp_path: Path) -> Iterator[Disks]:
    cluster = LocalCluster(nodes=3, settings=SETTINGS, folder=tmp_path / "cluster")
    with contextlib.ExitStack() as stack:
        disks = {node_id: Tmpfs(cluster.data_of(node_id)) for node_id in cluster.node_ids}
        for disk in disks.values():
            stack.callback(disk.close)
        stack.enter_context(cluster)
        for node_id in cluster.node_ids:  # The spare segments and the reserve are there.
            data = cluster.data_of(node_id)
            wait_until(partial(has_spare, data), "no spare")
        yield cluster, disks


def has_spare(data: Path) -> bool:
    return any((data / "wal").glob("spare-*.seg")) and (data / "reserve").exists()


def write(cluster: LocalCluster, node_id: int, key: str, value: bytes = b"value") -> None:
    """One write that must be acknowledged; repeated while leadership moves."""

    def is_written() -> bool:
        try:
            return bool(cluster.call(node_id, "SET", key, value, timeout_s=5) == b"OK")
        except (Unavailable, Indeterminate):
            return False

    wait_until(is_written, f"{key} can't be written through node {node_id}")


def is_refusing(cluster: LocalCluster, node_id: int) -> bool:
    """True if a write fails at once because the disk is full."""
    began = time.monotonic()
    try:
        cluster.call(node_id, "SET", "small", "write")
    except StorageFull:
        assert time.monotonic() - began < 2, "at once"
        return True
    except RafthaError:
        return False
    return False


def is_taking(cluster: LocalCluster, node_id: int) -> bool:
    try:
        return bool(cluster.call(node_id, "SET", "small", "write", timeout_s=5) == b"OK")
    except RafthaError:
        return False


def position(cluster: LocalCluster, node_id: int, name: str) -> int:
    status = cluster.status(node_id)
    assert status is not None
    return int(status[name])


def check_equal(cluster: LocalCluster) -> None:
    assert check_alike(cluster) == {1, 2, 3}


def write_until_full(cluster: LocalCluster, node_id: int) -> int:
    """Write until a write is refused as expected; return how many were acknowledged."""
    for number in range(SEGMENTS * 16 * MIB // len(VALUE)):
        try:
            assert cluster.call(node_id, "SET", f"key/{number}", VALUE) == b"OK"
        except StorageFull:
            return number
    raise AssertionError("no write was refused")


@pytest.mark.parametrize("place", ["leader", "follower"])
def test_one_full_node_refuses_writers_and_the_others_go_on(on_disks: Disks, place: str) -> None:
    cluster, disks = on_disks
    leader = cluster.wait_ready()
    full = leader if place == "leader" else leader % 3 + 1
    others = [node_id for node_id in cluster.node_ids if node_id != full]
    write(cluster, full, "before")
    disks[full].fill()
    filled_at = position(cluster, full, "last_index")
    for number in range(SEGMENTS * 16 * MIB // len(VALUE)):
        write(cluster, others[number % 2], f"key/{number % 4}", VALUE)
    wait_until(lambda: is_refusing(cluster, full), "it takes writes")
    assert cluster.wait_leader() in others
    assert cluster.exit_code(full) is None
    for node_id in others:
        assert cluster.call(node_id, "GET", "before") == b"value"
    assert "event=StorageIsFull" in cluster.log_path(full).read_text(encoding="utf-8")
    # Checkpoints, which free log, go on: the reserve is for them.
    assert position(cluster, full, "checkpoint_index") > filled_at
    # A full disk is no reason not to start.
    cluster.restart(full)
    wait_until(lambda: is_refusing(cluster, full), "it takes writes")

    disks[full].free()
    wait_until(lambda: is_taking(cluster, full), "it still refuses")
    check_equal(cluster)
    assert "event=StorageHasSpace" in cluster.log_path(full).read_text(encoding="utf-8")


def test_a_full_node_that_can_make_no_checkpoint_still_helps_a_new_leader(on_disks: Disks) -> None:
    cluster, disks = on_disks
    leader = cluster.wait_ready()
    full, spared = (node_id for node_id in cluster.node_ids if node_id != leader)
    disks[full].fill()
    for number in range(2 * RESERVE_BYTES // len(VALUE)):  # More than fits into the reserve.
        write(cluster, spared, f"key/{number}", VALUE)
    wait_until(lambda: is_refusing(cluster, full), "it takes writes")
    # Now the entry with which a leader begins needs the full node's log, which has room for it.
    cluster.kill(leader)
    assert cluster.call(spared, "GET", "key/0") == VALUE, "a linearizable read"


def test_two_full_nodes_refuse_writes_and_serve_reads_until_one_has_space(
    on_disks: Disks,
) -> None:
    cluster, disks = on_disks
    cluster.wait_ready()
    full, also_full, spared = cluster.node_ids
    disks[full].fill()
    disks[also_full].fill()
    written = write_until_full(cluster, spared)
    assert written > 0
    for node_id in cluster.node_ids:
        wait_until(partial(is_refusing, cluster, node_id), "it takes writes")
    for node_id in cluster.node_ids:
        assert cluster.call(node_id, "GET", "key/0") == VALUE, "a linearizable read"
    # The logs still have room for small entries, so even another leader can take over.
    leader = cluster.wait_leader()
    cluster.kill(leader)
    cluster.start_node(leader)
    cluster.wait_ready()
    for node_id in cluster.node_ids:
        assert cluster.call(node_id, "GET", "key/0") == VALUE

    disks[also_full].free()
    for node_id in (also_full, spared):
        wait_until(partial(is_taking, cluster, node_id), "it still refuses")
    assert is_refusing(cluster, full)
    disks[full].free()
    wait_until(lambda: is_taking(cluster, full), "it still refuses")
    # One by one: all values on the disks may be more than one MGET returns.
    for number in range(written):
        assert cluster.call(spared, "GET", f"key/{number}") == VALUE
    check_equal(cluster)
