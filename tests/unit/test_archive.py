"""The archive in one destination: what is put, when the position moves, and what is deleted."""

from __future__ import annotations

import pytest

from raftha.entry import Entry, EntryKind, make_entry
from raftha.storage.backup import archive, names
from raftha.storage.backup.archive_records import RestoreRecord
from raftha.storage.backup.crypto import DataKey
from raftha.storage.backup.memory import MemoryDestination
from tests.support.archives import (
    LINEAGE,
    ArchivedLog,
    Archiving,
    archived,
    gaps,
    segments,
)
from tests.support.entries import Log
from tests.support.faulty_destination import Fault, FaultyDestination

KEY = DataKey("0f" * 16, bytes(32), 1)


def scene(count: int = 7) -> tuple[FaultyDestination, ArchivedLog, Archiving]:
    destination = FaultyDestination(MemoryDestination())
    log = ArchivedLog(Log())
    log.write(count)
    return destination, log, Archiving(destination, log)


def assert_whole(destination: FaultyDestination, log: ArchivedLog, first: int = 1) -> None:
    """Everything from `first` on is archived as the log had it."""
    expected = {e.index: e for e in log.log.entries if e.index >= first}
    assert {i: e for i, e in archived(destination.inner).items() if i >= first} == expected


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
def test_entries_are_archived_in_order_and_only_once(key: DataKey | None) -> None:
    destination, log, _ = scene()
    node = Archiving(destination, log, key=key)
    result = node.put()
    assert (result.archived.index, result.start, result.error) == (7, 1, "")
    assert result.archived.sequence == log.log.last.last_sequence
    assert [name[2:4] for name in segments(destination)] == [(1, 3), (4, 6), (7, 7)]
    calls = len(destination.calls)
    assert node.put() == result
    assert len(destination.calls) == calls, "what is archived costs no request"
    log.write()
    assert node.put().archived.index == 8
    assert archived(destination, key) == {e.index: e for e in log.log.entries}


def test_only_entries_up_to_the_order_are_archived() -> None:
    """Those behind it may not be committed, and may be replaced (A1)."""
    destination, _, node = scene()
    assert node.put(through=5).archived.index == 5
    assert max(archived(destination)) == 5


def test_a_segment_holds_so_many_bytes_or_one_entry() -> None:
    destination, log, node = scene(1)
    log.write(2, size=3 << 20)
    log.write(1, size=1)
    node.put()
    assert [name[2:4] for name in segments(destination)] == [(1, 2), (3, 4)]


def test_one_job_puts_so_many_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "PUTS_MAX", 2)
    _, _, node = scene(20)
    assert node.put().archived.index == 6
    assert node.put().archived.index == 12


@pytest.mark.parametrize("kind", ["fails", "lost_answer", "late", "conflict", "ignored_condition"])
@pytest.mark.parametrize("at", [1, 4])
def test_the_position_moves_once_a_put_is_confirmed(kind: str, at: int) -> None:
    """A2: whatever a put does, nothing is called archived that can't be read."""
    destination, log, node = scene()
    destination.plan(Fault("create", kind, pattern=f"*/log/0/{at:016x}-*"))
    for _ in range(3):
        result = node.put()
        assert set(range(1, result.archived.index + 1)) <= archived(destination).keys()
    assert result.archived.index == 7
    assert_whole(destination, log)


def test_an_equal_segment_of_another_archiver_is_taken_for_ours() -> None:
    """Its salt is another one, so its bytes are."""
    destination, log, _ = scene()
    first, second = (Archiving(destination, log, key=KEY) for _ in range(2))
    stale = second.put(through=1)
    assert first.put().archived.index == 7
    assert stale.archived.index == 1
    assert second.put(through=3).error == ""
    assert second.put().archived.index == 7
    assert archived(destination, KEY) == {e.index: e for e in log.log.entries}


def other_entry(log: ArchivedLog) -> Entry:
    """An entry that could stand in place of the log's last one: only its bytes differ."""
    last, before = log.log.entries[-1], log.log.entries[-2].position
    count = last.last_sequence - before.last_sequence
    return make_entry(before, 1, last.time_us, EntryKind.BATCH, b"another", count)


