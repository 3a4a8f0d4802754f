"""Recoveries to a moment: what is planned, what is built, and what is refused before it begins."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from raftha.entry import Entry, EntryKind, decode_groups, encode_group
from raftha.errors import (
    ArchiveGap,
    BackupDamaged,
    ChainBroken,
    InvalidRequest,
    KeyMissing,
    ObjectMissing,
    RafthaError,
    SeveralLineages,
    TargetUnreachable,
    UpgradeRequired,
)
from raftha.storage.backup import names, planner, replay
from raftha.storage.backup.crypto import NO_KEYS, OperatorKey
from raftha.storage.backup.cut import cut_entry
from raftha.storage.backup.hashing import ParallelHasher
from raftha.storage.backup.log_reader import read_stretch
from raftha.storage.backup.marks import find_mark
from raftha.storage.backup.memory import MemoryDestination
from raftha.storage.backup.names import SegmentName
from raftha.storage.backup.planner import Planner, plan_recovery, window
from raftha.storage.backup.recovery import Target
from raftha.storage.backup.replay import ReplayHooks, build_image
from raftha.storage.backup.timeline import Timeline, read_timeline
from raftha.storage.backup.uploads import BackupCancelled
from raftha.storage.state.catalog import MarkNow, encode_change
from raftha.storage.state.commands import pack_put
from tests.support.backups import memory
from tests.support.dict_stores import DictStores
from tests.support.entries import Log, group
from tests.support.faulty_destination import Fault, FaultyDestination
from tests.support.recovery_history import Command, History
from tests.support.state_bench import Kit


@pytest.fixture
def history() -> History:
    return History(Random(1))


def simple(history: History, count: int = 20) -> History:
    """A backup, and some entries behind it in segments of four."""
    history.backup()
    for _ in range(count):
        history.write(3)
    history.archive(count // 4)
    return history


def segments(history: History) -> list[SegmentName]:
    """The segments that there are, in order."""
    listed = history.destination.list(names.log_folder(history.lineage))
    return sorted((names.parse_segment_name(info.name) for info in listed), key=lambda s: s.first)


def forget(history: History, *gone: SegmentName) -> None:
    """These segments are lost."""
    for name in gone:
        history.destination.delete(names.segment_name(name))


def test_every_sequence_and_every_time_behind_a_backup_is_recovered(history: History) -> None:
    for _ in range(10):
        history.write()
    history.backup(late=3)
    first = history.state.applied
    for _ in range(10):
        history.write()
    history.fail_over()
    history.backup("incremental")
    for _ in range(10):
        history.write()
    history.archive(cuts=4)
    for sequence in range(first.last_sequence, history.last.last_sequence + 1):
        target = Target(sequence=sequence)
        assert history.recovered(target) == history.at(target).pairs, sequence
    times = {v.time_us for v in history.versions if v.time_us >= first.time_us}
    for time_us in {*times, *(t + 1 for t in times if t < max(times))}:
        target = Target(time_us=time_us)
        assert history.recovered(target) == history.at(target).pairs, time_us
    assert history.recovered(Target()) == history.model


def test_a_restore_into_a_new_lineage_lies_on_the_way(history: History) -> None:
    history.backup()
    for _ in range(10):
        history.write(4)
    history.archive(2)
    middle = history.last.last_sequence - 17
    history.restore(Target(sequence=middle))
    for _ in range(10):
        history.write()
    history.archive(2)
    assert history.recovered(Target()) == history.model
    for version in history.own_versions(history.lineage)[3:]:
        target = Target(sequence=version.sequence)
        found = history.recovered(target, history.lineage)
        assert found == history.at(target).pairs, version


def test_a_lineage_by_recover_quorum_goes_on(history: History) -> None:
    history.backup()
    for _ in range(10):
        history.write(4)
    history.continue_as_fork()
    for _ in range(10):
        history.write()
    history.archive(2)
    assert history.recovered(Target()) == history.model


def test_recoveries_of_the_live_cluster_and_undos_lie_on_the_way(history: History) -> None:
    history.backup()
    start = history.last.last_sequence
    for _ in range(10):
        history.write(4)
    before = history.last.last_sequence
    history.go_back(Target(sequence=before - 15))
    history.write(3)
    history.go_back(Target(sequence=before))
    assert history.model == history.at(Target(sequence=before)).pairs
    history.write(3)
    history.go_back(Target(sequence=before + 1))
    history.write(3)
    history.archive(3)
    assert history.recovered(Target()) == history.model
    for sequence in range(start, history.last.last_sequence + 1):
        target = Target(sequence=sequence)
        assert history.recovered(target) == history.at(target).pairs, sequence


# --- Exactly the target ---------------------------------------------------------------------------


def test_an_entry_at_the_very_time_belongs_to_it_and_the_next_does_not(history: History) -> None:
    simple(history)
    for before, after in zip(history.entries, history.entries[1:], strict=False):
        if history.newest and before.index > history.newest.manifest.position.index:
            plan = plan_recovery(history.repository, Target(time_us=before.time_us))
            assert plan.position.time_us == before.time_us
            if after.time_us > before.time_us:
                assert plan.position == before.position
                assert plan.following == planner.moment_of(after.position)
                for beside in (after.time_us - 1, (before.time_us + after.time_us) // 2):
                    plan = plan_recovery(history.repository, Target(time_us=beside))
                    assert plan.position == before.position


def test_times_are_those_of_entries_and_not_of_uploads_or_names(history: History) -> None:
    """All is archived at the end, in one segment whose name has the last entry's time only."""
    history.backup()
    for _ in range(10):
        history.write()
    history.archive()
    for entry in history.entries[-10:-1]:
        target = Target(time_us=entry.time_us)
        assert history.recovered(target) == history.at(target).pairs


