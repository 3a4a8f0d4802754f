"""Which backups a restore reads: chosen from what repositories list, before anything is touched.

Theory of operation. `find` reads no objects: labels hold the time, the mode and the index of each
backup. It chooses among the history of one lineage: the lineage's own backups, and those of the
lineages that it forked from, each up to the fork. If the repository holds histories that don't
continue each other, which happens once two clusters write to one place, the caller has to name the
lineage. `chain.py` then follows the parents of the chosen backup, in their manifests.

A time stands for the last backup that began at or before it. Its label has the time in whole
seconds, so a backup of the same second counts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from raftha.errors import SeveralLineages, TargetUnreachable
from raftha.storage.backup import names

_YEAR_9999_S = 253_402_300_799


class Listed(NamedTuple):
    """A backup that has a manifest, as its name tells."""

    lineage: str
    label: str
    is_verified: bool

    @property
    def begin_index(self) -> int:
        """The index of the entry that began it, which is its id."""
        return names.parse_label(self.label).begin_index

    @property
    def time_us(self) -> int:
        """The log's time at its beginning, in whole seconds."""
        return names.parse_label(self.label).time_us

    @property
    def mode(self) -> str:
        """Its mode's letter: F, I or D."""
        return names.parse_label(self.label).mode

    @property
    def order(self) -> tuple[int, int]:
        """Within a history, later backups come later."""
        return self.time_us, self.begin_index


class Fork(NamedTuple):
    """Where a lineage comes from; "" and 0 if it began with its cluster."""

    parent: str = ""
    index: int = 0  # type: ignore[assignment]  # shadows tuple.index, which is never called


def listed_in(objects: Iterable[str]) -> list[Listed]:
    """The backups among the names of objects, in order; names of other forms are passed over."""
    parts: dict[tuple[str, str], set[str]] = {}
    for name in objects:
        try:
            found = names.parse_backup_object(name)
        except ValueError:
            continue  # Not ours, or not a backup's.
        parts.setdefault((found.lineage, found.label), set()).add(found.part)
    backups = (
        Listed(lineage, label, "verified" in has)
        for (lineage, label), has in parts.items()
        if "manifest" in has
    )
    return sorted(backups, key=lambda each: (*each.order, each.lineage))


def find(
    backups: Collection[Listed],
    forks: Mapping[str, Fork],
    *,
    label: str = "",
    at_us: int | None = None,
    lineage: str = "",
) -> Listed:
    """Choose the backup to restore: by its label, else the last one at `at_us`, else the last one.

    Only verified backups are chosen by time. An unverified one may be named: restoring it proves
    it, or fails. Raises TargetUnreachable and SeveralLineages.
    """
    if lineage:
        backups = _history(backups, forks, lineage)
        if not backups:
            raise TargetUnreachable(f"there are no backups of lineage {lineage}")
    if label:
        return _named(backups, label)
    verified = [backup for backup in backups if backup.is_verified]
    if not verified:
        unverified = f"none of {len(backups)} backups is verified" if backups else "no backups"
        raise TargetUnreachable(f"there is nothing to restore: {unverified}")
    if not lineage:
        verified = _history(verified, forks, _only_leaf(verified, forks))
    chosen = [backup for backup in verified if at_us is None or backup.time_us <= at_us]
    if not chosen:
        first, last = verified[0], verified[-1]
        raise TargetUnreachable(
            f"no backup is as old as {_shown(at_us or 0)}: the first is {first.label}",
            earliest=_moment(first.time_us),
            latest=_moment(last.time_us),
        )
    return chosen[-1]


def _named(backups: Iterable[Listed], label: str) -> Listed:
    named = [backup for backup in backups if label in (backup.label, str(backup.begin_index))]
    if len(named) > 1:
        raise SeveralLineages(
            f"{label} is the name of {len(named)} backups", tuple(each.lineage for each in named)
        )
    if not named:
        raise TargetUnreachable(
            f"there is no backup {label[:80]}", hint="`raftha backup list` shows those that exist"
        )
    return named[0]


def _history(backups: Iterable[Listed], forks: Mapping[str, Fork], lineage: str) -> list[Listed]:
    """The backups of a lineage, and of those that it comes from up to the forks, in order."""
    limits: dict[str, int] = {}
    limit = 1 << 62
    while lineage and lineage not in limits:
        limits[lineage] = limit
        fork = forks.get(lineage, Fork())
        lineage, limit = fork.parent, min(limit, fork.index)
    own = (each for each in backups if each.begin_index <= limits.get(each.lineage, -1))
    return sorted(own, key=lambda each: each.order)


def _only_leaf(backups: Sequence[Listed], forks: Mapping[str, Fork]) -> str:
    """The lineage whose history contains that of all others. SeveralLineages if there is none."""
    present = {backup.lineage for backup in backups}
    ancestors: set[str] = set()
    for each in present:
        parent = forks.get(each, Fork()).parent
        while parent and parent not in ancestors:
            ancestors.add(parent)
            parent = forks.get(parent, Fork()).parent
    leaves = sorted(present - ancestors)
    if len(leaves) == 1:
        return leaves[0]
    last = {each: max(b.order for b in backups if b.lineage == each)[0] for each in leaves}
    shown = ", ".join(f"{each} (last backup {_shown(last[each])})" for each in leaves)
    raise SeveralLineages(
        f"several histories are in this repository: {shown or 'a circle of forks'}", tuple(leaves)
    )


def _shown(time_us: int) -> str:
    return f"{_moment(time_us):%Y-%m-%dT%H:%M:%SZ}"


def _moment(time_us: int) -> datetime:
    return datetime.fromtimestamp(min(max(time_us // 1_000_000, 0), _YEAR_9999_S), UTC)
