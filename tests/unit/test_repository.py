"""A repository in several destinations: how it is made, opened and refused, and its keys."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftha.errors import (
    BackupDamaged,
    ConfigError,
    KeyMissing,
    ObjectMissing,
    RepositoryConflict,
    RepositoryError,
    RepositoryUnavailable,
)
from raftha.storage.backup.crypto import OperatorKey
from raftha.storage.backup.destination import Destination
from raftha.storage.backup.frames import OTHER, read_whole, write_whole
from raftha.storage.backup.memory import MemoryDestination
from raftha.storage.backup.names import lineage_name, parse_key_name
from raftha.storage.backup.repository import KEY_FILES_MAX, Repository, open_repository
from raftha.storage.backup.repository_records import LineageRecord
from tests.support.faulty_destination import Fault, FaultyDestination

OPERATOR = OperatorKey(bytes(range(32)))
OTHER_KEY = OperatorKey(bytes(32))
LINEAGE = LineageRecord(
    lineage="7f" * 16,
    parent="",
    fork_index=0,
    fork_sequence=0,
    fork_hash="",
    reason="founded",
    cluster_name="orders",
    created_us=5,
)


def places(count: int = 2) -> list[FaultyDestination]:
    return [FaultyDestination(MemoryDestination(f"place-{n}")) for n in range(count)]


def opened(
    destinations: Sequence[Destination],
    operator: OperatorKey | None = None,
    *,
    is_encrypted: bool | None = None,
    may_create: bool = True,
) -> Repository:
    return open_repository(
        destinations,
        operator=operator,
        is_encrypted=is_encrypted,
        may_create=may_create,
        now_us=1_700_000_000_000_000,
    )


def content(destination: FaultyDestination) -> dict[str, bytes]:
    inner = destination.inner
    return {info.name: inner.get(info.name, size_max=1 << 20) for info in inner.list("")}


def put(destination: FaultyDestination, name: str, data: bytes) -> None:
    """Replace an object, as no destination does."""
    destination.inner.delete(name)
    destination.inner.create(name, data)


def test_the_first_opening_makes_it_the_same_everywhere() -> None:
    first, second = places()
    repository = opened([first, second])
    assert list(repository.destinations) == ["place-0", "place-1"]
    assert content(first) == content(second)
    assert list(content(first)) == ["repository.json"]
    again = opened([second, first], may_create=False)
    assert (again.id, again.is_encrypted, again.key) == (repository.id, False, None)


def test_an_encrypted_one_has_a_data_key_everywhere() -> None:
    first, second = places()
    repository = opened([first, second], OPERATOR)
    assert repository.is_encrypted
    assert content(first) == content(second)
    (name,) = [name for name in content(first) if name.startswith("keys/")]
    assert repository.key is not None
    assert parse_key_name(name) == (repository.key.key_id, 1)
    assert opened([second], OPERATOR).key == repository.key
    assert all(repository.key.secret.hex() not in data.decode() for data in content(first).values())


def test_a_destination_that_is_added_later_is_given_what_it_lacks() -> None:
    first, second = places()
    before = opened([first], OPERATOR)
    after = opened([first, second], OPERATOR)
    assert (after.id, after.key) == (before.id, before.key)
    assert content(first) == content(second)


def test_of_two_nodes_that_make_it_at_once_one_wins() -> None:
    """The second one looks before, and creates after, the first one."""
    first, second = places()
    theirs: list[Repository] = []
    real = first.inner.create

    def create(name: str, data: bytes | memoryview) -> None:
        if not theirs:
            first.inner.create = real  # type: ignore[method-assign]
            theirs.append(opened([first, second]))
        real(name, data)

    first.inner.create = create  # type: ignore[method-assign]
    ours = opened([first, second])
    assert ours.id == theirs[0].id
    assert content(first) == content(second)


def test_where_there_is_none_a_reader_makes_none() -> None:
    (place,) = places(1)
    with pytest.raises(ObjectMissing, match="no destination holds a repository"):
        opened([place], may_create=False)
    assert content(place) == {}


def test_a_reader_changes_nothing() -> None:
    first, second = places()
    opened([first], OPERATOR)
    reader = opened([first, second], OPERATOR, may_create=False)
    assert content(second) == {}
    assert list(reader.destinations) == ["place-0"]
    assert isinstance(reader.failed["place-1"], ObjectMissing)


def test_another_repository_is_refused() -> None:
    first, second = places()
    opened([first])
    opened([second])
    with pytest.raises(RepositoryConflict, match="another one than") as raised:
        opened([first, second])
    assert raised.value.destination == "place-1"


def test_a_destination_that_is_away_is_left_out_and_taken_in_later() -> None:
    first, second = places()
    opened([first, second], OPERATOR)
    for away, there in ((first, second), (second, first)):
        away.plan(Fault("*", "fails", times=None))
        repository = opened([first, second], OPERATOR)
        assert list(repository.destinations) == [there.name]
        assert isinstance(repository.failed[away.name], RepositoryUnavailable)
        repository.retry_failed()
        assert list(repository.destinations) == [there.name]
        away.plan()
        repository.retry_failed()
        assert set(repository.destinations) == {first.name, second.name}
        assert repository.failed == {}


@pytest.mark.parametrize("fails_then", [False, True])
def test_two_threads_take_a_destination_in_at_once(
    fails_then: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backup's and the upkeep's share a repository."""
    there, away = places()
    opened([there, away])
    away.plan(Fault("*", "fails", times=None))
    repository = opened([there, away])
    away.plan()
    identify = repository._identify

    def other_thread(destination: Destination) -> None:
        monkeypatch.setattr(repository, "_identify", identify)
        repository.retry_failed()
        if fails_then:
            raise RepositoryUnavailable("it is away again")
        identify(destination)

    monkeypatch.setattr(repository, "_identify", other_thread)
    repository.retry_failed()
    assert set(repository.destinations) == {there.name, away.name}
    assert repository.failed == {}


