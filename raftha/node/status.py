"""A node's status: what its collaborators know at one moment, as one record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from raftha.core import Raft
from raftha.node.backup.backups import Backups
from raftha.node.backup.results import result_of
from raftha.node.checkpoints import Checkpoints
from raftha.node.upgrades import Upgrades
from raftha.node.watch.watch import Watch
from raftha.node.writes import Writes
from raftha.storage.state.state import State
from raftha.types import HaStatus, ReplicaStatus, ReplicationState
from raftha.version import VERSION

STOPPED = "stopped"
"""The `failure` of a node that was stopped on purpose."""


class StatusReport:
    """Makes the status of one node."""

    def __init__(
        self,
        *,
        core: Raft,
        state: State,
        writes: Writes,
        checkpoints: Checkpoints,
        watch: Watch,
        upgrades: Upgrades,
        backups: Backups,
        client_addresses: Mapping[int, str],
    ) -> None:
        self.waits_for: Callable[[], str] = str
        """What a node without a cluster waits for; "" for any other."""
        self.cloned: Callable[[], tuple[int, ...]] = tuple
        """Members of which a second process was refused a short time ago."""
        self._core = core
        self._state = state
        self._writes = writes
        self._checkpoints = checkpoints
        self._watch = watch
        self._upgrades = upgrades
        self._backups = backups
        self._client_addresses = client_addresses

    def make(self, failure: str, now: float) -> HaStatus:
        """Return the status at `now` of a node that ended with `failure`, "" if it runs."""
        core, log, state = self._core, self._core.log, self._state
        rpo_commands, rpo_bytes = self._writes.unfinished()
        newest = state.catalog.newest(core.membership.lineage)
        archive = self._backups.archiving.status
        return HaStatus(
            is_running=not failure,
            is_primary=core.is_leader and not failure,
            has_lease=core.leases.holds(),
            node_id=core.id,
            cluster_id=core.membership.cluster_id,
            role=self._role(failure),
            term=core.term,
            leader_id=None if failure else core.leader,
            first_index=log.first_index,
            last_index=log.last_index,
            persisted_index=log.persisted,
            commit_index=log.commit,
            applied_index=state.applied.index,
            checkpoint_index=self._checkpoints.last.index,
            sequence=state.applied.last_sequence,
            is_healing=core.is_healing,
            failure="" if failure == STOPPED else failure,
            waits_for=self.waits_for(),
            replicas=self._replicas(now),
            removed=tuple(sorted(core.membership.removed)),
            replication_state=ReplicationState.FAILED if failure else self._watch.state(now),
            replication_lag_ms=self._watch.max_lag_ms(now),
            compared_index=self._watch.compared.index,
            diverged=self._watch.compared.diverged,
            rpo_commands=rpo_commands,
            rpo_bytes=rpo_bytes,
            log_mismatch=core.mismatch,
            cloned=self.cloned(),
            version=VERSION,
            protocol_version=state.versions.protocol if state.versions is not None else 0,
            machine_version=state.versions.machine if state.versions is not None else 0,
            upgrade_waits_for=self._upgrades.waits_for(),
            backup_state=self._backups.state,
            last_backup=None if newest is None else result_of(newest, None),
            archive=archive,
            pitr_sequence=None if archive is None else archive.archived_sequence,
            rpo_ms=None if archive is None else archive.rpo_ms,
        )

    def _replicas(self, now: float) -> tuple[ReplicaStatus, ...]:
        replicas = []
        for replica in self._watch.statuses(now, self._client_addresses):
            version, machine_version = self._upgrades.release(replica.node_id)
            replicas.append(replace(replica, version=version, machine_version=machine_version))
        return tuple(replicas)

    def _role(self, failure: str) -> str:
        if not failure and self._core.is_removed:
            return "removed"
        if not failure:
            return "waiting" if self.waits_for() else self._core.role.value
        return STOPPED if failure == STOPPED else "failed"
