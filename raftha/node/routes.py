"""Which part of a node handles a message; those that no part handles are the core's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

from raftha.node.administration import Administration
from raftha.node.backup.backups import Backups
from raftha.node.messages import (
    AdminMessage,
    BackupMessage,
    Forward,
    ForwardReply,
    SnapshotMessage,
    Supported,
    WatchMessage,
)
from raftha.node.snapshots import Snapshots
from raftha.node.upgrades import Upgrades
from raftha.node.watch.watch import Watch
from raftha.node.writes import Writes

Routes = dict[type, Callable[[Any], None]]


def message_routes(
    writes: Writes,
    administration: Administration,
    snapshots: Snapshots,
    backups: Backups,
    upgrades: Upgrades,
    watch: Watch,
    now: Callable[[], float],
) -> Routes:
    """Return what handles each kind of message."""

    def on_forward(message: Forward) -> None:
        writes.on_forward(message, is_majority_full=watch.is_majority_full)

    return {
        Forward: on_forward,
        ForwardReply: writes.on_forward_reply,
        Supported: upgrades.on_message,
        **dict.fromkeys(get_args(AdminMessage), administration.on_message),
        **dict.fromkeys(get_args(SnapshotMessage), snapshots.on_message),
        **dict.fromkeys(get_args(BackupMessage), backups.on_message),
        **dict.fromkeys(get_args(WatchMessage), lambda message: watch.on_message(message, now())),
    }
