"""The observers of a simulated member: its callers, and the watchers of the simulation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from raftha.core import Write
from raftha.entry import LogPosition
from raftha.events import HaEvent
from raftha.node.messages import PeerMessage
from raftha.storage.log.wal import Wal

if TYPE_CHECKING:
    from tests.sim.member import Member


class Waiter(Protocol):
    """A caller that waits for an operation."""

    def done(self, result: Any) -> None: ...


class Watch(Protocol):
    """A watcher of a member: the invariants, and the faults."""

    def on_start(self, member: Member) -> None: ...
    def on_send(self, member: Member, message: PeerMessage) -> None: ...
    def on_writing(self, member: Member, write: Write) -> None: ...
    def on_durable(self, member: Member, write: Write) -> None: ...
    def on_role(self, member: Member, role: str) -> None: ...
    def on_event(self, member: Member, event: HaEvent) -> None: ...
    def on_turn(self, member: Member) -> None: ...
    def on_crash(self, member: Member) -> None: ...
    def on_unsupported(self, member: Member, reason: str) -> None: ...
    def on_wipe(self, member: Member) -> None: ...
    def on_told_removed(self, member: Member) -> None: ...
    def on_reset(self, member: Member, wal: Wal, position: LogPosition) -> None: ...
    def on_loss(self, member: Member, position: LogPosition) -> None: ...


class NoWatch:
    """Watches nothing of a member but its end: it is started again."""

    def __init__(self, watch: Watch) -> None:
        self.on_crash = watch.on_crash

    def __getattr__(self, name: str) -> Any:
        return lambda member, *args: None
