"""How fast are backups, how large, and what do writes notice?

A state of `--keys` values of 256 bytes, two thirds of each random hexadecimal digits, is backed up
into a folder at compression level 3, encrypted, and read back: all of it, and after `--changed` per
cent of the keys have changed in ten checkpoints, those. Beside it `zstd -3 -T2` compresses the same
pairs from a file, without syncing; each run compares the two one after the other. Then callers in
the leader's process write while all nodes keep a spool of their checkpoints' changes, and while
none does; and while a follower, or the leader, takes full backups of `--fill` keys, one after the
other, and while no node does.

On a machine that does other things too, a process with threads that wait for each other loses more
than zstd does. `--undisturbed` gives both real-time priority (root only), with pauses between.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

from bench.harness.question import Run, undisturbed
from bench.harness.samples import Sample, Taken
from bench.harness.stored import LEVEL, Pair, StoredState, Taking, pairs_of, write_pairs
from bench.harness.systems import InProcess, started_leader
from raftha.config.limits import GIB, MIB
from raftha.storage.state.blocks import encode_pairs

CHECKPOINTS = 10
PARTS = {"state": 3, "spool": 2, "writers": 4}
"""What is measured, and the steps of each in a run."""
CLUSTER = {"checkpoint_interval_sec": 1.0, "max_wal_size": 16 * MIB}
"""Many checkpoints, so that each write's share of the spool counts."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add options beside the shared ones."""
    parser.add_argument("--keys", type=int, default=1_000_000, help="in the state")
    parser.add_argument("--changed", type=float, default=1.0, help="per cent of the keys")
    parser.add_argument("--callers", type=int, default=64, help="that write")
    parser.add_argument("--fill", type=int, default=300_000, help="keys while backups are taken")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--undisturbed", action="store_true", help="with real-time priority")


def ask(run: Run) -> None:
    """Measure."""
    parts = run.options.parts
    run.expect(run.options.runs * sum(PARTS[part] for part in parts))
    if "state" in parts:
        measure_backups(run)
    if "spool" in parts:
        measure_spool(run)
    if "writers" in parts:
        for number in range(run.options.runs):
            for taker in ("follower", "leader"):
                measure_writers(run, taker, number)


def measure_backups(run: Run) -> None:
    """Make a state, and back it up again and again."""
    has_zstd = shutil.which("zstd") is not None
    if not has_zstd:
        run.results.skipped["zstd -3 -T2"] = "there is no zstd"
    with run.folder() as folder:
        state = StoredState(folder)
        numbers = range(run.options.keys)
        for start in range(0, len(numbers), 100_000):
            state.write(pairs_of(numbers[start : start + 100_000], Random(start)))
        pairs = folder / "pairs"
        write_pairs(pairs, state)
        for number in range(run.options.runs):
            measure_state(run, state, folder, number, has_zstd=has_zstd)
        state.close()


def measure_state(
    run: Run, state: StoredState, folder: Path, number: int, *, has_zstd: bool
) -> None:
    """A full backup and an incremental one, each beside zstd."""
    add, shown = run.results.add, {"keys": run.options.keys}
    size = write_pairs(folder / "pairs", state)
    zstd_s = 0.0
    if has_zstd:
        with run.step("zstd -3 -T2"), undisturbed(run):
            zstd_s, _ = compress(folder / "pairs")
        add("zstd -3 -T2", "rate", size / zstd_s / 1e6, unit="MB/s", better="higher", **shown)
    taking = Taking(state, folder / "repository")
    with run.step("a full backup"), undisturbed(run):
        full_s, full = taking.take("full", None)
    add("raftha", "full", size / full_s / 1e6, unit="MB/s", better="higher", **shown)
    if has_zstd:
        add("raftha", "full to zstd", 100 * zstd_s / full_s, unit="%", better="higher", **shown)
    changed = change(state, run, number)
    with run.step("an incremental backup"), undisturbed(run):
        delta_s, delta = taking.take("incremental", full)
    stored = delta.manifest.size_compressed
    share = 100 * delta_s / full_s
    add("raftha", "incremental", delta_s, unit="s", better="lower", **shown)
    add("raftha", "incremental to full", share, unit="%", better="lower", **shown)
    add("raftha", "stored", stored / 1e3, unit="kB", better="lower", **shown)
    if has_zstd:
        (folder / "changed").write_bytes(encode_pairs(changed))
        _, compressed = compress(folder / "changed")
        add(
            "raftha", "stored to zstd", 100 * stored / compressed, unit="%", better="lower", **shown
        )


