"""The commands between a client's MULTI and its EXEC."""

from __future__ import annotations

from raftha.errors import InvalidRequest
from raftha.server.commands import Call, Command, Exec, Once, Read, Write, count_keys
from raftha.server.tasks import Arguments
from raftha.storage.state.commands import COMMAND_BYTES_MAX
from raftha.storage.state.machine import RESULT_BYTES_MAX

QUEUED_MAX = 10_000
"""Commands between MULTI and EXEC."""
QUEUED_KEYS_MAX = 10_000
"""Keys that all commands between MULTI and EXEC name: all nodes apply them in one step."""


REFUSED_MAX = 16
"""Refused commands in a transaction; a client that sends more is disconnected."""


class QueuedCalls:
    """The calls of `RedisMachine` that EXEC will make."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.is_broken = False
        """True once a command was refused: EXEC is refused too."""
        self._refused = 0
        self._bytes = 0
        self._keys = 0

    def add(self, command: Write | Read, request: Arguments, value_bytes_max: int) -> None:
        """Queue a command; RafthaError if it is wrong, or one too many."""
        # The limits come first: to check each argument of a large request takes long.
        self._bytes += sum(map(len, request))
        self._keys += count_keys(request)
        if len(self.calls) >= QUEUED_MAX or self._bytes > COMMAND_BYTES_MAX:
            raise InvalidRequest(
                f"a transaction has at most {QUEUED_MAX} commands and {COMMAND_BYTES_MAX} bytes"
            )
        if self._keys > QUEUED_KEYS_MAX:
            raise InvalidRequest(
                f"the commands of a transaction name at most {QUEUED_KEYS_MAX} keys"
            )
        self.calls.append(command.parse(request, value_bytes_max))

    def refuse(self) -> bool:
        """A command was refused; return True if that was one too many.

        A client that sends a large pipeline doesn't read the errors. To parse all the rest of it
        only to refuse it would keep other clients waiting.
        """
        self.is_broken = True
        self._refused += 1
        return self._refused > REFUSED_MAX

    def largest_reply(self, value_bytes_max: int) -> int:
        """Return the most bytes of values that the reply of EXEC has."""
        return min(sum(map(_count_values, self.calls)) * value_bytes_max, RESULT_BYTES_MAX)


def largest_reply(
    command: Command, request: Arguments, queue: QueuedCalls | None, value_bytes_max: int
) -> int:
    """Return the most bytes of values that the reply to a write has; `queue` is that of EXEC."""
    if isinstance(command, Exec):
        return queue.largest_reply(value_bytes_max) if queue is not None else 0
    options = request[8:] if isinstance(command, Once) else request[3:]
    return value_bytes_max if b"GET" in map(bytes.upper, options) else 0


def _count_values(call: Call) -> int:
    match call:
        case ("get", _) | ("set", _, _, _, True):
            return 1
        case ("mget", *keys):
            return len(keys)
    return 0
