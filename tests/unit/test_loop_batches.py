"""Operations that tasks submit in one turn of an event loop go to the node together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from raftha.errors import Overloaded, Stopped
from raftha.node.operations import Operation, WriteOperation
from raftha.runtime.callers import FireForgetCounter, LoopBatches
from raftha.types import FireForgetCounts


def write(name: bytes = b"") -> WriteOperation:
    return WriteOperation(None, 0.0, name)


class Node:
    """Takes operations, refuses those in `refused`, or raises `error`."""

    def __init__(self) -> None:
        self.submitted: list[list[Operation]] = []
        self.refused: list[Operation] = []
        self.error: Exception | None = None

    def submit(self, operations: Sequence[Operation]) -> Sequence[Operation]:
        if self.error is not None:
            raise self.error
        self.submitted.append(list(operations))
        return [each for each in operations if each in self.refused]


def test_one_turn_of_a_loop_is_one_batch_in_order() -> None:
    async def scenario() -> None:
        node = Node()
        batches = LoopBatches(node.submit, list)
        first, second, third = write(), write(), write()
        futures = [batches.add(first), batches.add(second)]
        assert node.submitted == []
        await asyncio.sleep(0)
        batches.add(third)
        await asyncio.sleep(0)
        assert node.submitted == [[first, second], [third]]
        assert futures == [first.waiter, second.waiter]

    asyncio.run(scenario())


def test_flushed_operations_are_not_submitted_again() -> None:
    async def scenario() -> None:
        node = Node()
        batches = LoopBatches(node.submit, list)
        only = write()
        batches.add(only)
        batches.flush(asyncio.get_running_loop())
        assert node.submitted == [[only]]
        await asyncio.sleep(0)
        assert node.submitted == [[only]]

    asyncio.run(scenario())


def test_operations_without_room_are_refused_and_the_others_wait() -> None:
    async def scenario() -> None:
        node = Node()
        batches = LoopBatches(node.submit, list)
        fits, does_not = write(), write()
        node.refused = [does_not]
        waiting, refused = batches.add(fits), batches.add(does_not)
        with pytest.raises(Overloaded):
            await refused
        assert not waiting.done()

    asyncio.run(scenario())


def test_a_node_that_has_ended_ends_the_whole_batch() -> None:
    async def scenario() -> None:
        node = Node()
        node.error = Stopped("the node is stopped")
        batches = LoopBatches(node.submit, list)
        first, cancelled, last = (batches.add(write()) for _ in range(3))
        cancelled.cancel()
        for future in (first, last):
            with pytest.raises(Stopped):
                await future
        assert cancelled.cancelled()

    asyncio.run(scenario())


def test_a_write_that_could_not_be_submitted_is_not_counted() -> None:
    node, tally, refused = Node(), FireForgetCounter(), write()
    node.refused = [refused]
    with pytest.raises(Overloaded):
        tally.submit(refused, node.submit)
    node.error = Stopped("the node is stopped")
    with pytest.raises(Stopped):
        tally.submit(write(), node.submit)
    node.error = None
    taken = write()
    tally.submit(taken, node.submit)
    assert taken.waiter is tally
    assert tally.counts == FireForgetCounts(submitted=1)