@pytest.mark.parametrize("away", [0, 1])
def test_none_is_made_while_a_destination_is_away(away: int) -> None:
    """It may hold the repository already, and would conflict with the new one for ever."""
    both = places()
    both[away].plan(Fault("*", "fails", times=None))
    with pytest.raises(RepositoryUnavailable):
        opened(both)
    assert content(both[1 - away]) == {}


def test_all_destinations_away_is_an_error() -> None:
    both = places()
    opened(both)
    for place in both:
        place.plan(Fault("*", "fails", times=None))
    with pytest.raises(RepositoryUnavailable):
        opened(both)


def test_the_key_is_needed_and_must_be_the_right_one() -> None:
    (place,) = places(1)
    with pytest.raises(KeyMissing, match="needs the operator's key"):
        opened([place], is_encrypted=True)
    opened([place], OPERATOR)
    with pytest.raises(KeyMissing, match="is encrypted") as raised:
        opened([place])
    assert "encryption_key_file" in raised.value.hint
    with pytest.raises(KeyMissing, match="opens none") as raised:
        opened([place], OTHER_KEY)
    assert raised.value.key_id
    with pytest.raises(KeyMissing):
        opened([place], OTHER_KEY, may_create=False)


def test_the_configuration_must_want_what_it_is() -> None:
    plain, sealed = places()
    opened([plain])
    opened([sealed], OPERATOR)
    with pytest.raises(ConfigError, match="not encrypted"):
        opened([plain], OPERATOR, is_encrypted=True)
    with pytest.raises(ConfigError, match="is encrypted"):
        opened([sealed], OPERATOR, is_encrypted=False)
    with pytest.raises(ConfigError, match="not encrypted"):
        opened([plain], OPERATOR)
    assert opened([plain], OPERATOR, is_encrypted=False).key is None


def test_a_buckets_owner_cannot_make_a_reader_do_without_encryption() -> None:
    """By changing what repository.json says, or by taking all keys away."""
    (place,) = places(1)
    opened([place], OPERATOR)
    for name in [name for name in content(place) if name.startswith("keys/")]:
        place.inner.delete(name)
    with pytest.raises(KeyMissing, match="none of its data keys"):
        opened([place], OPERATOR, may_create=False)
    document = json.loads(content(place)["repository.json"])
    put(place, "repository.json", json.dumps(document | {"encryption": "none"}).encode())
    with pytest.raises(ConfigError, match="not encrypted"):
        opened([place], OPERATOR, may_create=False)


