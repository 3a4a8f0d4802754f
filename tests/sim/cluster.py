"""One simulation: a cluster, its clients and its faults, from a seed to a verdict.

Theory of operation. First *chaos*: clients write and read, faults strike, and after every event the
invariants hold or the run ends with a `Violation`. Then everything heals, and the cluster must show
that it has lost nothing and is stuck nowhere: in time (`_limit_s`) a new write through each member
is acknowledged, one change of membership is made, every call has an answer, and all members that
the last committed membership names have applied the same log. In the end the members' digests must
be equal, their contents must match the oracle's reading of the log, and each client's call must
have taken effect as often as the client learned.
"""

from __future__ import annotations

import gc
import traceback
from dataclasses import dataclass
from typing import Any

from raftha.core import Write
from raftha.entry import Entry, LogPosition
from raftha.events import ClockWrong, FailoverCompleted, HaEvent
from raftha.node.messages import PeerMessage
from raftha.node.operations import CallOperation, DigestOperation
from raftha.node.watch import divergence, placement
from raftha.storage.log.wal import Wal
from raftha.storage.state import sessions
from raftha.storage.state.commands import pack_call
from raftha.types import Digest, Receipt
from tests.sim import archive, backups, recoveries
from tests.sim.availability import widen, with_crowds
from tests.sim.backups import Backups, with_backups
from tests.sim.builds import NEW, Builds, with_builds
from tests.sim.calm import Calm
from tests.sim.clients import Command, GreedyClient, History, SessionClient, Writer
from tests.sim.divergences import Divergences, with_divergences
from tests.sim.faults import Faults
from tests.sim.invariants import Invariants
from tests.sim.lapses import Lapses, with_lapses
from tests.sim.lease_readers import LeasedReader
from tests.sim.lost_majorities import LostMajorities, with_lost_majorities
from tests.sim.member import Member
from tests.sim.network import Network
from tests.sim.operators import Operator
from tests.sim.oracle import Counters
from tests.sim.planting import Patch, patched
from tests.sim.poison import Poison, with_poison
from tests.sim.promotions import LEADERLESS_MAX_S, Promotions
from tests.sim.receipts import Receipts
from tests.sim.recoveries import Recoveries, with_recoveries
from tests.sim.rollbacks import Rollbacks, with_rollbacks
from tests.sim.sickness import Sickness
from tests.sim.swarm import Swarm, draw
from tests.sim.swarm_leases import with_forgetful_voters, with_leases
from tests.sim.world import Violation, World
from tests.sim.wrong_clocks import WrongClocks, with_wrong_clocks

