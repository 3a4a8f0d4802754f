"""User state machines: what commands may do, what is refused, and the effect of an exception."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from raftha.errors import (
    ConfigError,
    InvalidRequest,
    StorageFailed,
    UpgradeRequired,
)
from raftha.storage.state import commands, machine
from raftha.storage.state.machine import StateMachine, Transaction, command
from raftha.storage.state.state import State
from tests.sim.store import DictStore
from tests.support.entries import group
from tests.support.state_bench import LEAKED, Bench, Kit

put, delete, call = commands.pack_put, commands.pack_delete, commands.pack_call


@pytest.fixture
def bench() -> Bench:
    return Bench()


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


@pytest.mark.parametrize(
    "kind",
    [
        "OSError",
        "TimeoutError",
        "StorageFailed",
        "SystemExit",
        "KeyboardInterrupt",
        "GeneratorExit",
        "StopIteration",
        "CancelledError",
        "Unspeakable",
    ],
)
def test_whatever_a_command_raises_is_its_outcome(kind: str, bench: Bench) -> None:
    bench.do(put(b"kept", b"v"))
    failure = bench.failure(call("put_then_raise", [b"k", kind]))
    assert failure.kind == kind
    assert bench.everything() == {b"kept": b"v"}
    bench.checkpoint()
    assert bench.one(call("add", [b"n", 5])) == 5, "the node goes on"


def test_whatever_packing_a_result_raises_is_the_outcome(bench: Bench) -> None:
    assert bench.failure(call("raising_result", [])).kind == "SystemExit"
    assert bench.everything() == {}


def test_a_view_belongs_to_the_thread_of_its_command(bench: Bench) -> None:
    """What a thread does comes at another moment on each replica, and their states would differ."""
    assert bench.one(call("use_elsewhere", [])).count("on another thread") == 3
    assert bench.everything() == {}


@pytest.mark.parametrize("kind", [MemoryError, RecursionError])
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
        with pytest.raises(InvalidRequest, match="has ended"):
            use()


def test_a_view_bounds_what_a_command_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "WRITES_BYTES_MAX", 10)
    view = Transaction(State(DictStore()), 0, 1)
    view.put(b"a", b"123456789")
    with pytest.raises(InvalidRequest, match="at most 10"):
        view.put(b"b", b"")


def test_a_command_of_the_log_that_the_node_does_not_have_ends_it() -> None:
    bench = Bench()
    bench.state = State(bench.store)
    bench.state.apply(bench.log.entries[0])
    with pytest.raises(UpgradeRequired, match=r"command 'add'.*start this node again"):
        bench.do(call("add", [b"n", 1]))


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


def test_an_unknown_command_is_refused() -> None:
    with pytest.raises(ConfigError, match="can't be called"):

        class Hidden(Kit):
            add = None  # type: ignore[assignment]

    with pytest.raises(ConfigError, match="plain method"):

        class Static(StateMachine):
            @staticmethod
            @command
            def f() -> None: ...

    with pytest.raises(ConfigError, match="a plain method"):
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
