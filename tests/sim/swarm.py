"""Which faults a seed has, how strong they are, and how the cluster is set up: swarm testing.

Theory of operation. A run with all faults at once hides bugs as well as it finds them: a cluster
that is always being crashed never gets to the state in which a lost message would matter. So each
seed leaves out many faults altogether and draws the strength of the others from a wide range.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import TypeVar

from raftha.core import (
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    ReadReply,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from raftha.node.messages import Forward
from tests.sim.recovery_swarm import RecoverySwarm
from tests.sim.repository import BackupSwarm

T = TypeVar("T")
DIRECTED_CHANCE = 0.25
CHANGING_CHANCE = 0.3
NEWCOMERS = 3
WIPING_CHANCE = 0.12
SICK_CHANCE = 0.1
SHORT_LOGS_CHANCE = 0.35
ROTTING_CHANCE = 0.3
_KINDS: tuple[type, ...] = (
    Append, AppendReply, Heartbeat, HeartbeatReply, VoteRequest, VoteReply, ReadReply, TimeoutNow,
    Forward,
)  # fmt: skip
_REPLIES: tuple[type, ...] = (AppendReply, HeartbeatReply, VoteReply)


@dataclass(frozen=True, slots=True, kw_only=True)
class Swarm:
    """Everything that a seed decides beforehand. Times are in seconds; 0 for "every" means
    never."""

    size: int
    chaos_s: float
    turn_s: float

    delay_s: float
    is_fifo: bool
    loss: float
    lossy_kinds: tuple[type, ...]
    lossy_chance: float
    duplication: float
    straggler_chance: float
    straggler_kinds: tuple[type, ...]
    wire_chance: float
    silent_crash_chance: float

    disk_s: float
    segment_bytes: int
    checkpoint_s: float
    append_bytes_max: int
    in_flight_messages_max: int
    window_bytes_max: int
    write_bytes_max: int

    crash_every_s: float
    crash_all_chance: float
    power_loss_chance: float
    mid_operation_chance: float
    restart_s: float
    disk_error_every_s: float
    partition_every_s: float
    partition_s: float
    one_way_chance: float
    reset_chance: float
    flap_every_s: float
    clog_every_s: float
    clog_s: float
    pause_every_s: float
    pause_s: float
    clock_every_s: float
    transfer_every_s: float
    drift_every_s: float
    drift_max: float
    stall_every_s: float
    stall_s: float
    slow_every_s: float
    full_every_s: float
    sick_s: float
    is_only_sick: bool = False
    leader_chance: float
    strike_chance: float

    change_every_s: float = 0.0
    is_wiping: bool = False
    is_late: bool = False
    """Whether the last of the first members runs for the first time long after the founding."""
    change_timeout_s: float = 1.0
    retire_s: float = 1.0

    clients: int
    session_clients: int
    keys: int
    think_s: float
    depth: int
    timeout_s: float

    rot_every_s: float = 0.0
    rot_crash_chance: float = 0.7
    ghost_kinds: tuple[type, ...] = ()
    """Messages of these kinds arrive even if their connection has ended meanwhile."""

    retention_bytes: int = 1 << 40
    chunk_bytes: int = 1 << 20

    campaigns: bool = True
    """Whether members campaign by themselves: `auto_failover`."""
    promotion_every_s: float = 0.0
    """How often an operator wants a certain node to lead."""
    regions: tuple[str, ...] = ("primary",)
    region_shift: int = 0
    standby_chance: float = 0.0
    """The share of added nodes that stay learners until they are promoted."""
    aged_chance: float = 0.0
    """The share of reads that allow a state of a certain age."""
    do_groups_wait: bool = False
    """Whether session clients may want more than a majority to have their groups."""

    is_majority_enough: bool = False
    """Whether no writer waits for more."""
    isolate_chance: float = 0.5
    """How often a partition cuts off the victim, instead of parting all members at random."""
    is_drift_extreme: bool = False
    """Whether clocks that go wrong go as wrong as they may."""
    bereave_chance: float = 0.0
    """How often all others crash in the moment in which a member is cut off from them."""
    redial_s: tuple[float, float] = (0.02, 0.2)

    lease_ms: int = 0
    is_lease_changing: bool = False
    """Whether members start with other lease settings now and then."""
    lease_readers: int = 0
    sessions_max: int = 10_000
    """How many sessions a state holds."""
    greedy_clients: int = 0
    """Clients that open one session after the other."""
    max_clock_offset_ms: int = 86_400_000
    """Where clocks are stepped by hours, log time must follow them: sessions expire."""
    wrong_clock_every_s: float = 0.0
    """How often one member's wall clock is set wrong by years; see `wrong_clocks.py`."""
    upgrade_every_s: float = 0.0
    """How often a member changes to another build of the program; see `builds.py`."""
    rollback_every_s: float = 0.0
    """Data directories are put back to earlier copies; see `rollbacks.py`."""
    lapse_every_s: float = 0.0
    """Members forget while another one lags; see `lapses.py`."""
    loses_majority: bool = False
    """Whether a majority loses its directories, once; see `lost_majorities.py`."""
    is_majority_alive: bool = False
    """Whether an operator is mistaken about that."""
    is_poisoned: bool = False
    """Whether an entry ends every node that applies it; see `poison.py`."""
    digest_every_s: float = 0.0
    """How often members' states are compared."""
    alter_every_s: float = 0.0
    """A state is altered; see `divergences.py`."""
    backups: BackupSwarm | None = None
    """What a seed with backups has; see `backups.py`."""
    recoveries: RecoverySwarm | None = None
    """What a seed with recoveries has; see `recoveries.py`."""
    thread_pause_s: float = 0.0
    """How long a reader's thread may be paused in the middle of a lease read, on average."""

    def region(self, node_id: int) -> str:
        """Where a node is."""
        return self.regions[(node_id + self.region_shift) % len(self.regions)]

    @property
    def clock_drift_max(self) -> float:
        """How much slower than another a clock may run, at most."""
        most = self.drift_max if self.drift_every_s else 0.0
        return 1 - (1 - most) / (1 + most)

    @property
    def nodes(self) -> int:
        """How many nodes there may ever be: the first members, and those that may come later."""
        return self.size + (NEWCOMERS if self.change_every_s else 0)


