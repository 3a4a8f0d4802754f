"""A leader's writes between queue and log: what forms a batch, and what asks for a turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

from raftha.clock import Clock
from raftha.core import Raft
from raftha.entry import Entry, decode_groups
from raftha.node.host import Host
from raftha.node.log_clock import LogClock
from raftha.node.messages import Forward, ForwardReply, PeerMessage
from raftha.node.operations import ALL_VOTERS, AcknowledgedWrite, WriteOperation
from raftha.node.pending import PendingOperations
from raftha.node.proposals import UNCOMMITTED_BYTES_MAX
from raftha.node.writes import Writes
from raftha.storage.state.commands import pack_put
from raftha.storage.state.sessions import Applied, Outcome, Verdict
from tests.support.core import become_leader, core, finish

SESSION = 77
NOW = 100.0


class Scene:
    """A leader's `Writes`, with a host and a clock."""

    def __init__(self) -> None:
        self.core: Raft = core()
        become_leader(self.core)
        self.wakes = 0
        self.sent: list[PeerMessage] = []
        self.delivered: list[tuple[Any, Any]] = []
        pending = PendingOperations(self._deliver, self._deliver_each, Counter())
        self.writes = Writes(
            self.core,
            cast(Host, self),
            pending,
            cast(Clock, self),
            LogClock(self.core, cast(Clock, self), 5000),
            lambda limit: 5 % limit,
            1.0,
        )

    def wake(self) -> None:
        self.wakes += 1

    def send(self, message: PeerMessage) -> None:
        self.sent.append(message)

    def monotonic(self) -> float:
        return NOW

    def time_us(self) -> int:
        return 1_000

    def boottime_ns(self) -> int:
        return 0

    def _deliver(self, waiter: Any, result: Any) -> None:
        self.delivered.append((waiter, result))

    def _deliver_each(self, waiters: Sequence[Any], results: Sequence[Any]) -> None:
        self.delivered += zip(waiters, results, strict=True)

    def add(self, *names: str) -> None:
        self.writes.add(iter([write(name) for name in names]))

    def apply(self, entry: Entry, *, session: int = 0) -> None:
        """Report that the state has applied `entry`; `session` is the session that it opened."""
        groups = [
            Applied(
                group.session,
                group.number,
                Outcome(1, entry.index, 1, 0, group.count, None, session, Verdict.APPLIED),
            )
            for group in decode_groups(entry.payload)
        ]
        self.writes.on_applied(entry, groups, NOW)

    def write_log(self) -> Entry:
        """Make the core's pending write durable; return its last entry."""
        ready = self.core.ready()
        assert ready.write is not None
        finish(self.core, ready)
        return ready.write.entries[-1]


def write(name: str, size: int = 5) -> WriteOperation:
    return WriteOperation(name, 200.0, pack_put(name.encode(), b"x" * size))


def test_forming_a_batch_asks_for_no_further_turn() -> None:
    """The batch is in the log in the same turn; another turn would find nothing to do."""
    scene = Scene()
    scene.add("a")
    scene.writes.form_batch()
    assert scene.core.log.last_index == 2, "the no-op, and the opening of the session"
    assert scene.wakes == 0


def test_writes_that_waited_for_the_session_ask_for_a_turn() -> None:
    scene = Scene()
    scene.add("a", "b")
    scene.writes.form_batch()
    scene.apply(scene.write_log(), session=SESSION)
    assert scene.wakes == 1
    scene.writes.form_batch()
    (group,) = decode_groups(scene.write_log().payload)
    assert (group.session, group.count) == (SESSION, 2)
    assert scene.wakes == 1


def test_a_session_that_no_write_waits_for_asks_for_no_turn() -> None:
    scene = Scene()
    operation = write("a")
    scene.writes.add(iter([operation]))
    scene.writes.form_batch()
    scene.writes.expire(operation.deadline)
    scene.apply(scene.write_log(), session=SESSION)
    assert scene.wakes == 0


def test_room_for_what_waits_asks_for_a_turn() -> None:
    """Proposed and unapplied entries are bounded; once they are applied, the rest may go on."""
    scene = Scene()
    scene.add("first")
    scene.writes.form_batch()
    scene.apply(scene.write_log(), session=SESSION)
    scene.wakes = 0
    entries: list[Entry] = []
    proposed = 0
    while proposed <= UNCOMMITTED_BYTES_MAX:
        scene.writes.add(iter([write(f"{number}", 1 << 20) for number in range(4)]))
        scene.writes.form_batch()
        entries.append(scene.write_log())
        proposed += len(entries[-1].data)
    scene.add("waits")
    last = scene.core.log.last_index
    scene.writes.form_batch()
    assert scene.core.log.last_index == last, "there is no room"
    for entry in entries:
        scene.apply(entry)
    assert scene.wakes == 1
    scene.writes.form_batch()
    assert scene.core.log.last_index == last + 1


def test_a_write_that_wants_impossible_disks_is_refused() -> None:
    scene = Scene()
    scene.writes.add_checked(AcknowledgedWrite("a", 200.0, pack_put(b"k", b"v"), 7))
    ((waiter, error),) = scene.delivered
    assert waiter == "a" and "write_quorum" in str(error)
    scene.writes.add_checked(AcknowledgedWrite("b", 200.0, pack_put(b"k", b"v"), ALL_VOTERS))
    assert len(scene.delivered) == 1


def test_a_leader_refuses_forwarded_groups_while_a_majority_is_full() -> None:
    scene = Scene()
    follower = Scene()
    follower.add("a")
    follower.writes.form_batch()
    group = bytes(follower.write_log().payload)
    scene.writes.on_forward(Forward(1, 2, group), is_majority_full=True)
    (reply,) = scene.sent
    assert isinstance(reply, ForwardReply) and reply.is_full
    scene.writes.on_forward(Forward(1, 2, b"nonsense"), is_majority_full=False)
    assert len(scene.sent) == 1, "what is no group is dropped"
