"""What ends a node, and what doesn't: a failing disk, a broken invariant, a lost data directory."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import raftha
from raftha.config import MIB
from raftha.runtime import runtime
from raftha.storage.log.disk import RealDisk
from tests.support.conditions import wait_until
from tests.support.nodes import free_addresses, make_config


class BreakableDisk(RealDisk):
    """The real disk, until the test makes it fail; only for the log in `folder`."""

    def __init__(self) -> None:
        super().__init__()
        self.error = 0
        self.is_full = self.has_no_descriptor = False
        self.delay_s = 0.0
        self.hang = threading.Event()
        self.hang.set()

    def fdatasync(self, handle: int) -> None:
        self.hang.wait()
        threading.Event().wait(self.delay_s)
        if self.error:
            raise OSError(self.error, "the disk was told to fail")
        super().fdatasync(handle)

    def open(self, path: str, *, create: bool = False) -> int:
        if create and self.is_full:
            raise OSError(errno.ENOSPC, "no space left on device")
        if self.has_no_descriptor:
            raise OSError(errno.EMFILE, "too many open files")
        return super().open(path, create=create)


Cluster = tuple[list[raftha.HaManager], list[BreakableDisk]]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Three nodes in this process, each with a disk that can be made to fail."""
    disks: list[BreakableDisk] = []

    def make_disk() -> BreakableDisk:
        disks.append(BreakableDisk())
        return disks[-1]

    monkeypatch.setattr(runtime, "RealDisk", make_disk)
    members = dict(enumerate(free_addresses(3), start=1))
    nodes = [raftha.HaManager(make_config(tmp_path, node_id, members)) for node_id in members]
    for node in nodes:
        node.start()
    nodes[0].put(b"before", b"1")
    yield nodes, disks
    for node in nodes:
        node.stop()


def start_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, delay_s: float) -> None:
    """Start nodes whose every sync takes that long, and wait for a leader that stays."""
    disks: list[BreakableDisk] = []

    def make_disk() -> BreakableDisk:
        disks.append(BreakableDisk())
        return disks[-1]

    monkeypatch.setattr(runtime, "RealDisk", make_disk)
    members = dict(enumerate(free_addresses(count), start=1))
    nodes = [raftha.HaManager(make_config(tmp_path, node_id, members)) for node_id in members]
    try:
        for node in nodes:
            node.start()
        for disk in disks:
            disk.delay_s = delay_s
        assert nodes[0].put(b"slow", b"but sure")
        term = nodes[0].get_status().term
        for _ in range(3):
            assert nodes[-1].put(b"slow", b"but sure")
        assert nodes[0].get_status().term == term
        assert term < 10
    finally:
        for disk in disks:
            disk.delay_s = 0.0
        for node in nodes:
            node.stop()


@pytest.mark.slow
@pytest.mark.parametrize(("count", "delay_s"), [(1, 0.03), (1, 0.1), (3, 0.1), (3, 0.25)])
def test_a_slow_disk_does_not_keep_a_leader_from_being_elected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, delay_s: float
) -> None:
    start_slow(tmp_path, monkeypatch, count, delay_s)


def leader_of(nodes: list[raftha.HaManager]) -> int:
    """The leader's place in the list."""
    wait_until(lambda: any(node.get_status().is_primary for node in nodes), "there is no leader")
    return next(i for i, node in enumerate(nodes) if node.get_status().is_primary)


@pytest.mark.slow
def test_a_leader_whose_disk_fails_ends_and_the_others_go_on(cluster: Cluster) -> None:
    nodes, disks = cluster
    failed = leader_of(nodes)
    disks[failed].error = errno.EIO
    with pytest.raises((raftha.Indeterminate, raftha.Stopped)):
        nodes[failed].put(b"lost?", b"1")
    status = nodes[failed].get_status()
    assert (status.role, status.is_running, status.is_primary) == ("failed", False, False)
    assert status.leader_id is None
    assert "told to fail" in status.failure
    disks[failed].error = 0
    for call in (lambda: nodes[failed].put(b"x", b"1"), lambda: nodes[failed].get(b"before")):
        with pytest.raises(raftha.Stopped):
            call()
    others = [node for node in nodes if node is not nodes[failed]]
    assert others[0].put(b"after", b"2")
    assert others[1].get(b"after") == b"2"
    assert others[1].get(b"before") == b"1"