def test_a_new_data_key_seals_new_objects_and_the_old_one_still_opens_old_ones() -> None:
    both = places()
    repository = opened(both, OPERATOR)
    old = write_whole(b"old", OTHER, "a", repository.key, 3)
    made = repository.new_data_key(7)
    assert repository.key == made
    new = write_whole(b"new", OTHER, "b", repository.key, 3)

    again = opened(both, OPERATOR)
    assert again.key == made
    assert read_whole(old, OTHER, "a", again.keys) == b"old"
    assert read_whole(new, OTHER, "b", again.keys) == b"new"


def test_another_nodes_data_key_is_found_by_a_refresh() -> None:
    both = places()
    ours, theirs = opened(both, OPERATOR), opened(both, OPERATOR)
    made = theirs.new_data_key(7)
    with pytest.raises(KeyMissing):
        ours.keys.find(made.key_id)
    ours.refresh_keys()
    assert ours.key == made


def test_the_operators_key_changes_without_rewriting_an_object() -> None:
    both = places()
    repository = opened(both, OPERATOR)
    repository.new_data_key(7)
    data = write_whole(b"content", OTHER, "a", repository.key, 3)
    repository.change_operator_key(OTHER_KEY, 8)
    # Both keys open it until the old one is forgotten: nodes are told one after the other.
    for operator in (OPERATOR, OTHER_KEY):
        assert read_whole(data, OTHER, "a", opened(both, operator).keys) == b"content"

    assert repository.forget_other_operator_keys() == 2
    assert repository.forget_other_operator_keys() == 0
    assert read_whole(data, OTHER, "a", opened(both, OTHER_KEY).keys) == b"content"
    with pytest.raises(KeyMissing):
        opened(both, OPERATOR)
    assert content(both[0]) == content(both[1])


def test_a_change_of_the_operators_key_needs_all_destinations() -> None:
    first, second = places()
    opened([first, second], OPERATOR)
    second.plan(Fault("*", "fails", times=None))
    repository = opened([first, second], OPERATOR)
    before = content(first)
    with pytest.raises(RepositoryUnavailable, match="in all destinations or in none"):
        repository.change_operator_key(OTHER_KEY, 8)
    with pytest.raises(RepositoryUnavailable):
        repository.forget_other_operator_keys()
    assert content(first) == before


@pytest.mark.parametrize("call", range(1, 12))
def test_a_change_of_the_operators_key_that_breaks_off_locks_nothing(call: int) -> None:
    """Wherever it stops, one of the keys opens everything in each destination; and it can be
    repeated."""
    first, second = places()
    repository = opened([first, second], OPERATOR)
    repository.new_data_key(7)
    data = write_whole(b"content", OTHER, "a", repository.key, 3)
    left = itertools.count(-call)
    for place in (first, second):
        _break_off(place, lambda: next(left) == 0)
    try:
        repository.change_operator_key(OTHER_KEY, 8)
        repository.forget_other_operator_keys()
    except RepositoryUnavailable:
        pass
    for place in (first, second):
        opens = []
        for operator in (OPERATOR, OTHER_KEY):
            try:
                found = opened([place], operator, may_create=False)
                opens.append(read_whole(data, OTHER, "a", found.keys) == b"content")
            except KeyMissing:
                opens.append(False)
        assert any(opens)
    repository.change_operator_key(OTHER_KEY, 9)
    repository.forget_other_operator_keys()
    for place in (first, second):
        assert read_whole(data, OTHER, "a", opened([place], OTHER_KEY).keys) == b"content"


def _break_off(place: FaultyDestination, is_now: Callable[[], bool]) -> None:
    real = place._begin

    def begin(operation: str, name: str) -> str:
        if is_now():
            raise RepositoryUnavailable("now", destination=place.name, object_name=name)
        return real(operation, name)

    place._begin = begin  # type: ignore[method-assign]


def test_keys_of_a_plain_repository_do_not_change() -> None:
    repository = opened(places(1))
    for change in (
        lambda: repository.new_data_key(1),
        lambda: repository.change_operator_key(OTHER_KEY, 1),
        repository.forget_other_operator_keys,
    ):
        with pytest.raises(ConfigError, match="no keys"):
            change()
    repository.refresh_keys()


def test_a_lineage_is_described_once_and_everywhere() -> None:
    both = places()
    repository = opened(both)
    repository.write_lineage(LINEAGE)
    repository.write_lineage(LINEAGE)
    assert repository.read_lineages() == {LINEAGE.lineage: LINEAGE}
    assert content(both[0]) == content(both[1])


