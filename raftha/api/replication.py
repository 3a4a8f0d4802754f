"""`ha.replication`: how the replicas are, and who is one. For both managers the same names.

Every node shows the same table: the leader measures, and tells the others (`lag.py`). Nothing here
can't be had from the manager itself; these are the names of the reference.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from raftha.config import HaConfig, ReplicationConfig
from raftha.types import HaStatus, ReplicaStatus, ReplicationState


class Manager(Protocol):
    """The blocking manager."""

    config: HaConfig

    def get_status(self) -> HaStatus: ...
    def failover_to(self, node_id: int, *, timeout: float | None = None) -> None: ...
    def add_replica(
        self,
        node_id: int,
        address: str,
        *,
        region: str,
        voter: bool = True,
        timeout: float | None = None,
    ) -> None: ...
    def promote_replica(self, node_id: int, *, timeout: float | None = None) -> None: ...
    def promote_region(self, region: str, *, timeout: float | None = None) -> tuple[int, ...]: ...
    def remove_replica(self, node_id: int, *, timeout: float | None = None) -> None: ...


class AsyncManager(Protocol):
    """The manager for asyncio."""

    config: HaConfig

    def get_status(self) -> Awaitable[HaStatus]: ...
    def failover_to(self, node_id: int, *, timeout: float | None = None) -> Awaitable[None]: ...
    def add_replica(
        self,
        node_id: int,
        address: str,
        *,
        region: str,
        voter: bool = True,
        timeout: float | None = None,
    ) -> Awaitable[None]: ...
    def promote_replica(self, node_id: int, *, timeout: float | None = None) -> Awaitable[None]: ...
    def promote_region(
        self, region: str, *, timeout: float | None = None
    ) -> Awaitable[tuple[int, ...]]: ...
    def remove_replica(self, node_id: int, *, timeout: float | None = None) -> Awaitable[None]: ...


class ReplicationManager:
    """The replicas of a cluster, as this manager's node sees them."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    @property
    def config(self) -> ReplicationConfig:
        """Modes, quorums and limits, as this manager was made with."""
        return self._manager.config.replication

    def get_state(self) -> ReplicationState:
        """How it stands with the cluster."""
        return self._manager.get_status().replication_state

    def get_replica_count(self) -> int:
        """Members of the cluster, learners and this node among them."""
        return self._manager.get_status().replica_count

    def get_max_lag(self) -> int:
        """The largest lag of a voter, in milliseconds."""
        return self._manager.get_status().replication_lag_ms

    def get_quorum_size(self) -> int:
        """How many voters are a majority: as many as must have a write before it is committed."""
        return quorum_size(self._manager.get_status())

    def replicas(self) -> tuple[ReplicaStatus, ...]:
        """Every member: its state, how far its log and its state are, its lag."""
        return self._manager.get_status().replicas

    def promote_to_primary(self, node_id: int, *, timeout: float | None = None) -> None:
        """As `HaManager.failover_to`."""
        self._manager.failover_to(node_id, timeout=timeout)

    def add_replica(
        self,
        node_id: int,
        region: str,
        address: str,
        *,
        voter: bool = True,
        timeout: float | None = None,
    ) -> None:
        """As `HaManager.add_replica`."""
        self._manager.add_replica(node_id, address, region=region, voter=voter, timeout=timeout)

    def promote_replica(self, node_id: int, *, timeout: float | None = None) -> None:
        """As `HaManager.promote_replica`."""
        self._manager.promote_replica(node_id, timeout=timeout)

    def promote_region(self, region: str, *, timeout: float | None = None) -> tuple[int, ...]:
        """As `HaManager.promote_region`."""
        return self._manager.promote_region(region, timeout=timeout)

    def remove_replica(self, node_id: int, *, timeout: float | None = None) -> None:
        """As `HaManager.remove_replica`."""
        self._manager.remove_replica(node_id, timeout=timeout)


class AsyncReplicationManager:
    """As `ReplicationManager`, awaited."""

    def __init__(self, manager: AsyncManager) -> None:
        self._manager = manager

    @property
    def config(self) -> ReplicationConfig:
        """As of `ReplicationManager`."""
        return self._manager.config.replication

    async def get_state(self) -> ReplicationState:
        """As of `ReplicationManager`."""
        return (await self._manager.get_status()).replication_state

    async def get_replica_count(self) -> int:
        """As of `ReplicationManager`."""
        return (await self._manager.get_status()).replica_count

    async def get_max_lag(self) -> int:
        """As of `ReplicationManager`."""
        return (await self._manager.get_status()).replication_lag_ms

    async def get_quorum_size(self) -> int:
        """As of `ReplicationManager`."""
        return quorum_size(await self._manager.get_status())

    async def replicas(self) -> tuple[ReplicaStatus, ...]:
        """As of `ReplicationManager`."""
        return (await self._manager.get_status()).replicas

    async def promote_to_primary(self, node_id: int, *, timeout: float | None = None) -> None:
        """As of `ReplicationManager`."""
        await self._manager.failover_to(node_id, timeout=timeout)

    async def add_replica(
        self,
        node_id: int,
        region: str,
        address: str,
        *,
        voter: bool = True,
        timeout: float | None = None,
    ) -> None:
        """As of `ReplicationManager`."""
        await self._manager.add_replica(
            node_id, address, region=region, voter=voter, timeout=timeout
        )

    async def promote_replica(self, node_id: int, *, timeout: float | None = None) -> None:
        """As of `ReplicationManager`."""
        await self._manager.promote_replica(node_id, timeout=timeout)

    async def promote_region(self, region: str, *, timeout: float | None = None) -> tuple[int, ...]:
        """As of `ReplicationManager`."""
        return await self._manager.promote_region(region, timeout=timeout)

    async def remove_replica(self, node_id: int, *, timeout: float | None = None) -> None:
        """As of `ReplicationManager`."""
        await self._manager.remove_replica(node_id, timeout=timeout)


def quorum_size(status: HaStatus) -> int:
    """A majority of the voters."""
    return sum(replica.is_voter for replica in status.replicas) // 2 + 1
