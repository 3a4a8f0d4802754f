"""Both managers have the same methods, and the same script of calls has the same results."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest

import raftha
from raftha import Delete, Equals, Exists, Get, Missing, Put
from raftha.config import MIB
from tests.integration.forking_host import CALLS
from tests.support.nodes import free_addresses

ONLY_AWAITED = {
    "get_by_lease",
    "open_session",
    "submit",
    "submit_get_each",
    "submit_get_many",
    "submit_once",
}
"""For servers that pass on what other processes submit."""

NOT_AWAITED = {
    "events",
    "get_by_lease",
    "observe",
    "submit",
    "submit_get_each",
    "submit_get_many",
    "submit_once",
}
"""Methods of the asynchronous manager that aren't awaited. `events` returns a stream, `observe` is
for scrapers, the others return futures."""


def public_names(of: object) -> set[str]:
    return {name for name in dir(of) if not name.startswith("_")}


def methods(of: type) -> set[str]:
    return {name for name in public_names(of) if callable(getattr(of, name))}


BOTH = sorted(methods(raftha.HaManager) & methods(raftha.aio.HaManager))

# ------------------------------------------------------------------ names, signatures, docstrings


def test_no_public_name_is_missing_on_either_side() -> None:
    config = raftha.HaConfig(node_id=1, data_dir="x", members={1: "127.0.0.1:1"})
    blocking = public_names(raftha.HaManager(config))
    awaited = public_names(raftha.aio.HaManager(config))
    assert blocking - awaited == set(), "raftha.aio.HaManager lacks these"
    assert awaited - blocking == ONLY_AWAITED, "raftha.HaManager lacks one, or has it now"


@pytest.mark.parametrize("name", ["__init__", *BOTH])
def test_both_signatures_are_the_same(name: str) -> None:
    blocking = inspect.signature(getattr(raftha.HaManager, name))
    awaited = inspect.signature(getattr(raftha.aio.HaManager, name))
    assert list(blocking.parameters.values()) == list(awaited.parameters.values())
    assert blocking.return_annotation == awaited.return_annotation.removeprefix("Async")


@pytest.mark.parametrize("part", ["replication", "backup", "pitr"])
def test_both_managers_parts_have_the_same_names_and_signatures(part: str) -> None:
    config = raftha.HaConfig(
        node_id=1, data_dir="x", members={1: "127.0.0.1:1"}, backup=raftha.BackupConfig()
    )
    blocking = getattr(raftha.HaManager(config), part)
    awaited = getattr(raftha.aio.HaManager(config), part)
    assert public_names(blocking) == public_names(awaited)
    for name in sorted(public_names(blocking) - {"config"}):
        method = getattr(awaited, name)
        assert inspect.signature(method) == inspect.signature(getattr(blocking, name)), name
        assert inspect.iscoroutinefunction(method), name
        assert inspect.getdoc(method), name


@pytest.mark.parametrize("name", sorted(methods(raftha.aio.HaManager)))
def test_methods_of_the_asynchronous_manager_are_awaited(name: str) -> None:
    method = getattr(raftha.aio.HaManager, name)
    assert inspect.iscoroutinefunction(method) == (name not in NOT_AWAITED)


@pytest.mark.parametrize("manager", [raftha.HaManager, raftha.aio.HaManager])
def test_every_method_says_what_it_does(manager: type) -> None:
    undocumented = [n for n in methods(manager) if not inspect.getdoc(getattr(manager, n))]
    assert undocumented == []


# ------------------------------------------------------------------ the same script

WAY_OUT = threading.Event()
"""Set it to let the command `hang` end."""


class Machine(raftha.StateMachine):
    """Commands that return, fail and hang."""

    @raftha.command
    def add(self, txn: raftha.Transaction, key: bytes, amount: int) -> int:
        total = int(txn.get(key) or 0) + amount
        txn.put(key, b"%d" % total)
        if total < 0:
            raise ValueError(f"{total} is below 0")
        return total

    @raftha.command
    def hang(self, txn: raftha.Transaction) -> None:
        WAY_OUT.wait(60)


class Way(Protocol):
    """One of the two ways to call a manager."""

    def call(self, name: str, *args: Any, **options: Any) -> Any: ...
    def call_all(self, name: str, every: list[tuple[Any, ...]], **options: Any) -> list[Any]: ...


class Blocking:
    """Calls on threads."""

    def __init__(self, config: raftha.HaConfig) -> None:
        self._ha = raftha.HaManager(config, state_machine=Machine())

    def call(self, name: str, *args: Any, **options: Any) -> Any:
        return shown(lambda: getattr(self._ha, name)(*args, **options))

    def call_all(self, name: str, every: list[tuple[Any, ...]], **options: Any) -> list[Any]:
        with ThreadPoolExecutor(len(every)) as threads:
            return list(threads.map(lambda args: self.call(name, *args, **options), every))


class Awaited:
    """Calls on an event loop."""

    def __init__(self, config: raftha.HaConfig, runner: asyncio.Runner) -> None:
        self._runner = runner
        self._ha = raftha.aio.HaManager(config, state_machine=Machine())

    async def _call(self, name: str, *args: Any, **options: Any) -> Any:
        result = getattr(self._ha, name)(*args, **options)
        return await result if inspect.isawaitable(result) else result

    def call(self, name: str, *args: Any, **options: Any) -> Any:
        return shown(lambda: self._runner.run(self._call(name, *args, **options)))

    def call_all(self, name: str, every: list[tuple[Any, ...]], **options: Any) -> list[Any]:
        async def gather() -> list[Any]:
            calls = (self._call(name, *args, **options) for args in every)
            return await asyncio.gather(*calls, return_exceptions=True)

        return [shown(lambda r=result: give(r)) for result in self._runner.run(gather())]  # type: ignore[misc]


def give(result: Any) -> Any:
    if isinstance(result, Exception):
        raise result
    return result


def shown(call: Callable[[], Any]) -> Any:
    """What a call returned or raised, without the parts that differ between runs."""
    try:
        result = call()
    except (raftha.RafthaError, TypeError) as error:
        return type(error).__name__, str(error)
    return comparable(result)


def comparable(result: Any) -> Any:
    match result:
        case raftha.Receipt():
            numbers = result.sequence, result.succeeded, result.result
            return "Receipt", *numbers, result.mode, result.acked_by, result.regions
        case raftha.HaStatus():
            members = [(replica.node_id, replica.is_voter) for replica in result.replicas]
            return "HaStatus", result.role, result.leader_id, result.is_running, members
        case raftha.Digest():
            return "Digest", result.sequence, result.hex, result.keys
        case (raftha.HaStatus(), _):
            return comparable(result[0])
    return result


class Call(NamedTuple):
    name: str
    args: tuple[Any, ...]
    options: dict[str, Any]


def call(name: str, *args: Any, **options: Any) -> Call:
    return Call(name, args, options)


WRONG = [
    call("put", b"", b"x"),
    call("put", b"k" * 512, b"x"),
    call("put", "text", b"x"),
    call("put", b"k", bytes(MIB + 1)),
    call("put", b"k", b"v", timeout=0),
    call("put", b"k", b"v", timeout="3"),
    call("put", b"k"),
    call("put", b"k", b"v", mode="other"),
    call("put", b"k", b"v", write_quorum=2),
    call("put", b"k", b"v", write_quorum="1"),
    call("put", b"k", b"v", mode="sync", write_quorum=1),
    call("delete", b""),
    call("compare_and_set", b"k", "text", b"v"),
    call("transaction", [object()], []),
    call("transaction", [], [Put(b"", b"")]),
    call("execute", "add", object()),
    call("execute", "no such command"),
    call("execute", "add", b"total", -100),
    call("execute", "add"),
    call("get", ""),
    call("get", b"k", consistency="eventual"),
    call("get", b"k", max_staleness_ms=-1),
    call("get", b"k", max_staleness_ms="1"),
    call("get", b"k", consistency="stale", max_staleness_ms=1),
    call("get_many", [b"k", "k"]),
    call("scan", limit=1_000_000),
    call("scan", "a"),
    call("count", consistency=""),
    call("digest", -1),
    call("digest", 1 << 40, timeout=0.1),
    call("failover_to", 9),
    call("failover_to", "1"),
    call("recover_to_point", 0),
    call("recover_to_sequence", "1"),
    call("recover_to_sequence", 1, freeze="never"),
    call("add_replica", 1, "127.0.0.1:1"),
    call("add_replica", 2, "nowhere"),
    call("add_replica", "2", "127.0.0.1:1"),
    call("promote_replica", 9),
    call("promote_replica", "9"),
    call("move_replica", 9, region="far"),
    call("move_replica", 1),
    call("move_replica", 1, address=5),
    call("move_replica", 1, address="nowhere"),
    call("promote_region", "nowhere"),
    call("remove_replica", 9),
    call("remove_replica", -1),
    call("remove_replica", 1),
]

RIGHT = [
    call("put", b"a", b"1"),
    call("put", b"b", b"2", timeout=5),
    call("put", b"b", b"2", mode="sync"),
    call("delete", b"none", write_quorum=1),
    call("put", b"none", b"", mode="async_fire_forget"),
    call("delete", b"none"),
    call("get", b"a"),
    call("get", b"none"),
    call("get", b"b", consistency="stale", timeout=5),
    call("delete", b"a"),
    call("delete", b"a"),
    call("compare_and_set", b"c", None, b"3"),
    call("compare_and_set", b"c", b"other", b"4"),
    call("compare_and_set", b"c", b"3", None),
    call("transaction", [Exists(b"b"), Missing(b"a")], [Put(b"a", b"5"), Get(b"b")]),
    call("transaction", [Equals(b"a", b"6")], [Delete(b"a")], [Get(b"a")]),
    call("execute", "add", b"total", 7),
    call("execute", "add", b"total", 8, timeout=5),
    call("get_many", [b"a", b"none", b"total"]),
    call("get", b"a", max_staleness_ms=60_000),
    call("get_many", [b"a", b"none"], max_staleness_ms=0),
    call("count", max_staleness_ms=100.5),
    call("scan", max_staleness_ms=60_000),
    call("scan"),
    call("scan", b"a", b"c", limit=1, reverse=True),
    call("count"),
    call("count", consistency="stale"),
    call("digest"),
    call("digest", 1),
    call("failover_to", 1),
    call("trigger_backup"),
    call("recover_to_point", datetime(2026, 11, 27, tzinfo=UTC)),
    call("recover_to_sequence", 1),
    call("get_status"),
    call("observe"),
    call("promote_replica", 1),
    call("promote_region", "primary"),
    call("add_replica", 2, "127.0.0.1:1", region="far", voter=False),
    call("promote_region", "far", timeout=0.2),
    call("move_replica", 2, region="near"),
    call("move_replica", 2, address="127.0.0.1:1", region="far"),
    call("add_replica", 2, "127.0.0.1:1", timeout=0.2),
    call("remove_replica", 2),
    call("get_status"),
]


REFUSED = {"Stopped", "InvalidRequest", "TypeError", "HaStatus"}


@contextmanager
def ways(folder: Path, member_count: int = 1) -> Iterator[tuple[Way, Way]]:
    """Two nodes with id 1, each of a cluster of its own."""

    def make_config(name: str) -> raftha.HaConfig:
        return raftha.HaConfig(
            node_id=1,
            data_dir=folder / name,
            members=dict(enumerate(free_addresses(member_count), start=1)),
            wal_segment_bytes=16 * MIB,
            submit_queue_bytes_max=8 * MIB,
        )

    with asyncio.Runner() as runner:
        both = Blocking(make_config("blocking")), Awaited(make_config("awaited"), runner)
        try:
            yield both
        finally:
            for way in both:
                way.call("stop")


def compare(blocking: Way, awaited: Way, script: list[Call]) -> list[Any]:
    results = []
    for name, args, options in script:
        expected = blocking.call(name, *args, **options)
        assert awaited.call(name, *args, **options) == expected, name
        results.append(expected)
    return results


def kinds(results: list[Any]) -> set[str]:
    return {result[0] for result in results if isinstance(result, tuple) and result}


def test_the_script_has_every_method() -> None:
    missing = set(BOTH) - {name for name, *_ in RIGHT} - {"start", "stop", "events"}
    assert missing == set(), "add calls of these to RIGHT and, with what they refuse, to WRONG"
    assert set(CALLS) == set(BOTH), "add calls of these to `forking_host`"


@pytest.mark.slow
def test_a_script_has_the_same_results_before_while_and_after_running(
    tmp_path: Path,
) -> None:
    """A script of all valid and all invalid calls; the cluster has one node."""
    with ways(tmp_path) as both:
        stopped = compare(*both, [*RIGHT, *WRONG, call("stop")])
        assert kinds(stopped) == REFUSED
        assert compare(*both, [call("start"), call("start")]) == [None, None]
        running = compare(*both, [*RIGHT, *WRONG])
        assert kinds(running) >= {"Receipt", "Digest", "CommandFailed", "TransferFailed"}
        assert compare(*both, [call("stop"), call("stop")]) == [None, None]
        again = compare(*both, [*RIGHT, *WRONG])
        assert kinds(again) == REFUSED
        compare(*both, [call("start"), *RIGHT])


@pytest.mark.slow
def test_without_a_majority_both_fail_alike(tmp_path: Path) -> None:
    # These need no other node; neither do stale reads.
    alone = {"get_status", "observe", "digest", "trigger_backup"}
    alone |= {"recover_to_point", "recover_to_sequence"}
    hasty = [
        Call(name, args, {**options, "timeout": 0.1})
        for name, args, options in RIGHT
        if name not in alone and options.get("consistency") != "stale"
    ]
    stale = [each for each in RIGHT if each.options.get("consistency") == "stale"]
    with ways(tmp_path, 3) as both:
        compare(*both, [call("start")])
        results = compare(*both, [*hasty, *stale, call("digest")])
        # One of three is no quorum; a caller that doesn't wait gets a receipt that proves nothing.
        assert kinds(results) == {
            *("Unavailable", "TransferFailed", "Digest", "InvalidRequest", "Receipt"),
        }
        larges = [(b"%d" % i, bytes(MIB)) for i in range(10)]
        overloaded = [sorted(way.call_all("put", larges, timeout=1)) for way in both]
        assert overloaded[0] == overloaded[1]
        assert kinds(overloaded[0]) == {"Unavailable", "Overloaded"}


@pytest.mark.slow
def test_calls_to_a_node_that_hangs_end_alike(tmp_path: Path) -> None:
    """The node's thread is in a user's command that doesn't end."""
    WAY_OUT.clear()
    with ways(tmp_path) as both:
        try:
            compare(*both, [call("start"), call("put", b"a", b"1")])
            hung = [call("execute", "hang", timeout=0.1), call("get", b"a", timeout=0.1)]
            results = compare(*both, hung)
            assert kinds(results) == {"RequestTimeout"}
        finally:
            WAY_OUT.set()
        compare(*both, [call("get", b"a")])


@pytest.mark.slow
def test_both_managers_refuse_the_same_starts(tmp_path: Path) -> None:
    (tmp_path / "blocking").write_text("")
    (tmp_path / "awaited").write_text("")
    with ways(tmp_path) as (blocking, awaited):
        kind, message = blocking.call("start")
        assert kind == "ConfigError"
        assert awaited.call("start") == (kind, message.replace("blocking", "awaited"))
