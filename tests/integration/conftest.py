"""Shared by integration tests: a thread on which servers run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from raftha.node import founding
from tests.support.servers import Host


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
