"""Runs commands: the transaction view, user state machines, and the outcome of exceptions.

Theory of operation. Every replica runs the same commands in the same order and must reach the same
state, so a command may depend only on the state, its arguments, and the view's `time_us` and
`sequence`. Commands other than plain puts run on a `Transaction`. Its reads see its own writes and
the state below. Its writes take effect when the command returns, and are dropped if it raises.

Whatever a user's command raises is an outcome: recorded, replicated, and raised at the caller as
`CommandFailed`. That includes `OSError`, `SystemExit` and a `StorageError` of the command's own
making, since every replica raises the same. Four kinds of errors depend on the machine and are no
outcomes, because recording them would make the states of replicas differ silently:

- a failed read of the transaction: the view notes it where it arises, whatever the command makes of
  it afterwards;
- `MemoryError`;
- `RecursionError`: the depth of the stack differs between replicas, and the limit is the host's;
- a command of the log that this node's machine doesn't have, although the cluster uses it.

They leave `run`, and the node stops with a message: the operator can repair the command or the
machine, but not states that have diverged.

The result of a command, as kept in an `Outcome`, is None (it succeeded and returned None) or one of

    (DONE, value)            it succeeded
    (REFUSED, value)         its condition didn't hold; only its `otherwise` ran, if it has one
    (FAILED, kind, detail)   it raised, and was rolled back
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from threading import get_ident
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, TypeAlias, TypeVar, overload

from raftha.config import MIB
from raftha.errors import ConfigError, InvalidRequest, UpgradeRequired
from raftha.storage.state.buffer import Pair, WriteBuffer, overlay
from raftha.storage.state.commands import (
    CALL,
    COMMAND_BYTES_MAX,
    COMPARE_AND_SET,
    DELETE,
    EQUALS,
    EXISTS,
    GET,
    MISSING,
    NAME_MAX,
    PUT,
    TRANSACTION,
    TRANSACTION_PARTS_MAX,
    check_key,
    check_value,
    pack_result,
    unpack_result,
)
from raftha.storage.state.versions import (
    COMMANDS_BYTES_MAX,
    COMMANDS_MAX,
    MACHINE_VERSION_MAX,
    Versions,
)

DONE, REFUSED, FAILED = range(3)

Result: TypeAlias = tuple[int, Any] | tuple[int, str, str]
"""The result of one command other than None; the module's docstring has the forms."""

RESULT_BYTES_MAX = COMMAND_BYTES_MAX
"""The largest packed result of a command."""
WRITES_BYTES_MAX = 64 * MIB
"""Bytes of keys and values that one command may write."""
SCAN_LIMIT_MAX = 10_000
"""Pairs that one scan may return."""
SCAN_BYTES_MAX = 16 * MIB
"""Bytes of keys and values that one scan may return; a larger scan fails."""
DETAIL_MAX = 1000
"""Characters of an exception's message that an outcome keeps."""

_MARK = "_raftha_command"
_UNTRIED = "_raftha_untried"
_Function = TypeVar("_Function", bound=Callable[..., Any])


class Readable(Protocol):
    """The state below a transaction."""

    def get(self, key: bytes) -> bytes | None:
        """Return the value of `key`, None if it isn't there."""
        ...

    def iterate(self, start: bytes | None, end: bytes | None, *, reverse: bool) -> Iterator[Pair]:
        """Yield the pairs in [start, end) in order, possibly with deleted ones as (key, None)."""
        ...


