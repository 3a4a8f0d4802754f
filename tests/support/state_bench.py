"""A state over a store, its log and a session, and user commands for tests."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from raftha.entry import Group
from raftha.errors import (
    CommandFailed,
    InvalidRequest,
    StorageFailed,
)
from raftha.storage.state import machine
from raftha.storage.state.checkpoint import CheckpointStore
from raftha.storage.state.machine import StateMachine, Transaction, command
from raftha.storage.state.sessions import Applied, receipts
from raftha.storage.state.state import State
from raftha.storage.state.versions import common
from raftha.types import Receipt
from tests.sim.store import DictStore
from tests.support.entries import Log, group, opening


class Kit(StateMachine):
    """Commands that do what tests need."""

    @command
    def add(self, txn: Transaction, key: bytes, amount: int) -> int:
        total = int(txn.get(key) or b"0") + amount
        txn.put(key, b"%d" % total)
        return total

    @command
    def put_then_raise(self, txn: Transaction, key: bytes, kind: str) -> None:
        txn.put(key, b"must not stay")
        txn.delete(b"kept")
        errors: dict[str, BaseException] = {
            "ValueError": ValueError("no \ud800 " + "x" * 2000),
            "MemoryError": MemoryError(),
            "RecursionError": RecursionError(),
            "OSError": OSError(5, "disk"),
            "Unprintable": Unprintable(),
            "TimeoutError": TimeoutError("the reservation has expired"),
            "StorageFailed": StorageFailed("of the command's own making"),
            "SystemExit": SystemExit(3),
            "KeyboardInterrupt": KeyboardInterrupt(),
            "GeneratorExit": GeneratorExit(),
            "StopIteration": StopIteration(),
            "CancelledError": asyncio.CancelledError(),
            "Unspeakable": Unspeakable(),
        }
        raise errors[kind]

    @command(name="echo")
    def give_back(self, txn: Transaction, value: Any) -> Any:
        return value

    @command
    def bad_result(self, txn: Transaction) -> Any:
        txn.put(b"bad", b"1")
        return {1, 2}

    @command
    def raising_result(self, txn: Transaction) -> Any:
        txn.put(b"bad", b"1")
        return Lazy(a=1)

    @command
    def use_elsewhere(self, txn: Transaction) -> str:
        found: list[str] = []

        def use() -> None:
            for access in (lambda: txn.put(b"a", b""), lambda: txn.get(b"a"), txn.scan):
                try:
                    access()
                except InvalidRequest as error:
                    found.append(str(error))

        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        return " ".join(found)

    @command
    def large_result(self, txn: Transaction) -> bytes:
        return bytes(machine.RESULT_BYTES_MAX)

    @command
    def remove_range(self, txn: Transaction, start: bytes | None, end: bytes | None) -> int:
        pairs = txn.scan(start, end, limit=100)
        for key, _ in pairs:
            txn.delete(key)
        assert txn.scan(start, end) == []
        return len(pairs)

    @command
    def stamps(self, txn: Transaction) -> list[int]:
        return [txn.time_us, txn.sequence]

    @command
    def leak(self, txn: Transaction) -> None:
        LEAKED.append(txn)

    @command
    def swallow(self, txn: Transaction) -> bytes:
        try:
            return txn.get(b"anything") or b""
        except StorageFailed:
            return b"swallowed"


LEAKED: list[Transaction] = []


class Lazy(dict[str, int]):
    """Runs code of the user when it is packed."""

    def items(self) -> Any:
        raise SystemExit(3)


class Unspeakable(Exception):
    """What its message raises is no plain exception."""

    def __str__(self) -> str:
        raise SystemExit


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Bench:
    """A state over a store in memory, its log, and one session."""

    def __init__(self, store: DictStore | CheckpointStore | None = None) -> None:
        self.log = Log()
        self.store = DictStore() if store is None else store
        self.state = State(self.store, Kit())
        self.state.versions = common([self.state.abilities])
        self.session = self.apply(opening())[0].outcome.session
        self.number = 0

    def apply(self, *groups: Group, time_us: int = 1_000_000) -> list[Applied]:
        return self.state.apply(self.log.batch(*groups, time_us=time_us))

    def do(self, *packed: bytes) -> list[Receipt | CommandFailed]:
        """Apply new commands as one group; return what their callers get."""
        self.number += 1
        return receipts(self.apply(group(self.session, self.number, packed))[0].outcome)

    def one(self, packed: bytes) -> Any:
        """Apply a command that succeeds; return its result."""
        receipt = self.do(packed)[0]
        assert isinstance(receipt, Receipt) and receipt.succeeded
        return receipt.result

    def failure(self, packed: bytes) -> CommandFailed:
        """Apply a command that fails; return its error."""
        failed = self.do(packed)[0]
        assert isinstance(failed, CommandFailed)
        return failed

    def checkpoint(self) -> None:
        frozen = self.state.freeze()
        self.store.write(frozen.items, frozen.meta)
        self.state.checkpoint_done()

    def everything(self) -> dict[bytes, bytes]:
        return dict(self.state.scan(limit=10_000))
