"""How fast is a backup restored, and how fast is log replayed over it?

A state of `--keys` values of 256 bytes, as in the question `backup`, is backed up, encrypted, into
a folder, and restored from it: pairs into an LMDB file, synced, and all of them read again for the
digest. Beside it `zstd -d` decompresses the same pairs into a file, which is synced; each run
compares the two one after the other. Then `--commands` plain puts of `--value` bytes, `--batch` in
an entry, to keys of which half are new, are archived behind the backup, and replayed.

On a machine that does other things too, `--undisturbed` gives both real-time priority (root only).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

from bench.harness.question import Run, undisturbed
from bench.harness.stored import LEVEL, LINEAGE, StoredState, Taking, pairs_of, write_pairs
from raftha.entry import Entry, EntryKind, Group, encode_group, make_entry
from raftha.storage.backup.manifest import StoredManifest
from raftha.storage.backup.names import segment_name
from raftha.storage.backup.planner import plan_recovery
from raftha.storage.backup.pool import thread_pool
from raftha.storage.backup.recovery import RecoveryPlan, Target, plan_of_backup
from raftha.storage.backup.replay import Image, ReplayHooks, build_image
from raftha.storage.backup.segments import encode_segment, name_of
from raftha.storage.state.commands import pack_put

SEGMENT_BYTES = 16 << 20


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add options beside the shared ones."""
    parser.add_argument("--keys", type=int, default=1_000_000, help="in the state")
    parser.add_argument("--commands", type=int, default=2_000_000, help="that are replayed")
    parser.add_argument("--value", type=int, default=32, help="bytes of what they put")
    parser.add_argument("--batch", type=int, default=100, help="commands in an entry")
    parser.add_argument("--undisturbed", action="store_true", help="with real-time priority")


def ask(run: Run) -> None:
    """Measure."""
    has_zstd = shutil.which("zstd") is not None
    run.expect(run.options.runs * (2 + has_zstd))
    if not has_zstd:
        run.results.skipped["zstd -d"] = "there is no zstd"
    with run.folder() as folder:
        state = StoredState(folder)
        numbers = range(run.options.keys)
        for start in range(0, len(numbers), 100_000):
            state.write(pairs_of(numbers[start : start + 100_000], Random(start)))
        size = write_pairs(folder / "pairs", state)
        taking = Taking(state, folder / "repository")
        _, taken = taking.take("full", None)
        base = plan_of_backup([StoredManifest(taken.manifest, taken.manifest_sha256)])
        archive(run, state, taking)
        state.close()
        if has_zstd:
            pack = ["zstd", f"-{LEVEL}", "-q", str(folder / "pairs"), "-o", f"{folder}/pairs.zst"]
            subprocess.run(pack, check=True)
        log = plan_recovery(taking.repository, Target())
        for _ in range(run.options.runs):
            measure(run, folder, taking, base, log, size if has_zstd else 0)


def measure(
    run: Run, folder: Path, taking: Taking, base: RecoveryPlan, log: RecoveryPlan, size: int
) -> None:
    """One run: zstd, a restore, and a replay."""
    add, shown, keys = run.results.add, {"keys": run.options.keys}, run.options.keys
    zstd_s = 0.0
    if size:
        with run.step("zstd -d"), undisturbed(run):
            zstd_s = decompress(folder / "pairs.zst", folder / "unpacked")
        add("zstd -d", "rate", size / zstd_s / 1e6, unit="MB/s", better="higher", **shown)
    with run.step("a restore"), undisturbed(run):
        restore_s, image = build(base, taking, folder / "image")
    assert image.digest == base.backup.digest
    raw = base.size_bytes / 1e6
    add("raftha", "restore", raw / restore_s, unit="MB/s", better="higher", **shown)
    add("raftha", "keys", keys / restore_s, unit="keys/s", better="higher", **shown)
    if size:
        ratio = 100 * zstd_s / restore_s
        add("raftha", "restore to zstd", ratio, unit="%", better="higher", **shown)
    with run.step("a replay"), undisturbed(run):
        _, image = build(log, taking, folder / "image")
    rate = log.commands / image.seconds["replay"]
    add("raftha", "replay", rate, unit="commands/s", better="higher", batch=run.options.batch)


def build(plan: RecoveryPlan, taking: Taking, folder: Path) -> tuple[float, Image]:
    """Build a state; return the seconds that it took."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    began = time.perf_counter()
    image = build_image(plan, taking.repository, folder, None, ReplayHooks(pool=thread_pool))
    return time.perf_counter() - began, image


def decompress(packed: Path, path: Path) -> float:
    """Decompress a file with zstd's command, and sync it; return the seconds."""
    path.unlink(missing_ok=True)
    began = time.perf_counter()
    subprocess.run(["zstd", "-d", "-q", packed, "-o", path], check=True)
    file = os.open(path, os.O_RDWR)
    os.fsync(file)
    os.close(file)
    return time.perf_counter() - began


def archive(run: Run, state: StoredState, taking: Taking) -> None:
    """Put segments with the commands behind the backup."""
    (destination,) = taking.repository.destinations.values()
    entries: list[Entry] = []
    size = 0
    for entry in log_of(run, state):
        entries.append(entry)
        size += len(entry.data)
        if size >= SEGMENT_BYTES:
            put(entries, taking)
            entries, size = [], 0
    if entries:
        put(entries, taking)
    assert destination.list(f"{LINEAGE}/log/")


def put(entries: list[Entry], taking: Taking) -> None:
    """Put one segment."""
    name = name_of(LINEAGE, 1, entries)
    data = encode_segment(name, entries, taking.repository.key, LEVEL)
    for destination in taking.repository.destinations.values():
        destination.create(segment_name(name), data)


def log_of(run: Run, state: StoredState) -> Iterator[Entry]:
    """The entries behind the backup."""
    options, random, last = run.options, Random(1), state.position
    values = random.randbytes(1 << 20)
    for number in range(options.commands // options.batch):
        packed = []
        for _ in range(options.batch):
            key = b"key-%012d" % random.randrange(2 * options.keys)
            at = random.randrange(len(values) - options.value)
            packed.append(pack_put(key, values[at : at + options.value]))
        # Numbers far above those that wrote the state.
        group = Group(state.session, 10**9 + number, 10**9 + number, len(packed), b"".join(packed))
        time_us = last.time_us + 1000
        entry = make_entry(last, 1, time_us, EntryKind.BATCH, encode_group(group), options.batch)
        last = entry.position
        yield entry
