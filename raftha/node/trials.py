"""A trial of each call on the node that takes it: what can't be an outcome never enters the log.

Theory of operation. Whatever a command raises is its outcome, but for two errors that depend on the
machine: `RecursionError` (the limit is the host's, and what counts towards it differs between
versions of Python) and `MemoryError`. Raised while the log is applied, they stop the node, and all
others likewise. So the node that takes a call first runs it on a transaction that is thrown away,
as deep in the stack as no replica will be: `MARGIN` levels deeper, and with no more room than an
interpreter has by default. A call that raises one of the two is refused, and nothing has happened.

The trial sees the state of this node at this moment. A command whose depth depends on the state may
still fail later; such an entry can only stop the nodes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from raftha.errors import InvalidRequest
from raftha.node.operations import GroupOperation, WriteOperation
from raftha.storage.state.commands import CALL, unpack, unpack_commands
from raftha.storage.state.machine import Transaction, run
from raftha.storage.state.state import State

MARGIN = 32
"""Levels of the stack that a replica has for a command, and a trial has not."""
RECURSION_LIMIT = 1000
"""Python's default; a host may have set a higher one, and another node's host not."""


class Trials:
    """Tries calls on one node's state. All calls come from the node's thread."""

    def __init__(self, state: State, now_us: Callable[[], int]) -> None:
        self._state = state
        self._now_us = now_us

    def refusal(self, call: WriteOperation | GroupOperation) -> InvalidRequest | None:
        """Why this call must not enter the log; None if it may."""
        machine = self._state.machine
        if machine is None or machine.untried_commands.issuperset(call.names):
            return None
        if isinstance(call, WriteOperation):
            commands: Any = (unpack(call.command),)
        else:
            commands = unpack_commands(call.commands, call.count) or ()
        for command in commands:
            if type(command) is tuple and command and command[0] == CALL:
                try:
                    self._try(command)
                except (RecursionError, MemoryError) as error:
                    return InvalidRequest(
                        f"{command[1]!r:.100} raised {type(error).__name__} in a trial: "
                        f"{str(error)[:200]}",
                        hint="nothing happened; such an error must not depend on the arguments",
                    )
        return None

    def _try(self, command: Any) -> None:
        state = self._state
        sequence = state.applied.last_sequence + 1
        txn = Transaction(state, self._now_us(), sequence, state.versions)
        levels = MARGIN + max(0, sys.getrecursionlimit() - RECURSION_LIMIT)
        state.trying = command
        try:
            _descend(levels, lambda: run(command, txn, state.machine))
        finally:
            state.trying = None


def _descend(levels: int, function: Callable[[], Any]) -> Any:
    """Call `function` so many levels further down: frames of Python, and some of C."""
    if levels <= 0:
        return function()
    if levels % 8 == 1:
        return next(map(_descend, (levels - 1,), (function,)))
    return _descend(levels - 1, function)
