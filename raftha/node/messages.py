"""What nodes say to each other, beside the core's own messages.

Records only: `raftha.net.wire` makes bytes of them and reads them back.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from raftha.core import Message


class Forward(NamedTuple):
    """A group for the leader to put into its next batch, as `encode_group` made it."""

    to: int
    sender: int
    group: bytes


class ForwardReply(NamedTuple):
    """The leader did not take the group (`session`, `number`), and won't: it has too much to do, or
    (`is_full`) too many disks are full.
    """

    to: int
    sender: int
    session: int
    number: int
    is_full: bool


class TransferRequest(NamedTuple):
    """Asks the leader to hand over to `target`."""

    to: int
    sender: int
    target: int


class TransferReply(NamedTuple):
    """The leader could not begin to hand over to `target`, and why."""

    to: int
    sender: int
    target: int
    reason: str


class MembershipRequest(NamedTuple):
    """Asks the leader to make `node_id` a voter or a standby (`adds`), or to remove it.

    Without an `address` it must be a member already. `is_repeat`: the sender has asked before; that
    request may have arrived.
    """

    to: int
    sender: int
    node_id: int
    adds: bool
    address: str
    region: str
    is_repeat: bool
    is_standby: bool


class MembershipReply(NamedTuple):
    """The leader refused to change `node_id`'s membership; `kind` is the name of the error."""

    to: int
    sender: int
    node_id: int
    kind: str
    reason: str


class HealthRequest(NamedTuple):
    """Asks how the receiver is."""

    to: int
    sender: int


class HealthReply(NamedTuple):
    """The sender is there; `is_disk_well`: as far as it knows, its disk is fast enough."""

    to: int
    sender: int
    is_disk_well: bool


class SpaceReport(NamedTuple):
    """Whether the sender's disk has space for more log; repeated while it hasn't."""

    to: int
    sender: int
    has_space: bool


class ReplicaRow(NamedTuple):
    """How far one member is, by the leader; `state` is a place in `tuple(ReplicaState)`.

    `match_sequence` is at least so much. Times are milliseconds up to the report.
    """

    node_id: int
    state: int
    match_index: int
    match_sequence: int
    applied_index: int
    applied_sequence: int
    lag_ms: int
    lag_sequences: int
    silent_ms: int


class ReplicaReport(NamedTuple):
    """The leader of `term` says how far all members are."""

    to: int
    sender: int
    term: int
    rows: tuple[ReplicaRow, ...]


class SnapshotChunk(NamedTuple):
    """Part of the snapshot offered as `snapshot_id`, from byte `offset` of the file on.

    `data` is compressed with zstd, `crc` the CRC-32C of what it was before.
    """

    to: int
    sender: int
    snapshot_id: int
    offset: int
    crc: int
    data: bytes


class SnapshotReply(NamedTuple):
    """The state of the snapshot offered as `snapshot_id`; a `SnapshotStatus`.

    `value`: with RECEIVING, how many bytes of it the sender has; with HOLDS, the index of the entry
    that its log holds or its state has applied, so that no snapshot is needed.
    """

    to: int
    sender: int
    snapshot_id: int
    status: int
    value: int


class SnapshotStatus(enum.IntEnum):
    """What has become of a snapshot."""

    RECEIVING = 1
    HOLDS = 2
    REFUSED = 3


AdminMessage = TransferRequest | TransferReply | MembershipRequest | MembershipReply
SnapshotMessage = SnapshotChunk | SnapshotReply
HealthMessage = HealthRequest | HealthReply
PeerMessage = (
    Message
    | Forward
    | ForwardReply
    | AdminMessage
    | SnapshotMessage
    | HealthMessage
    | SpaceReport
    | ReplicaReport
)
