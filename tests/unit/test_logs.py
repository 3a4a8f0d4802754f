"""Log lines, as text and as JSON."""

from __future__ import annotations

import json
import logging

import pytest

from raftha.events import ReplicaConnected, StorageFailure
from raftha.runtime.logs import JsonFormatter, KeyValueFormatter, log_event

EVENT = ReplicaConnected(reporter=1, node_id=2)


def record(message: str, *args: object) -> logging.LogRecord:
    made = logging.LogRecord("raftha.node", logging.INFO, "", 0, message, args, None)
    made.created, made.msecs = 0.0, 5.0
    return made


def test_text_is_keys_and_values() -> None:
    line = KeyValueFormatter().format(record("became leader term=%d", 7))
    assert line == "time=1970-01-01T00:00:00.005Z level=INFO from=raftha.node became leader term=7"


def test_json_is_one_object_a_line() -> None:
    line = JsonFormatter().format(record('said "%s"', "two\nlines"))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00.005Z",
        "level": "INFO",
        "from": "raftha.node",
        "message": 'said "two\nlines"',
    }


def test_json_has_the_exception() -> None:
    failed = record("failed")
    try:
        raise ValueError("seven")
    except ValueError as error:
        failed.exc_info = (ValueError, error, error.__traceback__)
    assert "ValueError: seven" in json.loads(JsonFormatter().format(failed))["exception"]


def test_an_event_has_its_fields_in_both(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        log_event(logging.getLogger("raftha.test"), EVENT)
    (logged,) = caplog.records
    assert logged.getMessage() == "event=ReplicaConnected reporter=1 node_id=2"
    values = json.loads(JsonFormatter().format(logged))
    assert (values["event"], values["reporter"], values["node_id"]) == ("ReplicaConnected", 1, 2)


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("full", "full"),
        ("", '""'),
        ("the disk is full", '"the disk is full"'),
        ('it said "no"', r'"it said \"no\""'),
        ("a=b", '"a=b"'),
        ("two\nlines", r'"two\nlines"'),
        ("Größe", "Größe"),
    ],
)
def test_a_value_in_text_is_quoted_where_it_could_be_misread(
    caplog: pytest.LogCaptureFixture, reason: str, shown: str
) -> None:
    with caplog.at_level(logging.INFO):
        log_event(logging.getLogger("raftha.test"), StorageFailure(reporter=1, reason=reason))
    assert caplog.records[0].getMessage() == f"event=StorageFailure reporter=1 reason={shown}"
