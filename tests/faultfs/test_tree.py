"""What a power loss leaves of files and folders."""

from __future__ import annotations

import errno
from collections.abc import Callable
from random import Random

import pytest

from tests.faultfs.tree import SECTOR_BYTES, File, Folder, Tree

SEEDS = range(60)


def outcomes(make: Callable[[], tuple[Tree, File]]) -> set[bytes]:
    """What a file may hold after a power loss."""
    found = set()
    for seed in SEEDS:
        tree, file = make()
        tree.lose_power(Random(seed))
        found.add(bytes(file.data))
    return found


def names_after(make: Callable[[], Tree]) -> set[tuple[str, ...]]:
    """Which files may be there after a power loss, folders with a slash at their end."""
    found = set()
    for seed in SEEDS:
        tree = make()
        tree.lose_power(Random(seed))
        found.add(tuple(sorted(listed(tree.root))))
    return found


def listed(folder: Folder) -> list[str]:
    names = []
    for name, node in folder.names.items():
        if isinstance(node, Folder):
            names += [f"{name}/", *(f"{name}/{below}" for below in listed(node))]
        else:
            names.append(name)
    return names


def durable_file(content: bytes) -> tuple[Tree, File]:
    tree = Tree()
    file = tree.create(tree.root, "x", 0o600)
    tree.write(file, content, 0)
    tree.sync(file)
    tree.sync_names(tree.root)
    return tree, file


def sectors(letters: bytes) -> bytes:
    return b"".join(bytes([letter]) * SECTOR_BYTES for letter in letters)


def test_synced_writes_are_kept() -> None:
    def make() -> tuple[Tree, File]:
        tree, file = durable_file(sectors(b"aa"))
        tree.write(file, sectors(b"bcd"), SECTOR_BYTES)
        tree.sync(file)
        return tree, file

    assert outcomes(make) == {sectors(b"abcd")}


def test_unsynced_writes_are_lost_kept_or_torn() -> None:
    def make() -> tuple[Tree, File]:
        tree, file = durable_file(sectors(b"aaa"))
        tree.write(file, sectors(b"bbb"), 0)
        return tree, file

    found = outcomes(make)
    assert {sectors(b"aaa"), sectors(b"bbb")} < found
    assert len(found) > 4
    assert found <= {
        sectors(bytes([first, second, third]))
        for first in b"ab"
        for second in b"ab"
        for third in b"ab"
    }


def test_a_file_that_grew_unsynced_has_any_size_and_zeros_for_lost_sectors() -> None:
    def make() -> tuple[Tree, File]:
        tree, file = durable_file(b"a" * 100)
        tree.write(file, b"b" * 1000, 100)
        return tree, file

    found = outcomes(make)
    assert {b"a" * 100, b"a" * 100 + b"b" * 1000} < found
    assert all(content[:100] == b"a" * 100 for content in found)
    assert all(set(content[100:]) <= {0, ord("b")} for content in found)
    assert {len(content) for content in found} <= {100, 512, 1024, 1100}


def test_a_file_cut_short_and_not_synced_is_whole_again_or_not() -> None:
    def make() -> tuple[Tree, File]:
        tree, file = durable_file(sectors(b"ab"))
        file.resize(0)
        return tree, file

    found = outcomes(make)
    assert {b"", sectors(b"ab")} <= found


def test_bytes_of_a_failed_sync_are_seen_but_never_written() -> None:
    def make() -> tuple[Tree, File]:
        tree, file = durable_file(sectors(b"aa"))
        tree.write(file, sectors(b"b"), 0)
        file.fail_sync()
        tree.sync(file)
        assert bytes(file.data) == sectors(b"ba")
        return tree, file

    assert outcomes(make) == {sectors(b"aa")}


def test_bytes_of_a_failed_sync_are_durable_once_written_and_synced_again() -> None:
    def make() -> tuple[Tree, File]:
        tree, file = durable_file(sectors(b"aa"))
        tree.write(file, sectors(b"b"), 0)
        file.fail_sync()
        tree.write(file, sectors(b"c"), 0)
        tree.sync(file)
        return tree, file

    assert outcomes(make) == {sectors(b"ca")}


