"""What a repository holds of each history, by names alone: backups, log, gaps, restores, forks.

Theory of operation. One listing of each destination, and the descriptions of the lineages, say all
that a plan needs; no segment is read for it. The history of a lineage is a sequence of *parts*: the
entries up to its fork are those of the lineage that it comes from, and so on. So an index has one
lineage in a history, and one entry.

Segments of a lineage may overlap: two archivers have cut the log at different places, and one of
level 1 lies beside those that it replaces until they are deleted. `walk` picks some that hold every
entry, each as far as it is needed, and stops with ArchiveGap where entries are missing. Work goes
by how many objects there are, and never by the numbers that names claim.

A restore begins its lineage behind the fork, with a hash of its own. After `recover-quorum` the log
goes on unchanged, and the description of the lineage knows the fork only as well as the backups
did: the log of the lineage before is of this history up to where the log of the new one begins.
Entries are chained by hashes, so a reader finds out if that is wrong.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import NamedTuple, TypeVar

from raftha.entry import HASH_BYTES, LogPosition
from raftha.errors import ArchiveGap, BackupDamaged, RepositoryError, SeveralLineages
from raftha.storage.backup import names
from raftha.storage.backup.destination import ObjectInfo
from raftha.storage.backup.names import GapName, RestoreName, SegmentName
from raftha.storage.backup.plan import Listed, listed_in
from raftha.storage.backup.repository import Repository
from raftha.storage.backup.repository_records import LineageRecord

T = TypeVar("T")

NO_END = 1 << 63
"""A number behind all indexes, sequences and times."""
SEQUENCE_STEP = 10**9
"""A restored cluster numbers its commands from a multiple of this on, which leaves at least as many
numbers free behind the highest one in the repository."""
PARTS_MAX = 1000
"""How many lineages a history has at most."""


class Moment(NamedTuple):
    """A point of the log: an entry, and the last command up to it."""

    index: int  # type: ignore[assignment]  # shadows tuple.index, which is never called
    sequence: int
    time_us: int


class StoredSegment(NamedTuple):
    """A segment, and the size of its object."""

    name: SegmentName
    size: int


class Stretch(NamedTuple):
    """A segment, and which of its entries are needed: from `first` to `last`."""

    segment: StoredSegment
    first: int
    last: int


class Part(NamedTuple):
    """The entries of a history that are of one lineage: those in (`after`, `until`].

    What is behind `sequence_until` is not of this history either: it may end within an entry.
    `fork` says where the lineage comes from; None for the first one.
    """

    lineage: str
    after: int
    until: int
    sequence_until: int
    fork: LineageRecord | None

    @property
    def is_jump(self) -> bool:
        """Whether a restore began it: its first entry doesn't follow the one before the fork."""
        return self.fork is not None and bool(self.fork.fork_hash)


