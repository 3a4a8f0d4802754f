"""`BackupConfig`, `RetentionPolicy`: when backups are taken, where they go, how long they stay."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from raftha.config.checks import Choice, Length, Location, Marker, Range, check, shown
from raftha.config.limits import BACKUP_DESTINATIONS_MAX, GIB, KIB, MIB, TIB
from raftha.errors import ConfigError
from raftha.types import BackupMode

SOURCES = ("standby", "follower", "leader")

Hours: TypeAlias = Annotated[float, Range(0.01, 8760, unit="hours")]


class DestinationName(Marker):
    """Up to 32 small letters, digits, `-` and `_`: names appear in metrics and in file names."""

    _FORM = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}\Z")

    def allows(self, value: Any) -> bool:
        return self._FORM.match(value) is not None

    def phrase(self, noun: str) -> str:
        return "1 to 32 small letters, digits, - and _"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPolicy:
    """Which backups stay. One that no rule keeps is deleted.

    Each destination counts by what can be restored from it; what one of them keeps, all keep. What
    a kept backup is restored from stays too: its parents, down to a full one. Pinned backups stay,
    and the newest one. A backup is deleted only from destinations that have a newer one. Days,
    weeks and months are those of UTC; weeks begin on Monday.
    """

    keep_last: Annotated[int, Range(1, 500, unit="backups")] = 10
    """The newest backups that stay, whatever their age."""

    keep_daily_days: Annotated[int, Range(0, 3660, unit="days")] = 7
    """For this many days, today included, the newest backup of each day stays."""

    keep_weekly_weeks: Annotated[int, Range(0, 522, unit="weeks")] = 4
    """For this many weeks, this one included, the newest backup of each week stays."""

    keep_monthly_months: Annotated[int, Range(0, 120, unit="months")] = 12
    """For this many months, this one included, the newest backup of each month stays."""

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupConfig:
    """When backups are taken, where they go, and how long they stay.

    Give all members the same settings: the leader decides by its own when a backup is due and what
    is deleted, and any member may be the one that takes it. `HaConfig.backup` of None, the default,
    means that this node takes no backups and asks for none.
    """

    interval_hours: Hours = 6
    """The same as `HaConfig.backup_interval_hours`: the time from one backup to the next. What is
    written after the last backup is lost with the cluster, so this is the recovery point."""

    mode: BackupMode = BackupMode.INCREMENTAL
    """What a backup holds, unless the call names another mode. `full` holds everything.
    `incremental` holds what has changed since the last backup; it is small, and a restore reads the
    chain back to the last full one. `differential` holds what has changed since the last full
    backup; it grows, and a restore reads two. A full backup is taken instead where one is due, or
    where no member has recorded the changes since the parent."""

    full_every_days: Annotated[float, Range(0.01, 366, unit="days")] = 7
    """A full backup is taken instead of another when the last full one is this old. It is taken
    earlier after 28 incremental ones, or when they are half as large as the full one. A high value
    costs less space and makes restores slower."""

    retention: RetentionPolicy = field(default_factory=RetentionPolicy)
    """Which backups stay, in TOML the table `[backup.retention]`."""

    destinations: Annotated[
        Mapping[Annotated[str, DestinationName()], Annotated[str, Location()]],
        Length(1, BACKUP_DESTINATIONS_MAX, unit="destinations"),
    ] = field(default_factory=lambda: {"local": "backups/"})
    """Where backups go, each to all of these: name -> a folder or URL, in TOML the table
    `[backup.destinations]`. A folder must be the same one for all members, a mount for example; in
    a TOML file it is relative to the file. URLs are `s3://bucket/prefix`, `gs://bucket/prefix`,
    `az://container/prefix` and `file:///folder`, with `?endpoint=` and `&region=` where needed.
    Credentials come from the environment. A backup is complete once it is in one destination; the
    others are reported with their errors."""

    compression: bool = True
    """Whether backups are compressed, with zstd."""

    compression_level: Annotated[int, Range(1, 9)] = 6
    """How hard: 1 is fast and 9 small, for zstd's levels 1, 2, 3, 5, 7, 9, 12, 15 and 19."""

    encryption: bool = False
    """Whether backups are encrypted, with AES-256-GCM. Needs `encryption_key_file` or
    `encryption_key_command`. It is decided with the first backup, and can't change later."""

    encryption_key_file: str | Path = ""
    """A file with the key, which other users must not be able to read; `raftha backup key` makes
    one. Give all members the same file, and keep a copy elsewhere: without it no encrypted backup
    can be restored. In a TOML file, relative to the file."""

    encryption_key_command: Annotated[str, Length(0, 1024, unit="characters")] = ""
    """A command that prints the key, instead of a file: it asks a vault, for example. It is run
    without a shell, when the node first needs the key."""

    backup_from: Annotated[
        tuple[Annotated[str, Choice(*SOURCES)], ...], Length(1, 3, unit="kinds of members")
    ] = SOURCES
    """The members that take backups, those preferred first. A standby costs writes nothing, a
    follower little; the leader has the least to spare. Leave out the kinds that never should."""

    bytes_per_s: Annotated[int, Range(64 * KIB, TIB, unit="bytes/s", or_zero=True)] = 0
    """The highest rate at which a backup is read and sent. 0 for no such limit. The member that
    takes it lowers the rate by itself when backups slow down writes."""

    spool_bytes: Annotated[int, Range(16 * MIB, TIB, unit="bytes", or_zero=True)] = GIB
    """The space in each member's data directory for the changes since the last backup, from which
    incremental ones are made. A member whose changes need more drops them, and the next backup is a
    full one unless another member has them. 0 for none: then all backups are full. Plan the disk
    for it; a full disk takes it back first."""

    rto_target_s: Annotated[float, Range(1, 604_800, unit="s", or_zero=True)] = 300
    """How long a restore may take. A backup is due earlier when the estimate for a restore of the
    present chain exceeds it. 0 for no target."""

    retry_s: Annotated[float, Range(1, 3600, unit="s")] = 30
    """How long an object's upload to a destination is tried. After that this destination has no
    part in this backup; the others go on."""

    verify_level: Annotated[int, Range(1, 3)] = 1
    """How a backup is verified before it counts as complete. 1 reads all of it back and compares
    hashes. 2 also decodes it and checks the order and number of its keys. 3 also computes the
    digest of the restored state and compares it with the member's; it reads the whole chain."""

    def __post_init__(self) -> None:
        check(self)
        if len(set(self.backup_from)) < len(self.backup_from):
            raise ConfigError("backup_from: a name stands twice", hint="name each kind once")
        _check_key(self)
        places = [place.rstrip("/") for place in self.destinations.values()]
        if len(set(places)) < len(places):
            raise ConfigError(
                "destinations: two names stand for the same place",
                hint=f"each destination needs a place of its own, got {shown(places)}",
            )

    @property
    def level(self) -> int:
        """`compression_level`; 0 without compression."""
        return self.compression_level if self.compression else 0


def _check_key(config: BackupConfig) -> None:
    if config.encryption_key_file and config.encryption_key_command:
        raise ConfigError(
            "encryption_key_file and encryption_key_command exclude each other",
            hint="keep the one that knows the key",
        )
    has_key = bool(config.encryption_key_file or config.encryption_key_command)
    if config.encryption and not has_key:
        raise ConfigError(
            "encryption needs encryption_key_file or encryption_key_command",
            hint="`raftha backup key` makes a file",
        )
    if has_key and not config.encryption:
        raise ConfigError(
            "a key is set, but encryption is false",
            hint="set encryption = true, or leave the key out",
        )
