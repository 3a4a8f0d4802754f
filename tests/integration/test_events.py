"""Events of real nodes: every subscriber gets them, and a slow one slows nothing."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

import raftha
from raftha.events import CheckpointCompleted, EventKind, HaEvent
from tests.support.conditions import wait_until
from tests.support.nodes import free_addresses, make_config

pytestmark = pytest.mark.slow


def make_nodes(
    folder: Path, count: int, on_event: Callable[[HaEvent], None] | None = None, **settings: float
) -> list[raftha.HaManager]:
    members = dict(enumerate(free_addresses(count), start=1))
    return [
        raftha.HaManager(
            replace(make_config(folder, node_id, members), on_event=on_event, **settings)  # type: ignore[arg-type]
        )
        for node_id in members
    ]


def take_until(stream: raftha.EventStream, kind: EventKind) -> list[HaEvent]:
    """The events up to the first of a kind."""
    got: list[HaEvent] = []
    while not got or got[-1].kind is not kind:
        event = stream.next(timeout=20)
        assert event is not None, f"no {kind} among {[e.kind for e in got]}"
        got.append(event)
    return got


def test_callback_and_stream_get_the_same_events_in_order_and_once(tmp_path: Path) -> None:
    called: list[HaEvent] = []
    (node,) = make_nodes(tmp_path, 1, called.append, checkpoint_interval_sec=0.1)
    with node.events() as stream:  # Before the start: nothing is missed.
        with node:
            node.put(b"key", b"value")
            got = take_until(stream, EventKind.CHECKPOINT_COMPLETED)
        assert [event.number for event in got] == list(range(1, len(got) + 1))
        kinds = [event.kind for event in got]
        assert kinds.index(EventKind.LEADER_ELECTED) < kinds.index(EventKind.CHECKPOINT_COMPLETED)
        assert {event.reporter for event in got} == {1}
        assert [event.time_us for event in got] == sorted(event.time_us for event in got)
        assert called[: len(got)] == got
        last = got[-1]
        assert isinstance(last, CheckpointCompleted)
        assert last.keys == 1
        assert node.get_status().events_dropped == stream.dropped == 0


def test_a_restarted_node_continues_the_same_stream(tmp_path: Path) -> None:
    (node,) = make_nodes(tmp_path, 1)
    with node.events() as stream:
        with node:
            node.put(b"key", b"value")
        first = take_until(stream, EventKind.LEADER_ELECTED)
        with node:
            second = take_until(stream, EventKind.LEADER_ELECTED)
    assert second[0].number > first[-1].number
    assert [e.number for e in second] == list(range(second[0].number, second[-1].number + 1))


def test_a_callback_that_hangs_slows_no_write_and_its_losses_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftha.runtime.event_bus.QUEUE_EVENTS_MAX", 2)
    goes_on = threading.Event()

    def hang(event: HaEvent) -> None:
        goes_on.wait(60)

    nodes = make_nodes(tmp_path, 3, hang)
    try:
        with ExitStack() as running:
            for node in nodes:
                running.enter_context(node)
            nodes[0].put(b"leader", b"wanted")
            began = time.monotonic()
            for i in range(100):
                assert nodes[i % 3].put(b"key-%d" % i, b"value")
            assert time.monotonic() - began < 30, "a blocked callback takes 60 s"
            for node in nodes:
                target = node.config.node_id
                nodes[0].failover_to(target)
            wait_until(
                lambda: all(node.get_status().events_dropped for node in nodes),
                "losses are counted",
            )
    finally:
        goes_on.set()


def test_a_callback_that_raises_does_not_stop_the_stream(tmp_path: Path) -> None:
    def callback(event: HaEvent) -> None:
        raise ValueError(event.kind)

    (node,) = make_nodes(tmp_path, 1, callback)
    with node, node.events() as stream:
        assert node.put(b"key", b"value")
        assert node.get(b"key") == b"value"
        wait_until(lambda: node.get_status().event_errors > 0, "errors are counted")
        assert stream.dropped == 0


def test_the_callback_may_ask_for_the_status_write_and_stop_the_node(tmp_path: Path) -> None:
    nodes: list[raftha.HaManager] = []
    seen: list[bool] = []

    def callback(event: HaEvent) -> None:
        if event.kind is EventKind.LEADER_ELECTED:
            node = nodes[0]
            seen.append(node.get_status().is_running)
            seen.append(bool(node.put(b"from", b"callback")))
            node.stop()
            seen.append(node.get_status().is_running)

    nodes.extend(make_nodes(tmp_path, 1, callback))
    nodes[0].start()
    wait_until(lambda: len(seen) == 3, "the callback returned")
    assert seen == [True, True, False]
    nodes[0].stop()


def test_the_asynchronous_manager_streams_the_same_events(tmp_path: Path) -> None:
    called: list[HaEvent] = []
    members = dict(enumerate(free_addresses(1), start=1))
    config = replace(make_config(tmp_path, 1, members), on_event=called.append)

    async def use() -> list[HaEvent]:
        ha = raftha.aio.HaManager(config)
        got: list[HaEvent] = []
        async with ha.events() as stream:
            async with ha:
                await ha.put(b"key", b"value")
                async for event in stream:
                    got.append(event)
                    if event.kind is EventKind.LEADER_ELECTED:
                        break
                assert (await ha.get_status()).events_dropped == stream.dropped == 0
            assert await stream.next(timeout=0.01) is None or len(called) > len(got)
        return got

    got = asyncio.run(use())
    assert [event.number for event in got] == list(range(1, len(got) + 1))
    assert called[: len(got)] == got
