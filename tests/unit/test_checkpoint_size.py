"""The size of the state's file: how it grows, is compacted, and meets a full disk. LMDB only."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from raftha.storage.directory.snapshot import Outgoing
from raftha.storage.state import checkpoint, lmdb_file
from raftha.storage.state.checkpoint import (
    COMPACT_EVERY_S,
    CheckpointStore,
)
from raftha.storage.state.state import State
from raftha.storage.state.store import StoreDigest
from tests.sim.store import DictStore

KIB, MIB = 1024, 1024 * 1024


def test_the_map_grows_while_a_reader_is_at_work(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "state", map_bytes_min=128 * KIB)
    store.write([(b"seen", b"0")], b"0")
    assert store.map_bytes <= MIB
    stop, seen = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            seen.append(store.get(b"seen"))
            store.scan(None, None, limit=5, reverse=False)
            store.census([b"seen"])

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for n in range(1, 5):
            items: list[tuple[bytes, bytes | None]]
            items = [(b"%d-%04d" % (n, k), bytes(8 * KIB)) for k in range(100 * n)]
            store.write([*items, (b"seen", b"%d" % n)], b"%d" % n)
    finally:
        stop.set()
        reader.join()
    assert store.map_bytes >= 8 * MIB
    assert seen == sorted(seen, key=lambda value: int(value or b"-1"))
    assert store.census([]).entries == 1001
    store.close()
    again = CheckpointStore(tmp_path / "state", map_bytes_min=128 * KIB)
    assert (again.census([]).entries, again.meta()) == (1001, b"4")
    again.close()


def test_a_digest_and_a_growing_write_keep_each_other_out(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "state", map_bytes_min=128 * KIB)
    store.write([(b"%03d" % n, bytes(2 * KIB)) for n in range(200)], b"")
    first = store.digest()
    digests: list[StoreDigest | None] = []
    hashing = threading.Thread(target=lambda: digests.extend(store.digest() for _ in range(10)))
    hashing.start()
    store.write([(b"x%03d" % n, bytes(20 * KIB)) for n in range(200)], b"")
    hashing.join()
    assert set(digests) <= {first, store.digest(), None}
    store.close()


LIMITED = """
import resource, signal, sys
from raftha.errors import StorageError
from raftha.storage.state.checkpoint import CheckpointStore
store = CheckpointStore(sys.argv[1])
store.write([(b"a", b"1")], b"first")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (262144, resource.RLIM_INFINITY))
for count in (200, 1):
    try:
        store.write([(b"b%d" % n, bytes(4096)) for n in range(count)], b"second")
    except StorageError as error:
        print(type(error).__name__, store.meta(), store.get(b"a"), store.get(b"b1"))
"""

# A file system of four megabytes that only this process sees.
FULL = """
import os, sys
from raftha.errors import StorageError
from raftha.storage.state.checkpoint import CheckpointStore
store = CheckpointStore(sys.argv[1] + "/state")
store.write([(b"a", b"1")], b"first")
with open(sys.argv[1] + "/ballast", "wb") as ballast:
    ballast.write(bytes(3_800_000))
items = [(b"b%d" % n, bytes(3000)) for n in range(100)]
try:
    store.write(items, b"second")
except StorageError as error:
    print(type(error).__name__, store.meta(), store.get(b"a"), store.get(b"b1"))
os.unlink(sys.argv[1] + "/ballast")
store.write(items, b"second")
print(store.meta(), store.census([]).entries)
"""

# Between the short write and the look at the free space, other work of the node frees some.
FREED = FULL.replace(
    "items = [",
    """
statvfs = os.statvfs
def free(path):
    os.statvfs = statvfs
    os.unlink(sys.argv[1] + "/ballast")
    print("freed")
    return statvfs(path)