def test_a_damaged_description_is_read_from_another_destination() -> None:
    both = places()
    repository = opened(both)
    repository.write_lineage(LINEAGE)
    name = lineage_name(LINEAGE.lineage)
    put(both[0], name, b"{}")
    assert repository.read_lineages() == {LINEAGE.lineage: LINEAGE}
    put(both[1], name, b"{}")
    with pytest.raises(BackupDamaged) as raised:
        repository.read_lineages()
    assert raised.value.object == name


def test_a_format_of_later_versions_says_so() -> None:
    (place,) = places(1)
    opened([place])
    document = json.loads(content(place)["repository.json"])
    put(place, "repository.json", json.dumps(document | {"format": 2}).encode())
    with pytest.raises(RepositoryError, match="this raftha reads 1") as raised:
        opened([place])
    assert "later version" in raised.value.hint


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"x" * 5000, b'{"format": 1}', b'{"format": "1"}', b"{" * 3000, b"\xff"],
)
def test_a_destination_whose_record_is_damaged_is_refused(data: bytes) -> None:
    first, second = places()
    opened([first, second])
    put(second, "repository.json", data)
    with pytest.raises(BackupDamaged) as raised:
        opened([first, second])
    assert (raised.value.destination, raised.value.object) == ("place-1", "repository.json")


def test_a_damaged_key_file_takes_its_destination_out() -> None:
    first, second = places()
    opened([first, second], OPERATOR)
    (name,) = [name for name in content(first) if name.startswith("keys/")]
    put(first, name, b"{}")
    repository = opened([first, second], OPERATOR)
    assert list(repository.destinations) == ["place-1"]
    assert isinstance(repository.failed["place-0"], BackupDamaged)


def test_a_key_file_of_another_repository_or_name_is_no_key() -> None:
    first, second = places()
    opened([first], OPERATOR)
    opened([second], OPERATOR)
    (foreign,) = [name for name in content(second) if name.startswith("keys/")]
    put(first, foreign, content(second)[foreign])
    with pytest.raises(BackupDamaged, match="another place"):
        opened([first], OPERATOR)


def test_more_key_files_than_there_can_be_are_not_read() -> None:
    (place,) = places(1)
    opened([place], OPERATOR)
    (name,) = [name for name in content(place) if name.startswith("keys/")]
    key_id, _ = parse_key_name(name)
    for version in range(2, KEY_FILES_MAX + 2):
        document = json.loads(content(place)[name]) | {"version": version}
        place.inner.create(f"keys/{key_id}-{version}.json", json.dumps(document).encode())
    with pytest.raises(BackupDamaged, match="more than 200"):
        opened([place], OPERATOR)


def test_names_that_are_none_of_ours_are_passed_over() -> None:
    (place,) = places(1)
    repository = opened([place], OPERATOR)
    for name in ("keys/README", "keys/x-1.json", "lineages/x.json", "elsewhere/y"):
        place.inner.create(name, b"anything")
    assert opened([place], OPERATOR).key == repository.key
    assert repository.read_lineages() == {}


FAULT = st.builds(
    Fault,
    st.sampled_from(["create", "get", "list", "*"]),
    st.sampled_from(["fails", "lost_answer", "late", "conflict", "ignored_condition"]),
    times=st.integers(1, 2),
)


@given(st.lists(st.tuples(st.integers(0, 1), FAULT), max_size=5), st.booleans())
def test_whatever_fails_while_it_is_made_there_is_one_repository(
    faults: list[tuple[int, Fault]], is_encrypted: bool
) -> None:
    both = places()
    operator = OPERATOR if is_encrypted else None
    for number, fault in faults:
        both[number].plan(*both[number]._faults, fault)
    ids = set()
    for _ in range(12):
        try:
            repository = opened(both, operator)
            ids.add(repository.id)
            repository.retry_failed()
        except RepositoryUnavailable:
            continue
    for place in both:
        place.plan()
    repository = opened(both, operator)
    assert repository.failed == {}
    assert ids <= {repository.id}
    assert content(both[0]) == content(both[1])
    assert len(repository.keys.locked) == 0


def test_closing_closes_all_destinations() -> None:
    closed: list[str] = []

    class Closes(MemoryDestination):
        def close(self) -> None:
            closed.append(self.name)

    first, second = Closes("first"), Closes("second")
    opened([first, second]).close()
    assert closed == ["first", "second"]
