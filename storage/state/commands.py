"""What a command is: how it is packed by the caller, checked, and unpacked where it is applied.

Theory of operation. A command is a msgpack array `(op, ...)`, packed once by whoever submits it;
the same bytes go to the log, over the network and into the archive. Limits are checked here, when
the command is packed, with an `InvalidRequest` for the caller, and once more when it is applied:
there a command that breaks a limit or can't be parsed fails, on every replica alike, and never
stops a node. The limits that apply-time checks use are constants of the format, never settings,
because replicas with different settings would otherwise disagree.

    op                 fields
    1  PUT             key, value
    2  DELETE          key
    3  COMPARE_AND_SET key, expected or nil (no such key), value or nil (delete)
    4  TRANSACTION     conditions, operations, operations if a condition doesn't hold
    5  CALL            name, arguments                   (a command of the user's state machine)
    6  GET             key                               (only inside transactions)
    conditions: (1, key, value) equals   (2, key) exists   (3, key) is missing
    operations: (PUT, key, value)  (DELETE, key)  (GET, key)

Keys and values are bytes; text is only ever a command's name or an argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import msgpack

from raftha.config import KEY_BYTES_MAX, MIB
from raftha.errors import InvalidRequest

PUT, DELETE, COMPARE_AND_SET, TRANSACTION, CALL, GET = range(1, 7)
EQUALS, EXISTS, MISSING = range(1, 4)

VALUE_BYTES_MAX = 4 * MIB
"""The largest value the format allows; a node's `value_bytes_max` may be less, never more."""
COMMAND_BYTES_MAX = 4 * MIB + 4096
"""The largest packed command: one value of the largest size, its key, and room for the rest."""
TRANSACTION_PARTS_MAX = 10_000
"""Conditions and operations of one transaction, taken together."""
ARRAY_MAX = 65_536
"""Items of any array or map inside a command; also the most commands in one group."""
NAME_MAX = 128
"""Characters of a command's name."""

_ARRAY_32 = b"\xdd"


class Equals(NamedTuple):
    """A condition: `key` is there and its value is `value`."""

    key: bytes
    value: bytes


class Exists(NamedTuple):
    """A condition: `key` is there."""

    key: bytes


class Missing(NamedTuple):
    """A condition: `key` is not there."""

    key: bytes


class Put(NamedTuple):
    """An operation: set `key` to `value`. Its result is None."""

    key: bytes
    value: bytes


class Delete(NamedTuple):
    """An operation: remove `key`. Its result is whether the key was there."""

    key: bytes


class Get(NamedTuple):
    """An operation: read `key`. Its result is the value, or None if the key isn't there."""

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
    return _pack((PUT, key, value))


def pack_delete(key: bytes) -> bytes:
    """Pack "remove `key`"; the result will be whether it was there."""
    check_key(key)
    return _pack((DELETE, key))


def pack_compare_and_set(
    key: bytes, expected: bytes | None, value: bytes | None, value_bytes_max: int = VALUE_BYTES_MAX
) -> bytes:
    """Pack "if `key` is `expected`, set it to `value`"; None stands for "not there" in both."""
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
    """Pack a call of the user's command `name`; it will see lists as tuples."""
    if type(name) is not str or not 1 <= len(name) <= NAME_MAX:
        raise InvalidRequest(f"a command's name must be text of 1 to {NAME_MAX} characters")
    try:
        packed = _bounded(_pack((CALL, name, tuple(args))))
        unpack(packed)
    except (TypeError, ValueError, OverflowError, msgpack.UnpackException) as error:
        raise InvalidRequest(f"{name}: an argument can't be packed: {error}") from error
    return packed


def pack_result(result: Any) -> bytes:
    """Pack a command's result; TypeError, ValueError or OverflowError if that can't be done."""
    return _pack(result)


def unpack_result(packed: bytes) -> Any:
    """Read back what `pack_result` made, arrays as lists."""
    return msgpack.unpackb(packed, raw=False, use_list=True, strict_map_key=False)


def unpack(packed: bytes) -> Any:
    """Read packed commands, arrays as tuples; ValueError or UnpackException if they can't be."""
    return msgpack.unpackb(
        packed, use_list=False, raw=False, max_array_len=ARRAY_MAX, max_map_len=ARRAY_MAX
    )


def check_packed(packed: bytes) -> None:
    """Raise InvalidRequest unless `packed` is one command, of whatever kind, within its limits.

    One that isn't would spoil the group it goes in, and so the commands of others.
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
            "not a packed command", hint="raftha.storage.state.commands packs them"
        )


def unpack_commands(commands: bytes, count: int) -> tuple[Any, ...] | None:
    """Split a group's bytes into its `count` commands; None if they are not exactly that.

    One call into msgpack for the whole group: the commands, one after the other, become the items
    of an array by putting an array's header in front.
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
