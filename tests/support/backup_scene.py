"""Three nodes' `Backups` over one log, without Raft: proposals are committed and applied at once.

What the host does is done when the test says so. Time stands still unless the test moves it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from raftha.config import BackupConfig, HaConfig, PitrConfig
from raftha.entry import LogPosition
from raftha.events import HaEvent
from raftha.membership import Member, Membership
from raftha.node.backup.backups import Backups
from raftha.node.backup_work import (
    BackupOrder,
    BackupProgress,
    Deletion,
    Listing,
    TakenBackup,
)
from raftha.node.comparison import Outcome
from raftha.node.messages import BackupAction
from raftha.node.operations import BackupOperation, Operation
from raftha.node.recovery_work import BuiltState, PairsProgress, PlannedRecovery, RecoveryTarget
from raftha.recovery import DrillReport
from raftha.storage.backup.archive import ArchiveOrder, ArchiveResult, Place
from raftha.storage.backup.drill import DrillOrder
from raftha.storage.directory.restoring import PreparedState
from raftha.storage.state.catalog import (
    BackupRecord,
    Catalog,
    Change,
    decode_change,
    encode_change,
)
from raftha.storage.state.recoveries import RecoveryRecord
from raftha.storage.state.versions import Versions, decode_admin

LINEAGE = "a" * 32
HOUR_S = 3600
T0_US = 1_764_288_000_000_000
PROTOCOL = 7


class IdleDrills:
    """Drills that take for ever."""

    def last(self, lineage: str, done: Callable[[DrillReport | None], None]) -> None: ...

    def run(self, order: DrillOrder, done: Callable[[DrillReport], None]) -> None: ...


class Work:
    """A host's side: what was asked of it, and answers when the test gives them."""

    def __init__(self) -> None:
        self.spool_index: int | None = 0
        self.archive = Archive()
        self.order: BackupOrder | None = None
        self.cancelled = 0
        self.drills = IdleDrills()
        self.listed: Sequence[BackupRecord] | None = None
        self.deleting: Mapping[str, Sequence[BackupRecord]] | None = None
        self._done: dict[str, Callable[[Any], None]] = {}
        self.progress: Callable[[BackupProgress], None] | None = None

    def take(
        self,
        order: BackupOrder,
        on_progress: Callable[[BackupProgress], None],
        done: Callable[[TakenBackup], None],
    ) -> None:
        self.order, self.progress = order, on_progress
        self._done["take"] = done

    def cancel(self) -> None:
        self.order = None
        self.cancelled += 1

    def list(
        self, lineage: str, known: Sequence[BackupRecord], done: Callable[[Listing], None]
    ) -> None:
        assert lineage == LINEAGE
        self.listed = known
        self._done["list"] = done

    def delete(
        self, wanted: Mapping[str, Sequence[BackupRecord]], done: Callable[[Deletion], None]
    ) -> None:
        self.deleting = wanted
        self._done["delete"] = done

    def finish(self, what: str, result: Any) -> None:
        """The work is done."""
        self._done.pop(what)(result)

    def taken(self, scene: Scene, **others: Any) -> None:
        """The backup that was ordered is complete."""
        assert self.order is not None
        record = self.order.record
        fields = {
            "error": "",
            "destinations": record.destinations,
            "position_index": scene.index,
            "position_us": scene.time_us,
            "keys": 10,
            "size_bytes": 1000 if record.parent == 0 else 10,
            "size_compressed": 1000 if record.parent == 0 else 10,
            "manifest": b"m" * 32,
            "verify_level": 1,
        }
        self.order = None
        self.finish("take", TakenBackup(**{**fields, **others}))

    def failed(self, error: str) -> None:
        """The backup that was ordered has failed."""
        self.order = None
        self.finish("take", TakenBackup(error))

    def lists(self, **others: Any) -> None:
        """The destinations hold what the catalog says, and what is given."""
        assert self.listed is not None
        complete = {r.id: r.destinations for r in self.listed if r.state == "completed"}
        fields = {"errors": {}, "found": complete, "lost": {}, "adoptable": (), "leftovers": ()}
        self.listed = None
        self.finish("list", Listing(**{**fields, **others}))

    def deletes(self, **others: Any) -> None:
        """Everything that was to be deleted is."""
        assert self.deleting is not None
        gone = frozenset((r.id, name) for name, rs in self.deleting.items() for r in rs)
        self.deleting = None
        self.finish("delete", Deletion(**{"gone": gone, "refused": {}, **others}))


