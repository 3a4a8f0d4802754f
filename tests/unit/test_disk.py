"""The contract of `Disk`, kept by the real and the simulated disk; and what the latter loses."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from pathlib import Path
from random import Random

import pytest

from raftha.storage.log.disk import Disk, RealDisk
from tests.sim.disk import SECTOR_BYTES, SimulatedDisk


@pytest.fixture(params=["real", "simulated"])
def disk(request: pytest.FixtureRequest) -> Disk:
    return RealDisk() if request.param == "real" else SimulatedDisk(Random(1))


@pytest.fixture
def folder(disk: Disk, tmp_path: Path) -> str:
    path = str(tmp_path / "a" / "b")
    disk.mkdir(path)
    return path


def test_written_bytes_are_read_back(disk: Disk, folder: str) -> None:
    handle = disk.open(f"{folder}/x", create=True)
    disk.pwrite(handle, b"hello", 0)
    disk.pwrite(handle, b"p!", 3)
    disk.fdatasync(handle)

    assert disk.pread(handle, 5, 0) == b"help!"
    assert disk.pread(handle, 2, 1) == b"el"
    disk.close(handle)


def test_a_read_past_the_end_is_short(disk: Disk, folder: str) -> None:
    handle = disk.open(f"{folder}/x", create=True)
    disk.pwrite(handle, b"abc", 0)

    assert disk.pread(handle, 10, 1) == b"bc"
    assert disk.pread(handle, 10, 3) == b""
    assert disk.pread(handle, 10, 99) == b""
    disk.close(handle)


def test_a_write_past_the_end_fills_the_gap_with_zeros(disk: Disk, folder: str) -> None:
    handle = disk.open(f"{folder}/x", create=True)
    disk.pwrite(handle, b"z", 1000)

    assert disk.size(handle) == 1001
    assert disk.pread(handle, 2000, 0) == bytes(1000) + b"z"
    disk.close(handle)


def test_a_missing_file_opens_only_to_be_created(disk: Disk, folder: str) -> None:
    with pytest.raises(FileNotFoundError):
        disk.open(f"{folder}/x")
    disk.close(disk.open(f"{folder}/x", create=True))
    handle = disk.open(f"{folder}/x", create=True)
    assert disk.size(handle) == 0
    disk.close(handle)


def test_creating_an_existing_file_keeps_it(disk: Disk, folder: str) -> None:
    handle = disk.open(f"{folder}/x", create=True)
    disk.pwrite(handle, b"abc", 0)
    disk.close(handle)

    handle = disk.open(f"{folder}/x", create=True)
    assert disk.pread(handle, 10, 0) == b"abc"
    disk.close(handle)


def test_rename_replaces_and_open_handles_stay_with_their_file(disk: Disk, folder: str) -> None:
    old = disk.open(f"{folder}/old", create=True)
    new = disk.open(f"{folder}/new", create=True)
    disk.pwrite(old, b"old", 0)
    disk.pwrite(new, b"new", 0)

    disk.rename(f"{folder}/old", f"{folder}/new")
    disk.sync_dir(folder)

    assert disk.listdir(folder) == ["new"]
    assert disk.pread(old, 3, 0) == b"old"
    assert disk.pread(new, 3, 0) == b"new"
    again = disk.open(f"{folder}/new")
    assert disk.pread(again, 3, 0) == b"old"
    for handle in (old, new, again):
        disk.close(handle)


def test_unlink_removes_the_name(disk: Disk, folder: str) -> None:
    disk.close(disk.open(f"{folder}/x", create=True))
    disk.unlink(f"{folder}/x")

    assert disk.listdir(folder) == []
    with pytest.raises(FileNotFoundError):
        disk.unlink(f"{folder}/x")
    with pytest.raises(FileNotFoundError):
        disk.rename(f"{folder}/x", f"{folder}/y")


def test_mkdir_is_content_with_what_is_there(disk: Disk, folder: str) -> None:
    disk.close(disk.open(f"{folder}/x", create=True))
    disk.mkdir(folder)
    assert disk.listdir(folder) == ["x"]


def test_missing_folders_are_errors(disk: Disk, folder: str) -> None:
    for act in (disk.listdir, disk.sync_dir):
        with pytest.raises(FileNotFoundError):
            act(f"{folder}/none")
    with pytest.raises(FileNotFoundError):
        disk.open(f"{folder}/none/x", create=True)


def test_a_folder_that_was_replaced_is_synced_in_its_new_place(
    disk: Disk, folder: str, tmp_path: Path
) -> None:
    disk.sync_dir(folder)
    if isinstance(disk, RealDisk):
        Path(folder).rename(tmp_path / "aside")
        Path(folder).mkdir()
        disk.sync_dir(folder)
        (handle,) = disk._dirs.values()
        assert os.path.samestat(os.fstat(handle), os.stat(folder))
    disk.close_dirs()
    disk.sync_dir(folder)


def test_a_folder_is_synced_again_without_another_descriptor(tmp_path: Path) -> None:
    disk, held = RealDisk(), list[int]()
    disk.sync_dir(str(tmp_path))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit[0], 1024), limit[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.dup(0))
        disk.sync_dir(str(tmp_path))
    finally:
        for handle in held:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    disk.close_dirs()
    assert not disk._dirs


def test_closed_handles_are_errors(disk: Disk, folder: str) -> None:
    handle = disk.open(f"{folder}/x", create=True)
    disk.close(handle)
    for act in (disk.close, disk.size, disk.fdatasync):
        with pytest.raises(OSError, match="Bad file descriptor"):
            act(handle)


def test_the_real_disk_finishes_short_writes_and_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system may write or read less than asked; here it does so every time."""
    import os

    pwrite, pread = os.pwrite, os.pread
    monkeypatch.setattr(os, "pwrite", lambda handle, data, at: pwrite(handle, data[:3], at))
    monkeypatch.setattr(os, "pread", lambda handle, count, at: pread(handle, min(count, 2), at))
    disk = RealDisk()
    handle = disk.open(str(tmp_path / "x"), create=True)
    disk.pwrite(handle, b"0123456789", 0)
    assert disk.pread(handle, 20, 0) == b"0123456789"
    disk.close(handle)


