"""The reserve: space for a checkpoint when the disk is full."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from raftha.errors import StorageFailed, StorageFull
from raftha.storage.directory.reserve import Reserve, require_space

SIZE = 1 << 20


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_the_reserve_is_really_allocated(tmp_path: Path) -> None:
    path = tmp_path / "reserve"
    Reserve(path, SIZE).take()
    assert path.stat().st_size == SIZE
    assert allocated(path) >= SIZE


def test_the_reserve_is_released_once_and_can_be_taken_again(tmp_path: Path) -> None:
    path = tmp_path / "reserve"
    reserve = Reserve(path, SIZE)
    reserve.take()
    assert reserve.give_up()
    assert not path.exists()
    assert not reserve.give_up()
    reserve.take()
    assert allocated(path) >= SIZE


def test_leftovers_of_an_earlier_run_are_completed_or_cut(tmp_path: Path) -> None:
    path = tmp_path / "reserve"
    for left in (SIZE // 2, 2 * SIZE):
        with path.open("wb") as file:
            file.truncate(left)
        Reserve(path, SIZE).take()
        assert path.stat().st_size == SIZE
        assert allocated(path) >= SIZE


def test_without_a_reserve_there_is_no_file(tmp_path: Path) -> None:
    path = tmp_path / "reserve"
    path.touch()
    reserve = Reserve(path, 0)
    reserve.take()
    assert not path.exists()
    assert not reserve.give_up()


def test_more_than_the_disk_has_is_not_even_tried(tmp_path: Path) -> None:
    path = tmp_path / "reserve"
    with pytest.raises(StorageFull, match="no space"):
        Reserve(path, 1 << 60).take()
    assert not path.exists()
    with pytest.raises(StorageFull):
        require_space(tmp_path, 1 << 60)
    require_space(tmp_path, SIZE)


@pytest.mark.parametrize(
    ("code", "raised"), [(errno.ENOSPC, StorageFull), (errno.EIO, StorageFailed)]
)
def test_a_reserve_that_cannot_be_allocated_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, raised: type[Exception]
) -> None:
    """The disk may have reported more free space than it had."""

    def refuse(handle: int, offset: int, size: int) -> None:
        raise OSError(code, os.strerror(code))

    path = tmp_path / "reserve"
    reserve = Reserve(path, SIZE)
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(raised):
        reserve.take()
    assert not path.exists()
    monkeypatch.undo()
    reserve.take()
    assert allocated(path) >= SIZE
