"""A node process's log: one line per record, to stderr, as text or as JSON.

An event (`raftha.events`) is logged with its fields. As text, they are key=value pairs at the end
of the line (logfmt). As JSON, they are members of the object, next to time, level, from and
message.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import sys
import threading
import time
from typing import TextIO

from raftha.events import (
    BackupFailure,
    BackupMissing,
    HaEvent,
    LogsDiffer,
    MemberCloned,
    ReplicaDiverged,
    ReplicaLostLog,
    RepositoryConflicted,
    VerificationFailed,
)

LINES_MAX = 10_000
"""Lines that wait for a slow reader of the log."""
CLOSE_S = 1.0
"""How long the end of the process waits for such a reader."""
LEVELS = ("debug", "info", "warning", "error")
_ERRORS = (
    BackupFailure, BackupMissing, LogsDiffer, MemberCloned, ReplicaDiverged, ReplicaLostLog,
    RepositoryConflicted, VerificationFailed,
)  # fmt: skip
"""Events that say that acknowledged data, or a backup of it, is lost, differs somewhere or may;
others inform."""
_TIME = "%Y-%m-%dT%H:%M:%S"


class KeyValueFormatter(logging.Formatter):
    """One line per record: time, level and logger first, then the message's own key=value pairs."""

    def __init__(self) -> None:
        super().__init__(
            "time=%(asctime)s.%(msecs)03dZ level=%(levelname)s from=%(name)s %(message)s",
            datefmt=_TIME,
        )
        self.converter = time.gmtime


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def __init__(self) -> None:
        super().__init__(datefmt=_TIME)
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        values: dict[str, object] = {
            "time": f"{self.formatTime(record, _TIME)}.{record.msecs:03.0f}Z",
            "level": record.levelname,
            "from": record.name,
            "message": record.getMessage(),
        }
        event = getattr(record, "event", None)
        if isinstance(event, HaEvent):
            values |= {"event": type(event).__name__, **event_fields(event)}
        if record.exc_info:
            values["exception"] = self.formatException(record.exc_info)
        return json.dumps(values, default=str)


def event_fields(event: HaEvent) -> dict[str, object]:
    """Return an event's fields by name, in order, without its stamps: a line has its own time."""
    return {"reporter": event.reporter} | event.details()


def log_event(logger: logging.Logger, event: HaEvent) -> None:
    """Write one line for an event."""
    fields = event_fields(event).items()
    values = " ".join(f"{name}={_quoted(str(value))}" for name, value in fields)
    level = logging.ERROR if isinstance(event, _ERRORS) else logging.INFO
    logger.log(level, "event=%s %s", type(event).__name__, values, extra={"event": event})


def _quoted(value: str) -> str:
    """Format a value for logfmt: in double quotes if its end would be ambiguous."""
    is_plain = value and value.isprintable() and not set(value) & set(' "=')
    return value if is_plain else json.dumps(value, ensure_ascii=False)


class LineWriter(logging.Handler):
    """Writes each record as a line, on a thread of its own.

    A pipe that nothing reads, as of a log collector that has stopped, blocks its writer. It must
    not be the node's thread, which writes most of the lines. While the reader is behind by
    `LINES_MAX`, new lines are lost, and counted.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(LINES_MAX)
        self._lost = 0
        self._thread = threading.Thread(target=self._write_all, name="raftha-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the line of a record; called with the handler's lock."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - as in every handler of logging
            self.handleError(record)
            return
        if self._lost and not self._lines.full():
            lost, self._lost = self._lost, 0
            self._queue(f"{lost} lines of the log are lost: they were not read in time")
        self._queue(line)

    def _queue(self, line: str) -> None:
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._lost += 1

    def close(self) -> None:
        """Write what is queued, if that is quick."""
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(None)
            self._thread.join(CLOSE_S)
        super().close()

    def _write_all(self) -> None:
        while (line := self._lines.get()) is not None:
            with contextlib.suppress(OSError, ValueError):  # The stream was closed.
                self._stream.write(line + "\n")
                self._stream.flush()


def log_to_stderr(level: str, log_format: str) -> None:
    """Write all of this process's log records to stderr; `log_format` is text or json."""
    handler = LineWriter(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else KeyValueFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
