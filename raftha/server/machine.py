"""The state machine of the reference server: Redis's write commands, made deterministic.

Theory of operation. Every replica runs these methods in the same order over the same state, so they
use only their arguments and the transaction: no clock, no randomness, no settings. A method that
raises has changed nothing, and the caller gets the error. Inside `exec` Redis requires more: a
command that fails puts its error into the reply, and the others still run. So each command checks
everything that can fail before its first write.

Plain SET is not here: the server sends it as the built-in put, which needs no call. Keys and values
are those of the built-in commands. Numbers are stored as decimal text, as in Redis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from raftha.client.resp import ReplyError
from raftha.storage.state.machine import RESULT_BYTES_MAX, StateMachine, Transaction, command

INT64_MIN, INT64_MAX = -(1 << 63), (1 << 63) - 1
NOT_AN_INTEGER = "ERR value is not an integer or out of range"
TOO_LONG = f"ERR what a transaction reads is over {RESULT_BYTES_MAX} bytes"
EXEC_READ_BYTES_MAX = 64 << 20
"""The size of all values that one EXEC reads, whether or not they are part of its reply."""


def parse_int64(text: bytes) -> int:
    """Parse a decimal as strictly as Redis: no blanks, no plus sign, no leading zeros."""
    digits = text[1:] if text[:1] == b"-" else text
    is_canonical = digits.isdigit() and (digits[:1] != b"0" or text == b"0")
    # The length is checked first because int() rejects very long numbers with another error.
    if not is_canonical or len(digits) > 19 or not INT64_MIN <= int(text) <= INT64_MAX:
        raise ReplyError(NOT_AN_INTEGER)
    return int(text)


class _ReadsTooMuch(ReplyError):
    """The whole transaction fails, not only the command that reads."""


class _Metered:
    """A transaction for the commands of one EXEC, with a limit on what they read."""

    def __init__(self, txn: Transaction) -> None:
        self.put = txn.put
        self._txn = txn
        self._read_bytes = 0

    def get(self, key: bytes) -> bytes | None:
        value = self._txn.get(key)
        self._read_bytes += len(value or b"")
        if self._read_bytes > EXEC_READ_BYTES_MAX:
            raise _ReadsTooMuch(f"ERR EXEC reads values of over {EXEC_READ_BYTES_MAX} bytes")
        return value

    def delete(self, key: bytes) -> bool:
        return self.get(key) is not None and self._txn.delete(key)


class RedisMachine(StateMachine):
    """The commands that the server calls; results are replies for `raftha.client.resp.encode`.

    None of them recurses, and all arguments are bounded, so no call needs a trial.
    """

    @command(trial=False)
    def get(self, txn: Transaction, key: bytes) -> bytes | None:
        """GET, inside `exec`."""
        return txn.get(key)

    @command(trial=False)
    def mget(self, txn: Transaction, *keys: bytes) -> list[bytes | None]:
        """MGET, inside `exec`."""
        values = []
        reply_bytes = 0
        for key in keys:
            value = txn.get(key)
            reply_bytes += len(value or b"")
            if reply_bytes > RESULT_BYTES_MAX:
                raise ReplyError(TOO_LONG)
            values.append(value)
        return values

    @command(trial=False)
    def exists(self, txn: Transaction, *keys: bytes) -> int:
        """EXISTS, inside `exec`: a key given twice counts twice."""
        return sum(txn.get(key) is not None for key in keys)

    @command(trial=False)
    def set(
        self, txn: Transaction, key: bytes, value: bytes, condition: str, returns_old: bool
    ) -> str | bytes | None:
        """SET if `condition` holds: "NX" if missing, "XX" if present, "" always."""
        old = txn.get(key)
        is_met = not condition or (old is None) == (condition == "NX")
        if is_met:
            txn.put(key, value)
        if returns_old:
            return old
        return "OK" if is_met else None

    @command(trial=False)
    def mset(self, txn: Transaction, *pairs: bytes) -> str:
        """MSET key value key value ..."""
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            txn.put(key, value)
        return "OK"

    @command(trial=False)
    def incrby(self, txn: Transaction, key: bytes, amount: int) -> int:
        """INCRBY and its variants; a missing key counts as 0."""
        old = txn.get(key)
        number = (parse_int64(old) if old is not None else 0) + amount
        if not INT64_MIN <= number <= INT64_MAX:
            raise ReplyError("ERR increment or decrement would overflow")
        txn.put(key, b"%d" % number)
        return number

    @command(trial=False)
    def delete(self, txn: Transaction, *keys: bytes) -> int:
        """DEL: return how many of `keys` existed."""
        return sum(txn.delete(key) for key in keys)

    @command(trial=False)
    def exec(self, txn: Transaction, *calls: tuple[Any, ...]) -> list[Any]:
        """EXEC: run `calls`, each a name and its arguments; return one reply or error for each."""
        methods: dict[str, Callable[..., Any]] = {
            "get": self.get,
            "mget": self.mget,
            "exists": self.exists,
            "set": self.set,
            "mset": self.mset,
            "incrby": self.incrby,
            "delete": self.delete,
        }
        replies: list[Any] = []
        reply_bytes = 0
        txn = cast(Transaction, _Metered(txn))
        for name, *args in calls:
            try:
                reply = methods[name](txn, *args)
            except _ReadsTooMuch as error:
                raise ReplyError(str(error)) from None
            except ReplyError as error:
                replies.append({"error": str(error)})
                continue
            for value in reply if type(reply) is list else (reply,):
                reply_bytes += len(value) if type(value) is bytes else 16
            if reply_bytes > RESULT_BYTES_MAX:
                raise ReplyError(TOO_LONG)
            replies.append(reply)
        return replies