def draw(rng: Random) -> Swarm:
    """Draw a swarm; half of the faults are off in most of them, and a few are directed."""
    swarm = _choose(rng)
    can_rot = swarm.size > 1 and not swarm.change_every_s and not swarm.is_only_sick
    if can_rot and rng.random() < ROTTING_CHANCE:
        return rng.choice((_rotting, _rotting_alone, _rotting_alone))(swarm, rng)
    return swarm


def _choose(rng: Random) -> Swarm:
    swarm = _draw(rng)
    if rng.random() < DIRECTED_CHANCE:
        return rng.choice((_falling_leaders, _cut_off_leaders, _failing_power))(swarm, rng)
    if rng.random() < CHANGING_CHANCE:
        return rng.choice((_changing, _changing, _changing_leaders))(swarm, rng)
    if rng.random() < WIPING_CHANCE:
        return _wiping(swarm, rng)
    if rng.random() < SICK_CHANCE:
        return _only_sick(swarm, rng)
    if rng.random() < SHORT_LOGS_CHANCE:
        return _short_logs(swarm, rng)
    return swarm


def _rotting(swarm: Swarm, rng: Random) -> Swarm:
    """Disks rot, beside all else."""
    return replace(
        swarm,
        chaos_s=rng.uniform(5, 8),
        rot_every_s=rng.choice((0.3, 1.0)),
        rot_crash_chance=rng.choice((0.2, 0.9)),
        ghost_kinds=rng.choice(((), _REPLIES)),
        # A member that heals gets many entries. Sent singly and reordered, tens of thousands would
        # be rejected and sent again.
        in_flight_messages_max=rng.choice((1, 4)),
    )