@pytest.mark.slow
def test_a_follower_whose_disk_fails_stops_no_writes_and_can_come_back(
    cluster: Cluster,
) -> None:
    nodes, disks = cluster
    failed = (leader_of(nodes) + 1) % 3
    others = [node for node in nodes if node is not nodes[failed]]
    disks[failed].error = errno.EIO
    for i in range(20):
        assert others[i % 2].put(b"k%d" % i, b"v")
    wait_until(lambda: nodes[failed].get_status().role == "failed", "it has not noticed")
    nodes[failed].stop()
    nodes[failed].start()
    assert nodes[failed].get(b"k19") == b"v"


@pytest.mark.slow
def test_a_leader_whose_disk_hangs_hands_over_and_writes_go_on(cluster: Cluster) -> None:
    nodes, disks = cluster
    hung = leader_of(nodes)
    others = [node for node in nodes if node is not nodes[hung]]
    nodes[hung].put(b"before", b"1")  # Its session is open, so writes are sent from here on.
    disks[hung].hang.clear()
    try:
        with pytest.raises(raftha.Indeterminate):
            nodes[hung].put(b"who", b"knows", timeout=1)
        assert others[0].put(b"after", b"2", timeout=10)
        assert others[1].get(b"after") == b"2"
        assert nodes[hung].get_status().leader_id != hung + 1
    finally:
        disks[hung].hang.set()
    assert nodes[hung].get(b"after") == b"2"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "want"),
    [("leader", "is_full"), ("follower", "is_full"), ("leader", "has_no_descriptor")],
)
def test_a_full_disk_refuses_writers_and_goes_on_by_itself(
    cluster: Cluster, place: str, want: str
) -> None:
    """So does a host that has used up its descriptors."""
    nodes, disks = cluster
    full = (leader_of(nodes) + (place == "follower")) % 3
    others = [node for node in nodes if node is not nodes[full]]
    setattr(disks[full], want, True)
    value = bytes(MIB)
    for i in range(70):  # More than fits into the preallocated segments.
        assert others[i % 2].put(b"k%d" % (i % 8), value, timeout=30)
    wait_until(lambda: is_refusing(nodes[full]), "it has not noticed")
    assert nodes[full].get_status().is_running
    assert nodes[full].get(b"before", consistency="stale") == b"1"
    assert others[0].get(b"before") == b"1"
    setattr(disks[full], want, False)
    assert others[0].put(b"after", b"2")
    assert nodes[full].get(b"after") == b"2"
    # It writes again, but takes in new writes only once it has preallocated space, too.
    wait_until(lambda: not is_refusing(nodes[full]), "it has not gone on")
    assert nodes[full].put(b"again", b"3")


def is_refusing(node: raftha.HaManager) -> bool:
    try:
        node.put(b"small", b"write", timeout=0.3)
    except raftha.StorageFull:
        return True
    except raftha.RafthaError:
        return False
    return False


@pytest.mark.slow
def test_every_caller_gets_the_failure_at_once(cluster: Cluster) -> None:
    """None of them waits for its deadline, which is 20 s away."""
    nodes, disks = cluster
    failed = leader_of(nodes)
    errors: list[Exception] = []

    def work(number: int) -> None:
        try:
            while True:
                nodes[failed].put(b"k%d" % number, b"v")
        except raftha.RafthaError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    disks[failed].error = errno.EIO
    for thread in threads:
        thread.join()
    assert time.monotonic() - began < 15
    assert {type(error) for error in errors} <= {raftha.Disconnected, raftha.Stopped}


