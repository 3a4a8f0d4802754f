"""The folder as a destination: failed writes leave nothing, hostile content does no harm."""

from __future__ import annotations

import errno
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raftha.errors import (
    ConfigError,
    DeletionDenied,
    ObjectExists,
    ObjectMissing,
    RepositoryError,
    RepositoryUnavailable,
)
from raftha.storage.backup.destination import create_or_compare
from raftha.storage.backup.destinations import open_destination
from raftha.storage.backup.local import LocalDestination


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "outer" / "backups"


@pytest.fixture
def destination(folder: Path) -> LocalDestination:
    return LocalDestination("local", folder)


def all_files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_path_or_a_file_url_names_a_folder(tmp_path: Path) -> None:
    absolute = tmp_path / "a b"
    for url in (
        str(absolute),
        "a b",
        f"file://{tmp_path}/a%20b",
        f"file://localhost{tmp_path}/a b",
    ):
        opened = open_destination("local", url, base=tmp_path)
        create_or_compare(opened, "object", b"content")
    assert all_files(tmp_path) == ["a b", "a b/object"]


@pytest.mark.parametrize(
    "url", ["", "file://", "file://host/folder", "file:///a?b=c", "ftp://x/y", "s4://bucket"]
)
def test_a_url_that_is_no_destination_is_a_configuration_error(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="destination offsite"):
        open_destination("offsite", url, base=tmp_path)


def test_files_are_for_their_owner_alone(folder: Path, destination: LocalDestination) -> None:
    destination.create("a/b", b"content")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / "a")}
    assert modes == {0o700}
    assert stat.S_IMODE((folder / "a/b").stat().st_mode) == 0o600