class Transaction:
    """A command's view: the state after the previous command, and the command's own writes.

    `time_us` is the leader's time of the log entry, the same on all replicas. `sequence` is the
    command's own number, useful for unique ids. `machine_version` is the version of the state
    machine that the cluster uses at this place in the log: see `StateMachine.version`. The view
    can't be used after its command, nor by another thread, whose work each replica would see at
    another moment.
    `fault` is the error of a read that failed: no outcome even if the command caught it, because
    its further work depends on this machine's disk.
    """

    __slots__ = (
        "_is_open",
        "_state",
        "_thread",
        "_written",
        "fault",
        "sequence",
        "time_us",
        "versions",
        "write_bytes",
    )

    def __init__(
        self, state: Readable, time_us: int, sequence: int, versions: Versions | None = None
    ) -> None:
        """`versions` are what the cluster uses; None for a cluster that has none yet."""
        self.time_us = time_us
        self.sequence = sequence
        self.versions = versions
        self.write_bytes = 0
        self._state = state
        self._written = WriteBuffer()
        self._is_open = True
        self._thread = get_ident()
        self.fault: BaseException | None = None

    @property
    def machine_version(self) -> int:
        """The version of the state machine in use, the same on all replicas."""
        return self.versions.machine if self.versions is not None else 0

    def get(self, key: bytes) -> bytes | None:
        """Return the value of `key`, None if it doesn't exist."""
        self._check_open()
        check_key(key)
        if key in self._written.values:
            return self._written.values[key]
        try:
            return self._state.get(key)
        except BaseException as error:
            self.fault = error
            raise

    def put(self, key: bytes, value: bytes) -> None:
        """Set `key` to `value`."""
        self._check_open()
        check_key(key)
        check_value(value)
        self._write(key, value)

    def delete(self, key: bytes) -> bool:
        """Remove `key`; return True if it existed."""
        existed = self.get(key) is not None
        if existed:
            self._write(key, None)
        return existed

    def scan(
        self,
        start: bytes | None = None,
        end: bytes | None = None,
        *,
        limit: int = 1000,
        reverse: bool = False,
    ) -> list[tuple[bytes, bytes]]:
        """Return up to `limit` pairs with keys in [start, end), None meaning unbounded, in order.

        `reverse` starts at the other end. Later writes don't change the list. InvalidRequest if
        `limit` is over 10,000 or the pairs exceed 16 MiB together.
        """
        self._check_open()
        check_scan(start, end, limit)
        try:
            below = self._state.iterate(start, end, reverse=reverse)
            if self._written.values:
                above = self._written.iterate(start, end, reverse=reverse)
                below = overlay(above, below, reverse=reverse)
            return collect(below, limit)
        except InvalidRequest:
            raise  # The pairs are too large, on all replicas alike.
        except BaseException as error:
            self.fault = error
            raise

    def finish(self) -> dict[bytes, bytes | None]:
        """End the view and return its writes. The engine calls this, commands don't."""
        self._is_open = False
        if self.fault is not None:
            raise self.fault
        return self._written.values

    def _write(self, key: bytes, value: bytes | None) -> None:
        self.write_bytes += len(key) + len(value or b"")
        if self.write_bytes > WRITES_BYTES_MAX:
            raise InvalidRequest(f"one command may write at most {WRITES_BYTES_MAX} bytes")
        self._written.values[key] = value

    def _check_open(self) -> None:
        if not self._is_open:
            raise InvalidRequest(
                "this transaction has ended; a command must not use its view after it returns"
            )
        if get_ident() != self._thread:
            raise InvalidRequest("a command must not use its view on another thread")


@overload
def command(function: _Function) -> _Function: ...
@overload
def command(*, name: str | None = None, trial: bool = True) -> Callable[[_Function], _Function]: ...
def command(
    function: _Function | None = None, *, name: str | None = None, trial: bool = True
) -> _Function | Callable[[_Function], _Function]:
    """Register a method of a `StateMachine` as a command, under its own name or `name`.

    Without `trial`, calls enter the log without a trial on the node that takes them. That saves
    time, for a command that can't raise RecursionError or MemoryError whatever its arguments are.
    """

    def register(function: _Function) -> _Function:
        if not inspect.isfunction(function):
            raise ConfigError(f"@command can mark only a plain method, got {function!r:.100}")
        registered = function.__name__ if name is None else name
        if not 1 <= len(registered) <= NAME_MAX:
            raise ConfigError(f"a command's name must have 1 to {NAME_MAX} characters")
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigError(f"command {registered} is async; a command must be a plain method")
        if inspect.isgeneratorfunction(function):
            raise ConfigError(f"command {registered} is a generator; it must return a list instead")
        setattr(function, _MARK, registered)
        setattr(function, _UNTRIED, not trial)
        return function

    return register if function is None else register(function)


