"""The mounted file system as processes see it; a power loss makes it forget unsynced data."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from tests.faultfs.faults import FOR_EVER_S, Fault
from tests.faultfs.mount import FaultFs, why_not

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not() or "it can")]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FaultFs]:
    with FaultFs(tmp_path / "disk") as mounted:
        yield mounted


def create(path: Path, content: bytes, *, sync: bool, sync_name: bool = True) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        if sync:
            os.fsync(file.fileno())
    if sync_name:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(handle)
    os.close(handle)


def test_the_mount_behaves_like_a_file_system(disk: FaultFs) -> None:
    folder = disk.folder / "a" / "b"
    folder.mkdir(parents=True)
    create(folder / "x", b"hello" * 100_000, sync=False)
    (folder / "x").rename(disk.folder / "y")
    with (disk.folder / "y").open("r+b") as file:
        file.seek(3)
        file.write(b"p!")
        file.truncate(12)
    assert (disk.folder / "y").read_bytes() == b"help!hellohe"
    assert sorted(os.listdir(disk.folder)) == ["a", "y"]
    folder.rmdir()
    assert not folder.exists()
    with pytest.raises(FileNotFoundError):
        (folder / "x").read_bytes()


def test_an_open_file_outlives_its_name(disk: FaultFs) -> None:
    path = disk.folder / "x"
    create(path, b"content", sync=True)
    with path.open("rb", buffering=0) as file:
        path.unlink()
        assert not path.exists()
        assert file.read() == b"content"


def test_a_power_loss_forgets_what_was_not_synced_and_keeps_what_was(disk: FaultFs) -> None:
    """Whatever the kernel has cached: it reads again."""
    create(disk.folder / "kept", b"a" * 10_000, sync=True)
    create(disk.folder / "nameless", b"b", sync=True, sync_name=False)
    with (disk.folder / "kept").open("r+b") as file:
        file.write(b"c" * 10_000)
    create(disk.folder / "empty", b"d" * 10_000, sync=False)
    sizes, contents, names = set(), set(), set()
    for seed in range(30):
        disk.lose_power(seed)
        contents.add((disk.folder / "kept").read_bytes())
        sizes.add((disk.folder / "empty").stat().st_size)
        names.add((disk.folder / "nameless").exists())
        # As it was, and once more in doubt.
        create(disk.folder / "kept", b"a" * 10_000, sync=True)
        with (disk.folder / "kept").open("r+b") as file:
            file.write(b"c" * 10_000)
        create(disk.folder / "empty", b"", sync=True)
        create(disk.folder / "empty", b"d" * 10_000, sync=False)
        (disk.folder / "nameless").unlink(missing_ok=True)
        sync_folder(disk.folder)
        create(disk.folder / "nameless", b"b", sync=True, sync_name=False)
    assert {b"a" * 10_000, b"c" * 10_000} < contents, "lost, kept, and torn"
    assert len(contents) > 4
    assert {0, 10_000} <= sizes
    assert names == {True, False}


def test_a_sync_that_fails_fails_once_and_its_bytes_are_lost(disk: FaultFs) -> None:
    create(disk.folder / "x", b"a" * 4096, sync=True)
    disk.set_faults(Fault(operation="sync", pattern="x", code=errno.EIO, times=1))
    with (disk.folder / "x").open("r+b", buffering=0) as file:
        file.write(b"b" * 4096)
        with pytest.raises(OSError, match="Input/output"):
            os.fdatasync(file.fileno())
        os.fdatasync(file.fileno())
        assert os.pread(file.fileno(), 1, 0) == b"b"
    assert disk.count("sync", "x") == (2, 1)

    disk.lose_power(1)

    assert (disk.folder / "x").read_bytes() == b"a" * 4096


def test_a_write_that_fails_is_not_there(disk: FaultFs) -> None:
    create(disk.folder / "x", b"a" * 4096, sync=True)
    disk.set_faults(Fault(operation="write", pattern="[xy]", code=errno.EIO))
    for _ in range(2):
        with (
            (disk.folder / "x").open("r+b", buffering=0) as file,
            pytest.raises(OSError, match="Input/output"),
        ):
            file.write(b"b")
    assert (disk.folder / "x").read_bytes() == b"a" * 4096
    create(disk.folder / "z", b"b", sync=False)


def test_a_slow_sync_does_not_hold_up_other_operations(disk: FaultFs) -> None:
    create(disk.folder / "x", b"a", sync=True)
    disk.set_faults(Fault(operation="sync", pattern="x", wait_s=0.5))
    began = time.monotonic()
    slow = threading.Thread(target=create, args=(disk.folder / "x", b"b"), kwargs={"sync": True})
    slow.start()
    create(disk.folder / "y", b"c", sync=True)
    assert time.monotonic() - began < 0.5
    slow.join()
    assert time.monotonic() - began >= 0.5


def test_a_process_whose_sync_hangs_can_be_killed(disk: FaultFs) -> None:
    create(disk.folder / "x", b"a", sync=True)
    disk.set_faults(Fault(operation="sync", wait_s=FOR_EVER_S))
    code = "import os, sys; print(flush=True); os.fsync(os.open(sys.argv[1], os.O_RDWR))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(disk.folder / "x")], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    process.kill()
    assert process.wait(10) == -signal.SIGKILL
    process.stdout.close()


def test_a_hanging_operation_continues_when_the_fault_ends(disk: FaultFs) -> None:
    create(disk.folder / "x", b"a", sync=True)
    disk.set_faults(Fault(operation="sync", wait_s=FOR_EVER_S))
    hung = threading.Thread(target=create, args=(disk.folder / "x", b"b"), kwargs={"sync": True})
    hung.start()
    hung.join(0.1)
    assert hung.is_alive()
    disk.set_faults()
    hung.join(10)
    assert not hung.is_alive()


def test_a_full_file_system_says_so_until_it_is_larger(disk: FaultFs) -> None:
    disk.set_capacity(100_000)
    assert os.statvfs(disk.folder).f_bavail * 4096 <= 100_000
    with pytest.raises(OSError, match="No space"):
        create(disk.folder / "x", b"a" * 200_000, sync=True)
    with (disk.folder / "y").open("wb") as file, pytest.raises(OSError, match="No space"):
        os.posix_fallocate(file.fileno(), 0, 200_000)
    (disk.folder / "x").unlink()
    with (disk.folder / "y").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 90_000)
    assert (disk.folder / "y").read_bytes() == bytes(90_000)
    disk.set_capacity(300_000)
    create(disk.folder / "x", b"a" * 200_000, sync=True)


def test_lmdb_commits_survive_a_power_loss_and_others_do_not(disk: FaultFs) -> None:
    """Through LMDB's memory map, its writes and its O_DSYNC; opened as `CheckpointStore` does."""
    folder = disk.folder / "state"
    folder.mkdir()
    committed = 0
    for seed in range(20):
        with lmdb.open(str(folder), map_size=1 << 26, max_dbs=4) as environment:
            with environment.begin() as transaction:
                for number in range(committed):
                    assert transaction.get(b"%d" % number) == b"v" * 1000
            for _ in range(10):
                with environment.begin(write=True) as transaction:
                    transaction.put(b"%d" % committed, b"v" * 1000)
                committed += 1
        sync_folder(folder)
        sync_folder(disk.folder)
        disk.lose_power(seed)


def test_lmdb_loses_commits_on_a_disk_that_lies(disk: FaultFs) -> None:
    folder = disk.folder / "state"
    folder.mkdir()
    with lmdb.open(str(folder), map_size=1 << 26) as environment:
        environment.sync(True)
    sync_folder(folder)
    sync_folder(disk.folder)
    disk.ignore_syncs()
    lost = 0
    for seed in range(20):
        key = b"%d" % seed
        try:
            with (
                lmdb.open(str(folder), map_size=1 << 26) as environment,
                environment.begin(write=True) as transaction,
            ):
                transaction.put(key, b"value")
            disk.lose_power(seed)
            with (
                lmdb.open(str(folder), map_size=1 << 26) as environment,
                environment.begin() as transaction,
            ):
                lost += transaction.get(key) is None
        except lmdb.Error:
            return  # Even its structure is lost.
    assert lost > 0