def test_other_entries_under_a_name_are_a_conflict() -> None:
    """A6: nothing is overwritten, and nothing more is put."""
    destination, log, node = scene(2)
    node.put()
    log.write()
    other = ArchivedLog(Log())
    other.log.entries = [*log.log.entries[:2], other_entry(log)]
    Archiving(destination, other).put()
    before = archived(destination)
    result = node.put()
    assert "is not the one of this log" in result.error
    assert result.conflict == names.segment_name(segments(destination)[-1])
    assert result.archived.index == 2
    assert archived(destination) == before
    destination.delete(result.conflict)
    assert node.put().archived.index == 3, "an operator has removed it"


def test_a_copy_of_the_cluster_is_found_when_an_archiver_begins() -> None:
    """A3: the last segment that is there must be one of this log, at the latest before the next."""
    destination, log, node = scene(4)
    node.put()
    other = ArchivedLog(Log())
    other.log.entries = [*log.log.entries[:3], other_entry(log)]
    assert Archiving(destination, other).put().conflict
    other.log.entries = other.log.entries[:3]
    behind = Archiving(destination, other)
    result = behind.put()
    assert (result.conflict, result.archived.index) == ("", 0), "it has not got that far"
    other.log.entries.append(other_entry(log))
    other.write(2)
    assert behind.put().conflict


def test_a_damaged_object_of_a_lost_put_is_replaced() -> None:
    destination, log, node = scene(3)
    inner = destination.inner
    destination.plan(Fault("create", "lost_answer"), Fault("get", "fails"))
    assert node.put().archived.index == 0
    (name,) = segments(destination)
    data = inner.get(names.segment_name(name), size_max=1 << 20)
    inner.delete(names.segment_name(name))
    inner.create(names.segment_name(name), data[:-1] + b"?")
    assert "damaged" in node.put().error
    assert node.put().archived.index == 3
    assert_whole(destination, log)


# ---------------------------------------------------------------- another archiver


def test_another_archiver_goes_on_where_the_last_one_was() -> None:
    destination, log, node = scene()
    node.put()
    log.write(2)
    destination.calls.clear()
    result = Archiving(destination, log).put()
    assert (result.archived.index, result.start) == (9, 1)
    assert [operation for operation, _ in destination.calls] == ["list", "get", "create"]
    assert_whole(destination, log)


def test_an_archiver_that_is_appointed_again_lists_again() -> None:
    destination, log, node = scene()
    node.put()
    log.write(2)
    Archiving(destination, log).put()
    log.write(1)
    assert node.put(is_new=True).archived.index == 10
    assert [name[2:4] for name in segments(destination)][-1] == (10, 10)


def test_segments_that_are_not_listed_yet_are_put_again() -> None:
    destination, log, node = scene(3)
    node.put()
    destination.freeze()
    log.write(2)
    node.put()
    log.write(3)
    destination.plan(Fault("list", "stale"))
    assert Archiving(destination, log).put().archived.index == 8
    assert [name[2:4] for name in segments(destination)] == [(1, 3), (4, 5), (4, 6), (7, 8)]
    assert_whole(destination, log)


def test_a_last_segment_that_is_damaged_is_put_again() -> None:
    destination, log, node = scene()
    node.put()
    inner = destination.inner
    name = names.segment_name(segments(destination)[-1])
    inner.delete(name)
    inner.create(name, b"rfbk")
    second = Archiving(destination, log)
    assert [second.put().archived.index for _ in range(2)] == [6, 7]
    assert_whole(destination, log)


def test_an_archive_that_is_damaged_throughout_is_put_again_or_a_gap() -> None:
    for first in 1, 7:
        destination, log, node = scene()
        node.put()
        inner = destination.inner
        for name in map(names.segment_name, segments(destination)):
            inner.delete(name)
            inner.create(name, b"rfbk")
        log.first = first
        second = Archiving(destination, log)
        results = [second.put(lost_index=first - 1) for _ in range(5)]
        assert results[-1].archived.index == 7
        assert gaps(destination) == ([(1, 6)] if first == 7 else [])
        for found in segments(destination):
            if found.last < first:
                inner.delete(names.segment_name(found))
        assert_whole(destination, log, first)


