"""Nodes of today's code beside nodes of a kept wheel: a rolling upgrade under load, and back.

A kept wheel is an older build, with its own formats, so these tests notice a change that a cluster
in operation can't survive. What holds for a kept build, whatever has changed since:

- Until the last member runs today's code, a node can go back to the kept build, with a checkpoint
  that today's code has made. So a build writes what the older one can't read only once the cluster
  uses the protocol that came with it.
- Once the last one does, the cluster uses what today's code supports. If that is more than before,
  the kept build is refused, and nothing is lost. Otherwise nodes could still go back.
- `PROTOCOL_OLDEST` stays at what the kept build speaks, as long as the promise for it lasts
  (docs/guide/upgrading.md). When it ends, the wheel goes.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from raftha import version
from raftha.server.machine import RedisMachine
from raftha.storage.state.versions import abilities_of
from raftha.testing import LocalCluster
from tests.fixtures.wheels import ROOT, kept_wheels, unpack
from tests.support.conditions import wait_until
from tests.support.load import SETTINGS, Record, check, choose_seed, run_load

BYTES_MAX = 1_000_000
CLIENTS, PAUSE_S = 2, 0.005
SERVE = 'PYTHONPATH="$(cat build)" exec "$0" -m raftha serve --config node.toml'
UPGRADED = re.compile(
    r"event=ClusterUpgraded .*protocol=(\d+) machine_version=(\d+) commands=(\d+)"
)
REFUSED = re.compile(r"can't take part|use the version of raftha that wrote it")


class Used(NamedTuple):
    """What a cluster uses."""

    protocol: int
    machine: int
    commands: int


def present() -> Used:
    """What a cluster uses whose members all run today's code."""
    own = abilities_of(RedisMachine())
    return Used(own.protocol, own.machine, len(own.commands))


class Builds:
    """Three nodes, each of which runs the kept build or today's, and can change between the two."""

    def __init__(self, kept: Path, folder: Path) -> None:
        self.kept = unpack(kept, folder / "kept")
        self.cluster = LocalCluster(
            3,
            settings={**SETTINGS, "checkpoint_interval_sec": 0.2, "bootstrap": True},
            serve_command=("sh", "-c", SERVE, sys.executable),
            folder=folder / "cluster",
        )
        for node_id in self.cluster.node_ids:
            self.cluster.wipe(node_id)  # The kept build makes all that is on the disks.
            self._use(node_id, self.kept)
        self.cluster.start()

    def _use(self, node_id: int, build: Path) -> None:
        (self.cluster.folder / f"node-{node_id}" / "build").write_text(str(build))

    def status(self, node_id: int) -> dict[str, Any]:
        return self.cluster.status(node_id) or {"version": "", "leader_id": None}

    def change(self, node_id: int, build: Path) -> None:
        """Run another build, until the node has caught up and has made a checkpoint with it."""
        self.cluster.terminate(node_id)
        self._use(node_id, build)
        self.cluster.start_node(node_id)
        wait_until(lambda: self._follows(node_id), f"node {node_id} has no leader")
        begun = self.status(node_id)["checkpoint_index"]
        assert self.is_kept(node_id) == (build == self.kept)
        wait_until(lambda: self.status(node_id)["checkpoint_index"] > begun, "no checkpoint")

    def _follows(self, node_id: int) -> bool:
        exit_code = self.cluster.exit_code(node_id)
        assert exit_code is None, f"node {node_id} can't run this build now: see the module"
        return self.status(node_id)["leader_id"] is not None

    def is_kept(self, node_id: int) -> bool:
        return "+" in self.status(node_id)["version"]

    def refuse(self, node_id: int) -> None:
        """See that a node refuses to run the kept build, and starts again with today's."""
        self.cluster.terminate(node_id)
        self._use(node_id, self.kept)
        said = self.cluster.log_path(node_id).stat().st_size
        self.cluster.start_node(node_id)
        wait_until(lambda: self.cluster.exit_code(node_id) is not None, "it isn't refused")
        assert self.cluster.exit_code(node_id) in (1, 2)
        text = self.cluster.log_path(node_id).read_text()[said:]
        assert REFUSED.search(text)
        assert "nothing is lost" in text
        self._use(node_id, ROOT)
        self.cluster.start_node(node_id)

    def used(self) -> Used:
        """What the cluster uses, as its nodes have logged it."""
        return max(self._logged())

    def has_logged(self) -> bool:
        """Whether a node has logged it yet."""
        return bool(self._logged())

    def _logged(self) -> list[Used]:
        return [
            Used(*map(int, match))
            for node_id in self.cluster.node_ids
            for match in UPGRADED.findall(self.cluster.log_path(node_id).read_text())
        ]


def test_there_is_a_kept_wheel() -> None:
    assert kept_wheels()
    assert sum(path.stat().st_size for path in kept_wheels()) < BYTES_MAX


@pytest.fixture(params=kept_wheels(), ids=lambda path: path.name.split(".whl")[0])
def builds(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Builds]:
    builds = Builds(request.param, tmp_path)
    yield builds
    builds.cluster.close()


@pytest.mark.slow
def test_a_kept_build_and_todays_run_in_one_cluster_and_change_places(builds: Builds) -> None:
    wait_until(builds.has_logged, "no node says what the cluster uses")
    before = builds.used()
    assert all(builds.is_kept(node_id) for node_id in (1, 2, 3))
    assert before.protocol >= version.PROTOCOL_OLDEST, "see the docstring of this module"

    def roll() -> None:
        builds.change(3, ROOT)
        builds.change(3, builds.kept)
        for node_id in (3, 2, 1):
            assert builds.used() == before, "not all members run today's code"
            builds.change(node_id, ROOT)
        wait_until(lambda: builds.used() == present(), "the cluster doesn't use what all support")
        if present() != before:
            builds.refuse(2)

    record = Record()
    asyncio.run(run_load(builds.cluster, record, choose_seed(), roll, CLIENTS, PAUSE_S))
    assert len(record.values) > 100, "too few writes to prove anything"
    check(builds.cluster, record)
