"""Settings. Each is declared once, and checked when a config is made.

`node`, `replication`, `backup` and `pitr` hold the configs, `limits` the limits that several
packages share, `checks` the markers of annotations and the loop that validates them, `tables` the
conversion from TOML.
"""

from __future__ import annotations

from raftha.config.addresses import is_loopback, parse_address
from raftha.config.backup import BackupConfig, RetentionPolicy
from raftha.config.limits import (
    BACKUP_DESTINATIONS_MAX,
    DAY_MS,
    KEY_BYTES_MAX,
    KIB,
    MEMBERS_MAX,
    MIB,
    REGION_BYTES_MAX,
    REGIONS_MAX,
)
from raftha.config.node import HaConfig, read_toml
from raftha.config.pitr import PitrConfig
from raftha.config.replication import ReplicationConfig

__all__ = [
    "BACKUP_DESTINATIONS_MAX",
    "DAY_MS",
    "KEY_BYTES_MAX",
    "KIB",
    "MEMBERS_MAX",
    "MIB",
    "REGIONS_MAX",
    "REGION_BYTES_MAX",
    "BackupConfig",
    "HaConfig",
    "PitrConfig",
    "ReplicationConfig",
    "RetentionPolicy",
    "is_loopback",
    "parse_address",
    "read_toml",
]
