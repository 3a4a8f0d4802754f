"""A cluster of real processes, each with its data directory on a file system of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from raftha.testing import LocalCluster
from tests.faultfs.mount import FaultFs


@contextlib.contextmanager
def cluster_on_disks(
    folder: Path, settings: Mapping[str, Any]
) -> Iterator[tuple[LocalCluster, dict[int, FaultFs]]]:
    """Three running nodes, and the file system of each."""
    cluster = LocalCluster(nodes=3, settings=settings, folder=folder / "cluster")
    with contextlib.ExitStack() as stack:
        disks = {
            node_id: stack.enter_context(FaultFs(cluster.data_of(node_id)))
            for node_id in cluster.node_ids
        }
        stack.enter_context(cluster)
        yield cluster, disks
