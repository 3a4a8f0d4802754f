"""Members whose addresses and regions change, alone and all at once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import raftha
from raftha.cli.app import app
from raftha.storage.directory import moves
from tests.support.conditions import wait_until
from tests.support.nodes import free_addresses, make_config, wait_leader


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[dict[int, raftha.HaManager]]:
    members = dict(enumerate(free_addresses(3), start=1))
    made = {i: raftha.HaManager(make_config(tmp_path, i, members)) for i in members}
    for node in made.values():
        node.start()
    yield made
    for node in made.values():
        node.stop()


def places(node: raftha.HaManager) -> dict[int, tuple[str, str]]:
    return {r.node_id: (r.address, r.region) for r in node.get_status().replicas}


def moved_config(node: raftha.HaManager, addresses: dict[int, str]) -> raftha.HaConfig:
    return replace(node.config, members={**node.config.members, **addresses})


def write_toml(path: Path, config: raftha.HaConfig) -> None:
    members = "\n".join(f'{i} = "{address}"' for i, address in config.members.items())
    path.write_text(
        f'node_id = {config.node_id}\ndata_dir = "{config.data_dir}"\n'
        f"wal_segment_bytes = {config.wal_segment_bytes}\n[members]\n{members}\n"
    )


def test_one_member_moves_and_is_found_at_its_new_address(
    nodes: dict[int, raftha.HaManager], caplog: pytest.LogCaptureFixture
) -> None:
    leader = wait_leader(nodes)
    moving = next(i for i in nodes if i != leader)  # The lower id, which is dialled.
    old, new = nodes[moving].config.own_address, free_addresses(1)[0]
    nodes[leader].put(b"a", b"1")
    with pytest.raises(raftha.InvalidRequest, match="another member's address"):
        nodes[leader].move_replica(moving, address=nodes[leader].config.own_address)
    with pytest.raises(raftha.InvalidRequest, match="node 9 is not a member"):
        nodes[leader].move_replica(9, region="far")
    with pytest.raises(raftha.InvalidRequest, match="an address, or a region, or both"):
        nodes[leader].move_replica(moving)
    nodes[moving].move_replica(moving, address=new, region="far")
    assert places(nodes[moving])[moving] == (new, "far")
    nodes[moving].stop()

    # With its old settings it starts, and says what differs.
    with caplog.at_level(logging.WARNING):
        nodes[moving].start()
        nodes[moving].stop()
    assert f"this node listens on {old}, and the others dial {new}" in caplog.text
    assert f"node {moving} is in region 'far', not in 'primary'" in caplog.text

    nodes[leader].put(b"b", b"2")
    nodes[moving] = raftha.HaManager(moved_config(nodes[moving], {moving: new}))
    nodes[moving].start()
    assert nodes[moving].get(b"b") == b"2"
    third = next(i for i in nodes if i not in (leader, moving))
    nodes[third].stop()
    assert nodes[leader].put(b"c", b"3"), "the moved member is half of this majority"


def test_all_members_move_at_once(
    nodes: dict[int, raftha.HaManager], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nodes[wait_leader(nodes)].put(b"a", b"1")
    for node in nodes.values():
        node.stop()
    old = nodes[1].config.members
    fresh = free_addresses(2)
    new = {1: fresh[0], 2: old[3], 3: old[2]}  # Two of them exchange their addresses.
    run = CliRunner()
    for i, node in nodes.items():
        config = moved_config(node, new)
        toml = tmp_path / f"{i}.toml"
        write_toml(toml, config)
        command = ["move", "--config", str(toml), "--node-id", str(i)]
        shown = run.invoke(app, command)
        assert (shown.exit_code, "nothing was changed" in shown.output) == (2, True)
        assert f"node 1: {old[1]} -> {new[1]}" in shown.output
        done = run.invoke(app, [*command, "--yes"])
        assert done.exit_code == 0, done.output
        nodes[i] = raftha.HaManager(config)
    with caplog.at_level(logging.WARNING):
        for node in nodes.values():
            node.start()
    assert "the settings differ" not in caplog.text
    wait_leader(nodes)
    assert nodes[1].get(b"a") == b"1"

    def are_in_the_log() -> bool:
        return all({i: p[0] for i, p in places(node).items()} == new for node in nodes.values())

    wait_until(are_in_the_log, "not in the log")
    records = [tmp_path / str(i) / moves.NAME for i in nodes]
    wait_until(lambda: not any(record.exists() for record in records), "not forgotten")
    for node in nodes.values():
        node.stop()
    for node in nodes.values():
        node.start()
    wait_leader(nodes)
    assert nodes[2].put(b"b", b"2")
