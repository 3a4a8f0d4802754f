"""Recoveries to a moment: what is planned, what is built, and what is refused before it begins."""

from __future__ import annotations

from random import Random

import pytest

from raftha.storage.backup.recovery import Target
from tests.support.recovery_history import History


@pytest.fixture
def history() -> History:
    return History(Random(1))


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