class StateMachine:
    """The base of your own replicated commands: subclass it, and mark methods.

        class Bank(raftha.StateMachine):
            @raftha.command
            def transfer(self, txn, source: bytes, target: bytes, amount: int) -> int:
                balance = int(txn.get(source) or 0)
                if balance < amount:
                    raise ValueError(f"{balance} is not enough")
                txn.put(source, b"%d" % (balance - amount))
                txn.put(target, b"%d" % (int(txn.get(target) or 0) + amount))
                return balance - amount

        ha = raftha.HaManager(config, state_machine=Bank())
        receipt = ha.execute("transfer", b"alice", b"bob", 10)

    Every replica runs every command, at another time and on another machine, and again after a
    restart. All must get the same result, so a command

    - reads and writes through `txn` only: attributes of the object, files, sockets and globals are
      not replicated and don't survive a restart (settings that never change are fine);
    - calls no method of an `HaManager`, which would wait for the command itself, and starts no
      thread that uses `txn`;
    - uses no clock and no random source: `txn.time_us` and `txn.sequence` are the same everywhere;
    - sorts sets, and anything else without a defined order, before it iterates over them;
    - takes and returns types that msgpack supports: None, bool, int of 64 bits, float, str, bytes,
      lists and dicts of them. Lists arrive as tuples in arguments, tuples as lists in results;
    - does the same on all nodes: to change a command, register the new one under a new name, or
      raise `version` and ask `txn.machine_version`. Other arguments always need a new name;
    - lets `MemoryError` and `RecursionError` through: an `except Exception` that ends in a result
      or a write makes that depend on the machine.

    `version` is the version of this machine, 1 if you don't set it. Raise it when a command that
    exists must behave differently, and let the command decide by `txn.machine_version`:

            version = 2

            @raftha.command
            def withdraw(self, txn, account: bytes, amount: int) -> int:
                fee = 1 if txn.machine_version >= 2 else 0

    The cluster uses version 2 once all members support it, from one entry of the log on. Until then
    the new build behaves like the old one. `oldest_version` is the oldest version whose behaviour
    this machine still has; a node whose machine can't behave as the log requires refuses to run. A
    new command needs no new version: calls are refused until all members know it.

    A command that raises any exception is rolled back, on all replicas alike, and the caller gets
    `CommandFailed`. Only `MemoryError` and `RecursionError`, which depend on the machine, are no
    outcomes. The node that takes a call tries it first, on a view that is thrown away, and refuses
    it with `InvalidRequest` if it raises one of them. (`command(trial=False)` leaves that out.) In
    the log they would stop the nodes.
    """

    commands: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """The name of the method that runs each command, by the command's name."""
    untried_commands: ClassVar[frozenset[str]] = frozenset()
    """The commands that are called without a trial."""
    version: ClassVar[int] = 1
    """The newest version whose behaviour this machine has."""
    oldest_version: ClassVar[int] = 0
    """The oldest version whose behaviour this machine has."""

    def on_drill(self, txn: Transaction) -> None:
        """Look at contents that were restored for proof; raise if they are wrong.

        A drill calls it, in a process of its own. What is written is thrown away.
        """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        registry: dict[str, str] = {}
        for base in reversed(cls.__mro__[1:]):
            registry.update(getattr(base, "commands", {}))
        for attribute, value in vars(cls).items():
            wrapped = getattr(value, "__func__", None)
            if wrapped is not None and hasattr(wrapped, _MARK):
                raise ConfigError(f"command {cls.__name__}.{attribute} must be a plain method")
            name = getattr(value, _MARK, None)
            if name is None:
                continue
            if registry.get(name, attribute) != attribute:
                raise ConfigError(f"{cls.__name__} has two commands named {name!r}")
            registry[name] = attribute
        for name, attribute in registry.items():
            if not callable(getattr(cls, attribute, None)):
                raise ConfigError(f"command {name!r} of {cls.__name__} can't be called")
        _check_machine(cls.__name__, registry, cls.oldest_version, cls.version)
        cls.commands = MappingProxyType(registry)
        cls.untried_commands = frozenset(
            name for name, attribute in registry.items() if _is_untried(cls, attribute)
        )


