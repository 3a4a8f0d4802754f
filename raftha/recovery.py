"""The records of point-in-time recovery that users of raftha receive: points, windows, results."""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple


class RecoveryPointKind(enum.StrEnum):
    """What a recovery point is."""

    BACKUP = "backup"
    """A complete backup."""
    CHECKPOINT = "checkpoint"
    """A moment that the leader has noted, on request or by its settings."""
    MARK = "mark"
    """A moment with a name."""
    RECOVERY = "recovery"
    """The last moment before a recovery: to go back to it undoes that."""


class RecoveryState(enum.StrEnum):
    """What has become of a recovery."""

    PREPARED = "prepared"
    """The members build the state of then, beside their own."""
    RESTORED = "restored"
    """The state is that of then, on every member that has applied the log so far."""
    ABORTED = "aborted"
    """It was given up, and nothing has changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryPoint:
    """A moment that the cluster knows; all others of the window can be restored as well.

    `sequence`: the last command of the moment. `time_us`: its log time, in microseconds since 1970
    UTC; `timestamp` is its datetime. `index`: the log entry. `name`: of a mark its name, of a
    backup its label.

    `is_consistent`: the states of a majority were compared as of this entry, and were the same.
    `agreed` of the `voters` had `digest` then; without voters there was no comparison.

    `size_bytes`: the stored size of the backups that a recovery to it reads, 0 if none of them is
    known any more. It reads log in addition.
    """

    kind: RecoveryPointKind
    sequence: int
    time_us: int
    index: int
    name: str = ""
    size_bytes: int = 0
    is_consistent: bool = False
    agreed: int = 0
    voters: int = 0
    digest: str = ""

    @property
    def timestamp(self) -> datetime:
        """`time_us` as a datetime in UTC."""
        return datetime.fromtimestamp(self.time_us / 1e6, UTC)


class RecoveryMoment(NamedTuple):
    """A moment of the log: its last command, and its log time; `timestamp` is its datetime."""

    sequence: int
    time_us: int

    @property
    def timestamp(self) -> datetime:
        """`time_us` as a datetime in UTC."""
        return datetime.fromtimestamp(self.time_us / 1e6, UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryWindow:
    """The moments that can be restored: all from `earliest` to `latest`, but for the gaps.

    Each of `gaps` is the last moment before it and the first one behind it. `lineage`: the history
    that these moments are of.
    """

    lineage: str
    earliest: RecoveryMoment
    latest: RecoveryMoment
    gaps: tuple[tuple[RecoveryMoment, RecoveryMoment], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Convert the window for JSON."""
        return {
            "lineage": self.lineage,
            "earliest": self.earliest._asdict(),
            "latest": self.latest._asdict(),
            "gaps": [[before._asdict(), after._asdict()] for before, after in self.gaps],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryPlan:
    """What a recovery to `moment` reads, as far as it is known before.

    `target`: what was asked for. `moment`: the last command that belongs to it. `following`: the
    next entry of the log, None if there is none in the repository. `backups`: labels of the chain,
    the full one first. `segments` of the log are read, with about `commands` commands. `objects`:
    all that are read, of `size_compressed` bytes, `size_bytes` of pairs without compression.
    `seconds`: about how long that takes.
    """

    target: str
    lineage: str
    moment: RecoveryMoment
    following: RecoveryMoment | None
    backups: tuple[str, ...]
    segments: int
    objects: int
    commands: int
    size_bytes: int
    size_compressed: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Convert the plan for JSON."""
        following = self.following
        return {
            **dataclasses.asdict(self),
            "moment": self.moment._asdict(),
            "following": None if following is None else following._asdict(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryResult:
    """What the log says of one recovery.

    `id`: the entry that began it. `to_sequence`, `time_us`: the moment to which it goes back; the
    command and its log time; `timestamp` is its datetime. `sequence`: its own, 0 until it is
    restored: it is a command like any other. `undone`: how many commands it took back. `digest`: of
    the restored contents, the same on all members. `duration_ms`: by log time, from its beginning
    to its end. `request`: what was asked for. `error`: why it was given up.
    """

    id: int
    state: RecoveryState
    to_sequence: int
    time_us: int
    request: str = ""
    sequence: int = 0
    undone: int = 0
    digest: str = ""
    duration_ms: float = 0.0
    error: str = ""
    done_bytes: int = 0
    total_bytes: int = 0

    @property
    def timestamp(self) -> datetime:
        """`time_us` as a datetime in UTC."""
        return datetime.fromtimestamp(self.time_us / 1e6, UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillReport:
    """What came of restoring a moment for proof, into a place of its own.

    `is_ok`: the moment was restored, and all digests were equal; `error` says what was wrong.
    `target`: what was restored. `sequence`, `time_us`: the last command that belongs to it, and its
    log time. `started_us`: when it began, by the clock of node `node_id`.

    `checked`: the labels of the backups whose digests were compared with that of the restored
    contents, at their places in the log. `keys`, `digest`: of the contents in the end. `backups`
    and `segments` were read, of `size_compressed` bytes, `size_bytes` of pairs without
    compression; `commands` were replayed. `plan_s`, `restore_s`, `replay_s`, `digest_s`: what that
    took; `seconds` is the sum, and a restore on this machine takes that long. `rpo_ms`: how old the
    newest entry in the repository was.
    """

    is_ok: bool
    started_us: int
    node_id: int = 0
    lineage: str = ""
    target: str = ""
    sequence: int = 0
    time_us: int = 0
    keys: int = 0
    digest: str = ""
    checked: tuple[str, ...] = ()
    backups: tuple[str, ...] = ()
    segments: int = 0
    commands: int = 0
    size_bytes: int = 0
    size_compressed: int = 0
    plan_s: float = 0.0
    restore_s: float = 0.0
    replay_s: float = 0.0
    digest_s: float = 0.0
    rpo_ms: float = 0.0
    error: str = ""

    @property
    def seconds(self) -> float:
        """How long all of it took."""
        return self.plan_s + self.restore_s + self.replay_s + self.digest_s

    @property
    def timestamp(self) -> datetime:
        """`time_us` as a datetime in UTC."""
        return datetime.fromtimestamp(self.time_us / 1e6, UTC)

    def as_dict(self) -> dict[str, Any]:
        """Convert the report for JSON."""
        return {**dataclasses.asdict(self), "seconds": self.seconds}
