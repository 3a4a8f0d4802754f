"""RESP, the protocol of Redis, as the reference server and client speak it: requests and replies.

Theory of operation. hiredis parses; what it doesn't do is done here. It reserves memory for as many
items as an array's header claims, so `RequestParser` looks for claims over the limit before hiredis
sees them. Any `*` followed by too many digits is suspicious; only if hiredis stands exactly at that
byte, with nothing left to read before it, is the `*` a header, else it is part of someone's data.
A bulk string costs memory only as its bytes arrive, so these are counted and bounded by request.
hiredis has no inline commands (`PING` typed into a terminal) either; they are split here wherever a
read begins with one. One that follows a RESP request within the same read is a protocol error.

Replies are plain values: bytes are a bulk string, str a simple string, int an integer, list an
array, None null, and `{"error": text}` (a dict because that survives msgpack) an error in an array.
An error's first word says what happened to the request; `error_reply` and `error_from_reply` undo
each other, so that a client sees the class of error that the server's manager raised.

    first word      class             it happened
    ERR, others     ReplyError        no
    NOTLEADER id    NotLeader         no
    UNAVAILABLE     Unavailable       no
    OVERLOADED      Overloaded        no
    STOPPED         Stopped           no
    TRANSFERFAILED  TransferFailed    no
    SESSIONEXPIRED  SessionExpired    no
    STORAGEFULL     StorageFull       no
    INDETERMINATE   Indeterminate     maybe
    STORAGEFAILED   StorageFailed     maybe
"""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Sequence
from typing import Any, TypeAlias

import hiredis

from raftha.errors import (
    CommandFailed,
    Indeterminate,
    InvalidRequest,
    NotLeader,
    Overloaded,
    RafthaError,
    Rejected,
    SessionExpired,
    Stopped,
    StorageError,
    StorageFailed,
    StorageFull,
    TransferFailed,
    Unavailable,
)
from raftha.storage.commands import COMMAND_BYTES_MAX

logger = logging.getLogger(__name__)

Argument: TypeAlias = bytes | str | int | float

REQUEST_BYTES_MAX = COMMAND_BYTES_MAX + 64 * 1024
"""Bytes of one request; what a command may have and room for its framing."""
ARGUMENTS_MAX = 99_999
"""Arguments of one request: those whose count has at most five digits."""
INLINE_BYTES_MAX = 64 * 1024

OK = b"+OK\r\n"
NULL = b"$-1\r\n"
NULL_3 = b"_\r\n"
"""Null in RESP3, the one thing that tells our replies to both versions apart (and HELLO's map)."""

# One pattern for each type whose items hiredis reserves memory for. Three searches for a literal
# first byte run at memchr's speed, one search for a set of bytes takes five times as long.
_CLAIMS = tuple(re.compile(kind + rb"[0-9]{6}") for kind in (rb"\*", rb"~", rb">"))
_CLAIM_CUT = re.compile(rb"[*~>][0-9]{0,5}\Z")
_INCOMPLETE = object()
_ARRAY = ord("*")


class ProtocolError(RafthaError):
    """A client sent what isn't RESP, or breaks a limit; its connection is closed."""


class ReplyError(Rejected):
    """The server refused the request; the message is the error reply, its first word the kind."""


