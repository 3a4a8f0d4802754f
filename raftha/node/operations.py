"""What callers submit to a node: one record per call, with its deadline and its waiter.

`waiter` is opaque to the node; the host, which made it, delivers to it (`Host.deliver`). A result
is delivered at most once: delivery sets `waiter` to None.

Every operation has a size, which counts towards the limits on what a node holds: the bytes that it
carries, plus `OPERATION_BYTES` for the records around them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

MAJORITY = 0
ALL_VOTERS = -1
AT_ONCE = -2
"""The values of `acks` that stand for something else than a number of voters."""

OPERATION_BYTES = 512
"""About what an operation takes in addition to its contents: itself, its future, queue slots."""


class Operation:
    """One call under way; `deadline` is on the monotonic clock, in seconds.

    `is_write` says which of the two limits it counts towards: that of writes, or of all others.
    """

    __slots__ = ("deadline", "size", "waiter")
    is_write = False

    def __init__(self, waiter: Any, deadline: float, contents_bytes: int = 0) -> None:
        self.waiter = waiter
        self.deadline = deadline
        self.size = OPERATION_BYTES + contents_bytes


class WriteOperation(Operation):
    """One packed command, for the node's own session. Delivers its receipt."""

    __slots__ = ("command",)
    acks = MAJORITY
    names: tuple[str, ...] = ()
    is_write = True

    def __init__(self, waiter: Any, deadline: float, command: bytes) -> None:
        # Made once per write; without `super` it takes half as long.
        self.waiter = waiter
        self.deadline = deadline
        self.size = OPERATION_BYTES + len(command)
        self.command = command


class AcknowledgedWrite(WriteOperation):
    """A write that must be on more disks than a majority's: `acks` voters, or `ALL_VOTERS`."""

    __slots__ = ("acks",)

    def __init__(self, waiter: Any, deadline: float, command: bytes, acks: int) -> None:
        super().__init__(waiter, deadline, command)
        self.acks = acks  # The slot shadows the class attribute.


class CallOperation(WriteOperation):
    """A call of the state machine's command `name`, which all members must know.

    `acks` is as in `AcknowledgedWrite`.
    """

    __slots__ = ("acks", "names")

    def __init__(
        self, waiter: Any, deadline: float, command: bytes, name: str, acks: int = MAJORITY
    ) -> None:
        super().__init__(waiter, deadline, command)
        self.names = (name,)
        self.acks = acks


class GroupOperation(Operation):
    """A whole group, numbered by a client in its own session. Delivers the outcome.

    Session 0 opens a session of `owner` (`raftha.storage.state.owners`), without commands; the node
    then chooses `number`. `acks` is as in `AcknowledgedWrite`.
    `names` are the state machine's commands that it calls.
    """

    __slots__ = ("acks", "commands", "count", "floor", "names", "number", "session")
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
        *,
        owner: bytes = b"",
        names: tuple[str, ...] = (),
    ) -> None:
        super().__init__(waiter, deadline, sum(map(len, commands)))
        self.acks = acks
        self.names = names
        self.session = session
        self.number = number
        self.floor = floor
        self.commands = b"".join(commands) if session else owner
        self.count = len(commands)


class ReadOperation(Operation):
    """A function of the node, run on the node's thread. Delivers what it returns.

    A linearizable read runs once its read index is confirmed and applied; any other read runs at
    once, on the local state. With `max_age_s`, a linearizable read runs at once too if the state is
    known to be that fresh. `read_bytes` is the size of what `read` holds, its keys above all.
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
    """A digest of the state after the first entry that reaches `sequence`, or of a later state."""

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

    With `is_standby` it becomes a learner that stays a learner. Without an address it must be a
    member already. With `moves` a member gets this address and this region; "" keeps its own.
    """

    __slots__ = (
        "address",
        "adds",
        "asked_at",
        "is_repeated",
        "is_standby",
        "moves",
        "node_id",
        "region",
    )

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
        moves: bool = False,
    ) -> None:
        super().__init__(waiter, deadline)
        self.node_id = node_id
        self.adds = adds
        self.moves = moves
        self.is_standby = is_standby
        self.address = address
        self.region = region
        self.asked_at = 0.0
        self.is_repeated = False


class BackupOperation(Operation):
    """A request about backups, as in `BackupRequest`.

    A TRIGGER delivers the backup's record: as soon as it has begun, or with `waits` once it is
    completed; a RECOVER likewise that of the recovery. The others deliver the index of the entry
    that did it.
    """

    __slots__ = ("asked_at", "index", "is_repeated", "number", "payload", "waits", "what")

    def __init__(
        self, waiter: Any, deadline: float, what: int, payload: bytes, *, waits: bool = False
    ) -> None:
        super().__init__(waiter, deadline, len(payload))
        self.what = what
        self.payload = payload
        self.waits = waits
        self.number = 0
        self.index = 0
        """The entry that did it, once the leader has said so."""
        self.asked_at = 0.0
        self.is_repeated = False


def sizes(operations: Sequence[Operation]) -> tuple[int, int]:
    """Return the total size of the writes among `operations`, and that of all others."""
    writes = sum([operation.size for operation in operations if operation.is_write])
    return writes, sum([operation.size for operation in operations]) - writes