def test_a_sequence_within_an_entry_is_not_rounded(history: History) -> None:
    simple(history)
    entry = history.entries[-2]
    inside = entry.last_sequence - 1
    plan = plan_recovery(history.repository, Target(sequence=inside))
    assert plan.position[:4] == (*entry.position[:3], inside)
    others = [Target(sequence=inside - 1), Target(sequence=entry.last_sequence)]
    hashes = {plan_recovery(history.repository, other).position.hash for other in others}
    assert len(hashes | {plan.position.hash}) == 3
    for sequence in range(history.entries[-9].last_sequence, entry.last_sequence):
        target = Target(sequence=sequence)
        assert history.recovered(target) == history.at(target).pairs


def test_a_target_past_the_end_is_refused_with_what_there_is(history: History) -> None:
    simple(history)
    last = history.last
    for target in (
        Target(sequence=last.last_sequence + 1),
        Target(time_us=last.time_us + 1),
    ):
        with pytest.raises(TargetUnreachable, match="nothing as new") as caught:
            plan_recovery(history.repository, target)
        assert caught.value.latest is not None and caught.value.earliest is not None
        assert round(caught.value.latest.timestamp() * 1e6) == last.time_us
        assert history.newest is not None
        earliest = history.newest.manifest.position.time_us
        assert round(caught.value.earliest.timestamp() * 1e6) == earliest


def test_a_target_before_the_first_backup_is_refused(history: History) -> None:
    history.write(3)
    simple(history)
    for target in (Target(sequence=1), Target(time_us=1)):
        with pytest.raises(TargetUnreachable, match="as old as"):
            plan_recovery(history.repository, target)


def test_a_target_is_one_thing() -> None:
    with pytest.raises(InvalidRequest):
        Target(sequence=1, time_us=1)
    with pytest.raises(InvalidRequest):
        Target(sequence=-1)
    with pytest.raises(InvalidRequest):
        Target(time_us=1 << 63)


def test_nothing_in_the_repository_is_said(history: History) -> None:
    with pytest.raises(TargetUnreachable, match="no backups"):
        plan_recovery(history.repository, Target())
    history.archive()
    with pytest.raises(TargetUnreachable, match="no backup"):
        plan_recovery(history.repository, Target())
    with pytest.raises(TargetUnreachable, match="nothing of lineage"):
        plan_recovery(history.repository, Target(), lineage="ef" * 16)
    with pytest.raises(TargetUnreachable):
        window(history.repository)


# --- Holes ----------------------------------------------------------------------------------------


def test_a_hole_is_named_and_never_skipped(history: History) -> None:
    simple(history, 20)
    missing = segments(history)[2]
    forget(history, missing)
    before = Target(sequence=segments(history)[1].sequence)
    assert history.recovered(before) == history.at(before).pairs
    for target in (
        Target(sequence=missing.sequence),
        Target(sequence=history.last.last_sequence),
        Target(time_us=history.last.time_us),
        Target(),
    ):
        with pytest.raises(ArchiveGap) as caught:
            plan_recovery(history.repository, target)
        assert (caught.value.first, caught.value.last) == (missing.first, missing.last)
    history.backup()
    assert history.recovered(Target()) == history.model
    found = window(history.repository)
    assert [(a.index, b.index) for a, b in found.gaps] == [(missing.first - 1, history.last.index)]


