"""What all events have: their kinds, and the fields of `HaEvent`."""

from __future__ import annotations

import enum
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, ClassVar


class EventKind(enum.StrEnum):
    """The kinds of events. Each has a class of its own, whose `kind` it is."""

    ROLE_CHANGED = "role_changed"
    LEADER_ELECTED = "leader_elected"
    LEADER_LOST = "leader_lost"
    SECOND_LEADER = "second_leader"
    LOGS_DIFFER = "logs_differ"
    FAILOVER_STARTED = "failover_started"
    FAILOVER_COMPLETED = "failover_completed"
    MEMBERSHIP_CHANGED = "membership_changed"
    CATCH_UP_GIVEN_UP = "catch_up_given_up"
    REMOVED = "removed"
    REPLICA_CONNECTED = "replica_connected"
    REPLICA_DISCONNECTED = "replica_disconnected"
    REPLICA_UNSUPPORTED = "replica_unsupported"
    MEMBER_CLONED = "member_cloned"
    CLUSTER_UPGRADED = "cluster_upgraded"
    ENTRY_SKIPPED = "entry_skipped"
    REPLICA_ADDED = "replica_added"
    REPLICA_REMOVED = "replica_removed"
    REPLICATION_LAG_WARNING = "replication_lag_warning"
    QUORUM_LOST = "quorum_lost"
    QUORUM_RESTORED = "quorum_restored"
    REPLICA_BEHIND_LOG = "replica_behind_log"
    SNAPSHOT_SENT = "snapshot_sent"
    SNAPSHOT_FAILED = "snapshot_failed"
    SNAPSHOT_INSTALLING = "snapshot_installing"
    STORAGE_FAILED = "storage_failed"
    STORAGE_DAMAGED = "storage_damaged"
    HEALING_ENDED = "healing_ended"
    REPLICA_LOST_LOG = "replica_lost_log"
    REPLICA_DIVERGED = "replica_diverged"
    REPLICA_HEALING = "replica_healing"
    REPLICA_HEALED = "replica_healed"
    STORAGE_FULL = "storage_full"
    STORAGE_HAS_SPACE = "storage_has_space"
    HEALTH_CHECK_FAILED = "health_check_failed"
    HEALTH_RECOVERED = "health_recovered"
    CHECKPOINT_COMPLETED = "checkpoint_completed"
    CERTIFICATE_EXPIRES = "certificate_expires"
    CLOCK_WRONG = "clock_wrong"
    CLOCK_RIGHT = "clock_right"
    BACKUP_STARTED = "backup_started"
    BACKUP_PROGRESS = "backup_progress"
    UPLOAD_STARTED = "upload_started"
    UPLOAD_COMPLETED = "upload_completed"
    VERIFICATION_PASSED = "verification_passed"
    VERIFICATION_FAILED = "verification_failed"
    BACKUP_COMPLETED = "backup_completed"
    BACKUP_FAILED = "backup_failed"
    BACKUP_MISSING = "backup_missing"
    RETENTION_APPLIED = "retention_applied"
    RETENTION_REFUSED = "retention_refused"
    REPOSITORY_CONFLICT = "repository_conflict"
    PITR_CHECKPOINT = "pitr_checkpoint"
    RECOVERY_STARTED = "recovery_started"
    RECOVERY_PREPARED = "recovery_prepared"
    RECOVERY_COMPLETED = "recovery_completed"
    RECOVERY_FAILED = "recovery_failed"
    RESTORE_DRILL_COMPLETED = "restore_drill_completed"
    ARCHIVE_LAGGING = "archive_lagging"
    ARCHIVE_RESUMED = "archive_resumed"
    ARCHIVE_GAP = "archive_gap"


@dataclass(frozen=True, slots=True, kw_only=True)
class HaEvent:
    """The root of all events. `reporter` is the node that reports the event.

    An event about one member has its id in `node_id`. `number` counts this node's events, 1, 2, 3
    ...; a gap means that some were dropped. `time_us` is this node's clock at the time of
    publication, in microseconds since 1970 UTC, and `time` the same as a datetime.
    """

    kind: ClassVar[EventKind]

    reporter: int
    number: int = 0
    time_us: int = 0

    @property
    def time(self) -> datetime:
        """When this node published the event, in UTC."""
        return datetime.fromtimestamp(self.time_us / 1e6, UTC)

    def details(self) -> dict[str, Any]:
        """The fields that this kind of event has in addition to those of all events."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in _STAMPS
        }


_STAMPS = ("reporter", "number", "time_us")
