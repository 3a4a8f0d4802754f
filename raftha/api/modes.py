"""What a caller says about when to be released, as the node understands it.

A manager has a mode, and each write may have another. To the node a mode is a number of voters
(`operations.py`); `async_fire_forget` never gets there: the manager releases the caller itself, and
has the outcome counted.
"""

from __future__ import annotations

from typing import Any

from raftha.config import ReplicationConfig
from raftha.errors import InvalidRequest
from raftha.node.operations import ALL_VOTERS, AT_ONCE, MAJORITY, AcknowledgedWrite, WriteOperation
from raftha.types import Acknowledgement, Receipt, ReplicationMode

Mode = ReplicationMode | str | None

RELEASED = Receipt(
    sequence=0,
    index=0,
    term=0,
    time_us=0,
    succeeded=False,
    acknowledgement=Acknowledgement(ReplicationMode.ASYNC_FIRE_FORGET),
)
"""What the caller of a write gets that nobody waits for."""


def acks_of(config: ReplicationConfig, mode: Mode = None, write_quorum: int | None = None) -> int:
    """How many voters a write waits for; None is what the config says. InvalidRequest if neither.

    A `write_quorum` means `async_with_ack`, whatever the config's mode; whether it is one of so
    many voters is for the node to say.
    """
    if write_quorum is not None:
        if type(write_quorum) is not int or write_quorum < 0:
            raise InvalidRequest(f"write_quorum must be a number of voters, got {write_quorum!r}")
        if mode not in (None, ReplicationMode.ASYNC_WITH_ACK):
            raise InvalidRequest(f"write_quorum goes with async_with_ack, not with {mode!r}")
        return write_quorum
    match config.mode if mode is None else mode:
        case ReplicationMode.SYNC:
            return ALL_VOTERS
        case ReplicationMode.ASYNC_WITH_ACK:
            return config.write_quorum or MAJORITY
        case ReplicationMode.ASYNC_FIRE_FORGET:
            return AT_ONCE
        case unknown:
            known = ", ".join(ReplicationMode)
            raise InvalidRequest(f"mode is one of {known}, got {unknown!r}")


def make_write(waiter: Any, deadline: float, command: bytes, acks: int) -> WriteOperation:
    """A write whose caller is released when so many voters have it."""
    if acks in (MAJORITY, AT_ONCE):
        return WriteOperation(waiter, deadline, command)
    return AcknowledgedWrite(waiter, deadline, command, acks)
