"""RESP, the protocol of Redis, as the reference server and client speak it: requests and replies.

Theory of operation. A server must not trust what a client claims: hiredis reserves memory for as
many items as an array's header says, at any depth, before one of them has arrived. So hiredis
parses a read only if it holds whole requests and nothing suspicious, which is nearly always the
case. It keeps nothing from one read to the next, so the memory that it reserves is bounded by the
size of a read and is freed at once. Everything else (requests cut by the end of a read, a hundred
arguments, inline requests as typed into a terminal, faults) goes through the slower parser of this
module, which checks each header before it relies on it.

Replies are plain values: bytes are a bulk string, str a simple string, int an integer, list an
array, None null, and `{"error": text}` (a dict because that survives msgpack) an error in an array.
The first word of an error says what happened to the request. `error_from_reply` is the inverse of
`error_reply`, so a client raises the class of error that the server's manager raised.

    first word      class                    it happened
    ERR, others     ReplyError               no
    NOTLEADER id    NotLeader                no
    UNAVAILABLE     Unavailable              no
    OVERLOADED      Overloaded               no
    STOPPED         Stopped                  no
    TRANSFERFAILED  TransferFailed           no
    CHANGEPENDING   MembershipChangePending  no
    REPLICATOOSLOW  ReplicaTooSlow           not yet: the node is a learner
    UPGRADEPENDING  UpgradePending           no
    SESSIONEXPIRED  SessionExpired           not by this try; maybe by an earlier one
    STORAGEFULL     StorageFull              no
    ACKTIMEOUT      AcknowledgementTimeout   yes, but not on all the disks wanted
    INDETERMINATE   Indeterminate            maybe
    STORAGEFAILED   StorageFailed            maybe
"""

from __future__ import annotations

import logging
import re
import sys
from collections import deque
from collections.abc import Sequence
from typing import Any, TypeAlias

from raftha.errors import (
    AcknowledgementTimeout,
    BackupFailed,
    BackupInProgress,
    CommandFailed,
    Indeterminate,
    InvalidRequest,
    MembershipChangePending,
    NotLeader,
    Overloaded,
    RafthaError,
    RecoveryAborted,
    RecoveryInProgress,
    Rejected,
    ReplicaTooSlow,
    RepositoryError,
    SessionExpired,
    Stopped,
    StorageError,
    StorageFailed,
    StorageFull,
    TransferFailed,
    Unavailable,
    UpgradePending,
)
from raftha.extras import extra
from raftha.storage.state.commands import COMMAND_BYTES_MAX

with extra("client"):
    import hiredis

logger = logging.getLogger(__name__)

Argument: TypeAlias = bytes | str | int | float

REQUEST_BYTES_MAX = COMMAND_BYTES_MAX + 64 * 1024
"""The most bytes of one request: the limit of a command, and room for its framing."""
ARGUMENTS_MAX = 99_999
"""The most arguments of one request: a count of at most five digits."""
INLINE_BYTES_MAX = 64 * 1024

OK = b"+OK\r\n"
NULL = b"$-1\r\n"
NULL_3 = b"_\r\n"
"""Null in RESP3. Only this and the map of HELLO differ between the two versions."""

# Headers that claim a hundred items or more, a pattern for each type for which hiredis reserves
# memory. Three searches for one first byte run at memchr's speed; one search for a set doesn't.
_SUSPICIOUS = tuple(re.compile(kind + rb"[0-9]{3}") for kind in (rb"\*", rb"~", rb">"))
_HEADER_BYTES_MAX = 24
_INCOMPLETE = object()
_ARRAY, _BULK = b"*$"


class ProtocolError(RafthaError):
    """A client sent bytes that are not RESP or break a limit; its connection is closed."""


class ReplyError(Rejected):
    """The server refused the request; the first word of the message is the kind of error."""


