"""Backups of a cluster of real processes: who takes them, and what the death of a node does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raftha.storage.backup.inspection import WAITS
from raftha.storage.backup.opening import open_places
from raftha.storage.backup.verify import verify_in
from raftha.testing import LocalCluster
from tests.support.conditions import wait_until

KEYS, VALUE = 300, "v" * 400


class Backed:
    """A cluster with backups in a folder, and what is in it."""

    def __init__(self, cluster: LocalCluster, repository: Path) -> None:
        self.cluster = cluster
        self.repository = repository

    def ask(self, node_id: int, *args: str) -> Any:
        return json.loads(self.cluster.call(node_id, "RAFTHA", *args, timeout_s=30))

    def backups(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask(self.cluster.wait_leader(), "BACKUPS")["backups"]
        return found

    def run(self, node_id: int, *, waits: bool = True) -> int:
        extra = ("WAIT", "25") if waits else ()
        backup_id = self.cluster.call(node_id, "RAFTHA", "BACKUP", "RUN", "-", *extra, timeout_s=30)
        return int(backup_id)

    def fill(self, generation: int) -> None:
        leader = self.cluster.wait_leader()
        for number in range(KEYS):
            self.cluster.call(leader, "SET", f"key/{number}", f"{generation} {number} {VALUE}")

    def wait_running(self) -> dict[str, Any]:
        wait_until(lambda: self.running() is not None, "no backup runs")
        running = self.running()
        assert running is not None
        return running

    def running(self) -> dict[str, Any] | None:
        ended = ("completed", "failed")
        return next((b for b in self.backups() if b["state"] not in ended), None)

    def check(self) -> None:
        """Every backup that is called completed can be restored, by its digest."""
        completed = [b for b in self.backups() if b["state"] == "completed"]
        assert completed
        repository = open_places({"local": str(self.repository)}, None)
        (destination,) = repository.destinations.values()
        for backup in completed:
            report = verify_in(
                destination, repository, backup["lineage"], backup["label"], 3, WAITS
            )
            assert report.is_sound, report
        repository.close()


@pytest.fixture
def backed(tmp_path: Path) -> Iterator[Backed]:
    settings = {
        "backup": {
            "destinations": {"local": str(tmp_path / "repository")},
            "bytes_per_s": 65536,
            "interval_hours": 24,
        },
        "wal_segment_bytes": 16 << 20,
    }
    with LocalCluster(nodes=3, settings=settings, folder=tmp_path / "cluster") as cluster:
        cluster.wait_ready()
        yield Backed(cluster, tmp_path / "repository")


def test_backups_survive_the_death_of_their_taker_and_of_the_leader(backed: Backed) -> None:
    """The first one is full. A killed taker is replaced, and any node takes the next one."""
    cluster = backed.cluster
    wait_until(lambda: bool(backed.backups()) and backed.running() is None, "no first backup")
    (first,) = backed.backups()
    assert (first["state"], first["mode"]) == ("completed", "full")
    backed.fill(1)

    # The taker dies in the middle; it says so when it is back, and another member takes over.
    leader = cluster.wait_leader()
    backed.run(leader, waits=False)
    taker = backed.wait_running()["node_id"]
    assert taker != leader
    for number in range(10):  # Its log now says that the backup had begun.
        cluster.call(leader, "SET", "late", str(number))
    cluster.kill(taker)
    cluster.start_node(taker)
    wait_until(lambda: len(backed.backups()) == 3, "no second try")
    failed, second = backed.backups()[1:]
    assert failed["state"] == "failed" and "started again" in failed["error"]
    assert second["node_id"] != taker

    # The leader dies in the middle: the taker goes on, and reports to the next one.
    assert second["node_id"] != leader
    cluster.kill(leader)
    wait_until(lambda: backed.running() is None, "the backup does not end")
    second = backed.backups()[2]
    assert (second["state"], second["mode"], second["parent"]) == (
        "completed",
        "incremental",
        first["id"],
    )
    cluster.start_node(leader)
    cluster.wait_ready()
    backed.check()