def test_an_object_is_synced_before_it_has_its_name_and_its_folder_after(
    destination: LocalDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def noting(operation: str) -> None:
        real = getattr(os, operation)

        def noted(*arguments: object, **keywords: object) -> object:
            if operation != "fsync":
                done.append(operation)
            else:
                is_folder = stat.S_ISDIR(os.fstat(arguments[0]).st_mode)  # type: ignore[arg-type]
                done.append("sync folder" if is_folder else "sync file")
            return real(*arguments, **keywords)

        monkeypatch.setattr(os, operation, noted)

    for operation in ("fsync", "link", "write", "mkdir"):
        noting(operation)
    destination.create("a/one", b"1")
    # The folders outer and backups, each durable, then a, then the object.
    made = ["mkdir", "sync folder"]
    put = ["write", "sync file", "link", "sync folder"]
    assert done == [*made, *made, *made, *put]
    done.clear()
    destination.create("a/two", b"2")
    assert done == put


def failing(monkeypatch: pytest.MonkeyPatch, operation: str, code: int, *, times: int = 1) -> None:
    real = getattr(os, operation)
    left = [times]

    def fails(*arguments: object, **keywords: object) -> object:
        if left[0]:
            left[0] -= 1
            raise OSError(code, os.strerror(code))
        return real(*arguments, **keywords)

    monkeypatch.setattr(os, operation, fails)


@pytest.mark.parametrize("operation", ["write", "fsync", "link", "mkdir"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_write_that_fails_leaves_nothing_and_can_be_repeated(
    folder: Path,
    destination: LocalDestination,
    monkeypatch: pytest.MonkeyPatch,
    operation: str,
    code: int,
) -> None:
    destination.create("first", b"")
    failing(monkeypatch, operation, code)
    with pytest.raises(RepositoryUnavailable, match=os.strerror(code)):
        create_or_compare(destination, "a/object", b"content")
    assert [name for name in all_files(folder) if name not in ("a", "first")] == []
    create_or_compare(destination, "a/object", b"content")
    assert destination.get("a/object", size_max=10) == b"content"


def test_an_object_whose_name_could_not_be_synced_is_withdrawn(
    folder: Path, destination: LocalDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination.create("a/first", b"")
    real = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EIO, "the disk")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(RepositoryUnavailable, match="the disk"):
        create_or_compare(destination, "a/object", b"content")
    assert all_files(folder) == ["a", "a/first"]


def test_an_object_that_is_neither_durable_nor_removable_is_no_success(
    destination: LocalDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can be read, so a comparison would take it for one that is stored."""
    destination.create("a/first", b"")
    failing(monkeypatch, "unlink", errno.EIO, times=2)
    with pytest.raises(RepositoryError, match="can't be removed") as raised:
        create_or_compare(destination, "a/object", b"content")
    assert not isinstance(raised.value, RepositoryUnavailable)


def test_where_there_are_no_hard_links_a_look_and_a_rename_do(
    folder: Path, destination: LocalDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, "link", errno.EPERM, times=9)
    destination.create("a/object", b"content")
    with pytest.raises(ObjectExists):
        destination.create("a/object", b"other")
    assert all_files(folder) == ["a", "a/object"]
    assert destination.get("a/object", size_max=10) == b"content"


def test_links_out_of_the_folder_are_not_followed(
    folder: Path, destination: LocalDestination, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    destination.create("first", b"")
    (folder / "out").symlink_to(outside)
    (folder / "file").symlink_to(outside / "secret")
    (folder / "loop").symlink_to(folder)

    for name in ("out/secret", "out/new", "file", "loop/first"):
        with pytest.raises(RepositoryError, match=r"symbolic link|missing"):
            destination.get(name, size_max=100)
    with pytest.raises(RepositoryError, match="symbolic link"):
        destination.create("out/new", b"content")
    with pytest.raises(RepositoryError, match="symbolic link"):
        destination.delete("out/secret")
    destination.delete("file")
    assert [each.name for each in destination.list("")] == ["first"]
    assert all_files(outside) == ["secret"]


def test_what_is_no_regular_file_is_no_object(folder: Path, destination: LocalDestination) -> None:
    destination.create("a/first", b"")
    os.mkfifo(folder / "fifo")
    for name in ("fifo", "a"):
        with pytest.raises(RepositoryError, match="not a regular file"):
            destination.get(name, size_max=100)
    assert [each.name for each in destination.list("")] == ["a/first"]


def test_foreign_names_are_left_out_of_a_list(folder: Path, destination: LocalDestination) -> None:
    destination.create("first", b"")
    deep = folder.joinpath(*"abcdefgh")
    deep.mkdir(parents=True)
    for name in (b".hidden", b"new\nline", b"\xff\xfe", b"a b", b"-x", b"..."):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(b"")
    (deep / "too deep").write_bytes(b"")
    (deep / "i").write_bytes(b"")
    assert [each.name for each in destination.list("")] == ["-x", "first"]


def test_drafts_of_dead_writers_go_after_a_day(folder: Path, destination: LocalDestination) -> None:
    destination.create("a/first", b"")
    for name in (".draft-old", ".draft-new", ".other"):
        (folder / "a" / name).write_bytes(b"half an obj")
    long_ago = time.time() - 2 * 24 * 3600
    for name in (".draft-old", ".other"):
        os.utime(folder / "a" / name, (long_ago, long_ago))
    assert [each.name for each in destination.list("a/")] == ["a/first"]
    assert all_files(folder / "a") == [".draft-new", ".other", "first"]


def test_folders_that_are_empty_go_with_their_last_object(
    folder: Path, destination: LocalDestination
) -> None:
    destination.create("a/b/one", b"")
    destination.create("a/two", b"")
    destination.delete("a/b/one")
    assert all_files(folder) == ["a", "a/two"]
    destination.delete("a/two")
    assert all_files(folder) == []


def test_writers_and_deleters_of_one_folder_do_not_meet(destination: LocalDestination) -> None:
    """A folder may be removed between a writer's look and its write; the writer makes it again."""

    def work(writer: int) -> None:
        for number in range(60):
            destination.create(f"a/b/{writer}-{number}", b"x")
            destination.delete(f"a/b/{writer}-{number}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert destination.list("") == []


def test_a_folder_that_vanished_is_made_again(folder: Path, destination: LocalDestination) -> None:
    destination.create("a/one", b"")
    folder.rename(folder.with_name("gone"))
    with pytest.raises(ObjectMissing):
        destination.get("a/one", size_max=5)
    assert destination.list("") == []
    destination.create("a/one", b"")
    assert all_files(folder) == ["a", "a/one"]


def test_a_deletion_that_the_system_denies_says_so(
    destination: LocalDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination.create("a/one", b"")
    failing(monkeypatch, "unlink", errno.EPERM)
    with pytest.raises(DeletionDenied) as raised:
        destination.delete("a/one")
    assert (raised.value.destination, raised.value.object) == ("local", "a/one")
    assert [each.name for each in destination.list("")] == ["a/one"]