class RequestParser:
    """Parses the bytes of one connection into requests, each a list of one or more bytes."""

    def __init__(
        self, request_bytes_max: int = REQUEST_BYTES_MAX, arguments_max: int = ARGUMENTS_MAX
    ) -> None:
        """The limits may be raised later: once the client has authenticated, say."""
        self.request_bytes_max = request_bytes_max
        self.arguments_max = arguments_max
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._parts: list[bytes] = []  # Bytes not parsed yet.
        self._parts_bytes = 0
        self._position = 0  # In the first part: what is before it is parsed.
        self._needed_bytes = 0  # Bytes that must arrive before parsing can go on.
        self._arguments: list[bytes] = []  # Of a request that is not complete.
        self._missing = 0  # Arguments to come.
        self._request_bytes = 0

    @property
    def held_bytes(self) -> int:
        """Bytes of a request that is not complete."""
        return self._parts_bytes + (self._request_bytes if self._missing else 0)

    def clear(self) -> None:
        """Let go of all bytes, at the end: a connection may stay in memory for long after it."""
        self._parts, self._arguments, self._parts_bytes, self._missing = [], [], 0, 0

    def feed(self, data: bytes, requests: deque[Any]) -> None:
        """Append the requests that `data` completes; ProtocolError after those before the fault."""
        if not self._parts and not self._missing and data[0] == _ARRAY:
            whole = self._parse_whole(data)
            if whole is not None:
                requests.extend(whole)
                return
        self.add(data)
        if self._parts_bytes >= self._needed_bytes:
            data = b"".join(self._parts)
            rest = data[self._parse(data, requests) :]
            self._parts = [rest] if rest else []
            self._parts_bytes = len(rest)

    def add(self, data: bytes) -> None:
        """Keep bytes for `parse_one` or the next `feed`."""
        if self._position:
            self._parts[0] = self._parts[0][self._position :]
            self._position = 0
        self._parts.append(data)
        self._parts_bytes += len(data)

    def parse_one(self, requests: deque[Any]) -> bool:
        """Append the next request of the bytes that were added; False if none is complete.

        Slower than `feed`, and bounded by the limits from the first byte on: hiredis, which knows
        none, takes no part.
        """
        if not self._parts or self._parts_bytes < self._needed_bytes:
            return False
        data = b"".join(self._parts)
        count = len(requests)
        start = self._position
        self._position = self._parse(data, requests, start, count + 1)
        self._parts = [data]
        self._parts_bytes -= self._position - start
        return len(requests) > count

    def take_rest(self) -> bytes:
        """Take back the bytes after the last whole request."""
        assert not self._missing
        rest = b"".join(self._parts)[self._position :]
        self._parts, self._parts_bytes, self._position, self._needed_bytes = [], 0, 0, 0
        return rest

    def _parse_whole(self, data: bytes) -> list[list[bytes]] | None:
        """Parse with hiredis; None if `data` is anything but whole requests."""
        for pattern in _SUSPICIOUS:
            if pattern.search(data):
                return None
        reader = self._reader
        reader.feed(data)
        requests = []
        try:
            while reader.has_data():
                request = reader.gets()
                if type(request) is not list or not request:
                    break
                for argument in request:
                    if type(argument) is not bytes:
                        break
                else:
                    requests.append(request)
                    continue
                break
            else:
                return requests
        except (hiredis.HiredisError, TypeError, ValueError):
            # Some input has no Python value, such as a map as the key of a map.
            pass  # The other parser reports the fault, after the requests before it.
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        return None

    def _parse(
        self, data: bytes, requests: deque[Any], position: int = 0, requests_max: int = sys.maxsize
    ) -> int:
        """Parse as far as possible and return the position; set `_needed_bytes` for the rest."""
        self._needed_bytes = 0
        while position < len(data) and len(requests) < requests_max:
            if self._missing:
                end = self._parse_argument(data, position)
                if end and not self._missing:
                    requests.append(self._arguments)
                    self._arguments = []
            elif data[position] == _ARRAY:
                end = self._parse_count(data, position)
            else:
                inline_max = min(INLINE_BYTES_MAX, self.request_bytes_max)
                end = _parse_inline(data, position, requests, inline_max)
            if not end:
                break
            position = end
        return position

    def _parse_count(self, data: bytes, position: int) -> int:
        """Read the header of a request; return where it ends, 0 if it is not complete."""
        end = _find_header_end(data, position)
        if end:
            count = _read_length(data, position, end)
            if count > self.arguments_max:
                raise ProtocolError("invalid multibulk length")
            self._missing = max(count, 0)
            self._request_bytes = 0
        return end

    def _parse_argument(self, data: bytes, position: int) -> int:
        """Read an argument; return where it ends, 0 if it is not complete."""
        if data[position] != _BULK:
            raise ProtocolError(f"expected '$', got {chr(data[position])!r}")
        start = _find_header_end(data, position)
        if not start:
            return 0
        length = _read_length(data, position, start)
        if not 0 <= length <= self.request_bytes_max:
            raise ProtocolError("invalid bulk length")
        end = start + length + 2
        if self._request_bytes + end - position > self.request_bytes_max:
            raise ProtocolError(f"a request may have at most {self.request_bytes_max} bytes")
        if end > len(data):
            self._needed_bytes = end - position
            return 0
        self._request_bytes += end - position
        self._arguments.append(data[start : start + length])
        self._missing -= 1
        return end


def _find_header_end(data: bytes, position: int) -> int:
    end = data.find(b"\r\n", position, position + _HEADER_BYTES_MAX)
    if end < 0:
        if len(data) - position >= _HEADER_BYTES_MAX:
            raise ProtocolError("a header is too long")
        return 0
    return end + 2


def _read_length(data: bytes, position: int, end: int) -> int:
    digits = data[position + 1 : end - 2]
    if digits.isdigit():
        return int(digits)
    if digits[:1] == b"-" and digits[1:].isdigit():
        return -1
    raise ProtocolError("invalid length")


