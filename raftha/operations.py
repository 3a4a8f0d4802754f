"""What callers hand to a node: one record per call, with its deadline and whoever waits for it.

`waiter` is opaque to the node; the host, which made it, delivers to it (`Host.deliver`). A result
is delivered at most once: whoever delivers sets `waiter` to None.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

MAJORITY = 0
ALL_VOTERS = -1
AT_ONCE = -2
"""How many voters must have a write before its caller is released, where it isn't a number."""


class Operation:
    """One call under way; `deadline` is on the monotonic clock, in seconds."""

    __slots__ = ("deadline", "waiter")

    def __init__(self, waiter: Any, deadline: float) -> None:
        self.waiter = waiter
        self.deadline = deadline


class WriteOperation(Operation):
    """One packed command, to be sent in the node's own session. Delivers its receipt."""

    __slots__ = ("command",)
    acks = MAJORITY

    def __init__(self, waiter: Any, deadline: float, command: bytes) -> None:
        super().__init__(waiter, deadline)
        self.command = command


class AcknowledgedWrite(WriteOperation):
    """A write whose caller wants more than a majority: so many voters, or `ALL_VOTERS`."""

    __slots__ = ("acks",)

    def __init__(self, waiter: Any, deadline: float, command: bytes, acks: int) -> None:
        super().__init__(waiter, deadline, command)
        self.acks = acks  # The slot hides the class's own value.


class GroupOperation(Operation):
    """A whole group, numbered by a client with a session of its own. Delivers the outcome.

    Session 0 opens a session; `number` is then chosen by the node. `acks`: as of a write.
    """

    __slots__ = ("acks", "commands", "count", "floor", "number", "session")

    def __init__(
        self,
        waiter: Any,
        deadline: float,
        session: int,
        number: int,
        floor: int,
        commands: list[bytes],
        acks: int = MAJORITY,
    ) -> None:
        super().__init__(waiter, deadline)
        self.acks = acks
        self.session = session
        self.number = number
        self.floor = floor
        self.commands = b"".join(commands)
        self.count = len(commands)


class ReadOperation(Operation):
    """A function of the node, run on the node's thread. Delivers what it returns.

    `is_linearizable`: only after a read index; otherwise at once, on whatever state is here.
    """

    __slots__ = ("is_linearizable", "read")

    def __init__(
        self, waiter: Any, deadline: float, read: Callable[[Any], Any], *, is_linearizable: bool
    ) -> None:
        super().__init__(waiter, deadline)
        self.read = read
        self.is_linearizable = is_linearizable


class DigestOperation(Operation):
    """A digest at the first entry's end at or after `sequence`; now, if that has passed."""

    __slots__ = ("sequence",)

    def __init__(self, waiter: Any, deadline: float, sequence: int) -> None:
        super().__init__(waiter, deadline)
        self.sequence = sequence


class TransferOperation(Operation):
    """Make `target` the leader. Delivers None once it is."""

    __slots__ = ("target",)

    def __init__(self, waiter: Any, deadline: float, target: int) -> None:
        super().__init__(waiter, deadline)
        self.target = target


class MembershipOperation(Operation):
    """Make `node_id` a voter at `address` (`adds`), or remove it. Delivers None once that holds."""

    __slots__ = ("address", "adds", "asked_at", "is_repeated", "node_id", "region")

    def __init__(
        self,
        waiter: Any,
        deadline: float,
        node_id: int,
        *,
        adds: bool,
        address: str = "",
        region: str = "",
    ) -> None:
        super().__init__(waiter, deadline)
        self.node_id = node_id
        self.adds = adds
        self.address = address
        self.region = region
        self.asked_at = 0.0
        self.is_repeated = False
