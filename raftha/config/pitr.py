"""`PitrConfig`: how far back a cluster can be taken, and how much of it an outage can cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeAlias

from raftha.config.checks import Range, check
from raftha.config.limits import MIB, TIB

RetentionHours: TypeAlias = Annotated[int, Range(1, 87_600, unit="hours")]


@dataclass(frozen=True, slots=True, kw_only=True)
class PitrConfig:
    """How far back the cluster can be taken: to any second and any sequence of this window.

    Point-in-time recovery needs backups: it is on where `HaConfig.backup` is set and
    `HaConfig.enable_pitr` is true. Then the cluster's log goes to each destination of the backups
    too, and a recovery replays it from the backup before the moment that is asked for. Give all
    members the same settings: the leader goes by its own.
    """

    retention_hours: RetentionHours = 168
    """The same as `HaConfig.pitr_retention_hours`: how far back the window reaches. The backups and
    the log that it needs stay as long, whatever `BackupConfig.retention` says; older backups keep
    no log."""

    checkpoint_interval_sec: Annotated[float, Range(1, 86_400, unit="s")] = 60
    """The longest time between two recovery points while anything is written. A recovery point is a
    moment for which the event `pitr_checkpoint` says that it can be restored; moments in between
    can be restored just as well. It costs no message and no disk."""

    max_wal_size: Annotated[int, Range(MIB, TIB, unit="bytes")] = 64 * MIB
    """The log after which a recovery point is noted earlier. `HaConfig.max_wal_size` is another
    setting: it is about the members' own disks."""

    archive_interval_ms: Annotated[int, Range(50, 60_000, unit="ms")] = 1000
    """How long a write waits until its log goes to the destinations. What is younger is lost
    together with the cluster, so this and the time of an upload are the recovery point. A low value
    costs more requests; an idle cluster makes next to none, whatever this is."""

    archive_backlog_bytes: Annotated[int, Range(MIB, 1024 * TIB, unit="bytes", or_zero=True)] = 0
    """The log that members keep while no destination takes it. 0 for as much as
    `HaConfig.log_retention_bytes`. Beyond it members delete log, and the window has a gap, which
    the event `archive_gap` names. Plan the disk for the higher of the two."""

    drill_every_days: Annotated[float, Range(0.01, 366, unit="days", or_zero=True)] = 7
    """How often a moment in the window is restored for proof, in a process of its own at low
    priority, on the member that takes backups. It needs room for a second state in the data
    directory. 0 for never."""

    restore_timeout_s: Annotated[float, Range(1, 604_800, unit="s")] = 3600
    """How long the members may prepare a recovery of the live cluster. After that it is given up,
    and nothing has changed. Set it above the time that `plan` estimates."""

    freeze_timeout_s: Annotated[float, Range(0.1, 600, unit="s")] = 10
    """How long writes may wait at the end of a recovery, until the log is in a destination, so that
    the recovery can be undone. After that the recovery is given up, and writes go on."""

    def __post_init__(self) -> None:
        check(self)
