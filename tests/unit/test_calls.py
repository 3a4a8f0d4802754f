"""`raftha.api.calls`: a call becomes an operation that lacks only its waiter and its deadline."""

from __future__ import annotations

import time
from typing import Any

import pytest

from raftha.api.calls import Calls, read_by_lease
from raftha.config import HaConfig, ReplicationConfig
from raftha.errors import InvalidRequest
from raftha.node.arguments import Consistency, check_consistency
from raftha.node.key_reads import KEY_RECORD_BYTES
from raftha.node.lease_reads import MISSED
from raftha.node.operations import (
    ALL_VOTERS,
    MAJORITY,
    OPERATION_BYTES,
    AcknowledgedWrite,
    Operation,
    ReadOperation,
    WriteOperation,
)
from raftha.storage.state.commands import pack_delete, pack_put
from raftha.types import RELEASED


def calls(mode: str = "async_with_ack", **settings: Any) -> Calls:
    members = {1: "127.0.0.1:1", 2: "127.0.0.1:2", 3: "127.0.0.1:3"}
    replication = ReplicationConfig(mode=mode)  # type: ignore[arg-type]
    return Calls(
        HaConfig(node_id=1, data_dir="x", members=members, replication=replication, **settings)
    )


def test_an_operation_has_neither_waiter_nor_deadline() -> None:
    made: list[Any] = [
        calls().put(b"key", b"value", None, None),
        calls().submit(pack_delete(b"key"), None, None),
        calls().submit_once(1, 1, 1, [pack_delete(b"key")]),
        calls().get(b"key", "linearizable", None),
        calls().digest(None),
        calls().failover_to(2),
        calls().add_replica(4, "127.0.0.1:4", "", True),
        calls().move_replica(3, "", "far"),
    ]
    for operation in made:
        assert isinstance(operation, Operation)
        assert (operation.waiter, operation.deadline) == (None, 0.0)


@pytest.mark.parametrize(
    ("mode", "write_quorum", "kind", "acks"),
    [
        (None, None, WriteOperation, MAJORITY),
        ("async_with_ack", 0, WriteOperation, MAJORITY),
        (None, 3, AcknowledgedWrite, 3),
        ("sync", None, AcknowledgedWrite, ALL_VOTERS),
        ("async_fire_forget", None, WriteOperation, MAJORITY),
    ],
)
def test_a_write_waits_for_as_many_voters_as_its_mode_says(
    mode: str | None, write_quorum: int | None, kind: type[WriteOperation], acks: int
) -> None:
    write = calls().put(b"key", b"value", mode, write_quorum)
    assert (type(write), write.acks) == (kind, acks)
    assert write.command == pack_put(b"key", b"value")
    assert (write.waiter is RELEASED) == (mode == "async_fire_forget")


def test_the_mode_of_the_config_is_the_default() -> None:
    assert calls("sync").delete(b"key", None, None).acks == ALL_VOTERS
    assert calls("async_fire_forget").delete(b"key", None, None).waiter is RELEASED
    assert calls("async_fire_forget").delete(b"key", "async_with_ack", None).waiter is None


def test_a_numbered_group_has_an_outcome_even_with_fire_and_forget() -> None:
    group = calls("async_fire_forget").submit_once(1, 2, 1, [pack_delete(b"key")])
    assert (group.waiter, group.acks) == (None, MAJORITY)


def test_a_read_counts_what_its_keys_take() -> None:
    one = calls().get_many([b"a", b"bc"], "linearizable", None)
    each = calls().get_each([[b"a"], [b"bc"]], 1)
    assert isinstance(one, ReadOperation)
    assert isinstance(each, ReadOperation)
    assert one.size == OPERATION_BYTES + 2 * KEY_RECORD_BYTES + 3
    assert each.size == one.size + 2 * KEY_RECORD_BYTES


def test_a_deadline_is_the_configs_unless_the_call_has_its_own() -> None:
    before = time.monotonic()
    made = calls(request_timeout_s=7)
    assert before + 7 <= made.deadline(None) <= time.monotonic() + 7
    assert before + 600 <= made.deadline(600) <= time.monotonic() + 600
    for wrong in (0, -1, 601, "3"):
        with pytest.raises(InvalidRequest, match="timeout"):
            made.deadline(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("consistency", "max_staleness_ms", "expected"),
    [
        ("linearizable", None, (True, 0.0)),
        ("linearizable", 0, (True, 0.0)),
        ("linearizable", 1500, (True, 1.5)),
        ("stale", None, (False, 0.0)),
        ("stale", 1500, None),
        ("linearizable", -1, None),
        ("linearizable", True, None),
        ("linearizable", "1", None),
        ("eventual", None, None),
    ],
)
def test_a_read_is_linearizable_bounded_or_stale(
    consistency: Consistency, max_staleness_ms: float | None, expected: tuple[bool, float] | None
) -> None:
    if expected is not None:
        assert check_consistency(consistency, max_staleness_ms) == expected
        return
    with pytest.raises(InvalidRequest):
        check_consistency(consistency, max_staleness_ms)


def test_a_read_by_lease_checks_its_key_in_any_case() -> None:
    assert read_by_lease(None, b"key", "linearizable", None, None) is MISSED
    with pytest.raises(InvalidRequest):
        read_by_lease(None, b"", "stale", None, None)
