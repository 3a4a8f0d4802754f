"""Kills nodes and starts them again, and measures how long they take."""

from __future__ import annotations

import contextlib
import time

from raftha.errors import RafthaError
from raftha.testing import LocalCluster

TIMEOUT_S = 600.0
POLL_S = 0.005
FOLLOWER = 2


def restart_follower(cluster: LocalCluster) -> tuple[float, float]:
    """Seconds until the node answers, and until it has applied its whole log."""
    before = cluster.status(FOLLOWER)
    assert before is not None
    cluster.kill(FOLLOWER)
    begin = time.perf_counter()
    cluster.start_node(FOLLOWER)
    answers_s = 0.0
    while time.perf_counter() < begin + TIMEOUT_S:
        status = cluster.status(FOLLOWER)
        if status and not answers_s:
            answers_s = time.perf_counter() - begin
        if status and status["applied_index"] >= before["last_index"]:
            return answers_s, time.perf_counter() - begin
        time.sleep(POLL_S)  # Poll: other processes change.
    raise AssertionError(f"node {FOLLOWER} has not caught up after {TIMEOUT_S} s")


def restart_all(cluster: LocalCluster) -> float:
    """Seconds until any node acknowledges a write."""
    for node_id in cluster.running:
        cluster.kill(node_id)
    begin = time.perf_counter()
    for node_id in cluster.node_ids:
        cluster.start_node(node_id)
    while time.perf_counter() < begin + TIMEOUT_S:
        with contextlib.suppress(RafthaError):
            cluster.call(cluster.node_ids[0], "SET", "after", "restart")
            return time.perf_counter() - begin
        time.sleep(POLL_S)  # Poll: other processes change.
    raise AssertionError(f"no write was acknowledged after {TIMEOUT_S} s")
