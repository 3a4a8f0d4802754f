"""The format of commands: callers pack and check them, replicas unpack them.

Theory of operation. A command is a msgpack array `(op, ...)`, packed once by its submitter; the
same bytes go to the log, over the network and into the archive. Packing checks the limits and
raises `InvalidRequest` at the caller. Applying checks them again: a command that breaks a limit or
can't be parsed fails on every replica alike, and never stops a node. Checks at apply time use
constants of the format, never settings, because replicas with different settings would disagree.

    op                 fields
    1  PUT             key, value
    2  DELETE          key
    3  COMPARE_AND_SET key, expected or nil (no such key), value or nil (delete)
    4  TRANSACTION     conditions, operations, operations if a condition doesn't hold
    5  CALL            name, arguments                   (a command of the user's state machine)
    6  GET             key                               (only inside transactions)
    conditions: (1, key, value) equals   (2, key) exists   (3, key) is missing
    operations: (PUT, key, value)  (DELETE, key)  (GET, key)

Keys and values are bytes. Text occurs only as a command's name or argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import msgpack

from raftha.config import KEY_BYTES_MAX
from raftha.config.limits import VALUE_BYTES_MAX
from raftha.errors import InvalidRequest

PUT, DELETE, COMPARE_AND_SET, TRANSACTION, CALL, GET = range(1, 7)
EQUALS, EXISTS, MISSING = range(1, 4)

COMMAND_BYTES_MAX = VALUE_BYTES_MAX + 4096
"""The largest packed command: a value of the largest size, its key, and 4 KiB for the rest."""
TRANSACTION_PARTS_MAX = 10_000
"""Conditions and operations of one transaction, taken together."""
ARRAY_MAX = 65_536
"""Items of any array or map inside a command; also the most commands in one group."""
NAME_MAX = 128
"""Characters of a command's name."""

_ARRAY_32 = b"\xdd"
_pack_bytes = msgpack.Packer().pack
"""One packer for all threads, for numbers and bytes: it packs these without releasing the GIL. To
make one for each command takes as long as to use it. Callers' objects get one of their own."""


class Equals(NamedTuple):
    """A condition: `key` exists and its value is `value`."""

    key: bytes
    value: bytes


class Exists(NamedTuple):
    """A condition: `key` exists."""

    key: bytes


class Missing(NamedTuple):
    """A condition: `key` does not exist."""

    key: bytes


class Put(NamedTuple):
    """An operation: set `key` to `value`. Its result is None."""

    key: bytes
    value: bytes


class Delete(NamedTuple):
    """An operation: remove `key`. Its result is True if the key existed."""

    key: bytes


class Get(NamedTuple):
    """An operation: read `key`. Its result is the value, or None if the key doesn't exist."""

    key: bytes


Condition: TypeAlias = Equals | Exists | Missing
Operation: TypeAlias = Put | Delete | Get


def check_key(key: bytes) -> None:
    """Raise InvalidRequest unless `key` is bytes, and 1 to 511 of them."""
    if type(key) is not bytes:
        raise _not_bytes("a key", key)
    if not 1 <= len(key) <= KEY_BYTES_MAX:
        raise InvalidRequest(f"a key must be 1 to {KEY_BYTES_MAX} bytes, got {len(key)}")


def check_value(value: bytes, value_bytes_max: int = VALUE_BYTES_MAX) -> None:
    """Raise InvalidRequest unless `value` is bytes, and at most `value_bytes_max` of them."""
    if type(value) is not bytes:
        raise _not_bytes("a value", value)
    if len(value) > value_bytes_max:
        raise InvalidRequest(f"a value must be at most {value_bytes_max} bytes, got {len(value)}")


def pack_put(key: bytes, value: bytes, value_bytes_max: int = VALUE_BYTES_MAX) -> bytes:
    """Pack "set `key` to `value`"."""
    check_key(key)
    check_value(value, value_bytes_max)
    packed: bytes = _pack_bytes((PUT, key, value))
    return packed


def pack_delete(key: bytes) -> bytes:
    """Pack "remove `key`"; the result is True if the key existed."""
    check_key(key)
    return _pack((DELETE, key))


def pack_compare_and_set(
    key: bytes, expected: bytes | None, value: bytes | None, value_bytes_max: int = VALUE_BYTES_MAX
) -> bytes:
    """Pack "if `key` is `expected`, set it to `value`"; None means "no such key" in both."""
    check_key(key)
    if expected is not None:
        check_value(expected)
    if value is not None:
        check_value(value, value_bytes_max)
    return _bounded(_pack((COMPARE_AND_SET, key, expected, value)))