class RecoveryWork:
    """A host's side of recoveries: what was asked of it, and answers when the test gives them."""

    def __init__(self) -> None:
        self.target: RecoveryTarget | None = None
        self.building: RecoveryRecord | None = None
        self.prepared: PreparedState | None = None
        self.progress: PairsProgress | None = None
        self.discarded = 0
        self.builds = 0
        self.restored: list[tuple[int, bytes]] = []
        self._plan_done: Callable[[PlannedRecovery], None] | None = None
        self._build_done: Callable[[BuiltState], None] | None = None

    def plan(self, target: RecoveryTarget, done: Callable[[PlannedRecovery], None]) -> None:
        self.target, self._plan_done = target, done

    def build(
        self, record: RecoveryRecord, on_progress: PairsProgress, done: Callable[[BuiltState], None]
    ) -> None:
        self.building, self.progress, self._build_done = record, on_progress, done
        self.builds += 1

    def discard(self) -> None:
        self.building = self.prepared = None
        self.discarded += 1

    def restore(self, recovery_id: int, meta: bytes) -> None:
        self.restored.append((recovery_id, meta))

    def planned(self, kind: str = "", error: str = "", backups: tuple[int, ...] = ()) -> None:
        """The plan is made."""
        done, target = self._plan_done, self.target
        assert done is not None and target is not None
        self._plan_done = None
        done(PlannedRecovery(kind, error, target.lineage, target.sequence, 5, backups))

    def built(self, digest: str) -> None:
        """The state is prepared."""
        assert self.building is not None and self._build_done is not None
        self.prepared = PreparedState(self.building.id, digest, 3)
        self.building = None
        self._build_done(BuiltState("", self.prepared))

    def failed(self, error: str) -> None:
        """The state can't be built."""
        assert self._build_done is not None
        self.building = None
        self._build_done(BuiltState(error))


class Archive:
    """A host's archive: what was ordered of it, and results when the test gives them."""

    def __init__(self) -> None:
        self.orders: dict[str, ArchiveOrder] = {}
        """What should be put, by destination."""
        self.tidied: list[ArchiveOrder] = []
        self._done: dict[str, Callable[[ArchiveResult], None]] = {}

    def put(
        self, destination: str, order: ArchiveOrder, done: Callable[[ArchiveResult], None]
    ) -> None:
        assert destination not in self.orders, "one job at a time"
        self.orders[destination], self._done[destination] = order, done

    def tidy(
        self, destination: str, order: ArchiveOrder, done: Callable[[ArchiveResult], None]
    ) -> None:
        self.tidied.append(order)
        done(ArchiveResult())

    def finish(self, destination: str = "local", **result: Any) -> None:
        """What was ordered is archived, or the result is another one."""
        order = self.orders.pop(destination)
        place = Place(order.through, order.through, T0_US)
        fields = {"archived": place, "verified": 0, "start": 1, **result}
        self._done.pop(destination)(ArchiveResult(**fields))


class Waiter:
    """A caller's place to get a result."""

    def __init__(self) -> None:
        self.result: Any = None


@dataclass
class Progress:
    match: int
    applied: int = 0
    is_healing: bool = False
    is_active: bool = True
    was_active: bool = True


