"""The README's examples do what they say."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from raftha.errors import CommandFailed
from raftha.server import ServerConfig
from raftha.testing.processes import reserve_port

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def blocks(language: str, containing: str = "") -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return [block for block in found if containing in block]


def run(code: str, names: dict[str, Any]) -> None:
    exec(compile(code, "README.md", "exec"), names)


@pytest.mark.slow
def test_the_library_s_examples_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With one member instead of three, so that one process is a majority."""
    first, second = blocks("python", containing="HaManager")
    with reserve_port() as reserved:
        members = {1: f"127.0.0.1:{reserved.getsockname()[1]}"}
        first, count = re.subn(r"^members = .*$", f"members = {members}", first, flags=re.MULTILINE)
        assert count == 1
        first = first.replace('"data/1"', repr(str(tmp_path)))
        names: dict[str, Any] = {}
        run(first, names)
        assert capsys.readouterr().out == "[(b'key', b'other')] leader\n"
        with pytest.raises(CommandFailed, match="not enough money"):
            run(second, names)
        with names["raftha"].HaManager(names["config"], state_machine=names["Bank"]()) as ha:
            ha.put(b"alice", b"7")
            assert ha.execute("transfer", b"alice", b"bob", 5).result == 2
            assert ha.get(b"bob") == b"5"


@pytest.mark.slow
def test_the_local_cluster_s_example_runs() -> None:
    (example,) = blocks("python", containing="LocalCluster")
    run(example, {})


def test_the_configurations_of_the_examples_are_valid_and_of_one_cluster() -> None:
    first, joining = (ServerConfig.from_mapping(tomllib.loads(text)) for text in blocks("toml")[:2])
    assert first.ha.node_id == 1
    assert len(first.ha.members) == 3
    assert joining.ha.node_id not in first.ha.members
    assert joining.ha.cluster_id == first.ha.cluster_id


def test_the_secure_configuration_s_example_may_listen_anywhere() -> None:
    plain = blocks("toml")[0]
    (secure,) = blocks("toml", containing="tls_ca")
    members = {str(i): f"db{i}.example:7101" for i in (1, 2, 3)}
    table = {**tomllib.loads(plain), **tomllib.loads(secure)}
    config = ServerConfig.from_mapping({**table, "members": members, "listen": "0.0.0.0:6381"})
    assert config.ha.cluster_name == "orders"


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    folder = Path(__file__).parents[2]
    assert [link for link in links if not (folder / link).exists()] == []
