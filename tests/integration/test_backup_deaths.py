"""Real processes that are killed at each step of a backup: its taker, the leader, or all.

One cluster goes through all of it. Whatever died, no acknowledged write is lost, the next backup
is complete without help, and what the log calls complete can be restored.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from raftha.errors import RafthaError
from raftha.storage.backup.chain import Shelf, load_chain, read_state
from raftha.storage.backup.inspection import WAITS
from raftha.storage.backup.opening import open_places
from raftha.storage.backup.verify import verify_in
from raftha.testing import LocalCluster
from tests.integration.dying_server import ALL, LEADER, RETIRED, TAKER, Order
from tests.support.conditions import wait_until

PLACES = ("first", "second", "third")
STEPS = range(1, RETIRED + 1)


class Backed:
    """A cluster whose processes die on order, and what it has acknowledged."""

    def __init__(self, folder: Path) -> None:
        self.places = {name: str(folder / name) for name in PLACES}
        rules = {"keep_last": 1}
        rules |= dict.fromkeys(("keep_daily_days", "keep_weekly_weeks", "keep_monthly_months"), 0)
        settings = {
            "backup": {"destinations": self.places, "interval_hours": 24, "retention": rules},
            "wal_segment_bytes": 16 << 20,
            "enable_pitr": False,  # Its window would keep what should be retired.
        }
        command = (sys.executable, "-m", "tests.integration.dying_server", "{config}")
        self.cluster = LocalCluster(
            nodes=3, settings=settings, serve_command=command, folder=folder / "cluster"
        )
        self.acknowledged: list[str] = []
        self.modes = cycle(["incremental", "differential", "full"])

    def write(self) -> None:
        key = f"key/{len(self.acknowledged)}"
        self.cluster.call(self.cluster.wait_leader(), "SET", key, key * 20)
        self.acknowledged.append(key)

    def backups(self) -> list[dict[str, Any]]:
        answer = self.cluster.call(self.cluster.wait_leader(), "RAFTHA", "BACKUPS", timeout_s=30)
        found: list[dict[str, Any]] = json.loads(answer)["backups"]
        return found

    def newest(self) -> dict[str, Any]:
        return self.backups()[-1]

    def wait_completed(self, after: int) -> dict[str, Any]:
        """Wait for a complete backup that began after that one."""

        def is_completed() -> bool:
            try:
                newest = self.newest()
            except RafthaError:
                return False  # Its leader has just died.
            return bool(newest["id"] > after and newest["state"] == "completed")

        wait_until(is_completed, "no backup is complete")
        return self.newest()

    def die(self, step: int, victims: str) -> None:
        """Have processes die at a step of the next backup, and start them again."""
        cluster = self.cluster
        pids = {str(node_id): cluster.pid(node_id) for node_id in cluster.node_ids}
        before = self.newest()["id"]
        self.write()
        Order(step, victims, pids).give(cluster.folder)
        mode = "full" if step == RETIRED else next(self.modes)
        # The leader may die before it can answer.
        with suppress(RafthaError):
            cluster.call(cluster.wait_leader(), "RAFTHA", "BACKUP", "RUN", mode)
        wait_until(lambda: Order.is_taken(cluster.folder), f"step {step} is not reached")
        count = len(pids) if victims == ALL else 1
        wait_until(lambda: len(cluster.running) == len(pids) - count, "they don't die")
        for node_id in set(cluster.node_ids) - set(cluster.running):
            cluster.start_node(node_id)
        cluster.wait_ready()
        self.write()
        self.check(self.wait_completed(before))

    def check(self, backup: dict[str, Any]) -> None:
        """See that it can be restored from each place, with all that was written before it."""
        lineage, label = backup["lineage"], backup["label"]
        assert set(backup["destinations"]) == set(PLACES)
        with closing(open_places(self.places, None)) as repository:
            for name, place in repository.destinations.items():
                report = verify_in(place, repository, lineage, label, 3, WAITS)
                assert report.is_sound, report
                shelf = Shelf({name: place}, repository.id, repository.keys)
                links = load_chain(shelf, lineage, label)
                keys = {key for piece in read_state(shelf, links) for key, _ in piece}
                wanted = self.acknowledged[:-1]  # The last one may be newer.
                assert all(any(found.endswith(k.encode()) for found in keys) for k in wanted)


@pytest.fixture(scope="module")
def backed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backed]:
    backed = Backed(tmp_path_factory.mktemp("deaths"))
    with backed.cluster as cluster:
        wait_until(lambda: bool(backed.backups()), "no first backup begins")
        backed.wait_completed(0)
        yield backed
        for number, key in enumerate(backed.acknowledged):
            found = cluster.call(cluster.wait_leader(), "GET", key)
            assert found == (key * 20).encode(), f"acknowledged write {number} is lost"
        assert len({each["hex"] for each in cluster.digests().values()}) == 1


@pytest.mark.parametrize("victims", [TAKER, LEADER, ALL])
@pytest.mark.parametrize("step", STEPS)
def test_a_death_at_a_step_costs_no_write_and_no_backup_that_is_called_complete(
    backed: Backed, step: int, victims: str
) -> None:
    backed.die(step, victims)
