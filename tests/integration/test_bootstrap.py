"""Nodes begin a cluster only if they agree on its first members, and only once."""

from __future__ import annotations

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


def test_a_node_with_another_list_of_members_takes_no_part(tmp_path: Path) -> None:
    """It gives neither votes nor data."""
    *first, extra = free_addresses(4)
    members = dict(enumerate(first, start=1))
    stranger = start(tmp_path, 3, {**members, 4: extra})
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


def test_a_nodes_list_of_members_is_never_another_one(tmp_path: Path) -> None:
    first, second, third = free_addresses(3)
    node = start(tmp_path, 1, {1: first})
    node.put(b"key", b"value")
    node.stop()
    for members in ({1: first, 2: second}, {1: third}):
        with pytest.raises(raftha.ConfigError, match="belongs to node 1 of cluster"):
            start(tmp_path, 1, members)
    node = start(tmp_path, 1, {1: first})
    assert node.get(b"key") == b"value"
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


def test_a_new_node_under_a_members_id_is_not_let_in(tmp_path: Path) -> None:
    """Its directory is empty: it may have given votes and promises that it has forgotten."""
    members = dict(enumerate(free_addresses(3), start=1))
    nodes = [start(tmp_path, node_id, members) for node_id in members]
    try:
        assert nodes[0].put(b"key", b"value")
        wait_until(
            lambda: all(replica.connected for n in nodes for replica in n.get_status().replicas),
            "the members don't all know each other",
        )
        nodes[2].stop()
        nodes[2] = start(tmp_path / "elsewhere", 3, members)
        for number in range(50):
            nodes[0].put(b"key", b"%d" % number)
        assert nodes[2].get(b"key", consistency="stale") is None
        assert nodes[2].get_status().leader_id is None
    finally:
        for node in nodes:
            node.stop()
