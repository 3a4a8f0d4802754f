"""The messages that nodes exchange, in addition to the core's own.

Records only: `raftha.net.wire` encodes and decodes them.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from raftha.core import Message


class Forward(NamedTuple):
    """A group for the leader's next batch, as encoded by `encode_group`."""

    to: int
    sender: int
    group: bytes


class ForwardReply(NamedTuple):
    """The leader refused the group (`session`, `number`): its queue is full, or (`is_full`) too
    many members' disks are.
    """

    to: int
    sender: int
    session: int
    number: int
    is_full: bool


class TransferRequest(NamedTuple):
    """Asks the leader to hand over to `target`; without a leader, asks `target` to campaign."""

    to: int
    sender: int
    target: int


class TransferReply(NamedTuple):
    """The leader could not start the transfer to `target`, for `reason`."""

    to: int
    sender: int
    target: int
    reason: str


class MembershipRequest(NamedTuple):
    """Asks the leader to make `node_id` a voter or a standby (`adds`), to remove it, or to move it.

    Without an `address`, the node must be a member already. `is_repeat`: the sender has sent this
    request before, and the earlier one may have arrived. `moves`: a member gets the `address` and
    the `region`, as far as they aren't empty.
    """

    to: int
    sender: int
    node_id: int
    adds: bool
    address: str
    region: str
    is_repeat: bool
    is_standby: bool
    moves: bool = False


class MembershipReply(NamedTuple):
    """The leader refused to change `node_id`'s membership; `kind` is the name of the error."""

    to: int
    sender: int
    node_id: int
    kind: str
    reason: str


class HealthRequest(NamedTuple):
    """Asks for the receiver's health."""

    to: int
    sender: int


class HealthReply(NamedTuple):
    """The sender is alive; `is_disk_well`: as far as it knows, its disk is fast enough."""

    to: int
    sender: int
    is_disk_well: bool


class SpaceReport(NamedTuple):
    """Reports whether the sender's disk has space for more log; repeated while it has none."""

    to: int
    sender: int
    has_space: bool


class ReplicaRow(NamedTuple):
    """One member's progress as the leader knows it; `state` is an index of `tuple(ReplicaState)`.

    `match_sequence` is a lower bound. Times are milliseconds before the report. The member's wall
    clock is `clock_ahead_ms` ahead of the cluster's, or `clock_behind_ms` behind.
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
    clock_ahead_ms: int = 0
    clock_behind_ms: int = 0


class ReplicaReport(NamedTuple):
    """The leader of `term` reports the progress of all members."""

    to: int
    sender: int
    term: int
    rows: tuple[ReplicaRow, ...]


class DigestRequest(NamedTuple):
    """The leader asks for the digest of the receiver's state as of entry `index`, which follows."""

    to: int
    sender: int
    index: int  # type: ignore[assignment]  # shadows tuple.index, which is never called


class DigestReport(NamedTuple):
    """The digest of the sender's state as of entry `index`; empty if it could take none there.

    Only digests of states in the same format are comparable.
    """

    to: int
    sender: int
    index: int  # type: ignore[assignment]  # shadows tuple.index, which is never called
    state_format: int
    digest: bytes


class DigestVerdict(NamedTuple):
    """What the leader found when it compared the members' digests as of entry `index`.

    `digest` is the one that a majority has; `diverged` are the members that have another one. If
    it is empty, no majority has the same, and these are all members that were compared. `heals`:
    the receiver has diverged, and has to replace its state.
    """

    to: int
    sender: int
    index: int  # type: ignore[assignment]  # shadows tuple.index, which is never called
    digest: bytes
    diverged: tuple[int, ...]
    heals: bool


class Supported(NamedTuple):
    """What the sender's build supports (`raftha.storage.state.versions.Abilities`).

    `asks`: the sender doesn't know yet what the receiver supports. `commands` is packed, since it
    may have more items than any other array of a small message.
    """

    to: int
    sender: int
    asks: bool
    release: str
    protocol_oldest: int
    protocol: int
    machine_oldest: int
    machine: int
    commands: bytes


class BackupRequest(NamedTuple):
    """Asks the leader to have a backup taken, or to change the catalog of backups.

    `what` is a `BackupAction`. `payload`: for a backup its mode, "" for the configured one; for a
    change that of its entry. `number` tells the sender's requests apart; without one (0) it wants
    no reply. `is_repeat`: the sender has sent this request before.
    """

    to: int
    sender: int
    number: int
    what: int
    payload: bytes
    is_repeat: bool


