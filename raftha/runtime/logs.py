"""A node process's log: one line per record, to stderr, as text or as JSON.

An event (`raftha.events`) is logged with its fields. As text, they are key=value pairs at the end
of the line (logfmt). As JSON, they are members of the object, next to time, level, from and
message.
"""

from __future__ import annotations

import json
import logging
import time

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


def log_to_stderr(level: str, log_format: str) -> None:
    """Write all of this process's log records to stderr; `log_format` is text or json."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else KeyValueFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
