"""What a node asks of its surroundings: the seam to disk, network, callers and threads.

The real one is `runtime.py`, a simulated one `tests/sim/member.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from raftha.core import LogRead, Write
from raftha.events import HaEvent
from raftha.membership import Membership
from raftha.node.checkpoints import CheckpointWriter
from raftha.node.messages import PeerMessage
from raftha.node.snapshots import SnapshotFiles
from raftha.node.statistics import Statistics


class Host(CheckpointWriter, Protocol):
    """What a node asks of its surroundings; what takes time is answered by a call to the node."""

    @property
    def snapshots(self) -> SnapshotFiles:
        """Who makes and takes snapshots of the state."""
        ...

    @property
    def statistics(self) -> Statistics:
        """What is counted and timed; it outlives the node."""
        ...

    def send(self, message: PeerMessage) -> None: ...
    def is_connected(self, peer: int) -> bool: ...
    def hang_up(self, peer: int) -> None:
        """End the connection to this member, if there is one, for its silence."""
        ...

    def write(self, write: Write) -> None:
        """Make durable, then call `Node.on_written`."""
        ...

    def seal_log(self) -> None:
        """Seal the log, on which no write is under way, then call `Node.on_sealed`."""
        ...

    def read_log(self, request: LogRead) -> None:
        """Read entries from the log, then call `Node.on_log_read`."""
        ...

    def set_members(self, membership: Membership) -> None:
        """Connect to these members, and to no others."""
        ...

    def deliver(self, waiter: Any, result: Any) -> None: ...
    def deliver_each(self, waiters: Sequence[Any], results: Sequence[Any]) -> None:
        """As `deliver`, a result for each."""
        ...

    def emit(self, event: HaEvent) -> None: ...
    def wake(self) -> None:
        """See that `Node.turn` is called soon, once."""
        ...

    def flush(self) -> None:
        """The turn is over: release whoever was delivered to."""
        ...

    def heal_log(self, lost_index: int) -> None:
        """The log lacks acknowledged entries up to here: end the node, start it without its log."""
        ...

    def end_healing(self, generation: int) -> None:
        """Make this healing generation durable, then call `Node.on_healed`."""
        ...
