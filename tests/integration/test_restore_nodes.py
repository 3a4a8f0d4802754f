"""Restored members in real nodes: alone, with the others empty, and with others restored too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from raftha import HaManager
from raftha.config import HaConfig
from raftha.membership import Member
from raftha.storage.backup.restore import RestoreResult, run_restore
from raftha.storage.backup.restore_plan import RestoreTarget, plan_restore
from raftha.storage.backup.timeline import SEQUENCE_STEP
from tests.support.backups import LINEAGE, BackedUpNode, memory, repository_of
from tests.support.conditions import wait_until
from tests.support.nodes import free_addresses, wait_leader

pytestmark = pytest.mark.slow


class Restored:
    """A backup of another cluster, and the members that are made of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.node = BackedUpNode()
        self.node.write({b"%04d" % i: b"%d" % i for i in range(1000)})
        self.repository = repository_of(memory())
        self.label = self.node.take(self.repository).manifest.label
        self.members = {i: Member(address) for i, address in enumerate(free_addresses(3), 1)}

    def restore(
        self, node_id: int, others: Mapping[int, Member] | None = None, token: str = ""
    ) -> RestoreResult:
        target = RestoreTarget(
            data_dir=self.folder / str(node_id),
            cluster_name="bank",
            node_id=node_id,
            own=self.members[node_id],
            segment_bytes=16 << 20,
            others=others or {},
            token=token,
        )
        return run_restore(
            plan_restore(self.repository, LINEAGE, self.label, target), self.repository
        )

    def manager(self, node_id: int) -> HaManager:
        return HaManager(
            HaConfig(
                node_id=node_id,
                data_dir=self.folder / str(node_id),
                members={i: member.address for i, member in self.members.items()},
                cluster_name="bank",
                wal_segment_bytes=16 << 20,
                request_timeout_s=20,
            )
        )


def voters(manager: HaManager) -> list[int]:
    return sorted(each.node_id for each in manager.get_status().replicas if each.is_voter)


def test_the_restored_members_are_a_cluster_with_all_data(tmp_path: Path) -> None:
    """One is restored, the second with its token, and the third begins empty."""
    restored = Restored(tmp_path)
    others = {i: restored.members[i] for i in (2, 3)}
    token = restored.restore(1, others).token
    restored.restore(2, token=token)
    managers = {i: restored.manager(i) for i in (1, 2, 3)}
    for manager in managers.values():
        manager.start()
    try:
        assert wait_leader(managers) == 1
        receipt = managers[1].put(b"after", b"1")
        assert receipt.sequence == 2 * SEQUENCE_STEP + 1
        wait_until(lambda: voters(managers[1]) == [1, 2, 3], "not all become voters")
        for manager in managers.values():
            assert manager.get(b"0999") == b"999"
            assert manager.get(b"after") == b"1"
        managers.pop(1).stop()
        wait_leader(managers)
        managers[2].put(b"later", b"2")
        assert managers[3].get(b"later") == b"2"
    finally:
        for manager in managers.values():
            manager.stop()