def _rotting_alone(swarm: Swarm, rng: Random) -> Swarm:
    """Disks rot and members crash, and replies of earlier lives come in late."""
    return replace(
        _rotting(without_faults(swarm), rng),
        size=swarm.size,
        is_fifo=False,
        straggler_chance=rng.choice((0.0, 0.3, 0.6)),
        straggler_kinds=_REPLIES,
        ghost_kinds=_REPLIES,
        rot_every_s=0.3,
        rot_crash_chance=0.9,
        crash_every_s=rng.choice((0.0, 0.4, 1.0)),
        mid_operation_chance=rng.choice((0.0, 0.5)),
        restart_s=rng.choice((0.03, 0.2, 0.6)),
        partition_every_s=rng.choice((0.0, 0.5)),
        partition_s=0.4,
        checkpoint_s=rng.choice((0.1, 1.0, 60.0)),
        retention_bytes=rng.choice((0, 1 << 40)),
        transfer_every_s=rng.choice((0.0, 0.4)),
        leader_chance=rng.choice((0.2, 0.8)),
        clients=4,
        think_s=0.01,
    )


def _changing(swarm: Swarm, rng: Random) -> Swarm:
    """Members come and go, beside all else."""
    return replace(
        swarm,
        chaos_s=rng.uniform(4, 7),
        change_every_s=rng.choice((0.1, 0.3, 0.8)),
        change_timeout_s=rng.choice((0.5, 1.0, 3.0)),
        retire_s=rng.choice((0.2, 1.0, 5.0)),
    )


def _wiping(swarm: Swarm, rng: Random) -> Swarm:
    """Members lose their directories, one at a time, come back under their old ids, and are
    replaced by others."""
    return replace(
        without_faults(swarm) if rng.random() < 0.5 else swarm,
        size=rng.choice((3, 3, 5)),
        chaos_s=rng.uniform(4, 7),
        change_every_s=rng.choice((0.3, 0.8)),
        change_timeout_s=rng.choice((0.5, 1.0, 3.0)),
        retire_s=rng.choice((1.0, 5.0)),
        is_wiping=True,
        is_late=rng.random() < 0.5,
        crash_every_s=rng.choice((0.0, 0.7)),
        partition_every_s=rng.choice((0.0, 0.5)),
        leader_chance=rng.choice((0.2, 0.7)),
        restart_s=rng.choice((0.05, 0.3)),
    )


def _only_sick(swarm: Swarm, rng: Random) -> Swarm:
    """One disk at a time is full or hangs, and nothing else goes wrong."""
    return replace(
        without_faults(swarm),
        size=rng.choice((3, 3, 5)),
        chaos_s=rng.choice((6.0, 11.0)),
        is_only_sick=True,
        segment_bytes=16 * 1024,
        checkpoint_s=rng.choice((0.3, 60.0)),
        leader_chance=0.7,
        append_bytes_max=4096,
        in_flight_messages_max=256,
        window_bytes_max=32 << 20,
        write_bytes_max=8 << 20,
        clients=6,
        think_s=0.005,
        timeout_s=0.8,
    )


def _changing_leaders(swarm: Swarm, rng: Random) -> Swarm:
    """Members come and go, and leaders are cut off before what they append has spread."""
    return replace(
        _changing(without_faults(swarm), rng),
        change_every_s=0.1,
        partition_every_s=rng.choice((0.2, 0.5)),
        partition_s=rng.choice((0.2, 0.5)),
        crash_every_s=rng.choice((0.0, 0.5)),
        reset_chance=rng.choice((0.0, 0.5)),
        transfer_every_s=rng.choice((0.0, 0.3)),
        leader_chance=0.7,
        strike_chance=rng.choice((0.0, 0.4)),
        think_s=0.05,
        session_clients=1,
    )


