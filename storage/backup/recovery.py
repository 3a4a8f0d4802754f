"""The records of a recovery: its target, its plan, and the window of what can be recovered.

`planner.py` makes plans, `replay.py` carries them out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from raftha.entry import LogPosition
from raftha.errors import InvalidRequest
from raftha.storage.backup.manifest import Manifest, StoredManifest
from raftha.storage.backup.names import RestoreName
from raftha.storage.backup.timeline import NO_END, History, Moment, Part, Stretch

RESTORE_BYTES_PER_S = 150_000_000
"""How many bytes of pairs are restored in a second, until a drill has measured it."""
REPLAY_COMMANDS_PER_S = 300_000
"""How many commands are replayed in a second, until a drill has measured it."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The moment whose state is wanted: a sequence or a time; with neither, the last one there is.

    `time_us` is microseconds since 1970 UTC, inclusive.
    """

    sequence: int | None = None
    time_us: int | None = None

    def __post_init__(self) -> None:
        if self.sequence is not None and self.time_us is not None:
            raise InvalidRequest("a target is a sequence or a time, not both")
        if not 0 <= (self.sequence or 0) < NO_END or not 0 <= (self.time_us or 0) < NO_END:
            raise InvalidRequest("no state was ever as of this target")

    @property
    def is_last(self) -> bool:
        """Whether it is the last moment there is."""
        return self.sequence is None and self.time_us is None

    def __str__(self) -> str:
        if self.sequence is not None:
            return f"sequence {self.sequence:,}"
        return "the last entry" if self.time_us is None else shown_time(self.time_us)

    def as_dict(self) -> dict[str, int]:
        """Return what is given."""
        given = {"sequence": self.sequence, "time_us": self.time_us}
        return {name: value for name, value in given.items() if value is not None}


class Window(NamedTuple):
    """The moments that can be recovered: all from `earliest` to `latest`, but for the gaps.

    A gap is between two moments that can be recovered, the last one before it and the first behind.
    """

    lineage: str
    earliest: Moment
    latest: Moment
    gaps: tuple[tuple[Moment, Moment], ...]


class Rates(NamedTuple):
    """What a drill has measured: bytes of pairs restored in a second, and commands replayed."""

    restore_bytes_per_s: float = RESTORE_BYTES_PER_S
    replay_commands_per_s: float = REPLAY_COMMANDS_PER_S


class Source(NamedTuple):
    """A RESTORE entry on the way, and the plan for the state that it went back to."""

    restore: RestoreName
    plan: RecoveryPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryPlan:
    """What a recovery reads. `links` are the backups, the full one first.

    `position` is where it ends; within an entry, its sequence is the target's. `following` is the
    next entry, if it is known. `history` are the parts of the log that it goes through, `lineage`
    is that of the last one. `checks`: backups on the way whose digests are compared.
    """

    target: Target
    lineage: str
    history: History
    links: tuple[StoredManifest, ...]
    stretches: tuple[Stretch, ...]
    position: LogPosition
    following: Moment | None = None
    sources: tuple[Source, ...] = ()
    checks: tuple[StoredManifest, ...] = ()
    own_commands: int = 0
    rates: Rates = field(default_factory=Rates)

    @property
    def backup(self) -> Manifest:
        """The backup that the replay begins with."""
        return self.links[-1].manifest

    @property
    def needs_replay(self) -> bool:
        """Whether anything of the log is applied."""
        return self.position.index > self.backup.position.index

    @property
    def size_bytes(self) -> int:
        """The bytes of all pairs that are read, with those of the sources."""
        return sum(link.manifest.size_bytes for plan in self.all_plans() for link in plan.links)

    @property
    def size_compressed(self) -> int:
        """The bytes of all objects that are read, with those of the sources."""
        return sum(
            sum(link.manifest.size_compressed for link in plan.links) + plan.log_bytes
            for plan in self.all_plans()
        )

    @property
    def log_bytes(self) -> int:
        """The bytes of the segments that are read."""
        return sum(stretch.segment.size for stretch in self.stretches)

    @property
    def objects(self) -> int:
        """The number of objects that are read, but for manifests."""
        return sum(
            sum(len(link.manifest.runs) for link in plan.links) + len(plan.stretches)
            for plan in self.all_plans()
        )

    @property
    def commands(self) -> int:
        """About how many commands are replayed, with those of the sources."""
        return sum(plan.own_commands for plan in self.all_plans())

    @property
    def seconds(self) -> float:
        """About how long it takes."""
        read_s = self.size_bytes / self.rates.restore_bytes_per_s
        return read_s + self.commands / self.rates.replay_commands_per_s

    def all_plans(self) -> list[RecoveryPlan]:
        """This plan and all in it, each once; those that others need come first."""
        found: dict[int, RecoveryPlan] = {}

        def add(plan: RecoveryPlan) -> None:
            if id(plan) not in found:
                for source in plan.sources:
                    add(source.plan)
                found[id(plan)] = plan

        add(self)
        return list(found.values())

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as a dict, for JSON."""
        following = self.following
        return {
            "target": self.target.as_dict(),
            "lineage": self.lineage,
            "label": self.backup.label,
            "backups": [link.manifest.label for link in self.links],
            "segments": len(self.stretches),
            "objects": self.objects,
            "size_bytes": self.size_bytes,
            "size_compressed": self.size_compressed,
            "commands": self.commands,
            "seconds": round(self.seconds, 1),
            "index": self.position.index,
            "sequence": self.position.last_sequence,
            "time_us": self.position.time_us,
            "next": None if following is None else following._asdict(),
            "restores": [source.restore.index for source in self.sources],
        }


def plan_of_backup(links: Sequence[StoredManifest]) -> RecoveryPlan:
    """The plan to recover a backup as it is, of this chain."""
    last = links[-1].manifest
    return RecoveryPlan(
        target=Target(sequence=last.position.last_sequence),
        lineage=last.lineage,
        history=(Part(last.lineage, 0, NO_END, NO_END, None),),
        links=tuple(links),
        stretches=(),
        position=last.position,
    )


def shown_time(time_us: int) -> str:
    """A time as RFC 3339 in UTC."""
    moment = as_datetime(time_us)
    if moment is None:
        return f"{time_us} us after 1970"
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def as_datetime(time_us: int) -> datetime | None:
    """A time as a datetime in UTC; None behind the year 9999."""
    try:
        return _EPOCH + timedelta(microseconds=time_us)
    except OverflowError:
        return None
