"""Every error raftha raises, in one tree that says first whether the operation may have happened.

A caller needs one fact before any other: did my write happen? So the tree splits there.
`Rejected` means it did not and will not; `Indeterminate` means it may have; anything that is not an
error is a `Receipt` and means it did. `hint` carries the next step for whoever reads the message.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


class RafthaError(Exception):
    """The root of all errors raised by raftha; `hint` says what to do next."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(f"{message} ({hint})" if hint else message)
        self.hint = hint


class ConfigError(RafthaError):
    """A setting is wrong, or does not belong to the data directory it is used with."""


class Rejected(RafthaError):
    """The operation did not happen and will not."""


class InvalidRequest(Rejected):
    """The request itself is wrong: a key or value over its limit, an unknown command."""


class NotLeader(Rejected):
    """This node can't carry out what only the leader can; `leader` is its id, or None."""

    def __init__(self, leader: int | None) -> None:
        where = f"node {leader} is" if leader is not None else "no leader is known"
        super().__init__(f"this node is not the leader; {where}")
        self.leader = leader


class Unavailable(Rejected):
    """No leader could be reached before the deadline, and the request never left this node."""


class Overloaded(Rejected):
    """A bounded queue is full; nothing was queued."""


class CommandFailed(Rejected):
    """A state machine command raised; its changes were rolled back on every replica alike.

    `kind` is the name of the exception's class, `detail` its message.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail


class Stopped(Rejected):
    """The node is stopped, or was stopped before the request left it."""


class Forked(Rejected):
    """This process was forked from the one that started the node; here there is none."""

    def __init__(self) -> None:
        super().__init__(
            "this process was forked after start(), and the node runs in the process it came from",
            hint="start raftha after the fork, with a data directory for each process",
        )


class NotAvailable(Rejected):
    """This version of raftha can't do that yet; nothing was done."""


class MembershipChangePending(Rejected):
    """Members change one at a time, and the last change isn't committed yet."""


class ReplicaTooSlow(Rejected):
    """A new node didn't catch up in as many rounds as it is given; it stays a learner."""


class TransferFailed(Rejected):
    """Leadership did not move: the target can't be reached or is not a member."""


class Indeterminate(RafthaError):
    """The operation may have happened; ask the state, or retry under the same session number."""


class SessionExpired(Indeterminate):
    """The session of this write has expired or was never opened; this try was not applied.

    If it was the first try of the write, the write did not happen. An earlier try may have been
    applied before the session expired.
    """


class RequestTimeout(Indeterminate):
    """The deadline passed after the request had left this node."""


class AcknowledgementTimeout(Indeterminate):
    """The write did happen: it is committed, and stays; but not all had it who were to have it.

    `receipt` says which one it is and who had it; for a group of `submit_once` it is the outcome;
    None when it comes from a server. `missing` are the voters that had not acknowledged it. It is
    not to be sent again: that would be another write, but for `once`, which may repeat itself.
    """

    def __init__(
        self, message: str, receipt: Any = None, missing: tuple[int, ...] = (), *, hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.receipt = receipt
        self.missing = missing


class Disconnected(Indeterminate):
    """The connection, or the node, went away while the request was under way."""


class StorageError(RafthaError):
    """The disk or what is on it; the node stops acknowledging."""


class StorageFailed(StorageError):
    """A write or sync failed. Final for this node: what is on the disk is unknown from here on."""


class StorageFull(StorageError, Rejected):
    """There is no space left for more log. Nothing was queued; it goes on when there is space."""


class Corrupt(StorageError):
    """Bytes that were durable are not what was written: `path` at `offset`."""

    HINT = "acknowledged data is damaged; keep the files, and replace this node by a new one"

    def __init__(self, path: str | Path, offset: int, detail: str, *, hint: str = HINT) -> None:
        super().__init__(f"{path} is corrupt at byte {offset}: {detail}", hint=hint)
        self.path = Path(path)
        self.offset = offset
        self.detail = detail


class Compacted(StorageError):
    """The log before `first_index` is gone, so `index` can't be read from it."""

    def __init__(self, index: int, first_index: int) -> None:
        super().__init__(f"entry {index} is compacted; the log starts at {first_index}")
        self.index = index
        self.first_index = first_index


class WireError(RafthaError):
    """Bytes from a peer that break the protocol; the connection is dropped."""


class LocalClusterError(RafthaError):
    """A node process of a `LocalCluster` did not do what it was told, or not in time."""
