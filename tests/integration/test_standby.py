"""A region of learners as a warm standby: it has all data, doesn't count, can be promoted.

In one's own process, by the command line and by RESP.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import raftha
from raftha import ReplicaState
from raftha.cli.app import app
from raftha.client.resp import ReplyError
from raftha.config import read_toml
from raftha.testing import LocalCluster
from tests.support.conditions import wait_until
from tests.support.nodes import found_once, free_addresses, make_config


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[raftha.HaManager]]:
    """One voter, and two nodes that may join."""
    first, *later = free_addresses(3)
    config = make_config(tmp_path, 1, {1: first})
    managers = [raftha.HaManager(config)]
    for node_id, address in enumerate(later, start=2):
        joining = replace(
            config, node_id=node_id, address=address, data_dir=tmp_path / str(node_id)
        )
        managers.append(raftha.HaManager(joining))
    with ExitStack() as running:
        for manager in managers:
            running.enter_context(manager)
        managers[0].put(b"before", b"x", timeout=30)
        yield managers


def row(ha: raftha.HaManager, node_id: int) -> raftha.ReplicaStatus:
    return next(r for r in ha.get_status().replicas if r.node_id == node_id)


@pytest.mark.slow
def test_a_region_of_learners_follows_counts_for_nothing_and_is_promoted(
    nodes: list[raftha.HaManager],
) -> None:
    one, *others = nodes
    for node in others:
        one.add_replica(
            node.config.node_id, node.config.own_address, region="far", voter=False, timeout=60
        )
    for node_id in (2, 3):
        wait_until(lambda i=node_id: row(one, i).state is ReplicaState.ACTIVE, "caught up")  # type: ignore[misc]
    assert one.replication.get_quorum_size() == 1
    assert [row(one, i).is_voter for i in (1, 2, 3)] == [True, False, False]
    receipt = one.put(b"key", b"value", mode="sync")
    assert 1 in receipt.acked_by
    wait_until(lambda: row(one, 3).applied_sequence == receipt.sequence, "the standby has it")
    assert others[1].get(b"key", consistency="stale") == b"value"
    # It stays a standby, however closely it follows, and also under a new leader.
    with pytest.raises(raftha.TransferFailed, match="learner"):
        one.failover_to(2)
    assert one.promote_region("far", timeout=60) == (2, 3)
    assert one.replication.get_quorum_size() == 2
    assert one.put(b"key", b"by three", mode="sync").regions == ("primary", "far")
    one.failover_to(2, timeout=60)
    assert others[0].get_status().is_primary
    one.stop()
    assert others[0].put(b"key", b"after the region is lost", timeout=30)


@pytest.mark.slow
def test_one_standby_can_be_promoted_and_a_learner_made_a_standby(
    nodes: list[raftha.HaManager],
) -> None:
    one, two, _ = nodes
    with pytest.raises(raftha.InvalidRequest, match="not a member"):
        one.promote_replica(2)
    one.replication.add_replica(2, "far", two.config.own_address, voter=False, timeout=60)
    assert not row(one, 2).is_voter
    one.replication.promote_replica(2, timeout=60)
    assert row(one, 2).is_voter
    with pytest.raises(raftha.InvalidRequest, match="is a voter"):
        one.add_replica(2, two.config.own_address, region="far", voter=False)
    with pytest.raises(raftha.InvalidRequest, match="no member is in region"):
        one.promote_region("nowhere")
    with pytest.raises(raftha.InvalidRequest, match="in region 'far' already"):
        one.add_replica(2, two.config.own_address, region="near")


@pytest.mark.slow
def test_operators_add_and_promote_standbys_by_command_line_and_resp() -> None:
    with LocalCluster(nodes=1) as cluster:
        two, three = cluster.add_node(), cluster.add_node()
        address = {i: read_toml(cluster.config_of(i))["address"] for i in (two, three)}

        def raftha_command(*args: str | int) -> str:
            asked = ("--connect", cluster.addresses[1])
            result = CliRunner().invoke(app, [*map(str, args), *asked])
            assert result.exit_code == 0, result.stderr
            return result.stdout

        def kinds(text: str) -> dict[int, list[str]]:
            rows = [line.split() for line in text.splitlines()]
            return {int(row[0]): row[1:3] for row in rows if len(row) == 4 and row[0].isdigit()}

        standby = ("--standby", "--region", "far")
        out = raftha_command("member", "add", two, address[two], *standby)
        assert out.startswith("node 2 is a standby now")
        assert kinds(out) == {1: ["voter", "primary"], 2: ["standby", "far"]}
        reply = cluster.call(2, "RAFTHA", "ADD", three, address[three], "far", "standby")
        assert reply == b"OK"
        out = raftha_command("member", "promote", "--region", "far")
        assert out.startswith("promoted: 2, 3; the members are")
        assert set(map(tuple, kinds(out).values())) == {("voter", "primary"), ("voter", "far")}
        assert "2 of 3 voters are a majority" in out
        assert raftha_command("failover", three) == "node 3 leads now\n"
        assert cluster.call(1, "RAFTHA", "PROMOTE", "REGION", "far") == []
        assert cluster.call(1, "RAFTHA", "PROMOTE", two) == b"OK"
        with pytest.raises(ReplyError, match="ERR no member is in region 'nowhere'"):
            cluster.call(1, "RAFTHA", "PROMOTE", "REGION", "nowhere")
        out = raftha_command("member", "move", two, "--region", "near")
        assert out.startswith("node 2 has moved; the members are")
        assert kinds(out)[2] == ["voter", "near"]
        place = ("region", "far", "ADDRESS", "127.0.0.1:1")
        assert cluster.call(1, "RAFTHA", "MOVE", two, *place) == b"OK"
        assert cluster.call(1, "RAFTHA", "MOVE", two, "ADDRESS", address[two]) == b"OK"
        for wrong in (
            ("ADD", 4, "127.0.0.1:1", "far", "x"),
            ("PROMOTE", "x", "far"),
            ("MOVE", 2, "PORT", "1"),
            ("MOVE", 2, "REGION", "a", "REGION", "b"),
            ("MOVE", 2, "REGION", "a", "ADDRESS"),
        ):
            with pytest.raises(ReplyError, match="syntax error"):
                cluster.call(1, "RAFTHA", *wrong)


@pytest.mark.slow
def test_without_a_majority_operators_soon_get_an_error() -> None:
    """Not only at the deadline of a change, which is long because a new node needs all the data."""
    with LocalCluster(nodes=2, settings={"request_timeout_s": 1}) as cluster:
        cluster.wait_ready()
        cluster.kill(2)
        for args in (("promote", "2"), ("promote", "--region", "primary"), ("remove", "2")):
            asked = ["member", *args, "--connect", cluster.addresses[1]]
            result = CliRunner().invoke(app, asked)
            assert result.exit_code == 1
            assert "nothing was changed" in result.stderr


def test_a_member_added_without_a_region_is_in_the_first_region(tmp_path: Path) -> None:
    members = {1: free_addresses(1)[0]}
    found_once(tmp_path, members, regions={1: "near"})
    config = make_config(tmp_path, 1, members)
    with raftha.HaManager(replace(config, regions=("near", "far"))) as one:
        one.put(b"led", b"by", timeout=30)
        one.add_replica(2, "127.0.0.1:1", voter=False, timeout=60)
        assert [(row(one, i).region, row(one, i).is_standby) for i in (1, 2)] == [
            ("near", False),
            ("near", True),
        ]