os.statvfs = free
items = [""",
    1,
).replace('os.unlink(sys.argv[1] + "/ballast")\nstore', "store")


@pytest.mark.slow
def test_a_refused_write_is_final_and_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "state")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout == "StorageFailed b'first' b'1' None\n" * 2
    store = CheckpointStore(tmp_path / "state")
    assert (store.meta(), store.census([]).entries) == (b"first", 1)
    store.write([(b"b", b"2")], b"second")
    store.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "printed"),
    [
        (FULL, "StorageFull b'first' b'1' None\nb'second' 101\n"),
        (FREED, "freed\nb'second' 101\n"),
    ],
    ids=["full", "full for a moment"],
)
def test_a_full_disk_is_not_final(script: str, printed: str, tmp_path: Path) -> None:
    apart = ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*apart, "true"], check=False).returncode:
        pytest.skip("needs a mount namespace of its own, which this system doesn't allow")
    mounted = f'mount -t tmpfs -o size=4m none "{tmp_path}" && exec "$@"'
    python = [sys.executable, "-c", script, str(tmp_path)]
    command = [*apart, "sh", "-c", mounted, "sh", *python]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout == printed


def pages(store: CheckpointStore, value: int, keys: int = 2000) -> None:
    """Write a checkpoint that replaces all values: 16 MiB of pages."""
    meta = State(DictStore()).freeze().meta
    store.write([(b"%05d" % n, bytes([value]) * 4 * KIB) for n in range(keys)], meta)


@pytest.fixture
def small_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (checkpoint, lmdb_file):
        monkeypatch.setattr(module, "SPARE_BYTES", MIB)


@pytest.mark.usefixtures("small_spare")
def test_a_slow_copy_under_writes_does_not_make_the_file_grow_without_limit(
    tmp_path: Path,
) -> None:
    """The pages that a copy may need can't be used again: it hurries once they are many."""
    store = CheckpointStore(tmp_path / "state")
    pages(store, 0)
    pages(store, 1)
    values: list[int] = []

    def pause(size: int) -> None:
        values.append(len(values) + 2)
        pages(store, values[-1])

    Outgoing(tmp_path / "outgoing").make(store, 1, pause)
    sizes = store.sizes()
    assert 1 <= len(values) <= 3
    assert sizes.file < 6 * sizes.used
    for value in range(4):
        pages(store, value)
    assert store.sizes().file == sizes.file, "free pages are used again"
    store.close()


@pytest.mark.usefixtures("small_spare")
def test_a_wasteful_file_is_compacted_beside_reads(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "state", map_bytes_min=MIB)
    pages(store, 1)
    store.write([(b"%05d" % n, None) for n in range(10, 2000)], b"meta")
    before, version = store.digest(), store.census([]).version
    assert store.sizes().is_wasteful
    stop = threading.Event()
    found: list[bytes | None] = []

    def read() -> None:
        while not stop.is_set():
            found.append(store.get(b"00001"))

    reading = threading.Thread(target=read)
    reading.start()
    assert store.compact_if_wasteful(1000.0, lambda: True)
    stop.set()
    reading.join()
    assert set(found) == {b"\1" * 4 * KIB}
    assert not store.sizes().is_wasteful
    assert store.sizes().file < MIB
    assert store.digest() == before
    assert (store.meta(), store.census([]).version > version) == (b"meta", True)
    assert not store.compact_if_wasteful(1000.0, lambda: True)
    pages(store, 2)  # The map grows again.
    store.close()
    again = CheckpointStore(tmp_path / "state")
    assert again.get(b"01999") == b"\2" * 4 * KIB
    again.close()


@pytest.mark.usefixtures("small_spare")
def test_a_compaction_that_is_given_up_changes_nothing(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "state")
    pages(store, 1)
    store.write([(b"%05d" % n, None) for n in range(10, 2000)], b"meta")
    before = store.digest()
    assert not store.compact_if_wasteful(1000.0, lambda: False)
    assert store.digest() == before
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert not store.compact_if_wasteful(1000.0 + COMPACT_EVERY_S - 1, lambda: True)
    assert store.compact_if_wasteful(1000.0 + COMPACT_EVERY_S, lambda: True)
    store.close()


@pytest.mark.usefixtures("small_spare")
def test_a_file_is_not_compacted_while_it_is_being_copied(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "state")
    pages(store, 1)
    store.write([(b"%05d" % n, None) for n in range(10, 2000)], b"meta")
    done: list[bool] = []
    store.copy(lambda piece: done.append(store.compact_if_wasteful(1000.0, lambda: True)))
    assert done and not any(done)
    store.close()
