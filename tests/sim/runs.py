"""One seed, with or without a planted bug.

A module of its own, because processes that are spawned can't find what is in a `__main__`.
"""

from __future__ import annotations

from collections.abc import Iterable

from tests.sim.bugs import planted
from tests.sim.cluster import Outcome, run

BUG_SEEDS = 350


def run_one(bug: str, seed: int) -> Outcome:
    """Run a seed in this process."""
    with planted(bug):
        return run(seed)


def find(bug: str, *, seeds: int = BUG_SEEDS) -> Outcome | None:
    """Run seeds with `bug` planted until one of them fails."""
    return _find(bug, range(1, seeds + 1))


def find_from(bug: str, hint: int) -> Outcome | None:
    """As `find`, but look at the seed `hint` first."""
    return _find(bug, (hint,)) or find(bug)


def _find(bug: str, seeds: Iterable[int]) -> Outcome | None:
    with planted(bug):
        outcomes = (run(seed) for seed in seeds)
        found = next((outcome for outcome in outcomes if outcome.violation), None)
    if found is not None:
        # A patch that no longer fits the code proves nothing.
        last_line = found.violation.strip().splitlines()[-1]
        broken = ("TypeError", "AttributeError", "NameError")
        assert not last_line.startswith(broken), f"{bug} is planted wrongly: {last_line}"
    return found
