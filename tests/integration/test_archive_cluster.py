"""The archive of a cluster of real processes: its archiver dies, and its destination goes away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raftha.entry import LOG_START, follows
from raftha.storage.backup import names
from raftha.storage.backup.archive_listing import read_listing
from raftha.storage.backup.opening import open_places
from raftha.storage.backup.segments import read_segment
from raftha.testing import LocalCluster
from tests.support.conditions import wait_until


class Archived:
    """A cluster with an archive in a folder."""

    def __init__(self, cluster: LocalCluster, repository: Path) -> None:
        self.cluster = cluster
        self.repository = repository
        self.written = 0

    def write(self, count: int = 50) -> None:
        leader = self.cluster.wait_leader()
        for number in range(count):
            self.cluster.call(leader, "SET", f"key/{number}", f"{self.written + number}")
        self.written += count

    def status(self, node_id: int | None = None) -> dict[str, Any]:
        found = self.cluster.status(node_id or self.cluster.wait_leader())
        assert found is not None
        return found

    def archive(self, node_id: int | None = None) -> dict[str, Any]:
        archive: dict[str, Any] = self.status(node_id)["archive"] or {}
        return archive

    def wait_archived(self) -> None:
        """Wait until nothing is in no destination, as the leader sees it."""
        sequence = self.status()["sequence"]
        wait_until(
            lambda: self.archive().get("archived_sequence", 0) >= sequence,
            "the log is not archived",
        )
        assert self.archive()["rpo_ms"] == 0

    def away(self) -> Path:
        return self.repository.with_name("away")

    def check(self) -> int:
        """Everything is there, from the first entry on; return the last index."""
        repository = open_places({"local": str(self.repository)}, None)
        (destination,) = repository.destinations.values()
        (lineage,) = {
            info.name.split("/")[0] for info in destination.list("") if "/log/" in info.name
        }
        listed = read_listing(destination.list(names.log_folder(lineage)), lineage)
        assert not listed.holes and listed.start == 1
        hashes = {0: LOG_START.hash}
        for name in sorted(listed.sizes):
            data = destination.get(names.segment_name(name), size_max=1 << 24)
            for entry in read_segment(data, name, repository.keys):
                assert follows(entry, hashes[entry.index - 1])
                assert hashes.setdefault(entry.index, entry.hash) == entry.hash
        repository.close()
        return max(hashes)


@pytest.fixture
def archived(tmp_path: Path) -> Iterator[Archived]:
    settings = {
        "backup": {"destinations": {"local": str(tmp_path / "repository")}},
        "pitr": {"archive_interval_ms": 100},
        "wal_segment_bytes": 16 << 20,
    }
    with LocalCluster(nodes=3, settings=settings, folder=tmp_path / "cluster") as cluster:
        cluster.wait_ready()
        yield Archived(cluster, tmp_path / "repository")


def test_the_archive_survives_its_archiver_and_an_outage(archived: Archived) -> None:
    cluster = archived.cluster
    archived.write()
    archived.wait_archived()
    wait_until(
        lambda: len({archived.archive(n)["archived_index"] for n in cluster.node_ids}) == 1,
        "not all members know how far the archive is",
    )

    # The archiver is a follower. It dies, and another member goes on.
    archiver = archived.archive()["archiver"]
    assert archiver not in (None, cluster.wait_leader())
    cluster.kill(archiver)
    archived.write()
    archived.wait_archived()
    assert archived.archive()["archiver"] not in (None, archiver)
    cluster.start_node(archiver)

    # The destination is away: writes go on, and what is missing is shown.
    archived.repository.rename(archived.away())
    archived.repository.write_text("not a folder")
    archived.write()
    wait_until(lambda: archived.archive()["rpo_ms"] > 1500, "nothing is missing")
    assert archived.archive()["destinations"]["local"]["error"]
    before = archived.archive()
    archived.write()
    assert archived.archive()["archived_index"] == before["archived_index"]
    archived.repository.unlink()
    archived.away().rename(archived.repository)
    archived.wait_archived()
    assert archived.archive()["destinations"]["local"]["error"] == ""
    assert archived.archive()["gaps"] == 0
    assert archived.check() >= 4 * 50
