"""One simulated member: a real `Node` with its core, log and state, and a `Host` made of events.

Theory of operation. What the runtime does with threads is done with events, here and in
`storage_work.py`. A write, a checkpoint or a read of the log is handed over, happens a while later
on the simulated disk, in one go, and is reported to the node a while after that. So a crash may
come before it, after it, or, by a countdown of disk operations (`DiskFaults.arm`), in the middle:
then `SimulatedCrash` flies out of the log from whatever it was doing, and what it hadn't synced yet
is lost or torn.

A crash throws the node away; only disk and store stay. A *power loss* takes the page cache along,
a killed process leaves it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from random import Random
from typing import Any

from raftha.core import (
    Append,
    Heartbeat,
    LogRead,
    Raft,
    RaftLog,
    SnapshotOffer,
    TimeoutNow,
    Write,
)
from raftha.entry import HardState, LogPosition
from raftha.errors import Corrupt, Disconnected, StorageFailed, StorageFull, UpgradeRequired
from raftha.events import HaEvent, LeaderLost, Removed, ReplicaBehindLog, RoleChanged
from raftha.membership import Membership
from raftha.net import introductions as introduction
from raftha.net.wire import Hello
from raftha.node import founding
from raftha.node.backup_work import BackupWork, NoBackupWork
from raftha.node.bootstrap import configured_members, decode_membership
from raftha.node.checkpoints import LogCut
from raftha.node.founding import Founding, Stance, first_membership
from raftha.node.messages import PeerMessage, TransferRequest
from raftha.node.node import Node
from raftha.node.operations import Operation
from raftha.node.recovery_work import NoRecoveryWork, RecoveryWork
from raftha.node.statistics import Statistics
from raftha.runtime import introductions
from raftha.storage.backup.spool import Spool
from raftha.storage.directory import skips
from raftha.storage.directory.healing import LOG, open_or_heal
from raftha.storage.log.wal import Wal
from raftha.storage.state.machine import StateMachine
from raftha.storage.state.state import Frozen
from raftha.version import PROTOCOL_OLDEST, PROTOCOL_VERSION
from tests.sim.backups import SimulatedBackups, backup_config, hasten
from tests.sim.clock import MemberClock
from tests.sim.contact import LeaderContact
from tests.sim.disk import SimulatedDisk
from tests.sim.disk_faults import DiskFaults, SimulatedCrash
from tests.sim.network import Network
from tests.sim.node_files import SimulatedNodeFiles
from tests.sim.recoveries import RestoringDisk
from tests.sim.settings import LINEAGE, TICK_S, WAL, core_config, node_config
from tests.sim.snapshots import SimulatedSnapshots
from tests.sim.storage_work import StorageWork
from tests.sim.store import DictStore
from tests.sim.swarm import Swarm
from tests.sim.watch import NoWatch, Waiter, Watch
from tests.sim.world import Violation, World

SPOOL = "spool"
_INVITATIONS = (TimeoutNow, TransferRequest)


class Member:
    """A member, up or down. `life` counts its starts and crashes."""

    def __init__(
        self, world: World, swarm: Swarm, node_id: int, machine: StateMachine, watch: Watch
    ) -> None:
        self.id = node_id
        self._world = world
        self._swarm = swarm
        self.machine = machine
        self.skips: dict[int, bytes] = {}
        """The hashes of entries that an operator has it skip, by index."""
        self.life = 0
        self.is_wanted = node_id <= swarm.size - swarm.is_late
        """True if it should be up: not before it joins, and not after it was removed."""
        self.paused_until = 0.0
        self.took: tuple[float, list[Operation]] = (-1.0, [])
        self.invited_at = -1.0  # When it was handed operations last, or asked to campaign.
        self.contact = LeaderContact(world)
        self.is_rotten = False
        """Whether something on its disk is damaged, and it hasn't found out yet."""
        self.is_outcast = False
        """Whether an operator has made it a cluster of its own, beside the others."""
        self.is_put_back = False
        """Whether its directory is an earlier copy, which lacks what it acknowledged."""
        self.node: Node | None = None
        self.network: Network | None = None
        self.clock = MemberClock(world, world.stream(f"clock {node_id}"))
        self.rng: Random = world.stream(f"member {node_id}")
        self.faults = DiskFaults(world, swarm, self.rng)
        self.founders = range(1, swarm.size + 1 - swarm.is_late)
        """The members that were there when the cluster was founded."""
        self.make_backups: Callable[[Member], SimulatedBackups] | None = None
        """Set in a seed with backups."""
        self.make_recovery: Callable[[Member], RecoveryWork] = lambda of: NoRecoveryWork()
        self.backups: BackupWork = NoBackupWork()
        self._make_directory(1)
        self.statistics = Statistics()
        self.wal: Wal | None = None
        self._lease_rng = world.stream(f"lease {node_id}")
        self._promised_ms = 0
        """What a real node has in its identity: the longest promise that it may have given."""
        self.config = node_config(node_id, swarm, backup_config(swarm))
        hasten(self.config.backup, swarm)
        self.founding: Founding | None = None
        """Set while it is up and has no cluster."""
        self._hellos: dict[int, Hello] = {}
        self.first = first_membership(
            configured_members(self.config), dict.fromkeys(self.founders, 1), "c", LINEAGE
        )
        """The membership that the cluster began with; all have their first data directories."""
        self.watch = watch
        self._is_calm = self._is_turn_due = False
        self._work = StorageWork(self, world, swarm)
        self._delivered: list[tuple[Waiter, Any]] = []
        self._waiting: dict[int, Waiter] = {}

    @property
    def is_up(self) -> bool:
        return self.node is not None

    def deadline(self, in_s: float) -> float:
        """A time by this member's clock."""
        return self.clock.monotonic() + in_s

    def _make_directory(self, incarnation: int) -> None:
        """Begin with an empty data directory, for the first time or after `wipe`."""
        self.incarnation = incarnation
        self.has_cluster = incarnation == 1 and self.id in self.founders
        self.disk = SimulatedDisk(self._world.stream(f"disk {self.id} {incarnation}"))
        self.faults.disk = self.disk
        self.store = DictStore()
        self.snapshots = SimulatedSnapshots(self, self._swarm.chunk_bytes)
        self.node_files = SimulatedNodeFiles(self, WAL)
        self.restoring = RestoringDisk()
        self.spool: Spool | None = None

    # ---------------------------------------------------------------- life

    def start(self) -> None:
        """Start what is down, from what is on its disk."""
        if self.node is not None or not self.is_wanted:
            return
        self.life += 1
        self._is_turn_due = False
        self._work.begin()
        try:
            self.node = self._open()
            self._wait_for_cluster()
        except SimulatedCrash:
            self._world.note(self.id, "start crashed")
            self._lose(is_power_loss=self._has_power_loss())
            return
        except StorageFull:
            self._world.note(self.id, "start found no space")
            self._lose(is_power_loss=False)
            return
        except UpgradeRequired as error:
            self.watch.on_unsupported(self, str(error))
            self._lose(is_power_loss=False)
            return
        self.is_rotten = False
        self._world.note(self.id, "start", f"log ends at {self.node.core.log.last_index}")
        self.watch.on_start(self)
        self.later(self.rng.uniform(0, TICK_S), self._tick)
        self._work.preallocate()
        self.wake()

    def open_wal(self) -> Wal:
        """Open the log on the simulated disk."""
        return Wal.open(
            self.disk,
            WAL,
            segment_bytes=self._swarm.segment_bytes,
            salt=lambda: self.rng.randrange(1, 1 << 64),
        )

    def _open(self) -> Node:
        rng, lease_ms = self.rng, self._choose_lease()
        self.wal, state, entries = wal, _, _ = open_or_heal(self.node_files)
        if self._swarm.upgrade_every_s and self.machine.version == 1:
            state.abilities = state.abilities._replace(protocol=PROTOCOL_OLDEST)
        state.check_supported(e for e in entries if e.index <= wal.hard_state.commit)
        promised_ms = self._promised_ms
        config = core_config(self.id, self._swarm, lease_ms=lease_ms, promised_ms=promised_ms)
        membership = Membership.decode(state.membership) if state.membership else self.first
        if not self.has_cluster:
            membership = decode_membership(None, self.config)
        log = RaftLog(wal.first_index, state.applied, entries, config.window_bytes_max, membership)
        self._open_backups(state.applied)
        generation, clock_ns = self.node_files.healing_generation, self.clock.boottime_ns
        core = Raft(
            config, wal.hard_state, log, rng.randrange, generation, clock_ns, self.clock.time_us
        )
        return Node(self.config, core, state, self, self.clock, rng.randrange)

    def _open_backups(self, position: LogPosition) -> None:
        """As `NodeStorage` does."""
        backup = self.config.backup
        if backup is not None and self.make_backups is not None:
            spool_bytes = backup.spool_bytes
            self.spool = Spool(self.disk, SPOOL, spool_bytes, position) if spool_bytes else None
            self.backups = self.make_backups(self)
        self.recovery = self.make_recovery(self)

    def _wait_for_cluster(self) -> None:
        """Without a cluster it would found one if it could: its settings were left as they were."""
        self._hellos = {}
        self.founding = None
        if not self.has_cluster:
            members, stance = configured_members(self.config), Stance.BOOTSTRAPS
            if self.id not in members:
                stance = Stance.WAITS
            now = self._world.now
            self.founding = Founding(self.id, self.incarnation, members, stance, now)

    def _choose_lease(self) -> int:
        """Choose this life's setting; the promise that it allows is recorded."""
        lease_ms = self._swarm.lease_ms
        if self._swarm.is_lease_changing:
            lease_ms = self._lease_rng.choice((0, 50, lease_ms, lease_ms))
        self._promised_ms = max(self._promised_ms, lease_ms)
        return lease_ms

    def run_build(self, machine: StateMachine) -> None:
        """From its next start on it runs another build of the program."""
        assert self.node is None
        self.machine = machine

    def install(self) -> None:
        """Have a newcomer started, with nothing on its disk."""
        self.is_wanted = True
        self.start()

    def retire(self) -> None:
        """Shut it down for good."""
        self.is_wanted = False
        self.crash(is_power_loss=False, is_silent=False)

    def wipe(self) -> None:
        """Lose the data directory. A start makes another one, without any trace of the past."""
        assert self.node is None
        self._make_directory(self.incarnation + 1)
        self.watch.on_wipe(self)

    def cast_out(self) -> None:
        """From now on it has a history of its own, which nothing here is held against."""
        assert self.node is None
        self.is_outcast = True
        self.watch = NoWatch(self.watch)

    def crash(self, *, is_power_loss: bool, is_silent: bool) -> None:
        """Stop without any warning."""
        if self.node is None:
            return
        how = "power loss" if is_power_loss else "killed"
        self._world.note(self.id, "crash", how)
        self._world.counts[how] += 1
        assert self.network is not None
        self.network.leave(self.id, is_silent=is_silent)
        waiting, self._waiting = self._waiting, {}
        self._lose(is_power_loss=is_power_loss)
        error = Disconnected("the process died")
        for waiter in waiting.values():
            waiter.done(error)

    def _lose(self, *, is_power_loss: bool) -> None:
        self.life += 1
        self.paused_until = 0.0
        self.node = None
        self.wal = None
        self.faults.end()
        self._delivered = []
        if isinstance(self.backups, SimulatedBackups):
            self.backups.end()
        self.store = self.store.crash()
        self.snapshots.crash()
        if is_power_loss:
            self.disk.crash()
        self.watch.on_crash(self)

    def _has_power_loss(self) -> bool:
        return self.rng.random() < self._swarm.power_loss_chance

    def fill_disk(self, left_bytes: int) -> None:
        """From now on there is no space, but for so much of log."""
        self.disk.capacity_bytes = self.disk.used_bytes + left_bytes
        self.store.is_full = True

    def free_disk(self) -> None:
        """There is space again."""
        self.disk.capacity_bytes = None
        self.store.is_full = False

    def calm(self) -> None:
        """The disk works, and as fast as it can; the member is awake, and its clock goes right."""
        self._is_calm = True
        self.paused_until = 0.0
        self.faults.hasten()
        self.faults.end()
        self.free_disk()
        self.clock.run_at(1.0)

    def later(self, delay: float, function: Callable[..., None], *args: Any) -> None:
        """Call `function` in `delay` seconds, unless this life has ended by then."""
        self._world.at(delay, function, *args, actor=self)

    def run(self, work: Callable[..., None], *args: Any) -> None:
        """Do something on the disk, which may be this machine's end, or this node's."""
        try:
            work(*args)
        except SimulatedCrash:
            self._world.counts["crash in a disk operation"] += 1
            self.crash(is_power_loss=self._has_power_loss(), is_silent=self.rng.random() < 0.5)
        except (StorageFailed, Corrupt) as error:
            self._world.note(self.id, "storage failed", str(error))
            assert self.node is not None
            self.node.fail(str(error), StorageFailed(str(error)), Disconnected(str(error)))
            self.crash(is_power_loss=self._has_power_loss(), is_silent=False)

    # ---------------------------------------------------------------- callers

    def submit(self, operations: list[Operation]) -> None:
        """Hand operations over; their waiters get a result, or learn of this member's end."""
        assert self.node is not None
        if self.is_outcast:
            error = Disconnected("the process can't be reached")
            for operation in operations:
                self._world.at(0.0, operation.waiter.done, error)
            return
        for operation in operations:
            self._waiting[id(operation.waiter)] = operation.waiter
        self.later(0.0, self._take, operations)

    def _take(self, operations: list[Operation]) -> None:
        assert self.node is not None
        self.took = self._world.now, operations
        self.node.submit(operations)

    # ---------------------------------------------------------------- Host

    def send(self, message: PeerMessage) -> None:
        assert self.network is not None
        self.watch.on_send(self, message)
        self.network.send(message)

    def is_connected(self, peer: int) -> bool:
        assert self.network is not None
        return self.network.is_connected(self.id, peer)

    def hang_up(self, peer: int) -> None:
        assert self.network is not None
        self.network.reset(self.id, peer)

    def write(self, write: Write) -> None:
        self.watch.on_writing(self, write)
        self._work.write(write)

    def seal_log(self, commit: int) -> None:
        self._work.seal(commit)

    def read_log(self, request: LogRead) -> None:
        self._work.read_log(request)

    def checkpoint(self, frozen: Frozen, cut: LogCut, *, with_digest: bool) -> None:
        self._work.checkpoint(frozen, cut, with_digest=with_digest)

    def set_members(self, membership: Membership) -> None:
        assert self.network is not None
        self.network.dismiss(self.id, membership.removed)

    # ---------------------------------------------------------------- healing

    def on_damage(self, parts: Collection[str], found: Corrupt) -> None:
        """The start has found damage, and begins to replace these parts.

        Healing must not hide mistakes: what no fault has damaged has to be whole.
        """
        was_put_back, self.is_put_back = self.is_put_back, False
        if not (self.is_rotten or was_put_back or self.node_files.is_healing):
            raise Violation(f"node {self.id} finds damage where there was no rot: {found}")
        self._world.note(self.id, "damage found", f"lost {' '.join(parts)}: {found}")
        self._world.counts[f"lost {' and '.join(sorted(parts))}"] += 1

    def on_loss(self, position: LogPosition) -> None:
        self.watch.on_loss(self, position)

    def end_healing(self, generation: int) -> None:
        self.later(self.faults.pick_time(), self.run, self._end_healing, generation)

    def _end_healing(self, generation: int) -> None:
        assert self.node is not None
        self.may_crash()
        self.node_files.end_healing(generation)
        self._world.counts["wiped and healed"] += self.incarnation > 1 and generation == 2
        self._world.note(self.id, "healed", f"generation {generation}")
        self.later(self.rng.uniform(0, 0.001), self.node.on_healed, generation)

    def heal_log(self, lost_index: int) -> None:
        self.later(0.0, self.run, self._heal_log, lost_index)

    def _heal_log(self, lost_index: int) -> None:
        found = Corrupt(WAL, 0, f"entries up to {lost_index} are missing")
        self.node_files.record_loss((LOG,), found)
        self.crash(is_power_loss=False, is_silent=False)

    def heal_state(self, detail: str) -> None:
        self.store.is_damaged, self.is_rotten = True, self.store.is_altered
        self.later(0.0, partial(self.crash, is_power_loss=False, is_silent=False))

    # ---------------------------------------------------------------- snapshots

    def on_disk(self, work: Callable[[], Any], done: Callable[[Any], None], pause: float) -> None:
        """Do `work` when the disk gets to it, and `done` with its result `pause` later."""

        def run() -> None:
            self.later(pause, done, work())

        self.later(self.faults.pick_time(), self.run, run)

    def pick_pause(self, pauses: tuple[float, ...]) -> float:
        """How long something takes that may take long."""
        return pauses[0] if self._is_calm else self.rng.choice(pauses)

    def end_for_snapshot(self) -> None:
        """Stop; the next start installs the snapshot."""
        self._world.note(self.id, "snapshot ready")
        self.crash(is_power_loss=False, is_silent=False)

    def on_reset(self, wal: Wal, position: LogPosition) -> None:
        self._world.note(self.id, "snapshot installed", f"at {position.index}")
        self.watch.on_reset(self, wal, position)

    def may_crash(self) -> None:
        """Between two steps of a start that may be cut off."""
        if self.faults.is_armed and self.rng.random() < 0.5:
            raise SimulatedCrash

    def deliver(self, waiter: Any, result: Any) -> None:
        self._delivered.append((waiter, result))

    def deliver_each(self, waiters: Sequence[Any], results: Sequence[Any]) -> None:
        self._delivered += zip(waiters, results, strict=True)

    def flush(self) -> None:
        delivered, self._delivered = self._delivered, []
        for waiter, result in delivered:
            if self._waiting.pop(id(waiter), None) is not None:
                waiter.done(result)

    def emit(self, event: HaEvent) -> None:
        self.watch.on_event(self, event)
        if isinstance(event, RoleChanged):
            self._world.note(self.id, event.role, f"term {event.term}")
            self.watch.on_role(self, event.role)
        elif isinstance(event, Removed):
            self._world.note(self.id, "knows it was removed")
        elif isinstance(event, LeaderLost):
            self._world.note(self.id, "leader lost", f"{event.leader}: {event.reason}")
        elif isinstance(event, ReplicaBehindLog):
            self._world.note(self.id, "behind log", f"{event.node_id} needs {event.needs_index}")

    def wake(self) -> None:
        if not self._is_turn_due:
            self._is_turn_due = True
            self.later(self._swarm.turn_s, self._turn)

    def _turn(self) -> None:
        self._is_turn_due = False
        assert self.node is not None
        try:
            self.node.turn()
        except UpgradeRequired as error:
            self.crash(is_power_loss=False, is_silent=False)
            self.watch.on_unsupported(self, str(error))
            return
        except MemoryError:
            if not self._swarm.is_poisoned:
                raise
            self.crash(is_power_loss=False, is_silent=False)
            self.watch.on_failed_command(self)
            return
        self.watch.on_turn(self)

    def _tick(self) -> None:
        assert self.node is not None
        self.node.on_tick()
        if self.founding is not None and self.founding.decide(self._world.now) is not None:
            raise Violation(f"node {self.id} founds another cluster beside the data")
        self.contact.on_tick(self.node.core)
        self.later(TICK_S / self.clock.rate, self._tick)

    # ---------------------------------------------------------------- Station

    def admits(self, hello: Hello) -> bool:
        """Whether it accepts a connection."""
        assert self.node is not None
        if introduction.difference(self.hello(hello.sender), hello):
            return False
        if self.founding is not None:
            return True
        if introductions.unsupported(self.node.state, hello):
            self.watch.on_refused(self, hello.sender)
            return False
        return not introductions.refusal(self.node.core, hello)

    def hello(self, to: int) -> Hello:
        """What it says of itself."""
        assert self.node is not None
        stance = Stance.HEALS if self.node_files.is_healing else Stance.MEMBER
        return Hello(
            PROTOCOL_VERSION,
            self.first.cluster_id if self.has_cluster else "",
            self.id,
            to,
            self.incarnation,
            "",
            skips=skips.fingerprint(self.node.state.skips),
            lineage=self.membership.lineage if self.has_cluster else "",
            recorded=self.membership.recorded(to) if self.has_cluster else 0,
            stance=self.founding.stance if self.founding is not None else stance,
        )

    def _join(self, hello: Hello) -> None:
        """A cluster knows this member, or another directory of it: begin again there."""
        self.has_cluster = True
        if founding.is_another(self.incarnation, hello.recorded):
            self.node_files.healing_generation = 1
        self._world.note(self.id, "joins", f"healing {self.node_files.healing_generation}")
        self._world.counts["joined"] += 1
        self.crash(is_power_loss=False, is_silent=False)

    def _hear(self, message: PeerMessage) -> None:
        hello = self._hellos.get(message.sender)
        is_leader = isinstance(message, Append | Heartbeat | SnapshotOffer)
        if is_leader and hello is not None and hello.cluster_id and not self.has_cluster:
            self.later(0.0, self._join, hello)

    def on_message(self, message: PeerMessage) -> None:
        assert self.node is not None
        if self.founding is not None:
            self._hear(message)
            return
        core, term = self.node.core, self.node.core.term
        if type(message) in _INVITATIONS:
            self.invited_at = self._world.now
        self.node.on_message(message)
        self.contact.on_message(core, term, message)

    def on_connected(self, peer: int, hello: Hello) -> None:
        assert self.node is not None
        if self.founding is not None:
            self._hellos[peer] = hello
            stance = Stance(hello.stance)
            self.founding.heard(peer, hello.cluster_id, hello.incarnation, stance)
            return
        self.node.on_connected(peer, "", hello.incarnation)
        if introductions.must_heal(self.node.core, self.incarnation, hello):
            self.heal_log(self.node.core.log.last_index)

    def on_disconnected(self, peer: int) -> None:
        assert self.node is not None
        if self.founding is not None:
            self._hellos.pop(peer, None)
            self.founding.gone(peer)
            return
        self.node.on_disconnected(peer, "network_error")

    def on_removed(self) -> None:
        assert self.node is not None
        self._world.note(self.id, "was removed")
        self.watch.on_told_removed(self)
        self.node.on_removed()

    @property
    def membership(self) -> Membership:
        """The membership that this node has applied: the members that it dials or refuses."""
        assert self.node is not None
        return self.node.membership

    @property
    def hard_state(self) -> HardState:
        """What the log says; only while up."""
        assert self.wal is not None
        return self.wal.hard_state