def pack_transaction(
    conditions: Sequence[Condition],
    operations: Sequence[Operation],
    otherwise: Sequence[Operation] = (),
    value_bytes_max: int = VALUE_BYTES_MAX,
) -> bytes:
    """Pack "if all `conditions` hold do `operations`, else do `otherwise`", atomically."""
    parts = len(conditions) + len(operations) + len(otherwise)
    if parts > TRANSACTION_PARTS_MAX:
        raise InvalidRequest(
            f"a transaction has at most {TRANSACTION_PARTS_MAX} parts, got {parts}"
        )
    packed = (
        TRANSACTION,
        [_condition(condition) for condition in conditions],
        [_operation(operation, value_bytes_max) for operation in operations],
        [_operation(operation, value_bytes_max) for operation in otherwise],
    )
    return _bounded(_pack(packed))


def pack_call(name: str, args: Sequence[Any]) -> bytes:
    """Pack a call of the user's command `name`; lists arrive there as tuples."""
    if type(name) is not str or not 1 <= len(name) <= NAME_MAX:
        raise InvalidRequest(f"a command's name must be text of 1 to {NAME_MAX} characters")
    try:
        packed = _bounded(_pack((CALL, name, tuple(args))))
        unpack(packed)
    except (TypeError, ValueError, OverflowError, msgpack.UnpackException) as error:
        raise InvalidRequest(f"{name}: an argument can't be packed: {error}") from error
    return packed


def pack_result(result: Any) -> bytes:
    """Pack a command's result; TypeError, ValueError or OverflowError if msgpack can't."""
    return _pack(result)


def unpack_result(packed: bytes) -> Any:
    """Unpack a result, arrays as lists."""
    return msgpack.unpackb(packed, raw=False, use_list=True, strict_map_key=False)


def unpack(packed: bytes) -> Any:
    """Unpack commands, arrays as tuples; ValueError or UnpackException if they are malformed."""
    return msgpack.unpackb(
        packed, use_list=False, raw=False, max_array_len=ARRAY_MAX, max_map_len=ARRAY_MAX
    )


def check_packed(packed: bytes) -> str:
    """Raise InvalidRequest unless `packed` is one command of any kind, within its limits.

    Returns the name of the state machine's command that it calls, or "".

    A malformed command would make its whole group fail, with the commands of other callers.
    """
    if type(packed) is not bytes:
        raise _not_bytes("a packed command", packed)
    _bounded(packed)
    try:
        command = unpack(packed)
    except (ValueError, msgpack.UnpackException) as error:
        raise InvalidRequest(f"not a packed command: {error}") from error
    if type(command) is not tuple:
        raise InvalidRequest(
            "not a packed command", hint="pack it with raftha.storage.state.commands"
        )
    is_call = len(command) == 3 and command[0] == CALL and type(command[1]) is str
    return command[1] if is_call else ""


def unpack_commands(commands: bytes, count: int) -> tuple[Any, ...] | None:
    """Split a group's bytes into its `count` commands; None if they don't match.

    One call of msgpack unpacks the whole group: an array header in front of the commands makes
    them the items of an array.
    """
    try:
        unpacked = unpack(_ARRAY_32 + count.to_bytes(4, "big") + commands)
    except (ValueError, msgpack.UnpackException):
        return None
    assert type(unpacked) is tuple and len(unpacked) == count
    return unpacked


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def _bounded(packed: bytes) -> bytes:
    if len(packed) > COMMAND_BYTES_MAX:
        raise InvalidRequest(
            f"a command must be at most {COMMAND_BYTES_MAX} bytes when packed, got {len(packed)}"
        )
    return packed


def _condition(condition: Condition) -> tuple[int | bytes, ...]:
    match condition:
        case Equals(key, value):
            check_key(key)
            check_value(value)
            return (EQUALS, key, value)
        case Exists(key):
            check_key(key)
            return (EXISTS, key)
        case Missing(key):
            check_key(key)
            return (MISSING, key)
        case _:
            raise InvalidRequest(
                f"{condition!r:.100} is not a condition: Equals, Exists or Missing"
            )


def _operation(operation: Operation, value_bytes_max: int) -> tuple[int | bytes, ...]:
    match operation:
        case Put(key, value):
            check_key(key)
            check_value(value, value_bytes_max)
            return (PUT, key, value)
        case Delete(key):
            check_key(key)
            return (DELETE, key)
        case Get(key):
            check_key(key)
            return (GET, key)
        case _:
            raise InvalidRequest(f"{operation!r:.100} is not an operation: Put, Delete or Get")


def _not_bytes(what: str, got: object) -> InvalidRequest:
    hint = "encode text, as in text.encode()" if isinstance(got, str) else ""
    return InvalidRequest(f"{what} must be bytes, got {type(got).__name__}", hint=hint)
