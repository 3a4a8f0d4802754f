"""The contract of `Destination`, which every place that keeps a repository passes."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raftha.errors import (
    BackupDamaged,
    ObjectExists,
    ObjectMissing,
    ObjectTooLarge,
    RepositoryConflict,
)
from raftha.storage.backup.destination import Destination, create_or_compare
from raftha.storage.backup.destinations import open_destination
from tests.support.stores import STARTS, NotInstalled, Stores
from tests.unit.test_backup_names import HOSTILE

KINDS = ["local", "memory", *(pytest.param(kind, marks=pytest.mark.slow) for kind in STARTS)]


@pytest.fixture(params=KINDS)
def url(
    request: pytest.FixtureRequest, tmp_path: Path, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> str:
    """An empty place of each kind."""
    if request.param == "local":
        return str(tmp_path / "backups")
    if request.param == "memory":
        return f"memory://{secrets.token_hex(8)}"
    try:
        store = stores.get(request.param)
    except NotInstalled as error:
        pytest.skip(str(error))
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    return store.url_of(f"{secrets.token_hex(8)}/within")


@pytest.fixture
def destination(url: str, tmp_path: Path) -> Iterator[Destination]:
    opened = open_destination("place", url, base=tmp_path)
    yield opened
    opened.close()


def test_what_was_created_is_read_back(destination: Destination) -> None:
    data = secrets.token_bytes(100_000)
    destination.create("a/b/object", memoryview(data))
    destination.create("a/b/empty", b"")

    assert bytes(destination.get("a/b/object", size_max=100_000)) == data
    assert bytes(destination.get("a/b/empty", size_max=0)) == b""
    assert destination.name == "place"


def test_a_range_is_read(destination: Destination) -> None:
    destination.create("object", b"0123456789")

    assert bytes(destination.get_range("object", 2, 3)) == b"234"
    assert bytes(destination.get_range("object", 0, 10)) == b"0123456789"
    assert bytes(destination.get_range("object", 4, 0)) == b""
    for start, size in ((8, 3), (10, 1), (99, 1)):
        with pytest.raises(BackupDamaged, match="ends before") as raised:
            destination.get_range("object", start, size)
        assert (raised.value.destination, raised.value.object) == ("place", "object")


def test_an_object_is_never_replaced(destination: Destination) -> None:
    destination.create("a/object", b"first")
    with pytest.raises(ObjectExists) as raised:
        destination.create("a/object", b"second")

    assert (raised.value.destination, raised.value.object) == ("place", "a/object")
    assert bytes(destination.get("a/object", size_max=10)) == b"first"


def test_of_writers_at_once_one_wins(destination: Destination) -> None:
    def write(number: int) -> bool:
        try:
            destination.create("a/b/raced", b"%02d" % number)
        except ObjectExists:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(write, range(8)))
    assert sum(won) == 1
    assert bytes(destination.get("a/b/raced", size_max=2)) == b"%02d" % won.index(True)


def test_what_is_missing_says_so(destination: Destination) -> None:
    with pytest.raises(ObjectMissing) as raised:
        destination.get("a/none", size_max=5)
    assert (raised.value.destination, raised.value.object) == ("place", "a/none")
    with pytest.raises(ObjectMissing) as raised:
        destination.get_range("a/none", 0, 5)
    assert (raised.value.destination, raised.value.object) == ("place", "a/none")


def test_an_object_larger_than_expected_is_not_read(destination: Destination) -> None:
    destination.create("object", bytes(1000))
    with pytest.raises(ObjectTooLarge, match="1000 bytes"):
        destination.get("object", size_max=999)


def test_a_list_is_sorted_and_has_everything_below_a_folder(destination: Destination) -> None:
    began_us = time.time_ns() // 1000
    for name in ("b/2", "b/10", "b/c/1", "bb/1", "a", "B/1"):
        destination.create(name, name.encode())

    listed = destination.list("b/")
    assert [(each.name, each.size) for each in listed] == [("b/10", 4), ("b/2", 3), ("b/c/1", 5)]
    assert destination.list("b") == listed
    names = [each.name for each in destination.list("")]
    assert names == ["B/1", "a", "b/10", "b/2", "b/c/1", "bb/1"]
    assert destination.list("none/") == []
    for each in listed:  # Stores round times to seconds.
        assert began_us - 2_000_000 <= each.modified_us <= time.time_ns() // 1000 + 2_000_000


def test_a_deleted_object_is_gone_and_may_be_deleted_again(destination: Destination) -> None:
    destination.create("a/b/one", b"1")
    destination.create("a/b/two", b"2")
    destination.delete("a/b/one")
    destination.delete("a/b/one")
    destination.delete("none/at/all")

    assert [each.name for each in destination.list("")] == ["a/b/two"]
    with pytest.raises(ObjectMissing):
        destination.get("a/b/one", size_max=5)
    destination.create("a/b/one", b"again")
    destination.delete("a/b/one")
    destination.delete("a/b/two")
    assert destination.list("") == []
    destination.create("a/b/one", b"and again")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_leads_elsewhere_is_refused(destination: Destination, name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        destination.create(name, b"")
    with pytest.raises(ValueError, match="name"):
        destination.get(name, size_max=5)
    with pytest.raises(ValueError, match="name"):
        destination.get_range(name, 0, 5)
    with pytest.raises(ValueError, match="name"):
        destination.delete(name)
    if name not in ("", "a/"):
        with pytest.raises(ValueError, match="name"):
            destination.list(name)


def test_objects_survive_the_opening_of_another_destination(
    destination: Destination, url: str, tmp_path: Path
) -> None:
    destination.create("a/object", b"content")
    other = open_destination("place", url, base=tmp_path)
    assert bytes(other.get("a/object", size_max=10)) == b"content"
    with pytest.raises(ObjectExists):
        other.create("a/object", b"content")
    other.close()


def test_a_put_can_be_repeated_with_the_same_bytes_only(destination: Destination) -> None:
    create_or_compare(destination, "a/object", b"content")
    create_or_compare(destination, "a/object", memoryview(b"content"))
    for other in (b"Content", b"content and more", b"cont", b""):
        with pytest.raises(RepositoryConflict) as raised:
            create_or_compare(destination, "a/object", other)
        assert (raised.value.destination, raised.value.object) == ("place", "a/object")
    assert bytes(destination.get("a/object", size_max=10)) == b"content"
