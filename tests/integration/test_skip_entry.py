"""An entry that ends every node, and the operator's way to skip it on all of them alike."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import raftha
from raftha.cli.app import app
from raftha.events import EntrySkipped, HaEvent, ReplicaUnsupported
from tests.support.conditions import wait_until
from tests.support.nodes import free_addresses, make_config, wait_leader


class Poisonous(raftha.StateMachine):
    @raftha.command(trial=False)
    def poison(self, txn: raftha.Transaction) -> None:
        """End every node."""
        txn.put(b"never", b"there")
        raise RecursionError("planned")


def skip(config: raftha.HaConfig, toml: Path, index: str, *options: str) -> tuple[int, str]:
    members = "\n".join(f'{i} = "{address}"' for i, address in config.members.items())
    toml.write_text(
        f'node_id = {config.node_id}\ndata_dir = "{config.data_dir}"\n'
        f"wal_segment_bytes = {config.wal_segment_bytes}\n[members]\n{members}\n"
    )
    arguments = ["skip-entry", index, "--config", str(toml), "--node-id", str(config.node_id)]
    result = CliRunner().invoke(app, [*arguments, *options])
    return result.exit_code, result.output


def test_an_entry_that_ends_every_node_is_skipped_on_all_of_them(tmp_path: Path) -> None:
    members = dict(enumerate(free_addresses(3), start=1))
    events: list[HaEvent] = []
    configs = {
        i: replace(make_config(tmp_path, i, members), on_event=events.append) for i in members
    }
    nodes = {i: raftha.HaManager(configs[i], state_machine=Poisonous()) for i in members}
    try:
        for node in nodes.values():
            node.start()
        wait_leader(nodes)
        nodes[1].put(b"a", b"1")
        with pytest.raises(raftha.RafthaError):
            nodes[1].execute("poison", timeout=5)
        failed = list(nodes.values())
        wait_until(lambda: sum(bool(n.get_status().failure) for n in failed) >= 2, "they go on")
        failure = next(n.get_status().failure for n in failed if n.get_status().failure)
        found = re.search(r"applying entry (\d+) ([0-9a-f]{32})\)", failure)
        assert found is not None, failure
        index, digest = found.groups()
        for node in nodes.values():
            node.stop()

        toml = tmp_path / "node.toml"
        code, shown = skip(configs[1], toml, index)
        assert code == 2 and "call of 'poison'" in shown and "nothing was changed" in shown
        code, shown = skip(configs[1], toml, index, "--hash", "00" * 16, "--yes")
        assert code == 2 and f"has hash {digest}" in shown

        # Nodes that don't skip the same have nothing to do with each other.
        assert skip(configs[1], toml, index, "--hash", digest, "--yes")[0] == 0
        nodes[1].start()
        nodes[2].start()
        wait_until(lambda: any(isinstance(e, ReplicaUnsupported) for e in events), "no refusal")
        assert nodes[1].get_status().leader_id is None
        nodes[1].stop()
        nodes[2].stop()

        for node_id in (2, 3):
            assert skip(configs[node_id], toml, index, "--hash", digest, "--yes")[0] == 0
        for node in nodes.values():
            node.start()
        wait_leader(nodes)
        nodes[2].put(b"b", b"2")
        for node in nodes.values():
            assert node.scan() == [(b"a", b"1"), (b"b", b"2")]
        assert any(isinstance(e, EntrySkipped) and e.index == int(index) for e in events)
        assert len({node.digest().hex for node in nodes.values()}) == 1
    finally:
        for node in nodes.values():
            node.stop()
    code, shown = skip(configs[1], toml, index, "--yes")
    assert code == 2 and "has applied entry" in shown
