"""`LocalCluster`: starts, kills, pauses, restarts and wipes processes, and leaves none behind."""

from __future__ import annotations

import gc
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from raftha.client.resp import ReplyError
from raftha.errors import LocalClusterError, RequestTimeout, Unavailable
from raftha.testing import LocalCluster
from raftha.testing.processes import reserve_port
from tests.support.conditions import wait_until
from tests.support.nodes import process_ids_in

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """One cluster of three running nodes, for all tests that leave it intact."""
    with LocalCluster(3) as cluster:
        yield cluster


def test_a_cluster_replicates_and_tells_its_state(cluster: LocalCluster) -> None:
    leader = cluster.wait_ready()
    assert cluster.leader() == leader
    assert cluster.running == cluster.node_ids == (1, 2, 3)
    for node_id in cluster.node_ids:
        assert cluster.call(node_id, "SET", f"key-{node_id}", node_id) == b"OK"
    assert [cluster.call(1, "GET", f"key-{i}") for i in (1, 2, 3)] == [b"1", b"2", b"3"]
    statuses = cluster.statuses()
    assert {s["leader_id"] for s in statuses.values() if s} == {leader}
    digests = cluster.digests()
    assert len({(d["hex"], d["sequence"], d["keys"]) for d in digests.values()}) == 1


def test_a_killed_leader_is_replaced_and_catches_up_when_it_is_back(cluster: LocalCluster) -> None:
    leader = cluster.wait_ready()
    cluster.kill(leader)
    assert cluster.exit_code(leader) == -signal.SIGKILL
    assert leader not in cluster.running
    assert cluster.status(leader) is None
    successor = cluster.wait_leader()
    assert successor != leader
    cluster.call(successor, "SET", "killed", leader)
    with pytest.raises(Unavailable):
        cluster.call(leader, "PING")
    cluster.start_node(leader)
    cluster.wait_caught_up()
    assert len({d["hex"] for d in cluster.digests().values()}) == 1


def test_a_paused_leader_is_replaced_and_goes_on_as_a_follower(cluster: LocalCluster) -> None:
    leader = cluster.wait_ready()
    cluster.pause(leader)
    assert leader in cluster.running
    assert cluster.status(leader) is None
    with pytest.raises(RequestTimeout):
        cluster.call(leader, "PING", timeout_s=0.05)
    successor = cluster.wait_leader()
    assert successor != leader
    cluster.resume(leader)
    assert cluster.wait_ready() == successor


def test_a_terminated_node_ends_by_itself_with_0(cluster: LocalCluster) -> None:
    node_id = cluster.wait_ready()
    assert cluster.terminate(node_id) == 0
    cluster.restart(node_id)  # Not running: only started.
    cluster.wait_ready()
    process_count = len(process_ids_in(cluster.folder))
    cluster.restart(node_id)
    cluster.wait_ready()
    assert len(process_ids_in(cluster.folder)) == process_count == 3


def test_a_wiped_node_is_healed_by_the_others() -> None:
    """It has forgotten its vote and its acknowledgements: it counts only once it has them again."""
    with LocalCluster(3) as cluster:
        node_id = cluster.wait_ready()
        cluster.call(node_id, "SET", "before", "wiping")
        with pytest.raises(LocalClusterError, match="is running"):
            cluster.wipe(node_id)
        cluster.kill(node_id)
        cluster.wipe(node_id)
        assert not cluster.data_of(node_id).exists()
        leader = cluster.wait_leader()
        cluster.start_node(node_id)
        text = f"ReplicaHealed reporter={leader} node_id={node_id}"
        wait_until(lambda: text in cluster.log_path(leader).read_text(), "it is not healed", 10)
        assert cluster.call(leader, "GET", "before") == b"wiping"
        assert cluster.call(leader, "SET", "after", "wiping") == b"OK"
        cluster.wait_caught_up()
        assert cluster.call(node_id, "GET", "after") == b"wiping"