def _is_untried(cls: type[StateMachine], attribute: str) -> bool:
    return bool(getattr(getattr(cls, attribute), _UNTRIED, False))


def _check_machine(name: str, commands: Mapping[str, str], oldest: Any, newest: Any) -> None:
    for number in (oldest, newest):
        if type(number) is not int or not 0 <= number <= MACHINE_VERSION_MAX:
            raise ConfigError(f"{name}'s versions must be whole numbers, got {number!r:.40}")
    if newest < 1 or oldest > newest:
        raise ConfigError(
            f"{name}.version must be at least 1 and not less than oldest_version, {oldest}"
        )
    size = sum(len(command.encode()) for command in commands)
    if len(commands) > COMMANDS_MAX or size > COMMANDS_BYTES_MAX:
        raise ConfigError(
            f"{name} has {len(commands)} commands with names of {size} bytes; the limits are "
            f"{COMMANDS_MAX} and {COMMANDS_BYTES_MAX}"
        )


def run(packed: Any, txn: Transaction, machine: StateMachine | None) -> Result | None:
    """Run one unpacked command on `txn`; an exception becomes its result, unless it is fatal.

    `packed` comes from the log and may be any object that msgpack can express.
    """
    result: Result | None = None
    fatal: BaseException | None = None
    try:
        result = _dispatch(packed, txn, machine)
    except (MemoryError, RecursionError, UpgradeRequired) as error:
        fatal = error
    except Exception as error:  # noqa: BLE001 - an exception of a command is its outcome
        result = _failure(error)
    fatal = txn.fault or fatal
    if fatal is not None:
        fatal.add_note(
            f"raised by command {txn.sequence}; the node stops, because this is no outcome"
        )
        raise fatal
    return result


def check_scan(start: bytes | None, end: bytes | None, limit: int) -> None:
    """Raise InvalidRequest unless the arguments of a scan are valid."""
    for bound in (start, end):
        if bound is not None and type(bound) is not bytes:
            raise InvalidRequest(f"a scan's bounds must be bytes, got {type(bound).__name__}")
    if type(limit) is not int or not 1 <= limit <= SCAN_LIMIT_MAX:
        raise InvalidRequest(
            f"a scan's limit must be from 1 to {SCAN_LIMIT_MAX}, got {limit!r:.100}"
        )


def collect(pairs: Iterator[Pair], limit: int) -> list[tuple[bytes, bytes]]:
    """Return the first `limit` pairs that exist; InvalidRequest if they exceed the limit."""
    found: list[Any] = []  # Pairs whose values are there.
    total = 0
    for pair in pairs:
        key, value = pair
        if value is None:
            continue
        total += len(key) + len(value)
        if total > SCAN_BYTES_MAX:
            raise InvalidRequest(
                f"a scan returns at most {SCAN_BYTES_MAX} bytes",
                hint="use a smaller limit, and continue from the last key",
            )
        found.append(pair)
        if len(found) == limit:
            break
    return found


def _dispatch(packed: Any, txn: Transaction, machine: StateMachine | None) -> Result | None:
    if type(packed) is not tuple or not packed or type(packed[0]) is not int:
        raise InvalidRequest("a command must be an array that starts with its kind")
    op, *fields = packed
    if op not in _FIELDS or len(fields) != _FIELDS[op]:
        raise InvalidRequest(f"there is no command of kind {op} with {len(fields)} fields")
    if op == PUT:
        txn.put(*fields)
        return None
    if op == DELETE:
        return (DONE, txn.delete(*fields))
    if op == COMPARE_AND_SET:
        return _compare_and_set(txn, *fields)
    if op == TRANSACTION:
        return _transaction(txn, *fields)
    return _call(txn, machine, *fields)


