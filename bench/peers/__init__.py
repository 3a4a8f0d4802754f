"""Other systems under the same load: one file each, which says how it starts.

None is needed, and none is installed by raftha: one that isn't there is left out, and the results
say why. From Debian: etcd-server, libzookeeper-java, redis-server, nats-server.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.systems import System

NAMES = ("etcd", "zookeeper", "pysyncobj", "nats", "redis")


class UnknownPeer(Exception):
    """There is no file for it."""


def find(names: Sequence[str]) -> list[System]:
    """The systems of these files; `all` means all."""
    wanted = NAMES if "all" in names else names
    found: list[System] = []
    for name in wanted:
        if name not in NAMES:
            raise UnknownPeer(f"{name!r} is none of {', '.join(NAMES)}")
        found += import_module(f"bench.peers.{name}").SYSTEMS
    return found
