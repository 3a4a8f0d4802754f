"""Destinations that fail in the middle of it: puts that are repeated, and what `probe` finds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftha.errors import RepositoryConflict, RepositoryError, RepositoryUnavailable
from raftha.storage.backup.destination import create_or_compare
from raftha.storage.backup.memory import MemoryDestination
from raftha.storage.backup.probe import probe
from tests.support.faulty_destination import Fault, FaultyDestination


@pytest.fixture
def broken() -> FaultyDestination:
    return FaultyDestination(MemoryDestination("offsite"))


def content(broken: FaultyDestination) -> dict[str, bytes]:
    return {
        info.name: broken.inner.get(info.name, size_max=1 << 20) for info in broken.inner.list("")
    }


def test_a_put_whose_answer_was_lost_has_succeeded(broken: FaultyDestination) -> None:
    broken.plan(Fault("create", "lost_answer"))
    create_or_compare(broken, "a", b"content")
    assert content(broken) == {"a": b"content"}
    assert broken.calls == [("create", "a"), ("get", "a")]


def test_a_put_that_goes_well_costs_one_request(broken: FaultyDestination) -> None:
    create_or_compare(broken, "a", b"content")
    assert broken.calls == [("create", "a")]


@pytest.mark.parametrize("kind", ["fails", "conflict"])
def test_a_put_without_effect_can_be_tried_again(broken: FaultyDestination, kind: str) -> None:
    broken.plan(Fault("create", kind))
    with pytest.raises(RepositoryUnavailable):
        create_or_compare(broken, "a", b"content")
    create_or_compare(broken, "a", b"content")
    assert content(broken) == {"a": b"content"}


def test_a_put_that_lands_late_is_found_by_the_next_one(broken: FaultyDestination) -> None:
    broken.plan(Fault("create", "late"))
    create_or_compare(broken, "a", b"content")  # It has landed when the object is read back.
    assert content(broken) == {"a": b"content"}


def test_an_answer_of_success_is_not_believed_without_the_bytes(broken: FaultyDestination) -> None:
    """«Exists already», with other bytes: the commonest trap of two clusters in one place."""
    broken.inner.create("a", b"another cluster's")
    with pytest.raises(RepositoryConflict, match="prefix"):
        create_or_compare(broken, "a", b"content")
    assert content(broken) == {"a": b"another cluster's"}


@pytest.mark.parametrize("kind", ["truncated", "rotten"])
def test_a_difference_is_a_conflict_only_if_it_is_read_twice(
    broken: FaultyDestination, kind: str
) -> None:
    create_or_compare(broken, "a", b"content")
    broken.plan(Fault("get", kind, times=1))
    create_or_compare(broken, "a", b"content")
    broken.plan(Fault("get", kind, times=2))
    with pytest.raises(RepositoryConflict):
        create_or_compare(broken, "a", b"content")


FAULTS = st.lists(
    st.builds(
        Fault,
        st.sampled_from(["create", "get", "*"]),
        st.sampled_from(["fails", "lost_answer", "late", "conflict", "ignored_condition", "stale"]),
        times=st.integers(1, 3),
    ),
    max_size=6,
)


@given(FAULTS)
def test_a_put_repeated_until_it_returns_has_the_bytes_there(faults: list[Fault]) -> None:
    """Whatever fails on the way; and it never reports a conflict with itself."""
    broken = FaultyDestination(MemoryDestination("offsite"))
    broken.plan(*faults)
    for _ in range(40):
        try:
            create_or_compare(broken, "a", b"content")
        except RepositoryUnavailable:
            continue
        break
    else:
        raise AssertionError("it never succeeded")
    assert content(broken) == {"a": b"content"}


def test_a_destination_that_does_everything_has_no_findings(broken: FaultyDestination) -> None:
    findings = probe(broken)
    assert [finding.check for finding in findings if not finding.is_ok] == []
    assert len(findings) == 8
    assert content(broken) == {}
    assert all(name.startswith("probe/") for _, name in broken.calls)


@pytest.mark.parametrize(
    ("fault", "check", "is_needed", "said"),
    [
        (Fault("create", "fails"), "create", True, "503"),
        (Fault("get", "rotten"), "read back", True, "other bytes"),
        (Fault("get", "truncated"), "read back", True, "other bytes"),
        (Fault("create", "ignored_condition", times=None), "create twice", False, "ignores"),
        (Fault("get_range", "rotten"), "range", True, "other bytes"),
        (Fault("get_range", "fails"), "range", True, "503"),
        (Fault("list", "stale"), "list after put", True, "lacks"),
        (Fault("delete", "denied"), "delete", False, "denied"),
        (Fault("delete", "fails"), "delete", False, "503"),
        (Fault("delete", "late"), "delete", False, "time-out"),
    ],
)
def test_a_destination_that_lacks_something_is_found_out(
    broken: FaultyDestination, fault: Fault, check: str, is_needed: bool, said: str
) -> None:
    broken.plan(fault)
    wrong = [finding for finding in probe(broken) if not finding.is_ok]
    assert [(finding.check, finding.is_needed) for finding in wrong] == [(check, is_needed)]
    assert said in wrong[0].detail


def test_a_destination_whose_deletes_do_nothing_is_found_out() -> None:
    class Keeps(MemoryDestination):
        def delete(self, name: str) -> None:
            del name

    wrong = [finding for finding in probe(Keeps()) if not finding.is_ok]
    assert [finding.check for finding in wrong] == ["gone after delete"]


def test_errors_say_where_and_what() -> None:
    error = RepositoryError("it is odd", destination="offsite", object_name="a/b", hint="look")
    assert str(error) == "offsite: a/b: it is odd (look)"
    assert (error.destination, error.object, error.hint) == ("offsite", "a/b", "look")
    assert str(RepositoryError("it is odd")) == "it is odd"