def test_a_hole_is_filled_from_the_log() -> None:
    destination, log, node = scene()
    node.put()
    destination.delete(names.segment_name(segments(destination)[1]))
    assert Archiving(destination, log).put().archived.index == 7
    assert_whole(destination, log)


def test_a_hole_that_no_member_can_fill_becomes_a_gap() -> None:
    destination, log, node = scene()
    node.put()
    destination.delete(names.segment_name(segments(destination)[1]))
    log.first = 6
    second = Archiving(destination, log)
    assert second.put().start == 7
    assert gaps(destination) == [], "another member may have it"
    result = second.put(lost_index=6)
    assert (result.gaps, gaps(destination)) == (((4, 6),), [(4, 6)])
    assert Archiving(destination, log).put(lost_index=6).gaps == (), "it is reported once"


# ---------------------------------------------------------------- gaps


def test_an_empty_archive_begins_where_the_log_does() -> None:
    destination, log, node = scene()
    log.first = 4
    result = node.put()
    assert (result.archived.index, result.start, result.gaps) == (7, 4, ())
    assert_whole(destination, log, first=4)
    assert gaps(destination) == []


def test_an_archive_that_could_not_begin_has_a_gap_too() -> None:
    destination, log, node = scene()
    destination.plan(Fault("create", "fails", times=None))
    node.put()
    destination.plan()
    log.first = 4
    assert node.put().needs == 4
    assert node.put(lost_index=3).gaps == ((1, 3),)
    assert gaps(destination) == [(1, 3)]


def test_what_the_log_lacks_is_asked_for_before_it_is_given_up() -> None:
    """A4: another member may have it."""
    destination, log, node = scene()
    node.put(through=3)
    log.first = 6
    result = node.put()
    assert (result.archived.index, result.needs, result.gaps) == (3, 6, ())
    assert node.put(lost_index=4).gaps == ()
    log.first = 1
    assert node.put().archived.index == 7
    assert_whole(destination, log)


def test_a_gap_is_recorded_before_anything_later() -> None:
    """A3"""
    destination, log, node = scene()
    node.put(through=3)
    log.first = 6
    destination.plan(Fault("create", "fails", pattern="*/gaps/*"))
    result = node.put(lost_index=5)
    assert (result.archived.index, result.gaps) == (3, ())
    assert max(archived(destination)) == 3
    result = node.put(lost_index=5)
    assert (result.archived.index, result.start, result.gaps) == (7, 6, ((4, 5),))
    assert gaps(destination) == [(4, 5)]
    again = Archiving(destination, log).put()
    assert (again.start, again.gaps) == (6, ())


def test_a_destination_that_was_away_gets_its_entries_from_another_one() -> None:
    """Only one of them holds the log: what one has, the others can copy."""
    destination, log, node = scene()
    second = FaultyDestination(MemoryDestination("second"))
    Archiving(second, log).put(through=2)
    node.put()
    log.first = 6
    log.write(2)
    result = Archiving(second, log, others=[destination]).put(lost_index=5)
    assert (result.archived.index, result.start, result.gaps) == (9, 1, ())
    assert_whole(second, log)
    assert [call for call in destination.calls if call[0] == "list"][1:] == [
        ("list", names.log_folder(LINEAGE))
    ], "the other one is listed once"


def test_a_destination_that_is_away_and_may_have_it_is_waited_for() -> None:
    destination, log, node = scene()
    second = FaultyDestination(MemoryDestination("second"))
    Archiving(second, log).put(through=2)
    node.put()
    log.first = 6
    behind = Archiving(second, log, others=[destination])
    destination.plan(Fault("list", "fails", times=None))
    assert "503" in behind.put(lost_index=5).error
    assert gaps(second) == []
    behind.now += archive.GIVE_UP_S
    assert behind.put(lost_index=5).gaps == ((3, 5),)
    assert behind.put().archived.index == 7


def test_a_new_destination_begins_with_the_log_and_copies_nothing() -> None:
    destination, log, node = scene()
    node.put()
    log.first = 6
    second = FaultyDestination(MemoryDestination("second"))
    assert Archiving(second, log, others=[destination]).put().start == 6