class RequestParser:
    """Turns the bytes of one connection into requests, lists of one or more bytes each."""

    __slots__ = ("_at_start", "_held", "_reader", "_request_bytes", "_request_bytes_max")

    def __init__(self, request_bytes_max: int = REQUEST_BYTES_MAX) -> None:
        self._request_bytes_max = request_bytes_max
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._at_start = True  # The next byte is the first of a request.
        self._held = b""  # Bytes that hiredis must not see yet.
        self._request_bytes = 0  # At least as many as hiredis holds of an unfinished request.

    def feed(self, data: bytes, requests: deque[Any]) -> None:
        """Append the requests that `data` completes; ProtocolError after those before the fault."""
        if self._held:
            data = self._held + data
            self._held = b""
        if self._at_start:
            data = self._take_inline(data, requests)
        cut = _CLAIM_CUT.search(data, max(0, len(data) - 6))
        if cut:  # The rest of the digits, if these are that, come with the next read.
            self._held = data[cut.start() :]
            data = data[: cut.start()]
        position = 0
        for claim in _find_claims(data):
            self._parse(data[position:claim], requests)
            position = claim
            if not self._reader.has_data():
                raise ProtocolError("invalid multibulk length")
        self._parse(data[position:] if position else data, requests)

    def _parse(self, data: bytes, requests: deque[Any]) -> None:
        if not data:
            return
        reader = self._reader
        reader.feed(data)
        self._request_bytes += len(data)
        try:
            while reader.has_data():
                request = reader.gets()
                if request is _INCOMPLETE:
                    self._at_start = False
                    if self._request_bytes > self._request_bytes_max:
                        raise ProtocolError(
                            f"a request may have at most {self._request_bytes_max} bytes"
                        )
                    return
                self._request_bytes = len(data)
                if request:
                    requests.append(_checked(request))
        except hiredis.ProtocolError as error:
            raise ProtocolError(str(error).removeprefix("Protocol error, ")) from error
        self._at_start = True
        self._request_bytes = 0

    def _take_inline(self, data: bytes, requests: deque[Any]) -> bytes:
        """Split off the lines in front that don't begin with `*`; return the rest."""
        position = 0
        while position < len(data) and data[position] != _ARRAY:
            newline = data.find(b"\n", position)
            if (newline if newline >= 0 else len(data)) - position > INLINE_BYTES_MAX:
                raise ProtocolError("too big inline request")
            if newline < 0:
                self._held = data[position:]
                return b""
            line = data[position:newline]
            position = newline + 1
            words = line.split()
            if b'"' in line or b"'" in line:
                raise ProtocolError("quotes in an inline request are not supported")
            if words and words[0].upper() in {b"POST", b"HOST:"}:
                # A web page can make a browser post to this port; its lines must not be obeyed.
                raise ProtocolError("this is HTTP")
            if words:
                requests.append(words)
        return data[position:] if position else data


def _find_claims(data: bytes) -> list[int]:
    """Where in `data` a header may claim more than ARGUMENTS_MAX items."""
    claims = []
    for pattern in _CLAIMS:
        if pattern.search(data):
            claims += [match.start() for match in pattern.finditer(data)]
    claims.sort()
    return claims


def _checked(request: Any) -> list[bytes]:
    if type(request) is not list:
        raise ProtocolError("expected an array of bulk strings")
    for argument in request:
        if type(argument) is not bytes:
            raise ProtocolError("expected an array of bulk strings")
    return request


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
    """Encode a reply; see the module's docstring for which value is what."""
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
    """Encode an error whose first word is already there."""
    return b"-%b\r\n" % _one_line(text)


def _one_line(text: str) -> bytes:
    return text.replace("\r", " ").replace("\n", " ").encode(errors="replace")


# In order: the first class that fits gives the word.
_WORDS: tuple[tuple[type[RafthaError], str], ...] = (
    (Unavailable, "UNAVAILABLE"),
    (Overloaded, "OVERLOADED"),
    (Stopped, "STOPPED"),
    (TransferFailed, "TRANSFERFAILED"),
    (SessionExpired, "SESSIONEXPIRED"),
    (StorageFull, "STORAGEFULL"),
    (StorageError, "STORAGEFAILED"),
    (Indeterminate, "INDETERMINATE"),
)
_CLASSES: dict[str, type[RafthaError]] = {
    "UNAVAILABLE": Unavailable,
    "OVERLOADED": Overloaded,
    "STOPPED": Stopped,
    "TRANSFERFAILED": TransferFailed,
    "SESSIONEXPIRED": SessionExpired,
    "STORAGEFULL": StorageFull,
    "STORAGEFAILED": StorageFailed,
    "INDETERMINATE": Indeterminate,
}


def error_reply(error: BaseException) -> bytes:
    """Encode what a request ended with; an error nobody foresaw is logged and indeterminate."""
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
    """The error that `error_reply` made this text from, or ReplyError if the word is not known."""
    word, _, detail = text.partition(" ")
    if word == "NOTLEADER":
        leader = detail.partition(" ")[0]
        return NotLeader(int(leader) if leader.isdigit() and leader != "0" else None)
    kind = _CLASSES.get(word)
    return kind(detail) if kind else ReplyError(text)