def _falling_leaders(swarm: Swarm, rng: Random) -> Swarm:
    """Leaders fall as soon as they are elected, and what they send spreads an entry at a time.

    This is what Raft's rule on entries of older terms is about (paper, figure 8).
    """
    return replace(
        without_faults(swarm),
        chaos_s=8.0,
        is_fifo=True,
        lossy_kinds=(Append,),
        lossy_chance=0.5,
        append_bytes_max=1,
        in_flight_messages_max=1,
        window_bytes_max=rng.choice((1, 32 << 20)),
        crash_every_s=0.2,
        partition_s=0.15,
        reset_chance=1.0,
        leader_chance=0.95,
        strike_chance=0.9,
        clients=2,
        session_clients=0,
        think_s=0.1,
    )


def _cut_off_leaders(swarm: Swarm, rng: Random) -> Swarm:
    """Leaders are cut off from the others, but not from clients, and old replies still come in."""
    return replace(
        without_faults(swarm),
        is_fifo=False,
        straggler_chance=0.5,
        straggler_kinds=(HeartbeatReply,),
        partition_every_s=0.8,
        partition_s=0.8,
        leader_chance=0.95,
        clients=6,
        keys=1,
        think_s=0.01,
        timeout_s=0.8,
    )


def _failing_power(swarm: Swarm, rng: Random) -> Swarm:
    """Members stop in the middle of disk operations, again and again, and are back at once."""
    return replace(
        without_faults(swarm),
        crash_every_s=0.1,
        mid_operation_chance=1.0,
        power_loss_chance=0.5,
        disk_error_every_s=rng.choice((0.0, 0.3)),
        segment_bytes=16 * 1024,
        checkpoint_s=rng.choice((0.1, 0.1, 60.0)),
        restart_s=0.02,
        clients=6,
        think_s=0.01,
    )


def _short_logs(swarm: Swarm, rng: Random) -> Swarm:
    """Some members cut their logs at every checkpoint, even if others still need them.

    Snapshots replace them. The logs of the other members may help before a snapshot is installed.
    """
    return replace(
        without_faults(swarm) if rng.random() < 0.8 else swarm,
        size=3,
        chaos_s=6.0,
        retention_bytes=0,
        chunk_bytes=rng.choice((64, 300, 1 << 20)),
        segment_bytes=16 * 1024,
        checkpoint_s=0.1,
        window_bytes_max=1,
        append_bytes_max=rng.choice((400, 4 << 20)),
        in_flight_messages_max=rng.choice((4, 256)),
        write_bytes_max=8 << 20,
        crash_every_s=rng.choice((0.7, 1.5)),
        mid_operation_chance=rng.choice((0.0, 0.5)),
        restart_s=rng.choice((0.3, 0.8)),
        leader_chance=0.2,
        transfer_every_s=0.3,
        clients=6,
        think_s=0.005,
        timeout_s=0.8,
    )


def without_faults(swarm: Swarm) -> Swarm:
    """Three members on a quick network and quick disks; what crashes is back soon."""
    return replace(
        swarm,
        size=3,
        turn_s=0.0002,
        delay_s=0.004,
        loss=0.0,
        lossy_kinds=(),
        duplication=0.0,
        straggler_chance=0.0,
        silent_crash_chance=0.0,
        disk_s=0.001,
        checkpoint_s=60.0,
        crash_every_s=0.0,
        crash_all_chance=0.0,
        mid_operation_chance=0.0,
        restart_s=0.15,
        disk_error_every_s=0.0,
        partition_every_s=0.0,
        one_way_chance=0.0,
        reset_chance=0.0,
        flap_every_s=0.0,
        clog_every_s=0.0,
        pause_every_s=0.0,
        clock_every_s=0.0,
        transfer_every_s=0.0,
        drift_every_s=0.0,
        stall_every_s=0.0,
        slow_every_s=0.0,
        full_every_s=0.0,
        strike_chance=0.0,
    )


def undisturbed(swarm: Swarm) -> Swarm:
    """Without faults, and with nothing that operators do."""
    return replace(
        without_faults(swarm),
        change_every_s=0.0,
        standby_chance=0.0,
        campaigns=True,
        promotion_every_s=0.0,
        regions=("primary",),
        rot_every_s=0.0,
        ghost_kinds=(),
        wrong_clock_every_s=0.0,
    )