def test_the_window_begins_with_the_backup_from_which_the_log_is_whole(history: History) -> None:
    first = history.backup().manifest.position
    for _ in range(5):
        history.write()
    second = history.backup().manifest.position
    history.archived = second.index
    for _ in range(5):
        history.write()
    history.archive()
    found = window(history.repository)
    assert found.earliest == planner.moment_of(second)
    assert found.latest == planner.moment_of(history.last)
    assert found.gaps == ()
    assert history.recovered(Target(sequence=first.last_sequence)) is not None
    with pytest.raises(ArchiveGap):
        plan_recovery(history.repository, Target(sequence=first.last_sequence + 1))


def test_a_time_is_not_whole_if_the_log_that_follows_is_missing(history: History) -> None:
    """What follows may have the same time, and a later backup shows that something does."""
    simple(history)
    time_us = history.last.time_us
    assert plan_recovery(history.repository, Target(time_us=time_us)).position == history.last
    history.write(3)
    history.time_us += 1
    history.write(3)
    history.backup()
    missing = next(e for e in history.entries if e.index == history.archived + 1)
    for wanted in (time_us, time_us + 1):
        if wanted < history.last.time_us:
            with pytest.raises(ArchiveGap) as caught:
                plan_recovery(history.repository, Target(time_us=wanted))
            assert caught.value.first == missing.index


def test_without_log_the_backups_themselves_are_recovered(history: History) -> None:
    first = history.backup().manifest.position
    history.write(3)
    second = history.backup("incremental").manifest.position
    for position in (first, second):
        for target in (Target(sequence=position.last_sequence), Target(time_us=position.time_us)):
            plan = plan_recovery(history.repository, target)
            assert not plan.needs_replay or position.time_us == first.time_us
    with pytest.raises(ArchiveGap) as caught:
        plan_recovery(history.repository, Target(sequence=second.last_sequence - 1))
    assert caught.value.first == first.index + 1 <= caught.value.last <= second.index
    assert window(history.repository).latest == planner.moment_of(second)


# --- What is broken -------------------------------------------------------------------------------


def test_an_older_backup_and_more_log_stand_in_for_a_broken_chain(history: History) -> None:
    first = history.backup()
    for _ in range(5):
        history.write()
    second = history.backup()
    history.write()
    history.archive(3)
    history.destination.delete(second.manifest.run_name(0))
    plan = plan_recovery(history.repository, Target())
    assert plan.backup.label == first.manifest.label
    assert history.recovered(Target()) == history.model
    history.destination.delete(first.manifest.run_name(0))
    with pytest.raises(ObjectMissing, match=second.manifest.label):
        plan_recovery(history.repository, Target())


def test_a_chain_that_lacks_its_parent_is_broken(history: History) -> None:
    first = history.backup()
    history.write()
    history.backup("incremental")
    history.archive()
    history.destination.delete(names.manifest_name(history.lineage, first.manifest.label))
    with pytest.raises(ChainBroken):
        plan_recovery(history.repository, Target())


def test_a_missing_key_is_named_before_anything_is_built() -> None:
    history = simple(History(Random(1), operator=OperatorKey(bytes(range(32)))))
    assert history.recovered(Target()) == history.model
    history.repository.keys = NO_KEYS
    with pytest.raises(KeyMissing):
        plan_recovery(history.repository, Target())


def test_a_segment_is_read_from_where_it_is_sound(history: History) -> None:
    assert isinstance(history.destination, MemoryDestination)
    faulty = FaultyDestination(history.destination)
    other = memory("other")
    simple(history)
    for info in history.destination.list(""):
        other.create(info.name, history.destination.get(info.name, size_max=1 << 30))
    history.repository.destinations["memory"] = faulty
    history.repository.admit(other)
    faulty.plan(Fault("get", "rotten", "*/log/*", None))
    assert history.recovered(Target()) == history.model


def test_a_segment_that_is_deleted_meanwhile_is_found_again_merged(history: History) -> None:
    simple(history)
    plan = plan_recovery(history.repository, Target())
    history.put_segment(history.entries[1:], 1)
    forget(history, *(name for name in segments(history) if name.level == 0))
    stores = DictStores()
    build_image(plan, history.repository, stores, Kit())
    assert stores.pairs() == history.model


