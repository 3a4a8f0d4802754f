"""Exactly once: repeated groups, floors, expiry, and the bounds of the kept outcomes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from raftha.errors import (
    Indeterminate,
    SessionExpired,
)
from raftha.storage.state import commands, machine, sessions
from raftha.storage.state.machine import Transaction, command
from raftha.storage.state.owners import make_owner
from raftha.storage.state.sessions import Verdict, receipts
from tests.support.entries import group, opening
from tests.support.state_bench import Bench, Kit

put, call = commands.pack_put, commands.pack_call


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_session_id_is_the_same_on_all_replicas_and_unguessable() -> None:
    applied = Bench().apply(opening(7), opening(8))
    assert [(a.session, a.number) for a in applied] == [(0, 7), (0, 8)]
    ids = [a.outcome.session for a in applied]
    assert ids == [a.outcome.session for a in Bench().apply(opening(7), opening(8))]
    others = [a.outcome.session for a in Bench().apply(opening(9), opening(8))]
    assert len({*ids, *others}) == 4, "each hangs on all that the entry holds"
    assert all(0 < session < 1 << 63 for session in ids)


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


def test_a_full_table_drops_a_session_of_the_client_that_has_the_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions, "SESSIONS_MAX", 8)
    bench = Bench()
    victims = [opening(i)._replace(commands=make_owner(1, f"10.0.0.{i} 1")) for i in (1, 2)]
    same_host = opening(3)._replace(commands=make_owner(1, "10.0.0.9 8"))
    kept = [a.outcome.session for a in bench.apply(*victims, same_host)]
    greedy = [opening(n)._replace(commands=make_owner(1, "10.0.0.9 9")) for n in range(10, 60)]
    opened = [a.outcome.session for a in bench.apply(*greedy)]
    alive = [*kept, bench.session, *opened[-4:]]
    for session in alive:
        assert bench.apply(group(session, 1, []))[0].outcome.verdict is Verdict.APPLIED
    for session in opened[:-4]:
        expired = bench.apply(group(session, 1, []))[0].outcome
        assert expired.verdict is Verdict.SESSION_EXPIRED


def test_a_host_with_many_connections_loses_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "SESSIONS_MAX", 8)
    bench = Bench()
    victim = bench.apply(opening()._replace(commands=make_owner(1, "10.0.0.1 1")))
    for n in range(50):
        bench.apply(opening(n)._replace(commands=make_owner(1, f"10.0.0.9 {n}")))
    kept = bench.apply(group(victim[0].outcome.session, 1, []))[0].outcome
    assert kept.verdict is Verdict.APPLIED


def test_outcomes_are_dropped_at_the_cost_of_the_host_with_the_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions, "OUTCOMES_BYTES_MAX", 20_000)
    bench = Bench()
    openings = [opening(i)._replace(commands=make_owner(1, f"10.0.0.{i} 1")) for i in (1, 2)]
    victim, greedy = (a.outcome.session for a in bench.apply(*openings))
    echo = call("echo", [bytes(1000)])
    kept = group(victim, 1, [echo])
    bench.apply(kept)
    numbered = [group(greedy, n, [echo]) for n in range(1, 40)]
    for each in numbered:
        bench.apply(each)
    assert bench.apply(kept)[0].outcome.verdict is Verdict.APPLIED
    assert bench.apply(numbered[0])[0].outcome.verdict is Verdict.FORGOTTEN
    assert bench.apply(numbered[-1])[0].outcome.verdict is Verdict.APPLIED


@pytest.mark.parametrize(
    ("sizes", "total", "share"), [([1, 2, 3], 6, 6), ([1, 2, 3], 5, 2), ([9, 9], 4, 2), ([], 5, 5)]
)
def test_shares_are_cut_from_the_largest(sizes: list[int], total: int, share: int) -> None:
    assert sessions._fair_share(sizes, total) == share


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


class Counted(dict[int, Any]):
    """Counts how often all of it is gone through."""

    passes = 0

    def __iter__(self) -> Iterator[int]:
        self.passes += 1
        return super().__iter__()


@pytest.mark.parametrize("stride", [1, 1 << 40])
def test_dropping_an_outcome_does_not_go_through_all_of_them(
    monkeypatch: pytest.MonkeyPatch, stride: int
) -> None:
    """With 32,000 in each of eight sessions, that stopped every node for 17 s."""
    monkeypatch.setattr(sessions, "SESSION_BYTES_MAX", 200 * 256)
    monkeypatch.setattr(sessions, "OUTCOMES_BYTES_MAX", 300 * 256)
    bench = Bench()
    other = bench.apply(opening())[0].outcome.session
    kept = []
    for session in (bench.session, other):
        monkeypatch.setattr(bench.state._sessions._sessions[session], "kept", Counted())
        kept.append(bench.state._sessions._sessions[session].kept)
        for number in range(1, 400):
            floor = max(1, number - 100) if number > 300 else 1
            bench.apply(group(session, stride * number, [], floor=stride * floor))
    assert all(len(each) < 200 for each in kept)
    assert sum(each.passes for each in kept if isinstance(each, Counted)) < 10


def test_a_floor_that_leaps_ahead_costs_nothing(bench: Bench) -> None:
    bench.apply(group(bench.session, 1, []), group(bench.session, 2, []))
    far = (1 << 64) - 1
    assert bench.apply(group(bench.session, far, [], floor=far))[0].outcome.verdict == 0
    assert bench.apply(group(bench.session, 5, []))[0].outcome.verdict is Verdict.FORGOTTEN


def test_the_size_of_an_outcome_does_not_depend_on_an_exceptions_message() -> None:
    short = sessions._results_size([(machine.FAILED, "ValueError", "x"), None])
    assert short == sessions._results_size([(machine.FAILED, "ValueError", "x" * 500), None])


class Wordy(Kit):
    """One replica of a machine: what it raises and returns may differ from another's."""

    def __init__(self, error: Exception, value: int = 1) -> None:
        self.error, self.value = error, value

    @command
    def put_then_raise(self, txn: Transaction, key: bytes, kind: str) -> None:
        raise self.error

    @command(name="echo")
    def give_back(self, txn: Transaction, value: Any) -> Any:
        return self.value


def digest_with(replica: Wordy) -> bytes:
    bench = Bench()
    bench.state.machine = replica
    bench.do(put(b"a", b"1"), call("put_then_raise", [b"a", ""]), call("echo", [1]))
    frozen = bench.state.freeze()
    bench.store.write(frozen.items, frozen.meta)
    stored = bench.store.digest()
    assert stored is not None
    return frozen.digest_with(stored).whole


def test_a_digest_has_the_kind_of_an_exception_and_not_its_message() -> None:
    """A message may hold a set, in another order on each replica, or an object's address."""
    digest = digest_with(Wordy(ValueError("{1, 2}")))
    assert digest_with(Wordy(ValueError("{2, 1}, in other words"))) == digest
    assert digest_with(Wordy(TypeError("{1, 2}"))) != digest
    assert digest_with(Wordy(ValueError("{1, 2}"), value=2)) != digest
