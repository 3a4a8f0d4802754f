"""Nodes in the test's own process, and helpers for processes."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

import raftha
from raftha.config import MIB, read_toml
from raftha.membership import Membership
from raftha.runtime.founding import found_together
from tests.support.conditions import wait_until


def free_addresses(count: int) -> list[str]:
    """Addresses of loopback that were free a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    return addresses


def make_config(folder: Path, node_id: int, members: dict[int, str]) -> raftha.HaConfig:
    """A node's configuration, with a small log and a long request timeout.

    The first call for a folder founds the cluster of `members` there.
    """
    found_once(folder, members)
    return raftha.HaConfig(
        node_id=node_id,
        data_dir=folder / str(node_id),
        members=members,
        wal_segment_bytes=16 * MIB,
        request_timeout_s=20,
    )


def found_once(
    folder: Path,
    members: Mapping[int, str],
    cluster_name: str = "raftha",
    regions: Mapping[int, str] | None = None,
) -> None:
    """Found a cluster in the folders of its members, unless there is one of them."""
    directories = {i: folder / str(i) for i in members}
    if not any(path.exists() for path in directories.values()):
        first = Membership.first(members, regions).members
        found_together(directories, first, cluster_name, 16 * MIB)


def read_config(path: Path) -> raftha.HaConfig:
    """The configuration of a server's node, from its TOML file, without the server's address."""
    table = read_toml(path)
    del table["listen"]
    return raftha.HaConfig.from_mapping(table)


def wait_leader(nodes: Mapping[int, raftha.HaManager]) -> int:
    """Wait until one of these nodes leads; its id."""
    wait_until(lambda: any(node.get_status().is_primary for node in nodes.values()), "no leader")
    return next(i for i, node in nodes.items() if node.get_status().is_primary)


def process_ids_in(folder: Path) -> list[int]:
    """Processes whose working directory is inside `folder`; zombies have none."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                directory = os.readlink(entry / "cwd")
            except OSError:
                continue
            if directory.startswith(f"{folder}/"):
                found.append(int(entry.name))
    return found
