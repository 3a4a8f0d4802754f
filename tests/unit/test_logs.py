"""Log lines, as text and as JSON."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from raftha.events import ReplicaConnected, StorageFailure
from raftha.runtime import logs
from raftha.runtime.logs import JsonFormatter, KeyValueFormatter, LineWriter, log_event
from tests.support.conditions import wait_until

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


def test_a_reader_that_stops_holds_up_nothing_and_hears_what_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The node's thread logs: a full pipe must not stop it."""
    monkeypatch.setattr(logs, "LINES_MAX", 20)
    reading, writing = os.pipe()
    stream = os.fdopen(writing, "w")
    handler = LineWriter(stream)
    logger = logging.Logger("node")
    logger.addHandler(handler)
    began = time.monotonic()
    for number in range(2000):
        logger.info("%d %s", number, "x" * 500)  # 1 MB; a pipe takes at most 64 KiB.
    assert time.monotonic() - began < 5
    with os.fdopen(reading) as pipe, ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.readlines)
        wait_until(handler._lines.empty, "all that was kept is read")
        logger.info("after")
        handler.close()
        stream.close()
        *lines, last = read.result()
    lost = [int(line.split()[0]) for line in lines if "lines of the log are lost" in line]
    numbers = [int(line.split()[0]) for line in lines if line.endswith("x\n")]
    assert numbers == sorted(numbers)
    assert 0 < len(numbers) == 2000 - sum(lost) < 1000
    assert last == "after\n"


def test_the_end_of_the_process_writes_what_is_queued() -> None:
    code = (
        "import logging, raftha.runtime.logs as logs; logs.log_to_stderr('info', 'text')\n"
        "for n in range(1000): logging.info('line %d', n)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [line.split()[-1] for line in done.stderr.splitlines()] == [str(n) for n in range(1000)]