def test_all_nodes_stop_and_start_with_their_data(cluster: LocalCluster) -> None:
    cluster.wait_ready()
    cluster.call(1, "SET", "stopped", "all")
    cluster.pause(2)
    cluster.stop()
    assert [cluster.exit_code(i) for i in cluster.node_ids] == [0, 0, 0]
    assert cluster.running == ()
    cluster.start()
    assert cluster.call(3, "GET", "stopped") == b"all"


def test_error_replies_are_raised_as_the_servers_errors(cluster: LocalCluster) -> None:
    with pytest.raises(ReplyError, match="unknown"):
        cluster.call(1, "FROB")


def test_an_impossible_call_raises_an_error_that_says_why(cluster: LocalCluster) -> None:
    with pytest.raises(LocalClusterError, match="running already"):
        cluster.start_node(1)
    with pytest.raises(LocalClusterError, match="no node 4"):
        cluster.kill(4)
    with pytest.raises(LocalClusterError, match="1 to 9"):
        LocalCluster(10)
    cluster.kill(1)
    with pytest.raises(LocalClusterError, match="not running"):
        cluster.pause(1)
    cluster.start()


def test_a_wait_that_fails_reports_the_state_of_every_node(cluster: LocalCluster) -> None:
    cluster.wait_ready()
    cluster.kill(1)
    cluster.kill(2)
    with pytest.raises(LocalClusterError, match=r"no leader after 0\.1 s.*node 1 doesn't answer"):
        cluster.wait_leader(timeout_s=0.1)
    cluster.start()


def test_a_node_started_by_a_thread_outlives_the_thread(cluster: LocalCluster) -> None:
    """PR_SET_PDEATHSIG is about the thread that started the process."""
    cluster.kill(1)
    thread = threading.Thread(target=cluster.start_node, args=(1,))
    thread.start()
    thread.join()
    cluster.wait_ready()


def test_a_nodes_port_cannot_be_taken_while_it_is_down(cluster: LocalCluster) -> None:
    cluster.wait_ready()
    cluster.kill(1)
    port = int(cluster.addresses[1].partition(":")[2])
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))
    # A client that dials an unused port can get that same port as its own end.
    for _ in range(200):
        with socket.socket() as dialer, pytest.raises(ConnectionRefusedError):
            dialer.connect(("127.0.0.1", port))
    cluster.start()


def test_settings_reach_the_nodes_and_a_given_folder_stays(tmp_path: Path) -> None:
    settings = {"cluster_name": "ünique", "connections_max": 7}
    with LocalCluster(1, settings=settings, folder=tmp_path) as cluster:
        assert cluster.folder == tmp_path
        assert 'cluster_name = "ünique"\n' in cluster.config_of(1).read_text()
        cluster.call(1, "SET", "a", "b")
    assert process_ids_in(tmp_path) == []
    assert "serving" in cluster.log_path(1).read_text()
    with pytest.raises(LocalClusterError, match="already"):
        LocalCluster(1, folder=tmp_path)


def test_a_setting_that_a_file_cannot_hold_is_refused() -> None:
    with pytest.raises(LocalClusterError, match="object"):
        LocalCluster(1, settings={"cluster_name": object()})


def test_a_node_that_does_not_start_shows_its_log_and_keeps_the_folder(tmp_path: Path) -> None:
    with (
        pytest.raises(LocalClusterError, match=r"exit code 2(.|\n)*unknown setting frob") as caught,
        LocalCluster(1, settings={"frob": 1}),
    ):
        pass
    (kept,) = re.findall(r"kept in (\S+)", "\n".join(caught.value.__notes__))
    assert (Path(kept) / "node-1" / "node.log").exists()
    assert process_ids_in(Path(kept)) == []
    Path(kept).rename(tmp_path / "kept")


