"""`raftha demo --backup`: a cluster is wiped, and comes back from its backups.

Theory of operation. After the load a full backup is taken. Then some records change and others
come, and an incremental backup is taken. All nodes are stopped, and everything that they have
stored is deleted. One node is restored from the repository; the others begin empty and get all from
it. In the end each node's own copy must have exactly the records as of the incremental backup, by
the hash that this process computes from them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raftha.cli.demo_data import Record
from raftha.client.call import call
from raftha.errors import BackupInProgress, RafthaError
from raftha.membership import Member
from raftha.storage.backup.opening import open_places
from raftha.storage.backup.pool import thread_pool
from raftha.storage.backup.replay import ReplayHooks
from raftha.storage.backup.restore import run_restore
from raftha.storage.backup.restore_plan import RestoreTarget, plan_restore
from raftha.storage.backup.shelves import describe_fork, list_shelves
from raftha.testing import LocalCluster

CHANGED_OF = 20
"""One record of so many changes between the two backups."""
PLACE = "repository"
BACKUP_S = 600.0
CATCH_UP_S = 120.0
WRITTEN_AT_ONCE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Restoration:
    """What came of the backups and of the restore."""

    full_s: float
    full_bytes: int
    incremental_s: float
    incremental_bytes: int
    """Stored sizes, compressed."""
    incremental_keys: int
    restore_s: float
    """From the wiped cluster until every node had all again."""
    expected_digest: str
    """Hash over the records as of the incremental backup, computed by the demo itself."""
    digests: dict[str, str]
    """Hash over each node's own copy after the restore."""

    @property
    def is_equal(self) -> bool:
        """True if every node's copy holds exactly these records."""
        return set(self.digests.values()) == {self.expected_digest}


def settings_of(folder: Path) -> dict[str, Any]:
    """The settings of nodes whose backups go to a folder."""
    return {"backup": {"destinations": {PLACE: str(folder)}}}


def back_up_wipe_and_restore(
    cluster: LocalCluster, records: Sequence[Record], folder: Path, digest: Any
) -> Restoration:
    """Do all of it; `digest` is `digest_of` of the demo. The cluster has exactly these records."""
    full = _back_up(cluster, "full")
    after = _change(cluster, records)
    incremental = _back_up(cluster, "incremental")
    begun = time.perf_counter()
    cluster.stop()
    for node_id in cluster.node_ids:
        cluster.wipe(node_id)
    _restore_one(cluster, folder)
    cluster.start()
    cluster.wait_caught_up(CATCH_UP_S)
    restore_s = time.perf_counter() - begun
    return Restoration(
        full_s=round(full["duration_ms"] / 1000, 3),
        full_bytes=full["size_compressed"],
        incremental_s=round(incremental["duration_ms"] / 1000, 3),
        incremental_bytes=incremental["size_compressed"],
        incremental_keys=incremental["keys"],
        restore_s=round(restore_s, 3),
        expected_digest=digest(after),
        digests={str(i): found["hex"] for i, found in cluster.digests().items()},
    )


def _back_up(cluster: LocalCluster, mode: str) -> dict[str, Any]:
    """Have a backup taken, once the scheduled one is done that a new cluster begins with."""
    deadline = time.monotonic() + BACKUP_S
    address = cluster.addresses[cluster.wait_leader()]
    while True:
        try:
            backup_id = call(
                address, ("RAFTHA", "BACKUP", "RUN", mode, "WAIT", int(BACKUP_S)), BACKUP_S
            )
            break
        except BackupInProgress:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)  # Poll: the backup that is due at once ends.
    told = json.loads(call(address, ("RAFTHA", "BACKUPS"), 30.0))
    found: dict[str, Any] = next(each for each in told["backups"] if each["id"] == backup_id)
    if found["mode"] != mode:
        raise RafthaError(f"the {mode} backup became a {found['mode']} one: {found['reason']}")
    return found


def _change(cluster: LocalCluster, records: Sequence[Record]) -> list[Record]:
    """Change some records, delete some and add some; return what there is then."""
    after = dict(records)
    leader = cluster.wait_leader()
    chosen = [key for key, _ in records[::CHANGED_OF]]
    changed = dict.fromkeys(chosen[::2], b"changed")
    changed |= {b"new-" + key: b"new" for key in chosen[::2]}
    deleted = chosen[1::2]
    pairs = list(changed.items())
    for start in range(0, len(pairs), WRITTEN_AT_ONCE):
        some = pairs[start : start + WRITTEN_AT_ONCE]
        cluster.call(leader, "MSET", *(part for pair in some for part in pair))
    for start in range(0, len(deleted), WRITTEN_AT_ONCE):
        cluster.call(leader, "DEL", *deleted[start : start + WRITTEN_AT_ONCE])
    for key in deleted:
        del after[key]
    return list((after | changed).items())


def _restore_one(cluster: LocalCluster, folder: Path) -> None:
    """Restore the first node; the others are members that begin without data."""
    node_id = min(cluster.node_ids)
    members = {i: Member(address) for i, address in cluster.peer_addresses.items()}
    repository = open_places({PLACE: str(folder)}, None)
    try:
        listed = list_shelves(repository).find()
        target = RestoreTarget(
            data_dir=cluster.folder / f"node-{node_id}" / "data",
            cluster_name="raftha",
            node_id=node_id,
            own=members.pop(node_id),
            segment_bytes=64 << 20,
            others=members,
        )
        plan = plan_restore(repository, listed.lineage, listed.label, target)
        run_restore(plan, repository, ReplayHooks(pool=thread_pool))
        describe_fork(repository, plan)
    finally:
        repository.close()
