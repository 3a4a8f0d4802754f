"""Calls that are tried before they enter a log."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from raftha.node.operations import CallOperation, GroupOperation
from raftha.node.trials import MARGIN, Trials
from raftha.storage.state.commands import pack_call, pack_put, unpack
from raftha.storage.state.machine import StateMachine, Transaction, command, run
from raftha.storage.state.state import State
from tests.sim.store import DictStore

CALLS: list[str] = []


class Documents(StateMachine):
    @command
    def store(self, txn: Transaction, key: bytes, text: str) -> int:
        txn.put(key, text.encode())
        return len(json.loads(text))

    @command
    def deep(self, txn: Transaction, levels: int) -> int:
        return 1 + self.deep(txn, levels - 1) if levels else 0

    @command
    def endless(self, txn: Transaction) -> Any:
        return self.endless(txn)

    @command
    def huge(self, txn: Transaction) -> bytes:
        return b"x" * (1 << 60)

    @command
    def fail(self, txn: Transaction) -> None:
        raise ValueError("an outcome")

    @command(trial=False)
    def untried(self, txn: Transaction) -> None:
        CALLS.append("untried")


def trials() -> Trials:
    return Trials(State(DictStore(), Documents()), lambda: 1)


def refusal(name: str, *args: Any) -> str:
    error = trials().refusal(CallOperation(None, 0.0, pack_call(name, args), name))
    return str(error) if error is not None else ""


NESTED = "[" * 50_000 + "]" * 50_000


@pytest.mark.parametrize(
    ("name", "args"), [("store", (b"k", NESTED)), ("deep", (5000,)), ("endless", ())]
)
def test_a_call_that_goes_too_deep_is_refused(name: str, args: tuple[Any, ...]) -> None:
    assert f"'{name}' raised RecursionError in a trial" in refusal(name, *args)


def test_a_call_that_needs_too_much_memory_is_refused() -> None:
    assert "raised MemoryError in a trial" in refusal("huge")


def test_what_is_an_outcome_passes_and_leaves_no_trace() -> None:
    state = State(DictStore(), Documents())
    tried = Trials(state, lambda: 1)
    assert tried.refusal(CallOperation(None, 0.0, pack_call("fail", ()), "fail")) is None
    stored = pack_call("store", (b"k", "[1, 2]"))
    assert tried.refusal(CallOperation(None, 0.0, stored, "store")) is None
    assert state.get(b"k") is None


def test_a_command_may_be_called_without_a_trial() -> None:
    assert not refusal("untried")
    assert not CALLS


def test_each_call_of_a_group_is_tried() -> None:
    packed = [pack_put(b"a", b"b"), pack_call("fail", ()), pack_call("endless", ())]
    names = ("endless", "fail")
    error = trials().refusal(GroupOperation(None, 0.0, 1, 1, 1, packed, names=names))
    assert "'endless' raised RecursionError" in str(error)
    harmless = GroupOperation(None, 0.0, 1, 1, 1, packed[:2], names=("fail",))
    assert trials().refusal(harmless) is None


def test_what_passes_a_trial_passes_on_a_replica_that_is_deeper_in_its_stack() -> None:
    """The deepest call that passes has room for `MARGIN` more levels, less what a trial adds."""
    passing = max(levels for levels in range(500, 1000) if not refusal("deep", levels))

    def further_down(levels: int) -> Any:
        if levels:
            return further_down(levels - 1)
        txn = Transaction(State(DictStore()), 0, 1)
        return run(unpack(pack_call("deep", (passing,))), txn, Documents())

    assert further_down(MARGIN - 8) == (0, passing)


def test_a_host_with_a_higher_limit_refuses_what_others_could_not_run() -> None:
    limit = sys.getrecursionlimit()
    passing = max(levels for levels in range(500, 1000) if not refusal("deep", levels))
    sys.setrecursionlimit(limit + 2000)
    try:
        assert not refusal("deep", passing - 8)
        assert refusal("deep", passing + 8)
    finally:
        sys.setrecursionlimit(limit)
