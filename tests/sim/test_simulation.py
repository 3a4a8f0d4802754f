"""The simulation in the test suite: seeds that must pass, bugs that must be found, one story twice.

A failing seed prints the invariant it violated, its last events, and how to replay it. A change of
`swarm.py` makes other runs of the same seeds. So each failure of the real code is kept as a planted
bug that puts the mistake back, and as a unit test.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.sim.bugs import BUGS
from tests.sim.cluster import run
from tests.sim.coverage import ENOUGH_SEEDS, ROWS, Coverage
from tests.sim.runs import BUG_SEEDS, find, find_from, run_one

SEEDS = 200
OPEN_REQUEST = "leadership moves in the calm: a request for another leader has no answer yet"
UNKNOWN_LEADER = "an operator asks for a leader that the asked node doesn't know as a member"
ALTERED = "a snapshot carries an altered state to a majority"
KEPT = {
    610093: OPEN_REQUEST,
    610170: UNKNOWN_LEADER,
    610294: "two builds where members campaign only if asked: a version that a member never had",
    610466: "operators wipe a second disk while a removal is under way: no majority has the data",
    620308: OPEN_REQUEST,
    620507: UNKNOWN_LEADER,
    630334: "the last operator's node and the leader that it wants can't get a majority",
    640017: OPEN_REQUEST,
    640041: OPEN_REQUEST,
    640295: "failed beside those above, and passed once they did",
    640374: "no member is up that operators could ask when all is calm",
    660129: "a member whose log has only its cluster's founding campaigns unasked",
    660162: ALTERED,
    660509: ALTERED,
    20261128045: "a receipt names a member whose directory was put back since",
    610341: "two jobs take one destination of a repository in at the same time",
    1475: "a member that operators add in the end has a build that is too old for the cluster",
}
"""Seeds that have failed, and what came up."""


def processes() -> ProcessPoolExecutor:
    """One for each CPU, of a low priority: tests that wait on clocks may run beside them."""
    spawn = get_context("spawn")
    return ProcessPoolExecutor(
        os.cpu_count(), mp_context=spawn, initializer=os.nice, initargs=(10,)
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_seed_violates_an_invariant_and_every_fault_strikes() -> None:
    coverage = Coverage()
    with processes() as pool:
        for outcome in pool.map(partial(run_one, ""), range(1, SEEDS + 1)):
            assert not outcome.violation, (
                f"seed {outcome.seed}: {outcome.violation}\n{outcome.story}\n"
                f"replay with: python -m tests.sim --replay {outcome.seed}"
            )
            coverage.add(outcome.counts)
    assert not coverage.missing(SEEDS), coverage.table()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_planted_bug_is_found() -> None:
    """First at the seed in the document; if the simulation has changed since, from seed 1 on."""
    hints = [documented_seeds()[name] for name in BUGS]
    with processes() as pool:
        found = dict(zip(BUGS, pool.map(find_from, BUGS, hints), strict=True))
    missed = [name for name, outcome in found.items() if outcome is None]
    assert not missed, f"not found in {BUG_SEEDS} seeds: {', '.join(missed)}"


@pytest.mark.slow
def test_a_seed_tells_the_same_story_in_any_process() -> None:
    """Another order of hashing must change nothing."""
    here = run(7)
    program = "from tests.sim.cluster import run; o = run(7); print(o.events, o.digest)"
    for hash_seed in ("1", "2"):
        told = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        assert told.stdout.split() == [str(here.events), str(here.digest)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", KEPT)
def test_a_seed_that_failed_once_passes(seed: int) -> None:
    outcome = run_one("", seed)
    assert not outcome.violation, f"{KEPT[seed]}: {outcome.violation}\n{outcome.story}"


def test_a_failing_seed_reports_the_violation_and_the_events_before_it() -> None:
    outcome = find("acknowledge_before_fsync", seeds=20)
    assert outcome is not None
    assert "on its disk" in outcome.violation
    assert outcome.story.splitlines()[-1].strip(), "the last events are told"


def documented_seeds() -> dict[str, int]:
    """By planted bug, in order: the seed that docs/VERIFICATION.md says finds it."""
    text = (Path(__file__).parents[2] / "docs/VERIFICATION.md").read_text(encoding="utf-8")
    row = r"^\| `(\w+)` \|.*--replay (\d+) --bug \1` \|$"
    return {name: int(seed) for name, seed in re.findall(row, text, re.MULTILINE)}


def test_the_document_lists_the_bugs_that_there_are() -> None:
    seeds = documented_seeds()
    assert list(seeds) == list(BUGS)
    assert all(0 < seed <= BUG_SEEDS for seed in seeds.values())


def test_the_table_of_findings_names_bugs_that_there_are() -> None:
    text = (Path(__file__).parents[2] / "docs/VERIFICATION.md").read_text(encoding="utf-8")
    rows = text.split("\n## What strangers found\n", 1)[1].split("\n## ", 1)[0]
    cited = {
        name
        for cell in re.findall(r"^\|.*\|.*\|(.*)\|$", rows, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", cell)
    }
    assert cited
    assert cited <= set(BUGS)


def test_a_long_run_in_which_something_never_happened_says_so() -> None:
    coverage = Coverage()
    everything = {name: 1 for section in ROWS.values() for name, _ in section}
    for _ in range(ENOUGH_SEEDS):
        coverage.add({**everything, "wiped": 0})
    (missing,) = coverage.missing()
    assert "lost their directories" in missing