def change(state: StoredState, run: Run, number: int) -> Sequence[Pair]:
    """Change some keys in several checkpoints; return them with their last values."""
    random = Random(1_000_000 + number)
    count = max(CHECKPOINTS, int(run.options.keys * run.options.changed / 100))
    changed: dict[bytes, bytes] = {}
    for _ in range(CHECKPOINTS):
        numbers = random.sample(range(run.options.keys), count // CHECKPOINTS)
        pairs = dict(pairs_of(numbers, random))
        state.write(pairs.items())
        changed |= pairs
    return sorted(changed.items())


def compress(path: Path) -> tuple[float, int]:
    """Compress a file with zstd's command; return the seconds, and the size."""
    packed = path.with_suffix(".zst")
    began = time.perf_counter()
    subprocess.run(["zstd", "-3", "-T2", "-q", "-f", path, "-o", packed], check=True)
    return time.perf_counter() - began, packed.stat().st_size


def measure_spool(run: Run) -> None:
    """Writes a second with and without the spool, in turns."""
    callers = run.options.callers
    for number in range(run.options.runs):
        rates = {}
        for has_spool in (False, True) if number % 2 else (True, False):
            # No member is of the only kind that may take backups, so none is taken meanwhile.
            backup = {"spool_bytes": GIB if has_spool else 0, "backup_from": ["standby"]}
            system = InProcess(config={**CLUSTER, "backup": backup})
            name = "with the spool" if has_spool else "without the spool"
            with run.folder() as folder, system.start(folder) as measure, run.step(name):
                sample: Sample = measure(run.load(callers=callers, keys=100_000))
            rates[has_spool] = sample.rate
            spool = "on" if has_spool else "off"
            run.add_sample("raftha", sample, "writes", callers=callers, spool=spool)
        ratio = 100 * rates[True] / rates[False]
        run.results.add("raftha", "spool to none", ratio, unit="%", better="higher")


def measure_writers(run: Run, taker: str, number: int) -> None:
    """Writes while one node takes full backups, and while none does; in turns."""
    callers, keys = run.options.callers, run.options.fill
    backup = {"backup_from": [taker], "interval_hours": 8760.0, "compression_level": LEVEL}
    with (
        run.folder() as folder,
        started_leader(folder, settings={"backup": backup}) as (_, worker),
    ):
        worker.ask({"fill": [0, keys]})
        worker.ask({"backup": "full"})
        samples = {}
        for is_during in (False, True) if number % 2 else (True, False):
            with run.step(f"writes, {taker}"):
                load = run.load(callers=callers, keys=keys, options={"backups": is_during})
                answer = worker.ask(load.as_dict())
            sample = Sample.of([Taken.from_dict(answer)], is_client=False)
            backups = f"by the {taker}" if is_during else f"none (of {taker})"
            run.add_sample("raftha", sample, "writes", callers=callers, backups=backups)
            samples[is_during] = sample
            for seconds in answer["backups"]:
                run.results.add("raftha", "a backup", seconds, unit="s", taker=taker, keys=keys)
    alone, during = samples[False], samples[True]
    add, rate = run.results.add, 100 * during.rate / alone.rate
    p99 = 100 * during.quantiles_ms[0.99] / alone.quantiles_ms[0.99]
    add("raftha", "rate to alone", rate, unit="%", better="higher", taker=taker, keys=keys)
    add("raftha", "p99 to alone", p99, unit="%", better="lower", taker=taker, keys=keys)
