"""Plans a recovery: what is read to have the state as of a moment. Changes nothing.

Theory of operation. A moment is a sequence or a time. The state as of a sequence has all commands
up to it, also in the middle of an entry; that of a time has all entries stamped at or before it. A
plan has three parts, all known before anything is touched:

    base        the newest backup that can be restored and doesn't go beyond the target, its chain
    stretches   the segments with all entries from there to the target, without a gap
    position    the last entry that belongs to it, read from the segment that has the target

The listing decides nearly all of it (`timeline.py`); what is read are the manifests of the base,
and one or two segments. If a chain is broken, an older base with more log is as good.

A RESTORE entry on the way put the state of an earlier moment into the place of the one before it,
and left sessions, membership and catalog as they were. So the plan has another one in it, its
*source*, for that moment. A source ends before its entry, so there are at most as many as RESTORE
entries, however often these refer to each other.

Times are the leaders' clocks, and never go back along the log. An error of them is the error of the
target.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice, pairwise

from raftha.entry import Entry, LogPosition
from raftha.errors import (
    ArchiveGap,
    BackupDamaged,
    ChainBroken,
    KeyMissing,
    ObjectMissing,
    RepositoryError,
    SeveralLineages,
    TargetUnreachable,
)
from raftha.storage.backup.chain import Shelf, find_manifest, load_chain
from raftha.storage.backup.cut import cut_position
from raftha.storage.backup.log_reader import read_stretch
from raftha.storage.backup.manifest import Manifest, StoredManifest
from raftha.storage.backup.names import RestoreName
from raftha.storage.backup.plan import Fork, Listed, find
from raftha.storage.backup.recovery import (
    Rates,
    RecoveryPlan,
    Source,
    Target,
    Window,
    as_datetime,
    plan_of_backup,
    shown_time,
)
from raftha.storage.backup.repository import Repository
from raftha.storage.backup.timeline import (
    NO_END,
    SEQUENCE_STEP,
    History,
    Moment,
    Part,
    Stretch,
    Timeline,
    gap,
    part_of,
    read_timeline,
)

TRIES_MAX = 20
"""How many bases are tried before a plan fails with the error of the newest one."""
SOURCES_MAX = 100
"""How many states of earlier recoveries a plan needs at most."""
_BROKEN = (ChainBroken, ObjectMissing, BackupDamaged, KeyMissing)


def plan_recovery(
    repository: Repository,
    target: Target,
    *,
    lineage: str = "",
    rates: Rates | None = None,
    timeline: Timeline | None = None,
    not_after: Target | None = None,
) -> RecoveryPlan:
    """Plan to recover the state as of `target`. Changes nothing.

    Of several histories `lineage` names the one that is meant. `not_after` has the base chosen as
    if that were the target, so that backups in between are compared.

    TargetUnreachable: there is no such state. ArchiveGap: log is missing on the way. ChainBroken,
    ObjectMissing, BackupDamaged, KeyMissing: no backup before it can be restored. SeveralLineages.
    """
    planner = Planner(repository, timeline or read_timeline(repository), rates)
    history = planner.choose(target, lineage)
    return planner.plan(history, target, not_after=not_after)


def window(
    repository: Repository, lineage: str = "", *, timeline: Timeline | None = None
) -> Window:
    """Return the moments that can be recovered, as far as names and a few manifests tell.

    TargetUnreachable if there are none.
    """
    planner = Planner(repository, timeline or read_timeline(repository))
    return planner.window(planner.choose(Target(), lineage))


class Planner:
    """Plans over one timeline; remembers the manifests and sources that it has found."""

    def __init__(
        self, repository: Repository, timeline: Timeline, rates: Rates | None = None
    ) -> None:
        self.timeline = timeline
        self._repository = repository
        self._shelf = Shelf(repository.destinations, repository.id, repository.keys)
        self._rates = rates or Rates()
        self._manifests: dict[tuple[str, str], StoredManifest] = {}
        self._sources: dict[tuple[str, int], RecoveryPlan] = {}
        self._asked = 0
        """How many sources were planned."""

    # ---------------------------------------------------------------- which history

    def choose(self, target: Target, lineage: str) -> History:
        """The history that has the target. SeveralLineages if it isn't the only one."""
        timeline = self.timeline
        if lineage:
            if lineage not in timeline.present():
                raise TargetUnreachable(f"there is nothing of lineage {lineage} to restore")
            return timeline.history(lineage)
        if not timeline.present():
            count = len(timeline.backups)
            unverified = f"none of {count} backups is verified" if count else "no backups"
            raise TargetUnreachable(f"there is nothing to restore: {unverified}")
        history = timeline.history(timeline.only_leaf())
        if target.is_last:
            return history
        others = [part.lineage for part in history[:-1] if self._went_on(part, target)]
        if not others:
            return history
        if target.sequence is not None and len(others) == 1 and self._is_left_out(history, target):
            return timeline.history(others[0])
        raise SeveralLineages(
            f"{target} is a moment of several histories: a restored cluster, and the one that it "
            f"was restored from: {', '.join((*others, history[-1].lineage))}",
            (*others, history[-1].lineage),
        )

    def _went_on(self, part: Part, target: Target) -> bool:
        """Whether a lineage went on behind the fork at which the history leaves it, up to here."""
        shared = Moment(part.until, 0, 0)
        beyond = Moment(part.until, -1, -1)
        for stored in self.timeline.segments.get(part.lineage, ()):
            name = stored.name
            if name.last <= part.until and name.sequence <= part.sequence_until:
                shared = _later(shared, name.sequence, name.time_us)
            else:
                beyond = _later(beyond, name.sequence, name.time_us)
        for record in self.timeline.lineages.values():
            if record.parent == part.lineage and record.fork_hash:
                shared = _later(shared, record.fork_sequence, record.created_us)
        if target.time_us is not None:
            return shared.time_us < target.time_us <= beyond.time_us
        assert target.sequence is not None, "the last moment is one of the newest lineage"
        return shared.sequence < target.sequence <= beyond.sequence

    def _is_left_out(self, history: History, target: Target) -> bool:
        """Whether the history gave no command this number: a restore had skipped it."""
        assert target.sequence is not None
        for before, after in pairwise(history):
            if after.is_jump and before.sequence_until < target.sequence:
                stretch = next(self.timeline.walk((after,), after.after + 1), None)
                if stretch is None:
                    return True
                entries = read_stretch(self._shelf, stretch)
                return target.sequence < entries[0].last_sequence
        return False

    # ---------------------------------------------------------------- plans

    def plan(
        self,
        history: History,
        target: Target,
        *,
        not_after: Target | None = None,
    ) -> RecoveryPlan:
        """Plan for a target in this history: see `plan_recovery`."""
        first_error: RepositoryError | None = None
        tries = 0
        for listed in self._candidates(history, not_after or target):
            try:
                position = self._position(listed)
                if not _reaches(history, listed, position, not_after or target):
                    continue
                tries += 1
                links = self._chain(listed)
                return self._from_base(history, target, links, is_compared=not_after is not None)
            except _BROKEN as error:
                first_error = first_error or error
                if tries >= TRIES_MAX:
                    break
            except ArchiveGap as error:
                raise first_error or error from None
        if first_error is not None:
            raise first_error
        raise self.unreachable(history, f"no backup is as old as {target}")

    def find(self, label: str = "", *, at_us: int | None = None, lineage: str = "") -> Listed:
        """Choose a backup, as `plan.find`; of the history that went on last, also if it has none.

        A backup that began before a fork and has its position behind it is none of the history.
        """
        timeline = self.timeline
        forks = {each: Fork(r.parent, r.fork_index) for each, r in timeline.lineages.items()}
        if not (label or lineage) and timeline.present():
            lineage = timeline.only_leaf()
        backups = list(timeline.backups)
        while True:
            listed = find(backups, forks, label=label, at_us=at_us, lineage=lineage)
            if label or _reaches(
                timeline.history(lineage), listed, self._position(listed), Target()
            ):
                return listed
            backups.remove(listed)

    def plan_base(self, history: History) -> RecoveryPlan:
        """The plan to recover the newest backup of a history that can be restored."""
        first_error: RepositoryError | None = None
        for listed in islice(self._candidates(history, Target()), TRIES_MAX):
            try:
                if _reaches(history, listed, self._position(listed), Target()):
                    return replace(plan_of_backup(self._chain(listed)), history=history)
            except _BROKEN as error:
                first_error = first_error or error
        raise first_error or self.unreachable(history, "there is no backup")

    def _candidates(self, history: History, target: Target) -> Iterator[Listed]:
        """The verified backups of a history that may not go beyond a target, the newest first."""
        until = self._index_at_most(history, target)
        limits = {part.lineage: min(part.until, until) for part in history}
        for listed in sorted(self.timeline.backups, key=lambda each: each.order, reverse=True):
            if not listed.is_verified or listed.begin_index > limits.get(listed.lineage, -1):
                continue
            if target.time_us is None or listed.time_us <= target.time_us:
                yield listed

    def _index_at_most(self, history: History, target: Target) -> int:
        """An index behind which all sequences are higher, by the names of segments."""
        if target.sequence is None:
            return NO_END
        found = (
            stored.name.last
            for part in history
            for stored in self.timeline.segments.get(part.lineage, ())
            if stored.name.sequence > target.sequence and stored.name.first <= part.until
        )
        return min(found, default=NO_END)

    def _from_base(
        self,
        history: History,
        target: Target,
        links: Sequence[StoredManifest],
        *,
        is_compared: bool,
    ) -> RecoveryPlan:
        base = links[-1].manifest
        end = _End(self, history, target, base.position)
        end.find()
        position = end.position
        return RecoveryPlan(
            target=target,
            lineage=part_of(history, position.index).lineage,
            history=tuple(part for part in history if part.after < max(position.index, 1)),
            links=tuple(links),
            stretches=tuple(end.needed()),
            position=position,
            following=end.following,
            sources=self._sources_of(history, base.position.index + 1, position.index),
            checks=self._checks(history, base, position) if is_compared else (),
            own_commands=end.count_commands(),
            rates=self._rates,
        )

    def _sources_of(self, history: History, first: int, last: int) -> tuple[Source, ...]:
        found = self.timeline.restores_in(history, first, last)
        for before, after in pairwise(found):
            if before.index == after.index:
                raise BackupDamaged(f"entry {after.index} has two records of what it restored")
        return tuple(Source(each, self._source(each)) for each in found)

    def _source(self, restore: RestoreName) -> RecoveryPlan:
        key = restore.lineage, restore.to_sequence
        if key not in self._sources:
            if self._asked >= SOURCES_MAX:
                raise ChainBroken(
                    f"more than {SOURCES_MAX} recoveries lie on the way",
                    hint="choose a moment before them, or one behind the next backup",
                )
            self._asked += 1
            history = self.timeline.history(restore.lineage)
            target = Target(sequence=restore.to_sequence)
            try:
                self._sources[key] = self.plan(history, target)
            except TargetUnreachable as error:
                raise TargetUnreachable(
                    f"entry {restore.index} went back to {target}, which is not there: {error}",
                    earliest=error.earliest,
                    latest=error.latest,
                    hint="choose a moment before it, or one behind the next backup",
                ) from error
        return self._sources[key]

    def _checks(
        self, history: History, base: Manifest, end: LogPosition
    ) -> tuple[StoredManifest, ...]:
        """The backups between base and end whose digests are known, in order."""
        found = []
        limits = {part.lineage: (part.after, part.until) for part in history}
        for listed in self.timeline.backups:
            after, until = limits.get(listed.lineage, (0, -1))
            if not listed.is_verified or not after < listed.begin_index <= until:
                continue
            if listed.mode != "F" or listed.begin_index > end.index:
                continue
            with suppress(*_BROKEN):  # Then there is nothing to compare.
                stored = self._manifest(listed)
                at = stored.manifest.position
                if base.position.index < at.index <= end.index and stored.manifest.digest:
                    found.append(stored)
        return tuple(sorted(found, key=lambda stored: stored.manifest.position.index))

    # ---------------------------------------------------------------- what is read

    def _manifest(self, listed: Listed) -> StoredManifest:
        key = listed.lineage, listed.label
        if key not in self._manifests:
            self._manifests[key] = find_manifest(self._shelf, *key)
        return self._manifests[key]

    def _position(self, listed: Listed) -> LogPosition:
        return self._manifest(listed).manifest.position

    def _chain(self, listed: Listed) -> list[StoredManifest]:
        """The chain of a backup, whose objects are all listed."""
        links = load_chain(self._shelf, listed.lineage, listed.label)
        for link in links:
            for number, facts in enumerate(link.manifest.runs):
                name = link.manifest.run_name(number)
                if facts.size not in self.timeline.sizes.get(name, ()):
                    raise ObjectMissing(
                        "it is missing, or has another size",
                        object_name=name,
                        hint="restore an older backup, or bring it back",
                    )
        return links

    def entries(self, stretch: Stretch) -> list[Entry]:
        """The entries of a stretch."""
        return read_stretch(self._shelf, stretch)

    # ---------------------------------------------------------------- the window

    def window(self, history: History) -> Window:
        """See `window`."""
        usable = self._usable(history)
        if not usable:
            raise TargetUnreachable("there is nothing to restore: no backup can be read")
        spans = _spans(self.timeline.covered(history), usable)
        has_log = [number for number, (first, last) in enumerate(spans) if first != last]
        # Backups from before the window have no log any more: each is a moment by itself.
        spans = spans[has_log[0] :] if has_log else spans
        gaps = tuple((before[1], after[0]) for before, after in pairwise(spans))
        return Window(history[-1].lineage, spans[0][0], spans[-1][1], gaps)

    def _usable(self, history: History) -> list[Moment]:
        """The positions of all verified backups of a history, in order."""
        found: set[Moment] = set()
        for listed in self._candidates(history, Target()):
            with suppress(*_BROKEN):
                position = self._position(listed)
                if _reaches(history, listed, position, Target()):
                    found.add(moment_of(position))
        return sorted(found)

    def unreachable(self, history: History, reason: str) -> TargetUnreachable:
        """The error for a target that can't be reached, with what can."""
        try:
            found = self.window(history)
        except RepositoryError:
            return TargetUnreachable(reason)
        first, last = found.earliest, found.latest
        return TargetUnreachable(
            f"{reason}; what can be recovered is {shown_time(first.time_us)} to "
            f"{shown_time(last.time_us)}, sequence {first.sequence:,} to {last.sequence:,}",
            earliest=as_datetime(first.time_us),
            latest=as_datetime(last.time_us),
        )

    def backup_behind(self, history: History, index: int) -> int | None:
        """The entry that began the next backup behind an entry; None if there is none."""
        begun = (listed.begin_index for listed in self._candidates(history, Target()))
        return min((each for each in begun if each > index), default=None)

    def beyond(self, history: History, target: Target) -> TargetUnreachable:
        """The error for a target that no entry in the repository reaches."""
        return self.unreachable(history, f"the repository has nothing as new as {target}")