def test_a_disk_that_lies_loses_what_it_said_was_synced() -> None:
    def make() -> tuple[Tree, File]:
        tree, file = durable_file(sectors(b"a"))
        tree.ignores_syncs = True
        tree.write(file, sectors(b"b"), 0)
        tree.sync(file)
        return tree, file

    assert outcomes(make) == {sectors(b"a"), sectors(b"b")}


def test_names_that_were_not_synced_survive_in_order_or_not_at_all() -> None:
    def make() -> Tree:
        tree = Tree()
        tree.create(tree.root, "x", 0o600)
        tree.rename(tree.root, "x", tree.root, "y")
        tree.create(tree.root, "z", 0o600)
        return tree

    assert names_after(make) == {(), ("x",), ("y",), ("y", "z")}


def test_a_synced_file_without_a_synced_name_may_be_gone() -> None:
    def make() -> Tree:
        tree = Tree()
        tree.sync(tree.create(tree.root, "x", 0o600))
        return tree

    assert names_after(make) == {(), ("x",)}


def test_an_unlink_that_was_not_synced_may_not_have_been() -> None:
    def make() -> Tree:
        tree, _ = durable_file(b"a")
        tree.remove(tree.root, "x")
        return tree

    assert names_after(make) == {(), ("x",)}


def test_a_file_with_two_names_is_one_file_and_each_name_may_be_lost() -> None:
    def make() -> Tree:
        tree, file = durable_file(b"a")
        tree.link(file, tree.root, "y")
        tree.remove(tree.root, "x")
        return tree

    assert names_after(make) == {("x",), ("x", "y"), ("y",)}
    tree, file = durable_file(b"a")
    tree.capacity_bytes = 10
    tree.link(file, tree.root, "y")
    assert tree.free_bytes == 9
    tree.write(file, b"b", 0)
    assert all(node is file for node in tree.root.names.values())


def test_a_rename_between_folders_is_in_both_or_in_neither() -> None:
    def make() -> Tree:
        tree, _ = durable_file(b"a")
        below = tree.mkdir(tree.root, "d", 0o700)
        tree.sync_names(tree.root)
        tree.rename(tree.root, "x", below, "x")
        return tree

    def make_synced() -> Tree:
        tree = make()
        tree.sync_names(tree.root)
        return tree

    assert names_after(make) == {("d/", "x"), ("d/", "d/x")}
    assert names_after(make_synced) == {("d/", "d/x")}


def test_to_sync_one_folder_leaves_another_in_doubt() -> None:
    def make() -> Tree:
        tree = Tree()
        below = tree.mkdir(tree.root, "d", 0o700)
        tree.create(below, "x", 0o600)
        tree.sync_names(tree.root)
        return tree

    assert names_after(make) == {("d/",), ("d/", "d/x")}


def test_a_full_disk_takes_what_fits() -> None:
    tree = Tree()
    tree.capacity_bytes = 1000
    file = tree.create(tree.root, "x", 0o600)
    assert tree.write(file, b"a" * 900, 0) == 900
    assert tree.write(file, b"b" * 200, 900) == 100
    with pytest.raises(OSError, match="No space") as caught:
        tree.write(file, b"c", 1000)
    assert caught.value.errno == errno.ENOSPC
    assert tree.write(file, b"c" * 1000, 0) == 1000


def test_names_are_checked_as_usual() -> None:
    tree, _ = durable_file(b"a")
    below = tree.mkdir(tree.root, "d", 0o700)
    tree.create(below, "x", 0o600)
    with pytest.raises(FileExistsError):
        tree.create(tree.root, "x", 0o600)
    with pytest.raises(FileNotFoundError):
        tree.remove(tree.root, "y")
    with pytest.raises(OSError, match="not empty"):
        tree.remove(tree.root, "d")
