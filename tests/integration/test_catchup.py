"""The question `catchup` of `bench`, small: a node needs a snapshot while writes go on.

It checks only what doesn't depend on the load of the machine: with an election timeout of two
seconds no node campaigns, and no write fails. It prints how much slower writes were.
"""

from __future__ import annotations

import pytest

from bench.harness.catch_up import run
from bench.questions.catchup import show
from raftha.config import MIB
from raftha.testing import LocalCluster
from tests.support.load import check_alike

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def test_a_node_catches_up_through_a_snapshot_and_writers_and_leader_go_on() -> None:
    settings = {
        "election_timeout_ms": 2000,
        "wal_segment_bytes": 16 * MIB,
        "max_wal_size": 4 * MIB,
        "log_retention_bytes": 4 * MIB,
    }
    with LocalCluster(3, settings=settings) as cluster:
        report = run(cluster, log_bytes=48 * MIB, rate=300, seconds=2)
        show(report)
        assert report.snapshots == 1
        assert report.failed_writes == 0
        assert report.elections == 0
        assert check_alike(cluster) == {1, 2, 3}
