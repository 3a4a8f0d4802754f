"""Shared by integration tests: a thread on which servers run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.servers import Host


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.close()