def test_a_clean_end_and_an_interrupt_leave_nothing() -> None:
    with LocalCluster(1) as cluster:
        folder = cluster.folder
    assert not folder.exists()
    cluster.close()  # It may be repeated.
    with pytest.raises(LocalClusterError, match="closed"):
        cluster.start_node(1)
    with pytest.raises(KeyboardInterrupt), LocalCluster(1) as cluster:
        raise KeyboardInterrupt
    assert not cluster.folder.exists()
    assert process_ids_in(cluster.folder) == []


def test_a_cluster_that_is_forgotten_is_cleaned_up() -> None:
    cluster = LocalCluster(1)
    cluster.start()
    folder = cluster.folder
    del cluster
    gc.collect()
    assert not folder.exists()
    assert process_ids_in(folder) == []


def test_a_server_of_the_users_own_can_be_started() -> None:
    command = [
        sys.executable,
        "-m",
        "raftha",
        "serve",
        "--log-level",
        "debug",
        "--config",
        "{config}",
    ]
    with LocalCluster(1, serve_command=command) as cluster:
        assert cluster.call(1, "PING") == b"PONG"


def test_nodes_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys; from raftha.testing import LocalCluster\n"
        "cluster = LocalCluster(2, folder=sys.argv[1]); cluster.start()\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        assert len(process_ids_in(tmp_path)) == 2
        parent.kill()
    wait_until(lambda: process_ids_in(tmp_path) == [], "they end", 10)


def test_reserved_ports_are_never_given_twice() -> None:
    reserved = [reserve_port() for _ in range(500)]
    assert len({s.getsockname()[1] for s in reserved}) == 500
    for one in reserved:
        one.close()


def test_status_of_the_command_line_shows_a_real_cluster(cluster: LocalCluster) -> None:
    leader = cluster.wait_ready()
    command = [sys.executable, "-m", "raftha", "status", "--json", cluster.addresses[1]]
    process = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True)
    document = json.loads(process.stdout)
    assert document["leader_id"] == leader
    assert {n["node_id"]: n["address"] for n in document["nodes"]} == cluster.addresses


def test_members_come_and_go_and_only_they_count() -> None:
    with LocalCluster(2) as cluster:
        cluster.call(1, "SET", "before", "1")
        new = cluster.add_node()
        assert new == 3
        assert cluster.wait_ready() in (1, 2)
        assert cluster.members() == (1, 2)
        cluster.add_replica(new)
        assert cluster.members() == (1, 2, 3)
        digests = cluster.digests()
        assert sorted(digests) == [1, 2, 3]
        assert len({d["hex"] for d in digests.values()}) == 1
        leader = cluster.leader()
        assert leader
        cluster.remove_replica(leader)
        left = sorted({1, 2, 3} - {leader})
        assert cluster.wait_ready() in left
        assert sorted(cluster.digests()) == left
        cluster.kill(leader)
        cluster.restart(left[0])
        assert cluster.wait_ready() in left


def test_members_come_and_go_by_the_command_line() -> None:
    with LocalCluster(1) as cluster:
        cluster.call(1, "SET", "key", "value")
        new = cluster.add_node()
        address = re.search(r'^address = "(.*)"$', cluster.config_of(new).read_text(), re.MULTILINE)
        assert address

        def raftha(*args: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "raftha", *args]
            return subprocess.run(
                command, cwd=REPOSITORY, capture_output=True, text=True, check=False
            )

        added = raftha("member", "add", str(new), address[1], "--connect", cluster.addresses[1])
        assert added.returncode == 0, added.stderr
        assert "2 of 2 voters are a majority" in added.stdout
        again = raftha("member", "add", str(new), "127.0.0.1:1", "--connect", cluster.addresses[1])
        assert again.returncode == 2
        assert "is a member already" in again.stderr
        config = str(cluster.config_of(1))
        removed = raftha("member", "remove", "1", "--config", config, "--json")
        assert removed.returncode == 0, removed.stderr
        assert cluster.wait_ready() == new
        assert cluster.call(new, "GET", "key") == b"value"
        shown = raftha("status", *cluster.addresses.values())
        assert "removed for good: 1" in shown.stdout
