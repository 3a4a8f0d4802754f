"""The data directory: one process, one owner."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from raftha.errors import ConfigError, Corrupt
from raftha.storage.directory.datadir import DataDirectory


def test_the_same_owner_finds_the_same_incarnation(tmp_path: Path) -> None:
    first = DataDirectory(tmp_path / "d", "cluster", 1)
    first.close()
    second = DataDirectory(tmp_path / "d", "cluster", 1)
    assert second.incarnation == first.incarnation
    second.close()


def test_a_second_user_of_the_directory_gets_an_error(tmp_path: Path) -> None:
    data = DataDirectory(tmp_path, "cluster", 1)
    with pytest.raises(ConfigError, match="in use by another process"):
        DataDirectory(tmp_path, "cluster", 1)
    data.close()


def test_the_lock_holds_when_its_file_is_removed_or_replaced(tmp_path: Path) -> None:
    """An operator may take the file for a leftover; two processes would write one log."""
    data = DataDirectory(tmp_path, "cluster", 1)
    (tmp_path / "LOCK").unlink()
    for _ in range(2):
        with pytest.raises(ConfigError, match="in use"):
            DataDirectory(tmp_path, "cluster", 1)
        assert (tmp_path / "LOCK").exists()
    data.close()
    DataDirectory(tmp_path, "cluster", 1).close()


def test_a_folder_that_cannot_be_locked_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock

    def refuse(handle: int, operation: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", refuse)
    data = DataDirectory(tmp_path, "cluster", 1)
    with pytest.raises(ConfigError, match="in use"):
        DataDirectory(tmp_path, "cluster", 1)
    data.close()


def test_the_lock_holds_against_another_process_and_ends_with_it(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from raftha.storage.directory.datadir import DataDirectory;"
        "data = DataDirectory(pathlib.Path(sys.argv[1]), 'cluster', 1);"
        "print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(ConfigError, match="in use"):
            DataDirectory(tmp_path, "cluster", 1)
        other.kill()
    DataDirectory(tmp_path, "cluster", 1).close()


@pytest.mark.parametrize("owner", [("other", 1), ("cluster", 2)])
def test_a_directory_of_another_node_or_cluster_is_refused(
    tmp_path: Path, owner: tuple[str, int]
) -> None:
    DataDirectory(tmp_path, "cluster", 1).close()
    with pytest.raises(ConfigError, match="belongs to node 1 of cluster 'cluster'"):
        DataDirectory(tmp_path, *owner)
    DataDirectory(tmp_path, "cluster", 1).close()


@pytest.mark.parametrize("folder", ["wal", "state"])
def test_a_lost_identity_beside_data_is_not_created_again(tmp_path: Path, folder: str) -> None:
    DataDirectory(tmp_path, "cluster", 1).close()
    (tmp_path / folder).mkdir()
    (tmp_path / "identity").unlink()
    with pytest.raises(Corrupt, match=r"missing.*put it back"):
        DataDirectory(tmp_path, "cluster", 1)


def test_a_missing_log_is_not_created_again(tmp_path: Path) -> None:
    """A node that started empty under its old id would have forgotten its votes and promises."""
    data = DataDirectory(tmp_path, "cluster", 1)
    (tmp_path / "wal").mkdir()
    segment = tmp_path / "wal" / "0000000000000001.seg"
    segment.touch()
    data.record_log()
    data.close()
    DataDirectory(tmp_path, "cluster", 1).close()
    segment.unlink()
    (tmp_path / "wal" / "spare-1.seg").touch()
    with pytest.raises(Corrupt, match="the log is gone"):
        DataDirectory(tmp_path, "cluster", 1)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"format": 2}'])
def test_a_damaged_identity_is_corrupt(tmp_path: Path, text: str) -> None:
    DataDirectory(tmp_path, "cluster", 1).close()
    (tmp_path / "identity").write_text(text)
    with pytest.raises(Corrupt):
        DataDirectory(tmp_path, "cluster", 1)


def test_a_later_format_is_left_alone(tmp_path: Path) -> None:
    DataDirectory(tmp_path, "cluster", 1).close()
    path = tmp_path / "identity"
    path.write_text(path.read_text().replace('"format": 2', '"format": 3'))
    with pytest.raises(ConfigError, match="format 3"):
        DataDirectory(tmp_path, "cluster", 1)


def test_a_path_that_cannot_be_a_directory_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="can't use data_dir"):
        DataDirectory(tmp_path / "file", "cluster", 1)


def meaning(data: DataDirectory) -> dict[str, object]:
    """All that the identity says."""
    return {name: value for name, value in vars(data).items() if name not in ("path", "_locks")}


def test_no_flipped_bit_of_the_identity_changes_its_meaning(tmp_path: Path) -> None:
    data = DataDirectory(tmp_path, "cluster", 1)
    data.join("ab" * 16, heals=True)
    data.record_promise(150)
    expected = meaning(data)
    data.close()
    path = tmp_path / "identity"
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            data = DataDirectory(tmp_path, "cluster", 1)
        except (Corrupt, ConfigError):
            continue
        assert meaning(data) == expected, f"bit {bit}"
        data.close()


def test_only_the_owner_can_read_the_directory(tmp_path: Path) -> None:
    data = DataDirectory(tmp_path / "d", "cluster", 1)
    data.close()
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o700
    for path in (tmp_path / "d").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_directory_belongs_to_no_cluster_until_it_joins_one_for_good(tmp_path: Path) -> None:
    data = DataDirectory(tmp_path, "cluster", 1)
    assert data.cluster_id == ""
    data.order_founding()
    data.close()
    data = DataDirectory(tmp_path, "cluster", 1)
    assert data.is_founding
    data.join("ab" * 16, heals=False)
    data.close()
    data = DataDirectory(tmp_path, "cluster", 1)
    assert (data.cluster_id, data.is_founding, data.is_healing) == ("ab" * 16, False, False)
    with pytest.raises(AssertionError):
        data.join("cd" * 16, heals=False)
    data.close()


def test_a_directory_that_takes_the_place_of_another_one_begins_with_healing(
    tmp_path: Path,
) -> None:
    data = DataDirectory(tmp_path, "cluster", 1)
    data.join("ab" * 16, heals=True)
    data.close()
    data = DataDirectory(tmp_path, "cluster", 1)
    assert data.healing_generation == 1
    data.close()


def test_the_longest_promise_is_remembered_whatever_is_promised_later(tmp_path: Path) -> None:
    data = DataDirectory(tmp_path, "cluster", 1)
    assert data.promised_ms == 0
    data.record_promise(150)
    data.record_promise(0)
    data.close()
    data = DataDirectory(tmp_path, "cluster", 1)
    assert data.promised_ms == 150
    data.close()


def test_a_file_system_without_flock_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ConfigError, match=r"can't lock .*/LOCK: .*supports flock") as failure:
        DataDirectory(tmp_path, "cluster", 1)
    assert str(tmp_path) in str(failure.value)
    monkeypatch.undo()
    DataDirectory(tmp_path, "cluster", 1).close()


@pytest.mark.parametrize("name", ["identity", "wal"])
def test_what_may_not_be_read_is_named_and_not_taken_for_lost(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After another user has replaced a file: a log that can't be listed isn't gone."""
    data = DataDirectory(tmp_path, "cluster", 1)
    (tmp_path / "wal").mkdir()
    (tmp_path / "wal" / "0000000000000001.seg").touch()
    data.record_log()
    data.close()

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    # Root may read everything, so the modes of files can't show it.
    if name == "wal":
        monkeypatch.setattr(os, "listdir", refuse)
    else:
        monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ConfigError, match=rf"{name}: Permission denied .*must belong to the user"):
        DataDirectory(tmp_path, "cluster", 1)
    monkeypatch.undo()
    DataDirectory(tmp_path, "cluster", 1).close()