def test_a_damaged_segment_does_not_matter_where_another_has_its_entries(
    history: History,
) -> None:
    simple(history)
    plan = plan_recovery(history.repository, Target())
    history.put_segment(history.entries[5:-3], 1)
    bad = next(s for s in segments(history) if s.level == 0 and s.first > history.entries[8].index)
    name = names.segment_name(bad)
    data = bytes(history.destination.get(name, size_max=1 << 30))
    history.destination.delete(name)
    history.destination.create(name, data[:-40] + bytes(8) + data[-32:])
    stores = DictStores()
    build_image(plan, history.repository, stores, Kit())
    assert stores.pairs() == history.model


def test_a_log_of_another_history_is_found_by_its_hashes(history: History) -> None:
    simple(history)
    stranger = simple(History(Random(2), lineage=history.lineage))
    name = segments(history)[2]
    entries = [e for e in stranger.entries if name.first <= e.index <= name.last]
    forget(history, name)
    history.put_segment(entries)
    with pytest.raises(BackupDamaged, match="does not follow"):
        history.recovered(Target())


def test_a_state_with_another_digest_is_not_what_was_backed_up(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    simple(history)
    right = ParallelHasher.finish
    monkeypatch.setattr(ParallelHasher, "finish", lambda self: right(self)._replace(hex="00" * 32))
    with pytest.raises(BackupDamaged, match="digest"):
        history.recovered(Target())


def test_a_replay_over_a_later_backup_compares_its_digest(history: History) -> None:
    simple(history)
    start = Target(sequence=history.last.last_sequence - 9)
    history.backup()
    history.write()
    history.archive()
    plan = plan_recovery(history.repository, Target(), not_after=start)
    assert len(plan.checks) == 1 and plan.needs_replay
    image = build_image(plan, history.repository, DictStores(), Kit())
    assert image.checked == (plan.backup.label, plan.checks[0].manifest.label)
    manifest = replace(plan.checks[0].manifest, digest="00" * 32)
    wrong = replace(plan, checks=(plan.checks[0]._replace(manifest=manifest),))
    with pytest.raises(BackupDamaged, match="digest"):
        build_image(wrong, history.repository, DictStores(), Kit())


def test_a_restore_entry_without_its_record_is_not_passed_over(history: History) -> None:
    simple(history)
    history.go_back(Target(sequence=history.last.last_sequence - 9))
    history.write()
    history.archive()
    assert history.recovered(Target()) == history.model
    for info in history.destination.list(names.restores_folder(history.lineage)):
        history.destination.delete(info.name)
    with pytest.raises(ObjectMissing, match="went back"):
        history.recovered(Target())


def test_a_restore_whose_source_is_gone_is_said(history: History) -> None:
    history.backup()
    sequence = history.last.last_sequence
    history.write()
    history.backup()
    history.go_back(Target(sequence=sequence))
    history.write()
    history.archive()
    first = min(history.destination.list(names.backups_folder(history.lineage)))
    label = names.parse_backup_object(first.name).label
    for info in history.destination.list(names.backup_folder(history.lineage, label)):
        history.destination.delete(info.name)
    with pytest.raises(TargetUnreachable, match="went back to sequence"):
        plan_recovery(history.repository, Target())


# --- The state machine ----------------------------------------------------------------------------


def test_a_log_with_commands_needs_the_state_machine(history: History) -> None:
    simple(history)
    plan = plan_recovery(history.repository, Target())
    with pytest.raises(UpgradeRequired, match="can't be applied") as caught:
        build_image(plan, history.repository, DictStores())
    assert "module:Class" in caught.value.hint and "Kit" in caught.value.hint
    at_backup = plan_recovery(
        history.repository, Target(sequence=plan.backup.position.last_sequence)
    )
    build_image(at_backup, history.repository, DictStores())


def test_an_entry_that_was_skipped_is_skipped(history: History) -> None:
    history.backup()
    poison = [pack_put(b"k", b"1")]
    skipped = history.entry(
        EntryKind.BATCH, encode_group(group(history.session, 1, poison)), [FAILS]
    )
    history.archive()
    stores = DictStores()
    plan = plan_recovery(history.repository, Target())
    hooks = ReplayHooks(skips={skipped.index: skipped.hash})
    build_image(plan, history.repository, stores, Kit(), hooks)
    assert b"k" not in stores.pairs()


def test_an_entry_that_ends_every_node_is_named(history: History) -> None:
    from raftha.storage.state.commands import pack_call

    history.backup()
    poison = [pack_call("put_then_raise", (b"k", "MemoryError"))]
    state, history.state = history.state, Unapplied()  # type: ignore[assignment]
    entry = history.entry(EntryKind.BATCH, encode_group(group(history.session, 1, poison)), [FAILS])
    history.state = state
    history.archive()
    with pytest.raises(BackupDamaged, match=f"entry {entry.index} .*{entry.hash.hex()}") as caught:
        history.recovered(Target())
    assert "skip" in caught.value.hint


class Unapplied:
    """A state that applies nothing."""

    def apply(self, entry: Entry) -> list[Any]:
        return []


FAILS = Command(b"", "fail", b"")
"""A command without effect, for the oracle."""


# --- Cuts -----------------------------------------------------------------------------------------


def test_a_cut_entry_has_its_first_commands() -> None:
    log = Log()
    packed = [pack_put(b"%d" % i, b"v" * i) for i in range(9)]
    entry = log.batch(group(7, 1, packed[:4]), group(7, 2, packed[4:]))
    for count in range(10):
        cut = cut_entry(entry, 0, count)
        groups = list(decode_groups(cut.payload))
        commands = b"".join(each.commands for each in groups)
        assert commands == b"".join(packed[:count])
        assert sum(each.count for each in groups) == count == cut.last_sequence
        assert (cut.index, cut.hash, cut.time_us) == (entry.index, entry.hash, entry.time_us)


def test_what_could_not_be_parsed_is_not_after_a_cut() -> None:
    log = Log()
    good = pack_put(b"a", b"1")
    entry = log.batch(group(7, 1, [good, good, b"\xc1"]))
    (cut,) = decode_groups(cut_entry(entry, 0, 1).payload)
    assert cut.commands == b"\xc1" and cut.count == 1


def test_only_commands_are_cut() -> None:
    entry = Log().noop()._replace(last_sequence=3)
    with pytest.raises(ValueError, match="no commands"):
        cut_entry(entry, 0, 1)


# --- Histories ------------------------------------------------------------------------------------


def test_a_moment_of_two_histories_must_be_named(history: History) -> None:
    simple(history)
    old = history.lineage
    sequence = history.last.last_sequence - 20
    fork = history.at(Target(sequence=sequence))
    history.restore(Target(sequence=sequence))
    history.write()
    history.archive()
    shared = Target(time_us=fork.time_us - 1)
    assert plan_recovery(history.repository, shared).lineage == old
    behind = Target(time_us=fork.time_us + 1)
    if behind.time_us is not None and behind.time_us <= history.at(Target(), old).time_us:
        with pytest.raises(SeveralLineages) as caught:
            plan_recovery(history.repository, behind)
        assert set(caught.value.lineages) == {old, history.lineage}
        for lineage in caught.value.lineages:
            found = history.recovered(behind, lineage)
            assert found == history.at(behind, lineage).pairs
    # A number was given once only.
    alone = Target(sequence=sequence + 3)
    assert plan_recovery(history.repository, alone).lineage == old
    assert history.recovered(alone) == history.at(alone, old).pairs
    with pytest.raises(TargetUnreachable, match="no command"):
        plan_recovery(history.repository, alone, lineage=history.lineage)


def test_marks_are_found_in_backups_and_in_the_log(history: History) -> None:
    history.entry(EntryKind.ADMIN, encode_change(MarkNow("first")))
    first = history.last.last_sequence
    history.write()
    history.backup()
    history.write()
    history.entry(EntryKind.ADMIN, encode_change(MarkNow("second")))
    second = history.last.last_sequence
    history.write()
    history.entry(EntryKind.ADMIN, encode_change(MarkNow("first")))
    history.archive()
    assert find_mark(history.repository, "first") == (history.lineage, first)
    assert find_mark(history.repository, "second") == (history.lineage, second)
    with pytest.raises(TargetUnreachable, match="no mark") as caught:
        find_mark(history.repository, "third")
    assert "first, second" in caught.value.hint


def test_the_newest_backup_is_one_of_the_history_that_went_on(history: History) -> None:
    """A fork within a backup: it began before, and has what came after."""
    first = history.backup()
    history.write(3)
    second = history.backup(late=3)
    history.archive()
    old = history.lineage
    begin = next(e for e in history.entries if e.index == second.manifest.id)
    history.restore(Target(sequence=begin.last_sequence + 2))
    history.archive()
    found = Planner(history.repository, read_timeline(history.repository))
    assert found.find().label == first.manifest.label
    assert found.find(lineage=old).label == second.manifest.label
    assert found.find(second.manifest.label).label == second.manifest.label
    third = history.backup()
    found = Planner(history.repository, read_timeline(history.repository))
    assert found.find().label == third.manifest.label
    assert history.recovered(Target()) == history.model


# --- Around it ------------------------------------------------------------------------------------


def test_a_plan_is_shown_with_its_cost(history: History) -> None:
    simple(history)
    plan = plan_recovery(history.repository, Target())
    shown = json.loads(json.dumps(plan.as_dict()))
    assert shown["commands"] == history.last.last_sequence - plan.backup.position.last_sequence
    assert shown["objects"] == len(plan.backup.runs) + len(plan.stretches)
    assert (shown["sequence"], shown["index"]) == (history.last.last_sequence, history.last.index)
    assert shown["next"] is None and shown["size_compressed"] > 0
    assert plan.seconds > 0


def test_progress_and_steps_are_told(history: History) -> None:
    simple(history)
    progress: list[tuple[int, int]] = []
    steps: list[int] = []
    hooks = ReplayHooks(
        on_progress=lambda done, total: progress.append((done, total)), on_step=steps.append
    )
    plan = plan_recovery(history.repository, Target())
    build_image(plan, history.repository, DictStores(), Kit(), hooks)
    assert steps == [1, 2, 3]
    assert progress == sorted(progress) and progress[-1][0] == progress[-1][1]


def test_a_recovery_that_is_not_wanted_any_more_ends(history: History) -> None:
    simple(history)
    plan = plan_recovery(history.repository, Target())
    wanted = iter([True] * 3 + [False] * 1000)
    hooks = ReplayHooks(is_wanted=lambda: next(wanted))
    with pytest.raises(BackupCancelled):
        build_image(plan, history.repository, DictStores(), Kit(), hooks)


# --- Planted bugs: each of these must be found by the tests above ---------------------------------


def skip_holes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug 4: the planner goes on behind a hole."""
    right = Timeline.walk

    def walk(self: Timeline, history: Any, first: int, without: Any = ()) -> Any:
        while True:
            try:
                for stretch in right(self, history, first, without):
                    yield stretch
                    first = stretch.last + 1
            except ArchiveGap as gap:
                first = gap.last + 1
            else:
                return

    monkeypatch.setattr(Timeline, "walk", walk)


def stamp_with_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug 15: each entry has the time that its object has."""
    right = read_stretch

    def read(shelf: Any, stretch: Any) -> list[Entry]:
        time_us = stretch.segment.name.time_us
        return [entry._replace(time_us=time_us) for entry in right(shelf, stretch)]

    monkeypatch.setattr(planner, "read_stretch", read)


def exclude_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug 16: what has the very time is left out."""
    from bisect import bisect_left

    monkeypatch.setattr(planner, "bisect_right", bisect_left)


def accept_all_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug 17: a target past the end is taken for the end."""
    monkeypatch.setattr(
        planner._End,
        "find",
        lambda self, right=planner._End.find: _or_else(right, self),
    )


def _or_else(right: Callable[[Any], None], end: Any) -> None:
    try:
        right(end)
    except TargetUnreachable:
        end._target = Target()


def round_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug 18: an entry is applied whole."""
    monkeypatch.setattr(replay, "cut_entry", lambda entry, before, last: entry)


@pytest.mark.parametrize(
    ("bug", "test"),
    [
        (skip_holes, test_a_hole_is_named_and_never_skipped),
        (stamp_with_names, test_times_are_those_of_entries_and_not_of_uploads_or_names),
        (exclude_the_time, test_an_entry_at_the_very_time_belongs_to_it_and_the_next_does_not),
        (accept_all_ends, test_a_target_past_the_end_is_refused_with_what_there_is),
        (round_up, test_a_sequence_within_an_entry_is_not_rounded),
    ],
    ids=lambda each: each.__name__,
)
def test_a_planted_bug_is_found(
    bug: Callable[[pytest.MonkeyPatch], None],
    test: Callable[[History], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bug(monkeypatch)
    with pytest.raises((AssertionError, RafthaError, pytest.fail.Exception)):
        test(History(Random(1)))
