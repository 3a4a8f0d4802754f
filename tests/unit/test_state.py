"""The state: what commands do, exactly-once, user state machines, checkpoints and restarts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raftha.entry import LOG_START, Group
from raftha.errors import (
    CommandFailed,
    ConfigError,
    Corrupt,
    Indeterminate,
    InvalidRequest,
    SessionExpired,
    StorageFailed,
)
from raftha.storage import buffer, commands, machine, sessions, state
from raftha.storage.buffer import SortedItems, WriteBuffer, overlay
from raftha.storage.checkpoint import CheckpointStore
from raftha.storage.commands import Delete, Equals, Exists, Get, Missing, Put
from raftha.storage.machine import StateMachine, Transaction, command
from raftha.storage.sessions import Applied, Verdict, receipts
from raftha.storage.state import State
from raftha.types import Receipt
from tests.log import Log, group, opening
from tests.sim.store import DictStore

put, delete, cas = commands.pack_put, commands.pack_delete, commands.pack_compare_and_set
transaction, call = commands.pack_transaction, commands.pack_call


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


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Bench:
    """A state over a store in memory, its log, and one session."""

    def __init__(self, store: DictStore | CheckpointStore | None = None) -> None:
        self.log = Log()
        self.store = DictStore() if store is None else store
        self.state = State(self.store, Kit())
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


@pytest.fixture
def bench() -> Bench:
    return Bench()


# --- Built-in commands ----------------------------------------------------------------------------


def test_puts_are_read_back_and_their_outcome_is_compact(bench: Bench) -> None:
    applied = bench.apply(group(bench.session, 1, [put(b"a", b"1"), put(b"b", b"")]))
    assert applied[0].outcome.results is None
    assert (bench.state.get(b"a"), bench.state.get(b"b"), bench.state.get(b"c")) == (
        b"1",
        b"",
        None,
    )
    expected = [
        Receipt(sequence=n, index=2, term=1, time_us=1_000_000, succeeded=True, result=None)
        for n in (1, 2)
    ]
    assert receipts(applied[0].outcome) == expected


def test_delete_says_whether_the_key_was_there(bench: Bench) -> None:
    results = [r.result for r in bench.do(put(b"a", b"1"), delete(b"a"), delete(b"a")) if r]  # type: ignore[union-attr]
    assert results == [None, True, False]
    assert bench.state.get(b"a") is None


def test_compare_and_set_writes_only_if_the_value_is_as_expected(bench: Bench) -> None:
    done = bench.do(
        cas(b"a", None, b"1"), cas(b"a", None, b"2"), cas(b"a", b"1", b"3"), cas(b"a", b"1", None)
    )
    assert [bool(receipt) for receipt in done] == [True, False, True, False]
    assert bench.state.get(b"a") == b"3"
    assert [bool(r) for r in bench.do(cas(b"a", b"3", None), cas(b"a", None, None))] == [True, True]
    assert bench.state.get(b"a") is None


def test_a_transaction_does_its_operations_if_all_conditions_hold(bench: Bench) -> None:
    bench.do(put(b"a", b"1"))
    packed = transaction(
        [Equals(b"a", b"1"), Exists(b"a"), Missing(b"b")],
        [Put(b"a", b"2"), Get(b"a"), Delete(b"a"), Delete(b"b"), Get(b"a"), Put(b"b", b"3")],
        [Put(b"other", b"")],
    )
    assert bench.one(packed) == [None, b"2", True, False, None, None]
    assert bench.everything() == {b"b": b"3"}


@pytest.mark.parametrize("condition", [Equals(b"a", b"2"), Exists(b"b"), Missing(b"a")])
def test_a_transaction_does_otherwise_if_a_condition_fails(
    condition: commands.Condition, bench: Bench
) -> None:
    bench.do(put(b"a", b"1"))
    packed = transaction([Exists(b"a"), condition], [Put(b"a", b"2")], [Get(b"a"), Put(b"c", b"")])
    receipt = bench.do(packed)[0]
    assert isinstance(receipt, Receipt) and not receipt.succeeded
    assert receipt.result == [b"1", None]
    assert bench.everything() == {b"a": b"1", b"c": b""}


def test_a_transaction_that_reads_too_much_changes_nothing(bench: Bench) -> None:
    bench.do(put(b"big", bytes(3 * 1024 * 1024)))
    error = bench.failure(transaction([], [Put(b"a", b"1"), Get(b"big"), Get(b"big")]))
    assert "at most" in error.detail
    assert bench.state.get(b"a") is None


JUNK: list[bytes] = [
    b"\x01",  # not an array
    b"\x90",  # empty
    b"\x93\xc0\xc4\x01k\xc4\x01v",  # no kind
    b"\x93\x63\xc4\x01k\xc4\x01v",  # unknown kind
    b"\x92\x06\xc4\x01k",  # GET by itself
    b"\x93\x01\xc4\x00\xc4\x01v",  # empty key
    b"\x93\x01\xa1k\xc4\x01v",  # key is text
    b"\x93\x01\xc4\x01k\xa1v",  # value is text
    b"\x93\x01\xc5\x02\x00" + b"k" * 512 + b"\xc4\x01v",  # key too long
    b"\x92\x01\xc4\x01k",  # value missing
    b"\x94\x03\xc4\x01k\xc0\x05",  # set to a number
    b"\x94\x04\x01\x02\x03",  # transaction of numbers
    b"\x94\x04\x91\x90\x90\x90",  # empty condition
    b"\x94\x04\x90\x91\x92\x09\xc4\x01k\x90",  # unknown operation
    b"\x94\x04\x91\x93\x01\xc4\x01k\x01\x90\x90",  # equals a number
    b"\x93\x05\xc4\x01f\x90",  # name is bytes
    b"\x93\x05\xa1f\xc0",  # no arguments
    b"\x93\x05\xa1f\x90",  # unknown name
    b"\x93\x91\x80\xc4\x01k\xc4\x01v",  # kind can't be a dict's key
]


@pytest.mark.parametrize("junk", JUNK)
def test_bytes_that_are_no_command_fail_and_the_others_go_on(junk: bytes, bench: Bench) -> None:
    first, failed, last = bench.do(put(b"a", b"1"), junk, put(b"b", b"2"))
    assert first and last
    assert isinstance(failed, CommandFailed) and failed.kind == "InvalidRequest"
    assert bench.everything() == {b"a": b"1", b"b": b"2"}


def test_a_group_that_cannot_be_split_fails_as_a_whole(bench: Bench) -> None:
    applied = bench.apply(Group(bench.session, 1, 0, 2, put(b"a", b"1") + b"\xc1"))
    found = receipts(applied[0].outcome)
    assert [type(receipt) for receipt in found] == [CommandFailed, CommandFailed]
    assert bench.everything() == {}
    assert bench.state.applied.last_sequence == 2


def test_entries_must_be_applied_in_order(bench: Bench) -> None:
    entry = bench.log.noop()
    bench.state.apply(entry)
    with pytest.raises(AssertionError, match="in order"):
        bench.state.apply(entry)


# --- User state machines --------------------------------------------------------------------------


def test_a_command_of_the_user_runs_and_returns(bench: Bench) -> None:
    assert bench.one(call("add", [b"n", 5])) == 5
    assert bench.one(call("add", [b"n", 2])) == 7
    assert bench.state.get(b"n") == b"7"
    assert bench.one(call("stamps", [])) == [1_000_000, 3]


def test_arguments_and_results_travel(bench: Bench) -> None:
    value = [1, b"x", "y", None, 2.5, {"k": [True]}]
    assert bench.one(call("echo", [value])) == value


def test_a_command_sees_its_own_writes_in_a_scan(bench: Bench) -> None:
    bench.do(put(b"a", b"1"), put(b"b", b"2"), put(b"c", b"3"))
    bench.checkpoint()
    bench.do(put(b"ba", b"2"), delete(b"c"))
    assert bench.one(call("remove_range", [b"b", None])) == 2
    assert bench.everything() == {b"a": b"1"}


@pytest.mark.parametrize("kind", ["ValueError", "Unprintable"])
def test_a_command_that_raises_is_rolled_back(kind: str, bench: Bench) -> None:
    bench.do(put(b"kept", b"1"))
    error = bench.failure(call("put_then_raise", [b"k", kind]))
    assert error.kind == kind
    assert len(error.detail) <= 1010
    assert bench.everything() == {b"kept": b"1"}


@pytest.mark.parametrize(
    ("packed", "kind"),
    [
        (call("bad_result", []), "TypeError"),
        (call("large_result", []), "InvalidRequest"),
        (call("missing", []), "InvalidRequest"),
        (call("add", [b"k"]), "TypeError"),
        (call("add", ["text", 1]), "InvalidRequest"),
        (call("give_back", [1]), "InvalidRequest"),
        (call("commands", []), "InvalidRequest"),
    ],
)
def test_a_command_used_wrongly_fails_and_changes_nothing(
    packed: bytes, kind: str, bench: Bench
) -> None:
    assert bench.failure(packed).kind == kind
    assert bench.everything() == {}


@pytest.mark.parametrize("kind", [MemoryError, RecursionError, OSError])
def test_what_depends_on_the_machine_is_no_outcome(kind: type[Exception], bench: Bench) -> None:
    entry = bench.log.batch(
        group(bench.session, 1, [call("put_then_raise", [b"k", kind.__name__])])
    )
    with pytest.raises(kind) as caught:
        bench.state.apply(entry)
    assert "raised by command 1" in caught.value.__notes__[0]
    with pytest.raises(AssertionError, match="final"):
        bench.state.apply(entry)


def test_a_failed_read_is_no_outcome_even_if_the_command_catches_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(key: bytes) -> bytes | None:
        raise StorageFailed("can't read")

    monkeypatch.setattr(bench.store, "get", broken)
    with pytest.raises(StorageFailed):
        bench.do(call("swallow", []))


def test_a_view_ends_with_its_command(bench: Bench) -> None:
    bench.one(call("leak", []))
    view = LEAKED.pop()
    for use in (lambda: view.get(b"a"), lambda: view.put(b"a", b""), view.scan):
        with pytest.raises(InvalidRequest, match="is over"):
            use()


def test_a_view_bounds_what_a_command_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "WRITES_BYTES_MAX", 10)
    view = Transaction(State(DictStore()), 0, 1)
    view.put(b"a", b"123456789")
    with pytest.raises(InvalidRequest, match="at most 10"):
        view.put(b"b", b"")


def test_user_commands_without_a_machine_fail() -> None:
    bench = Bench()
    bench.state = State(bench.store)
    bench.state.apply(bench.log.entries[0])
    assert "unknown command 'add'" in bench.failure(call("add", [b"n", 1])).detail


def test_commands_are_inherited_and_can_be_overridden() -> None:
    class Child(Kit):
        def add(self, txn: Transaction, key: bytes, amount: int) -> int:
            return 2 * super().add(txn, key, amount)

        @command
        def more(self, txn: Transaction) -> None: ...

    assert Child.commands == {**Kit.commands, "more": "more"}
    assert "more" not in Kit.commands
    assert Kit.commands["echo"] == "give_back"


def test_two_commands_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="two commands named 'echo'"):

        class Twice(Kit):
            @command
            def echo(self, txn: Transaction) -> None: ...


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(ConfigError, match="can't be called"):

        class Hidden(Kit):
            add = None  # type: ignore[assignment]

    with pytest.raises(ConfigError, match="plain method"):

        class Static(StateMachine):
            @staticmethod
            @command
            def f() -> None: ...

    with pytest.raises(ConfigError, match="plain methods"):
        command(5)  # type: ignore[call-overload]


def test_async_and_generator_commands_are_refused() -> None:
    async def waits(txn: Transaction) -> None: ...

    def yields(txn: Transaction) -> Iterator[int]:
        yield 1

    with pytest.raises(ConfigError, match="async"):
        command(waits)
    with pytest.raises(ConfigError, match="generator"):
        command(yields)
    with pytest.raises(ConfigError, match="1 to 128"):
        command(name="")(Kit.add)


# --- Exactly once ---------------------------------------------------------------------------------


def test_a_session_is_named_after_its_place_in_the_log() -> None:
    bench = Bench()
    applied = bench.apply(opening(7), opening(8))
    assert [(a.session, a.number, a.outcome.session) for a in applied] == [
        (0, 7, 2 << 16),
        (0, 8, (2 << 16) + 1),
    ]


def test_a_repeated_group_gets_the_first_outcome_and_changes_nothing(bench: Bench) -> None:
    repeated = group(
        bench.session, 1, [call("add", [b"n", 1]), put(b"a", b"1"), call("missing", [])]
    )
    first = bench.apply(repeated)[0].outcome
    bench.apply(group(bench.session, 2, [put(b"a", b"2")]))
    again = bench.apply(repeated, repeated)
    assert [str(receipts(a.outcome)) for a in again] == [str(receipts(first))] * 2
    assert bench.everything() == {b"n": b"1", b"a": b"2"}
    assert bench.state.applied.last_sequence == 3 + 1 + 6


def test_numbers_may_arrive_out_of_order(bench: Bench) -> None:
    for number in (3, 1, 2, 3):
        bench.apply(group(bench.session, number, [call("add", [b"n", number])]))
    assert bench.state.get(b"n") == b"6"


def test_below_the_floor_nothing_is_applied_and_the_outcome_is_unknown(bench: Bench) -> None:
    bench.apply(group(bench.session, 1, [put(b"a", b"1")]))
    bench.apply(group(bench.session, 2, [put(b"a", b"2")], floor=2))
    late = bench.apply(group(bench.session, 1, [put(b"a", b"1")]))[0].outcome
    assert late.verdict is Verdict.FORGOTTEN
    with pytest.raises(Indeterminate):
        receipts(late)
    known = bench.apply(group(bench.session, 2, [put(b"a", b"3")], floor=2))[0].outcome
    assert receipts(known) and bench.everything() == {b"a": b"2"}


def test_a_group_of_an_unknown_session_is_not_applied(bench: Bench) -> None:
    outcome = bench.apply(group(12345, 1, [put(b"a", b"1")]))[0].outcome
    with pytest.raises(SessionExpired):
        receipts(outcome)
    assert bench.everything() == {}
    assert bench.state.applied.last_sequence == 1


def test_a_session_expires_after_an_hour_of_log_time(bench: Bench) -> None:
    start, hour = 1_000_000, sessions.SESSION_TTL_US
    kept = group(bench.session, 1, [put(b"a", b"1")])
    assert bench.apply(kept, time_us=start + hour)[0].outcome.verdict is Verdict.APPLIED
    assert bench.apply(kept, time_us=start + 2 * hour)[0].outcome.verdict is Verdict.APPLIED
    late = bench.apply(kept, time_us=start + 3 * hour + 1)[0].outcome
    assert late.verdict is Verdict.SESSION_EXPIRED
    assert bench.state.session_count == 0


def test_beyond_the_most_sessions_the_longest_idle_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "SESSIONS_MAX", 3)
    bench = Bench()
    second, third = (a.outcome.session for a in bench.apply(opening(), opening()))
    bench.apply(group(bench.session, 1, []))
    bench.apply(opening())
    verdicts = [
        bench.apply(group(session, 2, []))[0].outcome.verdict
        for session in (bench.session, second, third)
    ]
    assert verdicts == [Verdict.APPLIED, Verdict.SESSION_EXPIRED, Verdict.APPLIED]


def test_outcomes_over_the_limit_are_forgotten_lowest_number_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions, "SESSION_BYTES_MAX", 3000)
    bench = Bench()
    groups = [group(bench.session, n, [call("echo", [bytes(1000)])]) for n in (1, 2, 3)]
    for each in groups:
        bench.apply(each)
    verdicts = [bench.apply(each)[0].outcome.verdict for each in groups]
    assert verdicts == [Verdict.FORGOTTEN, Verdict.APPLIED, Verdict.APPLIED]


def test_outcomes_over_the_limit_of_all_go_from_the_longest_idle_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions, "OUTCOMES_BYTES_MAX", 3000)
    bench = Bench()
    other = bench.apply(opening())[0].outcome.session
    groups = [group(n, 1, [call("echo", [bytes(1000)])]) for n in (bench.session, other)]
    third = group(other, 2, [call("echo", [bytes(1000)])])
    for each in (*groups, third):
        bench.apply(each)
    verdicts = [bench.apply(each)[0].outcome.verdict for each in (*groups, third)]
    assert verdicts == [Verdict.FORGOTTEN, Verdict.APPLIED, Verdict.APPLIED]


def test_a_floor_that_leaps_ahead_costs_nothing(bench: Bench) -> None:
    bench.apply(group(bench.session, 1, []), group(bench.session, 2, []))
    far = (1 << 64) - 1
    assert bench.apply(group(bench.session, far, [], floor=far))[0].outcome.verdict == 0
    assert bench.apply(group(bench.session, 5, []))[0].outcome.verdict is Verdict.FORGOTTEN


def test_the_size_of_an_outcome_does_not_depend_on_an_exceptions_message() -> None:
    short = sessions._results_size([(machine.FAILED, "ValueError", "x"), None])
    assert short == sessions._results_size([(machine.FAILED, "ValueError", "x" * 500), None])


# --- Reads ----------------------------------------------------------------------------------------


def test_a_scan_merges_all_layers_in_both_directions(bench: Bench) -> None:
    bench.do(*[put(b"%03d" % n, b"stored") for n in range(0, 400, 2)])
    bench.checkpoint()
    bench.do(*[put(b"%03d" % n, b"frozen") for n in range(0, 400, 3)], delete(b"002"))
    bench.state.freeze()
    bench.do(*[put(b"%03d" % n, b"buffer") for n in range(0, 400, 5)], delete(b"003"))
    model = {b"%03d" % n: b"stored" for n in range(0, 400, 2)}
    model |= {b"%03d" % n: b"frozen" for n in range(0, 400, 3)}
    model |= {b"%03d" % n: b"buffer" for n in range(0, 400, 5)}
    del model[b"002"], model[b"003"]
    pairs = sorted(model.items())
    assert bench.state.scan() == pairs
    assert bench.state.scan(reverse=True) == pairs[::-1]
    assert bench.state.scan(b"100", b"300", limit=7) == [p for p in pairs if p[0] >= b"100"][:7]
    below = [p for p in pairs if p[0] < b"300"]
    assert bench.state.scan(None, b"300", limit=7, reverse=True) == below[::-1][:7]
    assert bench.state.count() == len(pairs)


@pytest.mark.parametrize("limit", [0, -1, 10_001, 1.5, True, None])
def test_a_scan_with_a_wrong_limit_is_refused(limit: Any, bench: Bench) -> None:
    with pytest.raises(InvalidRequest, match="limit must be from 1 to 10000"):
        bench.state.scan(limit=limit)


def test_a_scan_with_bounds_that_are_not_bytes_is_refused(bench: Bench) -> None:
    with pytest.raises(InvalidRequest, match="bounds must be bytes"):
        bench.state.scan("a")  # type: ignore[arg-type]


def test_a_scan_of_too_many_bytes_is_refused(bench: Bench) -> None:
    bench.do(*[put(b"%d" % n, bytes(4 * 1024 * 1024)) for n in range(5)])
    assert len(bench.state.scan(limit=3)) == 3
    with pytest.raises(InvalidRequest, match="use a smaller limit"):
        bench.state.scan()


def test_count_is_exact_whatever_was_counted_before(bench: Bench) -> None:
    assert bench.state.count() == 0
    bench.do(put(b"a", b"1"), put(b"b", b"1"), delete(b"c"))
    assert bench.state.count() == 2
    bench.checkpoint()
    assert bench.state.count() == 2
    bench.do(put(b"a", b"2"), delete(b"b"), put(b"d", b"1"))
    assert bench.state.count() == 2
    frozen = bench.state.freeze()
    bench.do(put(b"b", b"3"), delete(b"d"), put(b"e", b"1"), delete(b"x"))
    assert bench.state.count() == 3
    bench.store.write(frozen.items, frozen.meta)
    assert bench.state.count() == 3
    bench.do(put(b"f", b"1"), delete(b"e"))
    assert bench.state.count() == 3
    bench.state.checkpoint_done()
    assert bench.state.count() == 3


def test_overlay_lets_the_newer_layer_win() -> None:
    newer: list[buffer.Pair] = [(b"a", b"new"), (b"c", None)]
    older: list[buffer.Pair] = [(b"a", b"old"), (b"b", b"old"), (b"c", b"old")]
    expected = [(b"a", b"new"), (b"b", b"old"), (b"c", None)]
    assert list(overlay(iter(newer), iter(older), reverse=False)) == expected
    merged = overlay(iter(newer[::-1]), iter(older[::-1]), reverse=True)
    assert list(merged) == expected[::-1]


def test_items_of_a_large_buffer_come_sorted_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer, "SORT_PIECE", 4)
    filled = WriteBuffer()
    filled.values = {b"%d" % (n * 7 % 30): b"%d" % n for n in range(30)}
    items = SortedItems(filled)
    assert len(items) == 30
    assert list(items) == list(items) == sorted(filled.values.items())
    filled.keep_sorted()
    assert len(filled._order) == 0
    assert len(list(filled.iterate(None, None, reverse=False))) == 30
    filled.values[b"new"] = b""
    assert list(filled.iterate(b"n", None, reverse=True)) == [(b"new", b"")]


def test_a_buffer_that_is_scanned_is_sorted_as_it_fills(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer, "SORT_PIECE", 4)
    bench = Bench()
    bench.state.scan()
    bench.do(*[put(b"%d" % n, b"") for n in range(9)])
    bench.checkpoint()
    for sorted_keys in (9, 0):
        bench.do(*[put(b"%d" % n, b"") for n in range(9)])
        assert len(bench.state._buffer._order) == sorted_keys
        bench.checkpoint()


# --- Checkpoints and restarts ---------------------------------------------------------------------


def test_a_restart_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "state")
    bench = Bench(store)
    bench.do(put(b"a", b"1"), call("add", [b"n", 1]))
    bench.checkpoint()
    saved = bench.state.applied
    bench.do(put(b"a", b"2"), call("add", [b"n", 1]), delete(b"x"))
    expected = (bench.everything(), bench.state.applied, bench.state.count())
    store.close()

    store = CheckpointStore(tmp_path / "state")
    restarted = State(store, Kit())
    assert restarted.applied == saved
    assert dict(restarted.scan()) == {b"a": b"1", b"n": b"1"}
    for entry in bench.log.entries[saved.index :]:
        restarted.apply(entry)
    assert (dict(restarted.scan()), restarted.applied, restarted.count()) == expected
    again = restarted.apply(bench.log.batch(group(bench.session, 2, [])))[0].outcome
    assert len(receipts(again)) == 3
    store.close()


def test_a_new_state_starts_at_the_beginning_of_the_log() -> None:
    assert State(DictStore()).applied == LOG_START


def test_only_one_checkpoint_is_under_way(bench: Bench) -> None:
    with pytest.raises(AssertionError, match="after it began"):
        bench.state.checkpoint_done()
    bench.state.freeze()
    assert bench.state.is_frozen
    with pytest.raises(AssertionError, match="one checkpoint at a time"):
        bench.state.freeze()


def test_a_checkpoint_is_of_the_moment_it_was_frozen(bench: Bench) -> None:
    bench.do(put(b"a", b"1"))
    frozen = bench.state.freeze()
    assert frozen.position == bench.state.applied
    bench.do(put(b"a", b"2"), put(b"b", b"2"))
    bench.store.write(frozen.items, frozen.meta)
    restarted = State(bench.store, Kit())
    assert (restarted.applied, dict(restarted.scan())) == (frozen.position, {b"a": b"1"})


def test_the_size_of_the_buffer_starts_over_with_each_checkpoint(bench: Bench) -> None:
    bench.do(put(b"a", bytes(1000)), cas(b"a", bytes(1000), bytes(2000)))
    assert bench.state.buffer_bytes >= 2000
    bench.checkpoint()
    assert bench.state.buffer_bytes == 0


def test_writes_go_on_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "state", map_bytes_min=1 << 20)
    bench = Bench(store)
    for round_ in range(3):
        bench.do(*[put(b"%04d" % n, bytes(300) + b"%d" % round_) for n in range(1000)])
        frozen = bench.state.freeze()
        writer = threading.Thread(target=store.write, args=(frozen.items, frozen.meta))
        writer.start()
        while writer.is_alive():
            bench.do(put(b"busy", b"%d" % bench.number), delete(b"0500"))
            assert bench.state.get(b"0001") == bytes(300) + b"%d" % round_
            assert bench.state.count() == 1000
            assert len(bench.state.scan(b"0490", b"0510")) == 19
        writer.join()
        bench.state.checkpoint_done()
    store.close()


def test_damaged_meta_is_corrupt(bench: Bench) -> None:
    bench.checkpoint()
    meta = bench.store.meta()
    assert meta is not None
    for place in range(len(meta)):
        bench.store.write([], meta[:place] + bytes([meta[place] ^ 4]) + meta[place + 1 :])
        with pytest.raises(Corrupt):
            State(bench.store)
    bench.store.write([], b"")
    with pytest.raises(Corrupt):
        State(bench.store)


def test_a_state_of_a_later_format_is_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "META_VERSION", 2)
    bench.checkpoint()
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="is in format 2, this raftha knows 1"):
        State(bench.store)
