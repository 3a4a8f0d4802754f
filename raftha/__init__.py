"""raftha makes a Python server process highly available.

A process that embeds it replicates its writes to other processes through a Raft log. When the
leader dies, another takes over. The state is kept in LMDB. Run this in three processes, with
node_id 1, 2 and 3:

    import raftha

    members = {1: "127.0.0.1:7101", 2: "127.0.0.1:7102", 3: "127.0.0.1:7103"}
    config = raftha.HaConfig(node_id=1, data_dir="data/1", members=members, bootstrap=True)
    with raftha.HaManager(config) as ha:
        receipt = ha.put(b"key", b"value")      # on disk on two of three when it returns
        assert ha.get(b"key") == b"value"       # linearizable, on any node

`raftha.aio.HaManager` is the same for asyncio. `raftha.StateMachine` replicates commands of your
own. `raftha.testing.LocalCluster` starts and kills real nodes in your tests.
"""

import importlib
from typing import TYPE_CHECKING, Any

from raftha import config, events
from raftha.api.backup import BackupOrchestrator
from raftha.api.recovery import PitrManager
from raftha.config import BackupConfig, HaConfig, PitrConfig, ReplicationConfig, RetentionPolicy
from raftha.errors import (
    AcknowledgementTimeout,
    ArchiveGap,
    BackupFailed,
    BackupInProgress,
    ChainBroken,
    CommandFailed,
    ConfigError,
    Corrupt,
    Disconnected,
    Forked,
    Indeterminate,
    InvalidRequest,
    KeyMissing,
    MembershipChangePending,
    Overloaded,
    RafthaError,
    RecoveryAborted,
    RecoveryInProgress,
    Rejected,
    ReplicaTooSlow,
    RepositoryConflict,
    RepositoryError,
    RepositoryUnavailable,
    RequestTimeout,
    SessionExpired,
    Stopped,
    StorageError,
    StorageFailed,
    StorageFull,
    TargetUnreachable,
    TransferFailed,
    Unavailable,
    UpgradePending,
    UpgradeRequired,
)
from raftha.events import EventKind, HaEvent
from raftha.manager import HaManager, ReplicationManager
from raftha.recovery import (
    DrillReport,
    RecoveryMoment,
    RecoveryPlan,
    RecoveryPoint,
    RecoveryPointKind,
    RecoveryResult,
    RecoveryState,
    RecoveryWindow,
)
from raftha.runtime.event_bus import AsyncEventStream, EventStream
from raftha.storage.state.commands import Delete, Equals, Exists, Get, Missing, Put
from raftha.storage.state.machine import StateMachine, Transaction, command
from raftha.types import (
    Acknowledgement,
    BackupMode,
    BackupResult,
    BackupState,
    BackupVerification,
    DestinationCheck,
    Digest,
    FireForgetCounts,
    HaStatus,
    Health,
    Receipt,
    ReplicaState,
    ReplicaStatus,
    ReplicationMode,
    ReplicationState,
    RetentionDecision,
    RetentionFate,
)
from raftha.version import VERSION as __version__

if TYPE_CHECKING:
    from raftha import aio as aio
    from raftha import client as client
    from raftha import metrics as metrics
    from raftha import testing as testing

__all__ = [
    "Acknowledgement",
    "AcknowledgementTimeout",
    "ArchiveGap",
    "AsyncEventStream",
    "BackupConfig",
    "BackupFailed",
    "BackupInProgress",
    "BackupMode",
    "BackupOrchestrator",
    "BackupResult",
    "BackupState",
    "BackupVerification",
    "ChainBroken",
    "CommandFailed",
    "ConfigError",
    "Corrupt",
    "Delete",
    "DestinationCheck",
    "Digest",
    "Disconnected",
    "DrillReport",
    "Equals",
    "EventKind",
    "EventStream",
    "Exists",
    "FireForgetCounts",
    "Forked",
    "Get",
    "HaConfig",
    "HaEvent",
    "HaManager",
    "HaStatus",
    "Health",
    "Indeterminate",
    "InvalidRequest",
    "KeyMissing",
    "MembershipChangePending",
    "Missing",
    "Overloaded",
    "PitrConfig",
    "PitrManager",
    "Put",
    "RafthaError",
    "Receipt",
    "RecoveryAborted",
    "RecoveryInProgress",
    "RecoveryMoment",
    "RecoveryPlan",
    "RecoveryPoint",
    "RecoveryPointKind",
    "RecoveryResult",
    "RecoveryState",
    "RecoveryWindow",
    "Rejected",
    "ReplicaState",
    "ReplicaStatus",
    "ReplicaTooSlow",
    "ReplicationConfig",
    "ReplicationManager",
    "ReplicationMode",
    "ReplicationState",
    "RepositoryConflict",
    "RepositoryError",
    "RepositoryUnavailable",
    "RequestTimeout",
    "RetentionDecision",
    "RetentionFate",
    "RetentionPolicy",
    "SessionExpired",
    "StateMachine",
    "Stopped",
    "StorageError",
    "StorageFailed",
    "StorageFull",
    "TargetUnreachable",
    "Transaction",
    "TransferFailed",
    "Unavailable",
    "UpgradePending",
    "UpgradeRequired",
    "__version__",
    "aio",
    "command",
    "config",
    "events",
]

_LAZY = ("aio", "client", "metrics", "testing")
"""Public modules that are imported at their first use. Some need an extra of the package."""


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"raftha.{name}")
    raise AttributeError(f"module 'raftha' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
