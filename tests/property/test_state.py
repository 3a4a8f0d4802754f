"""The state over LMDB against a plain dict, through checkpoints, crashes and repeated groups.

A second state over the simulator's store applies the same log with checkpoints of its own: whatever
the timing, both must hold the same, and their digests must be equal.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from raftha.entry import Group
from raftha.storage.state import commands
from raftha.storage.state.checkpoint import CheckpointStore
from raftha.storage.state.commands import Delete, Equals, Exists, Get, Missing, Put
from raftha.storage.state.machine import DONE, FAILED, REFUSED, StateMachine, Transaction, command
from raftha.storage.state.sessions import Outcome, Verdict
from raftha.storage.state.state import Frozen, State
from raftha.storage.state.store import Hasher
from tests.sim.store import DictStore
from tests.support.entries import Log, group, opening


def filled(text: bytes) -> bytes:
    """Make a long key from a short text: hypothesis prints every long constant in full."""
    return text.replace(b"~", text[:1] * 509)


KEYS = st.sampled_from(
    [b"\0", b"a", b"a\0", b"ab", b"b", b"b~b", b"b~c", b"c", b"\xff", b"\xff~\xff"]
).map(filled)
BOUNDS = st.none() | KEYS | st.sampled_from([b"", b"b~bb", b"\xff~\xff\xff"]).map(filled)
VALUES = st.sampled_from([0, 1, 2, 5000]).map(bytes)
OPTIONAL = st.none() | VALUES

CONDITIONS = st.one_of(
    st.builds(Equals, KEYS, VALUES), st.builds(Exists, KEYS), st.builds(Missing, KEYS)
)
OPERATIONS = st.one_of(st.builds(Put, KEYS, VALUES), st.builds(Delete, KEYS), st.builds(Get, KEYS))
COMMANDS = st.one_of(
    st.builds(commands.pack_put, KEYS, VALUES),
    st.builds(commands.pack_put, KEYS, VALUES),
    st.builds(commands.pack_delete, KEYS),
    st.builds(commands.pack_compare_and_set, KEYS, OPTIONAL, OPTIONAL),
    st.builds(
        commands.pack_transaction,
        st.lists(CONDITIONS, max_size=2),
        st.lists(OPERATIONS, max_size=4),
        st.lists(OPERATIONS, max_size=4),
    ),
    st.builds(lambda *args: commands.pack_call("clear", args), BOUNDS, BOUNDS, st.booleans()),
)

Model = dict[bytes, bytes]


class Clearing(StateMachine):
    """Deletes a range, and perhaps fails after that."""

    @command
    def clear(
        self, txn: Transaction, start: bytes | None, end: bytes | None, fails: bool
    ) -> list[bytes]:
        keys = [key for key, _ in txn.scan(start, end)]
        for key in keys:
            txn.delete(key)
        if fails:
            raise ValueError("rolled back")
        return keys


def in_range(model: Model, start: bytes | None, end: bytes | None) -> list[tuple[bytes, bytes]]:
    return sorted(
        (key, value)
        for key, value in model.items()
        if (start is None or key >= start) and (end is None or key < end)
    )


def assign(model: Model, key: bytes, value: bytes | None) -> bool:
    existed = model.pop(key, None) is not None
    if value is not None:
        model[key] = value
    return existed


def operate(model: Model, operation: tuple[Any, ...]) -> Any:
    op, key, *value = operation
    if op == commands.PUT:
        model[key] = value[0]
        return None
    return assign(model, key, None) if op == commands.DELETE else model.get(key)


def run(model: Model, packed: bytes) -> Any:
    """Run a command in the plainest possible way."""
    op, *fields = commands.unpack(packed)
    if op == commands.PUT:
        return operate(model, (op, *fields))
    if op == commands.DELETE:
        return (DONE, operate(model, (op, *fields)))
    if op == commands.COMPARE_AND_SET:
        key, expected, value = fields
        if model.get(key) != expected:
            return (REFUSED, None)
        assign(model, key, value)
        return (DONE, None)
    if op == commands.TRANSACTION:
        holds = all(
            model.get(key) == value[0] if kind == commands.EQUALS
            else (key in model) == (kind == commands.EXISTS)
            for kind, key, *value in fields[0]
        )  # fmt: skip
        results = [operate(model, operation) for operation in fields[1 if holds else 2]]
        return (DONE if holds else REFUSED, results)
    start, end, fails = fields[1]
    if fails:
        return (FAILED, "ValueError", "rolled back")
    keys = [key for key, _ in in_range(model, start, end)]
    for key in keys:
        del model[key]
    return (DONE, keys)


def normal(outcome: Outcome) -> tuple[Any, ...]:
    """An outcome in a form to compare: it is made of lists where it was kept, of tuples if new."""
    results = outcome.results or [None] * outcome.count
    return (*outcome[:5], [None if r is None else tuple(r) for r in results], outcome.verdict)


class StateComparison(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="raftha-test-"))
        self.log = Log()
        self.model: Model = {}
        self.open()
        self.other_store = DictStore()
        self.other = State(self.other_store, Clearing())
        self.frozen: Frozen | None = None
        self.is_written = False
        self.sent: list[tuple[Group, Outcome]] = []
        self.floors: dict[int, int] = {}
        self.add_session()

    def open(self) -> None:
        self.store = CheckpointStore(self.folder / "state", map_bytes_min=1 << 18)
        self.state = State(self.store, Clearing())

    def apply(self, *groups: Group) -> list[Outcome]:
        entry = self.log.batch(*groups)
        applied = self.state.apply(entry)
        assert [normal(a.outcome) for a in self.other.apply(entry)] == [
            normal(a.outcome) for a in applied
        ]
        return [a.outcome for a in applied]

    @precondition(lambda self: len(self.floors) < 3)
    @rule()
    def add_session(self) -> None:
        session = self.apply(opening())[0].session
        self.floors[session] = 1

    @rule(
        data=st.data(),
        packed=st.lists(st.lists(COMMANDS, max_size=4), min_size=1, max_size=3),
        raises_floor=st.booleans(),
    )
    def submit(self, data: st.DataObject, packed: list[list[bytes]], raises_floor: bool) -> None:
        groups: list[Group] = []
        for each in packed:
            session = data.draw(st.sampled_from(sorted(self.floors)))
            number = 1 + max([g.number for g, _ in self.sent if g.session == session], default=0)
            number += sum(g.session == session for g in groups)
            floor = data.draw(st.integers(1, number)) if raises_floor else 0
            groups.append(group(session, number, each, floor))
        sequence = self.log.last.last_sequence
        for sent, each, outcome in zip(groups, packed, self.apply(*groups), strict=True):
            expected = [run(self.model, one) for one in each]
            entry = self.log.last
            head = (sequence + 1, entry.index, entry.term, entry.time_us, len(each))
            assert normal(outcome) == (*head, expected, Verdict.APPLIED)
            sequence += len(each)
            self.sent.append((sent, outcome))
            self.floors[sent.session] = max(self.floors[sent.session], sent.floor)

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        sent, outcome = data.draw(st.sampled_from(self.sent))
        again = self.apply(sent)[0]
        if sent.number < self.floors[sent.session]:
            assert again.verdict is Verdict.FORGOTTEN
        else:
            assert normal(again) == normal(outcome)

    @rule(packed=COMMANDS)
    def submit_to_no_session(self, packed: bytes) -> None:
        assert self.apply(group(99, 1, [packed]))[0].verdict is Verdict.SESSION_EXPIRED

    @precondition(lambda self: self.frozen is None)
    @rule()
    def freeze(self) -> None:
        self.frozen, self.is_written = self.state.freeze(), False

    @precondition(lambda self: self.frozen is not None and not self.is_written)
    @rule()
    def write(self) -> None:
        assert self.frozen is not None
        self.store.write(self.frozen.items, self.frozen.meta)
        self.is_written = True

    @precondition(lambda self: self.is_written)
    @rule()
    def finish(self) -> None:
        self.state.checkpoint_done()
        self.frozen, self.is_written = None, False

    @rule()
    def checkpoint_other(self) -> None:
        frozen = self.other.freeze()
        self.other_store.write(frozen.items, frozen.meta)
        self.other.checkpoint_done()

    @rule()
    def crash(self) -> None:
        self.store.close()
        self.open()
        self.frozen, self.is_written = None, False
        for entry in self.log.entries[self.state.applied.index :]:
            self.state.apply(entry)

    @rule()
    def crash_other(self) -> None:
        self.other_store = self.other_store.crash()
        self.other = State(self.other_store, Clearing())
        for entry in self.log.entries[self.other.applied.index :]:
            self.other.apply(entry)

    @rule(start=BOUNDS, end=BOUNDS, limit=st.integers(1, 12), reverse=st.booleans())
    def scan(self, start: bytes | None, end: bytes | None, limit: int, reverse: bool) -> None:
        expected = in_range(self.model, start, end)
        expected = expected[::-1] if reverse else expected
        assert self.state.scan(start, end, limit=limit, reverse=reverse) == expected[:limit]

    @rule()
    def count(self) -> None:
        assert self.state.count() == len(self.model) == self.other.count()

    @rule(key=KEYS)
    def get(self, key: bytes) -> None:
        assert self.state.get(key) == self.model.get(key) == self.other.get(key)

    @invariant()
    def both_are_at_the_end_of_the_log(self) -> None:
        assert self.state.applied == self.log.last == self.other.applied

    def teardown(self) -> None:
        try:
            self.compare_at_the_end()
        finally:
            self.store.close()
            shutil.rmtree(self.folder)

    def compare_at_the_end(self) -> None:
        if self.frozen is not None:
            if not self.is_written:
                self.write()
            self.finish()
        self.freeze()
        self.write()
        self.checkpoint_other()
        hasher = Hasher()
        for key, value in sorted(self.model.items()):
            hasher.add(key, value)
        assert self.store.digest() == self.other_store.digest() == hasher.finish()


StateComparison.TestCase.settings = settings(
    max_examples=max(60, settings().max_examples),
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
test_state_agrees_with_a_plain_dict = pytest.mark.slow(StateComparison.TestCase)
