"""A hostile bucket lists whatever it wants: a plan comes to an end, with a plan or raftha's errors.

What it leads to then is the true state, or an error: names are believed only until what they stand
for was read.
"""

from __future__ import annotations

import time
from contextlib import suppress
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftha.errors import ObjectExists, RafthaError
from raftha.storage.backup import names, planner
from raftha.storage.backup.memory import MemoryDestination
from raftha.storage.backup.names import GapName, RestoreName, SegmentName
from raftha.storage.backup.planner import plan_recovery, window
from raftha.storage.backup.recovery import Target
from raftha.storage.backup.replay import build_image
from raftha.storage.backup.repository_records import LineageRecord
from raftha.storage.backup.timeline import StoredSegment, Timeline
from tests.property.test_fuzz import little_memory
from tests.support.dict_stores import DictStores
from tests.support.recovery_history import START_US, History
from tests.support.state_bench import Kit

pytestmark = pytest.mark.slow

OWN, OTHER, THIRD = "ab" * 16, "cd" * 16, "ef" * 16
LINEAGES = st.sampled_from([OWN, OTHER, THIRD])
NUMBERS = st.one_of(st.integers(0, 60), st.integers(0, (1 << 64) - 1))
TIMES = st.one_of(NUMBERS, st.integers(START_US, START_US + 10**8))
SEGMENTS = st.builds(
    SegmentName, LINEAGES, st.integers(0, 1), NUMBERS, NUMBERS, NUMBERS, TIMES
).map(names.segment_name)
GAPS = st.builds(GapName, LINEAGES, NUMBERS, NUMBERS).map(names.gap_name)
RESTORES = st.builds(RestoreName, LINEAGES, NUMBERS, NUMBERS, NUMBERS, TIMES).map(
    names.restore_name
)
LABELS = st.builds(
    names.label, st.integers(0, 1 << 47), st.sampled_from("FID"), st.integers(1, (1 << 48) - 1)
)
BACKUPS = st.builds(
    lambda lineage, label, part: f"{names.backup_folder(lineage, label)}{part}",
    LINEAGES,
    LABELS,
    st.sampled_from(["manifest", "verified", "run-0000"]),
)
NAMES = st.lists(st.one_of(SEGMENTS, SEGMENTS, GAPS, RESTORES, BACKUPS), max_size=30)
FORKS = st.lists(
    st.builds(
        LineageRecord,
        lineage=LINEAGES,
        parent=st.one_of(LINEAGES, st.just("")),
        fork_index=st.integers(0, 1 << 62),
        fork_sequence=st.integers(0, 1 << 62),
        fork_hash=st.sampled_from(["", "00" * 16, "x"]),
        reason=st.just(""),
        cluster_name=st.just(""),
        created_us=st.integers(0, 1 << 62),
    ),
    max_size=3,
)
TARGETS = st.one_of(
    st.just(Target()),
    st.builds(lambda n: Target(sequence=n), st.integers(0, 80)),
    st.builds(lambda n: Target(time_us=n), st.integers(START_US, START_US + 10**8)),
)


def true_history() -> History:
    history = History(Random(5))
    history.backup()
    for _ in range(8):
        history.write(3)
    history.go_back(Target(sequence=history.last.last_sequence - 5))
    history.write(3)
    history.archive(3)
    return history


@settings(max_examples=60)
@given(NAMES, FORKS, TARGETS)
def test_hostile_names_mislead_no_recovery(
    listed: list[str], forks: list[LineageRecord], target: Target
) -> None:
    history = true_history()
    assert isinstance(history.destination, MemoryDestination)
    for name in listed:
        with suppress(ObjectExists):
            history.destination.create(name, b"nothing")
    for record in forks:
        with suppress(RafthaError):
            history.repository.write_lineage(record)
    with suppress(RafthaError):
        window(history.repository)
    for lineage in ("", OWN, OTHER):
        stores = DictStores()
        try:
            plan = plan_recovery(history.repository, target, lineage=lineage)
            build_image(plan, history.repository, stores, Kit())
        except RafthaError:
            continue
        kept = [
            version.pairs
            for version in history.versions
            if (version.index, version.sequence)
            == (plan.position.index, plan.position.last_sequence)
        ]
        assert stores.pairs() in kept


@given(st.integers(0, 1 << 62), st.integers(0, 3))
def test_work_goes_by_objects_and_not_by_what_they_claim(start: int, shape: int) -> None:
    """A hundred thousand segments that overlap, lie far apart, or claim all numbers."""
    count = 2000
    made = []
    for number in range(count):
        first, last = [
            (1, (1 << 63) - 1),
            (1 + number * 1_000_000, 1 + number * 1_000_000),
            (1 + number, 1 + number * 2),
            (count - number, count + number),
        ][shape]
        made.append(StoredSegment(SegmentName(OWN, 0, first, last, number, number), 10))
    made.sort(key=lambda s: (s.name.first, -s.name.last, -s.name.level))
    timeline = Timeline(segments={OWN: tuple(made)})
    history = timeline.history(OWN)
    began = time.process_time()
    with little_memory():
        with suppress(RafthaError):
            assert len(list(timeline.walk(history, 1 + start % count))) <= count
        assert len(timeline.covered(history)) <= count
        assert timeline.restores_in(history, 1, 1 << 62) == []
    assert time.process_time() - began < 1


def test_forks_in_a_circle_and_long_ones_end() -> None:
    def record(lineage: int, parent: int) -> LineageRecord:
        return LineageRecord(
            lineage=f"{lineage:032x}",
            parent=f"{parent:032x}",
            fork_index=5,
            fork_sequence=5,
            fork_hash="",
            reason="",
            cluster_name="",
            created_us=0,
        )

    for count in (1, 2, 3000):
        records = {f"{i:032x}": record(i, (i + 1) % count) for i in range(count)}
        timeline = Timeline(lineages=records)
        with pytest.raises(RafthaError, match="circle"):
            timeline.history(f"{0:032x}")


def test_recoveries_that_refer_to_each_other_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of some RESTORE entries goes back to just behind the one before."""
    history = History(Random(5))
    history.backup()
    for _ in range(20):
        history.write(1)
        history.go_back(Target(sequence=history.last.last_sequence))
    history.archive()
    plan = plan_recovery(history.repository, Target())
    assert len(plan.sources) == 20 and len(plan.all_plans()) == 21
    assert history.recovered(Target()) == history.model
    monkeypatch.setattr(planner, "SOURCES_MAX", 19)
    with pytest.raises(RafthaError, match="19 recoveries"):
        plan_recovery(history.repository, Target())
