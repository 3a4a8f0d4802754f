"""What callers hand to a node: one record per call, with its deadline and whoever waits for it.

`waiter` is opaque to the node; the host, which made it, delivers to it (`Host.deliver`). A result
is delivered at most once: whoever delivers sets `waiter` to None.

Every operation has a size, which counts towards the bound of what a node holds of them: the bytes
that it carries, and `OPERATION_BYTES` for the records around it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

MAJORITY = 0
ALL_VOTERS = -1
AT_ONCE = -2
"""How many voters must have a write before its caller is released, where it isn't a number."""

OPERATION_BYTES = 512
"""About what an operation takes beside its contents: itself, its future, places in queues."""


class Operation:
    """One call under way; `deadline` is on the monotonic clock, in seconds.

    `is_write`: whether it counts among the writes, or among all else that is asked of a node.
    """

    __slots__ = ("deadline", "size", "waiter")
    is_write = False

    def __init__(self, waiter: Any, deadline: float, contents_bytes: int = 0) -> None:
        self.waiter = waiter
        self.deadline = deadline
        self.size = OPERATION_BYTES + contents_bytes


class WriteOperation(Operation):
    """One packed command, to be sent in the node's own session. Delivers its receipt."""

    __slots__ = ("command",)
    acks = MAJORITY
    is_write = True

    def __init__(self, waiter: Any, deadline: float, command: bytes) -> None:
        # One is made for each write, or read; without `super` it takes half as long.
        self.waiter = waiter
        self.deadline = deadline
        self.size = OPERATION_BYTES + len(command)
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
    is_write = True

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
        super().__init__(waiter, deadline, sum(map(len, commands)))
        self.acks = acks
        self.session = session
        self.number = number
        self.floor = floor
        self.commands = b"".join(commands)
        self.count = len(commands)


class ReadOperation(Operation):
    """A function of the node, run on the node's thread. Delivers what it returns.

    `is_linearizable`: only after a read index; otherwise at once, on whatever state is here. If the
    state is known to be as fresh as `max_age_s`, at once too. `read_bytes`: the size of what `read`
    carries along, keys above all.
    """

    __slots__ = ("is_linearizable", "max_age_s", "read")

    def __init__(
        self,
        waiter: Any,
        deadline: float,
        read: Callable[[Any], Any],
        *,
        is_linearizable: bool,
        max_age_s: float = 0.0,
        read_bytes: int = 0,
    ) -> None:
        self.waiter = waiter
        self.deadline = deadline
        self.size = OPERATION_BYTES + read_bytes
        self.max_age_s = max_age_s
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

    __slots__ = ("asked_at", "target", "tries")

    def __init__(self, waiter: Any, deadline: float, target: int) -> None:
        super().__init__(waiter, deadline)
        self.target = target
        self.asked_at = 0.0
        self.tries = 0


class MembershipOperation(Operation):
    """Make `node_id` a voter at `address` (`adds`), or remove it. Delivers None once that holds.

    With `is_standby` it is to be a learner that stays one; without an address, it is a member.
    """

    __slots__ = ("address", "adds", "asked_at", "is_repeated", "is_standby", "node_id", "region")

    def __init__(
        self,
        waiter: Any,
        deadline: float,
        node_id: int,
        *,
        adds: bool,
        address: str = "",
        region: str = "",
        is_standby: bool = False,
    ) -> None:
        super().__init__(waiter, deadline)
        self.node_id = node_id
        self.adds = adds
        self.is_standby = is_standby
        self.address = address
        self.region = region
        self.asked_at = 0.0
        self.is_repeated = False


def sizes(operations: Sequence[Operation]) -> tuple[int, int]:
    """How large the writes among these are, and how large all else."""
    writes = sum([operation.size for operation in operations if operation.is_write])
    return writes, sum([operation.size for operation in operations]) - writes