LIVENESS_S = 12.0
HASTE: list[Patch] = [
    (placement, "RETURN_AFTER_S", 0.6),
    (placement, "RETURN_AFTER_MAX_S", 2.4),
    (divergence, "RETRY_S", 0.3),
    (divergence, "ROUND_S", 1.0),
]
"""Intervals of seconds to minutes are shorter here; all other rules are unchanged."""
POLL_S = 0.05
PROBE_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of a seed; `violation` is "" if all went well."""

    seed: int
    violation: str
    story: str
    digest: int
    events: int
    seconds: float
    acknowledged: int
    counts: dict[str, int]


class Simulation:
    """A cluster in a world of its own. `Watch` for its members."""

    def __init__(self, seed: int, swarm: Swarm | None = None) -> None:
        self.world = World(seed)
        self.swarm = swarm or _draw(self.world)
        self.members = {
            node_id: Member(self.world, self.swarm, node_id, Counters(), self)
            for node_id in range(1, self.swarm.nodes + 1)
        }
        self.builds = Builds(self.world, self.swarm, self.members)
        self.network = Network(self.world, self.swarm, self.members)
        first = self.members[1].first
        self.clocks = WrongClocks(self.world, self.swarm, self.members)
        self.invariants = Invariants(
            self.members, first, self.swarm.sessions_max, self._on_committed
        )
        self.invariants.on_versions = self.builds.check_raised
        receipts = Receipts(self.world, self.swarm, self.members)
        self.history = History(self.world, self.invariants, receipts)
        self.clients = [
            *(self._client(Writer, i) for i in range(self.swarm.clients)),
            *(self._client(SessionClient, i) for i in range(self.swarm.session_clients)),
            *(self._client(GreedyClient, i) for i in range(self.swarm.greedy_clients)),
            *(self._client(LeasedReader, i) for i in range(self.swarm.lease_readers)),
        ]
        self.promotions = Promotions(
            self.world,
            self.swarm,
            self.members,
            self.invariants.leaders,
            lambda: self.invariants.memberships.latest,
        )
        self.faults = Faults(
            self.world, self.swarm, self.members, self.network, self.promotions.ask
        )
        self.sickness = Sickness(
            self.world, self.swarm, self.faults.pick, self.history.acknowledged
        )
        self.rollbacks = Rollbacks(self.world, self.swarm, self.members, self.invariants)
        self.divergences = Divergences(self.world, self.swarm, self.members)
        self.backups = Backups(self.world, self.swarm, self.members, self.invariants)
        self.invariants.on_admin = self.backups.on_committed
        oracle, ledger = self.invariants.oracle, self.backups.ledger
        self.recoveries = Recoveries(self.world, self.swarm, self.members, oracle, ledger)
        self.backups.on_change = self.recoveries.on_change
        self.lapses = Lapses(self.world, self.swarm, self.members, self.network, self.invariants)
        self.lost_majorities = LostMajorities(
            self.world, self.swarm, self.members, self.network, self.invariants
        )
        self.poison = Poison(self.world, self.swarm, self.members, self.invariants)
        memberships = self.invariants.memberships
        self.operator = Operator(self.world, self.swarm, self.members, memberships)
        self.operator.on_upgrade_pending = self.builds.on_refused
        is_plain = self.swarm.campaigns and not self.swarm.loses_majority
        self.world.after = self.invariants.check if is_plain else self._check
        self.invariants.memberships.on_change = self.operator.watch
        self._probed: set[int] = set()
        self._digests: dict[int, Digest] = {}
        self._asked: list[int] = []

    def _on_committed(self, entry: Entry) -> None:
        self.clocks.check(entry)
        self.recoveries.on_entry(entry)

    def _client(self, kind: type[Any], number: int) -> Any:
        return kind(f"{kind.__name__} {number}", self.history, self.swarm, self.members)

    def run(self) -> Outcome:
        """Run from beginning to end; report a violation, and never raise it."""
        world = self.world
        violation = ""
        try:
            crowding: Patch = (sessions, "SESSIONS_MAX", self.swarm.sessions_max)
            hasten = (*HASTE, *backups.HASTE, *archive.HASTE, *recoveries.HASTE)
            with patched([*hasten, crowding]):
                self._run()
        except Violation as error:
            violation = str(error)
        except Exception:  # noqa: BLE001 - whatever the code under test raises is a finding
            violation = "an exception:\n" + traceback.format_exc()
        self.backups.end()
        self.history.count()
        return Outcome(
            seed=world.seed,
            violation=violation,
            story=world.story() if violation else "",
            digest=world.digest % (1 << 64),
            events=world.events,
            seconds=world.now,
            acknowledged=len(self.history.acknowledged),
            counts=dict(world.counts),
        )

    def _run(self) -> None:
        for member in self.members.values():
            member.network = self.network
            member.start()
        self.world.run(self.swarm.chaos_s)
        self.world.note(0, "heal")
        self.faults.heal()
        self.sickness.heal()
        self.operator.stop()
        self.promotions.stop()
        self.rollbacks.stop()
        self.divergences.stop()
        self.lapses.stop()
        self.lost_majorities.stop()
        self.poison.stop()
        self.clocks.stop()
        self.builds.stop()
        self.backups.heal()
        self.recoveries.stop()
        for client in self.clients:
            client.is_active = False
        for member in self.members.values():
            self._probe(member)
        self.world.at(POLL_S, self._poll)
        limit_s = self._limit_s()
        self.world.run(self.world.now + limit_s)
        if not self.world.is_done:
            raise Violation(f"no agreement within {limit_s:.1f} s: {self._lacking()}")
        self.world.is_settled = True
        self._see_leadership_return()
        self._compare()
        self.backups.verdict(self._current())
        self.history.verdict()

    def _limit_s(self) -> float:
        """How long it may take from now on until all agree.

        A message that is late holds up what follows it in order. And where an append carries a
        single entry, a member that lags may get one a round trip, each read from the disk first.
        """
        swarm = self.swarm
        limit_s = LIVENESS_S if swarm.campaigns else LIVENESS_S + LEADERLESS_MAX_S
        limit_s += self.network.held_up_s()
        if swarm.append_bytes_max == 1:
            entry_s = 4 * swarm.delay_s + 3 * swarm.disk_s
            limit_s += entry_s * len(self.invariants.committed)
        return limit_s

    def _check(self, member: Member) -> None:
        if member.is_outcast:
            return
        self.invariants.check(member)
        if not self.swarm.campaigns:
            self.promotions.check(member)

    def _see_leadership_return(self) -> None:
        """Check that leadership goes where it should be when nothing else happens."""
        world = self.world
        calm = Calm(world, self.swarm, self.invariants.leaders, self._current())
        world.is_done = calm.is_over
        world.run(world.now + calm.limit_s)
        if not world.is_done:
            raise Violation(f"leadership did not return: {calm.lacking()}")

    # ---------------------------------------------------------------- Watch

    def on_start(self, member: Member) -> None:
        self.divergences.on_start(member)
        self.recoveries.on_start(member)
        self.invariants.on_start(member)

    def on_send(self, member: Member, message: PeerMessage) -> None:
        self.invariants.on_send(member, message)

    def on_writing(self, member: Member, write: Write) -> None:
        self.invariants.on_writing(member, write)

    def on_durable(self, member: Member, write: Write) -> None:
        self.invariants.on_durable(member, write)

    def on_role(self, member: Member, role: str) -> None:
        self.faults.on_role(member, role)
        self.lost_majorities.on_role(member, role)

    def on_event(self, member: Member, event: HaEvent) -> None:
        if isinstance(event, FailoverCompleted):
            self.world.counts["failover"] += 1
            self.world.counts["planned failover"] += event.is_planned
        if isinstance(event, ClockWrong):
            self.world.note(member.id, "clock reported", f"node {event.node_id}")
        self.invariants.failovers.on_event(member, event)
        self.recoveries.on_event(member, event)

    def on_turn(self, member: Member) -> None:
        if member.node is not None:
            self.invariants.failovers.check_turn(member)

    def on_reset(self, member: Member, wal: Wal, position: LogPosition) -> None:
        self.invariants.on_reset(member, wal, position)

    def on_loss(self, member: Member, position: LogPosition) -> None:
        self.invariants.on_loss(member, position)

    def on_crash(self, member: Member) -> None:
        self.faults.on_crash(member)

    def on_unsupported(self, member: Member, reason: str) -> None:
        self.world.note(member.id, "unsupported", reason)
        self.builds.on_unsupported(member, reason)

    def on_wipe(self, member: Member) -> None:
        self.invariants.on_wipe(member)

    def on_told_removed(self, member: Member) -> None:
        self.invariants.on_told_removed(member)

    def on_failed_command(self, member: Member) -> None:
        self.poison.on_failed(member)

    def on_refused(self, member: Member, peer: int) -> None:
        self.poison.on_refused(member, self.members[peer])

    # ---------------------------------------------------------------- after the chaos

    def _current(self) -> list[Member]:
        """The members by the last committed membership, learners too."""
        latest = self.invariants.memberships.latest.members
        return [self.members[i] for i in sorted(latest) if not self.members[i].is_outcast]

    def _probe(self, member: Member) -> None:
        """Write and read something new through `member`, again and again until it works."""
        if member.id in self._probed:
            return
        self.world.at(PROBE_S, self._probe, member)
        if not member.is_up or member not in self._current():
            return
        deadline = member.deadline(PROBE_S)
        command = Command(self.history, "increment", b"probe")
        packed = pack_call("increment", [command.key, command.id])
        probe = _Probe(self, member, command)
        member.submit([CallOperation(probe, deadline, packed, "increment")])

    def probed(self, member: Member, command: Command, result: Any) -> None:
        """A probe's answer."""
        if not isinstance(result, Receipt):
            self.world.note(member.id, "probe failed", repr(result))
            return
        self.history.acknowledge(command, result)
        self._probed.add(member.id)

    def _poll(self) -> None:
        """See whether all members agree; then ask for their digests; then it's done.

        A write whose client has given up may still be on its way into the log, so digests count
        only if they were taken at the same command.
        """
        if self.world.is_settled:
            return
        self.world.at(POLL_S, self._poll)
        if self._lacking():
            return
        current = self._current()
        ids = [member.id for member in current]
        if self._asked != ids or len({digest.sequence for digest in self._digests.values()}) > 1:
            self._digests.clear()
            self._asked = ids
            for member in current:
                deadline = member.deadline(LIVENESS_S)
                waiter = _DigestWaiter(self._digests, member)
                sequence = self.invariants.oracle.sequence
                member.submit([DigestOperation(waiter, deadline, sequence)])
        elif len(self._digests) == len(ids):
            self.world.is_done = True

    def _lacking(self) -> str:
        """What is still missing; "" if nothing is missing."""
        current = self._current()
        missing = [f"node {m.id} took no write" for m in current if m.id not in self._probed]
        if self.operator.open:
            missing.append(f"{self.operator.open} changes of membership without an answer")
        if self.promotions.has_open:
            missing.append("a request for another leader without an answer")
        if self.operator.has_wish:
            missing.append("the operator's last wish")
        if self.history.open:
            calls = [f"{call.member.id}" for call in self.history.open.values()]
            missing.append(f"calls without an answer at {', '.join(calls)}")
        for node_id in sorted(self.invariants.memberships.latest.removed):
            left = self.members[node_id]
            is_unaware = left.node is not None and not left.node.core.is_removed
            if is_unaware and left.founding is None and self._can_ask(left):
                missing.append(f"node {node_id} doesn't know that it was removed")
        if self.clocks.lacking():
            missing.append(self.clocks.lacking())
        if self.builds.must_be_new and self.builds.used < NEW:
            missing.append("the cluster doesn't use the version that all members support")
        missing += filter(None, (self.backups.lacking(), self.recoveries.lacking()))
        if any(client.is_busy for client in self.clients):
            missing.append("a client still sends a group again")
        last = len(self.invariants.committed)
        for member in current:
            applied = member.node.state.applied.index if member.node is not None else None
            if member.node_files.is_healing:
                missing.append(f"node {member.id} heals")
            if member.store.is_altered:
                missing.append(f"node {member.id} has a state of its own")
            if applied != last:
                missing.append(f"node {member.id} has applied {applied} of {last}")
        return "; ".join(missing)

    def _can_ask(self, left: Member) -> bool:
        """True if a removed member knows a member that is still there, with its directory."""
        assert left.node is not None
        there = self.invariants.memberships.latest.members
        known = left.membership
        return any(known.recorded(i) == self.members[i].incarnation for i in there)

    def _compare(self) -> None:
        first_id, first = min(self._digests.items())
        for node_id, digest in self._digests.items():
            if (digest.hex, digest.keys) != (first.hex, first.keys):
                raise Violation(f"node {node_id} has {digest}, node {first_id} {first}")
        values = self.invariants.oracle.values
        for member in self._current():
            assert member.node is not None
            contents = dict(member.node.state.scan(limit=10_000))
            if contents != values:
                differing = {
                    key
                    for key in contents.keys() | values.keys()
                    if contents.get(key) != values.get(key)
                }
                key = min(differing)
                raise Violation(
                    f"node {member.id} has {len(differing)} wrong values, first {key!r}: "
                    f"{contents.get(key)!r} instead of {values.get(key)!r}"
                )