_FIELDS = {PUT: 2, DELETE: 1, COMPARE_AND_SET: 3, TRANSACTION: 3, CALL: 2}


def _compare_and_set(txn: Transaction, key: Any, expected: Any, value: Any) -> Result:
    if txn.get(key) != expected:
        return (REFUSED, None)
    if value is None:
        txn.delete(key)
    else:
        txn.put(key, value)
    return (DONE, None)


def _transaction(txn: Transaction, conditions: Any, operations: Any, otherwise: Any) -> Result:
    for part in (conditions, operations, otherwise):
        if type(part) is not tuple or not all(type(item) is tuple for item in part):
            raise InvalidRequest("a transaction's parts must be arrays of arrays")
    if len(conditions) + len(operations) + len(otherwise) > TRANSACTION_PARTS_MAX:
        raise InvalidRequest(f"a transaction has at most {TRANSACTION_PARTS_MAX} parts")
    holds = all(_holds(txn, condition) for condition in conditions)
    results = []
    total = 0
    for operation in operations if holds else otherwise:
        result = _operate(txn, operation)
        total += len(result) if type(result) is bytes else 1
        if total > RESULT_BYTES_MAX:
            raise InvalidRequest(f"a transaction reads at most {RESULT_BYTES_MAX} bytes")
        results.append(result)
    return (DONE if holds else REFUSED, results)


def _holds(txn: Transaction, condition: tuple[Any, ...]) -> bool:
    if len(condition) == 3 and condition[0] == EQUALS:
        check_value(condition[2])
        return txn.get(condition[1]) == bytes(condition[2])
    if len(condition) == 2 and condition[0] in (EXISTS, MISSING):
        expected: bool = condition[0] == EXISTS
        return (txn.get(condition[1]) is not None) is expected
    raise InvalidRequest("unknown condition")


def _operate(txn: Transaction, operation: tuple[Any, ...]) -> bytes | bool | None:
    if len(operation) == 3 and operation[0] == PUT:
        txn.put(operation[1], operation[2])
        return None
    if len(operation) == 2 and operation[0] == DELETE:
        return txn.delete(operation[1])
    if len(operation) == 2 and operation[0] == GET:
        return txn.get(operation[1])
    raise InvalidRequest("unknown operation")


def _call(txn: Transaction, machine: StateMachine | None, name: Any, args: Any) -> Result | None:
    if type(name) is not str or type(args) is not tuple:
        raise InvalidRequest("a call must have a name and an array of arguments")
    attribute = None if machine is None else machine.commands.get(name)
    if txn.versions is not None and name not in txn.versions.commands:
        # By the log, so on all replicas alike: whether this node knows it makes no difference.
        raise InvalidRequest(f"unknown command {name!r:.100}: not all members know it")
    if attribute is None:
        raise UpgradeRequired(f"this node doesn't know command {name!r:.100} of the log")
    try:
        result = getattr(machine, attribute)(txn, *args)
        if result is None:
            return None
        packed = pack_result(result)  # Runs methods of the result, if its class is the user's.
    except (MemoryError, RecursionError):
        raise
    except BaseException as error:  # noqa: BLE001 - whatever a user's command raises is its outcome
        return _failure(error)
    if len(packed) > RESULT_BYTES_MAX:
        raise InvalidRequest(f"{name} returned {len(packed)} bytes, over {RESULT_BYTES_MAX}")
    # The first caller gets the same object as a retry: the one that survives packing.
    return (DONE, unpack_result(packed))


def _failure(error: BaseException) -> Result:
    try:
        detail = str(error)
    except BaseException:  # noqa: BLE001 - a broken __str__ must not end the node
        detail = "(its message can't be shown)"
    return (FAILED, _printable(type(error).__name__), _printable(detail))


def _printable(text: str) -> str:
    return text[:DETAIL_MAX].encode("utf-8", "backslashreplace").decode()
