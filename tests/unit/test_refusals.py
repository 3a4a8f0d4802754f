"""Each refusal is counted, and each reason is logged once."""

from __future__ import annotations

import logging

import pytest

from raftha.net import refusals
from raftha.net.refusals import LOGGED_MAX, Refusals


@pytest.fixture
def refused() -> Refusals:
    return Refusals(logging.getLogger("test"), "peer refused node=1")


def test_repeated_refusals_are_logged_once_and_counted_each_time(
    refused: Refusals, caplog: pytest.LogCaptureFixture
) -> None:
    for port in range(100):
        refused.add(f"('10.0.0.1', {port})", "certificate has expired")
        refused.add(f"('10.0.0.2', {port})", "certificate has expired")
        refused.add(f"db3.example:{port}", "another cluster\nlevel=INFO")
    assert refused.total == 300
    assert caplog.messages == [
        "peer refused node=1 from=('10.0.0.1', 0) total=1 reason=certificate has expired",
        "peer refused node=1 from=('10.0.0.2', 0) total=2 reason=certificate has expired",
        "peer refused node=1 from=db3.example:0 total=3 reason=another cluster?level=INFO",
    ]


def test_a_refusal_that_goes_on_is_logged_again_after_a_while(
    refused: Refusals, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused.add("a:1", "why")
    monkeypatch.setattr(refusals, "LOG_AGAIN_S", 0.0)
    refused.add("a:1", "why")
    assert len(caplog.messages) == 2


def test_a_stranger_with_ever_new_reasons_fills_neither_log_nor_memory(
    refused: Refusals, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(10_000):
        refused.add("a:1", f"cluster {number}")
    assert refused.total == 10_000
    assert LOGGED_MAX <= len(caplog.messages) < LOGGED_MAX + 10
