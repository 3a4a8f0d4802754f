"""Host processes that fork: `raftha.runtime.forks`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import raftha
from raftha.config import MIB
from tests.integration.forking_host import CALLS
from tests.support.conditions import wait_until
from tests.support.nodes import free_addresses, make_config

ROOT = Path(__file__).parents[2]

LATER = ("recover_to_point", "recover_to_sequence")
FORKED = {
    **dict.fromkeys(CALLS, "Forked"),
    **dict.fromkeys(LATER, "InvalidRequest"),  # It has no settings for recovery.
    "stop": "returned",
}
"""The outcome that every call in a child should have."""


def write_config(folder: Path, node_id: int, members: dict[int, str]) -> Path:
    path = folder / f"node-{node_id}.toml"
    lines = [
        f"node_id = {node_id}",
        f'data_dir = "{node_id}"',
        f"wal_segment_bytes = {16 * MIB}",
        "[members]",
        *(f'{i} = "{address}"' for i, address in members.items()),
    ]
    path.write_text("\n".join(lines))
    return path


class Host:
    """A process of `forking_host`, and its child."""

    def __init__(self, kind: str, config: Path) -> None:
        command = [sys.executable, "-m", "tests.integration.forking_host", kind, str(config)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"{kind} ended with exit code {self.process.wait()}"
        self.report: dict[str, Any] = json.loads(line)
        self.child: int = self.report.get("child", 0)

    def is_child_there(self) -> bool:
        with contextlib.suppress(OSError):
            return f"{self.child} (" in Path(f"/proc/{self.child}/stat").read_text()
        return False

    def end(self) -> None:
        if self.child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.child, signal.SIGKILL)
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def host(kind: str, config: Path) -> Iterator[Host]:
    started = Host(kind, config)
    try:
        yield started
    finally:
        started.end()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fork", "fork_from_asyncio", "use_multiprocessing"])
def test_a_forked_process_is_told_and_keeps_nothing_when_its_parent_dies(
    tmp_path: Path, kind: str
) -> None:
    members = {1: free_addresses(1)[0]}
    with host(kind, write_config(tmp_path, 1, members)) as parent:
        assert parent.report["outcomes"] == FORKED
        parent.process.kill()
        parent.process.wait()
        # The child still runs, and yet directory and port are free, and the data is the parent's.
        with raftha.HaManager(make_config(tmp_path, 1, members)) as ha:
            assert ha.get(b"key") == b"by the parent"
            assert ha.put(b"key", b"by the next")
            assert parent.is_child_there()


@pytest.mark.slow
def test_peers_notice_the_death_of_a_parent_whose_child_lives_on(tmp_path: Path) -> None:
    """On either side of a dial: node 2 has one peer that it dials, and one that dials it."""
    members = dict(enumerate(free_addresses(3), start=1))
    with contextlib.ExitStack() as stack:
        others = [
            stack.enter_context(raftha.HaManager(make_config(tmp_path, i, members))) for i in (1, 3)
        ]

        def is_seen(node: raftha.HaManager) -> bool:
            (replica,) = (r for r in node.get_status().replicas if r.node_id == 2)
            return replica.connected

        parent = stack.enter_context(host("fork", write_config(tmp_path, 2, members)))
        assert parent.report["outcomes"]["put"] == "Forked"
        wait_until(lambda: all(map(is_seen, others)), "node 2 is connected")
        parent.process.kill()
        parent.process.wait()
        wait_until(lambda: not any(map(is_seen, others)), "the connections to node 2 are gone")
        assert parent.is_child_there()
        assert others[0].get(b"key") == b"by the parent"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_a_forked_process_that_exits_leaves_the_node_as_it_was(tmp_path: Path, name: str) -> None:
    """Also if the node has resolved a name, for which uvloop alone would have used threads."""
    members = {1: free_addresses(1)[0].replace("127.0.0.1", name)}
    with host("fork_and_leave", write_config(tmp_path, 1, members)) as parent:
        assert parent.report == {"status": 7}
        assert parent.process.wait(20) == 0
    with raftha.HaManager(make_config(tmp_path, 1, members)) as ha:
        assert ha.get_many([b"key", b"after"]) == [b"by the parent", b"the child"]


@pytest.mark.slow
def test_a_manager_stopped_before_the_fork_can_be_started_in_the_child(
    tmp_path: Path,
) -> None:
    members = {1: free_addresses(1)[0]}
    with host("become_a_daemon", write_config(tmp_path, 1, members)) as parent:
        assert parent.report["outcomes"] == {"get": "b'by the parent'", "put": "True"}
        assert parent.process.wait(20) == 0


@pytest.mark.slow
def test_a_local_cluster_outlives_a_process_forked_from_its_own(tmp_path: Path) -> None:
    config = write_config(tmp_path, 1, {1: free_addresses(1)[0]})
    with host("fork_beside_a_cluster", config) as parent:
        assert parent.report == {"status": 7, "written": "b'OK'"}
        assert parent.process.wait(20) == 0