class CoreLog:
    """The log of a node's core."""

    def __init__(self, scene: Scene, node_id: int) -> None:
        self._scene = scene
        self._id = node_id

    @property
    def last(self) -> LogPosition:
        return LogPosition(self._scene.index, self._scene.term, T0_US, 0, bytes(16))

    @property
    def last_index(self) -> int:
        return self._scene.index

    @property
    def commit(self) -> int:
        return self._scene.index

    known_commit = 0

    def term(self, index: int) -> int:
        return self._scene.term

    @property
    def anchor(self) -> LogPosition:
        return LogPosition(10, 1, T0_US, 10, bytes(16))

    @property
    def window(self) -> list[LogPosition]:
        """The entries after the anchor, as far as anything looks at them."""
        return self._scene.entries

    @property
    def first_membership(self) -> Membership:
        return self._scene.membership

    @property
    def first_index(self) -> int:
        return self._scene.first_index.get(self._id, 1)


class Core:
    """A node's core."""

    def __init__(self, scene: Scene, node_id: int) -> None:
        self.id = node_id
        self.log = CoreLog(scene, node_id)
        self.is_removed = False
        self.can_propose = True
        self._scene = scene

    @property
    def is_leader(self) -> bool:
        return self._scene.leader == self.id

    @property
    def leader(self) -> int | None:
        return self._scene.leader if self._scene.is_reached(self.id) else None

    @property
    def term(self) -> int:
        return self._scene.term

    @property
    def membership(self) -> Membership:
        return self._scene.membership

    @property
    def progress(self) -> dict[int, Progress]:
        scene = self._scene
        others = scene.membership.members.keys() - {self.id}
        return {
            n: Progress(scene.index - scene.lags.get(n, 0), scene.nodes[n].state.applied.index)
            for n in others
        }

    def propose(self, payload: bytes, count: int, time_us: int) -> int | None:
        return self._scene.append(self, payload, time_us)

    def propose_admin(self, payload: bytes, time_us: int = 0) -> int | None:
        return self._scene.append(self, payload, time_us)

    def propose_restore(self, payload: bytes, time_us: int) -> int | None:
        return self._scene.append(self, payload, time_us)


class State:
    """What a node has applied."""

    def __init__(self) -> None:
        self.catalog = Catalog()
        self.versions: Versions | None = Versions(PROTOCOL, 0, frozenset())
        self.applied = LogPosition(10, 1, T0_US, 0, bytes(16))

    @property
    def has_catalog(self) -> bool:
        return self.versions is not None and self.versions.protocol >= PROTOCOL

    @property
    def has_recovery(self) -> bool:
        return self.versions is not None and self.versions.protocol >= 8


class Host:
    """A node's host."""

    def __init__(self, scene: Scene, node_id: int) -> None:
        self.backups = Work()
        self.recovery = RecoveryWork()
        self.events: list[HaEvent] = []
        self._scene = scene
        self._id = node_id

    def send(self, message: Any) -> None:
        self._scene.send(message)

    def is_connected(self, peer: int) -> bool:
        return self._scene.is_up(self._id) and self._scene.is_up(peer)

    def emit(self, event: HaEvent) -> None:
        self.events.append(event)

    def wake(self) -> None: ...


class Checkpoints:
    """A node's checkpoints: one that is wanted is made when time passes."""

    def __init__(self) -> None:
        self.last = LogPosition(0, 0, 0, 0, bytes(16))
        self.wanted = 0
        self.applied_bytes = 0

    def want(self, index: int) -> None:
        self.wanted = index


class Archiving:
    """A node's part in the archive, which is as far as the scene says."""

    held_index = None
    start_index = 0
    status = None
    archiver = None

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    @property
    def archived_index(self) -> int | None:
        return self._scene.archived

    def on_leader(self) -> None: ...
    def on_tick(self, now: float) -> None: ...
    def on_message(self, message: Any) -> None: ...