History = tuple[Part, ...]
"""The parts of a history, the oldest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """What is listed. All is in order, and as many destinations have it as could be listed."""

    backups: tuple[Listed, ...] = ()
    sizes: Mapping[str, Collection[int]] = field(default_factory=dict)
    """The sizes of the objects of backups, by name."""
    segments: Mapping[str, tuple[StoredSegment, ...]] = field(default_factory=dict)
    """By lineage, in the order of their first entries."""
    gaps: Mapping[str, tuple[GapName, ...]] = field(default_factory=dict)
    restores: Mapping[str, tuple[RestoreName, ...]] = field(default_factory=dict)
    lineages: Mapping[str, LineageRecord] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)
    """The destinations that could not be listed, and `lineages` if their descriptions could not."""

    def present(self) -> set[str]:
        """The lineages that have a verified backup, or log."""
        return {each.lineage for each in self.backups if each.is_verified} | self.segments.keys()

    def history(self, lineage: str) -> History:
        """The history of a lineage. BackupDamaged if its forks go in a circle."""
        parts: list[Part] = []
        until = sequence_until = NO_END
        seen: set[str] = set()
        while lineage:
            if lineage in seen or len(seen) >= PARTS_MAX:
                raise BackupDamaged("the descriptions of lineages form a circle")
            seen.add(lineage)
            record = self.lineages.get(lineage)
            fork = record if record is not None and record.parent else None
            after = 0 if fork is None else min(self._fork_index(fork), until)
            parts.append(Part(lineage, after, until, sequence_until, fork))
            if fork is None:
                break
            if fork.fork_hash:
                sequence_until = min(sequence_until, fork.fork_sequence)
            lineage, until = fork.parent, after
        return tuple(reversed(parts))

    def _fork_index(self, fork: LineageRecord) -> int:
        own = self.segments.get(fork.lineage, ())
        if fork.fork_hash or not own:
            return fork.fork_index
        return max(fork.fork_index, own[0].name.first - 1)

    def only_leaf(self) -> str:
        """The lineage whose history contains all others. SeveralLineages if there is none."""
        present = self.present()
        ancestors: set[str] = set()
        for each in present:
            ancestors |= {part.lineage for part in self.history(each)[:-1]}
        leaves = sorted(present - ancestors)
        if len(leaves) != 1:
            shown = ", ".join(leaves[:10]) or "none"
            raise SeveralLineages(
                f"several histories are in this repository, which don't continue each other: "
                f"{shown}",
                tuple(leaves),
            )
        return leaves[0]

    def walk(
        self, history: History, first: int, without: Collection[SegmentName] = ()
    ) -> Iterator[Stretch]:
        """Yield what holds the entries from `first` on, in order, up to the end of the log.

        ArchiveGap where entries are missing that others follow. `without`: segments to do without.
        """
        for number, part in enumerate(history):
            if part.until < first:
                continue
            own = [s for s in self.segments.get(part.lineage, ()) if s.name not in without]
            for stretch in _covered(own, max(first, part.after + 1), part.until):
                if stretch.first > first:
                    raise gap(first, stretch.first - 1)
                yield stretch
                first = stretch.last + 1
            if first <= part.until and number < len(history) - 1:
                if any(self.segments.get(later.lineage) for later in history[number + 1 :]):
                    raise gap(first, part.until)
                return

    def covered(self, history: History) -> list[tuple[int, Moment]]:
        """The entries that segments hold without a gap: the first, and the last as a moment."""
        found: list[tuple[int, Moment]] = []
        for part in history:
            own = self.segments.get(part.lineage, ())
            for stretch in _covered(own, part.after + 1, part.until):
                name = stretch.segment.name
                sequence, time_us = min(name.sequence, part.sequence_until), name.time_us
                last = Moment(stretch.last, sequence, time_us)
                if found and found[-1][1].index + 1 == stretch.first:
                    found[-1] = found[-1][0], last
                else:
                    found.append((stretch.first, last))
        return found

    def highest_sequence(self) -> int:
        """The highest sequence that any segment of any lineage has."""
        return max((s.name.sequence for own in self.segments.values() for s in own), default=0)

    def restores_in(self, history: History, first: int, last: int) -> list[RestoreName]:
        """The RESTORE entries of a history among those from `first` to `last`, in order."""
        found = []
        for part in history:
            for each in self.restores.get(part.lineage, ()):
                if max(first, part.after + 1) <= each.index <= min(last, part.until):
                    found.append(each)
        return sorted(found, key=lambda each: each.index)


def gap(first: int, last: int) -> ArchiveGap:
    """The error that says which entries no destination has."""
    return ArchiveGap(
        f"the log in the repository has no entries {first} to {last}",
        first,
        last,
        hint="choose a moment before them, or one behind the next backup",
    )


def begin_lineage(position: LogPosition, lineage: str, sequence: int) -> LogPosition:
    """Where the log of a lineage begins that a restore founds on the state at a position.

    Its hash covers lineage and sequence, so nothing of two restores is mistaken for each other.
    """
    covered = b"raftha/restore/1" + position.hash + bytes.fromhex(lineage)
    digest = sha256(covered + sequence.to_bytes(8, "little")).digest()[:HASH_BYTES]
    return position._replace(last_sequence=sequence, hash=digest)


def part_of(history: History, index: int) -> Part:
    """The part that an entry is of."""
    return next(part for part in history if index <= part.until)


def _covered(segments: Sequence[StoredSegment], first: int, last: int) -> Iterator[Stretch]:
    """Yield segments in order that hold the most of [first, last]; each entry at most once."""
    need, at = first, 0
    best: StoredSegment | None = None
    while need <= last:
        while at < len(segments) and segments[at].name.first <= need:
            if best is None or segments[at].name.last > best.name.last:
                best = segments[at]
            at += 1
        if best is None or best.name.last < need:
            if at == len(segments):
                return
            need = segments[at].name.first
            continue
        end = min(best.name.last, last)
        yield Stretch(best, need, end)
        need = end + 1


def read_timeline(repository: Repository) -> Timeline:
    """List all destinations, once each. RepositoryError if none can be listed."""
    errors = {name: str(error) for name, error in repository.failed.items()}
    listed: list[ObjectInfo] = []
    failures: list[RepositoryError] = []
    for name, destination in repository.destinations.items():
        try:
            listed += destination.list("")
        except RepositoryError as error:
            errors[name] = str(error)
            failures.append(error)
    if len(failures) == len(repository.destinations):
        raise failures[0]
    lineages: Mapping[str, LineageRecord] = {}
    try:
        lineages = repository.read_lineages()
    except RepositoryError as error:
        errors["lineages"] = str(error)
    return timeline_of(listed, lineages, errors)


def timeline_of(
    listed: Iterable[ObjectInfo],
    lineages: Mapping[str, LineageRecord],
    errors: Mapping[str, str] | None = None,
) -> Timeline:
    """The timeline of these objects; names of other forms are passed over."""
    listed = list(listed)
    sizes: defaultdict[str, set[int]] = defaultdict(set)
    segments: dict[SegmentName, int] = {}
    for info in listed:
        if "/backups/" in info.name:
            sizes[info.name].add(info.size)
        elif "/log/" in info.name and (name := _parsed(names.parse_segment_name, info.name)):
            segments[name] = max(info.size, segments.get(name, 0))
    gaps = _all(names.parse_gap_name, listed, "/gaps/")
    restores = _all(names.parse_restore_name, listed, "/restores/")
    # Of two that begin together, the longer one comes first; of two equal ones, level 1.
    in_order = sorted(segments.items(), key=lambda s: (s[0].first, -s[0].last, -s[0].level))
    return Timeline(
        backups=tuple(listed_in(sizes)),
        sizes=dict(sizes),
        segments=_by_lineage([StoredSegment(*each) for each in in_order], lambda s: s.name.lineage),
        gaps=_by_lineage(sorted(gaps), lambda each: each.lineage),
        restores=_by_lineage(sorted(restores), lambda each: each.lineage),
        lineages=lineages,
        errors=errors or {},
    )


def _all(parse: Callable[[str], T], listed: Iterable[ObjectInfo], folder: str) -> set[T]:
    found = (_parsed(parse, info.name) for info in listed if folder in info.name)
    return {each for each in found if each is not None}


def _parsed(parse: Callable[[str], T], name: str) -> T | None:
    try:
        return parse(name)
    except ValueError:
        return None  # Not ours.


def _by_lineage(items: Iterable[T], lineage_of: Callable[[T], str]) -> dict[str, tuple[T, ...]]:
    found: defaultdict[str, list[T]] = defaultdict(list)
    for each in items:
        found[lineage_of(each)].append(each)
    return {lineage: tuple(each) for lineage, each in found.items()}
