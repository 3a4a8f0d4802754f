"""The settings of a simulated member: of its node, and of its core, as its seed's swarm says."""

from __future__ import annotations

from raftha.config import BackupConfig, HaConfig, PitrConfig
from raftha.core import CoreConfig
from raftha.node.bootstrap import HEARTBEAT_TICKS
from tests.sim.swarm import Swarm

HEARTBEAT_MS = 50
ELECTION_MS = 250
TICK_S = HEARTBEAT_MS / 1000 / HEARTBEAT_TICKS
WAL = "wal"
LINEAGE = "a" * 32


def node_config(node_id: int, swarm: Swarm, backup: BackupConfig | None) -> HaConfig:
    """The settings of a node."""
    return HaConfig(
        node_id=node_id,
        data_dir=WAL,
        members={i: f"127.0.0.1:{7100 + i}" for i in range(1, swarm.size + 1)},
        address=f"127.0.0.1:{7100 + node_id}",
        heartbeat_interval_ms=HEARTBEAT_MS,
        election_timeout_ms=ELECTION_MS,
        checkpoint_interval_sec=swarm.checkpoint_s,
        auto_failover=swarm.campaigns,
        regions=swarm.regions,
        member_regions={i: swarm.region(i) for i in range(1, swarm.size + 1)},
        lease_ms=swarm.lease_ms,
        clock_drift_max=swarm.clock_drift_max,
        digest_interval_hours=swarm.digest_every_s / 3600,
        max_clock_offset_ms=swarm.max_clock_offset_ms,
        backup=backup,
        enable_pitr=swarm.backups is not None and swarm.backups.archives,
        pitr=_recovery(swarm),
    )


def _recovery(swarm: Swarm) -> PitrConfig:
    if swarm.backups is None:
        return PitrConfig()
    return PitrConfig(
        archive_interval_ms=swarm.backups.archive_interval_ms, checkpoint_interval_sec=1
    )


def core_config(node_id: int, swarm: Swarm, *, lease_ms: int, promised_ms: int) -> CoreConfig:
    """The settings of its core in one life, with the lease that it has in this life."""
    return CoreConfig(
        node_id=node_id,
        heartbeat_ticks=HEARTBEAT_TICKS,
        election_ticks=ELECTION_MS * HEARTBEAT_TICKS // HEARTBEAT_MS,
        campaigns=swarm.campaigns,
        regions=swarm.regions,
        append_bytes_max=swarm.append_bytes_max,
        in_flight_messages_max=swarm.in_flight_messages_max,
        window_bytes_max=swarm.window_bytes_max,
        write_bytes_max=swarm.write_bytes_max,
        lease_ms=lease_ms,
        promised_ms=promised_ms,
        clock_drift_max=swarm.clock_drift_max,
    )
