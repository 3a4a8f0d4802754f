"""The archive against chance: two archivers, any faults, a log that is cut; nothing is lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from raftha.storage.backup import archive
from raftha.storage.backup.archive_listing import read_listing
from raftha.storage.backup.archive_records import GapRecord, RestoreRecord
from raftha.storage.backup.destination import ObjectInfo
from raftha.storage.backup.memory import MemoryDestination
from raftha.storage.backup.names import GapName, SegmentName, gap_name, segment_name
from tests.support.archives import LINEAGE, ArchivedLog, Archiving, archived, gaps
from tests.support.entries import Log
from tests.support.faulty_destination import Fault, FaultyDestination

RANGES = st.lists(
    st.tuples(st.integers(1, 30), st.integers(0, 8), st.sampled_from((0, 0, 1))), max_size=12
)
FAULTS = st.tuples(
    st.sampled_from(("create", "get", "list", "delete")),
    st.sampled_from(("fails", "lost_answer", "late", "conflict", "rotten", "stale")),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 6)),
        st.tuples(st.sampled_from(("put", "tidy", "appoint")), st.integers(0, 1)),
        st.tuples(st.just("fault"), FAULTS),
        st.tuples(st.just("cut"), st.integers(0, 6)),
        st.tuples(st.just("wait"), st.sampled_from((1, 400, 700))),
    ),
    max_size=40,
)


def infos_of(ranges: list[tuple[int, int, int]]) -> tuple[list[ObjectInfo], list[SegmentName]]:
    found = [
        SegmentName(LINEAGE, level, first, first + more, first + more, 1)
        for first, more, level in ranges
    ]
    return [ObjectInfo(segment_name(name), 10, 0) for name in found], found


@given(RANGES, st.lists(st.tuples(st.integers(1, 30), st.integers(0, 5)), max_size=3))
def test_a_listing_says_what_is_missing(
    ranges: list[tuple[int, int, int]], recorded: list[tuple[int, int]]
) -> None:
    infos, found = infos_of(ranges)
    gap_infos = [
        ObjectInfo(gap_name(GapName(LINEAGE, first, first + more)), 1, 0)
        for first, more in recorded
    ]
    listed = read_listing([*infos, ObjectInfo("x/y", 1, 0)], LINEAGE).without_gaps(gap_infos)
    there = {i for name in found for i in range(name.first, name.last + 1)}
    explained = {i for first, more in recorded for i in range(first, first + more + 1)}
    end, begin = max(there, default=0), min(there, default=0)
    missing = set(range(begin, end + 1)) - there if there else set()
    holes = [i for first, last in listed.holes for i in range(first, last + 1)]
    assert sorted(holes) == sorted(missing - explained)
    assert listed.start == max((i + 1 for i in missing), default=begin)
    assert (listed.newest.last if listed.newest else 0) == end
    merged = {i for name in listed.merged for i in range(name.first, name.last + 1)}
    for name in listed.replaced:
        assert set(range(name.first, name.last + 1)) <= merged, "it goes, and level 1 has it"
    assert not set(listed.replaced) & {each.name for each in listed.waiting}
    for each in listed.waiting:
        assert each.name.first > listed.verified


@given(STEPS)
def test_what_was_archived_stays_and_a_hole_has_its_record(steps: list[tuple[str, object]]) -> None:
    """Two archivers, of one log, that fail and take over at any time."""
    destination = FaultyDestination(MemoryDestination())
    log = ArchivedLog(Log())
    log.write(1)
    nodes = [Archiving(destination, log) for _ in range(2)]
    claimed = verified = 0
    for step, what in steps:
        match step, what:
            case "write", int(count):
                log.write(count)
            case "put" | "appoint" | "tidy", int(which):
                node, lost = nodes[which], log.first - 1
                order = {"lost_index": lost, "is_new": step == "appoint"}
                result = node.tidy(**order) if step == "tidy" else node.put(**order)
                claimed = max(claimed, result.archived.index)
                verified = max(verified, result.verified)
            case "fault", (str(operation), str(kind)):
                destination.plan(Fault(operation, kind))
                destination.freeze()
            case "cut", int(keep):
                # As members do it: nothing goes that is not verified, or else it is a loss.
                log.first = max(log.first, min(verified, log.log.last.index - keep) + 1)
            case _, int(seconds):
                for node in nodes:
                    node.now += seconds
        there = archived(destination.inner)
        for entry in there.values():
            assert entry == log.log.entries[entry.index - 1]
        explained = {i for first, last in gaps(destination.inner) for i in range(first, last + 1)}
        assert set(range(1, claimed + 1)) <= there.keys() | explained
        assert not explained, "the log had everything that was not verified"
    destination.plan()
    for _ in range(8):
        for node in nodes:
            node.put(is_new=True, lost_index=log.first - 1)
            node.tidy(lost_index=log.first - 1)
            node.now += archive.STAYS_S
    assert archived(destination.inner).keys() == set(range(1, log.log.last.index + 1))


@given(st.integers(1, 1 << 60), st.integers(0, 1 << 60))
def test_records_are_read_back(first: int, more: int) -> None:
    gap = GapRecord(LINEAGE, first, first + more)
    name = gap_name(GapName(LINEAGE, first, first + more))
    assert GapRecord.decode(gap.encode(), "here", name) == gap
    restore = RestoreRecord(LINEAGE, first, first + more + 1, more, "0f" * 32, 5)
    assert RestoreRecord.decode(restore.encode(), "here", restore.name) == restore
