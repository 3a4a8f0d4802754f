"""Recorded moves: how long they count, what a leader makes of them, and the file they are in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from raftha.config import HaConfig
from raftha.errors import ConfigError, Corrupt, InvalidRequest, MembershipChangePending
from raftha.membership import Membership
from raftha.runtime.moves import Moves, differences
from raftha.storage.directory import moves
from raftha.storage.directory.moves import Move

OLD = {1: "127.0.0.1:1", 2: "127.0.0.1:2", 3: "127.0.0.1:3"}
FIRST = replace(Membership.first(OLD), cluster_id="c")


def config_in(folder: Path, **settings: Any) -> HaConfig:
    return HaConfig(node_id=1, data_dir=folder, **{"members": OLD, **settings})


class Core:
    """As much of a core as moves need: a log that takes one membership at a time."""

    def __init__(self, membership: Membership) -> None:
        self.membership = membership
        self.is_leader = True
        self.is_pending = False

    def change_membership(self, membership: Membership) -> None:
        if self.is_pending:
            raise MembershipChangePending("wait")
        assert len(self.membership.changed(membership)) == 1
        self.membership = membership


def recorded(folder: Path, core: Core, addresses: dict[int, str]) -> Moves:
    moves.save(folder, {i: Move(frozenset({OLD[i]}), a) for i, a in addresses.items()})
    return Moves(config_in(folder), cast(Any, core))


def test_a_recorded_address_is_dialled_until_a_membership_has_another(tmp_path: Path) -> None:
    core = Core(FIRST)
    found = recorded(tmp_path, core, {2: "h:22", 3: "h:33"})
    found.on_membership(FIRST)
    assert found.peers(FIRST)["addresses"] == {2: "h:22", 3: "h:33"}
    other = FIRST.with_address(2, "h:5")
    found.on_membership(other)
    assert found.peers(other)["addresses"] == {2: "h:5", 3: "h:33"}
    assert found.peers(FIRST)["addresses"] == {2: OLD[2], 3: "h:33"}, "it has been forgotten"
    found.on_membership(other.without(3))
    assert not (tmp_path / moves.NAME).exists()


def test_the_settings_of_a_node_that_has_applied_nothing_void_no_move(tmp_path: Path) -> None:
    found = recorded(tmp_path, Core(FIRST), {2: "h:22"})
    found.on_membership(Membership.first({1: OLD[1], 2: "h:22"}))
    assert found.peers(FIRST)["addresses"][2] == "h:22"


def test_an_address_that_a_member_has_had_before_is_recorded_again(tmp_path: Path) -> None:
    core = Core(FIRST)
    moves.save(tmp_path, {2: Move(frozenset({OLD[2], "h:22"}), "h:22")})
    found = Moves(config_in(tmp_path), cast(Any, core))
    past = FIRST.with_address(2, "h:22")
    found.on_membership(past)
    found.on_membership(FIRST)
    assert found.peers(FIRST)["addresses"][2] == "h:22"
    found.on_tick()
    assert core.membership == past
    found.on_membership(past)
    assert not (tmp_path / moves.NAME).exists()


def test_only_a_leader_appends_the_addresses_one_at_a_time(tmp_path: Path) -> None:
    core = Core(FIRST)
    found = recorded(tmp_path, core, {1: OLD[2], 2: OLD[1], 3: "h:3"})
    core.is_leader = False
    found.on_tick()
    assert core.membership == FIRST
    core.is_leader, core.is_pending = True, True
    found.on_tick()
    assert core.membership == FIRST
    core.is_pending = False
    voters = []
    for _ in range(5):
        found.on_tick()
        voters.append(core.membership.voters)
    members = core.membership.members
    assert {i: member.address for i, member in members.items()} == {
        1: OLD[2],
        2: OLD[1],
        3: "h:3",
    }, "two that exchange their addresses get there, too"
    assert set(voters) == {FIRST.voters}


def test_a_move_is_checked() -> None:
    assert FIRST.with_address(2, "h:9").members[2].address == "h:9"
    assert FIRST.with_address(2, OLD[2]) == FIRST
    assert FIRST.with_region(2, "far").members[2].region == "far"
    wrongs: list[Callable[[], Membership]] = [
        lambda: FIRST.with_address(2, OLD[3]),
        lambda: FIRST.with_address(2, "nowhere"),
        lambda: FIRST.with_address(4, "h:4"),
        lambda: FIRST.with_region(4, "far"),
        lambda: FIRST.with_region(2, ""),
        lambda: FIRST.with_region(2, "a\x1b"),
        lambda: FIRST.with_region(2, "x" * 1000),
    ]
    for wrong in wrongs:
        with pytest.raises(InvalidRequest):
            wrong()


def test_the_settings_that_differ_are_named(tmp_path: Path) -> None:
    members = {**OLD, 1: "127.0.0.1:11", 3: "127.0.0.1:33"}
    config = config_in(
        tmp_path, members=members, regions=("near", "far"), member_regions={2: "far"}
    )
    regions = {1: "near", 2: "near", 3: "near", 4: "far"}
    there = Membership.first({**OLD, 4: "127.0.0.1:4"}, regions)
    assert differences(config, there) == [
        "this node listens on 127.0.0.1:11, and the others dial 127.0.0.1:1",
        "node 2 is in region 'near', not in 'far'",
        "node 3 is at 127.0.0.1:3, not at 127.0.0.1:33",
    ]
    assert differences(config_in(tmp_path), Membership.first(OLD)) == []


def test_each_flipped_bit_of_the_record_is_noticed(tmp_path: Path) -> None:
    whole_moves = {2: Move(frozenset({"a:1", "b:2"}), "c:3")}
    moves.save(tmp_path, whole_moves)
    path = tmp_path / moves.NAME
    assert path.stat().st_mode & 0o777 == 0o600
    whole = path.read_bytes()
    for place in range(8 * len(whole)):
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
        try:
            found = moves.load(tmp_path)
        except (Corrupt, ConfigError):
            continue
        assert found == whole_moves, "a bit that changes no value"
