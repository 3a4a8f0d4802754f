"""Shared by all tests: the check that this checkout is complete, and hypothesis's settings."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.support.stores import Stores

_LINK = Path(__file__).parent.parent / "raftha" / "storage"

settings.register_profile("default", deadline=None, max_examples=50)
settings.register_profile(
    "ci",
    deadline=None,
    max_examples=100,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("thorough", deadline=None, max_examples=2000)
_PROFILE = "ci" if "CI" in os.environ else "default"
_PROFILE = os.environ.get("HYPOTHESIS_PROFILE", _PROFILE)
settings.load_profile(_PROFILE)
_TIMEOUTS_S = {"thorough": 3600}
"""A profile's time limit for a test, where it differs from setup.cfg."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option of the tests in `tests/datadriven`."""
    parser.addoption(
        "--rewrite", action="store_true", help="write the core's transcripts as they are now"
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Share the tests among workers, if there are any: `pytest -n 2`."""
    from tests.support.both_ends import BothEnds

    return BothEnds(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give a profile that tries many examples the time for them."""
    if _PROFILE in _TIMEOUTS_S:
        for item in items:
            item.add_marker(pytest.mark.timeout(_TIMEOUTS_S[_PROFILE]), append=False)


def pytest_configure(config: pytest.Config) -> None:
    """Start in the same state everywhere; explain a checkout without symbolic links."""
    del config
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell starts background jobs with SIGINT ignored, and then all processes of the tests
        # would ignore the Ctrl-C that they must obey.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not (_LINK / "__init__.py").is_file():
        raise pytest.UsageError(
            f"{_LINK} is not a link to the folder storage. The checkout was made without symbolic"
            " links: run `git config core.symlinks true` and `git checkout -- raftha/storage`."
        )


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    """Object stores, each started when a test first asks for it."""
    running = Stores(tmp_path_factory.mktemp("stores"))
    yield running
    running.close()