def test_a_command_that_calls_its_manager_is_refused_and_the_node_goes_on(tmp_path: Path) -> None:
    """It would wait for itself, on every node; a stop would end every node, at each start."""
    managers: list[raftha.HaManager] = []

    class Reentrant(raftha.StateMachine):
        @raftha.command
        def call(self, txn: raftha.Transaction, method: str, *args: bytes) -> Any:
            return getattr(managers[0], method)(*args)

    config = make_config(tmp_path, 1, {1: free_addresses(1)[0]})
    with raftha.HaManager(config, state_machine=Reentrant()) as ha:
        managers.append(ha)
        ha.put(b"a", b"1")
        for call in (("put", b"b", b""), ("get", b"a"), ("get_status",), ("stop",), ("start",)):
            with pytest.raises(raftha.CommandFailed, match="can't call the manager"):
                ha.execute("call", *call)
        assert ha.scan() == [(b"a", b"1")]


def test_a_broken_invariant_ends_the_node_and_not_the_process(tmp_path: Path) -> None:
    class Broken(raftha.StateMachine):
        @raftha.command(trial=False)
        def explode(self, txn: raftha.Transaction) -> Any:
            raise MemoryError("not the command's fault")

    config = make_config(tmp_path, 1, {1: free_addresses(1)[0]})
    with raftha.HaManager(config, state_machine=Broken()) as ha:
        ha.put(b"a", b"1")
        with pytest.raises((raftha.Disconnected, raftha.Stopped)):
            ha.execute("explode")
        assert ha.get_status().role == "failed"
        assert "MemoryError" in ha.get_status().failure


def test_a_data_directory_of_another_cluster_is_refused_and_unharmed(tmp_path: Path) -> None:
    addresses = free_addresses(2)
    config = make_config(tmp_path, 1, {1: addresses[0]})
    with raftha.HaManager(config) as ha:
        ha.put(b"a", b"1")
    other = raftha.HaConfig(
        node_id=1, data_dir=config.data_dir, members={1: addresses[1]}, cluster_name="other"
    )
    with pytest.raises(raftha.ConfigError, match="belongs to node 1 of cluster"):
        raftha.HaManager(other).start()
    with raftha.HaManager(config) as ha:
        assert ha.get(b"a") == b"1"


def test_acknowledged_data_that_was_damaged_is_refused(tmp_path: Path) -> None:
    config = make_config(tmp_path, 1, {1: free_addresses(1)[0]})
    with raftha.HaManager(config) as ha:
        for i in range(10):
            ha.put(b"key-%d" % i, b"a value to be damaged")
    (segment,) = (tmp_path / "1" / "wal").glob("0*.seg")
    content = bytearray(segment.read_bytes())
    place = content.index(b"a value to be damaged")
    content[place] ^= 1
    segment.write_bytes(content)
    with pytest.raises(raftha.Corrupt) as corrupt:
        raftha.HaManager(config).start()
    assert corrupt.value.path == segment
    assert 0 < corrupt.value.offset <= place
    content[place] ^= 1
    segment.write_bytes(content)
    with raftha.HaManager(config) as ha:
        assert ha.count() == 10


def test_a_connection_that_never_speaks_is_dropped_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftha.net.connection.HANDSHAKE_TIMEOUT_S", 0.05)
    members = {1: free_addresses(1)[0]}
    host, port = members[1].split(":")
    with (
        raftha.HaManager(make_config(tmp_path, 1, members)),
        socket.create_connection((host, int(port)), timeout=10) as silent,
        contextlib.suppress(ConnectionResetError),
    ):
        assert silent.recv(1) == b""


@pytest.mark.slow
def test_a_handshake_that_fails_unawaited_does_not_end_the_node(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As uvloop's `create_connection` leaves it when it is cancelled just as it is reset."""
    members = dict(enumerate(free_addresses(1), start=1))
    with raftha.HaManager(make_config(tmp_path, 1, members)) as node:
        assert node._runtime is not None
        loop = node._runtime._loop

        def fail_unseen() -> None:
            loop.create_future().set_exception(ConnectionResetError("reset by peer"))

        loop.call_soon_threadsafe(fail_unseen)
        wait_until(lambda: "never retrieved: reset by peer" in caplog.text, "it is not logged")
        assert node.put(b"still", b"here")
