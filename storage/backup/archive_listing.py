"""What a listing of a destination says of its archive: which entries are there, and which are not.

Names only; nothing is read. Names of other lineages and such as no archiver makes are passed over.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from raftha.storage.backup.destination import ObjectInfo
from raftha.storage.backup.names import SegmentName, parse_gap_name, parse_segment_name


class Waiting(NamedTuple):
    """A segment of level 0 that no level 1 has; `has_commands`: more than the one before it."""

    name: SegmentName
    size: int
    has_commands: bool


class Listed(NamedTuple):
    """The segments of one lineage in one destination, in order.

    `newest`: the one that goes furthest. `start`: the first entry of those that lead up to it
    without a hole. `holes`: first and last entry of what is missing before. `merged`: level 1.
    `waiting`: level 0 that is not in level 1 whole, or perhaps isn't: the newest segment of level 1
    may not have been read back, and counts for nothing here. `replaced`: the rest of level 0.
    `verified`: level 1 has all up to there, as far as level 0 shows no other. `gaps`: first and
    last entry of each gap that is recorded; known only if there are holes without them.
    """

    sizes: Mapping[SegmentName, int]
    newest: SegmentName | None = None
    start: int = 0
    holes: tuple[tuple[int, int], ...] = ()
    merged: tuple[SegmentName, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    replaced: tuple[SegmentName, ...] = ()
    verified: int = 0
    gaps: tuple[tuple[int, int], ...] = ()

    def without(self, bad: Container[SegmentName]) -> Listed:
        """What it says without these segments."""
        sizes = {name: size for name, size in self.sizes.items() if name not in bad}
        return _listed(sizes, self.gaps)

    def without_gaps(self, infos: Iterable[ObjectInfo]) -> Listed:
        """Take out of `holes` what records of gaps explain."""
        gaps = []
        for info in infos:
            try:
                gaps.append(parse_gap_name(info.name)[1:])
            except ValueError:
                continue
        return _listed(self.sizes, tuple(sorted(gaps)))


def read_listing(infos: Iterable[ObjectInfo], lineage: str) -> Listed:
    """Find out what a listing of the folder `log/` says."""
    sizes: dict[SegmentName, int] = {}
    for info in infos:
        try:
            name = parse_segment_name(info.name)
        except ValueError:
            continue
        if name.lineage == lineage:
            sizes[name] = info.size
    return _listed(sizes, ())


def _listed(sizes: Mapping[SegmentName, int], gaps: tuple[tuple[int, int], ...]) -> Listed:
    if not sizes:
        return Listed(sizes=sizes, gaps=gaps)
    found = sorted(sizes, key=lambda name: (name.first, name.last))
    runs = _runs(found)
    merged = [name for name in found if name.level == 1]
    believed = sorted(merged, key=lambda name: name.last)[:-1]
    level_0 = sorted((name for name in found if name.level == 0), key=lambda name: name.last)
    covered = _runs(believed)
    waiting = [n for n in level_0 if not any(a <= n.first and n.last <= b for a, b in covered)]
    verified = covered[-1][1] if covered else 0
    sequence = max((name.sequence for name in believed), default=0)
    return Listed(
        sizes=sizes,
        newest=max(found, key=lambda name: (name.last, name.level)),
        start=runs[-1][0],
        holes=tuple(
            part
            for before, after in pairwise(runs)
            for part in _outside((before[1] + 1, after[0] - 1), gaps)
        ),
        merged=tuple(merged),
        waiting=_with_commands(waiting, sizes, sequence),
        replaced=tuple(set(level_0) - set(waiting)),
        verified=min([verified, *(name.first - 1 for name in waiting)]),
        gaps=gaps,
    )


def _runs(found: Sequence[SegmentName]) -> list[tuple[int, int]]:
    """Return first and last entry of each run without a hole."""
    runs: list[tuple[int, int]] = []
    for name in sorted(found, key=lambda name: name.first):
        if runs and name.first <= runs[-1][1] + 1:
            runs[-1] = runs[-1][0], max(runs[-1][1], name.last)
        else:
            runs.append((name.first, name.last))
    return runs


def _with_commands(
    waiting: Sequence[SegmentName], sizes: Mapping[SegmentName, int], before: int
) -> tuple[Waiting, ...]:
    made = []
    for name in waiting:
        made.append(Waiting(name, sizes[name], name.sequence > before))
        before = max(before, name.sequence)
    return tuple(made)


def _outside(hole: tuple[int, int], gaps: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The parts of a hole that lie in no gap; the gaps are sorted."""
    first, last = hole
    parts = []
    for gap_first, gap_last in gaps:
        if gap_last < first or gap_first > last:
            continue
        if gap_first > first:
            parts.append((first, gap_first - 1))
        first = max(first, gap_last + 1)
    return [*parts, (first, last)] if first <= last else parts
