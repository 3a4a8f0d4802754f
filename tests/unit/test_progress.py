"""What the leader knows of a follower, and when it may send."""

from __future__ import annotations

import pytest

from raftha.core.progress import Mode, Progress


@pytest.fixture
def progress() -> Progress:
    """A follower of a leader that was just elected, with a log of 10 entries."""
    return Progress(next_index=11, messages_max=2, bytes_max=100)


def test_a_new_follower_is_asked_once_and_then_waited_for(progress: Progress) -> None:
    assert not progress.is_paused
    progress.probed(1, 10)
    assert progress.is_paused


def test_the_first_ok_lets_appends_go_out_back_to_back(progress: Progress) -> None:
    progress.probed(1, 11)
    assert progress.acknowledge(11)
    assert (progress.mode, progress.match, progress.next) == (Mode.REPLICATE, 11, 12)
    progress.sent(12, 10)
    assert not progress.is_paused
    assert progress.next == 13


def test_messages_in_flight_are_limited(progress: Progress) -> None:
    progress.acknowledge(10)
    progress.sent(11, 1)
    progress.sent(12, 1)
    assert progress.is_paused
    progress.acknowledge(11)
    assert not progress.is_paused


def test_bytes_in_flight_are_limited(progress: Progress) -> None:
    progress.acknowledge(10)
    progress.sent(11, 100)
    assert progress.is_paused
    progress.acknowledge(11)
    assert not progress.is_paused


def test_an_acknowledgement_covers_all_that_was_sent_before_it(progress: Progress) -> None:
    progress.acknowledge(10)
    progress.sent(11, 50)
    progress.sent(12, 50)
    progress.acknowledge(12)
    assert not progress.is_paused
    assert progress.match == 12


def test_an_old_acknowledgement_changes_nothing(progress: Progress) -> None:
    progress.acknowledge(12)
    assert not progress.acknowledge(11)
    assert (progress.match, progress.next) == (12, 13)


def test_an_old_acknowledgement_does_not_end_a_probe(progress: Progress) -> None:
    """Each would resend all entries in flight, and they would be rejected again."""
    progress.acknowledge(10)
    progress.sent(11, 1)
    progress.sent(12, 1)
    assert progress.reject(11, 10)
    progress.probed(1, 12)
    assert not progress.acknowledge(10)
    assert (progress.mode, progress.is_paused) == (Mode.PROBE, True)
    assert progress.acknowledge(11), "the other append of those in flight has arrived"
    assert (progress.mode, progress.next) == (Mode.REPLICATE, 12)


def test_the_answer_to_a_probe_without_entries_ends_it(progress: Progress) -> None:
    """It has no news if the follower has exactly what the leader knows."""
    progress.acknowledge(10)
    progress.probe()
    progress.probed(1, 10)
    assert not progress.acknowledge(10)
    assert progress.mode is Mode.REPLICATE


def test_a_rejected_probe_moves_to_where_the_logs_may_agree(progress: Progress) -> None:
    progress.probed(1, 10)
    assert progress.reject(10, 6)
    assert (progress.next, progress.is_paused) == (6, False)


def test_a_rejected_probe_always_moves_back(progress: Progress) -> None:
    assert progress.reject(10, 99)
    assert progress.next == 10


def test_a_rejection_of_another_probe_is_stale(progress: Progress) -> None:
    assert not progress.reject(7, 3)
    assert progress.next == 11


def test_a_rejection_never_goes_below_what_is_known_to_match(progress: Progress) -> None:
    progress.acknowledge(5)
    progress.sent(12, 1)
    assert progress.reject(11, 2)
    assert (progress.mode, progress.next) == (Mode.PROBE, 6)
    assert not progress.reject(4, 1)


def test_a_rejection_of_what_was_acknowledged_since_is_stale(progress: Progress) -> None:
    progress.acknowledge(11)
    assert not progress.reject(11, 4)
    assert progress.mode is Mode.REPLICATE


def test_after_a_lost_connection_sending_starts_over_from_the_match(progress: Progress) -> None:
    progress.acknowledge(10)
    progress.sent(11, 100)
    progress.probe()
    assert (progress.mode, progress.next, progress.is_paused) == (Mode.PROBE, 11, False)


def test_a_lost_connection_before_any_reply_keeps_the_first_guess(progress: Progress) -> None:
    """Entry 1 may be compacted: probing there would end in a snapshot."""
    progress.probed(1, 10)
    progress.probe()
    assert (progress.next, progress.is_paused) == (11, False)


def test_nothing_is_sent_while_entries_come_from_the_disk(progress: Progress) -> None:
    progress.mode = Mode.FETCH
    assert progress.is_paused


def test_late_rejections_do_not_each_resend_everything(progress: Progress) -> None:
    """A network in order has none; on one that reorders they would multiply without end."""
    progress.acknowledge(10)
    progress.sent(11, 1)
    progress.sent(12, 1)
    assert progress.reject(11, 11)
    progress.acknowledge(11)
    progress.sent(12, 1)
    assert not progress.reject(12, 12)
    assert progress.mode is Mode.REPLICATE
    progress.has_fallen_back = False  # As the reply to a heartbeat sets it.
    assert progress.reject(12, 12)


def test_a_follower_that_rejects_what_it_acknowledged_gets_no_resend(
    progress: Progress,
) -> None:
    """It has lost what it had; it is about to learn of that, and will say so."""
    progress.acknowledge(12)
    progress.probe()
    progress.probed(1, 13)
    assert progress.has_gone_back(12)
    assert not progress.reject(12, 5)
    assert progress.is_paused
    assert (progress.match, progress.next) == (12, 13)
    assert not progress.has_gone_back(12), "once for each"


def test_a_late_rejection_does_not_say_that_a_follower_has_gone_back(progress: Progress) -> None:
    progress.probed(1, 10)
    assert not progress.has_gone_back(10), "nothing was acknowledged yet"
    progress.acknowledge(12)
    assert not progress.has_gone_back(10), "it was sent before the acknowledgement"