def _draw(world: World) -> Swarm:
    """Draw what a seed has, each layer from a stream of its own."""
    swarm = widen(draw(world.stream("swarm")), world.stream("availability"))
    swarm = with_leases(swarm, world.stream("leases"))
    swarm = with_forgetful_voters(swarm, world.stream("forgetful voters"))
    swarm = with_crowds(swarm, world.stream("crowds"))
    swarm = with_wrong_clocks(swarm, world.stream("wrong clocks"))
    swarm = with_rollbacks(swarm, world.stream("rollbacks"))
    swarm = with_divergences(swarm, world.stream("divergences in the swarm"))
    swarm = with_lapses(swarm, world.stream("lapses in the swarm"))
    swarm = with_lost_majorities(swarm, world.stream("lost majorities"))
    swarm = with_poison(swarm, world.stream("poison"))
    swarm = with_builds(swarm, world.stream("with builds"))
    swarm = with_backups(swarm, world.stream("with backups"))
    return with_recoveries(swarm, world.stream("with recoveries"))


class _Probe:
    """Waits for a write after the chaos."""

    def __init__(self, simulation: Simulation, member: Member, command: Command) -> None:
        self._simulation = simulation
        self._member = member
        self._command = command

    def done(self, result: Any) -> None:
        self._simulation.probed(self._member, self._command, result)


class _DigestWaiter:
    """Collects a member's digest."""

    def __init__(self, digests: dict[int, Digest], member: Member) -> None:
        self._digests = digests
        self._member = member

    def done(self, result: Any) -> None:
        if not self._member.is_wanted:
            return  # It was removed meanwhile, and is shut down.
        if not isinstance(result, Digest):
            raise Violation(f"node {self._member.id} answered {result!r} instead of a digest")
        self._digests[self._member.id] = result


def run(seed: int) -> Outcome:
    """Run one seed."""
    # A garbage collection in the middle takes a quarter of the time and finds almost nothing; one
    # at the end that covers everything takes a twentieth.
    gc.disable()
    gc.freeze()
    try:
        return Simulation(seed).run()
    finally:
        gc.collect()
        gc.unfreeze()
        gc.enable()
