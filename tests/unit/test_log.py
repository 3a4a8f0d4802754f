"""The core's log: merging a leader's entries, and the pointers into the log."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from raftha.core import Append, RaftLog
from raftha.core.log import LogMismatch
from raftha.entry import LOG_START, Entry, EntryKind, LogPosition, make_entry
from raftha.membership import Membership

MEMBERSHIP = Membership.first({1: "127.0.0.1:7101"})


def chain(terms: Sequence[int], after: LogPosition = LOG_START, size: int = 0) -> list[Entry]:
    """Entries of these terms that follow `after`."""
    entries: list[Entry] = []
    for term in terms:
        entries.append(make_entry(after, term, 0, EntryKind.NOOP, bytes(size), 0))
        after = entries[-1].position
    return entries


def log_of(terms: Sequence[int], *, commit: int = 0, applied: int = 0) -> RaftLog:
    """A log of entries of these terms, all of them durable."""
    log = RaftLog(1, LOG_START, chain(terms), 1 << 20, MEMBERSHIP)
    log.commit = max(commit, applied)
    if applied:
        log.mark_applied(applied)
    return log


def append(entries: Sequence[Entry], prev: LogPosition = LOG_START) -> Append:
    """Merge what a leader would send."""
    term = entries[-1].term if entries else prev.term
    return Append(2, 1, term, prev.index, prev.term, 0, 0, tuple(entries))


def terms_of(log: RaftLog) -> list[int]:
    return [entry.term for entry in log.window]


def test_new_entries_are_added_at_the_end() -> None:
    log = log_of([1, 1])
    new = chain([1, 2], log.last)
    assert log.merge(append(new, log.last)) == 4
    assert terms_of(log) == [1, 1, 1, 2]


def test_an_append_with_a_gap_before_it_is_refused() -> None:
    log = log_of([1])
    entries = chain([1, 1, 1])
    assert log.merge(append(entries[2:], entries[1].position)) is None
    assert terms_of(log) == [1]


def test_an_append_behind_an_entry_of_another_term_is_refused() -> None:
    """Raft paper 5.3: the consistency check."""
    log = log_of([1, 1])
    leader = chain([1, 2, 2])
    assert log.merge(append(leader[2:], leader[1].position)) is None


def test_a_conflicting_entry_goes_with_all_that_follow_it() -> None:
    log = log_of([1, 1, 1, 1])
    leader = chain([1, 2])
    assert log.merge(append(leader)) == 2
    assert terms_of(log) == [1, 2]
    assert (log.persisted, log.written) == (1, 1)


def test_entries_that_match_are_not_cut_off_by_a_late_append() -> None:
    """R6: a message that was overtaken must not drop entries acknowledged since."""
    log = log_of([1, 1, 1])
    late = log.window[0]
    assert log.merge(append([late])) == 1
    assert log.last_index == 3
    assert log.persisted == 3


def test_an_append_below_commit_agrees_up_to_its_own_end() -> None:
    log = log_of([1, 1, 1], commit=3)
    assert log.merge(append(chain([1, 1]))) == 2


def test_only_entries_behind_commit_are_taken_from_an_overlapping_append() -> None:
    log = log_of([1, 1], commit=2)
    assert log.merge(append(chain([1, 1, 1]))) == 3
    assert log.last_index == 3


def test_committed_entries_are_never_replaced() -> None:
    log = log_of([1, 1], commit=2)
    with pytest.raises(AssertionError, match="never replaced"):
        log._extend(tuple(chain([2])))


def test_entries_that_break_the_chain_of_hashes_change_nothing() -> None:
    log = log_of([1, 1])
    stranger = chain([2], chain([1, 1], size=1)[-1].position)
    with pytest.raises(LogMismatch):
        log.merge(append(stranger, log.last))
    assert terms_of(log) == [1, 1]


def test_a_write_of_entries_that_were_replaced_meanwhile_does_not_count() -> None:
    log = log_of([1])
    log.merge(append(chain([1, 1], log.last), log.last))
    writing = tuple(log.window[1:])
    log.merge(append(chain([2], log.window[0].position), log.window[0].position))
    log.mark_persisted(writing)
    assert log.persisted == 1


def test_a_write_counts_up_to_where_it_still_is_the_log() -> None:
    log = log_of([1])
    log.merge(append(chain([1, 1], log.last), log.last))
    writing = tuple(log.window[1:])
    log.merge(append(chain([2], log.window[1].position), log.window[1].position))
    log.mark_persisted(writing)
    assert log.persisted == 2


@pytest.mark.parametrize(
    ("index", "term", "granted"),
    [(3, 2, True), (2, 2, False), (9, 1, False), (1, 3, True), (4, 2, True)],
)
def test_a_log_is_up_to_date_by_last_term_then_by_length(
    index: int, term: int, granted: bool
) -> None:
    """Raft paper 5.4.1."""
    assert log_of([1, 2, 2]).is_up_to_date(index, term) is granted


def test_a_slice_holds_at_least_one_entry_and_about_as_much_as_asked_for() -> None:
    log = log_of([1, 1, 1])
    size = len(log.window[0].data)
    assert [entry.index for entry in log.slice(1, 1)] == [1]
    assert [entry.index for entry in log.slice(1, 2 * size)] == [1, 2]
    assert log.slice(4, 1) == ()


def test_applied_entries_leave_a_full_window_and_others_stay() -> None:
    log = RaftLog(1, LOG_START, chain([1] * 10, size=100), 500, MEMBERSHIP)
    log.commit = 8
    log.mark_applied(6)
    assert log.anchor.index > 0
    assert log.anchor.index <= 6
    assert log.window[-1].index == 10
    assert log.term(log.anchor.index) == 1
    assert log.term(log.anchor.index - 1) is None


def test_the_state_never_runs_ahead_of_the_disk() -> None:
    log = log_of([1, 1])
    log.commit, log.persisted = 2, 1
    with pytest.raises(AssertionError):
        log.mark_applied(2)


def test_a_hint_skips_all_entries_of_later_terms() -> None:
    log = log_of([1, 1, 3, 3, 3])
    assert log.hint(9, 2) == (2, 1)
    assert log.hint(4, 3) == (4, 3)


def test_a_hint_goes_below_commit_too_and_ends_where_memory_does() -> None:
    """A leader must get past committed entries that the follower lacks, in few rounds."""
    assert log_of([1, 3, 3], commit=3).hint(9, 1) == (1, 1)
    log = RaftLog(
        1, chain([1, 2])[1].position, chain([3], chain([1, 2])[1].position), 1 << 20, MEMBERSHIP
    )
    assert log.hint(9, 1) == (2, 2)
    assert log.hint(1, 1) == (1, 0)


# ---------------------------------------------------------------- entries that restore


def log_with_restores(commit: int) -> RaftLog:
    """Entries 1 to 6, of which 3 and 5 restore."""
    entries: list[Entry] = []
    after = LOG_START
    for index in range(1, 7):
        kind, count = (EntryKind.RESTORE, 1) if index in (3, 5) else (EntryKind.NOOP, 0)
        entries.append(make_entry(after, 1, 0, kind, b"", count))
        after = entries[-1].position
    log = RaftLog(1, LOG_START, entries, 1 << 20, MEMBERSHIP)
    log.commit_to(commit)
    return log


def test_the_application_stops_in_front_of_an_entry_that_restores() -> None:
    log = log_with_restores(6)
    assert log.applicable == 2 and log.has_unapplied
    assert log.take_restore() is None, "others are applied first"
    log.mark_applied(2)
    assert log.has_unapplied, "the caller has to be told"
    restore = log.take_restore()
    assert restore is not None and restore.index == log.stopped_at == 3
    assert log.take_restore() is None and not log.has_unapplied, "once"
    log.pass_restore()
    assert (log.applicable, log.stopped_at, log.has_unapplied) == (4, 0, True)
    log.mark_applied(4)
    restore = log.take_restore()
    assert restore is not None and restore.index == 5
    log.pass_restore()
    log.mark_applied(6)
    assert not log.has_unapplied and log.take_restore() is None


def test_an_entry_that_restores_counts_once_it_is_committed_and_durable() -> None:
    log = log_with_restores(2)
    log.mark_applied(2)
    assert log.take_restore() is None and not log.has_unapplied
    log.commit_to(3)
    log.persisted = 2
    assert log.take_restore() is None and not log.has_unapplied
    log.persisted = 6
    assert log.has_unapplied
    assert log.take_restore() is not None


def test_an_entry_that_restores_may_be_replaced_before_it_is_committed() -> None:
    log = log_with_restores(2)
    second = log.window[1].position
    log.merge(append(chain([2, 2], second), second))
    log.persisted = 4
    log.commit_to(4)
    assert log.applicable == 4


@pytest.mark.parametrize(
    ("kind", "count"), [(EntryKind.RESTORE, 0), (EntryKind.RESTORE, 2), (EntryKind.NOOP, 1)]
)
def test_an_entry_has_as_many_commands_as_its_kind(kind: EntryKind, count: int) -> None:
    log = log_of([1])
    wrong = make_entry(log.last, 1, 0, kind, b"", count)
    with pytest.raises(LogMismatch, match="commands"):
        log.merge(append([wrong], log.last))
    log.merge(append([make_entry(log.last, 1, 0, EntryKind.RESTORE, b"", 1)], log.last))
    assert log.last_index == 2
