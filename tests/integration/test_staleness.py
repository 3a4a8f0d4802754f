"""Reads with bounded staleness: from this node, if it is known to be fresh enough."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

import raftha
from raftha.server.machine import RedisMachine
from raftha.testing import LocalCluster
from tests.support.nodes import read_config


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[LocalCluster, raftha.HaManager]]:
    """A follower in this process, and a leader of its own."""
    with LocalCluster(nodes=3) as nodes:
        nodes.terminate(1)
        with raftha.HaManager(read_config(nodes.config_of(1)), state_machine=RedisMachine()) as ha:
            ha.put(b"key", b"old", timeout=30)
            ha.failover_to(2, timeout=30)
            yield nodes, ha


@pytest.mark.slow
def test_a_read_is_answered_locally_only_while_the_state_is_fresh_enough(
    cluster: tuple[LocalCluster, raftha.HaManager],
) -> None:
    nodes, ha = cluster
    began = time.monotonic()
    assert ha.get(b"key") == b"old"
    for peer in (2, 3):
        nodes.pause(peer)
    try:
        # No other node answers, so the result comes from this node.
        assert ha.get(b"key", max_staleness_ms=60_000, timeout=1) == b"old"
        assert ha.get_many([b"key"], max_staleness_ms=60_000, timeout=1) == [b"old"]
        assert ha.count(max_staleness_ms=60_000, timeout=1) == 1
        assert ha.scan(max_staleness_ms=60_000, timeout=1) == [(b"key", b"old")]
        with pytest.raises(raftha.Unavailable):
            ha.get(b"key", max_staleness_ms=0, timeout=0.2)
        with pytest.raises(raftha.Unavailable):
            ha.get(b"key", max_staleness_ms=50, timeout=0.2)
        # The age counts by the clock, from before the last read-index request, not from its reply.
        age_ms = 1000 * (time.monotonic() - began)
        assert ha.get(b"key", max_staleness_ms=age_ms + 100, timeout=1) == b"old"
    finally:
        for peer in (2, 3):
            nodes.resume(peer)
    nodes.wait_leader()


@pytest.mark.slow
def test_a_read_that_is_not_fresh_enough_asks_again_and_sees_all_complete(
    cluster: tuple[LocalCluster, raftha.HaManager],
) -> None:
    nodes, ha = cluster
    for number in range(20):
        value = b"%d" % number
        nodes.call(nodes.wait_leader(), "SET", "other", value)
        written_at = time.monotonic()
        # The allowed age is less than the time since the write, so the read must see it.
        while (age_ms := 1000 * (time.monotonic() - written_at)) < 2:
            pass
        assert ha.get(b"other", max_staleness_ms=age_ms / 2, timeout=10) == value
