"""Rolling upgrades in real processes: forward and back under load, and nodes that are too old."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import raftha
from raftha.config import MIB
from raftha.errors import UpgradePending, UpgradeRequired
from raftha.events import ReplicaUnsupported
from tests.integration.upgrading_host import Old
from tests.support.conditions import wait_until
from tests.support.nodes import found_once, free_addresses, make_config, wait_leader

ROOT = Path(__file__).parents[2]


class Program:
    """A process of `upgrading_host`."""

    def __init__(self, config: Path, build: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.upgrading_host", str(config), build],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_started(self) -> None:
        assert self._receive() == {}

    def ask(self, question: str) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{question}\n")
        self.process.stdin.flush()
        return self._receive()

    def wait_for(self, question: str, is_right: Callable[[Any], bool]) -> None:
        """Ask until the answer is right."""
        wait_until(lambda: is_right(self.ask(question)), question)

    def stop(self) -> tuple[int, int]:
        """End it in good order; how many writes were acknowledged, and how many are unknown."""
        acknowledged, unknown = self.ask("end")
        self.errors()
        return acknowledged, unknown

    def _receive(self) -> Any:
        assert self.process.stdout is not None
        timer = threading.Timer(60, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        assert line, self.errors()
        return json.loads(line)

    def errors(self) -> str:
        """What a process that has ended wrote to stderr."""
        _, errors = self.process.communicate(timeout=20)
        return errors


class Cluster:
    """Three nodes, each of some build; counts what all their loads were told."""

    def __init__(self, folder: Path) -> None:
        members = dict(enumerate(free_addresses(3), start=1))
        found_once(folder, members)
        self._configs = {}
        for node_id in members:
            table = "\n".join(f'{i} = "{address}"' for i, address in members.items())
            config = folder / f"{node_id}.toml"
            config.write_text(
                f'node_id = {node_id}\ndata_dir = "{folder}/{node_id}"\nlisten = ""\n'
                f"wal_segment_bytes = {16 << 20}\ndisk_reserve_bytes = 0\n[members]\n{table}\n"
            )
            self._configs[node_id] = config
        self.programs: dict[int, Program] = {}
        self.acknowledged = self.unknown = 0

    def start(self, *node_ids: int, build: str) -> None:
        for node_id in node_ids:
            self.programs[node_id] = Program(self._configs[node_id], build)
        for node_id in node_ids:
            self.programs[node_id].wait_started()

    def run(self, node_id: int, build: str) -> None:
        """Change one node to a build, as a rolling upgrade does."""
        self.stop(node_id)
        self.start(node_id, build=build)

    def stop(self, node_id: int) -> None:
        acknowledged, unknown = self.programs.pop(node_id).stop()
        self.acknowledged += acknowledged
        self.unknown += unknown

    def refused(self, node_id: int, build: str) -> str:
        """What a node that refuses to start with a build says."""
        program = Program(self._configs[node_id], build)
        errors = program.errors()
        assert program.process.returncode == 1
        return errors

    def close(self) -> None:
        for program in self.programs.values():
            program.process.kill()
            program.errors()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.close()


def test_a_rolling_upgrade_under_load_goes_forward_and_back(cluster: Cluster) -> None:
    cluster.start(1, 2, 3, build="old")
    cluster.run(3, "new")
    new = cluster.programs[3]
    new.wait_for("status", lambda status: status["waits_for"] == [1, 2])
    refusal = "UpgradePending: not all members know 'double': node 1, 2"
    new.wait_for("double total", lambda answer: answer.startswith(refusal))
    assert new.ask("status")["machine"] == 1
    cluster.run(3, "old")
    for node_id in (3, 2, 1):
        cluster.run(node_id, "new")
    programs = cluster.programs
    for program in programs.values():
        program.wait_for("status", lambda status: status["machine"] == 2)
        assert program.ask("status")["protocol"] == 8
    assert isinstance(programs[1].ask("double other"), int)

    # The build before can't take part any more, says so, and harms nothing.
    cluster.stop(1)
    errors = cluster.refused(1, "old")
    assert "UpgradeRequired" in errors
    assert "nothing is lost" in errors
    cluster.start(1, build="new")
    programs[1].wait_for("get switched", bool)
    for program in programs.values():
        program.ask("pause")
    total = int(programs[1].ask("get total"))
    digests = {tuple(program.ask("digest")) for program in programs.values()}
    assert len(digests) == 1
    for node_id in (1, 2, 3):
        cluster.stop(node_id)
    assert cluster.acknowledged <= total <= cluster.acknowledged + cluster.unknown


def test_a_build_without_a_common_protocol_is_refused_by_name(cluster: Cluster) -> None:
    cluster.start(1, 2, build="old")
    cluster.start(3, build="future")
    for node_id in (1, 2):
        program = cluster.programs[node_id]
        program.wait_for("refused", bool)
        (refused,) = program.ask("refused")
        assert refused == (
            f"3: node 3 speaks protocol 9 to 9, node {node_id} 6 to 6: upgrade node {node_id}"
        )
        assert program.ask("status")["role"] in ("leader", "follower")


class Lacking(raftha.StateMachine):
    """A build without `add`."""

    @raftha.command
    def other(self, txn: raftha.Transaction) -> None:
        """Do nothing."""


def test_a_node_that_lacks_what_the_cluster_uses_cannot_join(tmp_path: Path) -> None:
    """Its member is refused with the reason; it says itself what to do, and can be upgraded."""
    addresses = free_addresses(2)
    events: list[raftha.HaEvent] = []
    one_config = replace(make_config(tmp_path, 1, {1: addresses[0]}), on_event=events.append)
    one = raftha.HaManager(one_config, state_machine=Old())
    two_config = raftha.HaConfig(
        node_id=2,
        data_dir=tmp_path / "2",
        members={1: addresses[0]},
        address=addresses[1],
        wal_segment_bytes=16 * MIB,
    )
    two = raftha.HaManager(two_config, state_machine=Lacking())
    with one:
        wait_leader({1: one})
        one.execute("add", b"n", 5)
        two.start()
        with pytest.raises(UpgradePending, match="node 2 can't join: the cluster uses commands"):
            one.add_replica(2, addresses[1])
        assert any(isinstance(event, ReplicaUnsupported) for event in events)
        wait_until(lambda: "add" in two.get_status().failure, "it doesn't stop")
        assert "UpgradeRequired" in two.get_status().failure
        two.stop()
        with pytest.raises(UpgradeRequired), raftha.HaManager(two_config, state_machine=Lacking()):
            pass
        upgraded = raftha.HaManager(two_config, state_machine=Old())
        with upgraded:
            wait_until(lambda: _joins(one, addresses[1]), "it can't join")
            assert upgraded.get(b"n") == b"5"


def _joins(one: raftha.HaManager, address: str) -> bool:
    try:
        one.add_replica(2, address, timeout=20)
    except UpgradePending:
        return False
    return True
