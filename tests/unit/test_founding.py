"""When a node without a cluster founds one."""

from __future__ import annotations

import pytest

from raftha.membership import Membership
from raftha.node.founding import GRACE_S, LISTEN_S, Founding, Stance, first_membership

MEMBERS = Membership.first({1: "a:1", 2: "b:1", 3: "c:1"}).members


def make(node_id: int, stance: Stance) -> Founding:
    return Founding(node_id, 10 * node_id, MEMBERS, stance, now=0.0)


def hear_empty(founding: Founding, *peers: int, stance: Stance = Stance.WAITS) -> None:
    for peer in peers:
        founding.heard(peer, "", 10 * peer, stance)


def test_an_empty_node_that_was_not_told_to_founds_nothing() -> None:
    founding = make(1, Stance.WAITS)
    hear_empty(founding, 2, 3)
    assert founding.decide(100.0) is None
    assert "raftha init" in founding.message()


def test_a_node_that_bootstraps_founds_once_every_member_says_that_it_is_empty() -> None:
    founding = make(1, Stance.BOOTSTRAPS)
    assert founding.decide(100.0) is None
    hear_empty(founding, 3)
    assert founding.decide(100.0) is None
    assert "node 2" in founding.message()
    hear_empty(founding, 2)
    assert founding.decide(100.0) == {1: 10, 2: 20, 3: 30}


def test_a_member_that_has_gone_again_is_not_counted() -> None:
    founding = make(1, Stance.BOOTSTRAPS)
    hear_empty(founding, 2, 3)
    founding.gone(3)
    assert founding.decide(100.0) is None


@pytest.mark.parametrize("stance", [Stance.BOOTSTRAPS, Stance.FOUNDS])
@pytest.mark.parametrize("peer", [3, 9])
def test_no_cluster_is_founded_where_any_node_says_that_it_has_one(
    stance: Stance, peer: int
) -> None:
    """Also if that node has gone since, and if the settings don't name it."""
    founding = make(1, stance)
    founding.heard(peer, "c" * 32, 5, Stance.MEMBER)
    founding.gone(peer)
    hear_empty(founding, 2, 3)
    assert founding.decide(100.0) is None
    assert f"node {peer}" in founding.message()


def test_an_operators_order_needs_a_majority_and_waits_a_while_for_the_rest() -> None:
    founding = make(1, Stance.FOUNDS)
    assert founding.decide(5.0) is None
    hear_empty(founding, 2)
    assert founding.decide(6.0) is None
    assert founding.decide(6.0 + GRACE_S) == {1: 10, 2: 20}
    hear_empty(founding, 3)
    assert founding.decide(6.0) == {1: 10, 2: 20, 3: 30}


def test_of_several_nodes_that_were_told_to_one_founds() -> None:
    lowest, other = make(1, Stance.BOOTSTRAPS), make(2, Stance.BOOTSTRAPS)
    hear_empty(lowest, 2, 3, stance=Stance.BOOTSTRAPS)
    hear_empty(other, 1, 3, stance=Stance.BOOTSTRAPS)
    assert lowest.decide(100.0) is not None
    assert other.decide(100.0) is None


def test_an_operators_order_comes_before_a_setting() -> None:
    ordered, lowest = make(3, Stance.FOUNDS), make(1, Stance.BOOTSTRAPS)
    hear_empty(ordered, 1, 2, stance=Stance.BOOTSTRAPS)
    hear_empty(lowest, 2)
    hear_empty(lowest, 3, stance=Stance.FOUNDS)
    assert ordered.decide(100.0) is not None
    assert lowest.decide(100.0) is None


def test_a_node_that_is_alone_listens_first() -> None:
    """It may be the first of a cluster that has grown, with an empty disk."""
    members = Membership.first({1: "a:1"}).members
    founding = Founding(1, 10, members, Stance.BOOTSTRAPS, now=5.0)
    assert founding.decide(5.0 + LISTEN_S / 2) is None
    assert founding.decide(5.0 + LISTEN_S) == {1: 10}
    founding.heard(2, "c" * 32, 20, Stance.MEMBER)
    assert founding.decide(100.0) is None


def test_the_first_membership_counts_only_the_nodes_that_were_heard() -> None:
    membership = first_membership(MEMBERS, {1: 10, 3: 30}, "c" * 32, "1" * 32)
    assert membership.voters == (1, 3)
    assert [membership.recorded(i) for i in (1, 2, 3)] == [10, 0, 30]
    assert Membership.decode(membership.encode()) == membership
