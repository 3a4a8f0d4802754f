"""What `import raftha` offers: its names, their docstrings, and its lazy modules."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import raftha

NAMES = """\
Acknowledgement AcknowledgementTimeout ArchiveGap AsyncEventStream BackupConfig BackupFailed
BackupInProgress BackupMode BackupOrchestrator BackupResult BackupState BackupVerification
ChainBroken CommandFailed ConfigError Corrupt Delete DestinationCheck Digest Disconnected
DrillReport Equals EventKind EventStream Exists FireForgetCounts Forked Get HaConfig HaEvent
HaManager HaStatus Health Indeterminate InvalidRequest KeyMissing MembershipChangePending Missing
Overloaded PitrConfig PitrManager Put RafthaError Receipt RecoveryAborted RecoveryInProgress
RecoveryMoment RecoveryPlan RecoveryPoint RecoveryPointKind RecoveryResult RecoveryState
RecoveryWindow Rejected ReplicaState ReplicaStatus ReplicaTooSlow ReplicationConfig
ReplicationManager ReplicationMode ReplicationState RepositoryConflict RepositoryError
RepositoryUnavailable RequestTimeout RetentionDecision RetentionFate RetentionPolicy SessionExpired
StateMachine Stopped StorageError StorageFailed StorageFull TargetUnreachable Transaction
TransferFailed Unavailable UpgradePending UpgradeRequired __version__ aio command config events
"""

LAZY = {
    "aio": ["AsyncReplicationManager", "HaManager"],
    "client": ["Client", "ReplyError"],
    "metrics": ["Collector", "Exposition"],
    "testing": ["LocalCluster", "LocalClusterError"],
}
"""Modules that `import raftha` doesn't import, and their public names."""

NEVER_IMPORTED = ("hiredis", "obstore", "prometheus_client", "rich", "typer")

INTERNAL = ("Compacted", "NotLeader", "WireError")
"""Errors that no call raises: the node handles them itself."""


def test_the_public_names_are_these_in_order() -> None:
    assert " ".join(raftha.__all__) == " ".join(NAMES.split())
    assert raftha.__all__ == sorted(raftha.__all__)


@pytest.mark.parametrize("name", sorted({*raftha.__all__} - {"__version__"}))
def test_every_public_name_has_a_docstring(name: str) -> None:
    documented = getattr(raftha, name)
    assert documented.__doc__, f"{name} has none"
    if inspect.isclass(documented):
        members = vars(documented).items()
        methods = [key for key, value in members if inspect.isfunction(value) and key[0] != "_"]
        assert not [key for key in methods if not getattr(documented, key).__doc__]


@pytest.mark.parametrize("module", LAZY)
def test_a_module_is_imported_when_it_is_first_used(module: str) -> None:
    assert module in dir(raftha)
    for name in LAZY[module]:
        assert getattr(getattr(raftha, module), name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_of_ours"):
        _ = raftha.nothing_of_ours
    with pytest.raises(ImportError):
        from raftha import nothing_of_ours  # noqa: F401


@pytest.mark.parametrize("name", INTERNAL)
def test_an_error_that_no_call_raises_is_not_exported(name: str) -> None:
    assert not hasattr(raftha, name)


@pytest.mark.slow
def test_import_raftha_imports_no_extra_and_no_lazy_module() -> None:
    late = [*NEVER_IMPORTED, *(f"raftha.{module}" for module in LAZY)]
    program = f"import sys, raftha; print([name for name in {late} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