class BackupAction(enum.IntEnum):
    """What a `BackupRequest` asks for."""

    TRIGGER = 1
    CHANGE = 2
    APPLY_RETENTION = 3
    CHECKPOINT = 4
    RECOVER = 5
    ABORT_RECOVERY = 6
    """Have the members' states compared, and note a recovery point. From protocol 8 on."""


class BackupReply(NamedTuple):
    """The leader's answer to request `number`: the entry `index` that did it.

    Or the name of an error, its `kind`, and the `reason`; then `index` may be that of the backup
    that is in the way.
    """

    to: int
    sender: int
    number: int
    kind: str
    reason: str
    index: int  # type: ignore[assignment]  # shadows tuple.index, which is never called


class BackupReport(NamedTuple):
    """What a member could do for a backup, and what it is doing; sent to the leader.

    `is_able`: it has the settings for backups. `has_spool`: it has recorded what has changed since
    entry `spool_index`. `backup_id` is that of the backup that it takes, 0 for none; `state` is an
    index of `tuple(BackupState)`.
    """

    to: int
    sender: int
    is_able: bool
    has_spool: bool
    spool_index: int
    backup_id: int
    state: int
    done_bytes: int
    total_bytes: int


class RecoveryReport(NamedTuple):
    """How far the sender is with a recovery; sent to the leader (`raftha/node/recovery/member.py`).

    `stage` is a `Stage`. `digest`: of the state that it has prepared, "" as long as it hasn't.
    `error`: why its last try has failed.
    """

    to: int
    sender: int
    recovery_id: int
    stage: int
    digest: str
    done_bytes: int
    total_bytes: int
    error: str


class ArchiveRow(NamedTuple):
    """How far the archive of the log is in one destination.

    All entries from `start` to `index` are there; `index` has this `sequence` and time. Those up to
    `verified` were read back. `needs`: the archiver's log begins only there, and lacks what comes
    next; 0 if it doesn't. `pending_us`: the time of the first entry that could not be put, 0 if
    there is none. `conflict`: the destination has other entries than this log. `error` is that of
    the last try, "" if it succeeded.
    """

    destination: str
    index: int  # type: ignore[assignment]  # shadows tuple.index, which is never called
    sequence: int
    time_us: int
    verified: int
    start: int
    needs: int
    pending_us: int
    conflict: bool
    error: str


class ArchiveReport(NamedTuple):
    """A member that can archive reports where its log begins, and what it knows of destinations.

    `gap_first`, `gap_last`: the gap that it has recorded last, 0 if it has recorded none.
    """

    to: int
    sender: int
    first_index: int
    gap_first: int
    gap_last: int
    rows: tuple[ArchiveRow, ...]


class ArchiveNotice(NamedTuple):
    """The leader says which member archives (0 for none), and how far each destination is.

    `now_us`: log time, by which all members say how old what is not archived is. `lost_index`: no
    member that can archive has the entries up to there. The gap is the last one of which the leader
    knows.
    """

    to: int
    sender: int
    now_us: int
    archiver: int
    lost_index: int
    gap_first: int
    gap_last: int
    rows: tuple[ArchiveRow, ...]


class SnapshotChunk(NamedTuple):
    """A part of the snapshot offered as `snapshot_id`, starting at byte `offset` of the file.

    `data` is compressed with zstd; `crc` is the CRC-32C of the uncompressed bytes.
    """

    to: int
    sender: int
    snapshot_id: int
    offset: int
    crc: int
    data: bytes


class SnapshotReply(NamedTuple):
    """The receiver's progress with the snapshot offered as `snapshot_id`; a `SnapshotStatus`.

    `value`: with RECEIVING, the number of bytes that this node has; with HOLDS, the index of the
    entry that its log holds or its state has applied, so that it needs no snapshot.
    """

    to: int
    sender: int
    snapshot_id: int
    status: int
    value: int


class SnapshotStatus(enum.IntEnum):
    """What a receiver reports of a snapshot."""

    RECEIVING = 1
    HOLDS = 2
    REFUSED = 3


AdminMessage = TransferRequest | TransferReply | MembershipRequest | MembershipReply
SnapshotMessage = SnapshotChunk | SnapshotReply
HealthMessage = HealthRequest | HealthReply
ArchiveMessage = ArchiveReport | ArchiveNotice
BackupMessage = BackupRequest | BackupReply | BackupReport | RecoveryReport | ArchiveMessage
DigestMessage = DigestRequest | DigestReport | DigestVerdict
WatchMessage = HealthMessage | SpaceReport | ReplicaReport | DigestMessage
PeerMessage = (
    Message
    | Forward
    | ForwardReply
    | AdminMessage
    | SnapshotMessage
    | WatchMessage
    | Supported
    | BackupMessage
)