def _draw(rng: Random) -> Swarm:
    size = rng.choice((1, 3, 3, 3, 3, 3, 5, 5))
    lossy = rng.sample(_KINDS, rng.choice((0, 0, 1, 1, 2)))
    return Swarm(
        size=size,
        chaos_s=rng.uniform(3, 6),
        turn_s=rng.choice((0.0, 0.0002, 0.002)),
        delay_s=rng.choice((0.0003, 0.001, 0.004, 0.02)),
        is_fifo=rng.random() < 0.5,
        loss=rng.choice((0.0, 0.0, 0.01, 0.1, 0.25)),
        lossy_kinds=tuple(lossy),
        lossy_chance=rng.choice((0.3, 0.6, 0.9)),
        duplication=rng.choice((0.0, 0.0, 0.02, 0.3)),
        straggler_chance=rng.choice((0.0, 0.0, 0.01, 0.05)),
        straggler_kinds=_KINDS,
        wire_chance=rng.choice((0.0, 0.05, 0.3)),
        silent_crash_chance=rng.choice((0.0, 0.5, 1.0)),
        disk_s=rng.choice((0.0002, 0.001, 0.005, 0.03)),
        segment_bytes=rng.choice((16, 32, 64)) * 1024,
        checkpoint_s=rng.choice((0.1, 0.3, 1.0, 60.0)),
        append_bytes_max=rng.choice((1, 1, 400, 4096, 4 << 20)),
        in_flight_messages_max=rng.choice((1, 4, 256)),
        window_bytes_max=rng.choice((1, 1, 1000, 10_000, 32 << 20)),
        write_bytes_max=rng.choice((1, 2000, 8 << 20)),
        crash_every_s=_maybe(rng, (0.3, 0.7, 2.0)),
        crash_all_chance=rng.choice((0.0, 0.05, 0.3)),
        power_loss_chance=rng.choice((0.0, 0.5, 1.0)),
        mid_operation_chance=rng.choice((0.0, 0.5, 1.0)),
        restart_s=rng.choice((0.05, 0.2, 0.8)),
        disk_error_every_s=_maybe(rng, (0.5, 2.0), 0.25),
        partition_every_s=_maybe(rng, (0.4, 1.0)),
        partition_s=rng.choice((0.1, 0.4, 1.2)),
        one_way_chance=rng.choice((0.0, 0.3)),
        reset_chance=rng.choice((0.0, 0.5, 1.0)),
        flap_every_s=_maybe(rng, (0.1, 0.5)),
        clog_every_s=_maybe(rng, (0.3, 1.0), 0.3),
        clog_s=rng.choice((0.1, 0.5, 2.0)),
        pause_every_s=_maybe(rng, (0.5, 2.0)),
        pause_s=rng.choice((0.05, 0.4, 1.0)),
        clock_every_s=_maybe(rng, (0.5, 2.0)),
        transfer_every_s=_maybe(rng, (0.3, 1.5)),
        drift_every_s=_maybe(rng, (0.3, 1.0)),
        drift_max=rng.choice((0.01, 0.1, 0.5)),
        stall_every_s=_maybe(rng, (0.5, 2.0)),
        stall_s=rng.choice((0.05, 0.3, 0.8, 2.0)),
        slow_every_s=_maybe(rng, (0.5, 2.0), 0.25),
        full_every_s=_maybe(rng, (0.5, 2.0), 0.25),
        sick_s=rng.choice((0.2, 0.8, 2.0)),
        leader_chance=rng.choice((0.2, 0.7, 0.95)),
        strike_chance=rng.choice((0.0, 0.0, 0.3, 0.8)),
        clients=rng.randint(2, 6),
        session_clients=rng.randint(0, 3),
        keys=rng.randint(1, 4),
        think_s=rng.choice((0.005, 0.02, 0.1)),
        depth=rng.choice((1, 1, 3)),
        timeout_s=rng.choice((0.2, 0.8, 3.0)),
    )


def _maybe(rng: Random, choices: tuple[T, ...], chance: float = 0.5) -> T | float:
    return rng.choice(choices) if rng.random() < chance else 0.0