def test_a_restore_has_its_record_before_its_segment() -> None:
    """A3: a plan must know from names which entries go back."""
    destination, _, node = scene()
    record = RestoreRecord(LINEAGE, 5, 5, 2, "0f" * 32, 1_000_005)
    destination.plan(Fault("create", "fails", pattern="*/restores/*"))
    assert node.put(restores=(record,)).archived.index == 3
    assert node.put(restores=(record,)).archived.index == 7
    created = [name for operation, name in destination.calls if operation == "create"]
    assert created[-3] == record.name
    data = destination.get(record.name, size_max=4096)
    assert RestoreRecord.decode(data, "", record.name) == record


def test_what_can_not_be_put_has_a_time() -> None:
    destination, log, node = scene()
    destination.plan(Fault("create", "fails", pattern=f"*/log/0/{4:016x}*"))
    assert node.put().pending_us == log.log.entries[3].time_us
    assert node.put().pending_us == 0


# ---------------------------------------------------------------- level 1


@pytest.fixture
def merging(monkeypatch: pytest.MonkeyPatch) -> tuple[FaultyDestination, ArchivedLog, Archiving]:
    """Seven entries in three segments, which are due for level 1."""
    monkeypatch.setattr(archive, "MERGE_COUNT", 3)
    found = scene()
    found[2].put()
    found[2].now += archive.MERGE_S
    return found


Scene = tuple[FaultyDestination, ArchivedLog, Archiving]


def test_level_1_replaces_level_0_after_a_while(merging: Scene) -> None:
    """A5"""
    destination, log, node = merging
    assert node.tidy().verified == 7
    assert [name[1:4] for name in segments(destination)][-1] == (1, 1, 7)
    assert len(segments(destination)) == 4
    node.now += archive.STAYS_S - 1
    node.tidy()
    assert len(segments(destination)) == 4
    node.now += 1
    node.tidy()
    assert [name[1:4] for name in segments(destination)] == [(1, 1, 7)]
    assert_whole(destination, log)
    calls = len(destination.calls)
    node.now += 1e6
    node.tidy()
    assert len(destination.calls) == calls


def test_nothing_is_merged_before_its_time(merging: Scene) -> None:
    destination, _, node = merging
    node.now -= 1
    assert node.tidy().verified == 0
    assert len(segments(destination)) == 3


def test_segments_without_commands_are_left_alone(merging: Scene) -> None:
    """So that a cluster in which nothing is written costs a request an hour."""
    destination, log, node = merging
    node.tidy()
    for _ in range(20):
        log.log.noop(time_us=9_000_000)
        node.put()
        node.now += 3600.0
        node.tidy()
    assert sum(name.level == 1 for name in segments(destination)) == 1


def test_much_log_is_merged_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MERGE_STORED_BYTES", 500)
    destination, log, node = scene(12)
    node.put()
    assert node.tidy().verified == 12
    assert_whole(destination, log)


def test_a_segment_of_level_1_holds_so_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MERGED_RAW_BYTES", 500)
    monkeypatch.setattr(archive, "MERGE_STORED_BYTES", 500)
    destination, log, node = scene(12)
    node.put()
    node.tidy()
    level_1 = [name for name in segments(destination) if name.level == 1]
    assert len(level_1) > 1
    node.now += archive.STAYS_S
    node.tidy()
    assert_whole(destination, log)


@pytest.mark.parametrize(
    "kind", ["fails", "lost_answer", "late", "conflict", "truncated", "rotten"]
)
@pytest.mark.parametrize("operation", ["create", "get"])
def test_level_0_stays_until_level_1_was_read_back(
    merging: Scene, kind: str, operation: str
) -> None:
    """A5, whatever fails in between."""
    destination, log, node = merging
    destination.plan(Fault(operation, kind, pattern="*/log/1/*", times=3))
    for _ in range(8):
        node.tidy()
        node.now += archive.STAYS_S
        assert_whole(destination, log)
    assert [name.level for name in segments(destination)] == [1]


def test_level_1_is_made_of_level_0_if_the_log_is_gone(merging: Scene) -> None:
    destination, log, node = merging
    log.first = 6
    assert node.tidy().verified == 7
    assert_whole(destination, log)
    assert max(name[1:4] for name in segments(destination)) == (1, 1, 7)


