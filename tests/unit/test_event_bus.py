"""The event bus: order, bounds, and subscribers that are slow, raise, or disappear."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import Callable

import pytest

from raftha import events
from raftha.events import EventKind, HaEvent, LeaderElected, ReplicaConnected
from raftha.runtime.event_bus import AsyncEventStream, EventBus, EventStream
from tests.support.conditions import wait_until


def leader_elected(term: int) -> HaEvent:
    return LeaderElected(reporter=1, leader=2, term=term)


def terms(some: list[HaEvent]) -> list[int]:
    return [event.details()["term"] for event in some]


def run_with(callback: Callable[[HaEvent], None], count: int, **options: int) -> EventBus:
    """A started bus with `count` published events."""
    bus = EventBus(callback, **options)
    bus.start()
    for term in range(count):
        bus.publish(leader_elected(term))
    return bus


def test_each_class_of_event_has_a_kind_of_its_own() -> None:
    classes = [each for each in vars(events).values() if isinstance(each, type)]
    kinds = [each.kind for each in classes if issubclass(each, HaEvent) and each is not HaEvent]
    assert sorted(kinds) == sorted(EventKind)


def test_an_event_is_stamped_with_a_running_number_and_the_time() -> None:
    bus = EventBus()
    first, second = bus.publish(leader_elected(1)), bus.publish(leader_elected(2))
    assert (first.number, second.number) == (1, 2)
    assert 0 < first.time_us <= second.time_us
    assert first.time.tzinfo is not None
    assert first.time.timestamp() == pytest.approx(first.time_us / 1e6)
    assert first.details() == {"leader": 2, "term": 1}


def test_every_stream_gets_every_event_since_it_was_made_in_order_and_once() -> None:
    bus = EventBus()
    early = EventStream(bus.subscribe())
    bus.publish(leader_elected(0))
    late = EventStream(bus.subscribe())
    for term in range(1, 5):
        bus.publish(leader_elected(term))
    assert terms([event for _ in range(5) if (event := early.next())]) == [0, 1, 2, 3, 4]
    assert terms([event for _ in range(4) if (event := late.next())]) == [1, 2, 3, 4]
    assert early.next(timeout=0) is None
    assert late.next(timeout=0) is None


def test_a_full_queue_loses_the_oldest_and_counts_them() -> None:
    bus = EventBus(queue_events_max=3)
    stream, other = EventStream(bus.subscribe()), EventStream(bus.subscribe())
    for term in range(5):
        bus.publish(leader_elected(term))
        assert other.next(timeout=0) is not None
    kept = [event for _ in range(3) if (event := stream.next(timeout=0))]
    assert terms(kept) == [2, 3, 4]
    assert [event.number for event in kept] == [3, 4, 5]
    assert (stream.dropped, other.dropped, bus.dropped) == (2, 0, 2)


def test_a_stream_that_waits_gets_the_event_as_it_comes() -> None:
    bus = EventBus()
    stream = EventStream(bus.subscribe())
    got: list[HaEvent] = []
    thread = threading.Thread(target=lambda: got.extend(stream))
    thread.start()
    for count in range(1, 4):
        bus.publish(leader_elected(count))
        wait_until(lambda count=count: len(got) == count, "the event came")  # type: ignore[misc]
    stream.close()
    thread.join(10)
    assert not thread.is_alive()
    assert terms(got) == [1, 2, 3]


def test_a_closed_stream_ends_and_gets_nothing_more() -> None:
    bus = EventBus(queue_events_max=1)
    with EventStream(bus.subscribe()) as stream:
        bus.publish(leader_elected(1))
    assert list(stream) == []
    for term in range(3):
        bus.publish(leader_elected(term))
    assert stream.next(timeout=0) is None
    assert bus.dropped == 0


def test_a_stream_without_references_is_forgotten() -> None:
    bus = EventBus(queue_events_max=1)
    stream = EventStream(bus.subscribe())
    del stream
    gc.collect()
    for term in range(3):
        bus.publish(leader_elected(term))
    assert bus.dropped == 0


def test_an_asynchronous_stream_gives_the_same_events_on_any_loop() -> None:
    bus = EventBus()
    stream = AsyncEventStream(bus.subscribe())

    async def take(count: int) -> list[HaEvent]:
        threading.Timer(0, lambda: [bus.publish(leader_elected(i)) for i in range(2)]).start()
        got: list[HaEvent] = []
        async for event in stream:
            got.append(event)
            if len(got) == count:
                break
        return got

    async def wait_in_vain() -> HaEvent | None:
        return await stream.next(timeout=0.01)

    async def close_while_it_waits() -> list[HaEvent]:
        async with stream:
            asyncio.get_running_loop().call_soon(stream.close)
            return [event async for event in stream]

    assert terms(asyncio.run(take(2))) == [0, 1]
    assert terms(asyncio.run(take(2))) == [0, 1]
    assert asyncio.run(wait_in_vain()) is None
    assert asyncio.run(close_while_it_waits()) == []


def test_an_asynchronous_stream_on_a_closed_loop_does_no_harm() -> None:
    bus = EventBus()
    stream = AsyncEventStream(bus.subscribe())

    async def begin() -> None:
        waiting = asyncio.create_task(stream.next())
        await asyncio.sleep(0)
        waiting.cancel()

    asyncio.run(begin())
    bus.publish(leader_elected(1))
    assert terms([event for event in [asyncio.run(stream.next())] if event]) == [1]


def test_the_callback_gets_every_event_in_order_before_the_stop_is_over() -> None:
    got: list[HaEvent] = []
    bus = run_with(got.append, 100)
    bus.stop()
    bus.join()
    assert terms(got) == list(range(100))
    assert [event.number for event in got] == list(range(1, 101))


def test_without_a_callback_there_is_no_thread() -> None:
    before = threading.active_count()
    bus = EventBus()
    bus.start()
    bus.publish(leader_elected(1))
    assert threading.active_count() == before
    bus.stop()
    bus.join()


def test_the_callbacks_thread_ends_and_restarts_with_the_node() -> None:
    got: list[HaEvent] = []
    before = threading.active_count()
    bus = run_with(got.append, 1)
    bus.stop()
    bus.join()
    assert threading.active_count() == before
    bus.publish(leader_elected(1))
    bus.start()
    bus.publish(leader_elected(2))
    bus.stop()
    bus.join()
    assert terms(got) == [0, 1, 2]


def test_a_callback_that_raises_is_counted_logged_once_and_called_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    got: list[HaEvent] = []

    def callback(event: HaEvent) -> None:
        got.append(event)
        raise (ValueError if len(got) % 2 else SystemExit)("in the callback")

    with caplog.at_level(logging.ERROR, "raftha"):
        bus = run_with(callback, 6)
        bus.stop()
        bus.join()
    assert terms(got) == list(range(6))
    assert bus.callback_errors == 6
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [
        ValueError,
        SystemExit,
    ]


def test_a_callback_that_hangs_loses_the_oldest_and_hardly_delays_a_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("raftha.runtime.event_bus.CALLBACK_ENDS_S", 0.01)
    is_called, goes_on = threading.Event(), threading.Event()
    got: list[HaEvent] = []

    def callback(event: HaEvent) -> None:
        got.append(event)
        is_called.set()
        goes_on.wait(10)

    bus = EventBus(callback, queue_events_max=3)
    bus.start()
    bus.publish(leader_elected(0))
    assert is_called.wait(10)
    for term in range(1, 6):
        bus.publish(leader_elected(term))
    assert bus.dropped == 2
    bus.stop()
    bus.join()
    bus.start()  # The old thread still hangs: calls must not overlap.
    assert len(got) == 1
    goes_on.set()
    wait_until(lambda: len(got) == 4, "the rest came once the callback went on")
    assert terms(got) == [0, 3, 4, 5]
    bus.stop()
    bus.join()


def test_a_stop_in_the_callback_returns_and_the_thread_ends() -> None:
    before = threading.active_count()
    buses: list[EventBus] = []
    stopped: list[int] = []

    def callback(event: HaEvent) -> None:
        buses[0].stop()
        buses[0].join()
        stopped.append(event.number)

    buses.append(EventBus(callback))
    buses[0].publish(ReplicaConnected(reporter=1, node_id=2))
    buses[0].start()
    wait_until(lambda: threading.active_count() == before, "the thread ended")
    assert stopped == [1]


def test_in_a_forked_process_streams_end_and_a_new_one_may_be_made() -> None:
    bus = EventBus(lambda event: None)
    stream = EventStream(bus.subscribe())
    bus._renew()  # The work of the child after a fork; a real fork would copy pytest's threads.
    assert list(stream) == []
    assert EventStream(bus.subscribe()).next(timeout=0) is None