class Node:
    """One node, and all that its `Backups` see."""

    def __init__(self, scene: Scene, node_id: int, config: HaConfig) -> None:
        self.id = node_id
        self.scene = scene
        self.config = config
        self.state = State()
        self.core = Core(scene, node_id)
        self.compared: list[int] = []
        self.held: list[bool] = []
        self.handed_over: list[Any] = []
        self.sent_state: list[int] = []
        self.outcome: Outcome | None = None
        self.restart()

    def restart(self) -> None:
        """Begin another life, with what the log and the state say."""
        self.host = Host(self.scene, self.id)
        self.checkpoints = Checkpoints()
        parts = cast(Any, (self.config, self.core, self.state, self.host, self.checkpoints))
        self.backups = Backups(
            *parts,
            deliver=self.deliver,
            clock=cast(Any, self.scene),
            log_clock=cast(Any, self.scene),
            comparison=self,
            waits_for=lambda: (3,),
            random_below=lambda limit: 7 * self.id,
            steer=(self.held.append, self.handed_over.append, self.sent_state.append),
        )
        if not self.scene.archives:
            self.backups.archiving = cast(Any, Archiving(self.scene))

    @property
    def work(self) -> Work:
        return self.host.backups

    # A comparison of the members' states, as the leader sees it.
    def compare_with(self, propose: Callable[[], int | None], now: float) -> int | None:
        index = propose()
        if index is not None:
            self.compared.append(index)
        return index

    def compare_now(self, propose: Callable[[], int | None], now: float) -> int | None:
        if self.scene.comparing:
            return None
        index = self.compare_with(propose, now)
        if index is not None:
            self.scene.comparing.add(index)
        return index

    def is_comparing(self, index: int) -> bool:
        return index in self.scene.comparing

    def has_diverged(self, node_id: int, index: int) -> bool:
        return (node_id, index) in self.scene.diverged

    def deliver(self, operation: Operation, result: Any) -> None:
        waiter, operation.waiter = operation.waiter, None
        waiter.result = result

    def events(self, kind: type[HaEvent]) -> list[Any]:
        """The events of this kind."""
        return [event for event in self.host.events if isinstance(event, kind)]


