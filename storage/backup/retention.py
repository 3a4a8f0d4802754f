"""Which backups stay, which go, and why: one pure function for deletion, dry run and explanation.

Theory of operation. `decide` looks at each destination by itself: the backups that can be restored
from it alone, because their whole chain is there. The rules of the policy choose among these. They
choose once more among all backups wherever they are, those that are missing at present included: a
bucket that is away for a day, or is listed wrongly, must not let go what the policy keeps.

    1. A backup that a rule keeps in one destination stays wherever it is, and so do its parents: a
       restore may read a chain from several destinations.
    2. What no rule keeps goes from a destination only if a newer backup can be restored from that
       destination alone. Until then it waits.
    3. A backup waits for its children: it stays while one that builds on it stays or waits.
    4. A failed backup goes after a day. Until then its taker may still be writing, and its manifest
       may yet be found.
    5. Backups of another lineage stay and count for nothing: the cluster that took them may still
       run, and decides about them itself.
    6. `retire` names what the catalog is to give up. Objects are deleted once that is committed,
       children before their parents, so that a crash leaves no child alone.

The order of backups is that of the log's time, then of ids.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from raftha.config.backup import RetentionPolicy
from raftha.storage.state.catalog_changes import (
    COMPLETED,
    FAILED,
    MISSING,
    RETIRED,
    RUNNING,
    BackupRecord,
)
from raftha.types import RetentionDecision, RetentionFate

FAILED_STAYS_US = 24 * 3_600_000_000
ANYWHERE = ""
"""The place of a backup that is in the catalog, and in none of the destinations."""
_YEAR_9999_S = 253_402_300_799


class Candidate(NamedTuple):
    """A backup that `decide` decides on, as the catalog has it."""

    id: int
    label: str
    parent: int
    """The id of the backup that it builds on; 0 for a full one."""
    lineage: str
    state: str
    time_us: int
    """The log's time of the state that it holds; of its beginning, if it is not completed."""
    destinations: frozenset[str]
    """Where it is, verified; of a failed one, where objects of it may be."""
    pins: tuple[str, ...] = ()
    """The names of the pins that are in force."""
    refused_by: frozenset[str] = frozenset()
    """The destinations that have refused to delete it."""


def candidate_of(record: BackupRecord, now_us: int, refused_by: Collection[str] = ()) -> Candidate:
    """What retention has to know of a backup in the catalog, at this log time."""
    return Candidate(
        id=record.id,
        label=record.label,
        parent=record.parent,
        lineage=record.lineage,
        state=record.state,
        time_us=record.position_us or record.began_us,
        destinations=frozenset(record.destinations),
        pins=tuple(name for name, until in record.pins if until == 0 or until > now_us),
        refused_by=frozenset(refused_by),
    )


class Decisions(NamedTuple):
    """What `decide` has decided."""

    each: tuple[RetentionDecision, ...]
    """For each backup and each destination that it is in, the oldest first."""
    retire: tuple[int, ...]
    """The backups to give up, which aren't retired yet."""
    deletions: Mapping[str, tuple[int, ...]]
    """What each destination may delete of the backups that are retired, in this order."""


def decide(
    backups: Iterable[Candidate],
    policy: RetentionPolicy,
    *,
    lineage: str,
    destinations: Collection[str],
    now_us: int,
    window_us: int = 0,
    needed: Collection[int] = (),
) -> Decisions:
    """Decide what becomes of each backup in each of these destinations.

    `lineage` is the present one. `now_us` is log time. `window_us`: how far back a restore to any
    moment reaches, 0 if it doesn't. `needed`: ids of backups that something under way reads.
    """
    ordered = sorted(backups, key=_order)
    places = sorted(destinations)
    own = [backup for backup in ordered if backup.lineage == lineage]
    kept = _keep(own, places, _Rules(policy, now_us, window_us), set(needed))
    for backup in ordered:
        if backup.lineage != lineage:
            kept[backup.id] = ("it is of another lineage",)
    successors = {name: _whole_in(own, {name})[-1:] for name in places}
    successors[ANYWHERE] = _whole_in(own, set(places))[-1:]
    children: dict[int, list[Candidate]] = {}
    for backup in ordered:
        if backup.state != FAILED and backup.parent != backup.id:
            children.setdefault(backup.parent, []).append(backup)
    made: dict[int, list[RetentionDecision]] = {}
    for backup in reversed(ordered):  # Children come before their parents.
        staying = _staying(children.get(backup.id, ()), made)
        made[backup.id] = [
            RetentionDecision(backup.id, backup.label, name, RetentionFate.KEPT, kept[backup.id])
            if backup.id in kept
            else _let_go(backup, name, successors[name], staying, now_us)
            for name in sorted(backup.destinations & set(places)) or [ANYWHERE]
        ]
    return _decisions(ordered, tuple(each for backup in ordered for each in made[backup.id]))


