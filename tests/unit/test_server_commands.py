"""The reference server's commands: which are found, what is refused, what goes to the log."""

from __future__ import annotations

from typing import Any

import pytest

from raftha.client.resp import ReplyError
from raftha.errors import InvalidRequest
from raftha.server.commands import Local, Read, Task, Write, find_command, keys_of, parse_once
from raftha.server.machine import INT64_MIN
from raftha.storage.state.commands import PUT, unpack

VALUE_BYTES_MAX = 1000


def words(text: str) -> list[bytes]:
    return [word.encode() for word in text.split()]


def packed(text: str) -> Any:
    command = find_command(words(text))
    assert isinstance(command, Write)
    return unpack(command.pack(words(text), VALUE_BYTES_MAX))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("GET a", Read),
        ("get a", Read),
        ("GeT a", Read),
        ("EXISTS a b", Read),
        ("MGET a b", Read),
        ("SET a b", Write),
        ("DEL a", Write),
        ("SCAN 0", Task),
        ("RAFTHA STATUS", Task),
        ("raftha digest 5", Task),
        ("RAFTHA ADD 4 127.0.0.1:7 far STANDBY", Task),
        ("RAFTHA PROMOTE 4", Task),
        ("RAFTHA BACKUPS", Task),
        ("raftha backup run - WAIT 5", Task),
        ("RAFTHA MOVE 4 ADDRESS 127.0.0.1:7 REGION far", Task),
        ("RAFTHA PROMOTE REGION far", Task),
        ("PING", Local),
        ("CLIENT SETINFO lib-name x", Local),
        ("COMMAND DOCS", Local),
    ],
)
def test_commands_are_found_in_any_spelling(text: str, kind: type) -> None:
    assert isinstance(find_command(words(text)), kind)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("GET", "ERR wrong number of arguments for 'get' command"),
        ("GET a b", "ERR wrong number of arguments for 'get' command"),
        ("Set a", "ERR wrong number of arguments for 'set' command"),
        ("INCRBY a", "ERR wrong number of arguments for 'incrby' command"),
        ("CLIENT", "ERR wrong number of arguments for 'client' command"),
        ("CLIENT SETNAME", "ERR wrong number of arguments for 'client|setname' command"),
        ("RAFTHA ONCE 1 1 1", "ERR wrong number of arguments for 'raftha|once' command"),
        ("FLUSHALL", "ERR unknown or unsupported command 'FLUSHALL'"),
        ("RAFTHA BACKUP", "ERR wrong number of arguments for 'raftha|backup' command"),
        ("RAFTHA PROMOTE", "ERR wrong number of arguments for 'raftha|promote' command"),
        ("RAFTHA ADD 4 a r s t", "ERR wrong number of arguments for 'raftha|add' command"),
        ("RAFTHA MOVE 4 REGION", "ERR wrong number of arguments for 'raftha|move' command"),
        ("RAFTHA NONSENSE", "ERR unknown or unsupported subcommand 'NONSENSE' of 'RAFTHA'"),
        ("\x01\x7f", "ERR unknown or unsupported command '??'"),
    ],
)
def test_requests_that_are_not_commands_are_refused_in_redis_words(text: str, error: str) -> None:
    with pytest.raises(ReplyError) as caught:
        find_command(words(text))
    assert str(caught.value) == error


def test_a_plain_set_is_the_built_in_put() -> None:
    assert packed("SET a b") == (PUT, b"a", b"b")


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("SET a b NX", ("set", b"a", b"b", "NX", False)),
        ("SET a b get xx", ("set", b"a", b"b", "XX", True)),
        ("MSET a 1 b 2", ("mset", b"a", b"1", b"b", b"2")),
        ("DEL a b", ("delete", b"a", b"b")),
        ("INCR a", ("incrby", b"a", 1)),
        ("DECR a", ("incrby", b"a", -1)),
        ("INCRBY a -5", ("incrby", b"a", -5)),
        ("DECRBY a 5", ("incrby", b"a", -5)),
    ],
)
def test_writes_become_calls(text: str, call: tuple[Any, ...]) -> None:
    _, name, arguments = packed(text)
    assert (name, *arguments) == call


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("SET a b NX XX", "ERR syntax error"),
        ("SET a b nonsense", "ERR syntax error"),
        ("SET a b EX 10", "ERR option EX of SET is not supported: keys don't expire"),
        ("MSET a 1 b", "ERR wrong number of arguments for 'mset' command"),
        ("INCRBY a 1.5", "ERR value is not an integer or out of range"),
        (f"DECRBY a {INT64_MIN}", "ERR decrement would overflow"),
        ("SET a " + "x" * 1001, "a value must be at most 1000 bytes, got 1001"),
        ("SET a " + "x" * 1001 + " NX", "a value must be at most 1000 bytes, got 1001"),
        ("MSET a " + "x" * 1001, "a value must be at most 1000 bytes, got 1001"),
        ("SET " + "x" * 512 + " v", "a key must be 1 to 511 bytes, got 512"),
        ("MSET " + "x" * 512 + " v", "a key must be 1 to 511 bytes, got 512"),
        ("DEL a " + "x" * 512, "a key must be 1 to 511 bytes, got 512"),
        ("INCR " + "x" * 512, "a key must be 1 to 511 bytes, got 512"),
    ],
)
def test_invalid_writes_are_refused_before_the_log(text: str, error: str) -> None:
    with pytest.raises((ReplyError, InvalidRequest)) as caught:
        packed(text)
    assert str(caught.value) == error


def test_a_command_names_a_bounded_number_of_keys() -> None:
    assert keys_of([b"MGET", b"a", b"b"]) == [b"a", b"b"]
    with pytest.raises(InvalidRequest, match="at most 1000 keys"):
        keys_of([b"MGET", *[b"a"] * 1001])
    assert packed("DEL" + " a" * 10_000)[1] == "delete"
    with pytest.raises(InvalidRequest, match="at most 10000 keys"):
        packed("DEL" + " a" * 10_001)
    with pytest.raises(InvalidRequest):
        keys_of([b"GET", b""])


def test_once_wraps_a_write() -> None:
    session, number, floor, command, inner = parse_once(words("RAFTHA ONCE 65536 7 5 INCRBY a 3"))
    assert (session, number, floor, inner) == (65536, 7, 5, words("INCRBY a 3"))
    assert isinstance(command, Write)


@pytest.mark.parametrize(
    "text",
    [
        "RAFTHA ONCE 65536 7 8 INCR a",
        "RAFTHA ONCE 65536 0 0 INCR a",
        "RAFTHA ONCE 0 1 1 INCR a",
        "RAFTHA ONCE x 1 1 INCR a",
        "RAFTHA ONCE 65536 1 1 GET a",
        "RAFTHA ONCE 65536 1 1 RAFTHA ONCE 65536 1 1 INCR a",
        "RAFTHA ONCE 65536 1 1 INCR a b",
        "RAFTHA ONCE 65536 1 1 EXEC",
    ],
)
def test_once_refuses_what_is_no_numbered_write(text: str) -> None:
    with pytest.raises(ReplyError):
        parse_once(words(text))
