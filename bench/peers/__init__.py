"""Other systems under the same load: one file each, which says how it starts.

None is needed, and raftha installs none: a missing one is left out, and the results say why. From
Debian: etcd-server, libzookeeper-java, redis-server, nats-server.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.harness.systems import System

NAMES = ("etcd", "zookeeper", "pysyncobj", "nats", "redis")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of questions that measure peers too."""
    parser.add_argument(
        "--peer",
        action="append",
        choices=(*NAMES, "all"),
        default=[],
        help="another system; may be repeated",
    )
    parser.add_argument("--only", action="append", default=[], help="only systems of this name")


def find(names: Sequence[str]) -> list[System]:
    """The systems of these files, which are some of NAMES; `all` means all."""
    wanted = NAMES if "all" in names else names
    found: list[System] = []
    for name in wanted:
        found += import_module(f"bench.peers.{name}").SYSTEMS
    return found
