"""Shared by integration tests: a thread for servers, and the logs of nodes when a test fails."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from raftha.node import founding
from raftha.testing import LocalCluster
from tests.support.servers import Host

_LOG_BYTES = 6_000
"""How much of the end of each node's log a failed test shows."""


@pytest.fixture(scope="module", autouse=True)
def _no_listening() -> Iterator[None]:
    """A node that is alone in its members founds its cluster at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(founding, "LISTEN_S", 0.0)
        yield


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the nodes of a failed test logged: a rare failure may never be seen again."""
    report = yield
    if call.when == "call" and report.failed:
        for path in _logs(getattr(item, "funcargs", {})):
            end = path.read_bytes()[-_LOG_BYTES:].decode("utf-8", "replace")
            report.sections.append((f"end of {path}", end))
    return report


def _logs(fixtures: Mapping[str, Any]) -> list[Path]:
    """The nodes' logs that the test's fixtures have: clusters, and the test's own folder."""
    paths: set[Path] = set()
    for fixture in fixtures.values():
        if isinstance(fixture, LocalCluster):
            paths.update(fixture.log_path(node_id) for node_id in fixture.node_ids)
        elif isinstance(fixture, Path):
            paths.update(fixture.rglob("*.log"))
    return sorted(path for path in paths if path.is_file())