def _decisions(ordered: Sequence[Candidate], each: tuple[RetentionDecision, ...]) -> Decisions:
    states = {backup.id: backup.state for backup in ordered}
    going = [made for made in each if made.fate is RetentionFate.GOES]
    retire = {made.backup_id for made in going if states[made.backup_id] != RETIRED}
    deletions: dict[str, list[int]] = {}
    for made in reversed(each):
        may_go = made.fate in (RetentionFate.GOES, RetentionFate.RETAINED)
        if may_go and made.destination and states[made.backup_id] == RETIRED:
            deletions.setdefault(made.destination, []).append(made.backup_id)
    return Decisions(
        each, tuple(sorted(retire)), {name: tuple(ids) for name, ids in deletions.items()}
    )


# ---------------------------------------------------------------- what is kept


class _Rules(NamedTuple):
    policy: RetentionPolicy
    now_us: int
    window_us: int

    def choose(self, restorable: Sequence[Candidate]) -> Iterable[tuple[int, str]]:
        """Yield the ids that a rule keeps among these, which are in order, and the rule."""
        newest_first = restorable[::-1]
        policy, now = self.policy, _moment(self.now_us)
        if newest_first:
            yield newest_first[0].id, "the newest that can be restored"
            # The catalog never gives up the one with the highest id.
            yield max(backup.id for backup in newest_first), "the newest that can be restored"
        for number, backup in enumerate(newest_first[: policy.keep_last], 1):
            yield backup.id, f"last {number} of {policy.keep_last}"
        calendar = (
            (_day, policy.keep_daily_days, "the newest of {:%Y-%m-%d}"),
            (_week, policy.keep_weekly_weeks, "the newest of week {:%G-W%V}"),
            (_month, policy.keep_monthly_months, "the newest of {:%Y-%m}"),
        )
        for number_of, count, text in calendar:
            first = number_of(now) - count + 1
            for backup in _newest_of_each(newest_first, number_of):
                moment = _moment(backup.time_us)
                if count and number_of(moment) >= first:
                    yield backup.id, text.format(moment)
        if self.window_us and restorable:
            start = self.now_us - self.window_us
            before = [backup for backup in restorable if backup.time_us <= start]
            yield (before or restorable[:1])[-1].id, "restores to any moment begin with it"


def _keep(
    ordered: Sequence[Candidate], places: Sequence[str], rules: _Rules, needed: set[int]
) -> dict[int, tuple[str, ...]]:
    """The reasons for each backup that is kept."""
    kept: dict[int, dict[str, dict[str, None]]] = {}  # id -> rule -> the places where it chooses
    for name in places:
        for backup_id, rule in rules.choose(_whole_in(ordered, {name})):
            kept.setdefault(backup_id, {}).setdefault(rule, {})[name] = None
    for states in ({COMPLETED}, {COMPLETED, MISSING}):
        for backup_id, rule in rules.choose(_whole(ordered, states, None)):
            kept.setdefault(backup_id, {}).setdefault(rule, {})
    for backup in ordered:
        if backup.state == RUNNING:
            kept.setdefault(backup.id, {})["it is being taken"] = {}
        if backup.id in needed:
            kept.setdefault(backup.id, {})["it is being read"] = {}
        if backup.pins and backup.state in (COMPLETED, MISSING):
            kept.setdefault(backup.id, {})[f"pinned: {', '.join(backup.pins)}"] = {}
    by_id = {backup.id: backup for backup in ordered}
    waiting = [backup_id for backup_id in kept if backup_id in by_id]
    while waiting:
        backup = by_id[waiting.pop()]
        if backup.parent in by_id:
            if backup.parent not in kept:
                waiting.append(backup.parent)
            kept.setdefault(backup.parent, {})[f"{backup.label} builds on it"] = {}
    return {backup_id: tuple(_phrases(found, places)) for backup_id, found in kept.items()}


