"""What a node supports and what the cluster uses: ranges, merging, and bytes."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftha import version
from raftha.entry import LOG_START, EntryKind, LogPosition, make_entry
from raftha.errors import ConfigError, UpgradeRequired
from raftha.storage.state.commands import pack_call
from raftha.storage.state.machine import StateMachine, Transaction, command
from raftha.storage.state.state import State
from raftha.storage.state.versions import (
    COMMANDS_MAX,
    Abilities,
    Versions,
    abilities_of,
    common,
    decode_versions,
    encode_versions,
    pack_names,
    unpack_names,
)
from tests.sim.store import DictStore
from tests.support.state_bench import Bench

NAMES = st.frozensets(st.sampled_from(("add", "move", "drop")))
VERSIONS = st.builds(Versions, st.integers(1, 9), st.integers(0, 9), NAMES)


class One(StateMachine):
    @command
    def step(self, txn: Transaction) -> int:
        return 1


class Two(One):
    version = 2
    oldest_version = 1

    @command
    def step(self, txn: Transaction) -> int:
        return txn.machine_version

    @command
    def more(self, txn: Transaction) -> None: ...


def node(protocols: tuple[int, int], machines: tuple[int, int], *commands: str) -> Abilities:
    return Abilities("0.1.0", *protocols, *machines, frozenset(commands))


@given(VERSIONS, VERSIONS, VERSIONS)
def test_versions_only_rise_in_whatever_order_they_come(
    a: Versions, b: Versions, c: Versions
) -> None:
    assert a.raised(b) == b.raised(a)
    assert a.raised(b).raised(c) == a.raised(b.raised(c)).raised(a)
    assert a.raised(b).protocol >= a.protocol and a.raised(b).commands >= a.commands


@given(VERSIONS)
def test_versions_survive_the_log(versions: Versions) -> None:
    assert decode_versions(encode_versions(versions)) == versions


def test_common_is_what_all_support() -> None:
    old, new = node((5, 6), (0, 1), "add"), node((6, 7), (1, 2), "add", "move")
    assert common([old, new]) == Versions(6, 1, frozenset({"add"}))
    assert common([new]) == Versions(7, 2, frozenset({"add", "move"}))
    assert common([old, node((7, 8), (0, 1))]) is None
    assert common([old, node((6, 6), (2, 3))]) is None


@pytest.mark.parametrize(
    ("used", "reason"),
    [
        (Versions(6, 1, frozenset({"add"})), ""),
        (Versions(7, 1, frozenset()), "uses protocol 7, and the node supports 5 to 6"),
        (Versions(4, 1, frozenset()), "uses protocol 4"),
        (
            Versions(6, 3, frozenset()),
            "version of the state machine 3, and the node supports 1 to 2",
        ),
        (Versions(6, 0, frozenset()), "version of the state machine 0"),
        (Versions(6, 1, frozenset({"move"})), "commands that the node doesn't know: 'move'"),
    ],
)
def test_a_node_says_what_it_lacks(used: Versions, reason: str) -> None:
    found = node((5, 6), (1, 2), "add").refusal(used)
    assert reason in found and bool(found) is bool(reason)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        msgpack.packb([2, "versions", 6, 1, []]),
        msgpack.packb([1, "restore", 6]),
        msgpack.packb([1, "versions", 6, 1]),
        msgpack.packb([1, "versions", "6", 1, []]),
        msgpack.packb([1, "versions", 6, 1, [1]]),
    ],
)
def test_an_administrative_entry_of_a_later_version_is_not_guessed_at(payload: bytes) -> None:
    with pytest.raises(UpgradeRequired, match="start this node again"):
        decode_versions(payload)


def test_names_are_bounded_and_checked() -> None:
    names = frozenset(f"command {i}" for i in range(COMMANDS_MAX))
    assert unpack_names(pack_names(names)) == names
    for junk in (b"", b"\xc1", b"\x80", b"\x91\x01", pack_names(names | {"one more"})):
        with pytest.raises(ValueError, match=r".*"):
            unpack_names(junk)


def test_a_machine_with_wrong_versions_or_too_many_commands_is_refused() -> None:
    for wrong in ({"version": 0}, {"version": "2"}, {"version": True}, {"oldest_version": 2}):
        with pytest.raises(ConfigError, match="version"):
            type("Wrong", (StateMachine,), wrong)
    many = {f"c{i}": command(name=f"c{i}")(lambda self, txn: None) for i in range(COMMANDS_MAX + 1)}
    with pytest.raises(ConfigError, match="1001 commands"):
        type("Many", (StateMachine,), many)


def bench_of(machine: StateMachine) -> Bench:
    bench = Bench()
    bench.state = State(bench.store, machine)
    bench.state.apply(bench.log.entries[0])
    return bench


def raise_to(bench: Bench, versions: Versions) -> None:
    bench.state.apply(bench.log.add(EntryKind.ADMIN, encode_versions(versions)))


def test_all_replicas_switch_at_the_same_entry() -> None:
    bench = bench_of(Two())
    raise_to(bench, Versions(version.PROTOCOL_VERSION, 1, frozenset({"step"})))
    assert bench.one(pack_call("step", [])) == 1
    assert "not all members know it" in bench.failure(pack_call("more", [])).detail
    raise_to(bench, Versions(version.PROTOCOL_VERSION, 2, frozenset({"step", "more"})))
    assert bench.one(pack_call("step", [])) == 2
    assert bench.one(pack_call("more", [])) is None


def test_a_lower_version_in_a_later_entry_lowers_nothing() -> None:
    bench = bench_of(Two())
    high = Versions(version.PROTOCOL_VERSION, 2, frozenset({"step", "more"}))
    raise_to(bench, high)
    raise_to(bench, Versions(version.PROTOCOL_VERSION, 1, frozenset({"step"})))
    assert bench.state.versions == high


def test_a_node_that_is_too_old_applies_nothing_of_the_entry() -> None:
    bench = bench_of(One())
    before = bench.state.applied
    with pytest.raises(UpgradeRequired, match="state machine 2, and the node supports 0 to 1"):
        raise_to(bench, Versions(version.PROTOCOL_VERSION, 2, frozenset({"step", "more"})))
    assert (bench.state.applied, bench.state.versions) == (before, None)


def test_an_entry_of_an_unknown_kind_ends_the_node() -> None:
    bench = bench_of(One())
    entry = bench.log.add(EntryKind.NOOP, b"")
    with pytest.raises(UpgradeRequired, match="entries of kind 9"):
        bench.state.apply(entry._replace(kind=9))


def test_the_versions_are_in_the_checkpoint_and_checked_at_a_start() -> None:
    bench = bench_of(Two())
    high = Versions(version.PROTOCOL_VERSION, 2, frozenset({"step", "more"}))
    raise_to(bench, high)
    bench.checkpoint()
    State(bench.store, Two()).check_supported()
    assert State(bench.store).versions == high
    for machine in (One(), None):
        with pytest.raises(UpgradeRequired):
            State(bench.store, machine).check_supported()


def test_a_start_checks_the_committed_log_that_it_is_about_to_apply() -> None:
    payload = encode_versions(Versions(version.PROTOCOL_VERSION, 2, frozenset()))
    entry = make_entry(LogPosition(*LOG_START), 1, 1, EntryKind.ADMIN, payload, 0)
    State(DictStore(), Two()).check_supported([entry])
    with pytest.raises(UpgradeRequired):
        State(DictStore(), One()).check_supported([entry])


def test_what_this_build_supports() -> None:
    assert abilities_of(None).commands == frozenset()
    found = abilities_of(Two())
    assert (found.machine_oldest, found.machine) == (1, 2)
    assert found.commands == {"step", "more"}
    assert found.release == version.VERSION