class _End:
    """Finds where a target lies, from a base on: the last entry up to it, and the next one."""

    def __init__(
        self, planner: Planner, history: History, target: Target, base: LogPosition
    ) -> None:
        self._planner = planner
        self._history = history
        self._target = target
        self._base = base
        self._taken: list[Stretch] = []
        self.position = base
        """The last entry that belongs to it."""
        self.following: Moment | None = None

    def find(self) -> None:
        """Find both. TargetUnreachable; ArchiveGap."""
        walk = self._planner.timeline.walk(self._history, self._base.index + 1)
        if self._base.last_sequence == self._target.sequence:
            self._look_ahead(walk)
            return
        for stretch in walk:
            self._taken.append(stretch)
            if self._may_reach(stretch) and self._find_in(stretch):
                if self.following is None:
                    self._look_ahead(walk)
                return
        # The log ends before it, or with it.
        if self._taken:
            self._end_with(self._positions(self._taken[-1])[-1])
        is_backup = not self._taken and self._base.time_us == self._target.time_us
        if self._target.is_last or is_backup:
            return
        further = self._planner.backup_behind(self._history, self.position.index)
        if further is not None:  # So the log went on.
            raise gap(self.position.index + 1, further)
        if self.position.time_us != self._target.time_us:
            raise self._planner.beyond(self._history, self._target)

    def _may_reach(self, stretch: Stretch) -> bool:
        """Whether a segment goes up to the target, or beyond it, by its name."""
        name, target = stretch.segment.name, self._target
        if target.time_us is not None:
            return name.time_us > target.time_us
        return target.sequence is not None and name.sequence >= target.sequence

    def _find_in(self, stretch: Stretch) -> bool:
        """Look in a stretch for the target; False if all of it is before."""
        positions = self._positions(stretch)
        target = self._target
        if target.time_us is not None:
            count = bisect_right([each.time_us for each in positions], target.time_us)
            if count == len(positions):
                return False
        else:
            assert target.sequence is not None, "the last moment is behind all"
            limit = part_of(self._history, stretch.last).sequence_until
            sequences = [min(each.last_sequence, limit) for each in positions]
            count = bisect_left(sequences, target.sequence) + 1
            if count > len(positions):
                return False
            self._check_given(positions[count - 1], target.sequence)
        if count:
            self._end_with(positions[count - 1])
        elif len(self._taken) > 1:
            self._end_with(self._positions(self._taken[-2])[-1])
        if count < len(positions):
            self.following = moment_of(positions[count])
        return True

    def _check_given(self, position: LogPosition, sequence: int) -> None:
        """A restore into a new lineage leaves numbers out, which no command has."""
        part = part_of(self._history, position.index)
        is_first = part.is_jump and position.index == part.after + 1
        if is_first and sequence < position.last_sequence:
            raise self._planner.unreachable(
                self._history, f"no command of lineage {part.lineage} has the number {sequence:,}"
            )

    def _end_with(self, position: LogPosition) -> None:
        """It ends with this entry, or within it: there is the target, or a fork."""
        limit = part_of(self._history, position.index).sequence_until
        self.position = cut_position(position, min(limit, _or_no_end(self._target.sequence)))

    def _positions(self, stretch: Stretch) -> list[LogPosition]:
        return [entry.position for entry in self._planner.entries(stretch)]

    def _look_ahead(self, walk: Iterator[Stretch]) -> None:
        """The next entry is of interest only, so that nothing depends on it."""
        with suppress(ArchiveGap, *_BROKEN):
            for stretch in walk:
                self.following = moment_of(self._positions(stretch)[0])
                return

    def needed(self) -> Iterator[Stretch]:
        """The stretches up to the end, cut where it is."""
        for stretch in self._taken:
            if stretch.first <= self.position.index:
                yield stretch._replace(last=min(stretch.last, self.position.index))

    def count_commands(self) -> int:
        """About how many commands there are, by names."""
        count, before = 0, self._base.last_sequence
        for part in self._history:
            own = [s for s in self.needed() if part.after < s.first <= part.until]
            if own:
                last = min(
                    own[-1].segment.name.sequence, part.sequence_until, self.position.last_sequence
                )
                if part.is_jump and own[0].first == part.after + 1:
                    before = last // SEQUENCE_STEP * SEQUENCE_STEP
                count += max(0, last - before)
                before = last
        return count


