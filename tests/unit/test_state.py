"""The state: what commands do, reads through all layers, checkpoints and restarts."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from raftha.entry import LOG_START, Group
from raftha.errors import (
    CommandFailed,
    ConfigError,
    Corrupt,
    InvalidRequest,
)
from raftha.storage.state import buffer, commands, state
from raftha.storage.state.buffer import SortedItems, WriteBuffer, overlay
from raftha.storage.state.checkpoint import CheckpointStore
from raftha.storage.state.commands import Delete, Equals, Exists, Get, Missing, Put
from raftha.storage.state.sessions import receipts
from raftha.storage.state.state import NotYet, State
from raftha.types import Receipt
from tests.sim.store import DictStore
from tests.support.entries import group
from tests.support.state_bench import Bench, Kit

T = TypeVar("T")
put, delete, cas = commands.pack_put, commands.pack_delete, commands.pack_compare_and_set
transaction, call = commands.pack_transaction, commands.pack_call


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


def prepare(bench: Bench, read: Callable[[], T]) -> tuple[T, int]:
    """Prepare a read; return its result, and how often it wasn't ready."""
    for times in range(1000):
        try:
            return read(), times
        except NotYet:
            bench.state.prepare()
    raise AssertionError("it is never ready")


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make reads need small pieces of preparation."""
    for module, name in ((state, "LOOKUP_PIECE"), (state, "SORT_PIECE"), (buffer, "SORT_PIECE")):
        monkeypatch.setattr(module, name, 16)


@pytest.mark.usefixtures("pieces")
def test_long_work_is_prepared_in_pieces_while_writes_go_on(bench: Bench) -> None:
    bench.do(*[put(b"%03d" % n, b"stored") for n in range(0, 600, 2)])
    bench.checkpoint()
    bench.do(*[put(b"%03d" % n, b"frozen") for n in range(0, 600, 3)], delete(b"002"))
    frozen = bench.state.freeze()
    bench.do(*[put(b"%03d" % n, b"buffer") for n in range(0, 600, 5)], delete(b"003"))
    model = {b"%03d" % n: b"" for n in range(600) if n % 2 == 0 or n % 3 == 0 or n % 5 == 0}
    del model[b"002"], model[b"003"]
    count, times = prepare(bench, bench.state.count)
    assert count == len(model)
    assert 15 < times < 25
    for n in range(600, 700):
        bench.do(put(b"%03d" % n, b"while it is sorted"))
        bench.state.prepare()
        model[b"%03d" % n] = b""
        assert bench.state.count() == len(model)
        with contextlib.suppress(NotYet):
            bench.state.scan()
            break
    assert 610 < n < 640
    bench.store.write(frozen.items, frozen.meta)
    assert prepare(bench, bench.state.count)[0] == len(model)
    assert [key for key, _ in prepare(bench, bench.state.scan)[0]] == sorted(model)
    bench.state.checkpoint_done()
    count, times = prepare(bench, bench.state.count)
    assert count == len(model)
    assert times > 5
    assert [key for key, _ in bench.state.scan()] == sorted(model)


@pytest.mark.usefixtures("pieces")
def test_preparation_progresses_however_much_is_written(bench: Bench) -> None:
    bench.do(*[put(b"first-%d" % n, b"") for n in range(100)])
    for read in (bench.state.count, bench.state.scan):
        for turn in range(60):
            with contextlib.suppress(NotYet):
                read()
                break
            bench.do(
                *[put(b"%s-%d-%d" % (read.__name__.encode(), turn, n), b"") for n in range(50)]
            )
            bench.state.prepare()
        else:
            raise AssertionError("it never is ready")


@pytest.mark.usefixtures("pieces")
def test_a_command_that_scans_does_not_wait(bench: Bench) -> None:
    bench.do(*[put(b"%03d" % n, b"") for n in range(90)])
    assert bench.one(call("remove_range", [b"010", b"080"])) == 70
    assert len(bench.state.scan()) == 20


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


def test_a_state_of_another_format_is_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "META_VERSION", 1)
    bench.checkpoint()
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="is in format 1; this raftha reads 7"):
        State(bench.store)
