"""A node's six watchers, and which of them is notified of what.

Theory of operation. The watchers don't know each other; `Watch` passes on what one needs from
another. They act through the node: they send messages, emit events, and request a transfer of
leadership.

    health     which members answer, and whether this node's disk keeps up (`HealthMonitor`)
    disk space which disks are full (`DiskSpace`)
    lag        how far behind each replica is, and whether there is a quorum (`LagTracker`)
    failover   when leadership changed, and how long each phase took (`FailoverWatch`)
    placement  whether leadership should return to a preferred region (`LeaderPlacement`)
    divergence whether the members' states are the same (`DivergenceWatch`)
    clocks     whose wall clock is wrong (`ClockWatch`)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from raftha.config import HaConfig
from raftha.core import Raft
from raftha.events import HaEvent, LeaderElected, StorageHasSpace, StorageIsFull
from raftha.membership import Membership
from raftha.node.checkpoints import Checkpoints
from raftha.node.comparison import Outcome
from raftha.node.host import Host
from raftha.node.log_clock import LogClock
from raftha.node.messages import (
    DigestReport,
    DigestRequest,
    DigestVerdict,
    PeerMessage,
    ReplicaReport,
    SpaceReport,
    WatchMessage,
)
from raftha.node.watch.clocks import ClockWatch
from raftha.node.watch.disk_space import DiskSpace
from raftha.node.watch.divergence import Compared, DivergenceWatch
from raftha.node.watch.failover import FailoverWatch
from raftha.node.watch.health import HealthMonitor
from raftha.node.watch.lag import LagTracker
from raftha.node.watch.placement import LeaderPlacement
from raftha.storage.state.state import StateDigest
from raftha.types import ReplicaStatus, ReplicationState


class Watch:
    """The watchers of one node. All calls come from the node's thread."""

    def __init__(
        self,
        config: HaConfig,
        core: Raft,
        host: Host,
        hand_over: Callable[[Collection[int]], None],
        position: Callable[[], tuple[int, int]],
        checkpoints: Checkpoints,
        log_clock: LogClock,
        *,
        now: float,
    ) -> None:
        """`hand_over` makes one of the given nodes the leader, if it can.

        `position` returns the last index and sequence that this node has applied.
        """
        self._core = core
        self._host = host
        self._health = HealthMonitor(config, core, host, hand_over, lambda: position()[0], now)
        self._disk_space = DiskSpace(core, host.send, hand_over, config.election_timeout_ms / 1000)
        self._failover = FailoverWatch(core, now)
        self._placement = LeaderPlacement(core, config.regions, hand_over)
        self._divergence = DivergenceWatch(config, core, host, checkpoints, now)
        self._clocks = ClockWatch(core, log_clock, host.emit, hand_over, config.max_clock_offset_ms)
        self._lag_tracker = LagTracker(
            config,
            core,
            host,
            self._health.last_contact,
            position,
            now,
            self._clocks.offset_ms,
        )

    # ---------------------------------------------------------------- peers

    def record_contact(self, peer: int, now: float) -> None:
        """A message from a member arrived."""
        self._health.record_contact(peer, now)

    def on_message(
        self,
        message: WatchMessage,
        now: float,
    ) -> None:
        """A member asks for health or a digest, or reports one of what the watchers know."""
        match message:
            case DigestRequest() | DigestReport() | DigestVerdict():
                self._divergence.on_message(message, now)
            case SpaceReport():
                self._disk_space.on_message(message, now)
            case ReplicaReport():
                self._lag_tracker.on_report(message, now)
            case _:
                self._health.on_message(message)

    def on_stepped(self, message: PeerMessage, now: float) -> None:
        """The node has handled a member's message, which may have changed the core's term."""
        self._failover.observe(now, message)

    def on_connected(self, peer: int, now: float) -> None:
        """A connection to a member was established."""
        self._health.record_contact(peer, now)
        self._lag_tracker.on_connection(now)

    def on_disconnected(self, now: float) -> None:
        """A connection to a member was lost."""
        self._lag_tracker.on_connection(now)

    def on_leader(self, now: float) -> None:
        """A leader is known."""
        self._health.on_leader(now)
        self._lag_tracker.on_leader(now)

    def on_membership(self, before: Membership, after: Membership) -> None:
        """The state has applied another membership, committed while this node runs."""
        self._lag_tracker.on_membership(before, after)

    # ---------------------------------------------------------------- this node

    def on_writing(self, now: float) -> None:
        """A write of the log has begun."""
        self._health.write_begun(now)

    def on_written(self, now: float) -> float:
        """The write is durable, or the log is sealed; return the seconds that took."""
        return self._health.write_ended(now)

    def on_digest(self, index: int, digest: StateDigest | None) -> None:
        """The state as of entry `index` is hashed; None if that had to be given up."""
        self._divergence.on_digest(index, digest)

    def compare_with(self, propose: Callable[[], int | None], now: float) -> int | None:
        """Propose an entry as leader, and have the members' states compared as of it."""
        return self._divergence.begin_with(propose, now)

    def compare_now(self, propose: Callable[[], int | None], now: float) -> int | None:
        """As `compare_with`, but propose nothing, and return None, if that isn't possible now."""
        return self._divergence.compare_now(propose, now)

    @property
    def outcome(self) -> Outcome | None:
        """The last comparison of the members' states that this node has made as leader."""
        return self._divergence.outcome

    def is_comparing(self, index: int) -> bool:
        """Whether the members' states as of this entry are being compared."""
        return self._divergence.is_comparing(index)

    def has_diverged(self, node_id: int, index: int) -> bool:
        """Whether the last comparison was as of this entry, and found this node to differ."""
        last = self._divergence.last
        return last.index == index and node_id in last.diverged

    def on_full(self, place: str, reason: str) -> None:
        """A write at `place` found no space."""
        is_news = self._disk_space.has_space
        self._disk_space.on_full(place, reason)
        if is_news:
            self._host.emit(StorageIsFull(reporter=self._core.id, reason=reason))

    def on_space(self, place: str) -> None:
        """The write at `place` succeeded."""
        was_full = not self._disk_space.has_space
        self._disk_space.on_space(place)
        if was_full and self._disk_space.has_space:
            self._host.emit(StorageHasSpace(reporter=self._core.id))

    def on_events(self, events: Sequence[HaEvent], now: float) -> bool:
        """Emit the core's events of a turn; return True if one of them names a leader.

        The start of a failover is emitted before them, its end after them.
        """
        self._failover.observe(now)
        if not events and not self._failover.is_under_way:
            return False
        started = self._failover.take_started()
        completed = self._failover.take_completed(now)
        for event in (started, *events, completed):
            if event is not None:
                self._host.emit(event)
        if events:
            self._lag_tracker.on_events(events, now)
        return any(isinstance(event, LeaderElected) for event in events)

    def on_log(self, now: float) -> None:
        """The log may have grown."""
        self._lag_tracker.record_appends(now)

    def on_tick(self, now: float) -> None:
        """A heartbeat interval has passed."""
        self._health.on_tick(now)
        self._clocks.on_tick(self._health.may_lead)
        self._placement.on_tick(now, self._may_lead)
        self._disk_space.on_tick(now, self._may_lead)
        self._lag_tracker.on_tick(now)
        self._divergence.on_tick(now)

    def _may_lead(self, node_id: int) -> bool:
        return self._health.may_lead(node_id) and self._clocks.is_right(node_id)

    # ---------------------------------------------------------------- what is known

    @property
    def has_space(self) -> bool:
        """True if this node's disk has space for what it writes."""
        return self._disk_space.has_space

    @property
    def compared(self) -> Compared:
        """The last comparison of the members' states."""
        return self._divergence.last

    @property
    def is_majority_full(self) -> bool:
        """True if this node leads and too few voters have space to accept writes."""
        return self._disk_space.is_majority_full

    def refusal(self) -> str:
        """Return why this node refuses its callers' writes now; "" if it accepts them."""
        return self._disk_space.refusal()

    def statuses(
        self, now: float, client_addresses: Mapping[int, str]
    ) -> tuple[ReplicaStatus, ...]:
        """Return the status of every member."""
        return self._lag_tracker.statuses(now, client_addresses, self._health.health)

    def state(self, now: float) -> ReplicationState:
        """Return the state of the cluster."""
        return self._lag_tracker.state(now)

    def max_lag_ms(self, now: float) -> int:
        """Return the largest lag of a voter."""
        return self._lag_tracker.max_lag_ms(now)
