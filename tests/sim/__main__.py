"""Runs seeds (`python -m tests.sim --seeds 1000`) or replays one (`... --replay 42`).

Prints each failing seed's violation, the story of the first, the command that replays it, and at
the end how often each kind of event happened: faults, elections, snapshots, changes, retries. Exits
with 1 if a seed failed, or if there were many and something never happened; with a planted bug
(`--bug NAME`, `--bugs` for all), if no seed failed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

from tests.sim.bugs import BUGS
from tests.sim.cluster import Outcome
from tests.sim.coverage import ENOUGH_SEEDS, Coverage
from tests.sim.runs import find, run_one

NOTICED = 110
"""Characters of a violation that fit into a line."""


def main() -> int:
    """Parse the command line, and run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds to run")
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument(
        "--enough",
        type=int,
        default=ENOUGH_SEEDS,
        help="a run of so many seeds must have had every kind of event",
    )
    parser.add_argument("--replay", type=int, help="run one seed, twice, and tell its story")
    parser.add_argument("--bug", choices=sorted(BUGS), default="", help="plant a bug first")
    parser.add_argument("--bugs", action="store_true", help="plant every bug, one after the other")
    parser.add_argument("--table", action="store_true", help="with --bugs: as Markdown")
    parser.add_argument("-j", "--jobs", type=int, default=os.cpu_count(), help="processes")
    args = parser.parse_args()
    if args.bugs:
        return find_all(args.seeds, args.jobs, as_table=args.table)
    if args.replay is not None:
        return replay(args.replay, args.bug)
    seeds = range(args.seed, args.seed + args.seeds)
    outcomes = run_seeds(seeds, args.bug, args.jobs, args.enough)
    return 1 if outcomes == bool(args.bug) else 0


def run_seeds(seeds: range, bug: str, processes: int, enough: int) -> bool:
    """Run many seeds and sum them up; return True if all went well."""
    began = time.monotonic()
    coverage = Coverage()
    events = acknowledged = failed = 0
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for outcome in pool.map(partial(run_one, bug), seeds, chunksize=4):
            coverage.add(outcome.counts)
            events += outcome.events
            acknowledged += outcome.acknowledged
            if outcome.violation:
                failed += 1
                tell(outcome, bug, has_story=failed == 1)
    took = time.monotonic() - began
    print(
        f"{len(seeds)} seeds, {failed} failed, {events} events, "
        f"{acknowledged} writes acknowledged, {took:.0f} s, {len(seeds) / took:.1f} seeds/s"
    )
    print(coverage.table())
    missing = coverage.missing(enough)
    if missing and not bug:
        print(f"NEVER HAPPENED: {'; '.join(missing)}")
    return not failed and (bool(bug) or not missing)


def replay(seed: int, bug: str) -> int:
    """Run one seed twice, print its story, and check that both runs were the same."""
    outcome = run_one(bug, seed)
    again = run_one(bug, seed)
    tell(outcome, bug, has_story=True)
    print(f"{outcome.events} events in {outcome.seconds:.3f} s, digest {outcome.digest:08x}")
    if again != outcome:
        print(
            f"NOT DETERMINISTIC: {again.events} events, digest {again.digest:08x} the second time"
        )
        return 1
    return 1 if bool(outcome.violation) != bool(bug) else 0


def find_all(seeds: int, processes: int, *, as_table: bool) -> int:
    """Plant each bug and run seeds until one finds it; print what was found, also as Markdown."""
    missed = 0
    if as_table:
        print("| bug | what it breaks | noticed as | seeds | command |\n|---|---|---|---|---|")
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        found = pool.map(partial(find, seeds=seeds), BUGS)
        for name, outcome in zip(BUGS, found, strict=True):
            missed += outcome is None
            seed = 0 if outcome is None else outcome.seed
            noticed = (
                "" if outcome is None else outcome.violation.strip().splitlines()[-1][:NOTICED]
            )
            if as_table:
                breaks = " ".join((BUGS[name].__doc__ or "").split())
                command = f"`python -m tests.sim --replay {seed} --bug {name}`"
                noticed = noticed.replace("|", "\\|")
                row = f"| `{name}` | {breaks} | {noticed} | {seed or 'none'} | {command} |"
                print(row, flush=True)
            else:
                print(f"{name:34} seed {seed or 'none':>5}  {noticed}", flush=True)
    return 1 if missed else 0


def last_line(outcome: Outcome) -> str:
    """The violation, or what was raised, without the traceback."""
    return outcome.violation.strip().splitlines()[-1]


def tell(outcome: Outcome, bug: str, *, has_story: bool) -> None:
    """Print what went wrong, and how to replay it."""
    planting = f" --bug {bug}" if bug else ""
    if outcome.violation:
        print(f"\nseed {outcome.seed}: {outcome.violation}")
    if has_story and outcome.story:
        print(outcome.story)
    if outcome.violation:
        print(f"replay with: python -m tests.sim --replay {outcome.seed}{planting}\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
