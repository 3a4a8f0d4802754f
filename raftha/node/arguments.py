"""Checks of the arguments that operations are made from. Each raises InvalidRequest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from raftha.config import DAY_MS
from raftha.config.limits import TIMEOUT_S_MAX
from raftha.errors import InvalidRequest
from raftha.storage.state import commands

Consistency = Literal["linearizable", "stale"]


def check_timeout(timeout: float) -> None:
    """Raise InvalidRequest unless it is over 0 and at most `TIMEOUT_S_MAX` seconds."""
    if not isinstance(timeout, int | float) or not 0 < timeout <= TIMEOUT_S_MAX:
        raise InvalidRequest(
            f"a timeout must be over 0 and at most {TIMEOUT_S_MAX} seconds, got {timeout!r}"
        )


def check_count(name: str, value: int | None) -> None:
    """Raise InvalidRequest unless `value` is a whole number that fits in a message, or None."""
    if value is not None and (type(value) is not int or not 0 <= value < 1 << 63):
        raise InvalidRequest(f"{name} must be a whole number of at least 0, got {value!r}")


def check_consistency(
    consistency: Consistency, max_staleness_ms: float | None
) -> tuple[bool, float]:
    """Whether a read is linearizable, and how old its answer may be, in seconds.

    Raises InvalidRequest if `consistency` is unknown, or if a stale read has a bound.
    """
    if consistency == "linearizable" and max_staleness_ms is None:
        return True, 0.0
    if consistency not in ("linearizable", "stale"):
        raise InvalidRequest(f'consistency must be "linearizable" or "stale", got {consistency!r}')
    if max_staleness_ms is None:
        return False, 0.0
    is_number = isinstance(max_staleness_ms, int | float) and max_staleness_ms is not True
    if not is_number or not 0 <= max_staleness_ms <= DAY_MS:
        raise InvalidRequest(
            f"max_staleness_ms must be a number from 0 to {DAY_MS}, got {max_staleness_ms!r}"
        )
    if consistency == "stale":
        raise InvalidRequest(
            'max_staleness_ms has no effect with consistency="stale"', hint="leave one of them out"
        )
    return True, max_staleness_ms / 1000


def check_group(session: int, number: int, floor: int, packed: Sequence[bytes]) -> tuple[str, ...]:
    """Raise InvalidRequest unless these can be a group of a client's session.

    Returns the names of the state machine's commands that it calls.
    """
    for name, value in (("session", session), ("number", number), ("floor", floor)):
        check_count(name, value)
    if not (session and 0 < floor <= number):
        raise InvalidRequest("session and floor must be at least 1, and floor at most number")
    names = {commands.check_packed(command) for command in packed}
    size = sum(map(len, packed))
    if size > commands.COMMAND_BYTES_MAX or len(packed) > commands.ARRAY_MAX:
        raise InvalidRequest(
            f"a group has at most {commands.ARRAY_MAX} commands and"
            f" {commands.COMMAND_BYTES_MAX} bytes, got {len(packed)} and {size}"
        )
    return tuple(sorted(names - {""}))
