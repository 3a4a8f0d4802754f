"""Raft as a pure state machine: no I/O, clock, random source, logging or threads.

Start with `raft.py`, whose docstring is the theory of operation.
"""

from raftha.core.lease import Lease
from raftha.core.log import RaftLog
from raftha.core.messages import (
    Append,
    AppendReply,
    DurableIndexesReply,
    DurableIndexesRequest,
    Healed,
    Heartbeat,
    HeartbeatReply,
    Message,
    ReadReply,
    ReadRequest,
    SnapshotOffer,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from raftha.core.raft import Raft
from raftha.core.ready import CoreConfig, LogRead, ReadState, Ready, SnapshotRequest, Write
from raftha.core.role import Role

__all__ = [
    "Append",
    "AppendReply",
    "CoreConfig",
    "DurableIndexesReply",
    "DurableIndexesRequest",
    "Healed",
    "Heartbeat",
    "HeartbeatReply",
    "Lease",
    "LogRead",
    "Message",
    "Raft",
    "RaftLog",
    "ReadReply",
    "ReadRequest",
    "ReadState",
    "Ready",
    "Role",
    "SnapshotOffer",
    "SnapshotRequest",
    "TimeoutNow",
    "VoteReply",
    "VoteRequest",
    "Write",
]
