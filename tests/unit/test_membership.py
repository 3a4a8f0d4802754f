"""Memberships: which changes are possible, and their bytes."""

from __future__ import annotations

import contextlib

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftha.config import MEMBERS_MAX
from raftha.errors import InvalidRequest
from raftha.membership import Member, Membership

FIRST = Membership.first({1: "a:1", 2: "b:1", 3: "c:1"})


def test_the_first_members_are_all_voters() -> None:
    assert FIRST.voters == (1, 2, 3)
    assert FIRST.quorum == 2


def test_a_new_node_counts_for_nothing_until_it_is_a_voter() -> None:
    with_learner = FIRST.with_learner(4, "d:1", "north")
    assert with_learner.voters == (1, 2, 3)
    assert with_learner.members[4] == Member("d:1", "north", is_voter=False)
    with_voter = with_learner.with_voter(4)
    assert (with_voter.voters, with_voter.quorum) == ((1, 2, 3, 4), 3)


def test_an_id_is_never_used_again() -> None:
    smaller = FIRST.without(2)
    assert smaller.voters == (1, 3)
    with pytest.raises(InvalidRequest, match="never used again"):
        smaller.with_learner(2, "e:1", "")
    with pytest.raises(InvalidRequest, match="not a member"):
        smaller.without(2)


@pytest.mark.parametrize(
    ("node_id", "address", "region"),
    [
        (1, "d:1", ""),
        (4, "a:1", ""),
        (4, "nonsense", ""),
        (4, "d:1", "x" * 65),
        (4, "d:1", "\x1b[31mred"),
        (4, "d\x1b]0;owned\x07:1", ""),
        (0, "d:1", ""),
        (1 << 32, "d:1", ""),
    ],
)
def test_an_impossible_member_is_refused(node_id: int, address: str, region: str) -> None:
    with pytest.raises(InvalidRequest):
        FIRST.with_learner(node_id, address, region)


def test_the_last_voter_stays() -> None:
    with pytest.raises(InvalidRequest, match="only voter"):
        Membership.first({1: "a:1"}).without(1)


def test_there_is_an_upper_limit_of_members() -> None:
    full = Membership.first({i: f"h:{i}" for i in range(1, MEMBERS_MAX + 1)})
    with pytest.raises(InvalidRequest, match="at most"):
        full.with_learner(99, "h:99", "")


def test_a_membership_survives_its_bytes() -> None:
    membership = FIRST.with_learner(4, "d:1", "north").without(1)
    assert Membership.decode(membership.encode()) == membership


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        msgpack.packb(7),
        msgpack.packb([2, {1: ["a:1", "", True]}, []]),
        msgpack.packb([1, {}, []]),
        msgpack.packb([1, {1: ["a:1", "", False]}, []]),
        msgpack.packb([1, {1: 5}, []]),
        msgpack.packb([1, [1], []]),
        msgpack.packb([1, {1: ["a:1", "", True]}, 5]),
    ],
)
def test_a_malformed_membership_is_a_value_error(payload: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        Membership.decode(payload)


@given(st.binary(max_size=80))
def test_garbage_is_a_value_error_or_a_membership(payload: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert Membership.decode(payload).voters


def test_a_standby_stays_a_learner_in_the_log_until_it_is_promoted() -> None:
    standby = FIRST.with_learner(4, "d:1", "far", is_standby=True)
    assert Membership.decode(standby.encode()) == standby
    assert standby.members[4].is_standby
    assert standby.voters == FIRST.voters
    learner = standby.with_standby(4, is_standby=False)
    assert Membership.decode(learner.encode()).members[4] == Member("d:1", "far", is_voter=False)
    assert learner.with_voter(4).members[4] == standby.with_voter(4).members[4]
    with pytest.raises(InvalidRequest, match="is a voter"):
        FIRST.with_standby(1, is_standby=True)