def _parse_inline(data: bytes, position: int, requests: deque[Any], bytes_max: int) -> int:
    """Read a line of words; return where it ends, 0 if it is not complete."""
    newline = data.find(b"\n", position)
    end = newline if newline >= 0 else len(data)
    if end - position > bytes_max:
        raise ProtocolError("too big inline request")
    if newline < 0:
        return 0
    line = data[position:newline]
    if b'"' in line or b"'" in line:
        raise ProtocolError("quotes in an inline request are not supported")
    words = line.split()
    if words and words[0].upper() in {b"POST", b"HOST:"}:
        # A web page can make a browser post to this port; its lines must not run as commands.
        raise ProtocolError("this is HTTP")
    if words:
        requests.append(words)
    return newline + 1


def pack_request(arguments: Sequence[Argument]) -> bytes:
    """Encode a request; InvalidRequest if it is empty or an argument is of another type."""
    if not arguments:
        raise InvalidRequest("a request needs a command")
    try:
        packed: bytes = hiredis.pack_command(tuple(arguments))  # type: ignore[arg-type]  # any number
    except TypeError as error:
        raise InvalidRequest(f"arguments must be bytes, str, int or float: {error}") from error
    return packed


def encode(value: Any, null: bytes = NULL) -> bytes:
    """Encode a reply; the module's docstring lists the values."""
    kind = type(value)
    if kind is bytes:
        return b"$%d\r\n%b\r\n" % (len(value), value)
    if value is None:
        return null
    if kind is int or kind is bool:
        return b":%d\r\n" % value
    if kind is str:
        return b"+%b\r\n" % _one_line(value)
    if kind is list or kind is tuple:
        return b"*%d\r\n%b" % (len(value), b"".join([encode(item, null) for item in value]))
    assert kind is dict and "error" in value, f"{kind} is not a reply"
    return error_line(value["error"])


def error_line(text: str) -> bytes:
    """Encode an error whose text has its first word already."""
    return b"-%b\r\n" % _one_line(text)


def _one_line(text: str) -> bytes:
    return text.replace("\r", " ").replace("\n", " ").encode(errors="replace")


# In order: the first class that matches gives the word.
_WORDS: tuple[tuple[type[RafthaError], str], ...] = (
    (Unavailable, "UNAVAILABLE"),
    (Overloaded, "OVERLOADED"),
    (Stopped, "STOPPED"),
    (TransferFailed, "TRANSFERFAILED"),
    (MembershipChangePending, "CHANGEPENDING"),
    (ReplicaTooSlow, "REPLICATOOSLOW"),
    (BackupInProgress, "BACKUPINPROGRESS"),
    (BackupFailed, "BACKUPFAILED"),
    (RecoveryAborted, "RECOVERYABORTED"),
    (RecoveryInProgress, "RECOVERYINPROGRESS"),
    (RepositoryError, "REPOSITORYFAILED"),
    (UpgradePending, "UPGRADEPENDING"),
    (SessionExpired, "SESSIONEXPIRED"),
    (StorageFull, "STORAGEFULL"),
    (StorageError, "STORAGEFAILED"),
    (AcknowledgementTimeout, "ACKTIMEOUT"),
    (Indeterminate, "INDETERMINATE"),
)
_CLASSES: dict[str, type[RafthaError]] = {
    "UNAVAILABLE": Unavailable,
    "OVERLOADED": Overloaded,
    "STOPPED": Stopped,
    "TRANSFERFAILED": TransferFailed,
    "CHANGEPENDING": MembershipChangePending,
    "REPLICATOOSLOW": ReplicaTooSlow,
    "BACKUPINPROGRESS": BackupInProgress,
    "BACKUPFAILED": BackupFailed,
    "RECOVERYABORTED": RecoveryAborted,
    "RECOVERYINPROGRESS": RecoveryInProgress,
    "REPOSITORYFAILED": RepositoryError,
    "UPGRADEPENDING": UpgradePending,
    "SESSIONEXPIRED": SessionExpired,
    "STORAGEFULL": StorageFull,
    "STORAGEFAILED": StorageFailed,
    "ACKTIMEOUT": AcknowledgementTimeout,
    "INDETERMINATE": Indeterminate,
}


def error_reply(error: BaseException) -> bytes:
    """Encode the error of a request; an unexpected error is logged, and is indeterminate."""
    match error:
        case ReplyError():
            return error_line(str(error))
        case CommandFailed(kind=ReplyError.__name__, detail=detail):
            return error_line(detail)
        case ProtocolError():
            return error_line(f"ERR Protocol error: {error}")
        case NotLeader(leader=leader):
            return error_line(f"NOTLEADER {leader or 0} {error}")
    for kind, word in _WORDS:
        if isinstance(error, kind):
            return error_line(f"{word} {error}")
    if isinstance(error, Rejected):
        return error_line(f"ERR {error}")
    logger.error("unexpected error from the node", exc_info=error)
    return error_line(f"INDETERMINATE internal error: {type(error).__name__}")


def error_from_reply(text: str) -> RafthaError:
    """Return the error that `error_reply` encoded, or ReplyError if the word is not known."""
    word, _, detail = text.partition(" ")
    if word == "NOTLEADER":
        leader = detail.partition(" ")[0]
        return NotLeader(int(leader) if leader.isdigit() and leader != "0" else None)
    kind = _CLASSES.get(word)
    return kind(detail) if kind else ReplyError(text)
