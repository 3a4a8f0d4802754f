"""Any moment of any history: a recovery has the state that an oracle kept, or says what lacks.

A history is made at random: writes with user commands, backups, log in overlapping segments of both
levels, other leaders, restores into new lineages, forks. Then targets at random, by sequence and by
time, also between stamps and within entries.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from random import Random

import pytest

from raftha.errors import ArchiveGap, SeveralLineages, TargetUnreachable
from raftha.storage.backup.planner import window
from raftha.storage.backup.recovery import Target
from tests.support.recovery_history import START_US, History, Version

pytestmark = pytest.mark.slow

TARGETS = 60


def history_of(rng: Random, steps: int = 120) -> History:
    """A random history, with at least one backup and all of its log."""
    history = History(rng)
    history.write()
    history.backup(late=rng.randrange(3))
    weights: dict[Callable[[], object], float] = {
        history.write: 60,
        history.repeat: 3,
        history.fail_over: 4,
        lambda: history.backup(
            rng.choice(["full", "incremental", "differential"]), late=rng.randrange(3)
        ): 4,
        lambda: history.archive(rng.randrange(1, 4)): 12,
        history.merge: 4,
        history.overlap: 3,
        history.open_session: 2,
        lambda: go_back(history, rng): 1.5,
        lambda: recover(history, rng): 2,
        lambda: fork(history): 0.7,
    }
    for _ in range(steps):
        rng.choices(list(weights), list(weights.values()))[0]()
    history.archive()
    return history


def go_back(history: History, rng: Random) -> None:
    """An offline restore to a moment of the present history."""
    if rng.random() < 0.7:
        history.archive()
    with suppress(TargetUnreachable, ArchiveGap):
        history.restore(target_of(history, rng))


def recover(history: History, rng: Random) -> None:
    """A recovery of the live cluster, often undone."""
    before = history.last.last_sequence
    versions = history.own_versions(history.lineage)
    later = [version.sequence for version in versions if version.sequence >= history.earliest]
    history.go_back(Target(sequence=rng.choice(later[-80:])))
    if rng.random() < 0.3:
        history.write()
        history.go_back(Target(sequence=before))


def fork(history: History) -> None:
    """`recover-quorum`, if there is a backup of this lineage."""
    if history.newest is not None:
        history.continue_as_fork()


def target_of(history: History, rng: Random) -> Target:
    """A sequence or a time of any lineage; sometimes just beside one."""
    version = rng.choice(history.versions)
    if rng.random() < 0.5:
        return Target(sequence=version.sequence)
    return Target(time_us=max(START_US, version.time_us + rng.choice([0, 0, 0, -1, 1, 400])))


@pytest.mark.parametrize("seed", range(12))
def test_random_targets_are_recovered_as_the_oracle_kept_them(seed: int) -> None:
    rng = Random(seed)
    history = history_of(rng)
    assert history.recovered(Target(), history.lineage) == history.model
    reached = 0
    for _ in range(TARGETS):
        target = target_of(history, rng)
        reached += check(history, target, rng)
    assert reached > 5


def check(history: History, target: Target, rng: Random) -> bool:
    """Recover a target, by default and in each lineage that may be meant."""
    lineages: tuple[str, ...] = ()
    try:
        found = history.recovered(target)
    except SeveralLineages as error:
        lineages = error.lineages
        assert len(lineages) > 1
    except TargetUnreachable as error:
        assert_unreachable(history, target, error)
        return False
    else:
        matching = [
            version.pairs
            for lineage in {v.lineage for v in history.versions}
            if (version := version_at(history, target, lineage)) is not None
        ]
        assert found in matching, target
        if version_at(history, target, history.lineage) is not None:
            assert found == history.at(target).pairs, target
        return True
    lineage = rng.choice(lineages)
    with suppress(TargetUnreachable, ArchiveGap):
        assert history.recovered(target, lineage) == history.at(target, lineage).pairs, target
    return True


def version_at(history: History, target: Target, lineage: str) -> Version | None:
    """What the oracle kept, if this lineage has the target."""
    try:
        return history.at(target, lineage)
    except StopIteration:
        return None


def assert_unreachable(history: History, target: Target, error: TargetUnreachable) -> None:
    """It is before the first backup, or behind all that there is."""
    found = window(history.repository)
    if target.time_us is not None:
        assert not found.earliest.time_us <= target.time_us <= found.latest.time_us, target
    else:
        assert target.sequence is not None
        versions = [v.sequence for v in history.own_versions(history.lineage)]
        if target.sequence in versions:
            inside = found.earliest.sequence <= target.sequence <= found.latest.sequence
            assert not inside, (target, error)
