"""A node's interface to its surroundings: the seam to disk, network, callers and threads.

The real host is `raftha/runtime/runtime.py`, the simulated one `tests/sim/member.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from raftha.core import LogRead, Write
from raftha.events import HaEvent
from raftha.membership import Membership
from raftha.node.backup_work import BackupWork
from raftha.node.checkpoints import CheckpointWriter
from raftha.node.messages import PeerMessage
from raftha.node.recovery_work import RecoveryWork
from raftha.node.snapshots import SnapshotFiles
from raftha.node.statistics import Statistics


class Host(CheckpointWriter, Protocol):
    """A node's surroundings. Work that takes time ends with a call to the node."""

    @property
    def snapshots(self) -> SnapshotFiles:
        """Makes, sends and receives snapshots of the state."""
        ...

    @property
    def backups(self) -> BackupWork:
        """Takes, lists and deletes backups; only if the settings have backups."""
        ...

    @property
    def recovery(self) -> RecoveryWork:
        """Plans recoveries, builds states, and opens the node with one."""
        ...

    @property
    def statistics(self) -> Statistics:
        """The counters and timings; they outlive the node."""
        ...

    def send(self, message: PeerMessage) -> None: ...
    def is_connected(self, peer: int) -> bool: ...
    def hang_up(self, peer: int) -> None:
        """Close the connection to this silent member, if there is one."""
        ...

    def write(self, write: Write) -> None:
        """Make `write` durable, then call `Node.on_written`."""
        ...

    def seal_log(self, commit: int) -> None:
        """Seal the log with this commit index, then call `Node.on_sealed`.

        No write is under way. The entries up to there are committed, and on this node's disk.
        """
        ...

    def read_log(self, request: LogRead) -> None:
        """Read log entries, then call `Node.on_log_read` or `Node.on_log_compacted`."""
        ...

    def set_members(self, membership: Membership) -> None:
        """Connect to these members, and to no others."""
        ...

    def deliver(self, waiter: Any, result: Any) -> None: ...
    def deliver_each(self, waiters: Sequence[Any], results: Sequence[Any]) -> None:
        """Deliver to each waiter its result."""
        ...

    def emit(self, event: HaEvent) -> None: ...
    def wake(self) -> None:
        """Have `Node.turn` called soon, once."""
        ...

    def flush(self) -> None:
        """The turn is over: release the callers that got a result."""
        ...

    def heal_log(self, lost_index: int) -> None:
        """The log lacks acknowledged entries up to here: end the node, start it without its log."""
        ...

    def heal_state(self, detail: str) -> None:
        """The state is not what it should be: end the node, start it with another one."""
        ...

    def end_healing(self, generation: int) -> None:
        """Make this healing generation durable, then call `Node.on_healed`."""
        ...
