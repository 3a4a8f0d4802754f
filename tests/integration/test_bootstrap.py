"""Clusters are founded apart and stay apart; a node keeps its cluster whatever its settings."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import raftha
from tests.support.conditions import wait_until
from tests.support.nodes import free_addresses, make_config

pytestmark = pytest.mark.slow


def start(folder: Path, node_id: int, members: dict[int, str]) -> raftha.HaManager:
    node = raftha.HaManager(make_config(folder, node_id, members))
    node.start()
    return node


def test_a_node_of_a_cluster_that_was_founded_apart_takes_no_part(tmp_path: Path) -> None:
    """It gives neither votes nor data, although it has the same settings."""
    members = dict(enumerate(free_addresses(3), start=1))
    stranger = start(tmp_path / "other", 3, members)
    node = start(tmp_path, 1, members)
    try:
        with pytest.raises(raftha.Unavailable):
            node.put(b"key", b"value", timeout=2)
        assert node.get_status().leader_id is None, "two of three would be enough"
        other = start(tmp_path, 2, members)
        try:
            assert node.put(b"key", b"value")
            assert stranger.get_status().leader_id is None
            assert stranger.get(b"key", consistency="stale") is None
        finally:
            other.stop()
    finally:
        node.stop()
        stranger.stop()


def test_a_node_keeps_its_cluster_when_its_list_of_members_changes(tmp_path: Path) -> None:
    first, second = free_addresses(2)
    node = start(tmp_path, 1, {1: first})
    node.put(b"key", b"value")
    cluster_id = node.get_status().cluster_id
    node.stop()
    node = start(tmp_path, 1, {1: first, 2: second})
    assert node.get(b"key") == b"value"
    assert node.get_status().cluster_id == cluster_id
    node.stop()


def test_a_cluster_started_again_keeps_its_data(tmp_path: Path) -> None:
    members = dict(enumerate(free_addresses(3), start=1))
    nodes = [start(tmp_path, node_id, members) for node_id in members]
    before = nodes[0].put(b"key", b"value").sequence
    term = nodes[0].get_status().term
    for node in nodes:
        node.stop()
    nodes = [start(tmp_path, node_id, members) for node_id in members]
    try:
        assert nodes[2].get(b"key") == b"value"
        assert nodes[2].put(b"key", b"other").sequence == before + 1
        assert nodes[2].get_status().term > term
    finally:
        for node in nodes:
            node.stop()


def test_a_new_directory_under_a_members_id_is_healed_first(tmp_path: Path) -> None:
    """It is empty: the node may have given votes and promises that it has forgotten."""
    members = dict(enumerate(free_addresses(3), start=1))
    nodes = [start(tmp_path, node_id, members) for node_id in members]
    try:
        assert nodes[0].put(b"key", b"value")
        nodes[2].stop()
        shutil.rmtree(tmp_path / "3")
        nodes[2] = start(tmp_path, 3, members)
        for number in range(50):
            nodes[0].put(b"key", b"%d" % number)
        healed = "node 3 is not whole again"
        wait_until(lambda: nodes[2].get_status().applied_index > 50, healed)
        wait_until(lambda: not nodes[2].get_status().is_healing, healed)
        assert nodes[2].get(b"key") == b"49"
    finally:
        for node in nodes:
            node.stop()
