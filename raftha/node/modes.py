"""When the caller of a write is released: modes, as the number of voters that a write waits for.

A manager has a mode, and each write may have another. The node never sees `async_fire_forget`: the
manager releases the caller itself and counts the outcome.
"""

from __future__ import annotations

from raftha.config import ReplicationConfig
from raftha.errors import InvalidRequest
from raftha.node.operations import ALL_VOTERS, AT_ONCE, MAJORITY
from raftha.types import ReplicationMode

Mode = ReplicationMode | str | None
Quorum = int | None


def acks_of(config: ReplicationConfig, mode: Mode = None, write_quorum: Quorum = None) -> int:
    """How many voters a write waits for. None stands for the config's value.

    A `write_quorum` implies `async_with_ack`, whatever the config's mode. The node checks it
    against the number of voters. Raises InvalidRequest if the combination is wrong.
    """
    if write_quorum is not None:
        if type(write_quorum) is not int or write_quorum < 0:
            raise InvalidRequest(f"write_quorum must be a number of voters, got {write_quorum!r}")
        if mode not in (None, ReplicationMode.ASYNC_WITH_ACK):
            raise InvalidRequest(f"write_quorum needs the mode async_with_ack, got {mode!r}")
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
            raise InvalidRequest(f"mode must be one of {known}, got {unknown!r}")
