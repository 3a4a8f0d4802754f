"""Reads of several keys: what they hold while they wait, and how much they return at most."""

from __future__ import annotations

from collections.abc import Sequence

from raftha.errors import InvalidRequest
from raftha.storage.state import commands
from raftha.storage.state.machine import SCAN_BYTES_MAX
from raftha.storage.state.state import State

KEY_RECORD_BYTES = 64
"""About how much memory a key takes, beside its bytes, while its read waits."""

Values = list[bytes | None]


def check_keys(keys: Sequence[bytes]) -> tuple[list[bytes], int]:
    """A copy of `keys`, and the bytes that their read holds while it waits.

    InvalidRequest if one of them is not a key.
    """
    keys = list(keys)
    for key in keys:
        commands.check_key(key)
    return keys, KEY_RECORD_BYTES * len(keys) + sum(map(len, keys))


def read_keys(state: State, keys: Sequence[bytes]) -> tuple[Values, int]:
    """The values of `keys` and their size in bytes. InvalidRequest if that is over 16 MiB."""
    values, size = [], 0
    for key in keys:
        value = state.get(key)
        size += len(value or b"")
        if size > SCAN_BYTES_MAX:
            raise InvalidRequest(
                f"the values are over {SCAN_BYTES_MAX} bytes in all", hint="ask for fewer keys"
            )
        values.append(value)
    return values, size


def read_groups(
    state: State, groups: Sequence[Sequence[bytes]], bytes_max: int
) -> list[Values | InvalidRequest]:
    """The values of each group, or why it has none, until they reach `bytes_max` bytes."""
    results: list[Values | InvalidRequest] = []
    total = 0
    get = state.get
    for keys in groups:
        if len(keys) == 1:  # The usual read, and no value is over the limit.
            value = get(keys[0])
            results.append([value])
            total += len(value) if value else 0
        else:
            try:
                values, size = read_keys(state, keys)
            except InvalidRequest as error:
                results.append(error)
                continue
            results.append(values)
            total += size
        if total >= bytes_max:
            break
    return results
