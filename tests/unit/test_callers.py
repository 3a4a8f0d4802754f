"""The operations that a node takes from its callers, and those that it refuses at once."""

from __future__ import annotations

from raftha.node.operations import (
    OPERATION_BYTES,
    DigestOperation,
    GroupOperation,
    MembershipOperation,
    Operation,
    ReadOperation,
    TransferOperation,
    WriteOperation,
    sizes,
)
from raftha.runtime.callers import READ_BYTES_MAX, SubmitQueue

BYTES_MAX = 100 * OPERATION_BYTES


def write(size: int = 0) -> WriteOperation:
    return WriteOperation(None, 0.0, bytes(size))


def read(read_bytes: int = 0) -> ReadOperation:
    return ReadOperation(None, 0.0, lambda node: None, is_linearizable=True, read_bytes=read_bytes)


def test_operations_without_room_are_refused_and_smaller_ones_fit() -> None:
    queue = SubmitQueue(BYTES_MAX)
    large, small = write(BYTES_MAX), write()
    assert queue.put([large, small], 0, 0) == [large]
    operations, held = queue.take()
    assert list(operations) == [small]
    assert held == sizes([small])


def test_writes_without_contents_count_too() -> None:
    """Each tiny write of a flood takes memory for its records, and the bound counts that."""
    queue = SubmitQueue(BYTES_MAX)
    assert len(queue.put([write() for _ in range(150)], 0, 0)) == 50


def test_groups_that_open_sessions_count_too() -> None:
    queue = SubmitQueue(BYTES_MAX)
    openings = [GroupOperation(None, 0.0, 0, 0, 0, []) for _ in range(150)]
    assert len(queue.put(openings, 0, 0)) == 50


def test_reads_count_by_their_keys_and_are_bounded() -> None:
    queue = SubmitQueue(BYTES_MAX)
    reads = [read(1 << 20) for _ in range(40)]
    refused = queue.put(reads, 0, 0)
    assert len(reads) - len(refused) == READ_BYTES_MAX // ((1 << 20) + OPERATION_BYTES)


def test_operations_of_operators_are_bounded() -> None:
    queue = SubmitQueue(BYTES_MAX)
    fitting = READ_BYTES_MAX // OPERATION_BYTES
    kinds: list[Operation] = [
        DigestOperation(None, 0.0, 1),
        TransferOperation(None, 0.0, 1),
        MembershipOperation(None, 0.0, 1, adds=False),
    ]
    for kind in kinds:
        assert len(queue.put([kind] * (fitting + 1), 0, 0)) == 1
        queue.take()
        queue.taken()


def test_writers_do_not_keep_out_readers_and_operators() -> None:
    queue = SubmitQueue(BYTES_MAX)
    queue.put([write()] * 100, 0, 0)
    assert queue.put([write()], 0, 0)
    assert not queue.put([read(), TransferOperation(None, 0.0, 2)], 0, 0)


def test_operations_held_by_the_node_count() -> None:
    queue = SubmitQueue(BYTES_MAX)
    assert len(queue.put([write()] * 2, BYTES_MAX - OPERATION_BYTES, 0)) == 1
    assert queue.put([read()], 0, READ_BYTES_MAX)


def test_taken_operations_count_until_the_node_counts_them() -> None:
    queue = SubmitQueue(BYTES_MAX)
    queue.put([write()] * 100, 0, 0)
    queue.take()
    assert queue.put([write()], 0, 0)
    queue.taken()
    assert not queue.put([write()], 0, 0)