def _phrases(rules: Mapping[str, Collection[str]], places: Sequence[str]) -> Iterable[str]:
    """Each rule, and where it chooses if that isn't everywhere."""
    for rule, names in rules.items():
        is_everywhere = len(names) in (0, len(places))
        yield rule if is_everywhere else f"{rule} in {', '.join(names)}"


def restorable_from(backups: Iterable[Candidate], destination: str) -> list[Candidate]:
    """The backups that can be restored from this destination alone, in order."""
    return _whole_in(sorted(backups, key=_order), {destination})


def _whole_in(ordered: Sequence[Candidate], places: set[str]) -> list[Candidate]:
    """The backups that can be restored from these destinations alone."""
    return _whole(ordered, {COMPLETED}, places)


def _whole(
    ordered: Sequence[Candidate], states: set[str], places: set[str] | None
) -> list[Candidate]:
    """The backups in one of these states and places (None: any) that have all parents there."""
    there = {
        backup.id: backup
        for backup in ordered
        if backup.state in states and (places is None or backup.destinations & places)
    }
    found: dict[int, bool] = {0: True}
    for backup in there.values():
        chain: dict[int, None] = {}
        link = backup.id
        while link not in found and link in there and link not in chain:
            chain[link] = None
            link = there[link].parent
        found |= dict.fromkeys(chain, found.get(link, False))
    return [backup for backup in ordered if backup.id in there and found[backup.id]]


def _newest_of_each(
    newest_first: Iterable[Candidate], number_of: Callable[[datetime], Hashable]
) -> list[Candidate]:
    found: dict[Hashable, Candidate] = {}
    for backup in newest_first:
        found.setdefault(number_of(_moment(backup.time_us)), backup)
    return list(found.values())


# ---------------------------------------------------------------- what isn't


def _staying(children: Iterable[Candidate], made: Mapping[int, Sequence[RetentionDecision]]) -> str:
    """The label of one of these that is kept, or waits, in some place; "" if none is."""
    stay = (RetentionFate.KEPT, RetentionFate.WAITS)
    for child in children:
        # A child that is not decided on yet has an earlier time than its parent: a wrong clock.
        if child.id not in made or any(each.fate in stay for each in made[child.id]):
            return child.label
    return ""


def _let_go(
    backup: Candidate, name: str, successor: Sequence[Candidate], staying: str, now_us: int
) -> RetentionDecision:
    """What becomes of a backup that no rule keeps in one of its places, and why."""
    fate, reason = RetentionFate.GOES, "no rule keeps it"
    if backup.state == FAILED:
        reason = "it has failed"
        if now_us - backup.time_us < FAILED_STAYS_US:
            fate, reason = RetentionFate.WAITS, "it has failed; it is deleted after 24 hours"
    elif staying:
        fate, reason = RetentionFate.WAITS, f"{staying} builds on it"
    elif all(_order(newer) <= _order(backup) for newer in successor):
        where = name or "the cluster"
        fate, reason = RetentionFate.WAITS, f"{where} has no newer backup yet"
    elif name in backup.refused_by:
        fate, reason = RetentionFate.RETAINED, f"{name} refuses to delete it"
    return RetentionDecision(backup.id, backup.label, name, fate, (reason,))


def _order(backup: Candidate) -> tuple[int, int]:
    return backup.time_us, backup.id


def _moment(time_us: int) -> datetime:
    return datetime.fromtimestamp(min(time_us // 1_000_000, _YEAR_9999_S), UTC)


def _day(moment: datetime) -> int:
    return moment.toordinal()


def _week(moment: datetime) -> int:
    return (moment.toordinal() - 1) // 7  # Day 1 was a Monday.


def _month(moment: datetime) -> int:
    return moment.year * 12 + moment.month
