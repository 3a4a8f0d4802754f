"""The operations of a node without a result, and how much they hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from raftha.errors import Overloaded
from raftha.node.operations import OPERATION_BYTES, DigestOperation, Operation, WriteOperation
from raftha.node.pending import PendingOperations


class Scene:
    """Two writes and a read; records the results."""

    def __init__(self) -> None:
        self.delivered: list[tuple[Any, Any]] = []
        self.errors: Counter[str] = Counter()
        self.pending = PendingOperations(self._deliver, self._deliver_each, self.errors)
        self.writes = [WriteOperation(name, 1.0, b"packed") for name in ("a", "b")]
        self.other = DigestOperation("c", 1.0, 0)
        self.pending.add([*self.writes, self.other])

    def _deliver(self, waiter: Any, result: Any) -> None:
        self.delivered.append((waiter, result))

    def _deliver_each(self, waiters: Sequence[Any], results: Sequence[Any]) -> None:
        self.delivered += zip(waiters, results, strict=True)

    @property
    def held(self) -> tuple[int, int]:
        return self.pending.write_bytes, self.pending.read_bytes


WRITE_BYTES = OPERATION_BYTES + len(b"packed")


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_operations_count_until_they_have_their_results(scene: Scene) -> None:
    assert scene.held == (2 * WRITE_BYTES, OPERATION_BYTES)
    scene.pending.deliver_each(scene.writes, [1, 2])
    assert scene.delivered == [("a", 1), ("b", 2)]
    assert scene.held == (0, OPERATION_BYTES)
    scene.pending.deliver(scene.other, 3)
    assert scene.held == (0, 0)
    assert scene.pending.all() == []


def test_an_operation_gets_one_result_and_is_counted_once(scene: Scene) -> None:
    scene.pending.deliver(scene.writes[0], 1)
    scene.pending.deliver_each(scene.writes, [10, 20])
    assert scene.delivered == [("a", 1), ("b", 20)]
    assert scene.held == (0, OPERATION_BYTES)
    left: list[Operation] = [scene.other]
    assert scene.pending.all() == left


def test_errors_are_counted_by_their_class(scene: Scene) -> None:
    scene.pending.deliver_each(scene.writes, [Overloaded("full"), 2])
    scene.pending.deliver(scene.other, Overloaded("full"))
    assert scene.errors == {"Overloaded": 2}