def test_level_1_ends_where_a_gap_begins(merging: Scene) -> None:
    destination, log, node = merging
    log.write(5)
    log.first = 10
    node.put(lost_index=9)
    node.now += archive.MERGE_S
    node.tidy()
    node.tidy()
    assert [name[2:4] for name in segments(destination) if name.level == 1] == [(1, 7)]
    log.write(9)
    node.put()
    node.now += archive.MERGE_S
    node.tidy()
    assert [name[2:4] for name in segments(destination) if name.level == 1] == [(1, 7), (10, 21)]
    node.now += archive.STAYS_S
    node.tidy()
    assert archived(destination).keys() == {*range(1, 8), *range(10, 22)}


def test_level_0_that_is_lost_with_the_log_becomes_a_gap(merging: Scene) -> None:
    destination, log, node = merging
    log.first = 6
    destination.delete(names.segment_name(segments(destination)[0]))
    result = node.tidy()
    assert (result.gaps, result.start) == (((1, 3),), 4)
    assert gaps(destination) == [(1, 3)]
    node.now += archive.STAYS_S
    node.tidy()
    assert archived(destination).keys() == {4, 5, 6, 7}


def test_what_another_segment_has_too_is_not_lost() -> None:
    """Segments of two archivers overlap, and the first one is damaged."""
    destination, log, _ = scene()
    inner = destination.inner
    log.read_max = 4
    node = Archiving(destination, log)
    node.put(through=4)
    other = ArchivedLog(log.log, read_max=5)
    other.first = 3
    third = FaultyDestination(MemoryDestination("third"))
    Archiving(third, other).put()
    (overlap, *_) = segments(third)
    assert (overlap.first, overlap.last) == (3, 7)
    data = third.get(names.segment_name(overlap), size_max=1 << 20)
    inner.create(names.segment_name(overlap), data)
    (damaged, *_) = segments(destination)
    inner.delete(names.segment_name(damaged))
    inner.create(names.segment_name(damaged), b"rfbk")
    log.first = 7
    log.write(30)
    node = Archiving(destination, log)
    node.put(lost_index=6)
    node.now += archive.MERGE_S
    results = [node.tidy(lost_index=6) for _ in range(4)]
    assert gaps(destination) == [(1, 2)]
    node.now += archive.STAYS_S
    node.tidy()
    assert results[-1].error == ""
    assert archived(destination.inner).keys() >= set(range(3, 8))


def test_another_archiver_merges_what_the_last_one_left(merging: Scene) -> None:
    destination, log, node = merging
    node.tidy()
    log.write(9)
    node.put()
    second = Archiving(destination, log)
    assert second.put().verified == 0, "what was last merged may not have been read back"
    second.tidy()
    second.now += archive.STAYS_S
    second.tidy()
    assert {name.level for name in segments(destination)} == {1}
    assert_whole(destination, log)
    third = Archiving(destination, log)
    third.put()
    third.now += archive.STAYS_S
    third.tidy()
    assert_whole(destination, log)


# ---------------------------------------------------------------- what the window needs no longer


def test_segments_before_the_window_go_and_the_last_one_stays(merging: Scene) -> None:
    destination, log, node = merging
    log.write(2)
    node.put()
    assert node.tidy(keep_from=4).error == ""
    assert min(archived(destination)) == 1, "level 1 has entries of the window"
    log.write(3)
    node.put()
    node.tidy(keep_from=100)
    assert [name[1:4] for name in segments(destination)] == [(0, 10, 12)]
    assert Archiving(destination, log).put().archived.index == 12


def test_a_denied_deletion_is_tried_again_the_next_day(merging: Scene) -> None:
    destination, _, node = merging
    destination.plan(Fault("delete", "denied", times=None))
    node.tidy(keep_from=6)
    node.tidy(keep_from=6)
    denied = [call for call in destination.calls if call[0] == "delete"]
    assert len(denied) == len(set(denied)) == 1
    assert len(segments(destination)) == 4
    destination.plan()
    node.now += archive.DENIED_S
    node.tidy(keep_from=6)
    assert {name.level for name in segments(destination)} == {1}