# Tests of the simulated disk only.


def written(disk: SimulatedDisk, data: bytes) -> int:
    handle = disk.open("x", create=True)
    disk.pwrite(handle, data, 0)
    return handle


def test_synced_bytes_and_names_survive_a_crash() -> None:
    for seed in range(20):
        disk = SimulatedDisk(Random(seed))
        disk.fdatasync(written(disk, b"a" * 5000))
        disk.sync_dir("")
        disk.crash()
        assert disk.contents("x") == b"a" * 5000


def test_unsynced_sectors_are_lost_kept_or_mixed() -> None:
    outcomes = set()
    for seed in range(40):
        disk = SimulatedDisk(Random(seed))
        handle = written(disk, b"a" * 4 * SECTOR_BYTES)
        disk.fdatasync(handle)
        disk.sync_dir("")
        disk.pwrite(handle, b"b" * 4 * SECTOR_BYTES, 0)
        disk.crash()
        sectors = disk.contents("x")[::SECTOR_BYTES]
        assert set(sectors) <= set(b"ab")
        assert disk.contents("x") == b"".join(bytes([s]) * SECTOR_BYTES for s in sectors)
        outcomes.add(sectors)
    assert {b"aaaa", b"bbbb"} < outcomes
    assert len(outcomes) > 5


def test_unsynced_names_survive_in_order_or_not_at_all() -> None:
    outcomes = set()
    for seed in range(40):
        disk = SimulatedDisk(Random(seed))
        disk.open("x", create=True)
        disk.rename("x", "y")
        disk.open("z", create=True)
        disk.crash()
        outcomes.add(tuple(sorted(disk.listdir(""))))
    assert outcomes == {(), ("x",), ("y",), ("y", "z")}


def test_handles_die_in_a_crash() -> None:
    disk = SimulatedDisk(Random(1))
    handle = written(disk, b"a")
    disk.crash()
    with pytest.raises(OSError, match="Bad file descriptor"):
        disk.pread(handle, 1, 0)


def test_bytes_of_a_failed_sync_are_seen_but_never_written() -> None:
    disk = SimulatedDisk(Random(1))
    handle = written(disk, b"a" * SECTOR_BYTES)
    disk.fdatasync(handle)
    disk.sync_dir("")
    disk.pwrite(handle, b"b" * SECTOR_BYTES, 0)

    def fail(operation: str, _path: str) -> None:
        if operation == "fdatasync":
            raise OSError(errno.EIO, "failed")

    disk.fault = fail
    with pytest.raises(OSError, match="failed"):
        disk.fdatasync(handle)
    disk.fault = None
    disk.fdatasync(handle)

    assert disk.pread(handle, 1, 0) == b"b"
    disk.crash()
    assert disk.contents("x") == b"a" * SECTOR_BYTES


def test_a_full_disk_takes_what_fits() -> None:
    disk = SimulatedDisk(Random(1))
    disk.capacity_bytes = 1000
    handle = written(disk, b"a" * 900)
    with pytest.raises(OSError, match="No space") as caught:
        disk.pwrite(handle, b"b" * 200, 900)
    assert caught.value.errno == errno.ENOSPC
    assert disk.size(handle) == 1000
    disk.pwrite(handle, b"c" * 1000, 0)
