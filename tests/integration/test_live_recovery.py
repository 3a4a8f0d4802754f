"""A cluster of three processes goes back to an earlier moment under load, and its leader is killed.

The caller of the recovery is on another node. All nodes have the state of then, what was written
since the recovery stays, and an undo brings back what was before it.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raftha.errors import RafthaError
from raftha.testing import LocalCluster
from tests.support.conditions import wait_until

KEYS = 60


class Recovering:
    """A cluster with an archive, and what a client does with it."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster
        self._is_over = threading.Event()
        self.counted = 0

    def ask(self, node_id: int, *args: str, timeout_s: float = 60) -> Any:
        return json.loads(self.cluster.call(node_id, "RAFTHA", *args, timeout_s=timeout_s))

    def fill(self, generation: int) -> None:
        leader = self.cluster.wait_leader()
        for number in range(0, KEYS, generation):
            self.cluster.call(leader, "SET", f"key/{number}", f"{generation}")

    def contents(self, node_id: int) -> list[str]:
        """All values; none while the node begins again, with the other state."""
        keys = [f"key/{number}" for number in range(KEYS)]
        with contextlib.suppress(RafthaError):
            return [str(value) for value in self.cluster.call(node_id, "MGET", *keys, timeout_s=20)]
        return []

    def write_on(self) -> None:
        """Count, through any node that answers, until it is over."""
        while not self._is_over.is_set():
            for node_id in self.cluster.node_ids:
                try:
                    self.counted = self.cluster.call(node_id, "INCR", "counter", timeout_s=5)
                except (OSError, RafthaError):
                    self._is_over.wait(0.02)

    def stop(self) -> None:
        self._is_over.set()

    def recoveries(self, node_id: int) -> list[dict[str, Any]]:
        with contextlib.suppress(RafthaError):
            found: list[dict[str, Any]] = self.ask(node_id, "PITR")["recoveries"]
            return found
        return []


@pytest.fixture
def recovering(tmp_path: Path) -> Iterator[Recovering]:
    settings = {
        "backup": {"destinations": {"local": str(tmp_path / "repository")}},
        "enable_pitr": True,
        "pitr": {"archive_interval_ms": 100},
        "wal_segment_bytes": 16 << 20,
    }
    with LocalCluster(nodes=3, settings=settings, folder=tmp_path / "cluster") as cluster:
        cluster.wait_ready()
        yield Recovering(cluster)


@pytest.mark.slow
def test_a_cluster_goes_back_while_its_leader_dies_and_takes_that_back(
    recovering: Recovering,
) -> None:
    cluster = recovering.cluster
    recovering.cluster.call(cluster.wait_leader(), "RAFTHA", "BACKUP", "RUN", "-", "WAIT", "25")
    recovering.fill(1)
    recovering.fill(2)
    leader = cluster.wait_leader()
    then, wanted = recovering.ask(leader, "PITR")["sequence"], recovering.contents(leader)
    recovering.fill(3)
    before = recovering.contents(leader)
    assert before != wanted
    asked = next(node_id for node_id in cluster.node_ids if node_id != leader)
    load = threading.Thread(target=recovering.write_on)
    answers: list[dict[str, Any]] = []

    def recover() -> None:
        try:
            answers.append(recovering.ask(asked, "RECOVER", "TO", "SEQUENCE", str(then)))
        except RafthaError as error:
            answers.append({"state": str(error)})

    caller = threading.Thread(target=recover)
    load.start()
    caller.start()
    try:
        wait_until(lambda: bool(answers or recovering.recoveries(asked)), "no recovery begins")
        assert not answers, "it is over before anything has happened to it"
        cluster.kill(leader)
        caller.join(60)
    finally:
        recovering.stop()
        load.join()
    (answer,) = answers
    assert (answer["state"], answer["to_sequence"]) == ("restored", then)
    cluster.start_node(leader)
    cluster.wait_ready()
    for node_id in cluster.node_ids:
        wait_until(
            lambda node_id=node_id: recovering.contents(node_id) == wanted,  # type: ignore[misc]
            f"node {node_id} has another state",
        )
    assert len({str(cluster.call(n, "GET", "counter")) for n in cluster.node_ids}) == 1

    undone = recovering.ask(leader, "RECOVER", "UNDO")
    assert (undone["state"], undone["to_sequence"]) == ("restored", answer["sequence"] - 1)
    for node_id in cluster.node_ids:
        wait_until(
            lambda node_id=node_id: recovering.contents(node_id) == before,  # type: ignore[misc]
            f"node {node_id} has not what was before",
        )