def moment_of(position: LogPosition) -> Moment:
    """The moment of a position."""
    return Moment(position.index, position.last_sequence, position.time_us)


def _later(moment: Moment, sequence: int, time_us: int) -> Moment:
    return Moment(moment.index, max(moment.sequence, sequence), max(moment.time_us, time_us))


def _reaches(history: History, listed: Listed, position: LogPosition, target: Target) -> bool:
    """Whether a backup's position is of this history, and not behind the target."""
    part = next(part for part in history if part.lineage == listed.lineage)
    return (
        part.after < position.index <= part.until
        and position.last_sequence <= min(part.sequence_until, _or_no_end(target.sequence))
        and position.time_us <= _or_no_end(target.time_us)
    )


def _or_no_end(number: int | None) -> int:
    return NO_END if number is None else number


def _spans(
    covered: Sequence[tuple[int, Moment]], usable: Sequence[Moment]
) -> list[tuple[Moment, Moment]]:
    """What can be recovered from these backups: from the first to the second moment of each."""
    firsts = [first for first, _ in covered]
    spans: list[tuple[Moment, Moment]] = []
    for moment in usable:
        if spans and moment.index <= spans[-1][1].index:
            continue
        at = bisect_right(firsts, moment.index + 1) - 1
        last = covered[at][1] if at >= 0 else moment
        spans.append((moment, last if last.index > moment.index else moment))
    return spans