@dataclass
class Scene:
    """A cluster of three voters whose leader is node 1, or has another membership."""

    config: BackupConfig | None = field(default_factory=BackupConfig)
    standby: int = 0
    leader: int | None = 1
    term: int = 1
    index: int = 10
    now: float = 100.0
    down: set[int] = field(default_factory=set)
    lags: dict[int, int] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    comparing: set[int] = field(default_factory=set)
    diverged: set[tuple[int, int]] = field(default_factory=set)
    sequence: int | None = None
    """The last command; None: each entry is one."""
    protocol: int = PROTOCOL
    enable_pitr: bool = True
    pitr: PitrConfig = field(default_factory=PitrConfig)
    digest_interval_hours: float = 24
    archives: bool = False
    """Whether members archive the log as the test says, and `archived` counts for nothing."""
    archived: int | None = None
    """The last entry that the archive has; None: nothing is archived."""

    def __post_init__(self) -> None:
        addresses = {n: f"127.0.0.1:{7100 + n}" for n in (1, 2, 3)}
        members = {
            n: Member(a, is_voter=n != self.standby, is_standby=n == self.standby)
            for n, a in addresses.items()
        }
        self.membership = Membership(members, lineage=LINEAGE)
        self.nodes: dict[int, Node] = {}
        for node_id in addresses:
            config = HaConfig(
                node_id=node_id,
                data_dir="unused",
                members=addresses,
                backup=self.config,
                enable_pitr=self.enable_pitr,
                pitr=self.pitr,
                digest_interval_hours=self.digest_interval_hours,
            )
            self.nodes[node_id] = Node(self, node_id, config)
            versions = Versions(self.protocol, 0, frozenset())
            self.nodes[node_id].state.versions = versions

    # clock and log clock
    def monotonic(self) -> float:
        return self.now

    @property
    def time_us(self) -> int:
        """Log time."""
        return T0_US + round(self.now * 1e6)

    def now_us(self) -> int:
        return self.time_us

    def stamp(self, last_us: int) -> int:
        return self.time_us

    # the network and the log
    def is_up(self, node_id: int) -> bool:
        return node_id not in self.down

    def is_reached(self, node_id: int) -> bool:
        return self.leader is not None and self.is_up(self.leader) and self.is_up(node_id)

    def send(self, message: Any) -> None:
        if self.is_up(message.to) and self.is_up(message.sender):
            self.nodes[message.to].backups.on_message(message)

    def append(self, core: Core, payload: bytes, time_us: int) -> int | None:
        if self.leader != core.id or not core.can_propose:
            return None
        self.index += 1
        self._pending.append((self.index, time_us, payload))
        return self.index

    first_index: dict[int, int] = field(default_factory=dict)
    """Where a node's log begins, if not with the first entry."""
    entries: list[LogPosition] = field(default_factory=list)
    _pending: list[tuple[int, int, bytes]] = field(default_factory=list)

    def settle(self) -> None:
        """Commit and apply what was proposed, and what that leads to."""
        while self._pending:
            index, time_us, payload = self._pending.pop(0)
            change = decode_change(*decode_admin(payload)) if payload else None
            sequence = index if self.sequence is None else self.sequence
            position = LogPosition(index, self.term, time_us, sequence, bytes(16))
            if change is not None:
                self.changes.append(change)
            self.entries.append(position)
            for node in self.nodes.values():
                node.state.applied = position
                if change is not None:
                    node.state.catalog.apply(change, position)
                    if self.is_up(node.id):
                        node.backups.on_applied(index, is_new=True)

    def lose_proposals(self) -> None:
        """What is proposed and not committed is gone, with its leader."""
        self._pending.clear()

    def elect(self, node_id: int) -> None:
        """Have another leader."""
        self.leader, self.term = node_id, self.term + 1
        for node in self.nodes.values():
            if self.is_up(node.id):
                node.backups.on_leader()

    def pass_time(self, seconds: float, step: float = 0.5) -> None:
        """Let time pass; checkpoints that are wanted are made."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(self.now + step, until)
            for node in self.nodes.values():
                if self.is_up(node.id):
                    if node.checkpoints.wanted:
                        node.checkpoints.last, node.checkpoints.wanted = node.state.applied, 0
                    node.backups.on_tick(self.now)
                    self.settle()

    # what tests ask
    @property
    def catalog(self) -> Catalog:
        return self.nodes[1].state.catalog

    @property
    def running(self) -> BackupRecord:
        record = self.catalog.running
        assert record is not None, "no backup runs"
        return record

    @property
    def taker(self) -> Node:
        return self.nodes[self.running.node]

    def states(self) -> list[tuple[str, str, int]]:
        """Mode, state and taker of each backup."""
        return [(r.mode, r.state, r.node) for r in self.catalog.records()]

    def trigger(self, node_id: int, mode: str = "", *, waits: bool = False) -> Waiter:
        """Ask a node for a backup."""
        return self.ask(node_id, BackupAction.TRIGGER, mode.encode(), waits=waits)

    def change(self, node_id: int, change: Change) -> Waiter:
        """Ask a node for a change of the catalog."""
        return self.ask(node_id, BackupAction.CHANGE, encode_change(change))

    def ask(
        self, node_id: int, what: BackupAction, payload: bytes = b"", *, waits: bool = False
    ) -> Waiter:
        """Ask a node for something."""
        waiter = Waiter()
        operation = BackupOperation(waiter, self.now + 600, what, payload, waits=waits)
        self.nodes[node_id].backups.submit(operation)
        self.settle()
        return waiter

    def complete(self, **others: Any) -> BackupRecord:
        """Have the running backup completed by its taker; return its record."""
        self.pass_time(2)
        record, work = self.running, self.taker.work
        work.taken(self, **others)
        self.settle()
        self.pass_time(1)
        completed = self.catalog.get(record.id)
        assert completed is not None
        return completed

    def upkeep(self) -> None:
        """Let the leader's round of upkeep end, if one is due."""
        for _ in range(6):
            self.pass_time(1)
            assert self.leader is not None
            work = self.nodes[self.leader].work
            if work.listed is not None:
                work.lists()
            if work.deleting is not None:
                work.deletes()
            self.settle()


def with_first(**others: Any) -> Scene:
    """A cluster with a full backup, and the upkeep after it."""
    scene = Scene(**others)
    scene.pass_time(3)
    scene.complete()
    scene.upkeep()
    return scene
